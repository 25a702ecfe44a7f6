"""Surface normals from depth, and the up direction from normals.

Camera frame: x right, y down, z forward; metres. The first pixel's centre is (0, 0), and a camera is its ``[3, 3]``
matrix in pixels. A plane ``n . P = 1`` is ``n . a = 1 / Z`` with ``a = (X / Z, Y / Z, 1)``, linear in the pixel, so
the normal equations ``(sum a a^T) n = sum a / Z`` over the valid pixels of a window (Gupta et al. 2014) are those of
a regression of inverse depth on the pixel's coordinates. They are solved in coordinates around the window's centre:
there the sums over ``a a^T`` are small integers, exact in any type, and nothing cancels in float32.

Everything is NumPy, and runs over blocks of rows that fit into a processor's cache, each a flat array whose rows
are ``radius`` zeros apart: a step to the side never reaches another row's pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardpix.types import ConfigError

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

_SINGULAR = 1e-5  # of the determinant relative to its first term: rounding leaves less, three corners of a square more
_BLOCK = 24_000  # pixels; some twenty arrays of as many float32 fit into 2 MB


class Planes(NamedTuple):
    """Planes ``(x, y, z) . P = positive constant`` fitted to windows; the arrays have one shape."""

    x: NDArray
    y: NDArray
    z: NDArray
    found: Bools  # False where fewer than three pixels are valid, or all of them lie on one line


def points(depth: Floats, camera: Matrix) -> Floats:
    """Depth ``[H, W]`` in metres -> points ``[H, W, 3]`` of the camera frame (eq. 6.1)."""
    x, y = rays(depth.shape, camera)
    return np.stack([depth * x, depth * y[:, None], depth], axis=-1)


def upright(points: Floats, up: Vector) -> Floats:
    """Points ``[..., 3]`` of the camera frame -> (right, forward, up) of a level frame at the camera, metres."""
    right, down, forward = frame_around(-up)
    return points @ np.stack([right, forward, -down], axis=1).astype(np.float32)


def rays(shape: tuple[int, ...], camera: Matrix) -> tuple[Floats, Floats]:
    """X / Z of each column ``[W]`` and Y / Z of each row ``[H]`` of a picture of ``shape``."""
    height, width = shape
    x = (np.arange(width) - camera[0, 2]) / camera[0, 0]
    y = (np.arange(height) - camera[1, 2]) / camera[1, 1]
    return x.astype(np.float32), y.astype(np.float32)


def inverse_depth(depth: Floats, valid: Bools) -> Floats:
    """1 / Z; 0 where ``valid`` is False or depth is less than a millimetre, infinite or NaN: no reading."""
    seen = valid & (depth > 1e-3) & (depth < np.inf)
    return np.reciprocal(np.where(seen, depth, np.float32(np.inf)))


def plane_normals(depth: Floats, valid: Bools, camera: Matrix, radius: int) -> tuple[Floats, Bools]:
    """Unit normals ``[H, W, 3]`` that face the camera (n . P < 0), and the pixels ``[H, W]`` that have one.

    A pixel has one if it is valid itself and the valid pixels of its window of ``2 radius + 1`` rows and columns,
    cut off at the image's border, do not all lie on one line. Elsewhere the normal is 0.
    """
    inverse = inverse_depth(depth, valid)
    normal, found = np.zeros((*depth.shape, 3), np.float32), inverse > 0
    x, y = rays(depth.shape, camera)
    for rows, plane in fitted_planes(inverse, camera, radius):
        plane = Planes(*(of_pixels(a, rows, depth.shape[1]) for a in plane))
        found[rows] &= plane.found
        normal[rows] = _unit(plane, x, y[rows, None]) * found[rows][..., None]
    return normal, found


def grid_normals(inverse: Floats, camera: Matrix, radius: int, step: int) -> tuple[Floats, Bools]:
    """The normals of :func:`plane_normals` at every ``step``-th row and column: ``[h, w, 3]`` and ``[h, w]``.

    ``inverse`` ``[H, W]`` is that of :func:`inverse_depth`.
    """
    valid = inverse > 0
    rows, columns = (np.arange((min(step, size) - 1) // 2, size, step) for size in inverse.shape)
    vertical = (_grid_sums(valid.astype(np.float32), rows, radius, 3), _grid_sums(inverse, rows, radius, 2))
    mask, weighted = (_grid_sums(sums.swapaxes(1, 2), columns, radius, len(sums)) for sums in vertical)
    # [order across, order down, column, row]
    order = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
    sums = [mask[k].T for k in order] + [weighted[k].T for k in order[:3]]
    centre = (columns - camera[0, 2], rows[:, None] - camera[1, 2])
    plane = _solve([a.astype(np.float64) for a in sums], camera, *np.broadcast_arrays(*centre))
    x, y = rays(inverse.shape, camera)
    found = plane.found & valid[np.ix_(rows, columns)]
    normal = _unit(plane, x[columns], y[rows, None])
    normal[~found] = 0
    return normal, found


def fitted_planes(inverse: Floats, camera: Matrix, radius: int) -> Iterator[tuple[slice, Planes]]:
    """The plane of every pixel's window, a block of rows at a time: which rows, and flat arrays.

    ``inverse`` ``[H, W]`` is that of :func:`inverse_depth`. :func:`of_pixels` takes the flat arrays' margins off.
    """
    height, width = inverse.shape
    stride, narrow = width + radius, _counter(radius)
    block = max(1, _BLOCK // stride)
    u = np.tile(np.arange(stride, dtype=np.float32) - np.float32(camera[0, 2]), min(block, height))
    for top in range(0, height, block):
        rows = slice(top, min(top + block, height))
        padded = _padded(inverse, rows, radius)
        total, first, second = _window((padded > 0).astype(narrow), radius, stride, 3)
        counts = [
            *_window(total, radius, 1, 3),
            *_window(first, radius, 1, 2),
            *_window(second, radius, 1, 1),
        ]
        count, su, suu, sv, suv, svv = (a.astype(np.float32) for a in _unsigned_squares(counts))
        total, first = _window(padded, radius, stride, 2)
        w, uw = _window(total, radius, 1, 2)
        (vw,) = _window(first, radius, 1, 1)
        v = np.repeat(np.arange(rows.start, rows.stop, dtype=np.float32) - np.float32(camera[1, 2]), stride)
        yield rows, _solve((count, su, sv, suu, suv, svv, w, uw, vw), camera, u[: len(v)], v)


def of_pixels(flat: NDArray, rows: slice, width: int) -> NDArray:
    """What :func:`fitted_planes` yields or is computed from it, as ``[rows, W]``."""
    return flat.reshape(rows.stop - rows.start, -1)[:, :width]


def _solve(sums: Sequence[NDArray], camera: Matrix, u: NDArray, v: NDArray) -> Planes:
    """Regression of w on pixel offsets (du, dv) by the sums of 1, du, dv, du^2, du dv, dv^2, w, du w and dv w.

    ``u``, ``v``: of the window's centre from the principal point, as large as the sums. Returns the planes times the
    determinant, which is positive: the caller normalises. Works in the memory of ``sums``, which a cache then holds.
    """
    count, su, sv, uu, uv, vv, w, uw, vw = sums
    np.maximum(count, 1, out=count)
    mean_u, mean_v = su / count, sv / count
    spare = np.empty_like(w)
    for of_square, of_a, mean in (
        (uu, su, mean_u),
        (uv, su, mean_v),
        (vv, sv, mean_v),
        (uw, w, mean_u),
        (vw, w, mean_v),
    ):
        of_square -= np.multiply(of_a, mean, out=spare)
    product = np.multiply(uu, vv, out=su)
    determinant = np.subtract(product, np.multiply(uv, uv, out=spare), out=sv)
    vv *= uw
    vv -= np.multiply(uv, vw, out=spare)
    uu *= vw
    uu -= np.multiply(uv, uw, out=spare)
    w /= count
    w *= determinant
    mean_u += u
    w -= np.multiply(vv, mean_u, out=spare)
    mean_v += v
    w -= np.multiply(uu, mean_v, out=spare)
    vv *= w.dtype.type(camera[0, 0])
    uu *= w.dtype.type(camera[1, 1])
    product *= w.dtype.type(_SINGULAR)
    return Planes(vv, uu, w, determinant > product)


def _unit(plane: Planes, x: Floats, y: Floats) -> Floats:
    """Unit normals ``[..., 3]`` against the ray (x, y, 1) of each pixel."""
    away = plane.x * x + plane.y * y + plane.z
    length = np.sqrt(plane.x * plane.x + plane.y * plane.y + plane.z * plane.z)
    scale = np.where(away > 0, -1, 1) / np.where(plane.found, length, np.inf)
    return np.stack([plane.x * scale, plane.y * scale, plane.z * scale], axis=-1).astype(np.float32)


def _window(a: NDArray, radius: int, step: int, orders: int) -> list[NDArray]:
    """``sum d^k a[i + d step]`` over d = -radius..radius, for k = 0 .. orders - 1; shorter by both margins.

    Additions of nested runs: those that begin with the window weigh its pixels radius, radius - 1, .., those that
    end with it likewise from the other side, and sums of such sums make squares.
    """
    size = len(a) - 2 * radius * step

    def at(run: NDArray, d: int) -> NDArray:
        return run[(radius + d) * step : (radius + d) * step + size]

    run = a
    left, right = at(a, -radius).copy(), at(a, radius).copy()
    left_twice, right_twice = (left.copy(), right.copy()) if orders > 2 else (left, right)
    for length in range(2, radius + 1):
        run = run[: len(run) - step] + a[(length - 1) * step :]
        if orders > 1:
            left += at(run, -radius)
            right += at(run, radius - length + 1)
        if orders > 2:
            left_twice += left
            right_twice += right
    total = at(run, -radius) + at(run, 1)
    total += at(a, 0)
    if orders > 2:
        left_twice += right_twice
        left_twice += left_twice
        left_twice -= left
        left_twice -= right
    right -= left
    return [total, right, left_twice][:orders]


def _counter(radius: int) -> np.dtype:
    """The narrowest integer whose unsigned kin holds the largest sum, that of d^2; sums before it may wrap."""
    largest = (2 * radius + 1) * radius * (radius + 1) * (2 * radius + 1) // 3
    return np.dtype("i1" if largest < 2**8 else "i2" if largest < 2**15 else "i4")


def _unsigned_squares(counts: list[NDArray]) -> list[NDArray]:
    """Sums of 1, du, du^2, dv, du dv, dv^2 with those of squares unsigned, which they may need all bits for."""
    unsigned = np.dtype(f"u{counts[0].itemsize}")
    return [a.view(unsigned) if k in (2, 5) else a for k, a in enumerate(counts)]


def _padded(a: NDArray, rows: slice, radius: int) -> NDArray:
    """Those rows and ``radius`` beyond on either side, flat, with ``radius`` zeros before, between and after them.

    Rows past the border are zeros.
    """
    height, width = a.shape
    size = rows.stop - rows.start + 2 * radius
    out = np.zeros(size * (width + radius) + 2 * radius, a.dtype)
    inner = out[radius : len(out) - radius].reshape(size, width + radius)
    top, bottom = max(0, rows.start - radius), min(height, rows.stop + radius)
    start = top - rows.start + radius
    inner[start : start + bottom - top, :width] = a[top:bottom]
    return out


def _grid_sums(a: Floats, at: NDArray, radius: int, orders: int) -> Floats:
    """``sum d^k a[..., i + d, :]`` over |d| <= radius for i in ``at``, k < orders: ``[orders, ..., len(at), W]``."""
    size = 2 * radius + 1
    padded = np.pad(a, [(0, 0)] * (a.ndim - 2) + [(radius, radius), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=-2)
    step = int(at[1] - at[0]) if len(at) > 1 else 1
    chosen = windows[..., at[0] : at[-1] + 1 : step, :, :].swapaxes(-1, -2)  # [..., len(at), size, W]
    d = np.arange(-radius, radius + 1, dtype=np.float32)
    return np.moveaxis(np.stack([d**k for k in range(orders)]) @ chosen, -2, 0)


# Which way is up, from the normals of a scene.


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
        frame = manhattan(normals, frame_around(down))
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


def frame_around(down: Vector) -> NDArray[np.float64]:
    """A right-handed frame with ``down`` as its second axis; the first lies in the picture's plane where it can."""
    side = np.cross(down, [0.0, 0.0, 1.0])
    if np.linalg.norm(side) < 1e-6:
        side = np.array([1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    return np.stack([side, down, np.cross(side, down)])
