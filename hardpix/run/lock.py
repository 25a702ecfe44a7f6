"""One writer per run directory."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hardpix.run import own_files, rundir
from hardpix.types import ConfigError

FILE_NAME = ".lock"

_held: set[Path] = set()  # by this process: a sweep holds a directory, and its launcher's `train` asks again


@contextmanager
def held(run_dir: Path) -> Iterator[bool]:
    """Whether this process alone may write to a run's directory until the block ends, or the process.

    The lock is the operating system's, and so never stale; the file says whose it is. On a file system without
    locks the process that the file names decides, as far as it can be seen from here. ``ConfigError`` where the lock
    is a link, a pipe or the like.
    """
    key = run_dir.absolute()
    if key in _held:
        yield True
        return
    rundir.claim(run_dir)
    handle = own_files.open_lock(run_dir / FILE_NAME)
    try:
        if not _lock(handle, run_dir):
            yield False
            return
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} {platform.node()}\n".encode(), 0)
        _held.add(key)
        try:
            yield True
        finally:
            _held.discard(key)
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


@contextmanager
def writing(run_dir: Path) -> Iterator[None]:
    """Hold a run's directory, or raise ``ConfigError`` with the name of the process that does."""
    with held(run_dir) as free:
        if not free:
            raise ConfigError(
                f"{run_dir}: {holder(run_dir)} is writing here; wait for it or stop it, or give another run="
            )
        yield


def holder(run_dir: Path) -> str:
    """``process 123 on host``."""
    try:
        pid, host = (run_dir / FILE_NAME).read_text().split()
    except (OSError, ValueError):
        return "another process"
    return f"process {pid} on {host}"


def _lock(handle: int, run_dir: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return _unclaimed(run_dir)
    try:
        fcntl.lockf(
            handle, fcntl.LOCK_EX | fcntl.LOCK_NB
        )  # not flock, which a data worker would go on holding
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return _unclaimed(run_dir)
    return True


def _unclaimed(run_dir: Path) -> bool:
    try:
        pid, host = (run_dir / FILE_NAME).read_text().split()
    except (OSError, ValueError):
        return True
    return host == platform.node() and not rundir.lives(int(pid))
