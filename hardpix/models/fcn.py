"""FCN: Fully Convolutional Networks for Semantic Segmentation, in the form of mmsegmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardpix.models.head import Head
from hardpix.models.layers import Classifiers, Concat, ConvNormAct
from hardpix.ranges import Count, Share, Whole
from hardpix.types import FeatureSpec


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
