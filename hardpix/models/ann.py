"""Asymmetric Non-local Neural Networks for Semantic Segmentation (Zhu et al. 2019), in the form of mmsegmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardpix.models.attention import attend
from hardpix.models.head import Head
from hardpix.models.layers import Classifiers, Concat, ConvNormAct
from hardpix.ranges import Count, Share
from hardpix.types import FeatureSpec


class SampledAttention(nn.Module):
    """Attention of every pixel of a map to averages over cells of a map, its own or another of any size.

    ``x [B, inputs, h, w]`` and ``source [B, source_channels, h', w']`` -> ``[B, inputs, h, w]``. Key and value are
    averaged over ``s x s`` cells for each ``s`` of ``pool_sizes``: ``sum(s ** 2)`` positions (the pyramid sampling of
    the paper). The last convolution starts at 0.

    Args:
        source_channels: of another map; None: ``source`` is ``x``, and the query is the key before it is averaged.
        channels: of query, key and value.
    """

    def __init__(
        self, inputs: int, source_channels: int | None, channels: int, pool_sizes: Sequence[int]
    ) -> None:
        super().__init__()
        self.query = None if source_channels is None else ConvNormAct(inputs, channels, 1)
        sources = inputs if source_channels is None else source_channels
        self.key = ConvNormAct(sources, channels, 1)
        self.value = nn.Conv2d(sources, channels, 1)
        self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(s) for s in pool_sizes)
        self.out = nn.Conv2d(channels, inputs, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        key = self.key(source)
        query = key if self.query is None else self.query(x)
        return self.out(attend(query, self.sample(key), self.sample(self.value(source))))

    def sample(self, x: Tensor) -> Tensor:
        """``[B, c, h, w]`` -> ``[B, c, positions]`` float32."""
        return torch.cat([pool(x.float()).flatten(2) for pool in self.pools], 2)


class ANNHead(Head):
    """Fusion with a level below, 3x3 convolution, and attention within the result, the one decoder map.

    The paper's AFNB: pixels of ``levels`` attend to samples of ``low_levels``; a 1x1 convolution with norm joins the
    outcome with the map itself. Its APNB does so within one map, and a ReLU follows.

    Args:
        low_levels: maps that the fusion samples, joined as ``levels`` are; -2, the one before the deepest.
        pool_sizes: of the samples, in both.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        project_channels: Count,
        pool_sizes: Sequence[Count],
        low_levels: Sequence[int],
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        self.input = Concat(specs, levels, align_corners=align_corners)
        self.low = Concat(specs, low_levels, align_corners=align_corners, name="low_levels")
        inputs = self.input.spec.channels
        self.fusion = SampledAttention(inputs, self.low.spec.channels, project_channels, pool_sizes)
        self.fuse = ConvNormAct(2 * inputs, inputs, 1, relu=False)
        self.reduce = nn.Sequential(nn.Dropout2d(dropout), ConvNormAct(inputs, channels, 3))
        self.context = SampledAttention(channels, None, project_channels, pool_sizes)
        self.join = ConvNormAct(2 * channels, channels, 1)
        self.features = (FeatureSpec(self.input.spec.stride, channels),)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        x = self.input(pyramid)
        x = self.reduce(self.fuse(torch.cat([self.fusion(x, self.low(pyramid)), x], 1)))
        return [self.join(torch.cat([self.context(x, x), x], 1))]
