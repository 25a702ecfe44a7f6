"""Heads on pyramids of feature maps: FPN, FCN, PSPNet, UPerNet, U-Net, SegFormer, LR-ASPP."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.schema import Count, Positive, Share, Whole
from hardpix.models.layers import Classifiers, Concat, ConvNormAct, Head, check_order
from hardpix.ops.resize import enlarge_nearest, resize
from hardpix.types import ConfigError, FeatureSpec


class FeaturePyramid(nn.Module):
    """Each level reduced by 1x1, joined with all coarser ones by addition, and smoothed by 3x3.

    Maps ``[B, c_i, h_i, w_i]``, finest first -> ``[B, channels, h_i, w_i]``. Neither norm nor activation; coarser
    maps are enlarged by repeating pixels. Xavier-uniform weights, as mmsegmentation's neck.
    """

    def __init__(self, specs: tuple[FeatureSpec, ...], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(spec.channels, channels, 1) for spec in specs)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in specs)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d) and conv.bias is not None:
                nn.init.xavier_uniform_(conv.weight)
                nn.init.zeros_(conv.bias)

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        maps = [lateral(x) for lateral, x in zip(self.lateral, pyramid, strict=True)]
        for i in range(len(maps) - 2, -1, -1):
            maps[i] = maps[i] + enlarge_nearest(maps[i + 1], (maps[i].shape[-2], maps[i].shape[-1]))
        return [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]


class FPNHead(Head):
    """Feature pyramid, each level brought to the finest stride by 3x3 convolutions and doublings, all summed.

    A level of ``2^k`` times the finest stride has ``k`` convolutions with an enlargement after each; the finest, and
    others of its stride, have one.

    Decoder maps: the sum, which the classifiers read, then the pyramid's coarser levels.

    Args:
        channels: of the convolutions and the sum.
        pyramid_channels: of the feature pyramid.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        pyramid_channels: Count,
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        check_order("fpn", specs)
        self.align_corners = align_corners
        self.pyramid = FeaturePyramid(specs, pyramid_channels)
        self.doublings = [(spec.stride // specs[0].stride).bit_length() - 1 for spec in specs]
        self.scales = nn.ModuleList(
            nn.ModuleList(
                ConvNormAct(a, b, 3) for a, b in pairwise([pyramid_channels] + [channels] * max(1, count))
            )
            for count in self.doublings
        )
        coarser = (FeatureSpec(spec.stride, pyramid_channels) for spec in specs[1:])
        self.features = (FeatureSpec(specs[0].stride, channels), *coarser)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        maps = self.pyramid(pyramid)
        height, width = maps[0].shape[-2:]
        branches = []
        for x, convs, doublings in zip(maps, self.scales, self.doublings, strict=True):
            for done, conv in enumerate(convs.children(), 1):
                # A map of stride s measures ceil(H / s): odd sizes stay on the pyramid's own grids.
                left = 2 ** max(0, doublings - done)
                x = resize(conv(x), (-(-height // left), -(-width // left)), align_corners=self.align_corners)
            branches.append(x)
        return [torch.stack(branches).sum(0), *maps[1:]]


# FCN: Fully Convolutional Networks for Semantic Segmentation, in the form of mmsegmentation.


class FCNHead(Head):
    """``num_convs`` convolutions, optionally joined once more with their input by another, then the classifiers.

    The one decoder map is what the classifiers read.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        num_convs: Whole,
        concat_input: bool,
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
        kernel_size: Count = 3,
    ) -> None:
        super().__init__()
        self.input = Concat(specs, levels, align_corners=align_corners)
        stride, inputs = self.input.spec.stride, self.input.spec.channels
        widths = [inputs] + [channels] * num_convs
        self.convs = nn.Sequential(*(ConvNormAct(a, channels, kernel_size) for a in widths[:-1]))
        self.join = ConvNormAct(inputs + widths[-1], channels, kernel_size) if concat_input else None
        width = channels if concat_input else widths[-1]
        self.features = (FeatureSpec(stride, width),)
        self.classifiers = Classifiers(width, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        x = self.input(pyramid)
        y = self.convs(x)
        return [y if self.join is None else self.join(torch.cat([x, y], 1))]


# PSPNet: Pyramid Scene Parsing Network.


class PyramidPooling(nn.Module):
    """The map itself next to its averages over ``s x s`` cells, each reduced by 1x1 and enlarged, then fused by 3x3.

    ``[B, inputs, h, w]`` -> ``[B, channels, h, w]``; one branch per ``s`` of ``pool_sizes``.
    """

    def __init__(self, inputs: int, channels: int, pool_sizes: Sequence[int], *, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(s), ConvNormAct(inputs, channels, 1)) for s in pool_sizes
        )
        self.fuse = ConvNormAct(inputs + len(pool_sizes) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        pooled = [resize(pool(x), size, align_corners=self.align_corners) for pool in self.pools]
        return self.fuse(torch.cat([x, *pooled], 1))


class PSPHead(Head):
    """Pyramid pooling and the classifiers on its output, the one decoder map."""

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        pool_sizes: Sequence[Count],
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        self.input = Concat(specs, levels, align_corners=align_corners)
        self.pooling = PyramidPooling(
            self.input.spec.channels, channels, pool_sizes, align_corners=align_corners
        )
        self.features = (FeatureSpec(self.input.spec.stride, channels),)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        return [self.pooling(self.input(pyramid))]


# UPerNet: Unified Perceptual Parsing for Scene Understanding.


class UPerHead(Head):
    """Pyramid pooling on the deepest level, a feature pyramid down to the finest, all levels fused there.

    Decoder maps: the fused one, which the classifiers read, then the feature pyramid's coarser levels, the last
    of which is the pyramid-pooling output.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        pool_sizes: Sequence[Count],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        check_order("uper", specs)
        self.align_corners = align_corners
        self.pooling = PyramidPooling(specs[-1].channels, channels, pool_sizes, align_corners=align_corners)
        self.lateral = nn.ModuleList(ConvNormAct(spec.channels, channels, 1) for spec in specs[:-1])
        self.smooth = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in specs[:-1])
        self.fuse = ConvNormAct(len(specs) * channels, channels, 3)
        self.features = tuple(FeatureSpec(spec.stride, channels) for spec in specs)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        maps = [lateral(x) for lateral, x in zip(self.lateral, pyramid, strict=False)]
        maps.append(self.pooling(pyramid[-1]))
        for i in range(len(maps) - 2, -1, -1):
            maps[i] = maps[i] + self._resize_to(maps[i + 1], maps[i])
        maps = [smooth(x) for smooth, x in zip(self.smooth, maps, strict=False)] + maps[-1:]
        fused = self.fuse(torch.cat([self._resize_to(x, maps[0]) for x in maps], 1))
        return [fused, *maps[1:]]

    def _resize_to(self, x: Tensor, like: Tensor) -> Tensor:
        return resize(x, (like.shape[-2], like.shape[-1]), align_corners=self.align_corners)


# The expanding path of U-Net, on any pyramid.


class UNetHead(Head):
    """From the deepest level on: enlarge, concatenate the next finer level, two 3x3 convolutions; up to the finest.

    The enlargement is bilinear and has no weights, where U-Net has a 2x2 up-convolution; convolutions keep the size
    and have batch norm. Decoder maps: every step's output, finest first.

    Args:
        channels: of the finest decoder map, doubled at each coarser one; or one number each, finest first.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count | Sequence[Count],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        check_order("unet", specs)
        self.align_corners = align_corners
        steps = len(specs) - 1
        widths = [channels * 2**i for i in range(steps)] if isinstance(channels, int) else list(channels)
        if steps < 1 or len(widths) != steps:
            raise ConfigError(
                f"head.channels={channels}: the backbone has {len(specs)} level(s), and U-Net decodes one less than "
                "it has, at least one; give one number, or one for each, finest first"
            )
        deeper = [*widths[1:], specs[-1].channels]
        self.steps = nn.ModuleList(
            nn.Sequential(ConvNormAct(spec.channels + below, width, 3), ConvNormAct(width, width, 3))
            for spec, below, width in zip(specs, deeper, widths, strict=False)
        )
        self.features = tuple(FeatureSpec(s.stride, w) for s, w in zip(specs, widths, strict=False))
        self.classifiers = Classifiers(widths[0], outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        maps = [pyramid[-1]]
        for step, skip in zip(reversed(self.steps), reversed(pyramid[:-1]), strict=True):
            up = resize(maps[0], (skip.shape[-2], skip.shape[-1]), align_corners=self.align_corners)
            maps.insert(0, step(torch.cat([skip, up], 1)))
        return maps[:-1]


# The all-MLP decoder of SegFormer: Simple and Efficient Design for Semantic Segmentation with
# Transformers.


class SegFormerHead(Head):
    """Every level mapped to ``channels`` by one linear layer, enlarged to the finest, concatenated, fused by 1x1.

    As the authors released it: the linear layers have a bias and no norm (mmsegmentation has batch norm and ReLU
    there), the fusion is a 1x1 convolution with batch norm and ReLU. One decoder map, the fused one.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.linear = nn.ModuleList(nn.Conv2d(spec.channels, channels, 1) for spec in specs)
        self.fuse = ConvNormAct(len(specs) * channels, channels, 1)
        self.features = (FeatureSpec(specs[0].stride, channels),)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        size = (pyramid[0].shape[-2], pyramid[0].shape[-1])
        maps = [linear(x) for linear, x in zip(self.linear, pyramid, strict=True)]
        return [self.fuse(torch.cat([resize(x, size, align_corners=self.align_corners) for x in maps], 1))]


# LR-ASPP: the lite head of Searching for MobileNetV3.


class LRASPPHead(Head):
    """The deepest map, gated by averages of itself over wide windows, then joined with finer maps one by one.

    Decoder maps: one per level read, the joined ones and last the gated one; the classifiers read the finest.

    Args:
        levels: indices into the pyramid; the deepest of them is gated.
        branch_channels: to which the levels before are reduced, finest first.
        window: side of the averaged windows, in pixels of the deepest map; cut where the map is smaller.
        step: from one window to the next, down and across.
        norm_eps: epsilon of the batch norms.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        branch_channels: Sequence[Count],
        window: Count,
        step: Sequence[Count],
        norm_eps: Positive,
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        self.levels = _chosen(levels, len(specs), len(branch_channels) + 1)
        self.window, self.step, self.align_corners = window, (step[0], step[1]), align_corners
        *finer, deepest = [specs[level] for level in self.levels]
        check_order("lraspp", (*finer, deepest))
        self.deep = ConvNormAct(deepest.channels, channels, 1)
        self.gate = nn.Conv2d(deepest.channels, channels, 1, bias=False)
        nn.init.kaiming_normal_(self.gate.weight, mode="fan_out", nonlinearity="relu")
        self.project = nn.Conv2d(channels, channels, 1)
        self.reduce = nn.ModuleList(
            nn.Conv2d(spec.channels, c, 1, bias=False) for spec, c in zip(finer, branch_channels, strict=True)
        )
        self.join = nn.ModuleList(ConvNormAct(channels + c, channels, 1) for c in branch_channels)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = norm_eps
        self.features = tuple(FeatureSpec(spec.stride, channels) for spec in (*finer, deepest))
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        *finer, x = [pyramid[level] for level in self.levels]
        maps = [self.project(self.deep(x) * self._resize(self._gate(x), x))]
        for skip, reduce, join in reversed(list(zip(finer, self.reduce, self.join, strict=True))):
            maps.insert(0, join(torch.cat([self._resize(maps[0], skip), reduce(skip)], 1)))
        return maps

    def _gate(self, x: Tensor) -> Tensor:
        window = (min(self.window, x.shape[-2]), min(self.window, x.shape[-1]))
        return self.gate(F.avg_pool2d(x, window, self.step)).sigmoid()

    def _resize(self, x: Tensor, like: Tensor) -> Tensor:
        return resize(x, (like.shape[-2], like.shape[-1]), align_corners=self.align_corners)


def _chosen(levels: Sequence[int], available: int, wanted: int) -> list[int]:
    """Indices of the levels read, finest first."""
    chosen = sorted({level % available for level in levels if -available <= level < available})
    if not len(chosen) == len(levels) == wanted:
        raise ConfigError(
            f"head.levels={list(levels)}: one level more than head.branch_channels has numbers, {wanted} different "
            f"ones of the backbone's 0 to {available - 1}"
        )
    return chosen
