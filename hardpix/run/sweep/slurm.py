"""The launcher ``slurm`` of a sweep: its jobs go to the queue of a cluster, through submitit.

Settings are those of Hydra's plugin for submitit, by its names (``hydra/launcher=submitit_slurm``). On its node a job
takes the path of any other sweep. Before its time is over, or when it has to make room, SLURM sends a signal: the run
saves, ends and asks for another turn under the same id; that goes on from the checkpoint.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hardpix import secrets
from hardpix.run import console
from hardpix.run.config import nearest
from hardpix.run.lock import held
from hardpix.run.sweep import queue
from hardpix.run.sweep.jobs import Job, counted
from hardpix.run.sweep.state import ACTION, look
from hardpix.run.sweep.study import Study
from hardpix.run.targets import check_one_line
from hardpix.types import ConfigError

TURNS = 50  # how often a job that ran out of time may go on; the plugin's 0 is for programs that cannot
FOLDER = ".submitit"  # beside the runs: scripts, logs and what else submitit keeps
MISSING = 'launcher=slurm needs hydra-submitit-launcher: pip install "hardpix[slurm]"'


class OnNode:
    """What a job of the cluster calls; submitit asks it how to go on after an interruption."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def __call__(self, job: Job) -> str:
        """Bring ``job`` to its end, or as far as time allows; returns what became of it."""
        with console.masked_output(), console.masked_errors():  # submitit writes both to files
            return self._work(job)

    def _work(self, job: Job) -> str:
        from submitit import JobEnvironment

        from hardpix.run.sweep.execute import run_here

        number = JobEnvironment._usr_sig()
        first = JobEnvironment().global_rank == 0
        if first:
            queue.remember(job.run_dir, JobEnvironment().job_id)
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
    queue.ask_anew()
    try:
        return queue.states().get(queue.own_job() or "") in ("RUNNING", "PREEMPTED")
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
    queue.ask_anew()
    sent = {job for some in shapes.values() for job in some}
    for job, state in plan.items():
        known = f"submitted as {queue.job_of(job.run_dir)}" if job in sent else state.why
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
        queue.remember(job.run_dir, sent.job_id)


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
