"""Picking the hardest pixels without sorting."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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
