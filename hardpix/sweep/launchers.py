"""The launcher of a sweep that has workers: long-lived processes on this machine, one job at a time each.

A worker that dies costs the job that it had and is replaced; workers end with this process, however it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from hardpix.run.signals import SETTLE, STOPPING
from hardpix.run.sweep.execute import Ended, Outcome, lost
from hardpix.run.sweep.jobs import Job
from hardpix.run.sweep.launchers import Launcher
from hardpix.run.sweep.state import INTERRUPTED, LOST, State, look
from hardpix.run.sweep.study import Study
from hardpix.types import ConfigError, HardpixError

WORKER = "hardpix.run.sweep.worker"
PAUSE = 0.2  # seconds between two looks at processes and signals
PATIENCE = 10.0  # seconds that an idle worker has for ending
STILLBORN = 3  # workers in a row that end before they have begun a job


@dataclass
class Worker:
    slot: int
    process: subprocess.Popen
    channel: Connection
    ready: bool = False
    job: Job | None = None
    attempt: int = 0
    begun: bool = False  # whether it has said so of the job

    def kill(self) -> None:
        """With its data loaders and whatever else it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def run_pool(study: Study, jobs: Sequence[Job], *, take_over: bool = False) -> Outcome:
    """Bring every job to its end, as far as it is not there yet; they are handed out in their order."""
    if os.name == "nt":
        raise ConfigError(
            "workers: Windows has no process groups to end them by; leave it out, or set it to 0"
        )
    pool = _Pool(study, jobs, take_over)
    with _noted() as signals:
        try:
            while pool.step(signals):
                pass
        finally:
            pool.close()
    return pool.outcome


