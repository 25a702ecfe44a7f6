"""What a process and its children print, on its way to a file: without keys and passwords.

Libraries, C code and further processes write to the descriptors 1 and 2 without asking Python. So a process of its
own (``hardpix/secrets.py``) stands between these and the file. It outlives whoever prints, up to the last word: what
a crash leaves behind is in the file too.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import hardpix.secrets

PATIENCE = 10.0  # seconds for the last words to reach the file
# Signals that a terminal or a cluster sends to all processes of a job.
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT")
    if hasattr(signal, name)
]

_begun: list[subprocess.Popen] = []  # filters that may still run


@contextmanager
def written_to(path: Path) -> Iterator[None]:
    """What this process, its children and libraries print goes to the end of a file, until the block ends."""
    with open(path, "ab") as file:
        _lock(file.fileno(), wait=False)
        filters = [_Filter(file.fileno())]
    with _through(filters * 2, filters):
        yield


@contextmanager
def masked_output() -> Iterator[None]:
    """What this process, its children and libraries print goes where it went before, without secrets."""
    same = os.path.sameopenfile(1, 2)
    filters = [_Filter(1)] if same else [_Filter(1), _Filter(2)]
    with _through([filters[0], filters[-1]], filters):
        yield


def settled(path: Path, seconds: float = PATIENCE) -> None:
    """Wait until what a process that is gone had printed :func:`written_to` ``path`` is there."""
    if path.is_file():
        with open(path, "ab") as file:
            _lock(file.fileno(), wait=True, seconds=seconds)


class Masked(Exception):
    """The traceback of an error, without secrets, for who would write it down otherwise."""


@contextmanager
def masked_errors() -> Iterator[None]:
    """An error of the block is raised as one whose text holds no secret."""
    try:
        yield
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        clean = hardpix.secrets.masked(text)
        if clean == text:
            raise
        raise Masked(clean) from None


class _Filter:
    """A process that writes what comes to ``entry`` to the file ``target``."""

    def __init__(self, target: int) -> None:
        self.token = secrets.token_hex(16)
        read, self.entry = os.pipe()
        self.done, theirs = os.pipe()
        program = [sys.executable, "-I", "-S", hardpix.secrets.__file__, self.token, str(theirs)]
        blocked = (
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if hasattr(signal, "pthread_sigmask") else None
        )
        try:
            with open(os.devnull, "wb") as nowhere:
                process = subprocess.Popen(
                    program,
                    stdin=read,
                    stdout=target,
                    stderr=nowhere,
                    pass_fds=[theirs],
                    start_new_session=True,
                )
        finally:
            if blocked is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            os.close(read)
            os.close(theirs)
        _begun[:] = [one for one in _begun if one.poll() is None] + [process]

    def close(self) -> None:
        """Wait until all that was printed is written; what a lingering child still prints is passed on, too."""
        with suppress(OSError):
            os.write(self.entry, b"\0" + self.token.encode() + b"\n")
        os.close(self.entry)
        answer = select.poll()
        answer.register(self.done, select.POLLIN)
        answer.poll(PATIENCE * 1000)
        os.close(self.done)


@contextmanager
def _through(pair: list[_Filter], filters: list[_Filter]) -> Iterator[None]:
    kept = os.dup(1), os.dup(2)
    try:
        _point(pair[0].entry, pair[1].entry)
        yield
    finally:
        _point(*kept)
        for handle in kept:
            os.close(handle)
        for one in filters:
            one.close()


def _point(out: int, err: int) -> None:
    for stream, number, handle in ((sys.stdout, 1, out), (sys.stderr, 2, err)):
        stream.flush()
        os.dup2(handle, number)


def _lock(handle: int, *, wait: bool, seconds: float = 0.0) -> None:
    """A filter has its file locked for as long as it lives."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    limit = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if not wait or time.monotonic() > limit:
            return
        time.sleep(0.02)
