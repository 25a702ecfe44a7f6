"""PSANet: masks, collecting and distributing by loops over pairs of pixels; the shrunk map; sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.compose import compose
from hardpix.models import PSAHead
from hardpix.models.psanet import PointAttention, pair_channels
from hardpix.ops.resize import resize
from hardpix.types import ConfigError, FeatureSpec

BOTH = pytest.mark.parametrize("distribute", [False, True])
CPU = torch.device("cpu")


def shaken(module: nn.Module) -> nn.Module:
    """In eval, with norm layers that are not the identity."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    return module.eval()


def attend(module: PointAttention, x: Tensor, mask_size: tuple[int, int]) -> Tensor:
    size = (x.shape[-2], x.shape[-1])
    return module(x, size, pair_channels(size, mask_size, CPU), align_corners=False)


def by_loops(x: np.ndarray, masks: np.ndarray, *, distribute: bool) -> np.ndarray:
    """``x [c, h, w]`` and every pixel's mask ``[rows, columns, h, w]``, whose middle is the pixel itself.

    collect: z_i = sum_j exp(a_ij) x_j / sum_j exp(a_ij).  distribute: z_j = sum_i exp(a_ij) x_i / sum_i exp(a_ij).
    a_ij: what i's mask holds at j - i, 0 where that lies outside.
    """
    rows, columns, *size = masks.shape
    z = np.zeros(x.shape)
    for one in np.ndindex(*size):
        top = bottom = 0
        for other in np.ndindex(*size):
            i, j = (other, one) if distribute else (one, other)
            row, column = j[0] - i[0] + rows // 2, j[1] - i[1] + columns // 2
            inside = 0 <= row < rows and 0 <= column < columns
            e = np.exp(masks[row, column, *i] if inside else 0)
            top, bottom = top + e * x[:, *other], bottom + e
        z[:, *one] = top / bottom
    return z


@BOTH
@pytest.mark.parametrize("mask_size", [(7, 9), (3, 5), (1, 1)])  # sees the map of 4 x 5, does not
def test_by_loops(mask_size: tuple[int, int], distribute: bool) -> None:
    torch.manual_seed(0)
    module = shaken(PointAttention(3, 4, mask_size, distribute=distribute))
    x = torch.randn(2, 3, 4, 5)
    with torch.no_grad():
        cut = F.relu(module.reduce[1](F.conv2d(x, module.reduce[0].weight)))
        masks = 3 * module.mask(cut).unflatten(1, mask_size)
        module.mask[1].weight *= 3
        y = attend(module, x, mask_size)
    for b in range(2):
        expected = by_loops(cut[b].double().numpy(), masks[b].double().numpy(), distribute=distribute)
        np.testing.assert_allclose(y[b], expected, rtol=1e-4, atol=1e-5)


@BOTH
@pytest.mark.parametrize("offset", [(0, 1), (1, 0), (-1, 2), (2, -1)])
def test_an_offset_points_from_the_pixel_to_the_other(offset: tuple[int, int], distribute: bool) -> None:
    """All masks name one offset: whoever collects gets the value from there, whoever distributes sends it there."""
    mask_size, size = (5, 7), (4, 6)
    module = PointAttention(1, 1, mask_size, distribute=distribute).eval()
    module.reduce = module.mask[0] = nn.Identity()  # type: ignore[assignment]
    values = torch.arange(1.0, 25.0).view(1, 1, *size)
    weight = torch.zeros(5, 7)
    weight[2 + offset[0], 3 + offset[1]] = 1e4
    module.mask[1].weight.data = weight.reshape(-1, 1, 1, 1)
    y = attend(module, values, mask_size)[0, 0]
    sign = -1 if distribute else 1
    for row, column in np.ndindex(*size):
        source = (row + sign * offset[0], column + sign * offset[1])
        if 0 <= source[0] < size[0] and 0 <= source[1] < size[1]:
            assert y[row, column] == values[0, 0, *source]


def test_pairs_are_channels_of_the_offset() -> None:
    """A 2 x 3 map under masks of 3 x 3: pixel 0 speaks of pixel 1 in channel 5, 1 of 0 in 3; 0 and 2 are too far."""
    channel, reached = pair_channels((2, 3), (3, 3), CPU)
    assert channel[:, 0].tolist() == [4, 5, 0, 7, 8, 0]  # of j, as pixel 0 says
    assert reached[:, 0].tolist() == [True, True, False, True, True, False]
    assert channel[0].tolist() == [4, 3, 0, 1, 0, 0]  # of pixel 0, as each i says
    assert reached[0].tolist() == [True, True, False, True, True, False]


