"""Group norm with kept statistics, and the detail branch on tiles against its dense form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hardpix.models import DetailBranch, TrackedGroupNorm, tiles_read
from hardpix.types import FeatureSpec


def shaken(module):
    """Norms that are not the identity, as after some training."""
    torch.manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, torch.nn.GroupNorm):
            torch.nn.init.uniform_(norm.weight, 0.5, 2)
            torch.nn.init.normal_(norm.bias)
        if isinstance(norm, TrackedGroupNorm):
            torch.nn.init.normal_(norm.running_mean)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return module


def test_kept_statistics_are_the_mean_over_images_and_then_a_running_one():
    torch.manual_seed(0)
    norm = TrackedGroupNorm(2, 6).train()
    mean, var = np.zeros(2), np.ones(2)
    for step in range(1, 131):
        x = (1 + step % 3) * torch.randn(3, 6, 4, 5) + torch.randn(3, 6, 1, 1)
        norm(x)
        groups = x.double().numpy().reshape(3, 2, -1)
        weight = max(1 / step, 0.01)
        mean += weight * (groups.mean(2).mean(0) - mean)
        var += weight * (groups.var(2).mean(0) - var)  # each image's own, the images then averaged
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.running_var.numpy(), var, rtol=1e-4)
    assert int(norm.batches) == 130
    before = norm.running_mean.clone()
    norm.eval()(x)
    assert torch.equal(before, norm.running_mean)


def test_images_are_normalised_by_themselves_unless_kept_statistics_are_asked_for():
    torch.manual_seed(0)
    norm, x = shaken(TrackedGroupNorm(2, 6)), torch.randn(3, 6, 4, 5)
    plain = F.group_norm(x, 2, norm.weight, norm.bias)
    state = {k: v.clone() for k, v in norm.state_dict().items()}
    for tracked in (False, True):
        norm.tracked = tracked
        torch.testing.assert_close(norm.train()(x), plain)
        norm.load_state_dict(state)
    norm.tracked = False
    torch.testing.assert_close(norm.eval()(x), plain)
    norm.tracked = True
    got = norm.eval()(x).detach().double().numpy()
    for c in range(6):
        g = c // 3
        want = (x[:, c].double().numpy() - float(norm.running_mean[g])) / np.sqrt(
            float(norm.running_var[g]) + 1e-5
        )
        np.testing.assert_allclose(
            got[:, c], want * float(norm.weight[c].detach()) + float(norm.bias[c].detach()), atol=1e-5
        )
    assert norm(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("pixels", "cells", "side"),
    [
        ((32, 48), (8, 12), 4), ((33, 50), (9, 13), 3), ((7, 9), (7, 9), 2), ((5, 6), (2, 2), 4),
        ((1, 1), (1, 1), 4), ((61, 29), (16, 8), 5),
    ],
)  # fmt: skip
def test_tiles_are_those_that_the_enlargement_reads(pixels, cells, side, align_corners):
    tall, wide = -(-cells[0] // side), -(-cells[1] // side)
    numbers = torch.arange(tall * wide).view(tall, wide)
    owner = numbers.repeat_interleave(side, 0).repeat_interleave(side, 1)[: cells[0], : cells[1]]
    near = F.max_pool2d(F.one_hot(owner).movedim(-1, 0)[None].float(), 5, 1, 2)[0].bool()  # within two cells
    x = torch.zeros(1, 1, *cells, requires_grad=True)
    big = F.interpolate(x, pixels, mode="bilinear", align_corners=align_corners)[0, 0]
    for y in range(pixels[0]):
        for left in range(0, pixels[1], 3):
            (grad,) = torch.autograd.grad(big[y, left], x, retain_graph=True)
            read = grad[0, 0] > 1e-3  # smaller ones are rounding: the least share of these sizes is 1/120
            flagged = torch.zeros(1, *pixels, dtype=torch.bool)
            flagged[0, y, left] = True
            marked = tiles_read(flagged, cells, side, align_corners=align_corners)[0]
            assert marked.shape == (tall, wide)
            assert marked[torch.div(owner, wide, rounding_mode="floor"), owner % wide][read].all()
            close = near[:, read].any(1).view(tall, wide)
            assert not (marked & ~close).any()


def branch(align_corners, attention="relu", channels=8):
    torch.manual_seed(0)
    skips = [FeatureSpec(16, 6), FeatureSpec(8, 5), FeatureSpec(4, 4)]
    made = DetailBranch(FeatureSpec(16, 7), skips, 5, channels=channels, attention=attention,
                        align_corners=align_corners, tracked=True)  # fmt: skip
    torch.nn.init.normal_(made.classifier.weight)
    return shaken(made).eval()


def maps(size, batch=2):
    g = torch.Generator().manual_seed(0)
    sizes = [tuple(-(-side // s) for side in size) for s in (16, 16, 8, 4)]
    return [torch.randn(batch, c, *s, generator=g) for c, s in zip((7, 6, 5, 4), sizes, strict=True)]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(96, 128), (97, 129), (65, 40), (20, 300), (16, 16)])
@pytest.mark.parametrize("side", [1, 4, 7, 64])
def test_tiles_equal_the_dense_form_and_the_rest_is_0(size, side, align_corners):
    net, (high, *skips) = branch(align_corners), maps(size)
    with torch.no_grad():
        dense = net(high, skips)
        tall, wide = (-(-n // side) for n in dense.shape[-2:])
        tiles = torch.rand(2, tall, wide, generator=torch.Generator().manual_seed(2)) < 0.4
        got = net.fine_on_tiles(net.coarse(high, skips[:-1]), skips[-1], tiles, side)
    cells = tiles.repeat_interleave(side, 1).repeat_interleave(side, 2)
    cells = cells[:, None, : dense.shape[-2], : dense.shape[-1]]
    torch.testing.assert_close(got, dense * cells, atol=2e-5, rtol=1e-4)
    assert not got[~cells.expand_as(got)].any()


def test_some_none_and_all_tiles_by_forward():
    net, (high, *skips) = branch(False, "sigmoid"), maps((96, 128))
    with torch.no_grad():
        dense = net(high, skips)
        for chosen in (torch.zeros(2, 6, 8, dtype=torch.bool), torch.ones(2, 6, 8, dtype=torch.bool)):
            got = net(high, skips, tiles=chosen, side=4)
            torch.testing.assert_close(got, dense * chosen.any())
        one = torch.zeros(2, 6, 8, dtype=torch.bool)
        one[1, 5, 7] = True
        got = net(high, skips, tiles=one, side=4)
        torch.testing.assert_close(got[1, :, 20:, 28:], dense[1, :, 20:, 28:], atol=2e-5, rtol=1e-4)
        assert not got[0].any()
        with torch.autocast("cpu", torch.bfloat16):
            low, half = net(high, skips), net(high, skips, tiles=one, side=4)
        torch.testing.assert_close(half[1, :, 20:, 28:], low[1, :, 20:, 28:].float(), atol=0.1, rtol=0.05)


def test_only_the_third_blocks_maps_are_tracked():
    net = branch(False, channels=64)
    tracked = [name for name, m in net.named_modules() if isinstance(m, TrackedGroupNorm)]
    assert tracked == [f"blocks.2.{x}.1" for x in ("gau.up", "gau.low", "convs.0", "convs.1")]
    assert {net.get_submodule(name).num_groups for name in tracked} == {32}
