"""What each head computes, against its equation written out with plain functions and against published sizes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.models import (
    DeepLabV3Head,
    DeepLabV3PlusHead,
    FCNHead,
    Head,
    PSPHead,
    Segmenter,
    TimmBackbone,
    UPerHead,
)
from hardpix.models.layers import Classifiers, ConvNormAct
from hardpix.types import ConfigError, FeatureSpec, HardpixError

SPECS = tuple(map(FeatureSpec, (4, 8, 16, 32), (3, 4, 5, 6)))
POOLS = (1, 2, 3, 6)


@pytest.fixture
def pyramid() -> list[Tensor]:
    torch.manual_seed(0)
    sizes = ((24, 36), (12, 18), (7, 9), (6, 6))
    return [torch.randn(2, s.channels, *size) for s, size in zip(SPECS, sizes, strict=True)]


def shaken(head: Head) -> Head:
    """In eval, with norm layers that are not the identity."""
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return head.eval()


def layer(block: ConvNormAct, x: Tensor) -> Tensor:
    """relu(norm(conv(x))) from the definition, the convolution without bias and size-preserving."""
    conv, norm = block[0], block[1]
    assert conv.bias is None
    pad = conv.dilation[0] * (conv.kernel_size[0] // 2)
    y = F.conv2d(x, conv.weight, padding=pad, dilation=conv.dilation, groups=conv.groups)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    y = (y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    return y.clamp(min=0)


def cells(x: Tensor, n: int) -> Tensor:
    """Mean over n x n equal cells of a 6x6 map, by hand."""
    data, side = x.detach().numpy(), 6 // n
    out = np.zeros((*data.shape[:2], n, n), np.float32)
    for i in range(n):
        for j in range(n):
            out[..., i, j] = data[..., i * side : (i + 1) * side, j * side : (j + 1) * side].mean((2, 3))
    return torch.from_numpy(out)


def enlarge(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=align_corners)


def pooled(pooling: nn.Module, x: Tensor, align_corners: bool) -> Tensor:
    parts = [
        enlarge(layer(branch[1], cells(x, n)), x, align_corners)
        for n, branch in zip(POOLS, pooling.pools, strict=True)
    ]
    return layer(pooling.fuse, torch.cat([x, *parts], 1))


def classified(head: Head, x: Tensor) -> Tensor:
    conv = head.classifiers.convs["label"]
    return F.conv2d(x, conv.weight, conv.bias)


@pytest.mark.parametrize("align_corners", [False, True])
def test_psp(pyramid: list[Tensor], align_corners: bool) -> None:
    head = shaken(
        PSPHead(
            SPECS,
            {"label": 3},
            channels=8,
            pool_sizes=POOLS,
            levels=[-1],
            align_corners=align_corners,
            dropout=0.1,
        )
    )
    expected = pooled(head.pooling, pyramid[3], align_corners)
    out = head(pyramid)
    torch.testing.assert_close(out.decoder[0], expected)
    torch.testing.assert_close(out.outputs["label"], classified(head, expected))


@pytest.mark.parametrize("align_corners", [False, True])
def test_deeplabv3plus(pyramid: list[Tensor], align_corners: bool) -> None:
    head = shaken(
        DeepLabV3PlusHead(
            SPECS,
            {"label": 3},
            channels=8,
            low_channels=2,
            dilations=(2, 3),
            project_kernel=3,
            levels=[-1],
            align_corners=align_corners,
            dropout=0.1,
        )
    )
    x, aspp = pyramid[3], head.aspp
    image = layer(aspp.image[1], x.mean((2, 3), keepdim=True)).expand(-1, -1, 6, 6)
    parts = [image, layer(aspp.branches[0], x)]
    for branch, dilation in zip(aspp.branches[1:], (2, 3), strict=True):
        assert branch[0][0].groups == 6
        assert branch[0][0].dilation == (dilation, dilation)
        parts.append(layer(branch[1], layer(branch[0], x)))
    deep = layer(aspp.fuse, torch.cat(parts, 1))
    joined = torch.cat([enlarge(deep, pyramid[0], align_corners), layer(head.low, pyramid[0])], 1)
    for separable in head.refine:
        joined = layer(separable[1], layer(separable[0], joined))
    out = head(pyramid)
    torch.testing.assert_close(out.decoder[1], deep)
    torch.testing.assert_close(out.decoder[0], joined)
    torch.testing.assert_close(out.outputs["label"], classified(head, joined))


def test_deeplabv3(pyramid: list[Tensor]) -> None:
    head = shaken(
        DeepLabV3Head(
            SPECS,
            {"label": 3},
            channels=8,
            dilations=(2, 3),
            project_kernel=3,
            levels=[-1],
            align_corners=False,
            dropout=0.1,
        )
    )
    x, aspp = pyramid[3], head.aspp
    parts = [layer(aspp.image[1], x.mean((2, 3), keepdim=True)).expand(-1, -1, 6, 6)]
    parts += [layer(branch, x) for branch in aspp.branches]
    assert [branch[0].kernel_size[0] for branch in aspp.branches] == [1, 3, 3]
    assert [branch[0].dilation[0] for branch in aspp.branches] == [1, 2, 3]
    torch.testing.assert_close(head(pyramid).decoder[0], layer(aspp.fuse, torch.cat(parts, 1)))


@pytest.mark.parametrize("align_corners", [False, True])
def test_uper(pyramid: list[Tensor], align_corners: bool) -> None:
    head = shaken(
        UPerHead(SPECS, {"label": 3}, channels=8, pool_sizes=POOLS, align_corners=align_corners, dropout=0.1)
    )
    up = partial(enlarge, align_corners=align_corners)
    p4 = pooled(head.pooling, pyramid[3], align_corners)
    p3 = layer(head.lateral[2], pyramid[2]) + up(p4, pyramid[2])
    p2 = layer(head.lateral[1], pyramid[1]) + up(p3, pyramid[1])
    p1 = layer(head.lateral[0], pyramid[0]) + up(p2, pyramid[0])
    maps = [layer(smooth, p) for smooth, p in zip(head.smooth, (p1, p2, p3), strict=True)] + [p4]
    fused = layer(head.fuse, torch.cat([up(p, pyramid[0]) for p in maps], 1))
    out = head(pyramid)
    for ours, expected in zip(out.decoder, [fused, *maps[1:]], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.outputs["label"], classified(head, fused))


@pytest.mark.parametrize("concat_input", [False, True])
def test_fcn_on_joined_levels(pyramid: list[Tensor], concat_input: bool) -> None:
    head = shaken(
        FCNHead(
            SPECS,
            {"label": 3},
            channels=8,
            num_convs=2,
            concat_input=concat_input,
            levels=[1, -1],
            align_corners=False,
            dropout=0.1,
        )
    )
    x = torch.cat([pyramid[1], enlarge(pyramid[3], pyramid[1], False)], 1)
    y = layer(head.convs[1], layer(head.convs[0], x))
    expected = layer(head.join, torch.cat([x, y], 1)) if concat_input else y
    assert head.features == (FeatureSpec(8, 8),)
    torch.testing.assert_close(head(pyramid).outputs["label"], classified(head, expected))


def test_dropout_drops_whole_channels_before_the_classifier(pyramid: list[Tensor]) -> None:
    head = FCNHead(
        SPECS,
        {"label": 1},
        channels=8,
        num_convs=1,
        concat_input=False,
        levels=[-1],
        align_corners=False,
        dropout=0.5,
    )
    nn.init.ones_(head.classifiers.convs["label"].weight)
    seen: list[Tensor] = []
    head.classifiers.convs["label"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    decoder = head.train()(pyramid).decoder[0]
    gone = (seen[0] == 0).all(-1).all(-1) & (decoder > 0).any(-1).any(-1)
    assert gone.any()
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], 2 * decoder[kept])


@pytest.mark.parametrize(
    ("build", "count"),
    [
        # 3x3 2048 -> 512, 3x3 512 -> 512, 3x3 2560 -> 512, each with a norm of 2 x 512; 1x1 to 19 with bias.
        (partial(FCNHead, num_convs=2, concat_input=True, levels=[-1]), 9 * 512 * 5120 + 3 * 1024 + 513 * 19),
        # Four 1x1 2048 -> 512, 3x3 4096 -> 512.
        (
            partial(PSPHead, pool_sizes=POOLS, levels=[-1]),
            4 * 2048 * 512 + 9 * 4096 * 512 + 5 * 1024 + 513 * 19,
        ),
        # Two 1x1 and three 3x3 2048 -> 512, 3x3 2560 -> 512.
        (
            partial(DeepLabV3Head, dilations=(12, 24, 36), levels=[-1], project_kernel=3),
            (2 + 27) * 2048 * 512 + 9 * 2560 * 512 + 6 * 1024 + 513 * 19,
        ),
        # DeepLab's own: 1x1 2560 -> 512.
        (
            partial(DeepLabV3Head, dilations=(12, 24, 36), levels=[-1], project_kernel=1),
            (2 + 27) * 2048 * 512 + 2560 * 512 + 6 * 1024 + 513 * 19,
        ),
        # Five 1x1 2048 -> 512, three depthwise 3x3 on 2048; 3x3 2560 -> 512; 1x1 256 -> 48; two separable 3x3.
        (
            partial(
                DeepLabV3PlusHead, low_channels=48, dilations=(12, 24, 36), levels=[-1], project_kernel=3
            ),
            5 * (2048 * 512 + 1024)
            + 3 * (9 + 2) * 2048
            + 9 * 2560 * 512
            + 1024
            + 256 * 48
            + 96
            + (9 + 2) * 560
            + 560 * 512
            + (9 + 2) * 512
            + 512 * 512
            + 2 * 1024
            + 513 * 19,
        ),
        # PSP's pooling; 1x1 256, 512, 1024 -> 512; three 3x3 512 -> 512; 3x3 2048 -> 512.
        (
            partial(UPerHead, pool_sizes=POOLS),
            4 * 2048 * 512
            + 9 * 4096 * 512
            + 1792 * 512
            + 27 * 512 * 512
            + 9 * 2048 * 512
            + 12 * 1024
            + 513 * 19,
        ),
    ],
    ids=["fcn", "psp", "deeplabv3", "deeplabv3_1x1", "deeplabv3plus", "uper"],
)
def test_parameters_at_the_papers_widths(build, count: int) -> None:
    specs = tuple(map(FeatureSpec, (4, 8, 8, 8), (256, 512, 1024, 2048)))
    with torch.device("meta"):
        head = build(specs, {"label": 19}, channels=512, align_corners=True, dropout=0.1)
    assert sum(p.numel() for p in head.parameters()) == count


def test_pspnet_r50_has_its_published_size() -> None:
    """mmsegmentation's PSPNet-R50-D8 (ResNetV1c, 19 classes, auxiliary head): 48.97 million parameters."""
    with torch.device("meta"):
        model = Segmenter(
            lambda in_channels: _Plain(),
            partial(PSPHead, channels=512, pool_sizes=POOLS, levels=[-1], dropout=0.1),
            {"label": 19},
            align_corners=True,
            aux_level=2,
            aux_channels=256,
            aux_dropout=0.1,
        )
    own = sum(p.numel() for p in model.parameters())
    resnet = TimmBackbone("resnet50c", pretrained=False, options={}, output_stride=8)
    assert resnet.specs == _Plain.specs
    total = own + sum(p.numel() for p in resnet.parameters())
    assert 48.965e6 < total < 48.985e6


class _Plain(nn.Module):
    specs = tuple(map(FeatureSpec, (4, 8, 8, 8), (256, 512, 1024, 2048)))


def test_one_image_and_global_pooling_is_refused_in_words(pyramid: list[Tensor]) -> None:
    head = PSPHead(
        SPECS, {"label": 3}, channels=8, pool_sizes=POOLS, levels=[-1], align_corners=False, dropout=0.1
    )
    with pytest.raises(HardpixError, match="batch of one image"):
        head.train()([x[:1] for x in pyramid])
    head.eval()([x[:1] for x in pyramid])
    head.train()(pyramid)


@pytest.mark.parametrize("levels", [[4], [-5], []])
def test_a_level_that_does_not_exist(levels: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"head\.levels"):
        PSPHead(
            SPECS, {"label": 3}, channels=8, pool_sizes=POOLS, levels=levels, align_corners=False, dropout=0
        )


def test_classifiers_start_small_and_without_bias():
    torch.manual_seed(0)
    conv = Classifiers(512, {"label": 150}, nn.Identity()).convs["label"]
    assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert abs(conv.weight.mean().item()) < 2e-4
    assert not conv.bias.any()
