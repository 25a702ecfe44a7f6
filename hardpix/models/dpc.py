"""The dense prediction cell (Searching for Efficient Multi-Scale Architectures for Dense Image Prediction, 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardpix.models.deeplab import PlusHead
from hardpix.models.layers import ConvNormAct, SeparableConv
from hardpix.ranges import Count, Share
from hardpix.types import ConfigError, FeatureSpec


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
