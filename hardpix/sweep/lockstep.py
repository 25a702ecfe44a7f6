"""Run a sweep's jobs in lock-step across torchrun ranks.

The first one looks up what each job needs, takes its lock and writes; the others train what it names. Their words go
through the store at which the processes meet. Each job has a process group of its own, which ends with it, so that a
job that fails in one process fails in all, and the next begins afresh.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from omegaconf import DictConfig

from hardpix.sweep.jobs import Job
from hardpix.train import machine
from hardpix.types import ConfigError, HardpixError

FOREVER = timedelta(days=365)  # a first process may train for long where the others have nothing to do
LEAVE = timedelta(seconds=120)  # to the others for ending a job that has ended here


class Elsewhere(HardpixError):
    """What failed is another process, whose error this is."""


class RankGroup:
    """This process among the others. ``size`` 1: alone, and nothing here does anything."""

    def __init__(self) -> None:
        self.rank, self.size, self.spoken = machine.rank(), machine.size(), 0
        self.store: Any = _store() if self.size > 1 else None

    @property
    def follows(self) -> bool:
        return self.rank > 0

    def agree(self, jobs: Sequence[Job]) -> None:
        """Raise where the processes do not have the same jobs, or a job is not made for so many processes."""
        if self.size == 1:
            return
        for job in jobs:
            check_size(job.config(), self.size, f"job {job.number} ({job.name})")
        own = " ".join(f"{job.number}:{job.fingerprint}:{job.run_dir}" for job in jobs)
        if self.rank == 0:
            self.store.set("jobs", own)
        else:
            self.store.wait(["jobs"], FOREVER)
            if self.store.get("jobs").decode() != own:
                raise ConfigError(
                    f"process {self.rank} on {socket.gethostname()} has other jobs than the first one; start all with "
                    "one command in one folder that they share"
                )

    def say(self, word: str) -> None:
        """To the others: ``train NUMBER fresh|resume`` or ``end``."""
        if self.size > 1:
            self.spoken += 1
            self.store.set(f"word/{self.spoken}", word)

    @contextmanager
    def led(self) -> Iterator[None]:
        """However the block ends, the others end too."""
        try:
            yield
        finally:
            self.say("end")

    def hear(self) -> list[str]:
        self.spoken += 1
        self.store.wait([f"word/{self.spoken}"], FOREVER)
        return self.store.get(f"word/{self.spoken}").decode().split()

    @contextmanager
    def together(self, cfg: DictConfig) -> Iterator[None]:
        """A process group for one training, which all enter and leave; the first one waits until the others have left.

        Where another process failed first, its error is raised in place of the broken connection seen here.
        """
        if self.size == 1:
            yield
            return
        import torch.distributed as dist

        problem: BaseException | None = None
        try:
            dist.init_process_group(
                _backend(cfg), store=dist.PrefixStore(f"job/{self.spoken}", self.store), rank=self.rank,
                world_size=self.size,
            )  # fmt: skip
            yield
        except BaseException as error:
            problem = error
        if dist.is_initialized():
            dist.destroy_process_group()  # whoever waits for this process learns of it now
        self._leave(problem)

    def _leave(self, problem: BaseException | None) -> None:
        own = "" if problem is None else f"{type(problem).__name__}: {problem}"
        self.store.set(f"left/{self.spoken}/{self.rank}", own)
        ends = [f"left/{self.spoken}/{rank}" for rank in range(self.size)]
        if self.rank == 0 and not isinstance(problem, KeyboardInterrupt | SystemExit):
            try:
                self.store.wait(ends, LEAVE)
            except Exception as error:
                raise SystemExit(
                    f"hardpix: a further process has not ended its job within {LEAVE}"
                ) from error
            for rank, key in enumerate(ends[1:], 1):
                said = self.store.get(key).decode()
                if said and (problem is None or _broken(problem)):
                    raise Elsewhere(f"process {rank}: {said}") from problem
        if problem is not None:
            raise problem


def follow(crew: RankGroup, jobs: Sequence[Job], train: Callable[[DictConfig, Job], None]) -> int:
    """What a further process does in a sweep; returns its exit status, which no failed job makes other than 0."""
    known = {job.number: job for job in jobs}
    while (word := crew.hear())[0] == "train":
        job = known[int(word[1])]
        cfg = job.config(resume=word[2] == "resume")
        try:
            with crew.together(cfg):
                train(cfg, job)
        except (KeyboardInterrupt, SystemExit) as error:
            code = error.code if isinstance(error, SystemExit) else 130
            return code if isinstance(code, int) and code else 130
        except Exception:  # the first process has it in its record
            continue
    return 0


def check_size(cfg: DictConfig, size: int, who: str) -> None:
    devices, nodes = cfg.trainer.devices, cfg.trainer.num_nodes
    count = devices if isinstance(devices, int) else len(devices) if not isinstance(devices, str) else None
    if count is not None and count * nodes != size:
        raise ConfigError(
            f"{who}: trainer.devices={devices} on trainer.num_nodes={nodes}, but {size} processes were started; "
            "give as many"
        )


def _broken(problem: BaseException) -> bool:
    """Whether an error only tells that another process is gone."""
    return not isinstance(problem, HardpixError) and "onnection" in str(problem)


def _backend(cfg: DictConfig) -> str:
    import torch

    return "nccl" if torch.cuda.is_available() and cfg.trainer.accelerator != "cpu" else "gloo"


def _store() -> Any:
    """The store at which the processes meet: torchrun's, or one that the first process opens under srun."""
    import torch.distributed as dist

    if "RANK" not in os.environ:
        from pytorch_lightning.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment(auto_requeue=False)
        # the port is Lightning's, which needs none where a process group is there already
        return dist.TCPStore(
            slurm.main_address,
            slurm.main_port,
            machine.size(),
            is_master=machine.rank() == 0,
            wait_for_workers=False,
        )
    store, _, _ = next(dist.rendezvous("env://"))
    return dist.PrefixStore("hardpix", store)
