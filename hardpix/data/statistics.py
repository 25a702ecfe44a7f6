"""Class statistics and fingerprints of a split."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardpix.data.source import Frames, Sample
from hardpix.record import replacing
from hardpix.types import ClassCounts, DataError, DatasetInfo

PROGRESS_SECONDS = 5.0  # a count that takes longer says how far it is, that often

LABEL = frozenset({"label"})


@runtime_checkable
class LabelFrames(Protocol):
    """Frames that decode a label alone and know when their label files change."""

    def __len__(self) -> int: ...

    def label(self, index: int) -> Tensor:
        """Label ``[H, W]`` of frame ``index``; several threads may ask at once."""
        ...

    def fingerprint(self) -> str: ...


def cache_dir() -> Path:
    """``$HARDPIX_CACHE``, else ``~/.cache/hardpix``."""
    return Path(os.environ.get("HARDPIX_CACHE") or Path.home() / ".cache" / "hardpix")


def frame_counts(frames: Frames, info: DatasetInfo) -> NDArray[np.int32]:
    """Pixels of each class in each frame, ``[frames, C]``; void is not counted."""
    return label_counts(frames, info)[:, :-1]


def label_counts(frames: Frames, info: DatasetInfo, *, lenient: bool = False) -> NDArray[np.int32]:
    """Pixels of each class, and last of none, in each frame: ``[frames, C + 1]``.

    Kept in :func:`cache_dir` for frames that can tell whether their files changed. ``lenient``: labels that cannot be
    read count as empty, and nothing is kept.
    """
    if not isinstance(frames, LabelFrames):
        return _counted(len(frames), lambda index: frames.load(index)["label"], info, threads=1)
    path = cache_dir() / "class_counts" / f"{frames.fingerprint()}.npy"
    stored = _stored(path)
    if stored is not None and stored.shape == (len(frames), info.num_classes + 1):
        return stored
    label = frames.label if not lenient else partial(_label_or_none, frames)
    counts = _counted(len(frames), label, info, threads=min(8, os.cpu_count() or 1))
    if counts.sum(1).all():
        with suppress(OSError):  # where nothing can be written it is counted again
            _write_array(path, counts)
    return counts


def _label_or_none(frames: LabelFrames, index: int) -> Tensor:
    try:
        return frames.label(index)
    except DataError:
        return torch.zeros(0, dtype=torch.uint8)


def class_counts(frames: Frames, info: DatasetInfo) -> ClassCounts:
    """Pixels of each class, and labelled pixels of the images that contain it: sums of :func:`frame_counts`."""
    seen = torch.from_numpy(frame_counts(frames, info)).long()
    return ClassCounts(seen.sum(0), ((seen > 0) * seen.sum(1, keepdim=True)).sum(0))


def target_mean(
    frames: Frames,
    values: Callable[[Sample], Tensor],
    *,
    what: str,
    identity: str,
    unreadable: type[Exception] | tuple[()] = (),
) -> float | None:
    """Mean of ``values(sample)``, ``[N]`` per frame, over all frames; None where there is no value at all.

    Kept in :func:`cache_dir`, until a file of the frames or ``identity`` changes: a text of all settings that decide
    on the values. ``what`` is named while a long measurement goes on. A frame that raises ``unreadable`` is left out.
    """
    key = hashlib.sha256("\n".join((identity, fingerprint(frames), stamp(frames))).encode()).hexdigest()
    path = cache_dir() / "target_means" / f"{key}.npy"
    stored = _stored(path)
    if stored is None or stored.shape != (2,):
        stored = np.zeros(2)
        rows = (_sum_and_count(frames, index, values, unreadable) for index in range(len(frames)))
        for _, row in _with_progress(enumerate(rows), len(frames), what):
            stored += row
        with contextlib.suppress(OSError):  # where nothing can be kept it is measured by every run
            _write_array(path, stored)
    total, count = stored.tolist()
    return total / count if count else None


def _sum_and_count(
    frames: Frames, index: int, values: Callable[[Sample], Tensor], unreadable: type[Exception] | tuple[()]
) -> NDArray[np.float64]:
    try:
        found = values(frames.load(index)).double()
    except unreadable:
        return np.zeros(2)
    return np.array([found.sum().item(), found.numel()])


def sample_labels(frames: Frames, count: int) -> Iterator[Tensor]:
    """Labels ``[1, H, W]`` int64 of ``count`` evenly spaced frames, of all where there are no more."""
    step = max(len(frames) / count, 1.0)
    for place in range(min(count, len(frames))):
        index = int(place * step)
        label = frames.label(index) if isinstance(frames, LabelFrames) else frames.load(index)["label"]
        yield label[None].long()


def repeat_factors(counts: NDArray, threshold: float) -> NDArray[np.float64]:
    """How often an epoch shows each frame, ``[frames]``, from the pixels of each class in it, ``[frames, C]``.

    LVIS (Gupta et al. 2019, appendix B.1): a class in the share ``f`` of all frames asks for
    ``max(1, sqrt(threshold / f))``; a frame takes the most that one of its classes asks for, a frame without a
    labelled pixel 1.
    """
    present = counts > 0
    share = present.mean(axis=0)
    asked = np.ones(len(share))
    rare = (share > 0) & (share < threshold)
    asked[rare] = np.sqrt(threshold / share[rare])
    return np.where(present, asked, 1.0).max(axis=1, initial=1.0)


def write_json(path: Path, content: object) -> None:
    """Write so that a reader sees the whole file or none of it."""
    _write(path, lambda partial: partial.write_text(json.dumps(content, indent=1) + "\n"))


def _counted(
    frames: int, label: Callable[[int], Tensor], info: DatasetInfo, *, threads: int
) -> NDArray[np.int32]:
    def one(index: int) -> NDArray[np.int32]:
        try:
            values = label(index).flatten()
        except DataError as error:
            raise DataError(f"{error} (frame {index} of {frames})") from None
        seen = torch.bincount(values, minlength=info.num_classes)[: info.num_classes].numpy()
        return np.append(seen, len(values) - seen.sum()).astype(np.int32)

    counts = np.zeros((frames, info.num_classes + 1), dtype=np.int32)
    with ThreadPoolExecutor(threads) as pool:
        rows = pool.map(one, range(frames)) if threads > 1 else map(one, range(frames))
        for index, row in _with_progress(enumerate(rows), frames, f"the classes of {info.name}"):
            counts[index] = row
    return counts


def _with_progress(
    rows: Iterator[tuple[int, NDArray]], frames: int, what: str
) -> Iterator[tuple[int, NDArray]]:
    """Say on the error stream how far a long count is."""
    said = time.monotonic()
    for index, row in rows:
        yield index, row
        if time.monotonic() - said > PROGRESS_SECONDS:
            said = time.monotonic()
            print(
                f"counting {what}, once: {index + 1} of {frames} frames",
                file=sys.stderr,
                flush=True,
            )


def _stored(path: Path) -> NDArray | None:
    """The array of a file; None where there is none that can be read."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _write_array(path: Path, array: NDArray) -> None:
    def save(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, array)

    _write(path, save)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, sync=False) as unfinished:
        write(unfinished)


