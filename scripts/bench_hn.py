"""Labels of height and normal beside the usual estimate of normals alone: ``python scripts/bench_hn.py``.

On one room with Kinect-like depth, already decoded; both sides of each run in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from bench_numeric import Row, medians, row
from numpy.typing import NDArray

from hardpix.data.synthetic.rooms import SyntheticFrame, render
from hardpix.ops.geometry import points
from hardpix.ops.quantize import HNLabel, hn_label

EDGES = tuple(0.25 * k for k in range(10))


def rows(repeats: int = 15) -> list[Row]:
    return [*against_pca(max(3, repeats // 5)), *sizes(repeats)]


def against_pca(repeats: int) -> Iterator[Row]:
    frame = room(480)
    ours, reference = medians(repeats, partial(label, frame), partial(pca_normals, frame))
    name = f"HN label, 480x640 ({1000 / ours:.0f} frames/s) / normals by PCA of 7x7 windows"
    yield row(name, ours, reference, "<= 8 ms, <= 0.03 x")


def sizes(repeats: int) -> Iterator[Row]:
    """Time per pixel at twice the height and width."""
    small, usual, large = medians(repeats, *(partial(label, room(height)) for height in (240, 480, 960)))
    yield row("HN label, 480x640 / four of 240x320", usual, 4 * small, "<= 1.25 x")
    yield row("HN label, 960x1280 / four of 480x640", large, 4 * usual, "<= 1.25 x")


def room(height: int) -> SyntheticFrame:
    return render(0, "train", 3, height=height, width=height * 4 // 3, difficulty=0.3, kinect=True)


def label(frame: SyntheticFrame) -> HNLabel:
    settings = {
        "radius": 3,
        "gravity_radius": 10,
        "up_method": "gravity",
        "height_edges": EDGES,
        "normals": 2,
    }
    return hn_label(frame.depth, frame.valid, frame.K, **settings)


def pca_normals(frame: SyntheticFrame, radius: int = 3) -> NDArray:
    """The least eigenvector of the covariance of each window's points ``[H, W, 3]``, by integral images."""
    valid = frame.valid.astype(np.float64)
    cloud = points(frame.depth, frame.K).astype(np.float64) * valid[..., None]
    products = cloud[..., :, None] * cloud[..., None, :]
    count = np.maximum(box(valid, radius), 1)
    mean = box(cloud, radius) / count[..., None]
    covariance = box(products, radius) / count[..., None, None] - mean[..., :, None] * mean[..., None, :]
    return np.linalg.eigh(covariance)[1][..., 0]


def box(a: NDArray, radius: int) -> NDArray:
    """Sums over windows of ``2 radius + 1`` rows and columns, cut off at the border."""
    size = 2 * radius + 1
    whole = np.pad(a, [(radius + 1, radius)] * 2 + [(0, 0)] * (a.ndim - 2)).cumsum(0).cumsum(1)
    return whole[size:, size:] - whole[:-size, size:] - whole[size:, :-size] + whole[:-size, :-size]


if __name__ == "__main__":
    for r in rows():
        print(
            f"{r['name']:74} {r['ours']:8.2f} {r['reference']:8.2f} {r['unit']}  {r['ratio']:6.4f} x  {r['goal']}"
        )
