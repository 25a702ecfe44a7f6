"""The input pipeline as toolboxes on OpenCV write it, to measure ours against.

Step for step mmsegmentation's order: read, resize the whole picture, redraw the crop while one class fills it, flip,
photometric distortion on 8-bit images with a conversion to HSV and back, pad, channels first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def load(image_path: Path, label_path: Path, crop: tuple[int, int], rng: np.random.Generator) -> None:
    """One training frame, made and dropped."""
    import cv2

    cv2.setNumThreads(0)
    image, label = cv2.imread(str(image_path)), cv2.imread(str(label_path), cv2.IMREAD_UNCHANGED)
    ratio = rng.uniform(0.5, 2.0)
    size = (round(image.shape[1] * ratio), round(image.shape[0] * ratio))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    top, left = _corner(label, crop, rng)
    image = image[top : top + crop[0], left : left + crop[1]]
    label = label[top : top + crop[0], left : left + crop[1]]
    if rng.uniform() < 0.5:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    image = _photometric(image, rng)
    below, right = crop[0] - label.shape[0], crop[1] - label.shape[1]
    image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=0)
    label = cv2.copyMakeBorder(label, 0, below, 0, right, cv2.BORDER_CONSTANT, value=255)
    np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB).transpose(2, 0, 1))
    label.astype(np.int64)


def _corner(label: Picture, crop: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    for _ in range(11):
        top = int(rng.integers(max(label.shape[0] - crop[0], 0) + 1))
        left = int(rng.integers(max(label.shape[1] - crop[1], 0) + 1))
        values, counts = np.unique(label[top : top + crop[0], left : left + crop[1]], return_counts=True)
        counts = counts[values != 255]
        if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
            break
    return top, left


def _photometric(image: Picture, rng: np.random.Generator) -> Picture:
    import cv2

    def drawn() -> bool:
        return bool(rng.integers(2))

    if drawn():
        image = _linear(image, 1.0, rng.uniform(-32, 32))
    contrast_first = drawn()
    if contrast_first and drawn():
        image = _linear(image, rng.uniform(0.5, 1.5), 0.0)
    if drawn():
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = _linear(hsv[:, :, 1], rng.uniform(0.5, 1.5), 0.0)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if drawn():
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + rng.integers(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if not contrast_first and drawn():
        image = _linear(image, rng.uniform(0.5, 1.5), 0.0)
    return image


def _linear(values: Picture, factor: float, shift: float) -> Picture:
    return np.clip(values.astype(np.float32) * factor + shift, 0, 255).astype(np.uint8)
