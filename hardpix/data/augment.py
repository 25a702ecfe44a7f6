"""Augmentation: photometric distortion, rotation, and resizing of a window.

Planes of float32 and no branch per pixel: NumPy's vector loops make this several times faster than a
conversion to 8-bit HSV and back, and hue and saturation are not rounded to 256 steps on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from hardpix.config.schema import NonNegative, Share, Whole, checked
from hardpix.ops.resize import resize_pixels, sample_pixels

Planes = NDArray[np.float32]  # [3, H, W], RGB in 0..255
Step = Callable[[Planes, float], None]

STRIP_PIXELS = 24576  # rows are worked on in strips: six planes of them stay in a core's cache


class Photometric:
    """Brightness, contrast, saturation and hue, each with probability ``p``.

    Contrast comes second or last, with equal chance; values are clipped to 0..255 between the steps, but not
    rounded. ``brightness`` is the largest shift in grey levels, ``contrast`` and ``saturation`` are ranges of
    factors, ``hue`` the largest turn in units of two degrees (OpenCV's hue, 180 to the circle; whole units are
    drawn, ``-hue`` included and ``+hue`` not).
    """

    @checked
    def __init__(
        self,
        *,
        brightness: NonNegative,
        contrast: tuple[NonNegative, NonNegative],
        saturation: tuple[NonNegative, NonNegative],
        hue: Whole,
        p: Share,
    ) -> None:
        self.brightness, self.hue, self.p = brightness, hue, p
        self.contrast, self.saturation = (*contrast,), (*saturation,)

    def __call__(self, image: NDArray[np.uint8], rng: torch.Generator) -> NDArray[np.uint8]:
        """``[3, H, W]`` uint8 -> the same; ``image`` itself where nothing is drawn."""
        steps = self.draw(rng)
        if not steps:
            return image
        out = np.empty_like(image)
        rows = max(1, STRIP_PIXELS // image.shape[2])
        for top in range(0, image.shape[1], rows):
            planes = image[:, top : top + rows].astype(np.float32)
            for step, amount in steps:
                step(planes, amount)
            planes += np.float32(0.5)
            out[:, top : top + rows] = planes  # the cast truncates: with the half added, it rounds
        return out

    def draw(self, rng: torch.Generator) -> list[tuple[Step, float]]:
        """What is to be done, in order. Every number is drawn whether it is used or not."""
        brightness = (adjust_brightness, uniform(rng, -self.brightness, self.brightness))
        contrast = (adjust_contrast, uniform(rng, *self.contrast))
        saturation = (adjust_saturation, uniform(rng, *self.saturation))
        turn = int(torch.randint(-self.hue, max(self.hue, 1 - self.hue), (), generator=rng))
        hue = (adjust_hue, 2.0 * turn)
        colour = [saturation, hue]
        steps = (
            [brightness, contrast, *colour] if uniform(rng, 0, 1) < 0.5 else [brightness, *colour, contrast]
        )
        return [step for step in steps if uniform(rng, 0, 1) < self.p]


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=rng).item()


def adjust_brightness(planes: Planes, shift: float) -> None:
    """Add ``shift`` grey levels, clip to 0..255; in place."""
    planes += np.float32(shift)
    np.clip(planes, 0, 255, out=planes)


def adjust_contrast(planes: Planes, factor: float) -> None:
    """Multiply by ``factor`` (about black, not about the mean), clip to 0..255; in place."""
    planes *= np.float32(factor)
    np.clip(planes, 0, 255, out=planes)


def adjust_saturation(planes: Planes, factor: float) -> None:
    """Scale the saturation of HSV, clipped to 1, with hue and value kept; in place.

    Saturation is ``(V - min) / V``, so its scaling by f draws each channel towards or away from V:
    ``c' = V + f (c - V)``, where f may not exceed ``V / (V - min)``, at which the smallest channel is 0.
    """
    value, chroma = _value_and_chroma(planes)
    if factor > 1:
        np.maximum(chroma, np.float32(1e-3), out=chroma)
        scale = np.divide(value, chroma, out=chroma)
        np.minimum(scale, np.float32(factor), out=scale)
    else:
        scale = np.float32(factor)  # type: ignore[assignment]
    planes -= value
    planes *= scale
    planes += value


def adjust_hue(planes: Planes, degrees: float) -> None:
    """Turn the hue of HSV around its circle, with saturation and value kept; in place. Grey stays grey."""
    hue, value, chroma = _sextant(planes)
    hue += np.float32((degrees / 60.0) % 6.0)
    hue -= np.float32(6) * (hue >= 6)
    low = np.subtract(value, chroma, out=value)
    # Each channel is a trapezoid over the circle, written with |.| and a clip.
    for plane, centre, sign, offset in zip(planes, (3, 2, 4), (1, -1, -1), (-1, 2, 2), strict=True):
        np.subtract(hue, np.float32(centre), out=plane)
        np.abs(plane, out=plane)
        plane *= np.float32(sign)
        plane += np.float32(offset)
        np.clip(plane, 0, 1, out=plane)
        plane *= chroma
        plane += low


def _value_and_chroma(planes: Planes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """HSV's value (the largest channel) and chroma (largest less smallest), ``[H, W]`` each."""
    red, green, blue = planes
    value = np.maximum(red, green)
    np.maximum(value, blue, out=value)
    chroma = np.minimum(red, green)
    np.minimum(chroma, blue, out=chroma)
    np.subtract(value, chroma, out=chroma)
    return value, chroma


