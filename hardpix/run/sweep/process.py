"""What a process that trains one job after the other does about itself: memory, signals, further processes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hardpix.run import world
from hardpix.run.signals import STOPPING

# What Lightning sets for the processes that it starts, and takes for the user's own at the next job.
OF_LAUNCHERS = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
CHILD_LEAVES = 60.0  # seconds for a further process to end by itself


@contextmanager
def cleaned() -> Iterator[None]:
    """After the block nothing of its training is left to the next."""
    before = {name: os.environ.get(name) for name in OF_LAUNCHERS}
    try:
        yield
    finally:
        if world.size() == 1:
            _end_children()
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        _clean_up()


def _end_children() -> None:
    """End the processes that Lightning started for DDP, and its thread that would end this one if one of them fails.

    They leave by themselves when the group does; the next job has its own.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            children = thread._child_processes  # type: ignore[attr-defined]
            thread._child_processes = []  # type: ignore[attr-defined]  # it would kill this process for one that failed
            for child in children:
                try:
                    child.wait(CHILD_LEAVES)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def settle() -> None:
    """Set the half a million objects of the imports apart: looking through them took 0.4 s after every job."""
    if gc.get_freeze_count():
        return
    import hardpix.run.train  # noqa: F401

    gc.collect()
    gc.freeze()


def _clean_up() -> None:
    """A network refers to its trainer and back: the next job must not find it in memory."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()


@contextmanager
def thawed() -> Iterator[None]:
    """At the end of a process libraries complain of what was never collected."""
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def terminable() -> Iterator[list[int]]:
    """A list that SIGINT, SIGTERM and SIGUSR1 fill.

    Outside of a training the signal raises; in it, handlers of its own end the run after the current step.
    """
    stopped: list[int] = []

    def handler(number: int, _: object) -> None:
        stopped.append(number)
        if signal.getsignal(number) is handler:
            raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield stopped
    finally:
        for number, former in before.items():
            signal.signal(number, former)
