"""SegFormer's decoder against its definition and its published size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.models import SegFormerHead
from hardpix.types import FeatureSpec

SPECS = tuple(map(FeatureSpec, (4, 8, 16, 32), (3, 4, 5, 6)))
SIZES = ((9, 12), (5, 6), (3, 3), (2, 2))


def build(specs=SPECS, *, outputs: int = 3, align_corners: bool = False, channels: int = 4) -> SegFormerHead:
    torch.manual_seed(0)
    head = SegFormerHead(
        specs, {"label": outputs}, channels=channels, align_corners=align_corners, dropout=0.1
    )
    norm = head.fuse[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    return head.double().eval()


@pytest.fixture
def pyramid() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, s.channels, *size).double() for s, size in zip(SPECS, SIZES, strict=True)]


@pytest.mark.parametrize("align_corners", [False, True])
def test_equation(pyramid: list[Tensor], align_corners: bool) -> None:
    """A matrix product per pixel, enlarged, concatenated finest first; matrix, norm, ReLU; matrix."""
    head = build(align_corners=align_corners)
    maps = []
    for linear, x in zip(head.linear, pyramid, strict=True):
        y = torch.einsum("oc,bchw->bohw", linear.weight[:, :, 0, 0], x) + linear.bias[:, None, None]
        maps.append(F.interpolate(y, SIZES[0], mode="bilinear", align_corners=align_corners))
    conv, norm = head.fuse[0], head.fuse[1]
    assert conv.bias is None
    fused = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], torch.cat(maps, 1))
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    fused = (fused - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    out = head(pyramid)
    torch.testing.assert_close(out.decoder, [fused.clamp(min=0)])
    label = head.classifiers.convs["label"]
    expected = torch.einsum("oc,bchw->bohw", label.weight[:, :, 0, 0], fused.clamp(min=0))
    torch.testing.assert_close(out.outputs["label"], expected + label.bias[:, None, None])


def test_size_for_mit_b0_on_150_classes() -> None:
    """0.4 million as published: four matrices with bias, the fusion with norm, the classifier with bias."""
    specs = tuple(map(FeatureSpec, (4, 8, 16, 32), (32, 64, 160, 256)))
    head = build(specs, outputs=150, channels=256)
    parts = 256 * (32 + 64 + 160 + 256) + 4 * 256, 4 * 256 * 256 + 2 * 256, 150 * 256 + 150
    assert sum(p.numel() for p in head.parameters()) == sum(parts) == 433_302


def test_the_one_map_has_the_finest_stride() -> None:
    assert build().features == (FeatureSpec(4, 4),)
    assert isinstance(build().classifiers.dropout, nn.Dropout2d)


def test_half_precision() -> None:
    head = build().float().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = head([torch.randn(2, s.channels, *n) for s, n in zip(SPECS, SIZES, strict=True)])
    assert out.outputs["label"].dtype == torch.bfloat16
    assert torch.isfinite(out.outputs["label"]).all()
