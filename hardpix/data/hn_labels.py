"""Make labels of height and normal for every frame of a data set, as a data set of its own.

The files are those of :mod:`hardpix.data.sets.hn`. Killed at any point, the same command makes the rest.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hardpix.data.augment import Window, image_window
from hardpix.data.files import Border, FileFrames, shifted_camera
from hardpix.data.images import read_image
from hardpix.data.prepare.recipe import Bar, begin_worker, link_or_copy, only_writer, write_once
from hardpix.data.sets.hn import (
    FACTS,
    IMAGES,
    LABELS,
    LISTING,
    LOG,
    Entry,
    begin,
    hn_class_names,
    hn_palette,
    line_of,
    plain_json,
    read_listing,
    write_listing,
)
from hardpix.data.sets.rgbd import camera_matrix
from hardpix.data.source import CameraFrames, Frames, Source, no_reading, with_some_depth
from hardpix.ops.quantize import HNLabel, check_bins, hn_label
from hardpix.record import write_text
from hardpix.types import ConfigError, DataError

FRAMES_WITHOUT_POOL = 64  # frames that are done before other processes have started
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class Tally:
    """What became of the frames of one split."""

    frames: int
    rejected: Counter[str] = field(default_factory=Counter)  # by reason
    labelled: int = 0
    failed: int = 0
    made: int = 0  # by this command
    seconds: float = 0.0

    def count(self, entry: Entry) -> None:
        if entry["rejected"] is None:
            self.labelled += 1
        else:
            self.rejected[entry["rejected"].partition(":")[0]] += 1

    def to_json(self, status: str) -> dict[str, Any]:
        return {
            "status": status,
            "frames": self.frames,
            "labelled": self.labelled,
            "rejected": dict(self.rejected),
            "failed": self.failed,
        }


@dataclass(frozen=True)
class Choice:
    """Which frames of a split: each ``every``-th, and of these at most ``limit``, evenly spaced."""

    every: int = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or (self.limit is not None and self.limit < 1):
            raise ConfigError(f"every is {self.every}, limit {self.limit}; both must be at least 1")

    def indices(self, frames: int) -> list[int]:
        kept = range(0, frames, self.every)
        if self.limit is None or self.limit >= len(kept):
            return list(kept)
        return [kept[place * len(kept) // self.limit] for place in range(self.limit)]


def make_labels(
    source: Source,
    identity: Mapping[str, Any],
    splits: Sequence[str],
    out: Path,
    settings: HNSettings,
    choice: Choice,
    *,
    workers: int,
    bar: Bar,
    say: Callable[[str], None],
) -> tuple[dict[str, Tally], list[str]]:
    """Make the labels of ``splits`` below ``out``; what became of the frames, and a sentence for each that failed.

    ``identity``: the settings of ``source`` by key; work that was begun with others is refused. A split that has
    the frames of one before it is left out. Raises ``ConfigError`` or ``DataError`` before anything is written
    where the data set has no depth or no camera, or the crop leaves its first frame.
    """
    if "depth" not in source.info.provides:
        raise ConfigError(
            f"data set {source.info.name} has no depth; labels of height and normal are made of it"
        )
    opened = open_splits(source, splits, out, settings, say)
    facts = begin(
        out, {"settings": plain_json(asdict(settings) | asdict(choice)), "source": plain_json(identity)}
    )
    facts["classes"] = hn_class_names(settings.height_edges, settings.normals)
    facts["palette"] = hn_palette(len(settings.height_edges), settings.normals)
    tallies: dict[str, Tally] = {}
    faults: list[str] = []
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        for name, split in opened.items():
            indices = choice.indices(len(split.frames))
            tally = tallies[name] = Tally(len(indices))
            facts["splits"][name] = tally.to_json("running")
            write_text(out / FACTS, json.dumps(facts, indent=1) + "\n")
            faults += _make_split(name, split, indices, tally, workers, bar)
            facts["splits"][name] = tally.to_json("done")
            write_text(out / FACTS, json.dumps(facts, indent=1) + "\n")
        if faults:
            write_text(out / LOG, "\n".join(faults) + "\n")
        else:
            (out / LOG).unlink(missing_ok=True)
    return tallies, faults


def open_splits(
    source: Source, names: Sequence[str], out: Path, settings: HNSettings, say: Callable[[str], None]
) -> dict[str, Split]:
    """The splits to make, each of whose first frames has a camera and the crop inside it."""
    splits: dict[str, Split] = {}
    seen: dict[tuple[str, ...], str] = {}
    for name in dict.fromkeys(part for one in names for part in source.parts(one)):
        frames = with_some_depth(source.frames(name, KEYS), name)
        titles = [frames.name(index) for index in range(len(frames))]
        if isinstance(frames, FileFrames):
            images = tuple(str(files.image) for files in map(frames.whole, range(len(frames))) if files)
            if images and seen.setdefault(images, name) != name:
                say(f"{name}: these are the frames of {seen[images]}, left out")
                continue
        split = splits[name] = Split(frames, file_stems(titles, name), out / name, settings)
        if titles:
            _probe(split, source.info.name)
    return splits


def _probe(split: Split, name: str) -> None:
    """Refuse what would fail on every frame, before anything is written."""
    if split.camera(0) is None:
        raise ConfigError(
            f"data set {name} does not tell its camera; give it as --camera FX FY CX CY, in pixels of the depth "
            "(the centre of the first one is 0 0)"
        )
    window = split.settings.window
    if window is None:
        return
    try:
        picture = read_picture(split.frames, 0)
    except DataError:  # this frame's own fault
        return
    try:
        cut(picture, window)
    except DataError as error:
        raise ConfigError(f"{split.frames.name(0)}: {error}; --crop must lie inside") from None


def file_stems(names: Sequence[str], split: str) -> list[str]:
    """A file's stem for each frame: slashes become ``__``; ``DataError`` where two frames would share one."""
    first: dict[str, str] = {}
    for name in names:
        stem = name.replace("\\", "/").strip("/").replace("/", "__")
        stem = f"_{stem}" if stem.startswith(".") else stem
        if stem in first:
            raise DataError(
                f"split {split}: the frames {first[stem]!r} and {name!r} would both be written as {stem}; "
                "each needs a name of its own"
            )
        first[stem] = name
    return list(first)


