"""LR-ASPP: the lite head of Searching for MobileNetV3."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.models.head import Head
from hardpix.models.layers import Classifiers, ConvNormAct, check_order
from hardpix.ops.resize import resize
from hardpix.ranges import Count, Positive, Share
from hardpix.types import ConfigError, FeatureSpec


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
