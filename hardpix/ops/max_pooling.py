"""The weights of loss max-pooling (Rota Bulò et al., CVPR 2017), without a sort."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def max_pooling_weight(error: Tensor, *, ratio: float, p: float) -> Tensor:
    """Weights ``w`` that maximise ``sum w * error`` under a p-norm and a maximum-norm bound; float32 ``[n]``.

    ``error`` ``[n]``, n > 0, losses of 0 or above. ``||w||_p <= gamma = n^(-1/q)`` with ``1/p + 1/q = 1`` admits
    the uniform ``1/n``; ``||w||_inf <= tau = gamma * (ratio * n)^(-1/p)`` forces ``ratio * n`` pixels to carry
    weight. In the solution the pixels with loss above some alpha have weight tau, the others
    ``tau * (error / alpha)^(q - 1)``.
    """
    q, m = p / (p - 1), ratio * error.numel()
    tau = error.numel() ** (-1 / q) * m ** (-1 / p)
    scale = error.max().clamp_min(torch.finfo(error.dtype).tiny)
    share = error / scale  # in [0, 1]: its power neither over- nor underflows to a wrong total
    power = share**q
    level = _saturation_level(power, m)  # alpha^q
    if level <= 0:  # nothing outside the saturated set has any loss
        return tau * (power > level)
    # (error / alpha)^(q - 1), from the power that is already there
    weight = power / (share.clamp_min(torch.finfo(error.dtype).tiny) * level ** ((q - 1) / q))
    return tau * weight.clamp_max(1)


def _saturation_level(power: Tensor, m: float) -> float:
    """``alpha^q``: the mean of the powers outside J over ``m - |J|``, J being the powers above it.

    Every power above the level belongs to J, and taking it in lowers the level, so that repeating this climbs to
    the smallest J of the closed form: some passes over the losses instead of a sort.
    """
    taken = 0
    while True:
        level = float(power.sum(dtype=torch.float64)) / (m - taken)
        above = int(torch.count_nonzero(power > level))
        if not above:
            return level
        taken += above
        power = power[power <= level]
