"""A process that trains the jobs of a pool, one after the other: ``python -m hardpix.sweep.worker DESCRIPTOR``."""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from hardpix.sweep.execute import freeze_imports, gc_unfrozen, terminable, work
from hardpix.sweep.jobs import Job

Task = tuple[Job, bool]  # with take_over


def main(descriptor: int) -> int:
    """Say ``None`` when ready; then of every job its ``State`` as it begins, and how it has ``Ended``."""
    channel = Connection(descriptor)
    tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(channel, tasks), daemon=True).start()
    faulthandler.enable()  # where a crash happened is the last thing in the run's output
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with terminable() as stopped, gc_unfrozen():
        freeze_imports()
        channel.send(None)
        while (task := tasks.get()) is not None:
            job, take_over = task
            ended = work(
                job,
                lambda state: channel.send(state._replace(record=None)),
                take_over=take_over,
                to_file=True,
            )
            channel.send(ended)
            if stopped or ended.status:
                return 128 + stopped[0] if stopped else ended.status
    return 0


def _receive(channel: Connection, tasks: queue.SimpleQueue[Task | None]) -> None:
    """Pass tasks on, also while one runs: that way the end of the pool's process is noticed at once."""
    try:
        while True:
            tasks.put(channel.recv())
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)  # with the data loaders; the next sweep goes on from the last checkpoint


if __name__ == "__main__":
    if os.environ.get("HARDPIX_JOB") and os.environ.get("LOCAL_RANK", "0") != "0":
        from hardpix.train.train import (
            join,  # Lightning starts further processes of a run with this command line
        )

        join(Path(os.environ["HARDPIX_JOB"]))
    else:
        sys.exit(main(int(sys.argv[1])))
