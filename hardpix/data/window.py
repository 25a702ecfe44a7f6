"""Resize only a window: cut it from the picture, then enlarge or shrink the cut."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from hardpix.ops.resize import resize_pixels


class Window(NamedTuple):
    """A crop of a resized picture, whose corner lies on a pixel of the picture itself.

    The picture ``[H, W]`` is thought resized to ``scaled``; the crop's pixel (i, j) samples the picture at
    ``top + (i + 1/2) H / scaled[0]`` down and likewise across. A corner on whole pixels costs nothing (a random
    crop may as well be drawn there) and lets the cut be resized alone, four times faster than a resize that
    starts at a fraction of a pixel.
    """

    scaled: tuple[int, int]  # height and width of the whole picture after resizing
    top: int  # in pixels of the picture
    left: int
    height: int  # in pixels of the crop
    width: int

    @classmethod
    def whole(cls, scaled: tuple[int, int]) -> Window:
        """All of the picture."""
        return cls(scaled, 0, 0, *scaled)


def zoom(value: Any, window: Window) -> Any:
    """The window of a tensor: images are interpolated, all other types pick the nearest pixel."""
    plain = value.as_subclass(Tensor)
    if isinstance(value, tv_tensors.Image):
        return tv_tensors.Image(image_window(plain, window).contiguous())
    return torch.from_numpy(label_window(plain.numpy(), window)).as_subclass(type(value))


def image_window(image: Tensor, window: Window) -> Tensor:
    """Bilinear ``[3, H, W]`` uint8 -> ``[3, h, w]``, smoothed where it shrinks.

    The filter does not look above or left of the window, as at the border of a picture.
    """
    native = (image.shape[-2], image.shape[-1])
    top, left, height, width = window[1:]
    if window.scaled == native:
        return image[:, top : top + height, left : left + width]
    bottom, right = (
        # Below and to the right the filter sees as far as it reaches: one pixel, or one of the crop's pixels.
        start + math.ceil((length + 1) * size / scaled) + 2
        for start, length, size, scaled in zip(window[1:3], window[3:5], native, window.scaled, strict=True)
    )
    factors = (window.scaled[0] / native[0], window.scaled[1] / native[1])
    return resize_pixels(image[:, top:bottom, left:right], factors, (height, width))


def label_window(label: NDArray, window: Window) -> NDArray:
    """Nearest ``[H, W]`` -> ``[h, w]``: the source pixel under each target pixel's centre."""
    rows = window.top + _nearest(window.height, label.shape[0], window.scaled[0])
    columns = window.left + _nearest(window.width, label.shape[1], window.scaled[1])
    return label[rows].take(columns, axis=1)


def _nearest(length: int, size: int, scaled: int) -> NDArray[np.int64]:
    """``floor((i + 1/2) size / scaled)`` in whole numbers, which no rounding can move."""
    return (2 * np.arange(length) + 1) * size // (2 * scaled)
