"""Names and colours of the classes that height and normal make (see :mod:`hardpix.ops.quantize`)."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from itertools import pairwise

KINDS = ("horizontal", "vertical")
_HUES = ((0.02, 0.17), (0.72, 0.47))  # of the lowest and the highest bin: red to yellow, violet to green-blue
_LIGHTNESS = (0.22, 0.82)


def hn_class_names(height_edges: Sequence[float], normals: int) -> tuple[str, ...]:
    """``0.00-0.25 m, horizontal``, ... in the order of the labels; without the kind for one normal bin."""
    ends = [f"{low:.2f}-{high:.2f} m" for low, high in pairwise(height_edges)]
    ends.append(f"{height_edges[-1]:.2f} m and more")
    return tuple(f"{end}, {kind}" for kind in KINDS for end in ends) if normals == 2 else tuple(ends)


def hn_palette(heights: int, normals: int) -> tuple[tuple[int, int, int], ...]:
    """A colour per class: the hue tells horizontal from vertical, lighter is higher."""
    return tuple(
        _colour(kind, index / max(1, heights - 1)) for kind in range(normals) for index in range(heights)
    )


def _colour(kind: int, high: float) -> tuple[int, int, int]:
    hue, lightness = (low + (top - low) * high for low, top in (_HUES[kind], _LIGHTNESS))
    red, green, blue = (round(255 * c) for c in colorsys.hls_to_rgb(hue, lightness, 0.85))
    return red, green, blue
