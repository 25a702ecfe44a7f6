"""Labels of height and normal for every frame of a data set, as a data set of its own.

The files are those of :mod:`hardpix.data.hn_files`. Killed at any point, the same command makes the rest.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hardpix.data.base import Source
from hardpix.data.files import FileFrames
from hardpix.data.hn_classes import hn_class_names, hn_palette
from hardpix.data.hn_files import (
    FACTS,
    LISTING,
    LOG,
    Entry,
    begin,
    line_of,
    plain_json,
    read_listing,
    write_listing,
    write_text,
)
from hardpix.data.hn_frame import (
    KEYS,
    HNSettings,
    Split,
    attempt,
    cut,
    make_in_worker,
    read_picture,
    start_worker,
)
from hardpix.data.missing_depth import with_some_depth
from hardpix.data.prepare.journal import alone
from hardpix.data.prepare.recipe import Bar, begin_worker
from hardpix.types import ConfigError, DataError

FEW = 64  # frames that are done before other processes have started
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
    with alone(out):
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
    done = {index: entry for index, entry in done.items() if split.is_whole(entry)}
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
            bar(name, before + tally.made, len(indices), _note(tally))
    write_listing(listing, (done[index] for index in indices if index in done))
    return faults


def _results(
    split: Split, todo: Sequence[int], workers: int
) -> Generator[tuple[int, Entry | str], None, None]:
    """What each frame of ``todo`` gave, in order; processes read and write their frames themselves."""
    cargo = None if workers <= 1 or len(todo) < FEW else _pickled(split)
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


def _note(tally: Tally) -> str:
    failed = f", {tally.failed} failed" if tally.failed else ""
    return f"{tally.made / max(tally.seconds, 1e-9):.1f}/s, {tally.rejected.total()} rejected{failed}"
