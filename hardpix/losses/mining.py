"""Online hard example mining: only the pixels whose true class is improbable cost anything."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hardpix.losses.reduction import normalized_sum
from hardpix.ops.pixel import pixel_cross_entropy
from hardpix.ops.select import count_true, hardest, kth_smallest
from hardpix.ranges import PositiveShare, Whole, checked


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
        # What plain cross-entropy beside it (an auxiliary head's) has to divide by.
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