def head(**changes) -> PSAHead:
    torch.manual_seed(0)
    keys = {
        "channels": 4,
        "mask_size": [5, 5],
        "shrink_factor": 2,
        "padding": 1,
        "levels": [-1],
        "dropout": 0.1,
    }
    return PSAHead((FeatureSpec(8, 3),), {"label": 2}, align_corners=True, **keys | changes)


@pytest.mark.parametrize(
    ("size", "small", "align_corners"),
    [
        ((97, 97), (49, 49), True),
        ((64, 128), (32, 64), False),
        ((7, 8), (3, 4), False),
        ((8, 7), (4, 3), False),
        ((1, 1), (1, 1), True),
        ((1, 6), (1, 3), False),
    ],
)
def test_the_shrunk_map(size: tuple[int, int], small: tuple[int, int], align_corners: bool) -> None:
    assert head()._shrunk(*size) == (small, align_corners)
    assert head(shrink_factor=1)._shrunk(*size) == (size, True)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [(7, 9), (6, 9), (1, 1)])
def test_the_whole_head(size: tuple[int, int], padding: int) -> None:
    model = shaken(head(padding=padding))
    x = torch.randn(2, 3, *size)
    small, align_corners = model._shrunk(*size)
    pairs = pair_channels(small, (5, 5), CPU)
    parts = [part(x, small, pairs, align_corners=align_corners) for part in (model.collect, model.distribute)]
    y = F.conv2d(torch.cat(parts, 1), model.project[0].weight, padding=padding)
    assert y.shape[2:] == tuple(side + 2 * padding for side in small)
    y = resize(F.relu(model.project[1](y)), size, align_corners=align_corners)
    y = F.relu(model.fuse[1](F.conv2d(torch.cat([x, y], 1), model.fuse[0].weight, padding=1)))
    torch.testing.assert_close(model([x]).decoder, [y], rtol=1e-4, atol=1e-5)


@BOTH
def test_what_is_attended_is_the_shrunk_map(distribute: bool) -> None:
    torch.manual_seed(0)
    module = shaken(PointAttention(3, 4, (9, 9), distribute=distribute))
    x, pairs = torch.randn(1, 3, 9, 7), pair_channels((5, 4), (9, 9), CPU)
    cut = F.interpolate(module.reduce(x), (5, 4), mode="bilinear", align_corners=True)
    y = module(x, (5, 4), pairs, align_corners=True)
    module.reduce = nn.Identity()  # type: ignore[assignment]
    torch.testing.assert_close(y, attend(module, cut, (9, 9)))


@BOTH
def test_in_half_precision_sums_are_in_float32(distribute: bool) -> None:
    torch.manual_seed(0)
    module = shaken(PointAttention(3, 4, (3, 3), distribute=distribute))
    x = torch.randn(1, 3, 24, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = attend(module, x, (3, 3))
        cut = module.reduce(x)
        masks = module.mask(cut).flatten(2)
    channel, reached = pair_channels((24, 24), (3, 3), CPU)
    a = masks.float().gather(1, channel[None]).masked_fill(~reached, 0)
    weight = (a.mT if distribute else a).softmax(1)
    exact = cut.flatten(2).float() @ weight
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, exact.to(y.dtype).view_as(y), rtol=0, atol=0)  # rounded once, at the end


def test_even_masks_have_no_middle() -> None:
    with pytest.raises(ConfigError, match=r"head\.mask_size=\[97, 96\]"):
        head(mask_size=[97, 96])


def test_published_size() -> None:
    """ResNet-101 and 19 classes: mmsegmentation's layers, one by one (norm: two per channel)."""
    config = {k: v for k, v in compose(["head=psanet"]).head.items() if not k.startswith("_")}
    with torch.device("meta"):
        model = PSAHead((FeatureSpec(8, 2048),), {"label": 19}, align_corners=True, **config)
    branch = (2048 * 512 + 2 * 512) + (512 * 512 + 2 * 512) + 512 * 97 * 97
    layers = {
        "collect": branch,
        "distribute": branch,
        "project": 1024 * 2048 + 2 * 2048,
        "fuse": 4096 * 512 * 9 + 2 * 512,
        "classifiers": 512 * 19 + 19,
    }
    counted = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    assert counted == layers | {"input": 0}
    assert sum(layers.values()) == 33_246_739
    assert (model.mask_size, model.shrink_factor, model.padding) == ((97, 97), 2, 1)
