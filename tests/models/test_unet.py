"""U-Net's decoder against its definition, on pyramids of any strides and sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.models import UNetHead
from hardpix.types import ConfigError, FeatureSpec

SPECS = tuple(map(FeatureSpec, (4, 8, 16, 32), (3, 4, 5, 6)))
SIZES = ((9, 12), (5, 6), (3, 3), (2, 2))
STEPS = (
    (256, 128, 64),
    (512, 256, 128),
    (1024, 2048, 256),
)  # on a ResNet-50: channels of the skip, from below, out


def build(specs=SPECS, *, align_corners: bool = False, channels=(2, 3, 4)) -> UNetHead:
    torch.manual_seed(0)
    head = UNetHead(specs, {"label": 3}, channels=channels, align_corners=align_corners, dropout=0.1)
    for norm in (m for m in head.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    return head.double().eval()


@pytest.fixture
def pyramid() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, s.channels, *size).double() for s, size in zip(SPECS, SIZES, strict=True)]


def layer(block: nn.Sequential, x: Tensor) -> Tensor:
    conv, norm = block[0], block[1]
    assert conv.bias is None
    assert conv.kernel_size == (3, 3)
    y = F.conv2d(x, conv.weight, padding=1)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return ((y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]).clamp(
        min=0
    )


@pytest.mark.parametrize("align_corners", [False, True])
def test_equation(pyramid: list[Tensor], align_corners: bool) -> None:
    """x3 = C5; x_k = two convolutions of (C_k, enlarged x_{k+1}), in this order."""
    head = build(align_corners=align_corners)
    x, expected = pyramid[3], []
    for level in (2, 1, 0):
        up = F.interpolate(x, SIZES[level], mode="bilinear", align_corners=align_corners)
        first, second = head.steps[level]
        x = layer(second, layer(first, torch.cat([pyramid[level], up], 1)))
        expected.insert(0, x)
    out = head(pyramid)
    torch.testing.assert_close(out.decoder, expected)
    conv = head.classifiers.convs["label"]
    torch.testing.assert_close(out.outputs["label"], F.conv2d(expected[0], conv.weight, conv.bias))


def test_one_number_doubles_at_each_coarser_level() -> None:
    assert build(channels=4).features == tuple(map(FeatureSpec, (4, 8, 16), (4, 8, 16)))
    assert build(channels=[2, 3, 4]).features == tuple(map(FeatureSpec, (4, 8, 16), (2, 3, 4)))


def test_size_on_resnet50() -> None:
    specs = tuple(map(FeatureSpec, (4, 8, 16, 32), (256, 512, 1024, 2048)))
    head = build(specs, channels=64)
    sizes = [9 * (skip + below + w) * w + 4 * w for skip, below, w in STEPS]
    assert [sum(p.numel() for p in step.parameters()) for step in head.steps] == sizes
    assert sum(p.numel() for p in head.parameters()) == sum(sizes) + 3 * 64 + 3 == 8_959_939


def test_levels_of_one_stride_are_not_enlarged() -> None:
    head = build(tuple(FeatureSpec(8, 3) for _ in range(4)))
    assert [spec.stride for spec in head.features] == [8, 8, 8]
    assert head([torch.zeros(1, 3, 5, 7).double()] * 4).outputs["label"].shape == (1, 3, 5, 7)


@pytest.mark.parametrize(("specs", "channels"), [(SPECS, [4, 8]), (SPECS, [4] * 4), (SPECS[:1], 4)])
def test_widths_that_do_not_fit_are_refused(specs, channels) -> None:
    with pytest.raises(ConfigError, match=r"head\.channels="):
        build(specs, channels=channels)


def test_half_precision() -> None:
    head = build().float().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = head([torch.randn(2, s.channels, *n) for s, n in zip(SPECS, SIZES, strict=True)])
    assert out.outputs["label"].dtype == torch.bfloat16
    assert torch.isfinite(out.outputs["label"]).all()
