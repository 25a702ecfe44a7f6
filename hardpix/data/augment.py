"""Photometric distortion of an 8-bit RGB image (mmsegmentation's ``PhotoMetricDistortion``).

Planes of float32 and no branch per pixel: NumPy's vector loops make this several times faster than a
conversion to 8-bit HSV and back, and hue and saturation are not rounded to 256 steps on the way.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from hardpix.ranges import NonNegative, Share, Whole, checked

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
