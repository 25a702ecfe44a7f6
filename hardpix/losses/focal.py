"""Focal loss: confident pixels count less."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hardpix.losses.reduction import normalized_sum
from hardpix.ops.pixel import pixel_cross_entropy
from hardpix.ranges import NonNegative, checked


class Focal(nn.Module):
    """Softmax focal loss ``(1 - p)^gamma * CE``, p the probability of the true class (Lin et al. 2017, eq. 4).

    The gradient flows through the factor as well. This is the form of the HL comparison, whose factor
    ``2 * alpha`` is 1; the sigmoid form of detection is another function.
    """

    @checked
    def __init__(self, *, ignore_index: int, gamma: NonNegative, normalizer: Literal["valid", "all"]) -> None:
        super().__init__()
        self.ignore_index, self.gamma, self.normalizer = ignore_index, gamma, normalizer

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """``logits`` ``[B, C, H, W]`` at label size, ``label`` ``[B, H, W]``; returns a float32 scalar."""
        error = pixel_cross_entropy(logits, label, self.ignore_index)
        # The floor keeps the power's gradient finite at p = 1, and so on void pixels, for gamma below 1.
        miss = (-torch.expm1(-error)).clamp_min(1e-12)
        return normalized_sum(miss**self.gamma * error, label != self.ignore_index, self.normalizer)
