"""Frames of RGB-D cameras without labels: to predict on, and to compute geometry from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardpix.config.schema import Positive, checked
from hardpix.data.classes import read_text
from hardpix.data.files import NO_READING, FileSource, FrameFiles, existing_root, has_reading, missing_values
from hardpix.data.images import SUFFIXES
from hardpix.data.labels import LabelCode
from hardpix.data.listing import files_below, list_images
from hardpix.data.source import depth_policy
from hardpix.types import ConfigError, DataError, DatasetInfo

LAYOUTS = ("7scenes", "tum", "open3d")
COUNTS_PER_METRE = {"7scenes": 1000, "tum": 5000, "open3d": 1000}
MAX_GAP = 0.02  # seconds between the picture and the depth of a frame, as TUM's own tool has it


class RGBDFolder(FileSource):
    """Pictures with 16-bit depth of the same size and a camera, no labels; every split is all of ``root``.

    layout::

        7scenes    [*/]frame-*.color.{png,jpg}, frame-*.depth.png (millimetres), camera-intrinsics.txt next to them
        tum        rgb.txt, depth.txt (time stamp, file); 5000 = 1 m; a picture takes the depth nearest in time
        open3d     color/X.{jpg,png}, depth/X.png (millimetres), camera*.json with the matrix column after column

    The frames of 7-Scenes are as recorded: depth lies some pixels off the
    picture, and the matrix is that of the depth camera.

    intrinsics: ``[fx, fy, cx, cy]`` in pixels where the layout has no file of it.
    depth_max: metres; the fixed range of the methods that need one.
    depth_missing_values: numbers of the depth files that are no reading, 0 among them.
    depth_missing: see :func:`hardpix.data.source.depth_policy`.
    """

    @checked
    def __init__(
        self,
        root: str,
        *,
        layout: Literal["7scenes", "tum", "open3d"],
        intrinsics: Sequence[float] | None = None,
        depth_max: Positive = 10.0,
        depth_missing_values: Sequence[float] = NO_READING,
        depth_missing: str = "error",
    ) -> None:
        if layout not in LAYOUTS:
            raise ConfigError(f"data.source.layout is '{layout}'; it must be one of {', '.join(LAYOUTS)}")
        if intrinsics is not None and (len(intrinsics) != 4 or min(intrinsics[:2]) <= 0):
            raise ConfigError(
                f"data.source.intrinsics is {list(intrinsics)}; it must be [fx, fy, cx, cy] in pixels"
            )
        self.root, self._layout = Path(root), layout
        self._missing = missing_values(depth_missing_values)
        self.depth_missing = depth_policy(depth_missing)
        self.camera = None if intrinsics is None else camera_matrix(*intrinsics)
        cameras = sorted(self.root.glob("camera*.json")) if layout == "open3d" else []
        if self.camera is None and cameras:
            self.camera = read_open3d_camera(cameras[0])
        self.info = DatasetInfo(
            name="rgbd",
            classes=(),
            palette=(),
            depth_max=depth_max,
            provides=frozenset({"image", "depth", "depth_valid"}),
        )

    def files(self, split: str) -> list[FrameFiles]:
        existing_root(self.root, "RGB-D frames")
        if self._layout == "tum":
            return self._tum()
        if self._layout == "open3d":
            images = list_images(self.root / "color")
            return [FrameFiles(p.stem, p, depth=self.root / "depth" / f"{p.stem}.png") for p in images]
        images = [p for p in list_images(self.root) if p.stem.endswith(".color")]
        if not images:
            raise DataError(
                f"{self.root}: no frame-*.color.png or .jpg in it; is data.source.layout=7scenes right?"
            )
        return [self._seven_scenes(p) for p in images]

    def image_files(self, split: str) -> list[Path]:
        """Of 7-Scenes the pictures alone: poses and the camera lie among them."""
        if self._layout == "7scenes":
            return [path for path in files_below(self.root) if path.suffix.lower() in SUFFIXES]
        return [] if self._layout == "tum" else files_below(self.root / "color")

    def label_reader(self, split: str) -> LabelCode:
        """There are no labels: every value would be void."""
        return LabelCode({0: self.info.ignore_index}, self.info.ignore_index)

    def depth_code(self, raw: NDArray, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        if raw.dtype != np.uint16:
            raise DataError(f"{path}: {8 * raw.itemsize} bits; depth of layout {self._layout} has 16")
        return raw.astype(np.float32) / np.float32(COUNTS_PER_METRE[self._layout]), has_reading(
            raw, self._missing
        )

    def _seven_scenes(self, image: Path) -> FrameFiles:
        stem = image.name.removesuffix(image.suffix).removesuffix(".color")
        camera = image.parent / "camera-intrinsics.txt"
        name = "__".join((*image.parent.relative_to(self.root).parts, stem))
        own = camera if self.camera is None and camera.is_file() else None
        return FrameFiles(name, image, depth=image.with_name(f"{stem}.depth.png"), camera=own)

    def _tum(self) -> list[FrameFiles]:
        colours, depths = (read_stamps(self.root / name) for name in ("rgb.txt", "depth.txt"))
        pairs = associate([t for t, _ in colours], [t for t, _ in depths])
        if not pairs:
            raise DataError(f"{self.root}: no picture of rgb.txt has a depth within {MAX_GAP} s in depth.txt")
        return [
            FrameFiles(Path(colours[i][1]).stem, self.root / colours[i][1], depth=self.root / depths[j][1])
            for i, j in pairs
        ]


def camera_matrix(fx: float, fy: float, cx: float, cy: float) -> NDArray[np.float64]:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float64)


def read_open3d_camera(path: Path) -> NDArray[np.float64]:
    """The matrix of an Open3D ``PinholeCameraIntrinsic``: nine numbers, column after column."""
    try:
        numbers = np.array(json.loads(path.read_text(encoding="utf-8"))["intrinsic_matrix"], dtype=np.float64)
        matrix = numbers.reshape(3, 3).T
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path}: no camera of Open3D ({error}); it must hold nine numbers, intrinsic_matrix"
        ) from None
    if matrix[2].tolist() != [0, 0, 1] or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise DataError(f"{path}: intrinsic_matrix must be fx 0 0, 0 fy 0, cx cy 1, column after column")
    return matrix


def read_stamps(path: Path) -> list[tuple[float, str]]:
    """Time stamps in seconds and file names of a list of TUM RGB-D; # begins a comment."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; it must list a time stamp and a file a line")
    stamps = []
    for line in read_text(path, "a time stamp and a file a line").splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            stamps.append((float(words[0]), words[1]))
        except (ValueError, IndexError):
            raise DataError(f"{path}: the line '{line}' must hold a time stamp and a file") from None
    return stamps


def associate(first: Sequence[float], second: Sequence[float]) -> list[tuple[int, int]]:
    """Pairs of indices in the order of ``first``: nearest in time before others, each used once, less than MAX_GAP."""
    order = np.argsort(second, kind="stable")
    times = np.asarray(second)[order]
    candidates = []
    for i, time in enumerate(first):
        low, high = np.searchsorted(times, (time - MAX_GAP, time + MAX_GAP))
        candidates += [(abs(times[k] - time), i, int(order[k])) for k in range(low, high)]
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for gap, i, j in sorted(candidates):
        if gap < MAX_GAP and i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)
    return sorted(pairs.items())
