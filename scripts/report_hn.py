"""How right the labels of height and normal are: ``python scripts/report_hn.py [--data FOLDER]``.

Synthetic rooms know their normals, up and heights. NYUv2 has published rotations that align each frame with its room,
and labelled floors that a plane can be fitted to. 7-Scenes has poses: one surface must have one label in two views.
Sets that FOLDER (or HARDPIX_DATA) does not hold are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from hardpix.data import NYUv2, RGBDFolder
from hardpix.data.synthetic.rooms import render
from hardpix.ops.geometry import grid_normals, inverse_depth, plane_normals, points, up_direction
from hardpix.ops.quantize import GRID, HNLabel, heights, hn_label

EDGES = tuple(0.25 * k for k in range(10))
BORDER = (45, 470, 41, 601)  # of NYUv2: what is not in-painted
DEPTH = frozenset({"depth", "depth_valid"})
FLOOR = 1  # class of NYUv2
METHODS = ("gravity", "manhattan")
Frame = tuple[NDArray, NDArray, NDArray]  # depth, valid, camera


def label(frame: Frame, up_method: str = "gravity", radius: int = 3) -> HNLabel:
    return hn_label(
        *frame, radius=radius, gravity_radius=10, up_method=up_method, height_edges=EDGES, normals=2
    )


def degrees(a: NDArray, b: NDArray) -> NDArray:
    """Angle between unit vectors ``[..., 3]``."""
    return np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2, 0, 1)))


def spread(values: list[float]) -> list[str]:
    """Median, 90th and 95th percentile, maximum."""
    found = [v for v in values if np.isfinite(v)]
    return [f"{np.percentile(found, q):.2f}" for q in (50, 90, 95, 100)] if found else ["-"] * 4


def table(title: str, *headings: str) -> Table:
    out = Table(title=title)
    for k, heading in enumerate(headings):
        out.add_column(heading, justify="left" if k == 0 else "right", no_wrap=True)
    return out


def synthetic(rooms: int) -> Iterator[Table]:
    out = table(f"{rooms} synthetic rooms, 480x640", "depth", "normal error, median", "p90", "up error, median", "max",
                "right labels", "right heights", "rejected")  # fmt: skip
    angles = table(
        "normals of other libraries", "depth", "library", "normal error, median", "p90", "have one"
    )
    for kinect in (False, True):
        normal_errors, ups, right, high, rejected = [], [], [], [], 0
        theirs: dict[str, list[NDArray]] = {}
        for index in range(rooms):
            f = render(0, "train", index, height=480, width=640, difficulty=0.3, kinect=kinect)
            frame = (f.depth.astype(np.float32), f.valid, f.K.astype(np.float64))
            for name, estimate in {"hardpix, radius 3": ours, **libraries()}.items():
                normal, found = estimate(*frame)
                theirs.setdefault(name, []).append(
                    np.where(found, degrees(normal, f.normal), np.nan)[f.valid]
                )
            got = label(frame)
            ups.append(float(degrees(got.up, f.up)))
            rejected += got.rejected is not None
            if got.rejected is None:
                kept = got.label != 255
                exact = exact_label(f)
                right.append(float((got.label == exact)[kept].mean()))
                high.append(float((got.label % 10 == exact % 10)[kept].mean()))
        name = "Kinect-like" if kinect else "exact"
        for library, errors in theirs.items():
            every = np.concatenate(errors)
            some = every[np.isfinite(every)]
            shown = (
                f"{np.median(some):.2f}",
                f"{np.percentile(some, 90):.2f}",
                f"{len(some) / len(every):.3f}",
            )
            angles.add_row(name, library, *shown)
            if library.startswith("hardpix"):
                normal_errors = list(shown[:2])
        out.add_row(name, *normal_errors, f"{np.median(ups):.2f}", f"{max(ups):.2f}", f"{np.mean(right):.3f}",
                    f"{np.mean(high):.3f}", f"{rejected}")  # fmt: skip
    yield out
    yield angles


def exact_label(frame: Any) -> NDArray:
    """The label of a synthetic frame's exact normals and heights."""
    vertical = np.abs(frame.normal @ frame.up) <= np.sqrt(0.5)
    return np.minimum(np.floor(frame.height / 0.25), 9).astype(int) + 10 * vertical


def ours(depth: NDArray, valid: NDArray, camera: NDArray) -> tuple[NDArray, NDArray]:
    return plane_normals(depth, valid, camera, 3)


def libraries() -> dict[str, Callable[..., tuple[NDArray, NDArray]]]:
    """Normals of OpenCV's contributed module and of Open3D, where they are installed."""
    found: dict[str, Callable[..., tuple[NDArray, NDArray]]] = {}
    if importlib.util.find_spec("cv2"):
        import cv2

        create = getattr(cv2, "RgbdNormals_create", None) or getattr(
            getattr(cv2, "rgbd", None), "RgbdNormals_create", None
        )
        if create:
            for name in ("FALS", "SRI"):
                found[f"OpenCV {name}, window 7"] = opencv(cv2, create, name)
    if importlib.util.find_spec("open3d"):
        found["Open3D, radius 0.1 m, 30 points"] = open3d
    return found


