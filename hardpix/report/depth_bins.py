"""How often the segmentation errs where depth is missed by little or by much (LWM's study of single images)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

BINS, SHARE = 10, 0.99
LARGEST = math.log(256)  # of |log D - log D*|, both in [0, log 256]
STEP = 2.0**-16  # a power of two: errors, edges and their ratios are exact


class DepthErrors:
    """Pixels and wrongly segmented ones, counted in steps of their depth error; frames need not stay in memory."""

    def __init__(self) -> None:
        steps = math.ceil(LARGEST / STEP) + 1
        self.pixels, self.wrong = np.zeros(steps, np.int64), np.zeros(steps, np.int64)

    def add(self, gap: np.ndarray, counted: np.ndarray, wrong: np.ndarray) -> None:
        """``gap`` ``|log D - log D*|``, ``counted`` (labelled, with depth) and ``wrong``: arrays of one shape."""
        step = np.minimum(gap[counted] / STEP, len(self.pixels) - 1).astype(np.int64)
        self.pixels += np.bincount(step, minlength=len(self.pixels))
        self.wrong += np.bincount(step[wrong[counted]], minlength=len(self.wrong))


class Bin(NamedTuple):
    low: float  # of |log D - log D*|
    high: float  # not included; infinite for the last bin
    pixels: int
    wrong: int

    @property
    def rate(self) -> float:
        """Share of wrong pixels; NaN without a pixel."""
        return self.wrong / self.pixels if self.pixels else math.nan


def binned(errors: Mapping[str, DepthErrors]) -> dict[str, list[Bin]]:
    """Ten bins of equal width for every run, the last one open: ``[0, w), [w, 2w), ... [9w, inf)``.

    The edges are common: ``10 w`` is the 99th percentile of the depth errors of all runs, rounded up by less than
    ``11 STEP``, where ten bins of whole steps end.
    """
    total = np.cumsum(np.sum([e.pixels for e in errors.values()], axis=0))
    percentile = int(np.searchsorted(total, SHARE * total[-1]))
    width = percentile // BINS + 1  # in steps
    starts = np.arange(BINS) * width
    lows = [float(start * STEP) for start in starts]
    return {
        run: [
            Bin(*values)
            for values in zip(
                lows,
                [*lows[1:], math.inf],
                np.add.reduceat(e.pixels, starts).tolist(),
                np.add.reduceat(e.wrong, starts).tolist(),
                strict=True,
            )
        ]
        for run, e in errors.items()
    }
