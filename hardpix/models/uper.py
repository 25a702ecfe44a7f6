"""UPerNet: Unified Perceptual Parsing for Scene Understanding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardpix.models.head import Head
from hardpix.models.layers import Classifiers, ConvNormAct, check_order
from hardpix.models.psp import PyramidPooling
from hardpix.ops.resize import resize
from hardpix.ranges import Count, Share
from hardpix.types import FeatureSpec


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
