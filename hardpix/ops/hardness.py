"""Hardness maps, pixel weights made of them, and the similarity of two maps.

Those with a known range are brought to [0, 1]; the loss, which has no upper end, stays in [0, inf).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hardpix.ops.pixel import count_true, pixel_cross_entropy
from hardpix.ops.precision import without_autocast
from hardpix.types import ConfigError


class HardMap(NamedTuple):
    """What is known of a map before it is computed."""

    title: str
    low: float = 0.0
    high: float = 1.0  # infinite: no upper end
    needs: tuple[str, ...] = ()  # of the truth: label, depth, or the data set's own hardness
    where: str = ""  # the batch's mask of the pixels on which the map means something; empty: all

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.high)


# Of every method: made of its class probabilities.
OF_LOGITS = {
    "loss": HardMap("loss", high=math.inf, needs=("label",)),
    "entropy": HardMap("entropy"),
    "uncertainty": HardMap("1 \N{MINUS SIGN} max p"),
}
# Of data sets that know it, whatever the method.
OF_DATA = {"true": HardMap("true hardness", needs=("hardness",))}


@torch.no_grad()
def hard_map(values: Tensor, valid: Tensor, about: HardMap) -> Tensor:
    """``values`` on ``about``'s range, ``[B, H, W]``, rescaled to [0, 1] (without an upper end: shifted to 0).

    ``valid`` is bool; NaN where it is False. Values that rounding put beyond the range are clamped to it.
    """
    with without_autocast(values):
        span = about.high - about.low if about.bounded else 1.0
        unit = ((values.float() - about.low) / span).clamp(0, 1 if about.bounded else None)
        return unit.masked_fill(~valid, torch.nan)


@torch.no_grad()
def logit_map(name: str, logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """A map of :data:`OF_LOGITS` from ``logits`` ``[B, C, H, W]``: ``[B, H, W]`` float32.

    ``loss``: -log p(label), 0 on void. ``entropy``: of the class probabilities, divided by log C. ``uncertainty``:
    1 - max p, summed from the other classes: where one is sure, the difference has no digits left.
    """
    with without_autocast(logits):
        if name == "loss":
            return pixel_cross_entropy(logits, label, ignore_index)
        if name == "entropy":
            log_p = logits.float().log_softmax(1)
            # A class that is impossible adds nothing: 0 log 0.
            terms = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p)
            return -terms.sum(1) / math.log(max(2, logits.shape[1]))
        p = logits.float().softmax(1)
        return p.scatter(1, p.argmax(1, keepdim=True), 0.0).sum(1)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's: Pearson's correlation of the ranks of two flat tensors, equal values sharing their mean rank.

    NaN where one of them is constant.
    """
    ranks = [_mean_ranks(x) for x in (a, b)]
    x, y = (rank - rank.mean() for rank in ranks)
    return float((x @ y) / (x.norm() * y.norm()))


def _mean_ranks(values: Tensor) -> Tensor:
    """Float64; the smallest value has rank 0 if no other equals it."""
    _, place, count = values.detach().cpu().unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count + 1) / 2).double()[place]


# Per-pixel maps to normalised pixel weights, and the reductions that go with them (HL).
#
# Sums over a crop leave float16's range (769² pixels: sum 3.5e5, weights 1e-6), so everything here
# computes in float32 with autocast off.


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
    with without_autocast(hardness):
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
    with without_autocast(weight):
        total = (weight.float() * error.float()).sum(dims)
        if normalize_over == "batch":
            return total
        return total.sum() / valid.flatten(1).any(1).sum().clamp_min(1)


# Structural similarity of two maps (Wang et al., Image Quality Assessment, 2004), of which parts may be
# undefined.


# The paper's window and constants; maps lie in [0, 1], so that the data range is 1.
SIDE, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


@torch.no_grad()
def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of ``a`` and ``b`` ``[B, H, W]`` in [0, 1] around each pixel, ``[B, H - 10, W - 10]`` float32.

    A Gaussian window of 11 x 11 pixels (sigma 1.5) lies around every pixel that is five or more from the border;
    variances are those of the weights (not of a sample). A pixel at which a map is NaN has weight 0 in every
    window, whose other weights then sum to 1, and is NaN in the result. Without such pixels this is plain SSIM.
    """
    if min(a.shape[-2:]) < SIDE:
        return a.new_empty(len(a), max(0, a.shape[-2] - SIDE + 1), max(0, a.shape[-1] - SIDE + 1))
    with without_autocast(a):
        defined = torch.isfinite(a) & torch.isfinite(b)
        # Around their means: squares of a narrow map would leave no digits for its variance.
        shift_x, shift_y = (_mean(m.float(), defined) for m in (a, b))
        x, y = (torch.where(defined, m.float() - s, 0.0) for m, s in ((a, shift_x), (b, shift_y)))
        terms = torch.stack([defined.float(), x, y, x * x, y * y, x * y], 1)
        weight, *sums = _blurred(terms).unbind(1)
        mean_x, mean_y, xx, yy, xy = (s / weight for s in sums)
        var_x, var_y = (xx - mean_x**2).clamp_min(0), (yy - mean_y**2).clamp_min(0)
        covariance = xy - mean_x * mean_y
        mean_x, mean_y = mean_x + shift_x, mean_y + shift_y
        similar = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
        similar = similar / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))
        edge = SIDE // 2
        return similar.masked_fill(~defined[:, edge:-edge, edge:-edge], torch.nan)


def mean_ssim(local: Tensor) -> Tensor:
    """Mean of :func:`ssim_map` over each image's defined pixels, ``[B]`` float64 on the CPU; NaN without one."""
    return local.flatten(1).cpu().double().nanmean(1)


def _mean(x: Tensor, defined: Tensor) -> Tensor:
    """Of each image's defined pixels, ``[B, 1, 1]``; 0 without one."""
    total = torch.where(defined, x, 0.0).sum((1, 2), keepdim=True)
    return total / defined.sum((1, 2), keepdim=True).clamp_min(1)


def _blurred(terms: Tensor) -> Tensor:
    """Weighted sums over the windows that lie inside, ``[B, n, H, W]``."""
    place = torch.arange(SIDE, dtype=torch.float32, device=terms.device) - SIDE // 2
    line = (-(place**2) / (2 * SIGMA**2)).exp()
    line = line / line.sum()
    flat = terms.flatten(0, 1)[:, None]
    flat = F.conv2d(F.conv2d(flat, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))
    return flat.view(*terms.shape[:2], *flat.shape[-2:])


# The weights of loss max-pooling (Rota Bulò et al., CVPR 2017), without a sort.


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
