"""Turn a picture about its centre, but only the window of it that is cropped."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from hardpix.data.window import Window, image_window, zoom
from hardpix.ops.resize import sample_pixels

SLACK = 1e-9  # pixels: how far rounding moves a position that lies on a whole number


class Turned(NamedTuple):
    """A window of a picture that is resized first and then turned about its centre; the corners that leave are lost.

    The crop's pixel (i, j) lies at ``rows[i, j]``, ``columns[i, j]`` of the picture as it was, in its pixels and
    from its upper left corner, so that its first pixel's centre is at 1/2; ``inside`` is False where nothing was.
    """

    window: Window
    rows: NDArray[np.float64]  # [h, w]
    columns: NDArray[np.float64]
    inside: NDArray[np.bool_]


def turn(window: Window, native: tuple[int, int], angle: float) -> Turned:
    """The window of the picture ``native`` (height, width) turned by ``angle`` degrees, counter-clockwise as seen."""
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    steps = _steps(window, native)
    down, across = (
        start + (2 * np.arange(length) + 1) * size / (2 * scaled) - size / 2
        for start, length, size, scaled in zip(window[1:3], window[3:5], native, window.scaled, strict=True)
    )
    # The turn is rigid in the resized picture, whose sides need not be scaled exactly alike.
    skew = steps[0] / steps[1]
    rows = native[0] / 2 + ((cosine * down)[:, None] + (sine * skew * across)[None])
    columns = native[1] / 2 + ((cosine * across)[None] - (sine / skew * down)[:, None])
    inside = (rows >= 0) & (rows < native[0]) & (columns >= 0) & (columns < native[1])
    return Turned(window, rows, columns, inside)


def cut(value: Any, view: Window | Turned, fill: int) -> Any:
    """The crop of a tensor: images are interpolated, all other types pick the nearest pixel.

    Where a turned picture was not, an image is 0 and every other type ``fill``.
    """
    if isinstance(view, Window):
        return zoom(value, view)
    plain = value.as_subclass(Tensor)
    if isinstance(value, tv_tensors.Image):
        return tv_tensors.Image(turned_image(plain, view))
    return torch.from_numpy(turned_label(plain.numpy(), view, fill)).as_subclass(type(value))


def turned_label(label: NDArray, view: Turned, fill: int) -> NDArray:
    """Nearest ``[H, W]`` -> ``[h, w]``: the pixel that each position lies in, ``fill`` where none does."""
    rows, columns = (
        np.clip(places, 0, size - 1).astype(np.int64)  # truncates, which is the floor of what is not negative
        for places, size in zip((view.rows, view.columns), label.shape, strict=True)
    )
    picked = label.ravel().take(rows * label.shape[1] + columns)
    picked[~view.inside] = fill
    return picked


def turned_image(image: Tensor, view: Turned) -> Tensor:
    """Bilinear ``[3, H, W]`` uint8 -> ``[3, h, w]``: what surrounds the crop is resized, then sampled where it lies."""
    native = (image.shape[-2], image.shape[-1])
    corner, size, places = [], [], []
    for positions, whole, scaled, step in zip(
        view[1:3], native, view.window.scaled, _steps(view.window, native), strict=True
    ):
        # From the pixel of the resized picture before the first position to the one after the last.
        first, last = (min(max(end, 0.0), float(whole)) for end in (positions.min(), positions.max()))
        start = min(max(math.floor(first - step / 2 + SLACK), 0), math.floor(whole - step + SLACK))
        room = math.floor((whole - start) * scaled / whole + SLACK)
        corner.append(start)
        size.append(min(math.floor((last - start) / step - 0.5 + SLACK) + 2, room))
        places.append(torch.from_numpy((positions - start) / step))
    around = image_window(image, Window(view.window.scaled, corner[0], corner[1], size[0], size[1]))
    sampled = sample_pixels(around, places[0], places[1])
    return sampled.mul_(torch.from_numpy(view.inside))


def _steps(window: Window, native: tuple[int, int]) -> tuple[float, float]:
    """How many pixels of the picture a pixel of the crop measures, down and across."""
    return native[0] / window.scaled[0], native[1] / window.scaled[1]