def _sextant(planes: Planes) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """HSV's hue in units of 60 degrees, in [0, 6), value and chroma; ``[H, W]`` each.

    The three channels are sorted by two exchanges, and the hue is counted from the axis they lead to: with
    masks and products, for a branch per pixel costs more than all of it.
    """
    red, green, blue = planes
    second, third = np.maximum(green, blue), np.minimum(green, blue)
    value, middle = np.maximum(red, second), np.minimum(red, second)
    chroma = value - np.minimum(middle, third)
    # 0 as it stands, -6 (a full turn) if blue exceeds green, -2 or 4 if red is not the largest.
    turn = np.float32(6) * (green < blue)
    axis = (np.float32(2) * turn - np.float32(2)) * (red < second)
    axis -= turn
    hue = np.subtract(middle, third, out=middle)
    hue /= np.maximum(chroma, np.float32(1e-3))
    hue += axis
    return np.abs(hue, out=hue), value, chroma


# Turn a picture about its centre, but only the window of it that is cropped.


SLACK = 1e-9  # pixels: how far rounding moves a position that lies on a whole number


class RotatedWindow(NamedTuple):
    """A window of a picture that is resized first and then turned about its centre; the corners that leave are lost.

    The crop's pixel (i, j) lies at ``rows[i, j]``, ``columns[i, j]`` of the picture as it was, in its pixels and
    from its upper left corner, so that its first pixel's centre is at 1/2; ``inside`` is False where nothing was.
    """

    window: Window
    rows: NDArray[np.float64]  # [h, w]
    columns: NDArray[np.float64]
    inside: NDArray[np.bool_]


def rotated_window(window: Window, native: tuple[int, int], angle: float) -> RotatedWindow:
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
    return RotatedWindow(window, rows, columns, inside)


def cut(value: Any, view: Window | RotatedWindow, fill: int) -> Any:
    """The crop of a tensor: images are interpolated, all other types pick the nearest pixel.

    Where a turned picture was not, an image is 0 and every other type ``fill``.
    """
    if isinstance(view, Window):
        return zoom(value, view)
    plain = value.as_subclass(Tensor)
    if isinstance(value, tv_tensors.Image):
        return tv_tensors.Image(rotate_image(plain, view))
    return torch.from_numpy(rotate_label(plain.numpy(), view, fill)).as_subclass(type(value))


def rotate_label(label: NDArray, view: RotatedWindow, fill: int) -> NDArray:
    """Nearest ``[H, W]`` -> ``[h, w]``: the pixel that each position lies in, ``fill`` where none does."""
    rows, columns = (
        np.clip(places, 0, size - 1).astype(np.int64)  # truncates, which is the floor of what is not negative
        for places, size in zip((view.rows, view.columns), label.shape, strict=True)
    )
    picked = label.ravel().take(rows * label.shape[1] + columns)
    picked[~view.inside] = fill
    return picked


def rotate_image(image: Tensor, view: RotatedWindow) -> Tensor:
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


# Resize only a window: cut it from the picture, then enlarge or shrink the cut.


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
