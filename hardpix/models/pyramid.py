"""Semantic FPN: the semantic branch of Panoptic Feature Pyramid Networks, in the form of mmsegmentation."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from hardpix.models.head import Head
from hardpix.models.layers import Classifiers, ConvNormAct, check_order
from hardpix.ops.resize import enlarge_nearest, resize
from hardpix.ranges import Count, Share
from hardpix.types import FeatureSpec


class FeaturePyramid(nn.Module):
    """Each level reduced by 1x1, joined with all coarser ones by addition, and smoothed by 3x3.

    Maps ``[B, c_i, h_i, w_i]``, finest first -> ``[B, channels, h_i, w_i]``. Neither norm nor activation; coarser
    maps are enlarged by repeating pixels. Xavier-uniform weights, as mmsegmentation's neck.
    """

    def __init__(self, specs: tuple[FeatureSpec, ...], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(spec.channels, channels, 1) for spec in specs)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in specs)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d) and conv.bias is not None:
                nn.init.xavier_uniform_(conv.weight)
                nn.init.zeros_(conv.bias)

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        maps = [lateral(x) for lateral, x in zip(self.lateral, pyramid, strict=True)]
        for i in range(len(maps) - 2, -1, -1):
            maps[i] = maps[i] + enlarge_nearest(maps[i + 1], (maps[i].shape[-2], maps[i].shape[-1]))
        return [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]


class FPNHead(Head):
    """Feature pyramid, each level brought to the finest stride by 3x3 convolutions and doublings, all summed.

    A level of ``2^k`` times the finest stride has ``k`` convolutions with an enlargement after each; the finest, and
    others of its stride, have one.

    Decoder maps: the sum, which the classifiers read, then the pyramid's coarser levels.

    Args:
        channels: of the convolutions and the sum.
        pyramid_channels: of the feature pyramid.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        pyramid_channels: Count,
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        check_order("fpn", specs)
        self.align_corners = align_corners
        self.pyramid = FeaturePyramid(specs, pyramid_channels)
        self.doublings = [(spec.stride // specs[0].stride).bit_length() - 1 for spec in specs]
        self.scales = nn.ModuleList(
            nn.ModuleList(
                ConvNormAct(a, b, 3) for a, b in pairwise([pyramid_channels] + [channels] * max(1, count))
            )
            for count in self.doublings
        )
        coarser = (FeatureSpec(spec.stride, pyramid_channels) for spec in specs[1:])
        self.features = (FeatureSpec(specs[0].stride, channels), *coarser)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        maps = self.pyramid(pyramid)
        height, width = maps[0].shape[-2:]
        branches = []
        for x, convs, doublings in zip(maps, self.scales, self.doublings, strict=True):
            for done, conv in enumerate(convs.children(), 1):
                # A map of stride s measures ceil(H / s): odd sizes stay on the pyramid's own grids.
                left = 2 ** max(0, doublings - done)
                x = resize(conv(x), (-(-height // left), -(-width // left)), align_corners=self.align_corners)
            branches.append(x)
        return [torch.stack(branches).sum(0), *maps[1:]]
