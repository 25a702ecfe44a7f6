"""Recipes of NYU Depth v2: the raw recordings and the labelled set."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hardpix.data import camera as kinect
from hardpix.data.labels import LabelCode
from hardpix.data.prepare.recipe import Part, Recipe, Work, write_once
from hardpix.data.sets.nyuv2 import (
    DEPTHS,
    IMAGES,
    INTRINSICS,
    LABELED,
    LISTING,
    MAPPING,
    SPLITS,
    VOID_IS_0,
    MatFrames,
    raw_to_40,
    split_names,
)
from hardpix.types import ConfigError, DataError

HEIGHT, WIDTH = 480, 640
_NAME = re.compile(r"(?P<kind>[dr])-(?P<seconds>\d+\.\d+)-\d+\.(pgm|ppm)")
_HEADER = re.compile(rb"P[56](\s+\d+){3}\s")


class Recorded(NamedTuple):
    """A file of a recording."""

    seconds: float  # since 1970, when the frame arrived
    path: str


class Scene(NamedTuple):
    """A folder of recordings: its frames in no order."""

    folder: str
    depths: list[Recorded]
    colours: list[Recorded]

    @property
    def name(self) -> str:
        return os.path.basename(self.folder)


class Pair(NamedTuple):
    """A depth frame and the colour frame that goes with it."""

    name: str  # scene__number of the depth frame in it, from 0
    scene: str
    depth: Recorded
    colour: Recorded

    @property
    def gap_ms(self) -> float:
        return 1000 * abs(self.depth.seconds - self.colour.seconds)


@dataclass(frozen=True)
class NYUv2RawRecipe(Recipe):
    """About ``frames`` frames in all, each scene giving equally many, evenly spaced, or all that it has.

    Which frames these are follows from the names alone, so that only they are unpacked from the archives.

    Images become JPEG of quality 95 without colour subsampling (a fifth of PNG's size), depth 16-bit PNG in mm.

    frames: of all scenes together. HN pre-trains on 41000.
    max_gap_ms: a depth frame whose nearest colour frame is farther away in time is left out.
    register: bring depth into the colour camera, and take the lens distortion out of both, as the labelled set
        has them; false writes each as its own camera recorded it: they do not lie over each other, and
        intrinsics.txt is that of the depth camera.
    """

    name: ClassVar[str] = "nyuv2_raw"
    title: ClassVar[str] = "NYU Depth v2, raw recordings"
    page: ClassVar[str] = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
    licence: ClassVar[str] = "No licence is stated; cite Silberman et al. 2012."
    parts: ClassVar[tuple[Part, ...]] = (
        Part("*.zip", "nyu_depth_v2_raw.zip (428 GB), or any of its parts, as bathrooms_part1.zip"),
    )

    most_files: ClassVar[int] = 5_000_000  # 407 024 frames, most of them as two files

    frames: int = 41000
    max_gap_ms: float = 40.0  # the slowest recordings have a frame each 50 ms
    register: bool = True

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ConfigError(f"frames={self.frames}: must be at least 1")
        if self.max_gap_ms < 0:
            raise ConfigError(f"max_gap_ms={self.max_gap_ms}: must not be negative")

    def wanted(self, member: str) -> bool:
        return _NAME.fullmatch(member.rpartition("/")[2]) is not None

    def needed(self, work: Work) -> Collection[str]:
        todo = (pair for pair in self._choose(work)[0] if not _is_written(pair, work.out))
        return {recorded.path for pair in todo for recorded in (pair.depth, pair.colour)}

    def convert(self, work: Work) -> None:
        chosen, faults = self._choose(work)
        if not chosen:
            places = " or ".join(str(root) for root in work.roots)
            right = f"{places}: no scene in it; there must be folders SCENE with d-*.pgm and r-*.ppm"
            raise DataError("; ".join(faults) or right)
        work.faults += faults
        write = partial(_write_recorded, out=work.out, register=self.register)
        work.each(write, chosen, "writing frames")
        camera = kinect.COLOUR if self.register else kinect.DEPTH
        work.make(INTRINSICS, lambda path: np.savetxt(path, camera.matrix(), fmt="%.9f"))
        # Last, and again each time: what it names is there.
        (work.out / LISTING).unlink(missing_ok=True)
        work.make(LISTING, partial(_write_listing, chosen, work.out))

    def _choose(self, work: Work) -> tuple[list[Pair], list[str]]:
        """The frames to write, scene by scene, and a sentence for each scene that has none."""
        scenes, faults = [], []
        for scene in find_scenes(work.files()):
            near = [pair for pair in synchronise(scene) if pair.gap_ms <= self.max_gap_ms]
            if near:
                scenes.append(near)
            else:
                depths = f"none of its {len(scene.depths)} depth frames"
                why = f"{depths} has a colour frame within {self.max_gap_ms} ms; the scene is left out"
                faults.append(f"{scene.folder}: {why}")
        counts = shares(self.frames, [len(pairs) for pairs in scenes])
        chosen = [pairs[i] for pairs, n in zip(scenes, counts, strict=True) for i in evenly(n, len(pairs))]
        return chosen, faults


def find_scenes(files: Iterable[str]) -> list[Scene]:
    """The folders of ``files`` that hold depth frames, by name; of two of one name the first."""
    folders: dict[str, Scene] = {}
    for file in files:
        folder, name = os.path.split(file)
        found = _NAME.fullmatch(name)
        if found:
            scene = folders.setdefault(folder, Scene(folder, [], []))
            kind = scene.depths if found["kind"] == "d" else scene.colours
            kind.append(Recorded(float(found["seconds"]), file))
    scenes: dict[str, Scene] = {}
    for scene in folders.values():
        if scene.depths:
            scenes.setdefault(scene.name, scene)
    return [scenes[name] for name in sorted(scenes)]


def synchronise(scene: Scene) -> list[Pair]:
    """Each depth frame of a scene with the colour frame nearest in time, the later of two equally near ones.

    This is the rule of the toolbox's get_synched_frames: depth leads, and where it was recorded faster than
    colour, neighbouring depth frames share a colour frame.
    """
    depths, colours = sorted(scene.depths), sorted(scene.colours)
    pairs, at = [], 0
    for number, depth in enumerate(depths):
        while at + 1 < len(colours) and _gap(colours[at + 1], depth) <= _gap(colours[at], depth):
            at += 1
        if colours:
            pairs.append(Pair(f"{scene.name}__{number:05d}", scene.name, depth, colours[at]))
    return pairs


def shares(budget: int, sizes: Sequence[int]) -> list[int]:
    """``budget`` dealt out equally over scenes of ``sizes`` frames; what a small one lacks goes to the others."""
    dealt, left = [0] * len(sizes), budget
    for done, index in enumerate(sorted(range(len(sizes)), key=lambda i: (sizes[i], i))):
        dealt[index] = min(sizes[index], left // (len(sizes) - done))
        left -= dealt[index]
    return dealt


def evenly(count: int, size: int) -> list[int]:
    """``count`` indices below ``size``: the middles of as many equal stretches."""
    return [(2 * i + 1) * size // (2 * count) for i in range(count)]


def read_disparity(path: Path) -> NDArray[np.uint16]:
    """A depth frame's raw disparity ``[480, 640]``; the release writes PGM with the low byte first."""
    disparity = _read_pnm(path, "P5", 65535, "<u2", 1)[..., 0]
    if disparity.max() > kinect.NO_DISPARITY:
        raise DataError(f"{path}: disparity {disparity.max()} has more than 11 bits; the frame is left out")
    return disparity


def read_recorded_colour(path: Path) -> NDArray[np.uint8]:
    """A colour frame ``[480, 640, 3]``."""
    return _read_pnm(path, "P6", 255, "u1", 3)


def _read_pnm(path: Path, magic: str, largest: int, dtype: str, channels: int) -> NDArray:
    """``[480, 640, channels]``. Pillow would fill up a file that is cut short, and swap the bytes of depth."""
    data = path.read_bytes()
    header = _HEADER.match(data)
    right = f"{magic} {WIDTH} {HEIGHT} {largest}"
    if header is None or b" ".join(header[0].split()) != right.encode():
        raise DataError(f"{path}: its header is not {right}; the frame is left out")
    values = HEIGHT * WIDTH * channels
    size, held = values * np.dtype(dtype).itemsize, len(data) - header.end()
    if held < size:
        raise DataError(f"{path}: cut short, it holds {held} of {size} bytes; the frame is left out")
    return np.frombuffer(data, dtype, values, header.end()).reshape(HEIGHT, WIDTH, channels)


def _write_recorded(pair: Pair, *, out: Path, register: bool) -> None:
    if _is_written(pair, out):
        return
    image_path, depth_path = _targets(pair, out)
    depth = kinect.disparity_to_metres(read_disparity(Path(pair.depth.path)))
    image = read_recorded_colour(Path(pair.colour.path))
    if register:
        depth, image = kinect.register(depth), kinect.undistorted(image)
    if not depth.any():
        raise DataError(f"{pair.depth.path}: no pixel has a reading; the frame is left out")
    write_once(depth_path, Image.fromarray(to_millimetres(depth)).save)
    write_once(image_path, partial(Image.fromarray(image).save, quality=95, subsampling=0))


def _targets(pair: Pair, out: Path) -> tuple[Path, Path]:
    return out / IMAGES / f"{pair.name}.jpg", out / DEPTHS / f"{pair.name}.png"


def _is_written(pair: Pair, out: Path) -> bool:
    return all(path.exists() for path in _targets(pair, out))


def _write_listing(pairs: Sequence[Pair], out: Path, path: Path) -> None:
    """One line for each frame that could be written."""
    with path.open("w", encoding="utf-8") as stream:
        for pair in pairs:
            if _is_written(pair, out):
                facts = {
                    "name": pair.name,
                    "scene": pair.scene,
                    "depth_time": pair.depth.seconds,
                    "colour_time": pair.colour.seconds,
                    "gap_ms": round(pair.gap_ms, 3),
                }
                stream.write(json.dumps(facts) + "\n")


def _gap(a: Recorded, b: Recorded) -> float:
    return abs(a.seconds - b.seconds)


# NYU Depth v2, labelled set: the official MATLAB files become the folder that ``hardpix.data.NYUv2``
# reads.


READ = frozenset({"image", "label", "depth"})


@dataclass(frozen=True)
class NYUv2Recipe(Recipe):
    """Every frame is written as PNG, without loss but for the depth, which is rounded to millimetres.

    raw_depth: write the sensor's readings, before in-painting, to ``depth_raw`` too.
    """

    name: ClassVar[str] = "nyuv2"
    title: ClassVar[str] = "NYU Depth v2, labelled set"
    page: ClassVar[str] = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
    licence: ClassVar[str] = "No licence is stated; cite Silberman et al. 2012."
    parts: ClassVar[tuple[Part, ...]] = (
        Part(LABELED, "frames, labels and depth", 2972037809, "520609c519fba3ba5ac58c8fefcc3530"),
        Part(
            SPLITS,
            "which frames train and test: http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat",
            2626,
            "08e3c3aea27130ac7c01ffd739a4535f",
        ),
        Part(MAPPING, "the 40 classes, not from that page: https://github.com/ankurhanda/nyuv2-meta-data"),
    )

    raw_depth: bool = True

    def convert(self, work: Work) -> None:
        labeled, splits, classes = (work.find(part.name, part.name) for part in self.parts)
        code = LabelCode(raw_to_40(classes), ignore_index=0)
        # First of all: labels without it would be read as those of the release that merged void into 40.
        work.make(Path("train", "labels_40", VOID_IS_0), _explain)
        for split in ("train", "test"):
            names = split_names(splits, split)
            frames = MatFrames(labeled, names, READ, label_code=code)
            write = partial(_write_labelled, frames, work.out / split, self.raw_depth)
            work.each(write, range(len(names)), f"writing {split} frames")
            work.make(f"{split}.txt", partial(_write_list, names))


def _write_labelled(frames: MatFrames, folder: Path, raw_depth: bool, index: int) -> None:
    """The files of one frame; those that are all there are not read again."""
    name = f"{frames.name(index)}.png"
    kinds = ["rgb", "labels_40", "depth"] + ["depth_raw"] * raw_depth
    paths = {kind: folder / kind / name for kind in kinds}
    if all(path.exists() for path in paths.values()):
        return
    sample = frames.load(index)
    arrays = {
        "rgb": sample["image"].permute(1, 2, 0).numpy(),
        "labels_40": sample["label"].numpy(),
        "depth": to_millimetres(sample["depth"].numpy()),
    }
    if raw_depth:
        arrays["depth_raw"] = to_millimetres(frames.raw_depth(index))
    for kind, path in paths.items():
        write_once(path, Image.fromarray(arrays[kind]).save)


def to_millimetres(metres: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded; 0 where there is no reading, and what 16 bits cannot hold is none."""
    millimetres = np.rint(metres.astype(np.float64) * 1000)
    with np.errstate(invalid="ignore"):
        held = (millimetres > 0) & (millimetres < 65536)
    return np.where(held, millimetres, 0).astype(np.uint16)


def _explain(path: Path) -> None:
    path.write_text("In these labels void is 0 and 40 is otherprop alone. hardpix looks for this file.\n")


def _write_list(names: list[str], path: Path) -> None:
    path.write_text("\n".join(names) + "\n")
