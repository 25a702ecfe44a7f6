"""How far a long command is: bars on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hardpix.data.prepare.recipe import Bar

PAUSE = 5.0  # seconds between two lines


@contextmanager
def progress() -> Iterator[Bar]:
    """A function that is told title, done, total and perhaps a note, and shows them until the block ends."""
    if not sys.stdout.isatty():
        yield PlainBars()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns) as shown:
        tasks: dict[str, TaskID] = {}

        def bar(title: str, done: int, total: int, note: str = "") -> None:
            if title not in tasks:
                tasks[title] = shown.add_task(title, note="")
            shown.update(tasks[title], completed=done, total=total, note=note)

        yield bar


class PlainBars:
    """A line every few seconds, and one at the end of each title, for logs and cluster queues."""

    def __init__(self, pause: float = PAUSE) -> None:
        self._pause, self._last, self._ended = pause, time.monotonic(), ""

    def __call__(self, title: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if done >= total and self._ended != title:
            self._ended = title
        elif done >= total or now - self._last < self._pause:
            return
        self._last = now
        print(f"{title}: {done}/{total}{note and f', {note}'}", flush=True)
