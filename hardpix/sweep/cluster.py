"""Jobs in the queue of a cluster, through Hydra's launchers submitit_slurm and submitit_local."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from hardpix import record, secrets
from hardpix.config.trust import check_one_line
from hardpix.sweep import state as states
from hardpix.sweep.jobs import Job
from hardpix.train import machine, rundir
from hardpix.train.signals import terminable
from hardpix.types import ConfigError

TURNS = 50  # how often a job of a cluster that ran out of time goes on


def processes(job: Job) -> tuple[int, int]:
    """(nodes, processes on each) of a job."""
    trainer = job.config().trainer
    devices = len(trainer.devices) if OmegaConf.is_list(trainer.devices) else trainer.devices
    return int(trainer.num_nodes), devices if isinstance(devices, int) and devices > 0 else 1


def shapes(jobs: Sequence[Job]) -> list[list[Job]]:
    """One array for the jobs of one number of nodes and processes."""
    found: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        found.setdefault(processes(job), []).append(job)
    return list(found.values())


def prepare_queue(config: DictConfig, folder: Path, first: Job, batch: Sequence[Job] = ()) -> None:
    """Complete the parameters of the queue, and write down by what each job will be found in it."""
    conf = config.hydra.launcher
    check_one_line(str(folder), "the study's folder")
    given = {str(o).partition("=")[0].lstrip("+") for o in config.hydra.overrides.hydra}
    slurm = "Slurm" in str(conf._target_)
    with open_dict(config):
        config.hydra.sweep.dir = str(folder)
        own = conf.name if "hydra.launcher.name" in given else f"hardpix-{folder.name}"
        conf.name = f"{own}-{rundir.new_id()[:6]}"
        if slurm:
            for key, value in zip(("nodes", "tasks_per_node"), processes(first), strict=True):
                if f"hydra.launcher.{key}" in given and conf[key] != value:
                    raise ConfigError(
                        f"hydra.launcher.{key}={conf[key]}: trainer of {first.name} has {value}; give both the same"
                    )
                conf[key] = value
            extra: Any = OmegaConf.to_container(conf.additional_parameters)
            conf.additional_parameters = {"requeue": True} | extra
            if "hydra.launcher.max_num_timeout" not in given:
                conf.max_num_timeout = TURNS
    settings: Any = OmegaConf.to_container(conf, resolve=True)
    check_one_line({k: v for k, v in settings.items() if k != "setup"}, "hydra.launcher")
    if problems := secrets.problems(record.flatten(settings)):
        raise ConfigError(f"hydra.launcher.{problems[0]}")
    if slurm:
        for index, job in enumerate(batch):
            states.record_submission(job.run_dir, f"{conf.name}/{index if len(batch) > 1 else ''}")
        states.refresh_queue()
        print("submitted; Ctrl-C ends the waiting for the jobs, and they stay in the queue", flush=True)


@contextmanager
def on_cluster(run_dir: Path) -> Iterator[None]:
    """In a job of submitit: save when the time is nearly over or room must be made, then requeue."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        yield
        return
    if machine.rank() == 0 and states.own_job():
        states.record_submission(run_dir, str(states.own_job()))
    number = next((n for n in (signal.SIGUSR2, signal.SIGUSR1) if callable(signal.getsignal(n))), None)
    again: Any = (
        None if number is None else signal.getsignal(number)
    )  # writes down what is left, requeues, exits
    warned: list[int] = []

    def warn(*_: object) -> None:
        """The time is nearly over: train as it ends on SIGTERM, at the end of a step, with a checkpoint."""
        warned.append(1)
        training = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if len(warned) == 1 and not getattr(training, "received", 0):  # a second one would end it at once
            os.kill(os.getpid(), signal.SIGTERM)

    if number is not None:
        signal.signal(number, warn)
    try:
        with machine.masked_output(), machine.masked_errors(), terminable():
            yield
    except SystemExit as stop:
        by = (143, 128 + number) if number is not None else ()
        if machine.rank() == 0 and stop.code in by and (warned or stop.code != 143 or _makes_room()):
            again(number, None)
        if stop.code not in (130, 138, 143):
            raise
        # Interrupted, as the run's record says: the launcher waits for a result, which an exit would not leave.


def _makes_room() -> bool:
    """Whether SIGTERM came of a pre-emption: one who cancels the job wants it to end."""
    states.refresh_queue()
    try:
        return states.queue_states().get(states.own_job() or "") in ("RUNNING", "PREEMPTED")
    except Exception:  # without an answer nothing is asked of the queue
        return False
