"""OCRNet (Object-Contextual Representations for Semantic Segmentation, Yuan et al. 2020), as mmsegmentation has it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardpix.config.schema import Count, Share
from hardpix.models.layers import Classifiers, Concat, ConvNormAct, Head, HeadOutput
from hardpix.ops.precision import without_autocast
from hardpix.ops.resize import resize
from hardpix.types import FeatureSpec


def gather_regions(features: Tensor, logits: Tensor) -> Tensor:
    """Representation of each object region: mean of the pixels' features, weighted by a softmax over the pixels.

    ``features [B, c, h, w]`` and ``logits [B, K, h, w]`` of K regions -> ``[B, c, K]``; computed in float32.
    """
    with without_autocast(features):
        share = logits.float().flatten(2).softmax(2)
        regions = torch.einsum("bkn,bcn->bck", share, features.float().flatten(2))
    return regions.to(features.dtype)


class ObjectAttention(nn.Module):
    """Pixels attend to regions: ``x [B, c, h, w]`` and ``regions [B, c, K]`` -> augmented ``[B, c, h, w]``.

    The weight of region k at pixel i is the softmax over the regions of ``phi(x_i) . psi(f_k) / sqrt(inner)``; the
    pixel's context is ``rho(sum_k w_ik delta(f_k))`` and the result ``g([context, x])``. All of these are 1x1
    convolutions with batch norm and ReLU, two of them in phi and psi, one in the others.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.query = nn.Sequential(ConvNormAct(channels, inner, 1), ConvNormAct(inner, inner, 1))
        self.key = nn.Sequential(ConvNormAct(channels, inner, 1), ConvNormAct(inner, inner, 1))
        self.value = ConvNormAct(channels, inner, 1)
        self.out = ConvNormAct(inner, channels, 1)
        self.fuse = ConvNormAct(2 * channels, channels, 1)
        self.scale = inner**-0.5

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        objects = regions[..., None]
        query, key = self.query(x).flatten(2), self.key(objects)[..., 0]
        value = self.value(objects)[..., 0]
        weight = torch.einsum("bdn,bdk->bnk", query * self.scale, key).float().softmax(2)
        context = torch.einsum("bnk,bdk->bdn", weight.to(value.dtype), value)
        context = self.out(context.unflatten(2, (x.shape[-2], x.shape[-1])))
        return self.fuse(torch.cat([context, x], 1))


class OCRHead(Head):
    """Decides twice: coarse logits gather one representation per class, which augment every pixel's features.

    First stage: one convolution and a classifier of the data set's classes whatever the outputs are; its logits are
    enlarged to the second stage's map where that is finer. Second stage: 3x3 convolution, object attention,
    classifiers. The one decoder map is what these read. ``stages["coarse"]``: the first stage's logits, where the
    outputs have ``label``; without it they are regions alone, learnt from the outputs' loss.

    mmsegmentation runs the first stage a second time to gather, which draws another dropout; here it runs once.

    Args:
        num_classes: number of regions.
        channels: of the second stage's map.
        ocr_channels: of queries, keys and values.
        coarse_levels: levels that the first stage reads, joined; ``levels`` are the second's.
        coarse_channels: of the first stage; None: as many as its joined levels have.
        coarse_kernel: side of the first stage's convolution.
        dropout: of channels, before either stage's classifier.
    """

    decides_twice = True

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        num_classes: int,
        channels: Count,
        ocr_channels: Count,
        levels: Sequence[int],
        coarse_levels: Sequence[int],
        coarse_channels: Count | None,
        coarse_kernel: Count,
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.coarse_input = Concat(specs, coarse_levels, align_corners=align_corners, name="coarse_levels")
        inputs = self.coarse_input.spec.channels
        width = inputs if coarse_channels is None else coarse_channels
        self.coarse = ConvNormAct(inputs, width, coarse_kernel)
        self.coarse_classifier = Classifiers(width, {"label": num_classes}, nn.Dropout2d(dropout))
        self.input = Concat(specs, levels, align_corners=align_corners)
        self.reduce = ConvNormAct(self.input.spec.channels, channels, 3)
        self.attention = ObjectAttention(channels, ocr_channels)
        self.features = (FeatureSpec(self.input.spec.stride, channels),)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def forward(self, pyramid: list[Tensor]) -> HeadOutput:
        coarse = self.coarse_classifier(self.coarse(self.coarse_input(pyramid)))["label"]
        x = self.reduce(self.input(pyramid))
        seen = resize(coarse, (x.shape[-2], x.shape[-1]), align_corners=self.align_corners)
        augmented = self.attention(x, gather_regions(x, seen))
        stages = {"coarse": coarse} if "label" in self.classifiers.convs else {}
        return HeadOutput(self.classifiers(augmented), [augmented], stages)
