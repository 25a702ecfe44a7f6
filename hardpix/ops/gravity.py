"""Which way is up, from the normals of a scene."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardpix.types import ConfigError

Vector = NDArray[np.float64]

STAGES = ((45.0, 5), (15.0, 5))  # degrees and iterations of Gupta et al. 2013
SHRINKAGE = 0.3  # of the manhattan option: components of a unit normal below it count as noise
MANHATTAN_ITERATIONS = 50


def up_direction(normal: NDArray[np.floating], method: str) -> Vector:
    """The unit vector ``[3]`` against gravity, of unit normals ``[n, 3]`` in the camera frame (y down).

    ``gravity``: the direction that floors are perpendicular and walls parallel to. ``manhattan``: of three
    directions at right angles that all surfaces follow, the one nearest to the camera's own up.
    """
    normals = normal.astype(np.float64)
    down = gravity(normals)
    if method == "gravity":
        return -down
    if method == "manhattan":
        frame = manhattan(normals, _frame_around(down))
        axis = frame[np.argmax(np.abs(frame[:, 1]))]
        return -axis if axis[1] > 0 else axis
    raise ConfigError(f"up_method is '{method}'; it must be 'gravity' or 'manhattan'")


def gravity(normal: Vector) -> Vector:
    """Unit vector ``[3]`` downwards: alternate between sorting surfaces by it and fitting it (eq. 6.2).

    Starts at the camera's y axis, and stays there if there are neither floors F nor walls W about it.
    """
    products = (normal[:, :, None] * normal[:, None, :]).reshape(-1, 9)
    down = np.array([0.0, 1.0, 0.0])
    for degrees, iterations in STAGES:
        angle = np.deg2rad(degrees)
        for _ in range(iterations):
            cosine = np.abs(normal @ down)
            floor, wall = cosine > np.cos(angle), cosine < np.sin(angle)
            if not (floor.any() or wall.any()):
                break
            _, vectors = np.linalg.eigh(((wall.astype(float) - floor) @ products).reshape(3, 3))
            found = vectors[:, 0]
            down = found if found @ down > 0 else -found
    return down


def manhattan(normal: Vector, frame: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation ``[3, 3]``, axes in its rows, that makes ``sum |R n|_1`` small, from ``frame`` on.

    Alternates soft-thresholding of ``R n`` with the rotation nearest to the result (orthogonal Procrustes).
    """
    for _ in range(MANHATTAN_ITERATIONS):
        seen = normal @ frame.T
        sparse = np.sign(seen) * np.maximum(np.abs(seen) - SHRINKAGE, 0)
        left, size, right = np.linalg.svd(sparse.T @ normal)
        if size[1] <= 1e-12 * max(size[0], 1):  # fewer than two directions: any turn about one fits as well
            return frame
        sign = np.sign(np.linalg.det(left @ right))
        new = left @ np.diag([1.0, 1.0, sign]) @ right
        if np.abs(new - frame).max() < 1e-7:
            return new
        frame = new
    return frame


def _frame_around(down: Vector) -> NDArray[np.float64]:
    """A right-handed frame with ``down`` as its second axis; the first lies in the picture's plane where it can."""
    side = np.cross(down, [0.0, 0.0, 1.0])
    if np.linalg.norm(side) < 1e-6:
        side = np.array([1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    return np.stack([side, down, np.cross(side, down)])