# Fingerprints of a data set: names, sizes and times of its files.


DIGITS = 16
MAX_NAMED = 3  # files that an error names
SAMPLE_RUNS, RUN_LENGTH = (
    64,
    4,
)  # files of a sample: so many runs of neighbours, which are of all kinds (image, label, depth)
SAMPLE_BLOCKS, BLOCK_BYTES = 16, 4096  # of a file


@runtime_checkable
class StoredFrames(Protocol):
    """Frames that know their files."""

    def stored(self) -> Iterable[Path | str]:
        """Every file of the split, for whatever use, in order; a text is a fact that no size tells."""
        ...


def fingerprint(frames: Frames) -> str:
    """A text that differs when frames come, go or change their order or name, and when a file changes its size.

    Times do not count: a copy of a data set is the same data set. For a change that keeps all sizes see :func:`stamp`.
    """
    digest = hashlib.sha256()
    for index in range(len(frames)):
        digest.update(f"{frames.name(index)}\n".encode())
    for item in stored(frames):
        digest.update(f"{item if isinstance(item, str) else f'{item.name} {_facts(item).size}'}\n".encode())
    return digest.hexdigest()[:DIGITS]


def content_sample(frames: Frames) -> str:
    """A text that differs when the content of files does, as far as a sample shows; empty for frames without files.

    Of some 256 files, evenly spread over the split, 16 blocks of 4096 bytes, evenly spread over the file: two data
    sets of equal names and sizes differ, one file that was edited may be missed (see :func:`stamp`).
    """
    paths, digest = list(_paths(frames)), hashlib.sha256()
    starts = range(0, len(paths), max(RUN_LENGTH, len(paths) // SAMPLE_RUNS))
    for path in (path for start in starts for path in paths[start : start + RUN_LENGTH]):
        size = _facts(path).size
        places = sorted(
            {max(0, size - BLOCK_BYTES) * block // (SAMPLE_BLOCKS - 1) for block in range(SAMPLE_BLOCKS)}
        )
        try:
            with open(path, "rb") as file:
                for place in places:
                    file.seek(place)
                    digest.update(file.read(BLOCK_BYTES))
        except OSError:  # reported when it is decoded
            continue
    return digest.hexdigest()[:DIGITS] if paths else ""


def stamp(frames: Frames) -> str:
    """``TIMES@PLACE``; empty for frames without files.

    TIMES differs when a file is written or touched, PLACE when the files lie in other folders: a copy, or another disk.
    A folder is identified by its number on its disk, which it keeps when files in it are edited or replaced, when it is
    moved, and on every machine that has the same network disk.
    """
    times, folders = hashlib.sha256(), dict[Path, int]()
    for path in _paths(frames):
        times.update(f"{path.name} {_facts(path).written}\n".encode())
        if path.parent not in folders:
            folders[path.parent] = _facts(path.parent).number
    if not folders:
        return ""
    place = hashlib.sha256(" ".join(map(str, sorted(folders.values()))).encode())
    return f"{times.hexdigest()[:DIGITS]}@{place.hexdigest()[:DIGITS]}"


def edited(frames: Frames, before: str, seconds: float) -> bool:
    """Whether files may have other content than when ``before``, their :func:`stamp`, was taken; sizes are equal.

    At the same place every other time counts; in a copy times say something where some of its files, but not all,
    were written after ``seconds`` (since 1970, when the run began).
    """
    now = stamp(frames)
    if now.partition("@")[0] == before.partition("@")[0]:
        return False
    written = [_facts(path).written > seconds * 1e9 for path in _paths(frames)]
    return now.partition("@")[2] == before.partition("@")[2] or (any(written) and not all(written))


def changed_since(frames: Frames, seconds: float) -> list[Path]:
    """The newest three of the files that were written, renamed or copied there after a time (seconds since 1970)."""
    changed = {path: _facts(path).changed for path in _paths(frames)}
    newest = sorted((path for path in changed if changed[path] > seconds), key=lambda p: -changed[p])
    return newest[:MAX_NAMED]


def stored(frames: Frames) -> Iterable[Path | str]:
    """The files of a split. Of frames that do not say, the one ``path`` they have, as a text: it is rendered again
    wherever it is missing, so that its time says nothing."""
    if isinstance(frames, StoredFrames):
        return frames.stored()
    path = getattr(frames, "path", None)
    return [f"{path.name} {_facts(path).size}"] if isinstance(path, Path) else []


def _paths(frames: Frames) -> Iterator[Path]:
    return (item for item in stored(frames) if isinstance(item, Path))


class _Facts(NamedTuple):
    """Of a file or folder; these of one that is missing: whoever decodes it will tell."""

    size: int = -1
    written: int = 0  # nanoseconds since 1970, as its content was; a copy may have that of its original
    changed: float = 0.0  # seconds since 1970, as it was itself
    number: int = 0


def _facts(path: Path) -> _Facts:
    try:
        found = os.stat(path)
    except OSError:
        return _Facts()
    return _Facts(found.st_size, found.st_mtime_ns, found.st_ctime, found.st_ino)
