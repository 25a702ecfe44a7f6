"""Files that are whole or not there: written beside their place, flushed, renamed. Standard library only."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = re.compile(r"\.(?P<stem>.+)\.(?P<pid>\d+)\.partial(\.\w+)?")


@contextmanager
def replacing(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """A path in the same folder, with the same suffix, to write to; after the block the file stands at ``path``.

    If the block or the writing fails, what was at ``path`` stays. ``sync`` makes file and name survive a power cut;
    without it (for the thousands of files of a data set, of which a journal knows the finished ones) only the end
    of the process. Not tempfile: its files are readable by their owner only, and colleagues read one's runs.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield unfinished
        if sync:
            flush(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write tells no name
        raise
    finally:
        unfinished.unlink(missing_ok=True)
    if sync:
        flush(path.parent)


def write_text(path: str | os.PathLike[str], text: str, *, sync: bool = True) -> None:
    with (
        replacing(path, sync=sync) as unfinished,
        open(unfinished, "w", encoding="utf-8", newline="") as file,
    ):
        file.write(text)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; Windows cannot open folders and need not."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does not flush folders
            raise
    finally:
        os.close(handle)


def flush_below(folder: Path, leave_out: str = "") -> None:
    """Wait until every file and name in ``folder`` and below is on the disk, but for its part ``leave_out``."""
    for parent, folders, names in os.walk(folder):
        if leave_out in folders and Path(parent) == folder:
            folders.remove(leave_out)
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():  # what a link leads to was there before
                flush(path)
        flush(Path(parent))


def remove_unfinished(folder: Path) -> list[Path]:
    """Delete what interrupted writers left in ``folder`` and below; returns what was there.

    To be called by whoever has the folder for itself: a file of a writer at work would go too.
    """
    found = [p for p in folder.rglob(".*.partial*") if UNFINISHED.fullmatch(p.name) and p.is_file()]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def obstacle(path: str | os.PathLike[str], *, folder: bool) -> str | None:
    """Why no file (or no ``folder`` with files) can be made at ``path``, with the place that is in the way; else None.

    Tried, not asked: a quota, a full table of files and a read-only disk are seen too, and so they are by root.
    """
    place = Path(path).absolute()
    try:
        if place.is_dir() and not folder:
            return f"{place} is a folder"
        if place.is_file() and not folder:
            place = place.parent
        wanted, place = place, next(p for p in (place, *place.parents) if p.exists())
        if not place.is_dir():
            return f"{place} is a file"
        longest = os.pathconf(place, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        if any(len(os.fsencode(part)) > longest for part in wanted.relative_to(place).parts):
            return f"{place} takes no name of more than {longest} bytes (File name too long)"
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"{place} cannot be written ({error.strerror})"


def free_space(path: Path) -> str:
    """``12 MB free``, for a sentence on a disk that is full."""
    folder = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB free"
