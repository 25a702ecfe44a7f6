"""Cross-entropy, the loss that every other one is compared with."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from hardpix.losses.reduction import normalized_sum
from hardpix.ops.pixel import pixel_cross_entropy
from hardpix.ranges import checked


class CrossEntropy(nn.Module):
    """Mean cross-entropy over the valid pixels, or over all pixels of the batch.

    ``normalizer="valid"`` divides by the labelled pixels (PyTorch's mean); ``"all"`` divides by ``B * H * W``
    so that void pixels dilute the loss (mmsegmentation 0.x, and every published HL number). A batch without
    a labelled pixel costs exactly 0, with a graph.
    """

    @checked
    def __init__(self, *, ignore_index: int, normalizer: Literal["valid", "all"]) -> None:
        super().__init__()
        self.ignore_index, self.normalizer = ignore_index, normalizer

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """``logits`` ``[B, C, H, W]`` at label size, ``label`` ``[B, H, W]``; returns a float32 scalar."""
        error = pixel_cross_entropy(logits, label, self.ignore_index)
        return normalized_sum(error, label != self.ignore_index, self.normalizer)
