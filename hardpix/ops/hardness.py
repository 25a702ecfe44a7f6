"""Hardness maps of any origin in one form: float32 ``[B, H, W]``, higher is harder, NaN where nothing is said.

Those with a known range are brought to [0, 1]; the loss, which has no upper end, stays in [0, inf).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hardpix.ops.pixel import pixel_cross_entropy


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
    with torch.autocast(values.device.type, enabled=False):
        span = about.high - about.low if about.bounded else 1.0
        unit = ((values.float() - about.low) / span).clamp(0, 1 if about.bounded else None)
        return unit.masked_fill(~valid, torch.nan)


@torch.no_grad()
def logit_map(name: str, logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """A map of :data:`OF_LOGITS` from ``logits`` ``[B, C, H, W]``: ``[B, H, W]`` float32.

    ``loss``: -log p(label), 0 on void. ``entropy``: of the class probabilities, divided by log C. ``uncertainty``:
    1 - max p, summed from the other classes: where one is sure, the difference has no digits left.
    """
    with torch.autocast(logits.device.type, enabled=False):
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
