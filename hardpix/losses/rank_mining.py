"""Loss rank mining: the mean over the pixels of highest loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hardpix.losses.reduction import check_range
from hardpix.ops.pixel import pixel_cross_entropy
from hardpix.ops.select import hardest


class LossRankMining(nn.Module):
    """Mean cross-entropy of the ``k = max(1, ceil(fraction * n))`` hardest of an image's n valid pixels.

    Averaged over the images that have a valid pixel. The hard-mining baseline of Erroneous Pixel Prediction.
    """

    def __init__(self, *, ignore_index: int, fraction: float) -> None:
        super().__init__()
        check_range("loss.fraction", fraction, 0 < fraction <= 1, "above 0 and at most 1")
        self.ignore_index, self.fraction = ignore_index, fraction

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """``logits`` ``[B, C, H, W]`` at label size, ``label`` ``[B, H, W]``; returns a float32 scalar."""
        error = pixel_cross_entropy(logits, label, self.ignore_index)
        means = [self._mean_of_hardest(e[v]) for e, v in zip(error, label != self.ignore_index, strict=True)]
        kept = [mean for mean in means if mean is not None]
        return torch.stack(kept).mean() if kept else error.sum()

    def _mean_of_hardest(self, error: Tensor) -> Tensor | None:
        if not len(error):
            return None
        # Rounded first: 0.2 * 5 is 1.0000000000000002 for some fractions, and ceil would make it 2.
        count = max(1, math.ceil(round(self.fraction * len(error), 6)))
        return error[hardest(error.detach(), count)].mean()
