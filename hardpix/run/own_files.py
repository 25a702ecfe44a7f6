"""A run's directory holds the run's own files: what is written there changes nothing elsewhere and waits for nobody.

A directory that was unpacked or copied from others may hold links, pipes and second names of files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from hardpix.types import ConfigError

IN_PLACE = (".lock", "metrics.csv", "output.log")  # are written where they are; the others are replaced
LINKED_INSIDE = (
    "wandb"  # W&B's folder: links in it lead to its newest run, and RUN/logs/* to logs it keeps elsewhere
)


def check(folder: Path, *, deep: bool = True) -> None:
    """``ConfigError`` for what is neither a file nor a folder of ``folder``'s own, in it or (``deep``) anywhere below.

    ``folder`` itself may be reached by a link: where runs lie is the user's choice. So are, without ``deep`` (a study,
    whose runs are asked one by one), links to folders; the names with a dot there are the program's.
    """
    for entry in _entries(folder, deep):
        path = Path(entry.path)
        if entry.is_symlink():
            if deep and not _leads_within(path, folder / LINKED_INSIDE):
                raise ConfigError(f"{path} is a link: a run is only written into files of its own")
            if not deep and (entry.name.startswith(".") or not path.is_dir()):
                raise ConfigError(f"{path} is a link: a study is only written into files of its own")
        elif not entry.is_dir() and not entry.is_file():
            raise ConfigError(f"{path} is neither a file nor a folder: remove it, or give another run=")
        elif entry.name in IN_PLACE and path.parent == folder and _names(path) > 1:
            raise ConfigError(f"{path} is also a file elsewhere (a hard link): put a copy in its place")


def make_folder(folder: Path) -> None:
    """Make ``folder`` for results; ``ConfigError`` where a link to somewhere else has its name."""
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a link: results are only written into folders of their own")
    folder.mkdir(parents=True, exist_ok=True)


def open_lock(path: Path) -> int:
    """A handle to the file ``path``, made if need be; ``ConfigError`` where that is no file, or not this one alone."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be opened as a file of its own ({error.strerror})") from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(handle)
        raise ConfigError(f"{path}: must be a file of its own, neither a pipe nor a hard link; remove it")
    return handle


def _entries(folder: Path, deep: bool) -> Iterator[os.DirEntry[str]]:
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # writing there will tell
        return
    for entry in found:
        yield entry
        if deep and entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path), deep)


def _leads_within(link: Path, folder: Path) -> bool:
    if folder.is_symlink() or not link.is_relative_to(folder):
        return False
    log = link.relative_to(folder).parts[1:-1] == (
        "logs",
    )  # of a run that is over: nothing writes there again
    return log or link.resolve().is_relative_to(folder.resolve())


def _names(path: Path) -> int:
    try:
        return path.lstat().st_nlink
    except FileNotFoundError:
        return 1
