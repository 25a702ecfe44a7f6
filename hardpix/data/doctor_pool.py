"""Looks at the frames of a data set in several processes, one of which may die without taking the others' work."""

from __future__ import annotations

import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext

import torch

from hardpix.data.doctor_frame import Fault, FrameFacts
from hardpix.data.doctor_plan import SplitPlan
from hardpix.types import DataError

FEW = 300  # frames that are looked at before other processes have started
CHUNK = 8  # frames at a time
MAX_DEATHS = 8  # of processes; more are the machine's fault and not a frame's

Job = tuple[int, Sequence[int]]  # number of the plan, frames
Result = tuple[int, list[FrameFacts]]

_plans: list[SplitPlan] = []  # of a worker


def look_at(plans: Sequence[SplitPlan], chosen: Sequence[Sequence[int]], workers: int) -> Iterator[Result]:
    """The facts of the ``chosen`` frames of each plan, in any order.

    A process that dies costs the frame that it looked at, as a fault. A source that does not pickle is looked
    at in this process.
    """
    jobs = [
        (number, frames[start : start + CHUNK])
        for number, frames in enumerate(chosen)
        for start in range(0, len(frames), CHUNK)
    ]
    cargo = _pickled(plans) if workers > 1 and sum(map(len, chosen)) >= FEW else None
    if cargo is None:
        yield from ((number, [plans[number].look(index) for index in frames]) for number, frames in jobs)
        return
    waiting, deaths = deque(jobs), 0
    while waiting:
        suspects: list[Job] = []
        yield from _until_a_death(cargo, waiting, workers, suspects)
        for job in suspects:
            for number, facts in _one_by_one(cargo, job, plans[job[0]].names):
                deaths += any(fault.code == "worker-died" for fact in facts for fault in fact.faults)
                if deaths > MAX_DEATHS:
                    raise DataError(
                        f"{facts[0].faults[0].sentence}, like {MAX_DEATHS} before it; "
                        "memory may be short: try --workers 1"
                    )
                yield number, facts


def _until_a_death(cargo: bytes, waiting: deque[Job], workers: int, suspects: list[Job]) -> Iterator[Result]:
    """Results of the jobs, taken from ``waiting``, until all are done; those under way at a death are suspects."""
    running: dict[Future, Job] = {}
    with _pool(cargo, workers) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < 3 * workers:
                    job = waiting[0]
                    running[pool.submit(_look, job)] = job
                    waiting.popleft()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    del running[future]
                    yield result
        except BrokenProcessPool:
            suspects += running.values()


def _one_by_one(cargo: bytes, job: Job, names: Sequence[str]) -> Iterator[Result]:
    number, left = job[0], deque(job[1])
    while left:
        with _pool(cargo, 1) as pool:
            try:
                while left:
                    yield pool.submit(_look, (number, [left[0]])).result()
                    left.popleft()
            except BrokenProcessPool:
                index = left.popleft()
                sentence = f"{names[index]}: the process that looked at it was killed"
                yield number, [FrameFacts(index, [Fault("worker-died", sentence)])]


def _pool(cargo: bytes, workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=_context(), initializer=_start, initargs=(cargo,))


def _context() -> BaseContext:
    """No fork of this process: torch's threads and open HDF5 files do not survive one.

    Where there is a fork server, it imports torch once for all of its children.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _pickled(plans: Sequence[SplitPlan]) -> bytes | None:
    try:
        return pickle.dumps(list(plans))
    except Exception:  # whatever a user's source raises
        return None


def _start(cargo: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word: the main process says it
    torch.set_num_threads(1)
    _plans[:] = pickle.loads(cargo)


def _look(job: Job) -> Result:
    number, frames = job
    look: Callable[[int], FrameFacts] = _plans[number].look
    return number, [look(index) for index in frames]
