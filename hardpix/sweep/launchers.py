"""Run a study's jobs in worker processes of this machine or in the queue of a cluster.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hardpix import secrets
from hardpix.config.compose import nearest
from hardpix.config.trust import check_one_line
from hardpix.sweep import jobs as sweep_jobs
from hardpix.sweep.execute import Ended, Outcome, lost
from hardpix.sweep.jobs import ACTION, INTERRUPTED, LOST, Job, State, counted, look
from hardpix.sweep.study import Launcher, Study
from hardpix.train import machine
from hardpix.train.rundir import held
from hardpix.train.signals import SETTLE, STOPPING
from hardpix.types import ConfigError, HardpixError

WORKER = "hardpix.sweep.worker"
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


# The launcher ``slurm`` of a sweep: its jobs go to the queue of a cluster, through submitit.
#
# Settings are those of Hydra's plugin for submitit, by its names (``hydra/launcher=submitit_slurm``). On
# its node a job takes the path of any other sweep. Before its time is over, or when it has to make room,
# SLURM sends a signal: the run saves, ends and asks for another turn under the same id; that goes on from
# the checkpoint.


TURNS = 50  # how often a job that ran out of time may go on; the plugin's 0 is for programs that cannot
FOLDER = ".submitit"  # beside the runs: scripts, logs and what else submitit keeps
MISSING = 'launcher=slurm needs hydra-submitit-launcher: pip install "hardpix[slurm]"'


class OnNode:
    """What a job of the cluster calls; submitit asks it how to go on after an interruption."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def __call__(self, job: Job) -> str:
        """Bring ``job`` to its end, or as far as time allows; returns what became of it."""
        with machine.masked_output(), machine.masked_errors():  # submitit writes both to files
            return self._work(job)

    def _work(self, job: Job) -> str:
        from submitit import JobEnvironment

        from hardpix.sweep.execute import run_here

        number = JobEnvironment._usr_sig()
        first = JobEnvironment().global_rank == 0
        if first:
            sweep_jobs.record_submission(job.run_dir, JobEnvironment().job_id)
        again: Any = signal.getsignal(number)  # submitit's: writes down what is left and requeues, then exits
        warned: list[int] = []

        def warn(*_: object) -> None:
            """The time is nearly over: train as it ends on SIGTERM, at the end of a step, with a checkpoint."""
            warned.append(number)
            training = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
            if len(warned) == 1 and not getattr(training, "received", 0):  # a second one would end it at once
                os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(number, warn)
        outcome = run_here(self.study, [job])
        end = outcome.ends.get(job.number, "interrupted")
        asked = warned or outcome.status == 128 + number  # in a training SIGUSR1 does not come to `warn`
        if outcome.status in (143, 128 + number) and first and (asked or _makes_room()):
            again(number, None)
        if end == "failed" or outcome.status:  # as the queue's own books should have it
            raise SystemExit(outcome.status or 1)
        return end

    def checkpoint(self, job: Job) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def _makes_room() -> bool:
    """Whether SIGTERM came of a pre-emption: one who cancels the job wants it to end."""
    sweep_jobs.refresh_queue()
    try:
        return sweep_jobs.queue_states().get(sweep_jobs.own_job() or "") in ("RUNNING", "PREEMPTED")
    except Exception:  # without an answer nothing is asked of the queue
        return False


def submit(study: Study, jobs: Sequence[Job], settings: Mapping[str, Any], *, take_over: bool = False) -> int:
    """Submit what is not done, running or in the queue already; one array for the jobs of one shape."""
    if study.on_error == "stop":
        raise ConfigError("on_error=stop: on a cluster jobs run side by side; use continue or retry")
    parameters = parameters_of(settings, jobs[0].run_dir.parent.name if jobs else "")
    for folder in {job.run_dir.parent for job in jobs}:
        check_one_line(str(folder), "the study's folder")
    shapes: dict[tuple[int, int], list[Job]] = {}
    with ExitStack() as stack:
        for folder in sorted({job.run_dir.parent for job in jobs}):
            if not stack.enter_context(held(folder)):
                raise ConfigError(f"{folder}: another sweep is submitting this study; wait for it")
        plan = {job: look(job.run_dir, take_over=take_over) for job in jobs}
        for job, state in plan.items():
            if ACTION[state.kind] in ("run", "resume", "retry"):
                shapes.setdefault(shape(job, parameters), []).append(job)
        for (nodes, tasks), some in shapes.items():
            _submit(study, some, parameters | {"nodes": nodes, "tasks_per_node": tasks})
    sweep_jobs.refresh_queue()
    sent = {job for some in shapes.values() for job in some}
    for job, state in plan.items():
        known = f"submitted as {sweep_jobs.job_of(job.run_dir)}" if job in sent else state.why
        print(f"job {job.number} of {len(jobs)}: {job.name} ({known})")
    counts = {"submitted": len(sent)}
    for kind in ("done", "running", "submitted"):
        name = {"submitted": "in the queue before"}.get(kind, kind)
        counts[name] = sum(state.kind == kind and job not in sent for job, state in plan.items())
    print(f"\n{len(jobs)} jobs: {counted(counts)}; hardpix sweep status shows how they go on")
    return 0


