"""Synthetic rooms: an embedded RGB-D world with exact geometry and a known hardness at every pixel."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from hardpix.config.schema import Count, Positive, Seed, Share, checked
from hardpix.data.source import Sample, Source
from hardpix.data.synthetic import furniture, raycast
from hardpix.data.synthetic import scene as synthetic_scene
from hardpix.data.synthetic.furniture import CLASSES, NAMES, STYLES, VOID
from hardpix.data.synthetic.raycast import Floats
from hardpix.types import ConfigError, DataError, DatasetInfo

SPLITS = ("train", "val", "test")
# Part of every key of rendered frames: give another value when pixels change, so that no run goes on with other rooms.
RENDERER = "0f8acaa3abcb0617c2a78688b691904f02d618a9747bd694b4bd10845f380c16"
DEPTH_STEP = 0.0002
"""Metres per count of the cached uint16 depth; 0 is invalid."""


class SyntheticFrame(NamedTuple):
    """One view of one room. Camera frame: x right, y down, z forward; metres."""

    rgb: NDArray[np.uint8]  # [H, W, 3]
    label: NDArray[np.uint8]  # [H, W] index into NAMES, 255 for void
    depth: Floats  # [H, W] as the sensor gives it: exact, or Kinect-like with 0 where invalid
    valid: NDArray[np.bool_]  # [H, W] depth has a reading
    exact_depth: Floats  # [H, W]
    normal: Floats  # [H, W, 3] exact, camera frame, unit, facing the camera
    height: Floats  # [H, W] exact, above the floor
    up: Floats  # [3] unit, camera frame
    K: Floats  # [3, 3] pixels
    pose: Floats  # [4, 4] camera to world; world z is up and the floor is z = 0
    hardness: Floats  # [H, W] true hardness in [0, 1], 0 at void


def render(
    seed: int,
    split: str,
    index: int,
    *,
    height: int,
    width: int,
    difficulty: float,
    kinect: bool = False,
    focal: float = 0.81,
    classes: Sequence[str] = NAMES,
    view: int = 0,
    style: str = "a",
) -> SyntheticFrame:
    """View number ``view`` of room ``index`` of ``split``; depends on nothing but the arguments.

    The room is the same for every view, size and focal length (in image widths). Labels keep their index in
    ``NAMES``; classes not in ``classes`` become void.

    **True hardness** of a pixel is ``1 - p(c | a)``: ``c`` its class, ``a`` its own albedo, and ``p`` the exact
    posterior under equal priors over ``classes``, for albedos drawn as in ``furniture.densities``. It is the
    probability that a judge who knows that albedo alone, and answers in proportion to the posterior, is wrong.
    Shape, place, light, sensor noise and the size of things do not enter it.
    """
    stream = [
        np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), index, *key)))
        for key in ((0,), (1, view), (2, view), (3, view))
    ]
    known, look = furniture.densities(difficulty, style), STYLES[style]
    scene = synthetic_scene.build_scene(stream[0], difficulty, known, np.isin(NAMES, classes), look)
    camera = raycast.look(stream[1], scene, height, width, focal)
    hits = raycast.cast(scene, camera)
    which = raycast.choose_albedo(scene.materials, hits)
    albedo = np.exp(scene.materials.log_albedo).astype(np.float32)[hits.material, which]
    linear = raycast.shade(scene, hits, albedo)
    exact = hits.depth.reshape(height, width)
    depth, valid = exact, np.ones((height, width), bool)
    if kinect:
        depth, valid = raycast.kinect(stream[3], camera, hits)
    rotation = camera.pose[:3, :3]
    return SyntheticFrame(
        rgb=raycast.expose(
            stream[2], linear, height, width, noise=0.01 + 0.04 * difficulty, mean=look.exposure
        ),
        label=scene.materials.label[hits.material].reshape(height, width),
        depth=depth,
        valid=valid,
        exact_depth=exact,
        normal=(hits.normal @ rotation).reshape(height, width, 3),
        height=np.maximum(hits.point[:, 2], 0).reshape(height, width),
        up=rotation[2].copy(),
        K=camera.K,
        pose=camera.pose,
        hardness=scene.materials.hardness[hits.material, which].reshape(height, width).astype(np.float32),
    )


class SyntheticRooms(Source):
    """Rendered rooms; every frame is a room of its own, so splits share none.

    ``train_frames``, ``val_frames``, ``test_frames``: rooms per split. ``difficulty`` in [0, 1]: 0 tells two
    alike classes apart by colour but for 2 %, keeps noise low and things large; 1 makes the classes of a group
    identical in colour, legs thin, small things smaller and the picture noisy. ``classes``: those to label
    (None: all 18), in the order of their indices; the others are rendered but void. ``kinect``: depth with
    quantisation, range limit and holes. ``focal``: focal length in image widths (0.81 is a Kinect's colour
    camera). ``style``: the same rooms in the colours and the light of world ``a`` or ``b``.

    Frames are rendered once per split into ``cache_dir`` (None: ``$HARDPIX_CACHE``, else ``~/.cache/hardpix``),
    under a key of all parameters and of the renderer's version. The cache keeps depth in steps of 0.2 mm and
    hardness in steps of 1/255.
    """

    @checked
    def __init__(
        self,
        *,
        height: Count,
        width: Count,
        train_frames: Count,
        val_frames: Count,
        test_frames: Count,
        seed: Seed,
        difficulty: Share,
        kinect: bool = False,
        focal: Positive = 0.81,
        classes: Sequence[str] | None = None,
        style: str = "a",
        cache_dir: str | Path | None = None,
    ) -> None:
        if style not in STYLES:
            raise ConfigError(f"synthetic rooms: style is {style}; it must be {' or '.join(STYLES)}.")
        names = NAMES if classes is None else tuple(classes)
        unknown = [name for name in names if name not in CLASSES]
        if unknown:
            raise ConfigError(f"synthetic rooms: unknown class {unknown[0]!r}; known are {', '.join(NAMES)}.")
        if len(set(names)) < max(len(names), 2):
            raise ConfigError(f"synthetic rooms: classes is {list(names)}; give two or more, each once.")
        self.counts = {"train": train_frames, "val": val_frames, "test": test_frames}
        self.parameters: dict[str, Any] = {
            "seed": seed, "height": height, "width": width, "difficulty": float(difficulty), "kinect": kinect,
            "focal": float(focal), "classes": names, "style": style,
        }  # fmt: skip
        default = os.environ.get("HARDPIX_CACHE") or Path.home() / ".cache" / "hardpix"
        self.cache_dir = Path(cache_dir or default)
        self.info = DatasetInfo(
            name="synthetic" if style == "a" else f"synthetic_{style}",
            classes=names,
            palette=tuple(CLASSES[name] for name in names),
            ignore_index=VOID,
            depth_max=raycast.DEPTH_MAX,
            provides=frozenset({"image", "label", "depth", "hardness"}),
        )

    def frames(self, split: str, keys: frozenset[str]) -> SyntheticFrames:
        """The frames of ``split``; renders them if no sound cache file exists."""
        if split not in self.counts:
            raise ConfigError(f"synthetic rooms: no split {split!r}; there are {', '.join(self.splits)}.")
        path = self.cache_dir / f"synthetic-{split}-{self._key(split)}.npy"
        if not _sound(path, self._dtype(), self.counts[split]):
            self._build(path, split)
        camera = raycast.intrinsics(*(self.parameters[k] for k in ("height", "width", "focal")))
        return SyntheticFrames(path, split, self.counts[split], keys, camera)

    def _key(self, split: str) -> str:
        """Digest of everything that the split's pixels depend on, the renderer's version included."""
        text = json.dumps([split, self.counts[split], self.parameters], sort_keys=True)
        return hashlib.sha256((text + RENDERER).encode()).hexdigest()[:16]

    def _dtype(self) -> np.dtype:
        size = (self.parameters["height"], self.parameters["width"])
        return np.dtype(
            [
                ("image", np.uint8, (3, *size)),
                ("label", np.uint8, size),
                ("depth", np.uint16, size),
                ("hardness", np.uint8, size),
                ("check", np.uint32),
            ]
        )

    def _build(self, path: Path, split: str) -> None:
        """Renders to a file of its own and renames it: other processes see all of it or nothing."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        except OSError as error:
            raise DataError(
                f"{path.parent}: cannot write rendered rooms ({error.strerror}); give a writable cache_dir."
            ) from None
        try:
            with os.fdopen(handle, "wb") as file:
                np.lib.format.write_array_header_2_0(
                    file,
                    {"descr": self._dtype().descr, "fortran_order": False, "shape": (self.counts[split],)},
                )
                for index in range(self.counts[split]):
                    file.write(self._record(split, index).tobytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise

    def _record(self, split: str, index: int) -> NDArray[np.void]:
        frame = render(split=split, index=index, **self.parameters)
        remap = np.full(256, VOID, np.uint8)
        for new, name in enumerate(self.info.classes):
            remap[NAMES.index(name)] = new
        record = np.zeros((), self._dtype())
        record["image"] = frame.rgb.transpose(2, 0, 1)
        record["label"] = remap[frame.label]
        record["depth"] = np.where(frame.valid, np.round(frame.depth / DEPTH_STEP), 0)
        record["hardness"] = np.round(frame.hardness * 255)
        record["check"] = _checksum(record)
        return record


class SyntheticFrames:
    """One rendered split, memory-mapped on first use (so it pickles as a path)."""

    def __init__(self, path: Path, split: str, count: int, keys: frozenset[str], camera: Floats) -> None:
        self.path, self.split, self.count, self.keys, self._camera = path, split, count, keys, camera

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_records"}

    @cached_property
    def _records(self) -> NDArray[np.void]:
        return np.load(self.path, mmap_mode="r")

    def name(self, index: int) -> str:
        return f"{self.split}_{index:05d}"

    def intrinsics(self, index: int) -> NDArray[np.float64]:
        return self._camera.astype(np.float64)

    def load(self, index: int) -> Sample:
        record = self._records[index]
        sample: dict[str, Any] = {"image": _tensor(record["image"]), "name": self.name(index)}
        if "label" in self.keys:
            sample["label"] = _tensor(record["label"])
        if "depth" in self.keys:
            sample["depth"] = _tensor(record["depth"].astype(np.float32) * np.float32(DEPTH_STEP))
            sample["depth_valid"] = _tensor(record["depth"] > 0)
        if "hardness" in self.keys:
            sample["hardness"] = _tensor(record["hardness"].astype(np.float32) / np.float32(255))
        return cast(Sample, sample)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def _checksum(record: NDArray[np.void]) -> int:
    return zlib.crc32(b"".join(record[key].tobytes() for key in ("image", "label", "depth", "hardness")))


def _sound(path: Path, dtype: np.dtype, count: int) -> bool:
    """Whether ``path`` holds ``count`` undamaged records."""
    try:
        records = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    if records.shape != (count,) or records.dtype != dtype:
        return False
    return all(_checksum(record) == record["check"] for record in records)
