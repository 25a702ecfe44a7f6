"""The detail branch of Erroneous Pixel Prediction as the decoder of a segmenter (its table of decoders)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from hardpix.models.deeplab import ASPP
from hardpix.models.gau import gau_blocks, skip_levels
from hardpix.models.head import Head
from hardpix.models.layers import Classifiers, Concat, check_order
from hardpix.ranges import Count, Share
from hardpix.types import FeatureSpec


class GAUDecoderHead(Head):
    """Separable ASPP, then three blocks of global attention upsampling with skips of strides 16, 8 and 4.

    Decoder maps: ``dec0`` the third block's output, which the classifiers read, ``dec1`` the second's, ``dec2`` the
    first's, ``dec3`` the ASPP output. The stages 1, 2, 3 of a layer cascade are so ``dec2``, ``dec1``, ``dec0``.

    Args:
        channels: width of the ASPP and of all blocks.
        attention: ``relu`` or ``sigmoid``.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        dilations: Sequence[Count],
        attention: str,
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
        project_kernel: Literal[1, 3] = 3,
    ) -> None:
        super().__init__()
        check_order("gau_decoder", specs)
        self.input = Concat(specs, levels, align_corners=align_corners)
        self.aspp = ASPP(
            self.input.spec.channels,
            channels,
            dilations,
            separable=True,
            align_corners=align_corners,
            project_kernel=project_kernel,
        )
        self.skips = skip_levels(specs)
        deep = FeatureSpec(self.input.spec.stride, channels)
        skips = [specs[level] for level in self.skips]
        self.blocks = gau_blocks(deep, skips, channels, attention=attention, align_corners=align_corners)
        self.features = (*(FeatureSpec(skip.stride, channels) for skip in reversed(skips)), deep)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        maps = [self.aspp(self.input(pyramid))]
        for block, level in zip(self.blocks, self.skips, strict=True):
            maps.insert(0, block(maps[0], pyramid[level]))
        return maps
