"""SIGINT, SIGTERM and SIGUSR1 in a process that trains: it saves and ends; a second one ends it at once.

Python runs handlers in the main thread, between two of its instructions: not while that is in a collective or in
another call that does not return. A watcher thread is notified of every signal as it arrives, by
``signal.set_wakeup_fd``, and ends the process where the main thread cannot.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CodeType, FrameType
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
REPEAT_SECONDS = (
    0.3  # within which a signal counts as the same: `timeout` sends it to a process and its group
)
GRACE = 30.0  # seconds that the main thread may spend in one and the same call after a signal
EXIT_TIMEOUT = 5.0  # seconds for writing the record of a process that is ended at once
PAUSE = 0.5  # seconds between two looks at the main thread
WATCHER_STOP, SECOND_SIGNAL = 0, 255  # sent to the watcher by the main thread, among the numbers of signals

_current: Signals | None = None


class Stopped(SystemExit):
    """A signal has ended the training; the exit status is 128 and the signal's number, as in a shell."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class Signals:
    """What SIGINT, SIGTERM and SIGUSR1 do while the block runs; outside of the main thread it changes nothing.

    The first one raises ``Stopped`` at once inside :meth:`raising`, except in :meth:`steps`, whose caller asks
    :func:`received` after each step, and in :func:`signals_deferred`; outside of :meth:`raising` it does so at the end
    of the block. A second one, or ``grace`` seconds (or twice the longest step so far, if that is more) of the main
    thread in one call, calls ``before_exit`` (which may be set) and ends the process.
    """

    def __init__(self, *, grace: float = GRACE) -> None:
        self.before_exit: Callable[[], object] | None = None
        self.grace = grace
        self.received, self.since = 0, 0.0  # the first signal, and when its handler ran
        self.at_once, self.stepping, self.holding = False, False, 0
        self.ended, self.longest = 0, 0.0  # steps that have ended, and seconds of the longest one
        self.record_lock = threading.Lock()  # for writing the record
        self.process, self.main = os.getpid(), threading.get_ident()
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        global _current
        self.outer, _current = _current, self
        if threading.current_thread() is threading.main_thread():
            self.reader, self.writer = socket.socketpair()
            self.writer.setblocking(False)
            self.wakeup = signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)
            self.watch = threading.Thread(target=self._watch, name="hardpix-signals", daemon=True)
            self.watch.start()
            self.before = {number: signal.signal(number, self._receive) for number in STOPPING}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        global _current
        if self.before:
            for number, handler in self.before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self.wakeup)
            self._tell(WATCHER_STOP)
            self.watch.join()
            self.reader.close()
            self.writer.close()
        _current = self.outer
        if self.received and kind is None:
            raise Stopped(self.received)

    @contextmanager
    def raising(self) -> Iterator[None]:
        self.at_once = True
        try:
            self._raise()
            yield
        finally:
            self.at_once = False

    def status(self, error: BaseException) -> int:
        """Exit status of a process that ends by ``error``, or by a signal that came before it; else 0."""
        return status_of(error) or (128 + self.received if self.received else 0)

    def _raise(self) -> None:
        if self.received and self.at_once and not self.stepping and not self.holding:
            raise Stopped(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a process that was forked from this one
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.received:
            if time.monotonic() - self.since >= REPEAT_SECONDS:
                self._tell(SECOND_SIGNAL)
                time.sleep(2 * EXIT_TIMEOUT)  # the watcher ends the process meanwhile
            return
        self.since, self.received = time.monotonic(), number
        self._raise()
        if self.stepping:
            time.sleep(REPEAT_SECONDS)
            _print(1, f"{signal.Signals(number).name}: saving after this step (once more: stop at once)\n")

    def _tell(self, word: int) -> None:
        with suppress(OSError):
            self.writer.send(bytes([word]))

    def _watch(self) -> None:
        first, since = 0, 0.0
        place, there = self._place(), 0.0
        while True:
            self.reader.settimeout(PAUSE if first else None)
            try:
                said = self.reader.recv(4096)
            except TimeoutError:
                said = b""
            now = time.monotonic()
            for number in said:
                if number == WATCHER_STOP:
                    return
                if number == SECOND_SIGNAL or (
                    first and number in STOPPING and now - since >= REPEAT_SECONDS
                ):
                    self._end(self.received if number == SECOND_SIGNAL else number)
                if number in STOPPING and not first:
                    first, since = number, now
            before, place = place, self._place()
            if not first or place != before or self.holding:
                there = now
            elif now - there >= max(self.grace, 2 * self.longest):
                name, lasted = signal.Signals(first).name, now - there
                where = ", ".join(f"{code.co_name} ({code.co_filename})" for code, _ in place[1][:1])
                self._end(first, f"{name}: ended without saving, {lasted:.0f} s in one call of {where}")

    def _place(self) -> tuple[int, list[tuple[CodeType, int]]]:
        """How many steps have ended, and where the main thread is, to the instruction of each of its frames."""
        frame, found = sys._current_frames().get(self.main), []
        while frame is not None:
            found.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
        return self.ended, found

    def _end(self, number: int, why: str = "") -> None:
        words = threading.Thread(target=self._call_before_exit, daemon=True)
        words.start()
        words.join(EXIT_TIMEOUT)  # the disk may be what hangs
        exit_now(number, why)

    def _call_before_exit(self) -> None:
        with suppress(Exception):
            if self.record_lock.acquire(timeout=EXIT_TIMEOUT) and self.before_exit is not None:
                self.before_exit()


def status_of(error: BaseException) -> int:
    """Exit status of a process that a signal has ended by raising ``error``; 0 for any other error."""
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    if isinstance(error, Stopped):
        return 128 + error.number
    if isinstance(error, SIGTERMException):
        return 143
    return 130 if isinstance(error, KeyboardInterrupt | SystemExit) else 0


def received() -> int:
    """The signal that asks the training of this process to end; 0 while there is none."""
    return 0 if _current is None else _current.received


def steps(begin: bool, *, alone: bool = True) -> None:
    """From here on (or from here on no more) the caller asks for signals after each step.

    ``alone``: where the block ends, one that nobody has asked for raises ``Stopped``. Of several processes the others
    may not know of it.
    """
    if _current is not None:
        _current.stepping = begin
        if alone and not begin:
            _current._raise()


def step_ended(seconds: float = 0.0) -> None:
    """A main thread that ends steps, or is in one call for less than twice the longest one, does not count as stuck."""
    if _current is not None:
        _current.ended += 1
        _current.longest = max(_current.longest, seconds)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """A signal does not raise in the block but at its end, and the block may take as long as it takes."""
    signals = _current
    if signals is None:
        yield
        return
    signals.holding += 1
    try:
        yield
    finally:
        signals.holding -= 1
    signals._raise()


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """In the block, before anything of a run is written, a signal ends the process with its status."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def quit(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        with suppress(Exception):
            sys.stdout.flush()
        exit_now(number, "interrupted")

    numbers = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, quit) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_asked_to_stop: list[int] = []  # the signals that came while a study runs


@contextmanager
def terminable() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGUSR1 raise ``SystemExit``; in a training, handlers of its own end the run first."""
    last = -REPEAT_SECONDS

    def handler(number: int, _: object) -> None:
        nonlocal last
        if (
            time.monotonic() - last < REPEAT_SECONDS
        ):  # `timeout` and others send it to a process and its group
            return
        last = time.monotonic()
        _asked_to_stop.append(number)
        if signal.getsignal(number) is handler:
            check_stopped()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield
    finally:
        _asked_to_stop.clear()
        for number, former in before.items():
            signal.signal(number, former)


def check_stopped() -> None:
    """Raise ``SystemExit`` where a signal has asked the study to end."""
    if _asked_to_stop:
        raise SystemExit(128 + _asked_to_stop[0])


def exit_now(number: int, why: str) -> None:
    """End the process with the status of a signal."""
    if why:
        shown = "\x1b[?25h" if os.isatty(2) else ""  # the cursor, which a progress display may have hidden
        _print(2, f"{shown}hardpix: {why}\n")
    os._exit(128 + number)


def _print(handle: int, text: str) -> None:
    """Past Python's streams, of which the interrupted code may hold a lock, unless a pipe or terminal takes no more."""
    with suppress(OSError, ValueError):
        if hasattr(select, "poll"):
            ready = select.poll()
            ready.register(handle, select.POLLOUT)
            if not any(event & select.POLLOUT for _, event in ready.poll(0)):
                return
        os.write(handle, text.encode())
