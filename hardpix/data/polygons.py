"""Polygons drawn into masks."""

from __future__ import annotations

from math import ceil, floor

import numpy as np
from numpy.typing import NDArray


def rasterise(x: NDArray, y: NDArray, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels ``[H, W]`` whose centre lies inside the polygon with corners (``x``, ``y``), even-odd rule.

    The centre of the pixel in row 2 and column 5 is x = 5, y = 2. A centre on the outline counts where the
    inside is right of it or below it, so polygons that share an edge share no pixel. Corners may lie outside;
    fewer than three enclose nothing.
    """
    height, width = size
    inside = np.zeros(size, dtype=bool)
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 3:
        return inside
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    for row in range(max(0, ceil(y.min())), min(height, floor(y.max()) + 1)):
        crosses = (y <= row) != (next_y <= row)
        x0, y0, x1, y1 = x[crosses], y[crosses], next_x[crosses], next_y[crosses]
        at = np.ceil(np.sort(x0 + (row - y0) * (x1 - x0) / (y1 - y0))).clip(0, width).astype(int)
        for start, stop in zip(at[::2], at[1::2], strict=True):
            inside[row, start:stop] = True
    return inside
