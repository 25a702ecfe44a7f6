"""PSPNet: Pyramid Scene Parsing Network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardpix.models.head import Head
from hardpix.models.layers import Classifiers, Concat, ConvNormAct
from hardpix.ops.resize import resize
from hardpix.ranges import Count, Share
from hardpix.types import FeatureSpec


class PyramidPooling(nn.Module):
    """The map itself beside its averages over ``s x s`` cells, each reduced by 1x1 and enlarged, then fused by 3x3.

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
