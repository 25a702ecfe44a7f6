"""DeepLabv3 (Rethinking Atrous Convolution) and DeepLabv3+ (Encoder-Decoder with Atrous Separable Convolution)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from hardpix.models.head import Head
from hardpix.models.layers import Classifiers, Concat, ConvNormAct, SeparableConv
from hardpix.ops.resize import resize
from hardpix.ranges import Count, Share
from hardpix.types import FeatureSpec


class ASPP(nn.Module):
    """Image pooling, a 1x1 convolution and one 3x3 per dilation rate side by side, then fused by one convolution.

    ``[B, inputs, h, w]`` -> ``[B, channels, h, w]``. ``project_kernel``: of the fusion, 1 in DeepLab's own code, 3 in
    mmsegmentation.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        dilations: Sequence[int],
        *,
        separable: bool,
        align_corners: bool,
        project_kernel: int = 3,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(inputs, channels, 1))
        self.branches = nn.ModuleList([ConvNormAct(inputs, channels, 1)])
        for d in dilations:
            conv = SeparableConv if separable else partial(ConvNormAct, kernel_size=3)
            self.branches.append(conv(inputs, channels, dilation=d))
        self.fuse = ConvNormAct((len(dilations) + 2) * channels, channels, project_kernel)

    def forward(self, x: Tensor) -> Tensor:
        image = resize(self.image(x), (x.shape[-2], x.shape[-1]), align_corners=self.align_corners)
        return self.fuse(torch.cat([image, *(branch(x) for branch in self.branches)], 1))


class DeepLabV3Head(Head):
    """ASPP and the classifiers on its output, the one decoder map."""

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        dilations: Sequence[Count],
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
        project_kernel: Literal[1, 3] = 3,
    ) -> None:
        super().__init__()
        self.input = Concat(specs, levels, align_corners=align_corners)
        self.aspp = ASPP(
            self.input.spec.channels,
            channels,
            dilations,
            separable=False,
            align_corners=align_corners,
            project_kernel=project_kernel,
        )
        self.features = (FeatureSpec(self.input.spec.stride, channels),)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        return [self.aspp(self.input(pyramid))]


class PlusHead(Head):
    """What DeepLabv3+ does with its context module: enlarge its output to the finest level and refine it with that.

    Decoder maps: the refined one (finest level's stride), which the classifiers read, and the module's output.

    Args:
        name: of the context module among the weights.
        build_context: ``(input channels) -> module``, ``[B, inputs, h, w]`` -> ``[B, channels, h, w]``.
        low_channels: width to which the finest level is reduced by 1x1 before it is joined.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        name: str,
        build_context: Callable[[int], nn.Module],
        *,
        channels: int,
        low_channels: int,
        levels: Sequence[int],
        align_corners: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.input = Concat(specs, levels, align_corners=align_corners)
        self.context_name = name
        self.add_module(name, build_context(self.input.spec.channels))
        self.low = ConvNormAct(specs[0].channels, low_channels, 1)
        self.refine = nn.Sequential(
            SeparableConv(channels + low_channels, channels), SeparableConv(channels, channels)
        )
        self.features = (
            FeatureSpec(specs[0].stride, channels),
            FeatureSpec(self.input.spec.stride, channels),
        )
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        deep = self.get_submodule(self.context_name)(self.input(pyramid))
        low = self.low(pyramid[0])
        up = resize(deep, (low.shape[-2], low.shape[-1]), align_corners=self.align_corners)
        return [self.refine(torch.cat([up, low], 1)), deep]


class DeepLabV3PlusHead(PlusHead):
    """Separable ASPP, enlarged to the finest level and refined with it: :class:`PlusHead` on ``aspp``."""

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        low_channels: Count,
        dilations: Sequence[Count],
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
        project_kernel: Literal[1, 3] = 3,
    ) -> None:
        super().__init__(
            specs,
            outputs,
            "aspp",
            lambda inputs: ASPP(
                inputs,
                channels,
                dilations,
                separable=True,
                align_corners=align_corners,
                project_kernel=project_kernel,
            ),
            channels=channels,
            low_channels=low_channels,
            levels=levels,
            align_corners=align_corners,
            dropout=dropout,
        )