class _Pool:
    def __init__(self, study: Study, jobs: Sequence[Job], take_over: bool) -> None:
        self.study, self.take_over = study, take_over
        self.outcome = Outcome(len(jobs))
        self.waiting: deque[tuple[Job, int]] = deque()  # with the number of the attempt
        for job in jobs:
            state = look(job.run_dir)
            if state.kind == "done":
                self._passed_over(job, state)
            else:
                self.waiting.append((job, 1))
        self.environments = environments(study.launcher, len(self.waiting))
        self.workers: list[Worker] = []
        self.halted = False  # no further job begins
        self.heard = 0  # signals
        self.stillborn = 0

    def step(self, signals: Sequence[int]) -> bool:
        """Pass on signals and jobs, wait a moment for news; False when there is nothing left to wait for."""
        self._obey(signals)
        self._hand_out()
        busy = [worker for worker in self.workers if worker.job is not None]
        if not busy and (self.halted or not self.waiting):
            return False
        while not self.halted and len(self.workers) < min(
            len(self.environments), len(busy) + len(self.waiting)
        ):
            self.workers.append(self._started())
        wait([worker.channel for worker in self.workers], PAUSE)
        for worker in list(self.workers):
            self._hear(worker)
        return True

    def _obey(self, signals: Sequence[int]) -> None:
        """The first signal lets running jobs save and end, the second ends them."""
        for number in signals[self.heard : 2]:
            self.halted = True
            self.outcome.status = self.outcome.status or 128 + number
            for worker in self.workers:
                if self.heard == 0 and worker.job is not None:
                    worker.process.terminate()
                else:
                    worker.kill()
            self.heard += 1

    def _hand_out(self) -> None:
        while self.waiting and not self.halted:
            job, attempt = self.waiting[0]
            state = look(job.run_dir, take_over=self.take_over)
            if state.kind in ("done", "running"):
                self.waiting.popleft()
                self._passed_over(job, state)
                continue
            idle = next((worker for worker in self.workers if worker.ready and worker.job is None), None)
            if idle is None:
                return
            try:
                idle.channel.send((job, self.take_over))
            except OSError:  # it has just died
                return
            self.waiting.popleft()
            idle.job, idle.attempt, idle.begun = job, attempt, False
            self.outcome.begun(job, state, f"; worker {idle.slot + 1}")

    def _passed_over(self, job: Job, state: State) -> None:
        self.outcome.begun(job, state)
        self.outcome.ended(job, Ended(state.kind))

    def _started(self) -> Worker:
        taken = {worker.slot for worker in self.workers}
        slot = next(slot for slot in range(len(self.environments)) if slot not in taken)
        ours, theirs = Pipe()
        words = [sys.executable, "-P", "-m", WORKER, str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(
                words,
                env=os.environ | self.environments[slot],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is for this process, which tells them
            )
        return Worker(slot, process, ours)

    def _hear(self, worker: Worker) -> None:
        gone = worker.process.poll() is not None  # asked first: what it has said before is all there
        try:
            while worker.channel.poll():
                self._understand(worker, worker.channel.recv())
        except (EOFError, OSError):
            pass
        if gone:
            self._bury(worker)

    def _understand(self, worker: Worker, said: State | Ended | None) -> None:
        if worker.job is None:
            worker.ready = True
        elif isinstance(said, State):
            worker.begun, self.stillborn = True, 0
            if said.kind in ("done", "running"):  # by another sweep, since it was handed out
                self.outcome.begun(worker.job, said)
        elif said is not None:
            self._settle(worker, said)

    def _settle(self, worker: Worker, ended: Ended) -> None:
        job, worker.job = worker.job, None
        assert job is not None
        self.outcome.ended(job, ended)
        if ended.kind == "failed" and not self.halted:
            if worker.attempt < self.study.tries:
                self.waiting.appendleft((job, worker.attempt + 1))
            self.halted = self.study.on_error == "stop"

    def _bury(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.kill()
        worker.channel.close()
        code = worker.process.returncode
        how = f"killed by signal {-code}" if code < 0 else f"ended with status {code}"
        if worker.job is not None and worker.begun:
            self._settle(worker, lost(worker.job, INTERRUPTED if self.heard else LOST + how))
            return
        if worker.job is not None:
            self.waiting.appendleft((worker.job, worker.attempt))
        self.stillborn += 1
        if self.stillborn == STILLBORN and not self.halted:
            raise HardpixError(f"{STILLBORN} workers in a row could not begin (the last {how}); see above")

    def close(self) -> None:
        for worker in self.workers:
            if worker.ready and worker.job is None:
                with suppress(OSError):
                    worker.channel.send(None)
            else:
                worker.kill()
        for worker in self.workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(PATIENCE)
            worker.kill()
            worker.process.wait()
            worker.channel.close()
            if worker.job is not None and worker.begun:
                lost(worker.job, INTERRUPTED)


def environments(launcher: Launcher, jobs: int) -> list[dict[str, str]]:
    """What each worker's environment has besides this process's, at most one worker for each of so many jobs.

    ``OMP_NUM_THREADS`` is the cores divided by the workers unless it is set: sums of floats depend on it.
    """
    devices = gpus() if launcher.devices == "auto" else launcher.devices
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = (len(devices) or cores) if launcher.workers == "auto" else launcher.workers
    common = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    if not os.environ.get("OMP_NUM_THREADS"):
        common["OMP_NUM_THREADS"] = str(max(1, cores // workers))
    if devices and not os.environ.get("CUDA_VISIBLE_DEVICES"):
        common["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the numbers of nvidia-smi
    given = [
        {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else {} for slot in range(workers)
    ]
    return [common | own for own in given][:jobs]


def gpus() -> tuple[str, ...]:
    """What is in ``CUDA_VISIBLE_DEVICES``, else the numbers of this machine's GPUs; CUDA is not started."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part.strip() for part in visible.split(",") if part.strip() not in ("", "-1"))
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(done.stdout.split()) if done.returncode == 0 else ()


@contextmanager
def _noted() -> Iterator[list[int]]:
    """A list that Ctrl-C, SIGTERM and SIGUSR1 fill instead of ending the process."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    since = 0.0

    def note(number: int, _: object) -> None:
        nonlocal since
        if not signals or time.monotonic() - since >= SETTLE:
            since = time.monotonic()
            signals.append(number)

    before = [signal.signal(kind, note) for kind in STOPPING]
    try:
        yield signals
    finally:
        for kind, handler in zip(STOPPING, before, strict=True):
            signal.signal(kind, handler)
