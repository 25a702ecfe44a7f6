"""The depth files of a user's own data: what they hold, and which pixels have no reading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardpix.data.images import MAX_PIXELS, read_depth, read_float_depth
from hardpix.data.listing import LOSSLESS
from hardpix.types import ConfigError, DataError

NO_READING = (0, 65535)  # what cameras write where they have none
ENDINGS = (*LOSSLESS, ".npy")


def missing_values(values: Sequence[float]) -> tuple[float, ...]:
    """``data.source.depth_missing_values``, checked: finite numbers."""
    given = [values] if isinstance(values, str) or not isinstance(values, Sequence) else list(values)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in given):
        raise ConfigError(
            f"data.source.depth_missing_values={values}: must list numbers of the depth files that are no reading, "
            "such as [0,65535]"
        )
    return tuple(given)


def has_reading(raw: NDArray, values: Sequence[float]) -> NDArray[np.bool_]:
    """Which pixels of stored depth are a length: none of ``values``, above 0, and neither NaN nor infinite."""
    return np.isfinite(raw) & (raw > 0) & ~np.isin(raw, values)


def read_own_depth(path: Path) -> NDArray:
    """Stored depth ``[H, W]``: an image of 8 or 16 bits or of floating-point numbers, or an array (``.npy``)."""
    if path.suffix.lower() != ".npy":
        return read_float_depth(path) if path.suffix.lower() in (".tif", ".tiff") else read_depth(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; the data set needs it") from None
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not readable as an array of NumPy ({reason})") from None
    if array.ndim != 2 or array.dtype.kind not in "uif" or not 0 < array.size <= MAX_PIXELS:
        raise DataError(
            f"{path}: holds {array.dtype} of shape {array.shape}; depth must be numbers [height, width], at most "
            f"{MAX_PIXELS} in all"
        )
    return np.array(array)
