"""ISANet: both attentions by loops over pixels, which pixel can reach which, and padding to whole blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.compose import compose
from hardpix.models import ISAHead
from hardpix.models.isanet import _LONG, _SHORT, GroupAttention
from hardpix.types import FeatureSpec

BLOCK = (3, 2)


def grouped(order: tuple[int, ...], i: tuple[int, int], j: tuple[int, int]) -> bool:
    """Whether two pixels attend to each other: at the same place of their blocks, or in the same block."""
    if order == _LONG:
        return all(a % side == b % side for a, b, side in zip(i, j, BLOCK, strict=True))
    return all(a // side == b // side for a, b, side in zip(i, j, BLOCK, strict=True))


def shaken(module: nn.Module) -> nn.Module:
    """In eval, with norm layers that are not the identity."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    return module.eval()


def attention(order: tuple[int, ...]) -> GroupAttention:
    torch.manual_seed(0)
    return shaken(GroupAttention(4, 3, BLOCK, order))


def project(block: nn.Sequential, x: Tensor) -> Tensor:
    return F.relu(block[1](F.conv2d(x, block[0].weight)))


@torch.no_grad()
def by_loops(module: GroupAttention, x: Tensor) -> Tensor:
    """out(sum_j softmax_j(q_i . k_j / sqrt(d)) v_j), j over i's group."""
    query, key = (project(p[1], project(p[0], x)).double().numpy() for p in (module.query, module.key))
    value = F.conv2d(x, module.value.weight, module.value.bias).double().numpy()
    y = np.zeros(value.shape)
    places = list(np.ndindex(*x.shape[2:]))
    for b in range(len(x)):
        for i in places:
            group = [j for j in places if grouped(module.order, i, j)]
            score = [np.exp(sum(query[b, :, *i] * key[b, :, *j]) / np.sqrt(query.shape[1])) for j in group]
            y[b, :, *i] = sum(s / sum(score) * value[b, :, *j] for s, j in zip(score, group, strict=True))
    return project(module.out, torch.as_tensor(y, dtype=torch.float32))


@pytest.mark.parametrize("order", [_LONG, _SHORT])
def test_attention_by_loops(order: tuple[int, ...]) -> None:
    module = attention(order)
    x = 3 * torch.randn(2, 4, 9, 4)
    torch.testing.assert_close(module(x), by_loops(module, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [_LONG, _SHORT])
def test_pixels_of_other_groups_have_no_influence(order: tuple[int, ...]) -> None:
    module, seen = attention(order), (4, 3)
    x = torch.randn(1, 4, 6, 8, requires_grad=True)
    module(x)[..., seen[0], seen[1]].sum().backward()
    reached = x.grad[0].abs().sum(0) > 0
    expected = [[grouped(order, seen, (r, c)) for c in range(8)] for r in range(6)]
    assert torch.equal(reached, torch.tensor(expected))


def head(block: tuple[int, int] = (4, 4)) -> ISAHead:
    torch.manual_seed(0)
    kwargs = {"channels": 6, "isa_channels": 3, "dropout": 0.1, "levels": [-1], "align_corners": False}
    return shaken(ISAHead((FeatureSpec(8, 5),), {"label": 2}, down_factor=block, **kwargs))


def test_together_every_pixel_reaches_every_other() -> None:
    model = head(BLOCK)
    x = torch.randn(1, 6, 6, 8, requires_grad=True)
    model.short_range(model.long_range(x))[..., 4, 3].sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("size", [(7, 5), (8, 4), (1, 1), (1, 9)])
def test_the_whole_head(size: tuple[int, int]) -> None:
    """Padded by hand: 7 rows get one below, 5 columns one to the left and two to the right."""
    model = head()
    x = torch.randn(2, 5, *size)
    cut = F.relu(model.reduce[1](F.conv2d(x, model.reduce[0].weight, padding=1)))
    top, left = ({7: 0, 8: 0, 1: 1}[size[0]], {5: 1, 4: 0, 1: 1, 9: 1}[size[1]])
    padded = torch.zeros(2, 6, *(-(-side // 4) * 4 for side in size))
    padded[..., top : top + size[0], left : left + size[1]] = cut
    y = model.short_range(model.long_range(padded))[..., top : top + size[0], left : left + size[1]]
    y = F.relu(model.fuse[1](F.conv2d(torch.cat([y, cut], 1), model.fuse[0].weight)))
    out = model([x])
    torch.testing.assert_close(out.decoder, [y], rtol=1e-4, atol=1e-5)
    assert out.outputs["label"].shape == (2, 2, *size)


def test_in_half_precision() -> None:
    model, x = head(), torch.randn(2, 5, 7, 9)
    exact = model([x]).decoder[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model([x]).decoder[0]
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).norm() < 0.05 * exact.norm()


def test_published_size() -> None:
    """ResNet-101 and 19 classes: mmsegmentation's layers, one by one (norm: two per channel)."""
    config = {k: v for k, v in compose(["head=isanet"]).head.items() if not k.startswith("_")}
    with torch.device("meta"):
        model = ISAHead((FeatureSpec(8, 2048),), {"label": 19}, align_corners=True, **config)
    key = 512 * 256 + 2 * 256 + 256 * 256 + 2 * 256
    relation = 2 * key + (512 * 512 + 512) + (512 * 512 + 2 * 512)
    layers = {
        "reduce": 2048 * 512 * 9 + 2 * 512,
        "long_range": relation,
        "short_range": relation,
        "fuse": 1024 * 512 + 2 * 512,
        "classifiers": 512 * 19 + 19,
    }
    counted = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    assert counted == layers | {"input": 0}
    assert sum(layers.values()) == 11_815_443
    assert model.block == (8, 8)
