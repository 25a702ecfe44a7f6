"""How pixel losses become one number, and the check of a choice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hardpix.types import ConfigError


def normalized_sum(error: Tensor, counted: Tensor, normalizer: str) -> Tensor:
    """``sum error / #counted``, or ``/ (B * H * W)`` for ``"all"``; 0 with a graph if none is counted.

    ``error`` ``[B, H, W]`` float32, 0 where it must not contribute; ``counted`` ``[B, H, W]`` bool.
    """
    if normalizer == "all":
        return error.sum() / max(error.numel(), 1)
    return error.sum() / torch.count_nonzero(counted).clamp_min(1)


def check_choice(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key} is {value!r}, but must be one of {', '.join(allowed)}.")