def opencv(cv2: Any, create: Any, name: str) -> Callable[..., tuple[NDArray, NDArray]]:
    methods = {"FALS": 0, "SRI": 2}
    known: dict[tuple, Any] = {}

    def estimate(depth: NDArray, valid: NDArray, camera: NDArray) -> tuple[NDArray, NDArray]:
        key = (depth.shape, camera.tobytes())
        if key not in known:
            known[key] = create(*depth.shape, cv2.CV_32F, camera.astype(np.float32), 7, 50.0, methods[name])
        cloud = points(np.where(valid, depth, np.float32(np.nan)), camera)
        four = np.concatenate([cloud, np.zeros_like(cloud[..., :1])], -1)
        return facing(np.asarray(known[key].apply(four))[..., :3], cloud)

    return estimate


def open3d(depth: NDArray, valid: NDArray, camera: NDArray) -> tuple[NDArray, NDArray]:
    import open3d as o3d

    cloud = points(depth, camera)
    known = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(cloud[valid].astype(np.float64)))
    known.estimate_normals(o3d.geometry.KDTreeSearchParamHybrid(radius=0.1, max_nn=30))
    normal = np.full(cloud.shape, np.nan)
    normal[valid] = np.asarray(known.normals)
    return facing(normal, cloud)


def facing(normal: NDArray, cloud: NDArray) -> tuple[NDArray, NDArray]:
    """Turned to the camera, and which pixels have one."""
    towards = -np.sign((normal * cloud).sum(-1, keepdims=True))
    return normal * towards, np.isfinite(normal).all(-1) & (np.linalg.norm(normal, axis=-1) > 0.5)


def nyuv2(root: Path, every: int) -> Iterator[Table]:
    """Frames with their border and without, as it is in-painted."""
    rotation = np.loadtxt(root / "camera_rotations_NYU.txt").reshape(-1, 3, 3)
    to_public, to_plane, kept = ({} for _ in range(3))
    for border in (None, BORDER):
        source = NYUv2(str(root), void_40_in_train="ignore", border_crop=border)
        for split in ("train", "test"):
            frames = source.frames(split, DEPTH | {"image", "label"})
            for index in range(0, len(frames), every):
                sample = frames.load(index)
                frame = (sample["depth"].numpy(), sample["depth_valid"].numpy(), frames.intrinsics(index))
                floor = (sample["label"] == FLOOR).numpy() & frame[1]
                plane = fitted_up(points(frame[0], frame[2])[floor]) if floor.mean() > 0.05 else None
                x, forward, y = rotation[int(sample["name"]) - 1] @ [0, 0, -1]
                public = np.array([x, y, forward])
                for method in METHODS:
                    got = label(frame, method)
                    key = (method, "whole frame" if border is None else "without border")
                    to_public.setdefault(key, []).append(float(degrees(got.up, public)))
                    kept.setdefault(key, []).append((got.rejected is None, floor.mean()))
                    if plane is not None:
                        to_plane.setdefault(key, []).append(float(degrees(got.up, plane)))
                if border and plane is not None:
                    to_plane.setdefault(("public rotations", ""), []).append(float(degrees(public, plane)))
                if border:
                    straight = float(degrees(np.array([0, -1.0, 0]), public))
                    to_public.setdefault(("camera's own up", ""), []).append(straight)
    out = table(
        "NYUv2: degrees from up by the public rotations",
        "up",
        "frames",
        "median",
        "p90",
        "p95",
        "max",
        "< 5 degrees",
    )
    for key, values in to_public.items():
        out.add_row(" ".join(key), str(len(values)), *spread(values), f"{np.mean(np.array(values) < 5):.3f}")
    yield out
    out = table("NYUv2: degrees from a plane fitted to the labelled floor (above 5 % of the pixels)", "up", "frames",
                "median", "p90", "p95", "max", "< 5 degrees")  # fmt: skip
    for key, values in to_plane.items():
        out.add_row(" ".join(key), str(len(values)), *spread(values), f"{np.mean(np.array(values) < 5):.3f}")
    yield out
    shares = ((0, 0.0005), (0.0005, 0.01), (0.01, 0.05), (0.05, 1.01))
    out = table("NYUv2: share of frames kept, by the floor's share of the labels", "up", "all",
                *(f"{low:.2%} to {min(high, 1):.2%}" for low, high in shares))  # fmt: skip
    for key, found in kept.items():
        ok, floors = np.array(found).T
        cells = [ok[(floors >= low) & (floors < high)] for low, high in shares]
        out.add_row(
            " ".join(key),
            f"{ok.mean():.3f}",
            *(f"{c.mean():.3f} of {len(c)}" if len(c) else "-" for c in cells),
        )
    yield out


def fitted_up(cloud: NDArray) -> NDArray:
    """The upward normal of the plane through most of ``cloud`` [n, 3] (iteratively reweighted least squares)."""
    cloud, weight = cloud.astype(np.float64), np.ones(len(cloud))
    for _ in range(20):
        centred = cloud - np.average(cloud, axis=0, weights=weight)
        normal = np.linalg.eigh((centred * weight[:, None]).T @ centred)[1][:, 0]
        weight = 1 / np.maximum(np.abs(centred @ normal), 0.01)
    return -normal * np.sign(normal[1])


