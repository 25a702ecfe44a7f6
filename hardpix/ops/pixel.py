"""Per-pixel losses and error maps, and selecting the hardest pixels without sorting."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hardpix.ops.precision import without_autocast


def pixel_cross_entropy(
    logits: Tensor, label: Tensor, ignore_index: int, weight: Tensor | None = None
) -> Tensor:
    """``-log softmax(logits)[label]`` of every pixel, computed in float32 whatever autocast says.

    ``logits`` ``[B, C, H, W]``, ``label`` ``[B, H, W]`` integers in ``0..C-1`` or ``ignore_index``; ``weight``
    ``[C]`` float32 multiplies each pixel's loss by the weight of its class. Returns ``[B, H, W]`` float32,
    exactly 0 (and with exactly zero gradient) where the label is ``ignore_index``.
    """
    with without_autocast(logits):
        return F.cross_entropy(
            logits.float(), label.long(), weight, ignore_index=ignore_index, reduction="none"
        )


def pixel_errors(logits: Tensor, label: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every pixel as :func:`pixel_cross_entropy`, and which pixels are misclassified.

    Both ``[B, H, W]``; the second is bool, without gradient, False on void; a class that ties for the maximum is
    right. The true class is looked up once for both, and no index tensor of the prediction is made.
    """
    with without_autocast(logits):
        log_prob = F.log_softmax(logits.float(), 1)
        error = F.nll_loss(log_prob, label.long(), ignore_index=ignore_index, reduction="none")
        # On void the error is 0, above every logarithm of a probability.
        return error, -error.detach() < log_prob.detach().amax(1)


# Picking the hardest pixels without sorting.


def count_true(mask: Tensor) -> int:
    """Number of True in a bool tensor; on the CPU NumPy counts several times faster."""
    return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else torch.count_nonzero(mask))


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The value at zero-based position ``k`` of the ascending sort of a flat float tensor; a 0-d tensor."""
    values = values.detach()
    if values.device.type == "cpu":
        return torch.as_tensor(np.partition(values.numpy(), k)[k])
    return values.topk(k + 1, largest=False, sorted=False).values.max()


def hardest(values: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` (1 or more) largest of a flat float tensor; of equal values the first are taken."""
    lowest = kth_smallest(values, values.numel() - count)
    chosen = values > lowest
    tied = (values == lowest).nonzero()[:, 0]
    chosen[tied[: count - count_true(chosen)]] = True
    return chosen
