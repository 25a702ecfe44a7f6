"""Whether a data set has changed: names, sizes, times and samples of its files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from hardpix.data.base import Frames

DIGITS = 16
TOLD = 3  # files that an error names
RUNS, IN_A_ROW = (
    64,
    4,
)  # files of a sample: so many runs of neighbours, which are of all kinds (image, label, depth)
BLOCKS, BLOCK = 16, 4096  # of a file


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
    starts = range(0, len(paths), max(IN_A_ROW, len(paths) // RUNS))
    for path in (path for start in starts for path in paths[start : start + IN_A_ROW]):
        size = _facts(path).size
        places = sorted({max(0, size - BLOCK) * block // (BLOCKS - 1) for block in range(BLOCKS)})
        try:
            with open(path, "rb") as file:
                for place in places:
                    file.seek(place)
                    digest.update(file.read(BLOCK))
        except OSError:  # reported when it is decoded
            continue
    return digest.hexdigest()[:DIGITS] if paths else ""


def stamp(frames: Frames) -> str:
    """``TIMES@PLACE``; empty for frames without files.

    TIMES differs when a file is written or touched, PLACE when the files lie in other folders: a copy, or another disk.
    A folder is told by its number on its disk, which it keeps when files in it are edited or replaced, when it is
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
    return newest[:TOLD]


def stored(frames: Frames) -> Iterable[Path | str]:
    """The files of a split. Of frames that do not tell, the one ``path`` they have, as a text: it is rendered anew
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
