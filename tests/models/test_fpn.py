"""Semantic FPN against its equations in NumPy, and its size against mmsegmentation's layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hardpix.models import FPNHead
from hardpix.types import FeatureSpec

SPECS = tuple(map(FeatureSpec, (4, 8, 16, 32), (3, 4, 5, 6)))
SIZES = ((9, 12), (5, 6), (3, 3), (2, 2))


def build(specs=SPECS, *, outputs: int = 3, align_corners: bool = False, **given) -> FPNHead:
    torch.manual_seed(0)
    keys = {"channels": 4, "pyramid_channels": 5, "dropout": 0.1} | given
    head = FPNHead(specs, {"label": outputs}, align_corners=align_corners, **keys)
    for norm in (m for m in head.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    return head.double().eval()


@pytest.fixture
def pyramid() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(1, s.channels, *size).double() for s, size in zip(SPECS, SIZES, strict=True)]


def conv(layer: nn.Conv2d, x: np.ndarray) -> np.ndarray:
    weight = layer.weight.detach().numpy()
    k, (h, w) = weight.shape[2], x.shape[1:]
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    out = np.zeros((len(weight), h, w))
    for i in range(h):
        for j in range(w):
            out[:, i, j] = (weight * padded[:, i : i + k, j : j + k]).sum((1, 2, 3))
    return out if layer.bias is None else out + layer.bias.detach().numpy()[:, None, None]


def repeat(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixel (i, j) of the output is pixel (i // 2, j // 2)."""
    return x[:, np.arange(size[0]) // 2][:, :, np.arange(size[1]) // 2]


def enlarge(x: np.ndarray, size: tuple[int, ...], align_corners: bool) -> np.ndarray:
    for axis, n in ((1, size[0]), (2, size[1])):
        old = x.shape[axis]
        at = (
            np.arange(n) * (old - 1) / max(1, n - 1)
            if align_corners
            else (np.arange(n) + 0.5) * old / n - 0.5
        )
        at = at.clip(0, old - 1)
        low = np.minimum(at.astype(int), max(0, old - 2))
        share = np.expand_dims(at - low, (0, 3 - axis))
        x = np.take(x, low, axis) * (1 - share) + np.take(x, np.minimum(low + 1, old - 1), axis) * share
    return x


def norm_relu(norm: nn.BatchNorm2d, x: np.ndarray) -> np.ndarray:
    mean, var, scale, shift = (
        getattr(norm, name).detach().numpy()[:, None, None]
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return np.maximum((x - mean) / np.sqrt(var + norm.eps) * scale + shift, 0)


@pytest.mark.parametrize("align_corners", [False, True])
def test_equation(pyramid: list[Tensor], align_corners: bool) -> None:
    """P5 = lateral C5; P_k = lateral C_k + repeated P_{k+1}; smoothed; 1, 1, 2, 3 steps up; the sum classified."""
    head = build(align_corners=align_corners)
    maps = [conv(lateral, x[0].numpy()) for lateral, x in zip(head.pyramid.lateral, pyramid, strict=True)]
    for i in (2, 1, 0):
        maps[i] = maps[i] + repeat(maps[i + 1], SIZES[i])
    maps = [conv(smooth, x) for smooth, x in zip(head.pyramid.smooth, maps, strict=True)]
    assert [len(steps) for steps in head.scales] == [1, 1, 2, 3]
    total = np.zeros((4, *SIZES[0]))
    for level, x in enumerate(maps):
        y = x
        for i, step in enumerate(head.scales[level], 1):
            y = enlarge(norm_relu(step[1], conv(step[0], y)), SIZES[max(0, level - i)], align_corners)
        total += y
    out = head(pyramid)
    for found, expected in zip(out.decoder, [total, *maps[1:]], strict=True):
        np.testing.assert_allclose(found[0].detach().numpy(), expected, atol=1e-12)
    logits = conv(head.classifiers.convs["label"], total)
    np.testing.assert_allclose(out.outputs["label"][0].detach().numpy(), logits, atol=1e-12)


def test_size_of_mmsegmentations_sem_fpn_on_resnet50() -> None:
    """Neck: biased 1x1 and 3x3 without norm; head: 1 + 1 + 2 + 3 3x3 without bias, with norm; classifier with bias."""
    specs = tuple(map(FeatureSpec, (4, 8, 16, 32), (256, 512, 1024, 2048)))
    head = build(specs, outputs=19, channels=128, pyramid_channels=256)
    neck = 256 * (256 + 512 + 1024 + 2048) + 4 * 256 + 4 * (9 * 256 * 256 + 256)
    branches = 9 * 128 * (4 * 256 + 3 * 128) + 7 * 2 * 128
    assert sum(p.numel() for p in head.pyramid.parameters()) == neck == 3_344_384
    assert sum(p.numel() for p in head.scales.parameters()) == branches == 1_623_808
    assert sum(p.numel() for p in head.parameters()) == neck + branches + 128 * 19 + 19


def test_levels_of_one_stride_have_one_convolution_each() -> None:
    specs = tuple(FeatureSpec(8, 3) for _ in range(3))
    head = build(specs)
    assert [len(steps) for steps in head.scales] == [1, 1, 1]
    assert head.features == (FeatureSpec(8, 4), FeatureSpec(8, 5), FeatureSpec(8, 5))
    assert head([torch.zeros(1, 3, 5, 7).double()] * 3).outputs["label"].shape == (1, 3, 5, 7)


def test_the_necks_weights_are_xavier_uniform() -> None:
    torch.manual_seed(0)
    head = FPNHead(
        SPECS, {"label": 3}, channels=4, pyramid_channels=64, align_corners=False, dropout=0.1
    ).pyramid
    for layer, fan in ((head.lateral[3], 6 + 64), (head.smooth[0], 9 * (64 + 64))):
        bound = (6 / fan) ** 0.5
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


def test_half_precision() -> None:
    head = build().float().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = head([torch.randn(2, s.channels, *n) for s, n in zip(SPECS, SIZES, strict=True)])
    assert out.outputs["label"].dtype == torch.bfloat16
    assert torch.isfinite(out.outputs["label"]).all()
