"""The weights of loss max-pooling (Rota Bulò et al., CVPR 2017), without a sort."""

from __future__ import annotations

import torch
from torch import Tensor

from hardpix.ops.select import count_true

_FLOAT32_POWER = 12.0  # beyond this exponent (p < 1.09) losses a tenth of the largest vanish in float32


@torch.no_grad()
def max_pooling_weight(error: Tensor, pixels: int, *, ratio: float, p: float) -> Tensor:
    """Weights ``w`` that maximise ``sum w * error`` under a p-norm and a maximum-norm bound; float32.

    ``error`` holds losses of 0 or above in any shape; ``pixels`` (above 0) says how many of them are real, the
    rest (void) being 0, which neither changes the weights nor gets one. ``||w||_p <= gamma = pixels^(-1/q)``
    with ``1/p + 1/q = 1`` admits the plain mean; ``||w||_inf <= tau = gamma * (ratio * pixels)^(-1/p)`` forces
    ``ratio * pixels`` of them to carry weight. In the solution the losses above some alpha have weight tau, the
    others ``tau * (error / alpha)^(q - 1)``.
    """
    q, m = p / (p - 1), ratio * pixels
    tau = pixels ** (-1 / q) * m ** (-1 / p)
    tiny = torch.finfo(error.dtype).tiny
    share = error / error.max().clamp_min(tiny)  # in [0, 1]: q can be large, and powers must not overflow
    power = (share.double() if q > _FLOAT32_POWER else share) ** q
    level = _saturation_level(power, m)  # (alpha / max error)^q
    if level == 0:  # the saturated pixels are the only ones with any loss
        return tau * (power > 0)
    # (error / alpha)^(q - 1), from the power that is there already
    weight = power.div_(share.clamp_min_(tiny)).mul_(tau * level ** (1 / q - 1))
    return weight.clamp_max_(tau).to(error.dtype)


def _saturation_level(power: Tensor, m: float) -> float:
    """The level with ``sum of powers up to it = (m - number above it) * level``: the closed form's alpha_k^q.

    Newton's method on ``sum min(power, level) - m * level``, which is concave: starting above the root it
    descends to it, taking more pixels into the saturated set J each time, and ends exactly, when J stays.
    """
    saturated, level = 0, float(power.sum(dtype=torch.float64)) / m
    while True:
        # In the type of the powers, so that clamping adds exact multiples of it.
        level = torch.tensor(level, dtype=power.dtype).item()
        above = count_true(power > level)
        # Rounding alone can leave fewer than m outside J. A NaN loss ends the loop too, and shows in the result.
        if not saturated < above < m:
            return level
        clamped = float(power.clamp_max(level).sum(dtype=torch.float64))
        rest = clamped - above * level
        if rest < 1e-6 * clamped:  # cancelled: few passes need this slower sum
            rest = float(power[power <= level].sum(dtype=torch.float64))
        saturated, level = above, rest / (m - above)
