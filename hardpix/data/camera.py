"""Camera models: the Kinect of NYU Depth v2, and intrinsics in text files.

Constants and formulas are those of the data set's toolbox (camera_params.m, project_depth_map.m). The toolbox counts
pixels from 1; here, as everywhere in hardpix, the first pixel is (0, 0), so 1 is subtracted from cx and cy.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardpix.types import DataError

Floats = NDArray[np.float64]


class Camera(NamedTuple):
    """A pinhole with radial (k1, k2, k3) and tangential (p1, p2) distortion, as OpenCV and Bouguet define them."""

    fx: float
    fy: float
    cx: float
    cy: float
    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    k3: float = 0.0

    def matrix(self) -> Floats:
        """``[3, 3]``, for pixels counted from 0."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]])


COLOUR = Camera(
    fx=518.85790117450188, fy=519.46961112127485, cx=325.58244941119034 - 1, cy=253.73616633400465 - 1,
    k1=0.20796615318809061, k2=-0.58613825163911781, p1=0.00072231363135888329, p2=0.0010479627195765181,
    k3=0.49856986684705107,
)  # fmt: skip
DEPTH = Camera(
    fx=582.62448167737955, fy=582.69103270988637, cx=313.04475870804731 - 1, cy=238.44389626620386 - 1,
    k1=-0.099897236553084481, k2=0.39065324602765344, p1=0.0019290592870229277, p2=-0.0019422022475975055,
    k3=-0.51031725053400578,
)  # fmt: skip

# A point p of the depth camera lies at ROTATION p + TRANSLATION (metres) of the colour camera. The toolbox has
# -ROTATION and +t, which puts points behind the camera: the projection is the same.
ROTATION: Floats = np.linalg.inv(
    [
        [0.99997798940829263, 0.0050518419386157446, 0.0043011152014118693],
        [-0.0050359919480810989, 0.99998051861143999, -0.0036879781309514218],
        [-0.0043196624923060242, 0.0036662365748484798, 0.99998394948385538],
    ]
).astype(np.float64)
TRANSLATION = -np.array([0.025031875059141302, -0.00029342312935846411, 0.00066238747008330102])

NO_DISPARITY = 2047
MAX_DEPTH = 10.0  # metres; what the toolbox clips to is noise beyond it, and left out here


def disparity_to_metres(raw: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Raw 11-bit disparity ``[H, W]`` -> metres along the depth camera's axis; 0 without a reading or beyond 10 m."""
    with np.errstate(divide="ignore"):
        metres = (351.3 / (1092.5 - raw.astype(np.float32))).astype(np.float32)
    valid = (raw != NO_DISPARITY) & (metres > 0) & (metres <= MAX_DEPTH)
    return np.where(valid, metres, np.float32(0))


def register(
    depth: NDArray[np.float32],
    *,
    source: Camera = DEPTH,
    target: Camera = COLOUR,
    rotation: Floats = ROTATION,
    translation: Floats = TRANSLATION,
) -> NDArray[np.float32]:
    """Depth ``[H, W]`` of ``source`` as the pinhole ``target`` (without its distortion) sees it, same size.

    Metres, 0 where nothing projects. Every reading moves to the nearest pixel, and the nearest reading wins. Departs
    from the toolbox, which undistorts the disparity by interpolation, mixing both sides of an edge, and keeps the
    depth camera's distance: here rays are undistorted, and the result is the distance along the target's axis.
    """
    height, width = depth.shape
    seen = depth > 0
    # Rotating the rays, which never change, leaves one multiplication and one addition for each frame's points.
    rays = _rotated_rays(source, height, width, tuple(np.asarray(rotation).ravel()))[:, seen]
    x, y, z = rays * depth[seen].astype(np.float64) + np.asarray(translation)[:, None]
    front = z > 0
    x, y, z = x[front], y[front], z[front]
    u = np.rint(target.fx * x / z + target.cx).astype(np.int64)
    v = np.rint(target.fy * y / z + target.cy).astype(np.int64)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    nearest = np.full(height * width, np.inf, dtype=np.float32)
    np.minimum.at(nearest, (v * width + u)[inside], z[inside].astype(np.float32))
    return np.where(np.isinf(nearest), np.float32(0), nearest).reshape(height, width)


def undistorted(image: NDArray[np.uint8], camera: Camera = COLOUR, fill: int = 255) -> NDArray[np.uint8]:
    """``[H, W, 3]`` as ``camera`` without its distortion would see it: bilinear, ``fill`` where it saw nothing.

    The published labelled images are made so; white is their border.
    """
    height, width = image.shape[:2]
    corner, (right, down), inside = _sampling(camera, height, width)
    flat = image.reshape(height * width, -1)
    upper, lower = (flat[start] * (1 - right) + flat[start + 1] * right for start in (corner, corner + width))
    blended = np.rint(upper * (1 - down) + lower * down).astype(np.uint8)
    return np.where(inside, blended, np.uint8(fill)).reshape(image.shape)


def distort(camera: Camera, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Where the ray (x, y, 1) appears, in the same normalised coordinates."""
    r2 = x * x + y * y
    radial = 1 + r2 * (camera.k1 + r2 * (camera.k2 + r2 * camera.k3))
    dx = 2 * camera.p1 * x * y + camera.p2 * (r2 + 2 * x * x)
    dy = camera.p1 * (r2 + 2 * y * y) + 2 * camera.p2 * x * y
    return x * radial + dx, y * radial + dy


def rays(camera: Camera, height: int, width: int) -> Floats:
    """The ray (x, y, 1) that each pixel of the distorted image saw: ``[3, H, W]``."""
    v, u = np.mgrid[:height, :width].astype(np.float64)
    seen_x, seen_y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    x, y = seen_x, seen_y
    for _ in range(10):  # fixed point: after six steps a Kinect's rays are right to 1e-4 pixels
        there_x, there_y = distort(camera, x, y)
        x, y = x + seen_x - there_x, y + seen_y - there_y
    return np.stack([x, y, np.ones_like(x)])


@lru_cache(maxsize=4)
def _rotated_rays(camera: Camera, height: int, width: int, rotation: tuple[float, ...]) -> Floats:
    return np.einsum("ij,jhw->ihw", np.reshape(rotation, (3, 3)), rays(camera, height, width))


@lru_cache(maxsize=4)
def _sampling(camera: Camera, height: int, width: int) -> tuple[NDArray, tuple[NDArray, NDArray], NDArray]:
    """For each pixel of the undistorted image: the upper left of four source pixels (flat index), the weights
    ``[H*W, 1]`` of the right and the lower ones, and whether all four exist."""
    v, u = np.mgrid[:height, :width].astype(np.float64)
    x, y = distort(camera, (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy)
    u, v = camera.fx * x + camera.cx, camera.fy * y + camera.cy
    inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
    left = np.clip(np.floor(u), 0, width - 2).astype(np.int64)
    top = np.clip(np.floor(v), 0, height - 2).astype(np.int64)
    right, down = (u - left).astype(np.float32), (v - top).astype(np.float32)
    return (top * width + left).ravel(), (right.reshape(-1, 1), down.reshape(-1, 1)), inside.reshape(-1, 1)


# The camera matrix as a text file.


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
