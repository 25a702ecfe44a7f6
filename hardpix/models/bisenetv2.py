"""BiSeNetV2: Bilateral Network with Guided Aggregation for Real-time Semantic Segmentation (Yu et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.schema import Count
from hardpix.models.backbone import Backbone, Pyramid, Stitch
from hardpix.models.layers import ConvNormAct, check_batch_norm
from hardpix.ops.resize import resize
from hardpix.types import ConfigError, FeatureSpec

SEMANTIC_STRIDES = (4, 8, 16, 32)
DETAIL_STAGES = 3  # each halves the size


class Stem(nn.Module):
    """Image ``[B, inputs, H, W]`` -> ``[B, channels, H/4, W/4]``: strided convolution next to max-pooling, joined."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.first = ConvNormAct(inputs, channels, 3, stride=2)
        self.convs = nn.Sequential(
            ConvNormAct(channels, channels // 2, 1), ConvNormAct(channels // 2, channels, 3, stride=2)
        )
        self.fuse = ConvNormAct(2 * channels, channels, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)
        return self.fuse(torch.cat([self.convs(x), F.max_pool2d(x, 3, stride=2, padding=1)], 1))


class GatherExpansion(nn.Module):
    """Gather-and-expansion layer: 3x3, depthwise 3x3 to ``expansion`` times the width, 1x1; plus a shortcut, ReLU.

    ``[B, inputs, h, w]`` -> ``[B, channels, h/stride, w/stride]``. Of stride 1 the shortcut is the identity and the
    width stays. Of stride 2 a depthwise convolution (without ReLU) goes before, and the shortcut is separable. The
    depthwise convolution of stride 1 has a ReLU, as in mmsegmentation; the paper's figure has none.
    """

    def __init__(self, inputs: int, channels: int, expansion: int, *, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        strided = [ConvNormAct(inputs, wide, 3, stride=2, groups=inputs, relu=False)] if stride == 2 else []
        self.steps = nn.Sequential(
            ConvNormAct(inputs, inputs, 3),
            *strided,
            ConvNormAct(wide if strided else inputs, wide, 3, groups=wide if strided else inputs),
            ConvNormAct(wide, channels, 1, relu=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if strided:
            self.shortcut = nn.Sequential(
                ConvNormAct(inputs, inputs, 3, stride=2, groups=inputs, relu=False),
                ConvNormAct(inputs, channels, 1, relu=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.steps(x) + self.shortcut(x))


class ContextEmbedding(nn.Module):
    """The mean over all pixels, normalised and convolved, is added everywhere, then 3x3; keeps ``[B, c, h, w]``.

    The last convolution has batch norm and ReLU, as in mmsegmentation; in the paper it stands alone.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.mean = ConvNormAct(channels, channels, 1)
        self.fuse = ConvNormAct(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.float().mean((2, 3), keepdim=True).to(x.dtype)
        check_batch_norm(self.norm, mean)
        return self.fuse(x + self.mean(self.norm(mean)))


class GuidedAggregation(nn.Module):
    """Bilateral guided aggregation: each branch is gated by the sigmoid of the other, at either's size; sum, 3x3.

    ``detail [B, c, h8, w8]`` and ``semantic [B, c, h32, w32]`` -> ``[B, c, h8, w8]``.
    """

    def __init__(self, channels: int, *, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.detail = _depthwise_then_pointwise(channels)
        self.detail_down = nn.Sequential(
            ConvNormAct(channels, channels, 3, stride=2, relu=False), nn.AvgPool2d(3, stride=2, padding=1)
        )
        self.semantic = _depthwise_then_pointwise(channels)
        self.semantic_up = ConvNormAct(channels, channels, 3, relu=False)
        self.fuse = ConvNormAct(channels, channels, 3)

    def forward(self, detail: Tensor, semantic: Tensor) -> Tensor:
        size = (detail.shape[-2], detail.shape[-1])
        gate = resize(self.semantic_up(semantic), size, align_corners=self.align_corners)
        fine = self.detail(detail) * gate.sigmoid()
        coarse = self.detail_down(detail) * self.semantic(semantic).sigmoid()
        return self.fuse(fine + resize(coarse, size, align_corners=self.align_corners))


class BiSeNetV2(Backbone):
    """Two branches, wide and shallow for detail, narrow and deep for semantics, and their aggregation.

    Levels: the semantic branch's four maps (strides 4, 8, 16, 32), which its auxiliary heads read, then the
    aggregated map of stride 8, which the head reads (``head.levels=[-1]``). The context embedding follows the fourth
    map and has no level. Stages: ``detail``, ``stage1`` .. ``stage4``, ``context``, ``aggregation``. There are no
    pre-trained weights. Sizes are rounded up at every halving; images of any size will do.

    Args:
        detail_channels: of the detail branch's three stages.
        semantic_channels: of the semantic branch's four stages; the last equals the detail branch's last.
        layers: gather-and-expansion layers of the second, third and fourth stage.
        expansion: of the width inside these layers.
        align_corners: of the resizes in the aggregation.
        freeze_bn: batch norm keeps its running statistics in training (scale and shift are still trained).
    """

    def __init__(
        self,
        *,
        detail_channels: Sequence[Count],
        semantic_channels: Sequence[Count],
        layers: Sequence[Count],
        expansion: Count,
        align_corners: bool,
        freeze_bn: bool,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        _check(detail_channels, semantic_channels, layers, expansion)
        detail = [in_channels, *detail_channels]
        self.detail = nn.Sequential(
            *(_detail_stage(detail[i], detail[i + 1], 2 if i == 0 else 3) for i in range(DETAIL_STAGES))
        )
        self.semantic = nn.ModuleDict({"stage1": Stem(in_channels, semantic_channels[0])})
        for i, count in enumerate(layers):
            inputs, channels = semantic_channels[i], semantic_channels[i + 1]
            self.semantic[f"stage{i + 2}"] = nn.Sequential(
                GatherExpansion(inputs, channels, expansion, stride=2),
                *(GatherExpansion(channels, channels, expansion, stride=1) for _ in range(count - 1)),
            )
        width = semantic_channels[-1]
        self.context = ContextEmbedding(width)
        self.aggregation = GuidedAggregation(width, align_corners=align_corners)
        semantic = zip(SEMANTIC_STRIDES, semantic_channels, strict=True)
        self.specs = (*(FeatureSpec(s, c) for s, c in semantic), FeatureSpec(2**DETAIL_STAGES, width))
        self.freeze_bn = freeze_bn

    def levels(self, image: Tensor, stitch: Stitch | None = None) -> Pyramid:
        pyramid, x = Pyramid(), image
        for level, stage in enumerate(self.semantic.values()):
            x = stage(x)
            x = x if stitch is None else stitch(level, x)
            pyramid.append(x)
        joined = self.aggregation(self.detail(image), self.context(x))
        pyramid.append(joined if stitch is None else stitch(len(pyramid), joined))
        return pyramid

    def stages(self) -> dict[str, list[nn.Module]]:
        return {
            "detail": [self.detail],
            **{name: [stage] for name, stage in self.semantic.items()},
            "context": [self.context],
            "aggregation": [self.aggregation],
        }


def _detail_stage(inputs: int, channels: int, convs: int) -> nn.Sequential:
    further = (ConvNormAct(channels, channels, 3) for _ in range(convs - 1))
    return nn.Sequential(ConvNormAct(inputs, channels, 3, stride=2), *further)


def _depthwise_then_pointwise(channels: int) -> nn.Sequential:
    pointwise = nn.Conv2d(channels, channels, 1)
    nn.init.kaiming_normal_(pointwise.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(pointwise.bias)  # type: ignore[arg-type]
    return nn.Sequential(ConvNormAct(channels, channels, 3, groups=channels, relu=False), pointwise)


def _check(detail: Sequence[int], semantic: Sequence[int], layers: Sequence[int], expansion: int) -> None:
    if len(detail) != DETAIL_STAGES or len(semantic) != len(SEMANTIC_STRIDES) or detail[-1] != semantic[-1]:
        raise ConfigError(
            f"backbone.detail_channels={list(detail)}, backbone.semantic_channels={list(semantic)}: must be three and "
            "four widths whose last ones are equal, as the two branches are multiplied"
        )
    if len(layers) != len(semantic) - 1 or min(*layers, expansion) < 1 or semantic[0] < 2:
        raise ConfigError(
            f"backbone.layers={list(layers)}, backbone.expansion={expansion}: must be three counts and a factor, all 1 "
            "or above, and the first of backbone.semantic_channels 2 or above"
        )
