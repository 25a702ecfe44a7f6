"""Losses that mine hard pixels: OHEM, loss max-pooling, loss rank mining."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from hardpix.config.schema import PositiveShare, Whole, checked
from hardpix.losses.pixelwise import normalized_sum
from hardpix.ops.hardness import max_pooling_weight
from hardpix.ops.pixel import count_true, hardest, kth_smallest, pixel_cross_entropy


def confident_from(prob: Tensor, pixels: int, *, thresh: float, least: int) -> Tensor:
    """OHEM's threshold ``theta = max(m, thresh)``: pixels with ``prob < theta`` (strictly) are kept.

    ``prob``, flat, is the true class's probability of the ``pixels`` (1 or more) valid pixels and infinite
    elsewhere; ``m`` is the value at zero-based position ``min(least, pixels - 1)`` of their ascending sort
    (mmsegmentation's OHEMPixelSampler).
    """
    # With that many pixels below thresh already, m cannot matter: no selection is needed.
    if least < pixels and count_true(prob < thresh) >= least:
        return prob.new_tensor(thresh)
    return kth_smallest(prob, min(least, pixels - 1)).clamp_min(thresh)


class OHEM(nn.Module):
    """Cross-entropy of the pixels whose true-class probability is below a threshold.

    At least about ``min_kept * B`` pixels of the batch are kept: where fewer are below ``thresh`` the threshold
    rises. ``thresh=None`` keeps exactly the ``min_kept * B`` pixels of highest loss. ``reduction`` divides by
    the ``"kept"`` pixels, the ``"valid"`` ones or ``"all"`` of the batch; ``"all"`` is mmsegmentation's, which
    makes the loss smaller the fewer pixels are kept. Apply it to the decode head only, as the source does.
    """

    @checked
    def __init__(
        self,
        *,
        ignore_index: int,
        thresh: PositiveShare | None,
        min_kept: Whole,
        reduction: Literal["all", "valid", "kept"],
    ) -> None:
        super().__init__()
        self.ignore_index, self.thresh = ignore_index, thresh
        self.min_kept, self.reduction = min_kept, reduction
        # What plain cross-entropy next to it (an auxiliary head's) has to divide by.
        self.normalizer = "all" if reduction == "all" else "valid"

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """``logits`` ``[B, C, H, W]`` at label size, ``label`` ``[B, H, W]``; returns a float32 scalar."""
        error = pixel_cross_entropy(logits, label, self.ignore_index)
        valid = label != self.ignore_index
        kept = self.keep(error.detach(), valid)
        counted = kept if self.reduction == "kept" else valid
        return normalized_sum(error * kept, counted, self.reduction)

    @torch.no_grad()
    def keep(self, error: Tensor, valid: Tensor) -> Tensor:
        """Which pixels of ``[B, H, W]`` cross-entropies are kept, bool; none where ``valid`` is False."""
        least, pixels = self.min_kept * len(error), count_true(valid)
        if not pixels or (self.thresh is None and not least):
            return torch.zeros_like(valid)
        if self.thresh is None:
            ranked = error.masked_fill(~valid, -1).flatten()  # void comes last
            return hardest(ranked, min(least, pixels)).view_as(valid)
        # exp(-CE) is the probability of the true class: no second softmax.
        prob = torch.exp(-error).masked_fill_(~valid, torch.inf).flatten()
        theta = confident_from(prob, pixels, thresh=self.thresh, least=least)
        return (prob < theta).view_as(valid)


# Loss max-pooling: the worst weighting of the pixel losses among the bounded ones.


class LossMaxPooling(nn.Module):
    """``max_w sum w * CE`` over weights bounded in p-norm and maximum (Rota Bulò et al., CVPR 2017).

    At least the share ``ratio`` of the valid pixels carries weight; ``p`` to 1 gives the mean over that share of
    hardest pixels, ``p`` to infinity the plain mean. Never below the mean cross-entropy. ``scope="batch"`` pools
    all valid pixels together, ``"image"`` those of each image (then the mean over images that have any).
    """

    @checked
    def __init__(
        self,
        *,
        ignore_index: int,
        ratio: PositiveShare,
        p: Annotated[float, "[1.01, inf]"],
        scope: Literal["batch", "image"],
    ) -> None:
        super().__init__()
        self.ignore_index, self.ratio, self.p, self.scope = ignore_index, ratio, p, scope

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """``logits`` ``[B, C, H, W]`` at label size, ``label`` ``[B, H, W]``; returns a float32 scalar."""
        error = pixel_cross_entropy(logits, label, self.ignore_index)
        valid = label != self.ignore_index
        groups = [(error, valid)] if self.scope == "batch" else zip(error, valid, strict=True)
        counted = [(group, pixels) for group, mask in groups if (pixels := count_true(mask))]
        pooled = [self._pool(group, pixels) for group, pixels in counted]
        return torch.stack(pooled).mean() if pooled else error.sum()

    def _pool(self, error: Tensor, pixels: int) -> Tensor:
        # The gradient of the maximum is the maximising weight itself (envelope theorem).
        weight = max_pooling_weight(error.detach(), pixels, ratio=self.ratio, p=self.p)
        return torch.dot(weight.flatten(), error.flatten())


# Loss rank mining: the mean over the pixels of highest loss.


class LossRankMining(nn.Module):
    """Mean cross-entropy of the ``k = ceil(fraction * n)`` hardest of an image's n valid pixels, at least one.

    Averaged over the images that have a valid pixel. The hard-mining baseline of Erroneous Pixel Prediction.
    """

    @checked
    def __init__(self, *, ignore_index: int, fraction: PositiveShare) -> None:
        super().__init__()
        self.ignore_index, self.fraction = ignore_index, fraction

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """``logits`` ``[B, C, H, W]`` at label size, ``label`` ``[B, H, W]``; returns a float32 scalar."""
        error = pixel_cross_entropy(logits, label, self.ignore_index)
        valid = label != self.ignore_index
        ranked = error.detach().masked_fill(~valid, -1).flatten(1)  # void comes last
        counts = [self._count(count_true(mask)) for mask in valid]
        means = [
            torch.dot(e, hardest(r, count).float()) / count
            for e, r, count in zip(error.flatten(1), ranked, counts, strict=True)
            if count
        ]
        return torch.stack(means).mean() if means else error.sum()

    def _count(self, pixels: int) -> int:
        # Rounded first: 0.1 * 30 is 3.0000000000000004, and ceil would make it 4.
        return min(pixels, max(1, math.ceil(round(self.fraction * pixels, 6))))
