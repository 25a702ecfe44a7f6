"""Photometric distortion of an 8-bit RGB image (mmsegmentation's ``PhotoMetricDistortion``).

Planes of float32 and no branch per pixel: NumPy's vector loops make this several times faster than a
conversion to 8-bit HSV and back, and hue and saturation are not rounded to 256 steps on the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Planes = NDArray[np.float32]  # [3, H, W], RGB in 0..255


class Photometric:
    """Brightness, contrast, saturation and hue, each with probability ``p``.

    Contrast comes second or last, with equal chance. ``brightness`` is the largest shift in grey levels,
    ``contrast`` and ``saturation`` are ranges of factors, ``hue`` the largest turn in units of two degrees
    (OpenCV's hue, 180 to the circle; whole units are drawn, ``-hue`` included and ``+hue`` not).
    """

    def __init__(
        self,
        *,
        brightness: float,
        contrast: Sequence[float],
        saturation: Sequence[float],
        hue: int,
        p: float,
    ) -> None:
        self.brightness, self.hue, self.p = brightness, hue, p
        self.contrast, self.saturation = (*contrast,), (*saturation,)

    def __call__(self, image: NDArray[np.uint8], rng: torch.Generator) -> NDArray[np.uint8]:
        """``[3, H, W]`` uint8 -> the same; ``image`` itself where nothing is drawn."""
        shift = uniform(rng, -self.brightness, self.brightness) if self._chosen(rng) else None
        contrast_first = uniform(rng, 0, 1) < 0.5
        contrast = uniform(rng, *self.contrast) if self._chosen(rng) else None
        saturation = uniform(rng, *self.saturation) if self._chosen(rng) else None
        turn = self._draw_hue(rng) if self._chosen(rng) else None
        if shift is contrast is saturation is turn is None:
            return image
        planes = image.astype(np.float32)
        if shift is not None:
            adjust_brightness(planes, shift)
        if contrast is not None and contrast_first:
            adjust_contrast(planes, contrast)
        if saturation is not None:
            adjust_saturation(planes, saturation)
        if turn is not None:
            adjust_hue(planes, 2.0 * turn)
        if contrast is not None and not contrast_first:
            adjust_contrast(planes, contrast)
        return _to_uint8(planes)

    def _chosen(self, rng: torch.Generator) -> bool:
        return uniform(rng, 0, 1) < self.p

    def _draw_hue(self, rng: torch.Generator) -> int:
        return int(torch.randint(-self.hue, max(self.hue, 1 - self.hue), (), generator=rng))


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
    red, green, blue = planes
    value, chroma = _value_and_chroma(planes)
    hue = _sextant(planes, value, chroma)
    hue += np.float32((degrees / 60.0) % 6.0)
    hue -= np.float32(6) * (hue >= 6)
    low = np.subtract(value, chroma, out=value)
    # One channel in closed form: a trapezoid over the circle, written with |.| and a clip.
    for plane, centre, sign, offset in ((red, 3, 1, -1), (green, 2, -1, 2), (blue, 4, -1, 2)):
        np.subtract(hue, np.float32(centre), out=plane)
        np.abs(plane, out=plane)
        if sign < 0:
            np.negative(plane, out=plane)
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


def _sextant(planes: Planes, value: NDArray[np.float32], chroma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Hue in units of 60 degrees, in [0, 6); ``[H, W]``. Products with masks: a branch costs more."""
    red, green, blue = planes
    is_red = red == value
    is_green = (green == value) & ~is_red
    hue = (green - blue) * is_red
    hue += (blue - red) * is_green
    is_blue = ~(is_red | is_green)
    hue += (red - green) * is_blue
    hue /= np.maximum(chroma, np.float32(1e-3))
    hue += np.float32(2) * is_green
    hue += np.float32(4) * is_blue
    hue += np.float32(6) * (hue < 0)
    return hue


def _to_uint8(planes: Planes) -> NDArray[np.uint8]:
    planes += np.float32(0.5)
    return planes.astype(np.uint8)
