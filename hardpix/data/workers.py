"""Processes that load data: signals that are meant for a run do not end them, and they end with the run."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

# What a terminal, `timeout`, a cluster or a container sends to all processes of a run.
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
PR_SET_PDEATHSIG = 1  # of prctl, Linux alone


@contextmanager
def shielded(loader: DataLoader) -> Iterator[None]:
    """Workers that ``loader`` starts in the block ignore ``SIGNALS``, from their first moment on.

    They are forked with these signals blocked, and then ignore them: torch sets its own handlers before it calls
    ``worker_init_fn``.
    """
    inner = loader.worker_init_fn
    main = threading.current_thread() is threading.main_thread()
    loader.worker_init_fn = partial(_begin, inner, os.getpid() if main else None)
    blocked = (
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if hasattr(signal, "pthread_sigmask") else None
    )
    try:
        with _deferred() if main else nullcontext():
            yield
    finally:
        if blocked is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        loader.worker_init_fn = inner


@contextmanager
def _deferred() -> Iterator[None]:
    """Python's handlers of ``SIGNALS`` run after the block.

    Another thread may take a signal that the main one blocks; an exception of a handler would be lost in the
    callbacks of a fork, which hold locks.
    """
    received: list[int] = []
    handlers: dict[int, Any] = {one: signal.getsignal(one) for one in SIGNALS}
    handlers = {one: handler for one, handler in handlers.items() if callable(handler)}
    for one in handlers:
        signal.signal(one, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
        for number in received:
            handlers[number](number, None)


def _begin(inner: Callable[[int], Any] | None, parent: int | None, number: int) -> None:
    """In a worker."""
    signal.set_wakeup_fd(-1)  # the parent's
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if parent is not None:
        end_with_parent(parent)
    if inner is not None:
        inner(number)


def end_with_parent(parent: int | None = None) -> None:
    """Have the system end this process when the thread that started it ends, however it ends.

    ``parent``: its process; one that is gone already ends this one here. Elsewhere than on Linux nothing is done:
    torch's workers look after their parent every five seconds.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os._exit(1)


def killable(workers: list[Any]) -> None:
    """Have those that do not end by themselves killed: torch and multiprocessing send SIGTERM, which they ignore."""
    _quiet_exit()
    for worker in workers:
        process = getattr(worker, "_popen", None)
        if process is not None and hasattr(process, "kill"):
            process.terminate = process.kill


@cache
def _quiet_exit() -> None:
    """Where multiprocessing ends workers as the program exits, torch's handler must not take it for a fault."""
    if hasattr(signal, "SIGCHLD"):
        atexit.register(signal.signal, signal.SIGCHLD, signal.SIG_DFL)
