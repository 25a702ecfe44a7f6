"""Calls that may take for ever, made by a thread of their own: who gives them never waits longer than was agreed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

MOST = 20_000  # calls that wait; with more, the thread has hung for hours


class Errands:
    """Makes calls one after another, in the order in which they are given.

    ``patience``: seconds that ``wait`` and ``end`` may take in sum. A call must not raise. The thread is a daemon: the
    process ends without it. Of several in one process, the next begins where the one before has ended.
    """

    _former: threading.Thread | None = None

    def __init__(self, patience: float) -> None:
        self.patience, self.complete = patience, True
        self._calls: deque[Callable[[], object]] = deque()
        self._given = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, args=(Errands._former,), daemon=True)
        Errands._former = self._thread
        self._thread.start()

    def _work(self, former: threading.Thread | None) -> None:
        if former is not None:
            former.join()
        while True:
            self._given.acquire()
            if not self._calls:
                return
            self._calls.popleft()()

    def give(self, call: Callable[[], object]) -> None:
        """Have ``call`` made, some time; never, where MOST others wait already."""
        if len(self._calls) >= MOST:
            self.complete = False
            return
        self._calls.append(call)
        self._given.release()

    def wait(self, seconds: float) -> bool:
        """Whether all calls so far are over, waiting for at most ``seconds`` of the patience."""
        over = threading.Event()
        self.give(over.set)
        begin = time.monotonic()
        found = over.wait(max(0.0, min(seconds, self.patience)))
        self.patience -= time.monotonic() - begin
        return found

    def end(self) -> bool:
        """No further calls; whether all that were given are over, waiting for the rest of the patience."""
        self._given.release()
        begin = time.monotonic()
        self._thread.join(max(0.0, self.patience))
        self.patience -= time.monotonic() - begin
        return self.complete and not self._thread.is_alive()
