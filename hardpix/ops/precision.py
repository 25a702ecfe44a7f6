"""Float32 arithmetic under mixed precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which operations on the device of ``x`` compute in the precision of their inputs.

    The device ``meta``, whose tensors have shapes and no values, has no autocast to switch off.
    """
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
