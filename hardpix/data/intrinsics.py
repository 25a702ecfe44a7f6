"""The camera matrix as a text file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardpix.types import DataError


def read_intrinsics(path: Path) -> NDArray[np.float64]:
    """The 3x3 camera matrix of a text file: nine numbers, row after row, on one line or three."""
    try:
        numbers = [float(word) for word in path.read_text(encoding="utf-8").split()]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; it must hold the camera's 3x3 matrix") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as the nine numbers of a camera matrix ({error})") from None
    matrix = np.array(numbers)
    if matrix.shape != (9,) or not np.isfinite(matrix).all() or matrix[0] <= 0 or matrix[4] <= 0:
        raise DataError(
            f"{path}: holds {len(numbers)} numbers that are no camera matrix; "
            "it must hold fx 0 cx, 0 fy cy, 0 0 1 with positive focal lengths"
        )
    return matrix.reshape(3, 3)
