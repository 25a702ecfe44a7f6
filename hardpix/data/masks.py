"""Instance masks as COCO stores them: polygons and run lengths, rasterised exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Mask(NamedTuple):
    """The pixels of one instance, in the smallest box around them."""

    top: int
    left: int
    pixels: NDArray[np.bool_]  # [h, w]

    @property
    def area(self) -> int:
        return int(self.pixels.sum())

    def paint(self, label: NDArray, value: int) -> None:
        """Set the instance's pixels of ``label`` ``[H, W]``."""
        height, width = self.pixels.shape
        label[self.top : self.top + height, self.left : self.left + width][self.pixels] = value


def decode(segmentation: Any, height: int, width: int) -> Mask:
    """A ``segmentation`` of an annotation as pixels of a picture; ``ValueError`` says what is wrong with it.

    A list holds polygons ``[x0, y0, x1, y1, ...]``, whose union counts; a dict holds run lengths (``size`` and
    ``counts``: numbers, or COCO's compressed text).
    """
    if isinstance(segmentation, dict):
        return _trimmed(_decode_runs(segmentation, height, width), 0, 0)
    polygons = _polygons(segmentation)
    corners = np.concatenate(polygons)
    top, left = np.floor(corners.min(axis=0))[::-1].clip(0, (height, width)).astype(int)
    bottom, right = np.ceil(corners.max(axis=0))[::-1].clip((top, left), (height, width)).astype(int)
    pixels = np.zeros((bottom - top, right - left), dtype=bool)
    for points in polygons:
        pixels |= fill(points - (left, top), *pixels.shape)
    return _trimmed(pixels, int(top), int(left))


def check(segmentation: Any, height: int, width: int) -> None:
    """Raise the ``ValueError`` of :func:`decode`, without drawing anything."""
    if isinstance(segmentation, dict):
        _counts(segmentation, height, width)
    else:
        _polygons(segmentation)


def fill(points: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Pixels ``[height, width]`` whose centre lies inside a polygon ``[n, 2]`` of (x, y) corners.

    Pixel (row i, column j) covers [j, j + 1) x [i, i + 1), as in COCO. Where the outline crosses itself, the
    even-odd rule decides. (Pillow's polygon cuts corners to whole pixels and includes the far edges: a square of
    four pixels becomes one of five.)
    """
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    # Rows whose centre i + 1/2 an edge crosses: those in [upper, lower), which leaves horizontal edges out.
    upper = np.ceil(np.minimum(y0, y1) - 0.5).clip(0, height).astype(int)
    lower = np.ceil(np.maximum(y0, y1) - 0.5).clip(0, height).astype(int)
    edge = np.repeat(np.arange(len(points)), lower - upper)
    before = np.cumsum(lower - upper) - (lower - upper)
    row = np.arange(len(edge)) - before[edge] + upper[edge]
    slope = (x1 - x0)[edge] / (y1 - y0)[edge]
    crossing = x0[edge] + (row + 0.5 - y0[edge]) * slope
    # The first column whose centre is not left of the crossing; everything from there on changes sides.
    column = np.ceil(crossing - 0.5).clip(0, width).astype(int)
    changes = np.zeros((height, width + 1), dtype=np.int32)
    np.add.at(changes, (row, column), 1)
    return (changes.cumsum(axis=1) % 2 == 1)[:, :width]


def uncompressed(text: str) -> list[int]:
    """COCO's compressed run lengths as numbers.

    Six bits a character from ``0`` on: five of the value, lowest first, and one that says that more follow; the
    last of a value carries its sign. From the fourth on a value is the difference to the one two places before.
    """
    values: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            if place == len(text):
                raise ValueError("the compressed counts end within a number")
            bits = ord(text[place]) - 48
            if not 0 <= bits < 64:
                raise ValueError(f"the compressed counts hold {text[place]!r}, which is no part of them")
            value |= (bits & 31) << shift
            more = bool(bits & 32)
            place, shift = place + 1, shift + 5
            if not more and bits & 16:
                value -= 1 << shift
        values.append(value + values[-2] if len(values) > 2 else value)
    return values


def _decode_runs(segmentation: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    """Runs of 0 and 1 in turn, beginning with 0, down the columns."""
    counts = _counts(segmentation, height, width)
    runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return runs.reshape(width, height).T


def _counts(segmentation: dict[str, Any], height: int, width: int) -> list[int]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(f"its run lengths are of size {size}, but its image has [{height}, {width}]")
    if isinstance(counts, str):
        counts = uncompressed(counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError("counts must be whole numbers, 0 or above, or their compressed text")
    if sum(counts) != height * width:
        raise ValueError(f"its counts sum to {sum(counts)}, but the image has {height * width} pixels")
    return counts


def _polygons(segmentation: Any) -> list[NDArray[np.float64]]:
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("a segmentation must be a list of polygons or an object with size and counts")
    return [_points(polygon) for polygon in segmentation]


def _points(polygon: Any) -> NDArray[np.float64]:
    numbers = isinstance(polygon, list) and all(type(x) in (int, float) for x in polygon)
    if not numbers or len(polygon) % 2 or len(polygon) < 6:
        size = f"{len(polygon)} values" if isinstance(polygon, list) else repr(polygon)[:40]
        raise ValueError(f"a polygon must list x and y of 3 points or more, but has {size}")
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("a polygon has a corner that is not finite")
    return points


def _trimmed(pixels: NDArray[np.bool_], top: int, left: int) -> Mask:
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not len(rows):
        return Mask(top, left, np.zeros((0, 0), dtype=bool))
    (first, last), (start, stop) = (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
    return Mask(top + int(first), left + int(start), pixels[first:last, start:stop].copy())


def stacked(masks: Sequence[tuple[Mask, int]], label: NDArray) -> None:
    """Paint (mask, value) pairs, the largest first, so that small instances stay visible; equals in their order."""
    for mask, value in sorted(masks, key=lambda pair: -pair[0].area):
        mask.paint(label, value)