def _make_split(
    name: str, split: Split, indices: Sequence[int], tally: Tally, workers: int, bar: Bar
) -> list[str]:
    """Make what is missing; a sentence for each frame that cannot be made."""
    listing = split.folder / LISTING
    known = {entry["name"]: entry for entry in read_listing(listing)}
    done = {index: known[split.stems[index]] for index in indices if split.stems[index] in known}
    done = {index: entry for index, entry in done.items() if split.is_complete(entry)}
    todo = [index for index in indices if index not in done]
    for entry in done.values():
        tally.count(entry)
    write_listing(listing, (done[index] for index in indices if index in done))
    faults: list[str] = []
    started, before = time.monotonic(), len(done)
    bar(name, before, len(indices))
    with listing.open("a", encoding="utf-8") as file, closing(_results(split, todo, workers)) as results:
        for index, result in results:
            if isinstance(result, str):
                faults.append(result)
                tally.failed += 1
            else:
                done[index] = result
                tally.count(result)
                file.write(line_of(result))
                file.flush()
            tally.made += 1
            tally.seconds = time.monotonic() - started
            bar(name, before + tally.made, len(indices), _progress_text(tally))
    write_listing(listing, (done[index] for index in indices if index in done))
    return faults


def _results(
    split: Split, todo: Sequence[int], workers: int
) -> Generator[tuple[int, Entry | str], None, None]:
    """What each frame of ``todo`` gave, in order; processes read and write their frames themselves."""
    cargo = None if workers <= 1 or len(todo) < FRAMES_WITHOUT_POOL else _pickled(split)
    if cargo is None:
        yield from (attempt(split, index) for index in todo)
        return
    with (
        _one_thread_each(),
        ProcessPoolExecutor(workers, get_context("spawn"), _start, (cargo,)) as pool,
    ):
        try:
            yield from pool.map(make_in_worker, todo, chunksize=max(1, min(8, len(todo) // (4 * workers))))
        except BrokenProcessPool:
            raise DataError(
                "a process was stopped from outside, perhaps for want of memory; the same command goes on, "
                "with fewer --workers if need be"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # else all the rest would be done first
            raise


def _start(cargo: bytes) -> None:
    begin_worker()
    start_worker(pickle.loads(cargo))


def _pickled(split: Split) -> bytes | None:
    try:
        return pickle.dumps(split)
    except Exception:  # whatever a user's source raises
        return None


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that start in this block do linear algebra with one thread."""
    before = {key: os.environ.get(key) for key in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _progress_text(tally: Tally) -> str:
    failed = f", {tally.failed} failed" if tally.failed else ""
    return f"{tally.made / max(tally.seconds, 1e-9):.1f}/s, {tally.rejected.total()} rejected{failed}"


# HN labels of one frame: depth in, picture and label out as files.


KEYS = frozenset({"image", "depth", "depth_valid"})
PNG_EFFORT = 1  # of 9: a photograph takes a quarter of the default's time and 14 % more space
LINKED_SUFFIXES = (".png", ".jpg", ".jpeg")

Saver = Callable[[Path], None]


@dataclass(frozen=True)
class HNSettings:
    """What the labels depend on besides the frames; :func:`hardpix.ops.quantize.hn_label` says what it means.

    crop: ``(top, left, height, width)`` in pixels of the depth, the part that is labelled and kept; what lies outside
        has no say in where the floor is. None: all of it.
    camera: ``(fx, fy, cx, cy)`` in pixels of the whole depth, in place of what the data set knows; None: that.
    """

    height_edges: tuple[float, ...]
    normals: int
    up: str
    radius: int
    gravity_radius: int
    crop: tuple[int, int, int, int] | None = None
    camera: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        check_bins(self.height_edges, self.normals)
        if self.up not in ("gravity", "manhattan"):
            raise ConfigError(f"up is '{self.up}'; it must be 'gravity' or 'manhattan'")
        if min(self.radius, self.gravity_radius) < 1:
            radii = f"{self.radius} and {self.gravity_radius}"
            raise ConfigError(f"radius and gravity_radius are {radii}; they must be at least 1")
        if self.crop and not (min(self.crop[:2]) >= 0 and min(self.crop[2:]) >= 1):
            raise ConfigError(
                f"crop is {list(self.crop)}; it must be TOP LEFT HEIGHT WIDTH, in pixels from 0"
            )
        if self.camera and not (min(self.camera[:2]) > 0 and all(map(math.isfinite, self.camera))):
            raise ConfigError(f"camera is {list(self.camera)}; it must be FX FY CX CY, in pixels")

    @property
    def window(self) -> Border | None:
        """The crop as rows and columns."""
        if self.crop is None:
            return None
        top, left, height, width = self.crop
        return Border(top, top + height, left, left + width)


class Picture(NamedTuple):
    """One frame at the size of its depth."""

    image: Tensor  # [3, H, W] uint8
    depth: NDArray[np.float32]  # [H, W] metres
    valid: NDArray[np.bool_]  # [H, W]
    original: Path | None  # the file that shows ``image``, and nothing else


@dataclass(frozen=True)
class Split:
    """The frames of one split, the names of their files, and where these go; pickles, for other processes."""

    frames: Frames
    stems: list[str]
    folder: Path
    settings: HNSettings

    def make(self, index: int) -> Entry:
        """Write the picture and the label of one frame unless it is rejected; what the listing says of it.

        A label is written after its picture: where there is one the frame is whole.
        """
        camera = self.camera(index)
        if camera is None:
            raise DataError(f"{self.frames.name(index)}: its camera is not known")
        picture = read_picture(self.frames, index)
        if self.settings.window is not None:
            picture = cut(picture, self.settings.window)
        made = label_of(picture, camera, self.settings)
        stem, entry = self.stems[index], _entry(made)
        if made.rejected is None:
            kept = picture.original
            name, save = stem + (kept.suffix.lower() if kept else ".png"), _saver(picture.image, kept)
            _write(self.folder / IMAGES / name, save)
            _write(self.folder / LABELS / f"{stem}.png", Image.fromarray(made.label).save)
            entry["image"] = name
        return {"name": stem, **entry}

    def camera(self, index: int) -> NDArray[np.float64] | None:
        """The camera matrix of a frame, in pixels of what is kept of it; None where nobody tells it."""
        if self.settings.camera:
            matrix: NDArray[np.float64] | None = camera_matrix(*self.settings.camera)
        else:
            matrix = self.frames.intrinsics(index) if isinstance(self.frames, CameraFrames) else None
        return shifted_camera(matrix, self.settings.window)

    def is_complete(self, entry: Entry) -> bool:
        """Whether the files of a frame that was made, or rejected, are there."""
        if entry["rejected"] is not None:
            return True
        paths = (self.folder / IMAGES / entry["image"], self.folder / LABELS / f"{entry['name']}.png")
        return all(path.is_file() and path.stat().st_size > 0 for path in paths)


def read_picture(frames: Frames, index: int) -> Picture:
    """Frame ``index``; a colour image of another size than its depth is resized to that, bilinearly."""
    files = frames.whole(index) if isinstance(frames, FileFrames) else None
    if files is None or not isinstance(frames, FileFrames):
        sample = frames.load(index)
        return Picture(sample["image"], sample["depth"].numpy(), sample["depth_valid"].numpy(), None)
    image = read_image(files.image, frames.image_range)
    lacking = index in frames.without_depth()
    depth, valid = no_reading(tuple(image.shape[1:])) if lacking else frames.depth(index)
    if image.shape[1:] == depth.shape:
        as_it_is = files.image.suffix.lower() in LINKED_SUFFIXES and frames.image_range is None
        return Picture(image, depth, valid, files.image if as_it_is else None)
    height, width = depth.shape
    return Picture(image_window(image, Window.whole((height, width))), depth, valid, None)


def label_of(picture: Picture, camera: NDArray[np.float64], settings: HNSettings) -> HNLabel:
    """The label of a picture whose first pixel is (0, 0) of ``camera``."""
    return hn_label(
        picture.depth,
        picture.valid,
        camera,
        radius=settings.radius,
        gravity_radius=settings.gravity_radius,
        up_method=settings.up,
        height_edges=settings.height_edges,
        normals=settings.normals,
    )


def cut(picture: Picture, window: Border) -> Picture:
    """The part of a picture inside ``window``."""
    top, bottom, left, right = window
    height, width = picture.depth.shape
    if bottom > height or right > width:
        crop = [top, left, bottom - top, right - left]
        raise DataError(f"the crop {crop} (top, left, height, width) leaves the {width}x{height} pixels")
    part = (slice(top, bottom), slice(left, right))
    return Picture(picture.image[:, *part], picture.depth[part], picture.valid[part], None)


def _saver(image: Tensor, kept: Path | None) -> Saver:
    if kept is not None:
        return partial(link_or_copy, kept)
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return partial(Image.fromarray(pixels).save, compress_level=PNG_EFFORT)


def _write(path: Path, save: Saver) -> None:
    """Written again, since a file that no listing names may have lost its contents with the power."""
    path.unlink(missing_ok=True)
    write_once(path, save)


def _entry(made: HNLabel) -> Entry:
    known = bool(np.isfinite(made.up).all())
    return {
        "rejected": made.rejected,
        "up": [round(float(value), 6) for value in made.up] if known else None,
        "floor": round(made.floor, 4) if known else None,
        "valid_share": round(made.valid_share, 4),
        "size": list(made.label.shape),
        "image": None,
    }


# A worker's own: the split that it works on.
_work: list[Split] = []


def start_worker(split: Split) -> None:
    """Called once in each process that makes labels."""
    torch.set_num_threads(1)
    _work[:] = [split]


def make_in_worker(index: int) -> tuple[int, Entry | str]:
    return attempt(_work[0], index)


def attempt(split: Split, index: int) -> tuple[int, Entry | str]:
    """What the listing says of a frame, or a sentence on why it cannot be made; a disk's fault goes on up."""
    try:
        return index, split.make(index)
    except DataError as error:
        name = split.frames.name(index)
        return index, str(error) if name in str(error) else f"{name}: {error}"
    except OSError:
        raise
    except Exception as error:  # nothing that one frame holds may stop the others
        return index, f"{split.frames.name(index)}: {type(error).__name__}: {error}"
