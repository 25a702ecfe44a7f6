"""What tells a data set from what has become of it: names and sizes of its frames and files, nothing decoded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from hardpix.data.base import Frames

DIGITS = 16
TOLD = 3  # files that an error names


@runtime_checkable
class StoredFrames(Protocol):
    """Frames that know their files."""

    def stored(self) -> Iterable[Path | str]:
        """Every file of the split, for whatever use, in order; a text is a fact that no size tells."""
        ...


def fingerprint(frames: Frames) -> str:
    """A text that differs when frames come, go or change their order or name, and when a file changes its size.

    Times do not count: a copy of a data set, or one that was only touched, is the same data set.
    """
    digest = hashlib.sha256()
    for index in range(len(frames)):
        digest.update(f"{frames.name(index)}\n".encode())
    for item in stored(frames):
        digest.update(f"{item if isinstance(item, str) else f'{item.name} {_size(item)}'}\n".encode())
    return digest.hexdigest()[:DIGITS]


def changed_since(frames: Frames, seconds: float) -> list[Path]:
    """The newest three of the files that were written, renamed or copied there after a time (seconds since 1970)."""
    files = [item for item in stored(frames) if isinstance(item, Path) and item.exists()]
    changed = {path: path.stat().st_ctime for path in files}
    newest = sorted((path for path in files if changed[path] > seconds), key=lambda p: -changed[p])
    return newest[:TOLD]


def stored(frames: Frames) -> Iterable[Path | str]:
    """The files of a split; of frames that do not tell, the one ``path`` they have, or nothing."""
    if isinstance(frames, StoredFrames):
        return frames.stored()
    path = getattr(frames, "path", None)
    return [path] if isinstance(path, Path) else []


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
