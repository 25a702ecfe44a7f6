"""The part of every frame that a data set keeps, without a border that carries no picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hardpix.data.base import Sample
from hardpix.types import ConfigError, DataError


class Border(NamedTuple):
    """The part of a frame that is kept: rows ``top..bottom-1``, columns ``left..right-1``."""

    top: int
    bottom: int
    left: int
    right: int


def to_border(window: Sequence[int] | None) -> Border | None:
    """``[top, bottom, left, right]`` of a configuration; None keeps whole frames."""
    if window is None:
        return None
    if len(window) != 4:
        raise ConfigError(f"border_crop is {list(window)}; it must be [top, bottom, left, right]")
    return Border(*window)


def shifted_camera(matrix: NDArray[np.float64] | None, window: Border | None) -> NDArray[np.float64] | None:
    """A camera matrix in pixels of what ``window`` keeps of its frames."""
    if matrix is None or window is None:
        return matrix
    shifted = matrix.copy()
    shifted[0, 2] -= window.left
    shifted[1, 2] -= window.top
    return shifted


def crop_border(sample: Sample, window: Border, path: Path) -> Sample:
    """Every tensor of the sample, cut to ``window``; ``path`` is named when the window leaves the frame."""
    top, bottom, left, right = window
    height, width = sample["image"].shape[-2:]
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise DataError(f"{path}: the crop {tuple(window)} does not lie inside its {width}x{height} pixels")
    cut = {k: v[..., top:bottom, left:right] for k, v in sample.items() if isinstance(v, Tensor)}
    return Sample(**cut, name=sample["name"])  # type: ignore[typeddict-item]
