"""Loss rank mining: the mean over the pixels of highest loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hardpix.ops.pixel import pixel_cross_entropy
from hardpix.ops.select import count_true, hardest
from hardpix.ranges import PositiveShare, checked


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
