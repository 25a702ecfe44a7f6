"""DeepLabv3, DeepLabv3+ and the dense prediction cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from hardpix.config.schema import Count, Share
from hardpix.models.layers import Classifiers, Concat, ConvNormAct, Head, SeparableConv
from hardpix.ops.resize import resize
from hardpix.types import ConfigError, FeatureSpec


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
        project_kernel: int,
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
        project_kernel: Literal[1, 3],
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
        project_kernel: Literal[1, 3],
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


# The dense prediction cell (Searching for Efficient Multi-Scale Architectures for Dense Image Prediction,
# 2018).


class DensePredictionCell(nn.Module):
    """Separable 3x3 convolutions that read the map or each other, all joined, dropped out and reduced by 1x1.

    ``[B, inputs, h, w]`` -> ``[B, channels, h, w]``. The cell found by the paper's search, as its authors published it
    (DeepLab, ``dense_prediction_cell_branch5_top1_cityscapes.json``), is in ``conf/head/dpc.yaml``.

    Args:
        rates: dilation (down, across) of each branch.
        reads: for each branch the number of the earlier branch that it reads, -1 the map itself.
        rate_multiplier: of all rates, which were found at output stride 16.
        dropout: elementwise, on the joined branches in training.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        *,
        rates: Sequence[Sequence[int]],
        reads: Sequence[int],
        rate_multiplier: int,
        dropout: float,
    ) -> None:
        super().__init__()
        _check(rates, reads)
        self.reads = list(reads)
        self.branches = nn.ModuleList(
            SeparableConv(
                inputs if read < 0 else channels,
                channels,
                dilation=(down * rate_multiplier, across * rate_multiplier),
            )
            for (down, across), read in zip(rates, reads, strict=True)
        )
        self.dropout = nn.Dropout(dropout)
        self.fuse = ConvNormAct(len(rates) * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for branch, read in zip(self.branches, self.reads, strict=True):
            maps.append(branch(x if read < 0 else maps[read]))
        return self.fuse(self.dropout(torch.cat(maps, 1)))


class DPCHead(PlusHead):
    """The dense prediction cell with the decoder of DeepLabv3+, in the place of its ASPP.

    Decoder maps: the refined one (finest level's stride), which the classifiers read, and the cell's output.

    Args:
        low_channels: width to which the finest level is reduced by 1x1 before it is joined.
        cell_dropout: elementwise, in the cell; ``dropout`` drops whole channels before the classifiers.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        low_channels: Count,
        rates: Sequence[Sequence[Count]],
        reads: Sequence[int],
        rate_multiplier: Count,
        cell_dropout: Share,
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__(
            specs,
            outputs,
            "cell",
            lambda inputs: DensePredictionCell(
                inputs,
                channels,
                rates=rates,
                reads=reads,
                rate_multiplier=rate_multiplier,
                dropout=cell_dropout,
            ),
            channels=channels,
            low_channels=low_channels,
            levels=levels,
            align_corners=align_corners,
            dropout=dropout,
        )


def _check(rates: Sequence[Sequence[int]], reads: Sequence[int]) -> None:
    if not rates or len(rates) != len(reads) or any(len(rate) != 2 for rate in rates):
        raise ConfigError(
            f"head.rates={[list(r) for r in rates]}, head.reads={list(reads)}: must be a pair (down, across) and a "
            "number for each branch, as many of one as of the other"
        )
    for branch, read in enumerate(reads):
        if not -1 <= read < branch:
            raise ConfigError(
                f"head.reads={list(reads)}: branch {branch} must read an earlier branch (from 0), or -1, the map itself"
            )
