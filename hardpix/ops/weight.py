"""Per-pixel maps to normalised pixel weights, and the reductions that go with them (HL).

Sums over a crop leave float16's range (769² pixels: sum 3.5e5, weights 1e-6), so everything here computes in
float32 with autocast off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hardpix.types import ConfigError

# The pixels that share one normaliser: those of an image, or those of the whole (per-process) mini-batch.
_DIMS = {"image": (1, 2), "batch": (0, 1, 2)}


def _dims(normalize_over: str) -> tuple[int, ...]:
    if normalize_over not in _DIMS:
        raise ConfigError(f"normalize_over is {normalize_over!r}, but must be 'image' or 'batch'.")
    return _DIMS[normalize_over]


def hardness_weight(
    hardness: Tensor, valid: Tensor, *, c: float, normalize_over: str, void_in_normalizer: bool
) -> Tensor:
    """Pixel weights ``H = Z / sum Z`` (HL eq. 1) with ``Z = sigmoid(D) + c``; they sum to 1.

    ``hardness`` is D before the sigmoid, ``[B, 1, H, W]`` or ``[B, H, W]``, already at label size; ``valid``
    is ``[B, H, W]`` bool. Returns ``[B, H, W]`` float32. ``void_in_normalizer=False`` leaves void pixels out
    of the sum and gives them weight 0; without a valid pixel every weight is then 0.
    """
    dims = _dims(normalize_over)
    with torch.autocast(hardness.device.type, enabled=False):
        z = torch.sigmoid(hardness.float()) + c
        z = z[:, 0] if z.ndim == 4 else z
        if not void_in_normalizer:
            z = z * valid
        total = z.sum(dims, keepdim=True)
        return z / torch.where(total > 0, total, 1.0)


def weighted_loss(weight: Tensor, error: Tensor, valid: Tensor, normalize_over: str) -> Tensor:
    """``sum weight * error`` per normalisation group (HL), a scalar.

    All inputs ``[B, H, W]``. ``"image"``: one sum per image, then the mean over the images that have a valid
    pixel (0 if there is none). ``"batch"``: one sum over the batch, not divided by its size.
    """
    dims = _dims(normalize_over)
    with torch.autocast(weight.device.type, enabled=False):
        total = (weight.float() * error.float()).sum(dims)
        if normalize_over == "batch":
            return total
        return total.sum() / valid.flatten(1).any(1).sum().clamp_min(1)
