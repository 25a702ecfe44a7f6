"""Height and normal of every pixel as one class: the labels of HN pre-training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardpix.ops import geometry
from hardpix.ops.geometry import Bools, Floats, Matrix
from hardpix.types import ConfigError

VOID = 255
FLOOR_SHARE = 0.01  # the floor's level is this quantile of the heights; not the least, which is noise
MIN_VALID = 0.01  # of the pixels
ALIGNED = math.cos(math.radians(30)) ** 2  # squared cosine between a floor's normal and up, at least
HORIZONTAL = math.cos(math.radians(45)) ** 2
GRID = 8  # pixels between the normals that gravity is estimated from


class HNLabel(NamedTuple):
    """The labels of one frame, and what they were made with."""

    label: NDArray[np.uint8]  # [H, W] normal bin * height bins + height bin; 255: no depth, or no normal
    up: NDArray[np.float64]  # [3] unit, camera frame; NaN where hardly a pixel has depth
    floor: float  # metres along up from the camera to the floor, below 0 for a camera above it; NaN like up
    valid_share: float  # of the pixels have depth
    rejected: str | None  # why the frame should not be used; its label is then 255 everywhere


def hn_label(
    depth: Floats,
    valid: Bools,
    camera: Matrix,
    *,
    radius: int,
    gravity_radius: int,
    up_method: str,
    height_edges: Sequence[float],
    normals: int,
) -> HNLabel:
    """Label each pixel of a depth image with its height above the floor and whether its surface is upright.

    ``depth`` ``[H, W]`` metres where ``valid``; ``camera`` ``[3, 3]`` in pixels, the first one's centre at (0, 0).
    ``radius``, ``gravity_radius``: of the windows whose plane gives a pixel's normal, for labels and for gravity.
    ``up_method``: ``gravity`` or ``manhattan``. ``height_edges``: where each height bin begins, in metres; the last
    one has no end. ``normals``: 2 tells horizontal (index 0) from vertical (1) surfaces, 1 does not.
    """
    check_bins(height_edges, normals)
    if min(radius, gravity_radius) < 1:
        raise ConfigError(f"the windows' radii are {radius} and {gravity_radius}; they must be at least 1")
    inverse = geometry.inverse_depth(depth, valid)
    valid = inverse > 0
    share = np.count_nonzero(valid) / max(valid.size, 1)
    nothing = np.full(depth.shape, VOID, np.uint8)
    if share < MIN_VALID or share == 0:
        reason = f"fewer than {MIN_VALID:.0%} of the pixels have depth"
        return HNLabel(nothing, np.full(3, np.nan), math.nan, share, reason)
    normal, found = geometry.grid_normals(inverse, camera, gravity_radius, GRID)
    up = geometry.up_direction(normal[found], up_method)
    level = heights(depth, camera, up)
    floor = floor_level(level, valid)
    horizontal, aligned, has_normal = _by_angle(inverse, camera, radius, up)
    on_floor = valid & (level <= floor)
    agree = np.count_nonzero(on_floor & aligned & has_normal) / np.count_nonzero(on_floor)
    if agree <= 0.5:
        return HNLabel(nothing, up, floor, share, f"floor not horizontal: {agree:.0%} of its points agree")
    label = height_bins(level - np.float32(floor), height_edges)
    if normals == 2:
        label += np.uint8(len(height_edges)) * (~horizontal).view(np.uint8)
    np.putmask(label, ~(valid & has_normal), VOID)
    return HNLabel(label, up, floor, share, None)


def heights(depth: Floats, camera: Matrix, up: NDArray[np.float64]) -> Floats:
    """``up . P`` of each pixel ``[H, W]``, metres above the camera (eq. 6.3)."""
    x, y = geometry.rays(depth.shape, camera)
    right, top, front = up.astype(np.float32)
    return depth * (right * x + (top * y + front)[:, None])


def floor_level(level: Floats, valid: Bools) -> float:
    """The least height that at least one per cent of the valid points do not exceed."""
    points = level[valid]
    rank = math.ceil(FLOOR_SHARE * len(points)) - 1
    return float(np.partition(points, rank)[rank])


def height_bins(height: Floats, edges: Sequence[float]) -> NDArray[np.uint8]:
    """The last bin that begins at or below each height, in metres above the floor; 0 below the floor (eq. 6.4)."""
    found = np.zeros(height.shape, np.uint8)
    for edge in edges[1:]:
        found += (height >= np.float32(edge)).view(np.uint8)
    return found


def check_bins(height_edges: Sequence[float], normals: int) -> None:
    """Raises ConfigError unless these are bins of heights and normals."""
    edges = [float(edge) for edge in height_edges]
    if not edges or edges[0] != 0 or sorted(set(edges)) != edges or not math.isfinite(edges[-1]):
        raise ConfigError(f"height_edges is {edges}; it must begin with 0 and ascend, in metres")
    if normals not in (1, 2):
        raise ConfigError(f"normals is {normals}; it must be 1 or 2")
    if len(edges) * normals > VOID:
        raise ConfigError(f"height_edges has {len(edges)} bins; at most {VOID} classes fit into a label")


def _by_angle(
    inverse: Floats, camera: Matrix, radius: int, up: NDArray[np.float64]
) -> tuple[Bools, Bools, Bools]:
    """Pixels ``[H, W]`` whose normal lies less than 45 degrees from up or down (eq. 6.5), at most 30, at all."""
    horizontal, aligned, found = (np.empty(inverse.shape, bool) for _ in range(3))
    right, top, front = up.astype(np.float32)
    for rows, (x, y, z, exists) in geometry.fitted_planes(inverse, camera, radius):
        along, spare = right * x, top * y
        along += spare
        along += np.multiply(front, z, out=spare)
        along *= along
        x *= x
        y *= y
        z *= z
        x += y
        x += z
        for out, share in ((horizontal, HORIZONTAL), (aligned, ALIGNED)):
            yes = along > np.multiply(np.float32(share), x, out=spare)
            out[rows] = geometry.of_pixels(yes, rows, inverse.shape[1])
        found[rows] = geometry.of_pixels(exists, rows, inverse.shape[1])
    return horizontal, aligned, found
