"""Discrete decisions on computed values: tests take them where no rounding of another processor can turn them."""

import numpy as np
from torch import Tensor


def threshold_near(values, wanted: float, within: float = 0.02) -> float:
    """A threshold half-way between two neighbours of ``values``, far from both.

    Of all neighbours among the ``within`` (share) values on either side of ``wanted``, those furthest apart.
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=None)
    place = min(max(1, int(np.searchsorted(ordered, wanted))), len(ordered) - 1)
    reach = max(1, int(within * len(ordered)))
    around = ordered[max(0, place - reach) : place + reach]
    gaps = np.diff(around)
    below = int(gaps.argmax())
    assert gaps[below] > 1e-5 * max(1e-3, np.abs(around).max()), "the values are too close for any threshold"
    return float((around[below] + around[below + 1]) / 2)


def percent_near(values, wanted: float, within: float = 0.02) -> float:
    """The percentage whose percentile is :func:`threshold_near`'s, by linear interpolation, near ``wanted``."""
    threshold = threshold_near(values, float(np.percentile(np.asarray(values, np.float64), wanted)), within)
    return 100 * (int((np.asarray(values) < threshold).sum()) - 0.5) / (np.size(values) - 1)


def clear(scores: Tensor, lead: float = 1e-4) -> Tensor:
    """Where the largest of the scores along dimension 1 exceeds all others by more than ``lead``; bool.

    Raise unless that is nearly everywhere: a comparison of the rest would say little.
    """
    best = scores.detach().float().topk(2, 1).values
    found = best.select(1, 0) - best.select(1, 1) > lead
    assert found.float().mean() > 0.9, float(found.float().mean())
    return found


def epochs_near(maps, valid, wanted: float) -> float:
    """A number of epochs near ``wanted`` for which the curriculum's first threshold is far from all values.

    ``maps``: maps ``[B, H, W]`` that are each compared with thresholds of their own, one an image.
    """
    images = [np.asarray(v, np.float64)[np.asarray(m)] for x in maps for v, m in zip(x, valid, strict=True)]
    ends = [(np.partition(v, (len(v) - 1) // 2)[(len(v) - 1) // 2], v.max()) for v in images]

    def margin(epochs: float) -> float:
        return min(
            np.abs(v - (u1 + (u2 - u1) / epochs)).min() / (u2 - u1)
            for v, (u1, u2) in zip(images, ends, strict=True)
        )

    best = max(np.linspace(0.9 * wanted, 1.1 * wanted, 101), key=margin)
    assert margin(best) > 1e-5
    return float(best)
