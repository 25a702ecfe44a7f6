"""Resize only a window: the pixels that a crop of the resized picture would keep."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors


class Window(NamedTuple):
    """A crop, in pixels of the resized picture."""

    scaled: tuple[int, int]  # height and width of the whole picture after resizing
    top: int
    left: int
    height: int
    width: int


def zoom(value: Any, window: Window) -> Any:
    """The window of the resized picture: images are interpolated, all other types pick the nearest pixel."""
    if isinstance(value, tv_tensors.Image):
        pixels = value.as_subclass(Tensor).permute(1, 2, 0).numpy()
        resized = torch.from_numpy(image_window(pixels, window))
        return tv_tensors.Image(resized.permute(2, 0, 1).contiguous())
    picked = torch.from_numpy(label_window(value.as_subclass(Tensor).numpy(), window))
    return picked.as_subclass(type(value))


def image_window(pixels: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """Bilinear ``[H, W, 3]`` -> ``[h, w, 3]``, smoothed where it shrinks."""
    native = pixels.shape[:2]
    if window.scaled == native:
        return pixels[window.top : window.top + window.height, window.left : window.left + window.width]
    (top, bottom), (left, right) = (
        (start * size / scaled, (start + length) * size / scaled)
        for start, length, size, scaled in zip(window[1:3], window[3:5], native, window.scaled, strict=True)
    )
    # Only what the filter can reach is handed over: its support is one source pixel, or one target pixel if larger.
    reach = [
        math.ceil(max(1.0, size / scaled)) + 1 for size, scaled in zip(native, window.scaled, strict=True)
    ]
    y0, x0 = max(0, int(top) - reach[0]), max(0, int(left) - reach[1])
    y1, x1 = min(native[0], math.ceil(bottom) + reach[0]), min(native[1], math.ceil(right) + reach[1])
    part = Image.fromarray(np.ascontiguousarray(pixels[y0:y1, x0:x1]))
    box = (left - x0, top - y0, right - x0, bottom - y0)
    resized = part.resize((window.width, window.height), Image.Resampling.BILINEAR, box=box)
    return np.array(resized)


def label_window(label: NDArray, window: Window) -> NDArray:
    """Nearest ``[H, W]`` -> ``[h, w]``: the source pixel under each target pixel's centre."""
    height, width = label.shape
    rows = _nearest(window.top, window.height, height, window.scaled[0])
    columns = _nearest(window.left, window.width, width, window.scaled[1])
    return label[rows].take(columns, axis=1)


def _nearest(start: int, length: int, size: int, scaled: int) -> NDArray[np.int64]:
    # floor((i + 1/2) size / scaled), in whole numbers: no rounding can make it differ from a full resize.
    return (2 * np.arange(start, start + length) + 1) * size // (2 * scaled)
