"""The expanding path of U-Net, on any pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardpix.models.head import Head
from hardpix.models.layers import Classifiers, ConvNormAct, check_order
from hardpix.ops.resize import resize
from hardpix.ranges import Count, Share
from hardpix.types import ConfigError, FeatureSpec


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
