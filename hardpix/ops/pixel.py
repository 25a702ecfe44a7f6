"""Per-pixel losses and error maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_cross_entropy(
    logits: Tensor, label: Tensor, ignore_index: int, weight: Tensor | None = None
) -> Tensor:
    """``-log softmax(logits)[label]`` of every pixel, computed in float32 whatever autocast says.

    ``logits`` ``[B, C, H, W]``, ``label`` ``[B, H, W]`` integers in ``0..C-1`` or ``ignore_index``; ``weight``
    ``[C]`` float32 multiplies each pixel's loss by the weight of its class. Returns ``[B, H, W]`` float32,
    exactly 0 (and with exactly zero gradient) where the label is ``ignore_index``.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(
            logits.float(), label.long(), weight, ignore_index=ignore_index, reduction="none"
        )


def pixel_errors(logits: Tensor, label: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every pixel as :func:`pixel_cross_entropy`, and which pixels are misclassified.

    Both ``[B, H, W]``; the second is bool, without gradient, False on void; a class that ties for the maximum is
    right. The true class is looked up once for both, and no index tensor of the prediction is made.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_prob = F.log_softmax(logits.float(), 1)
        error = F.nll_loss(log_prob, label.long(), ignore_index=ignore_index, reduction="none")
        # On void the error is 0, above every logarithm of a probability.
        return error, -error.detach() < log_prob.detach().amax(1)