def seven_scenes(root: Path, every: int) -> Iterator[Table]:
    """Every pair of frames of which one sees at least a tenth of the other."""
    frames = RGBDFolder(str(root), layout="7scenes").frames("test", DEPTH | {"image"})
    poses = [np.loadtxt(root / f"{frames.name(i).split('__')[-1]}.pose.txt") for i in range(len(frames))]
    out = table("7-Scenes: pixels with one label in two views", "up", "pairs", "rejected", "same label", "same kind",
                "same height", "heights differ, median (m)", "p95", "ups differ, median (degrees)", "max")  # fmt: skip
    loaded = []
    for i in range(0, len(frames), every):
        sample = frames.load(i)
        loaded.append(
            ((sample["depth"].numpy(), sample["depth_valid"].numpy(), frames.intrinsics(i)), poses[i])
        )
    for method in METHODS:
        labels = [label(frame, method) for frame, _ in loaded]
        same, ups = [], []
        good = [i for i, got in enumerate(labels) if got.rejected is None]
        for i, j in itertools.permutations(good, 2):
            here, there = seen_in(loaded[i], loaded[j])
            if here.sum() < 0.1 * here.size:
                continue
            one, other = labels[i].label[here], labels[j].label[there]
            ok = (one != 255) & (other != 255)
            high = [
                heights(f[0], f[2], got.up) - got.floor
                for (f, _), got in ((loaded[i], labels[i]), (loaded[j], labels[j]))
            ]
            gap = np.abs(high[0][here] - high[1][there])
            agree = (one == other, one // 10 == other // 10, one % 10 == other % 10)
            same.append(
                [*(float(a[ok].mean()) for a in agree), float(np.median(gap)), float(np.percentile(gap, 95))]
            )
            ups.append(
                float(degrees(loaded[i][1][:3, :3] @ labels[i].up, loaded[j][1][:3, :3] @ labels[j].up))
            )
        means = [f"{m:.3f}" for m in np.mean(same, axis=0)] if same else ["-"] * 5
        angles = [f"{np.median(ups):.2f}", f"{max(ups):.2f}"] if ups else ["-"] * 2
        out.add_row(method, str(len(same)), f"{len(labels) - len(good)} of {len(labels)}", *means, *angles)
    yield out


def seen_in(
    one: tuple[Frame, NDArray], other: tuple[Frame, NDArray]
) -> tuple[NDArray, tuple[NDArray, NDArray]]:
    """Pixels ``[H, W]`` of one frame whose surface another one sees within 5 cm, and its rows and columns there."""
    (depth, valid, camera), pose = one
    (far, far_valid, far_camera), far_pose = other
    move = np.linalg.inv(far_pose) @ pose
    cloud = points(depth, camera) @ move[:3, :3].T + move[:3, 3]
    z = np.where(cloud[..., 2] > 0.1, cloud[..., 2], np.inf)
    u = np.rint(far_camera[0, 0] * cloud[..., 0] / z + far_camera[0, 2]).astype(int)
    v = np.rint(far_camera[1, 1] * cloud[..., 1] / z + far_camera[1, 2]).astype(int)
    here = valid & np.isfinite(z) & (u >= 0) & (u < far.shape[1]) & (v >= 0) & (v < far.shape[0])
    v, u = np.where(here, v, 0), np.where(here, u, 0)
    here &= far_valid[v, u] & (np.abs(far[v, u] - z) < 0.05)
    return here, (v[here], u[here])


def grid_steps(rooms: int) -> Iterator[Table]:
    """What the coarser grid of normals costs gravity."""
    out = table(
        "Kinect-like rooms: up error by the grid of normals",
        "pixels between normals",
        "median",
        "p90",
        "p95",
        "max",
    )
    frames = [render(0, "train", i, height=480, width=640, difficulty=0.3, kinect=True) for i in range(rooms)]
    for step in (1, 4, GRID, 16):
        errors = []
        for f in frames:
            normal, found = grid_normals(
                inverse_depth(f.depth.astype(np.float32), f.valid), f.K.astype(float), 10, step
            )
            errors.append(float(degrees(up_direction(normal[found], "gravity"), f.up)))
        out.add_row(str(step), *spread(errors))
    yield out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("HARDPIX_DATA", "data")), metavar="FOLDER"
    )
    parser.add_argument("--rooms", type=int, default=20, help="synthetic rooms")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th real frame")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    parts = [synthetic(arguments.rooms), grid_steps(arguments.rooms)]
    nyu, scenes = arguments.data / "nyudv2", sorted(arguments.data.glob("7scenes/*/camera-intrinsics.txt"))
    parts += [nyuv2(nyu, arguments.every)] if nyu.is_dir() else []
    parts += [seven_scenes(path.parent, arguments.every) for path in scenes]
    for shown in itertools.chain.from_iterable(parts):
        console.print(shown)


if __name__ == "__main__":
    main()
