"""Picking the hardest pixels without sorting."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The value at zero-based position ``k`` of the ascending sort of a flat float tensor; a 0-d tensor."""
    if values.device.type == "cpu":  # NumPy's selection is vectorised, several times faster than kthvalue
        return torch.as_tensor(np.partition(values.detach().numpy(), k)[k])
    return values.detach().topk(k + 1, largest=False, sorted=False).values.max()


def hardest(values: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` largest of a flat float tensor; of equal values the first in order are taken."""
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    lowest = kth_smallest(values, values.numel() - count)
    chosen = values > lowest
    tied = (values == lowest).nonzero()[:, 0]
    chosen[tied[: count - int(torch.count_nonzero(chosen))]] = True
    return chosen
