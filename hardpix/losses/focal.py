"""Focal loss: confident pixels count less."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hardpix.losses.reduction import check_choice, check_range, normalized_sum
from hardpix.ops.pixel import pixel_cross_entropy


class Focal(nn.Module):
    """Softmax focal loss ``(1 - p)^gamma * CE``, p the probability of the true class (Lin et al. 2017, eq. 4).

    The gradient flows through the factor as well. This is the form of the HL comparison, whose factor
    ``2 * alpha`` is 1; the sigmoid form of detection is another function.
    """

    def __init__(self, *, ignore_index: int, gamma: float, normalizer: str) -> None:
        super().__init__()
        check_choice("loss.normalizer", normalizer, ("valid", "all"))
        check_range("loss.gamma", gamma, gamma >= 0, "0 or above")
        self.ignore_index, self.gamma, self.normalizer = ignore_index, gamma, normalizer

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """``logits`` ``[B, C, H, W]`` at label size, ``label`` ``[B, H, W]``; returns a float32 scalar."""
        error = pixel_cross_entropy(logits, label, self.ignore_index)
        # The floor keeps the power's gradient finite at p = 1, and so on void pixels, for gamma below 1.
        miss = (-torch.expm1(-error)).clamp_min(1e-12)
        return normalized_sum(miss**self.gamma * error, label != self.ignore_index, self.normalizer)
