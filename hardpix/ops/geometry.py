"""Surface normals from depth: a plane fitted in inverse depth to the window around each pixel.

Camera frame: x right, y down, z forward; metres. The first pixel's centre is (0, 0), and a camera is its ``[3, 3]``
matrix in pixels. A plane ``n . P = 1`` is ``n . a = 1 / Z`` with ``a = (X / Z, Y / Z, 1)``, linear in the pixel, so
the normal equations ``(sum a a^T) n = sum a / Z`` over the valid pixels of a window (Gupta et al. 2014) are those of
a regression of inverse depth on the pixel's coordinates. They are solved in coordinates around the window's centre:
there the sums over ``a a^T`` are small integers, exact in any type, and nothing cancels in float32.

Everything is NumPy, and runs over blocks of rows that fit into a processor's cache, each a flat array whose rows
are ``radius`` zeros apart: a step to the side never reaches another row's pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Matrix = NDArray[np.float64]

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


def rays(shape: tuple[int, ...], camera: Matrix) -> tuple[Floats, Floats]:
    """X / Z of each column ``[W]`` and Y / Z of each row ``[H]`` of a picture of ``shape``."""
    height, width = shape
    x = (np.arange(width) - camera[0, 2]) / camera[0, 0]
    y = (np.arange(height) - camera[1, 2]) / camera[1, 1]
    return x.astype(np.float32), y.astype(np.float32)


def usable(depth: Floats, valid: Bools) -> Bools:
    """Pixels that are ``valid`` and whose depth is positive and finite."""
    return valid & (depth > 0) & (depth < np.inf)


def plane_normals(depth: Floats, valid: Bools, camera: Matrix, radius: int) -> tuple[Floats, Bools]:
    """Unit normals ``[H, W, 3]`` that face the camera (n . P < 0), and the pixels ``[H, W]`` that have one.

    A pixel has one if it is valid itself and the valid pixels of its window of ``2 radius + 1`` rows and columns,
    cut off at the image's border, do not all lie on one line. Elsewhere the normal is 0.
    """
    valid = usable(depth, valid)
    normal, found = np.zeros((*depth.shape, 3), np.float32), np.zeros(depth.shape, bool)
    x, y = rays(depth.shape, camera)
    for rows, plane in fitted_planes(inverse_depth(depth, valid), valid, camera, radius):
        found[rows] = plane.found & valid[rows]
        normal[rows] = _unit(plane, x, y[rows, None]) * found[rows][..., None]
    return normal, found


def grid_normals(depth: Floats, valid: Bools, camera: Matrix, radius: int, step: int) -> tuple[Floats, Bools]:
    """:func:`plane_normals` at every ``step``-th row and column: ``[h, w, 3]`` and ``[h, w]``."""
    valid = usable(depth, valid)
    inverse = inverse_depth(depth, valid)
    rows, columns = (np.arange((min(step, size) - 1) // 2, size, step) for size in depth.shape)
    vertical = [
        _grid_sums(array, rows, radius, orders)
        for array, orders in ((valid.astype(np.float32), 3), (inverse, 2))
    ]
    mask, weighted = (_grid_sums(np.swapaxes(sums, 1, 2), columns, radius, len(sums)) for sums in vertical)
    # [order across, order down, column, row]
    sums = [
        mask[across, down].T.astype(np.float64)
        for across, down in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
    ]
    sums += [weighted[across, down].T.astype(np.float64) for across, down in ((0, 0), (1, 0), (0, 1))]
    plane = _solve(*sums, camera=camera, u=columns, v=rows[:, None])
    x, y = rays(depth.shape, camera)
    found = plane.found & valid[np.ix_(rows, columns)]
    normal = _unit(plane, x[columns], y[rows, None])
    normal[~found] = 0
    return normal, found


def inverse_depth(depth: Floats, valid: Bools) -> Floats:
    """1 / Z, 0 where ``valid`` is False."""
    return np.float32(1) / np.where(valid, depth, np.float32(np.inf))


def fitted_planes(
    inverse: Floats, valid: Bools, camera: Matrix, radius: int
) -> Iterator[tuple[slice, Planes]]:
    """The plane of every pixel's window, a block of rows at a time; what is yielded first says which rows.

    ``inverse`` ``[H, W]`` is 0 where ``valid`` is False. The planes' values are float32 up to radius 6.
    """
    height, width = inverse.shape
    stride, narrow, real = width + radius, _counter(radius), np.float32 if radius <= 6 else np.float64
    block = max(1, _BLOCK // stride)
    for top in range(0, height, block):
        rows = slice(top, min(top + block, height))
        mask = _padded(valid, rows, radius, narrow)
        total, first, second = _window(mask, radius, stride, 3)
        count, su, suu = _window(_ends(total, radius), radius, 1, 3)
        sv, suv = _window(_ends(first, radius), radius, 1, 2)
        (svv,) = _window(_ends(second, radius), radius, 1, 1)
        total, first = _window(_padded(inverse, rows, radius, np.dtype(real)), radius, stride, 2)
        w, uw = _window(_ends(total, radius), radius, 1, 2)
        (vw,) = _window(_ends(first, radius), radius, 1, 1)
        unsigned = np.dtype(f"u{narrow}")
        counts = (count, su, sv, suu.view(unsigned), suv, svv.view(unsigned))
        sums = [a.astype(real).reshape(-1, stride)[:, :width] for a in counts]
        sums += [a.reshape(-1, stride)[:, :width] for a in (w, uw, vw)]
        yield (
            rows,
            _solve(*sums, camera=camera, u=np.arange(width), v=np.arange(rows.start, rows.stop)[:, None]),
        )


def _solve(
    count: NDArray, su: NDArray, sv: NDArray, suu: NDArray, suv: NDArray, svv: NDArray,
    w: NDArray, uw: NDArray, vw: NDArray, *, camera: Matrix, u: NDArray, v: NDArray,
) -> Planes:  # fmt: skip
    """Regression of w on pixel offsets (du, dv) from (u, v), by the sums of 1, du, dv, du^2, du dv, dv^2, w, ...

    Returns the planes times ``count`` times the determinant, which is positive: the caller normalises.
    """
    uu, uv, vv = count * suu - su * su, count * suv - su * sv, count * svv - sv * sv
    wu, wv = count * uw - su * w, count * vw - sv * w
    determinant = uu * vv - uv * uv  # of integers; 0 if and only if all pixels lie on a line
    slope_u, slope_v = vv * wu - uv * wv, uu * wv - uv * wu
    z = w * determinant - slope_u * su - slope_v * sv
    slope_u, slope_v = count * slope_u, count * slope_v
    real = w.dtype.type
    z -= slope_u * (u - camera[0, 2]).astype(real)
    z -= slope_v * (v - camera[1, 2]).astype(real)
    return Planes(slope_u * real(camera[0, 0]), slope_v * real(camera[1, 1]), z, determinant > 0.5)


def _unit(plane: Planes, x: Floats, y: Floats) -> Floats:
    """Unit normals ``[..., 3]`` against the ray (x, y, 1) of each pixel."""
    away = plane.x * x + plane.y * y + plane.z
    length = np.sqrt(plane.x * plane.x + plane.y * plane.y + plane.z * plane.z)
    scale = np.where(away > 0, -1, 1) / np.where(plane.found, length, np.inf)
    return np.stack([plane.x * scale, plane.y * scale, plane.z * scale], axis=-1).astype(np.float32)


def _window(a: NDArray, radius: int, step: int, orders: int) -> list[NDArray]:
    """``sum d^k a[i + d step]`` over d = -radius..radius, for k = 0 .. orders - 1; shorter by both margins.

    Only additions: weights d and d^2 are sums over nested windows.
    """
    size = len(a) - 2 * radius * step

    def at(d: int) -> NDArray:
        return a[(radius + d) * step : (radius + d) * step + size]

    pairs = gaps = first = odd = second = np.zeros((), a.dtype)
    for d in range(radius, 0, -1):
        pairs = at(d) + at(-d) + pairs if d < radius else at(d) + at(-d)
        if orders > 1:
            gap = at(d) - at(-d)
            gaps = gaps + gap if d < radius else gap
            first = first + gaps if d < radius else gap
        if orders > 2:
            odd = odd + pairs  # sum of (d - k + 1) a over d >= k
            second = second + odd
    return [at(0) + pairs, first, second + second - odd][:orders]


def _counter(radius: int) -> np.dtype:
    """The narrowest integer whose unsigned kin holds the largest sum, that of d^2; sums before it may wrap."""
    largest = (2 * radius + 1) * radius * (radius + 1) * (2 * radius + 1) // 3
    return np.dtype("i1" if largest < 2**8 else "i2" if largest < 2**15 else "i4")


def _padded(a: NDArray, rows: slice, radius: int, dtype: np.dtype) -> NDArray:
    """Those rows and ``radius`` beyond on either side, flat, ``radius`` zeros after each, zeros past the border."""
    height, width = a.shape
    out = np.zeros((rows.stop - rows.start + 2 * radius, width + radius), dtype)
    top, bottom = max(0, rows.start - radius), min(height, rows.stop + radius)
    start = top - rows.start + radius
    out[start : start + bottom - top, :width] = a[top:bottom]
    return out.ravel()


def _ends(a: NDArray, radius: int) -> NDArray:
    zeros = np.zeros(radius, a.dtype)
    return np.concatenate([zeros, a, zeros])


def _grid_sums(a: NDArray, at: NDArray[np.int64], radius: int, orders: int) -> NDArray[Any]:
    """``sum d^k a[..., i + d, :]`` for the grid's i and k < orders: ``[orders, ..., len(at), W]``."""
    margin = [(0, 0)] * (a.ndim - 2) + [(radius, radius), (0, 0)]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(a, margin), 2 * radius + 1, axis=-2)
    d = np.arange(-radius, radius + 1, dtype=a.dtype)
    kernel = np.stack([d**k for k in range(orders)])
    chosen = windows[..., at, :, :]
    return np.stack([chosen @ k for k in kernel])