def _submit(study: Study, jobs: Sequence[Job], parameters: Mapping[str, Any]) -> None:
    try:
        from submitit import AutoExecutor
    except ImportError:
        raise ConfigError(MISSING) from None
    folder = jobs[0].run_dir.parent.absolute() / FOLDER
    shared = set(_conf("BaseQueueConf"))
    given = {k: v for k, v in parameters.items() if k not in ("max_num_timeout", "submitit_folder")}
    try:
        executor = AutoExecutor(folder, "slurm", slurm_max_num_timeout=parameters["max_num_timeout"])
        executor.update_parameters(**{k if k in shared else f"slurm_{k}": v for k, v in given.items()})
        submitted = executor.map_array(OnNode(study), jobs)
    except Exception as error:  # no srun, a queue that refuses: submitit has several kinds
        said = str(getattr(error, "stderr", "") or error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"launcher=slurm: {said[-1]}") from error
    for job, sent in zip(jobs, submitted, strict=True):
        sweep_jobs.record_submission(job.run_dir, sent.job_id)


def parameters_of(settings: Mapping[str, Any], study: str) -> dict[str, Any]:
    """All of the plugin's settings, those that are given in place of its own; raises for a name or type it lacks."""
    known = _conf("SlurmQueueConf")
    for key in settings:
        if key not in known or key == "submitit_folder":
            raise ConfigError(f"launcher.{key}: no such setting of the launcher{nearest(key, list(known))}")
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    try:  # the plugin's dataclass has the types
        typed = OmegaConf.structured(SlurmQueueConf(name="", submitit_folder=""))
        merged = OmegaConf.to_container(OmegaConf.merge(typed, dict(settings)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"launcher.{error.full_key}: {str(error).splitlines()[0]}") from None
    parameters: dict[str, Any] = {key: merged[key] for key in known}  # type: ignore[index, call-overload]
    parameters |= {"name": settings.get("name", f"hardpix-{study}")}
    parameters["max_num_timeout"] = settings.get("max_num_timeout", TURNS)
    check_one_line({k: v for k, v in parameters.items() if k != "setup"}, "launcher")
    if told := secrets.problems({f"launcher.{key}": value for key, value in settings.items()}):
        raise ConfigError(told[0])
    parameters["additional_parameters"] = {"requeue": True} | parameters["additional_parameters"]
    return parameters


def _conf(name: str) -> dict[str, Any]:
    """The settings of one of the plugin's dataclasses, with its defaults."""
    try:
        from hydra_plugins.hydra_submitit_launcher import config
    except ImportError:
        raise ConfigError(MISSING) from None
    instance = getattr(config, name)(name="", submitit_folder="")
    return {key: value for key, value in vars(instance).items() if key != "_target_"}


def shape(job: Job, parameters: Mapping[str, Any]) -> tuple[int, int]:
    """(nodes, tasks on each) of a job: a task is a process of Lightning's, so its ``trainer`` decides."""
    trainer = job.config().trainer
    devices = trainer.devices if isinstance(trainer.devices, int) and trainer.devices > 0 else 1
    asked = {"nodes": trainer.num_nodes, "tasks_per_node": devices}
    for key, value in asked.items():
        if parameters[key] not in (1, value):
            setting = {"nodes": "trainer.num_nodes", "tasks_per_node": "trainer.devices"}[key]
            raise ConfigError(
                f"launcher.{key}={parameters[key]}: {setting} of job {job.number} ({job.name}) is {value}; "
                "give both the same"
            )
    return trainer.num_nodes, devices


def timed(study: Study, jobs: Sequence[Job], *, take_over: bool = False) -> int:
    """Run, print the summary, and return the exit status: 1 if a job failed, 130 or 143 after a signal.

    On a cluster the jobs are submitted, and that is all.
    """
    if study.launcher.kind == "slurm":
        return submit(study, jobs, study.launcher.settings, take_over=take_over)
    from hardpix.sweep.execute import run_here, summary

    begin = time.perf_counter()
    before = {job.number: look(job.run_dir, take_over=take_over) for job in jobs}
    launch = run_here if study.launcher.workers == 0 else run_pool
    outcome = launch(study, jobs, take_over=take_over)
    if machine.rank() > 0:
        return outcome.status
    print("\n" + summary(jobs, outcome, before, time.perf_counter() - begin), flush=True)
    unfinished = {"failed", "interrupted"} & set(outcome.ends.values())
    return outcome.status or (1 if unfinished else 0)
