"""Picking the hardest pixels without sorting."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SAMPLE_STEP = 16


def count_true(mask: Tensor) -> int:
    """Number of True in a bool tensor; on the CPU NumPy counts several times faster."""
    return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else torch.count_nonzero(mask))


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The value at zero-based position ``k`` of the ascending sort of a flat float tensor; a 0-d tensor."""
    values = values.detach()
    if values.device.type == "cpu":
        return torch.as_tensor(_select(values.numpy(), k))
    return values.topk(k + 1, largest=False, sorted=False).values.max()


def hardest(values: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` (1 or more) largest of a flat float tensor; of equal values the first are taken."""
    lowest = kth_smallest(values, values.numel() - count)
    chosen = values > lowest
    tied = (values == lowest).nonzero()[:, 0]
    chosen[tied[: count - count_true(chosen)]] = True
    return chosen


def _select(values: NDArray[np.float32], k: int) -> np.float32:
    """Floyd and Rivest's selection: a sample brackets the answer, only values in the bracket are partitioned."""
    sample = values[::_SAMPLE_STEP]
    centre, margin = k / _SAMPLE_STEP, 4 * len(sample) ** 0.5
    low, high = max(int(centre - margin), 0), min(int(centre + margin), len(sample) - 1)
    ends = np.partition(sample, (low, high))
    below = np.count_nonzero(values < ends[low])
    bracket = values[(values >= ends[low]) & (values <= ends[high])]
    if below <= k < below + len(bracket):
        return np.partition(bracket, k - below)[k - below]
    return np.partition(values, k)[k]
