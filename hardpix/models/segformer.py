"""The all-MLP decoder of SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hardpix.models.head import Head
from hardpix.models.layers import Classifiers, ConvNormAct
from hardpix.ops.resize import resize
from hardpix.ranges import Count, Share
from hardpix.types import FeatureSpec


class SegFormerHead(Head):
    """Every level mapped to ``channels`` by one linear layer, enlarged to the finest, concatenated, fused by 1x1.

    As the authors released it: the linear layers have a bias and no norm (mmsegmentation has batch norm and ReLU
    there), the fusion is a 1x1 convolution with batch norm and ReLU. One decoder map, the fused one.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.linear = nn.ModuleList(nn.Conv2d(spec.channels, channels, 1) for spec in specs)
        self.fuse = ConvNormAct(len(specs) * channels, channels, 1)
        self.features = (FeatureSpec(specs[0].stride, channels),)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        size = (pyramid[0].shape[-2], pyramid[0].shape[-1])
        maps = [linear(x) for linear, x in zip(self.linear, pyramid, strict=True)]
        return [self.fuse(torch.cat([resize(x, size, align_corners=self.align_corners) for x in maps], 1))]
