"""Where the jobs of a study run: what a study says of it, and which launcher that is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hardpix.run.targets import COMMANDS
from hardpix.types import ConfigError

if TYPE_CHECKING:
    from hardpix.run.sweep.jobs import Job
    from hardpix.run.sweep.study import Study

KEYS = ("workers", "devices")
KINDS = ("here", "slurm")


@dataclass(frozen=True)
class Launcher:
    """``workers`` processes, dealt out to the devices in turn: 4 on two GPUs are two on each."""

    workers: int | Literal["auto"] = 0  # 0: in this process; auto: one per GPU, without a GPU one per core
    devices: tuple[str, ...] | Literal["auto"] = "auto"  # CUDA_VISIBLE_DEVICES of each; auto: all GPUs
    kind: Literal["here", "slurm"] = "here"
    settings: Mapping[str, Any] = field(default_factory=dict)  # of slurm, as its plugin names them


HERE = Launcher()


def read_launcher(node: Any, where: str, *, own_word: bool = True) -> Launcher:
    """``{workers: 4, devices: [0, 1]}``, or ``{kind: slurm, partition: gpu, ...}``.

    ``own_word``: whether it is the user's own, of the command line; a file's must not hold commands.
    Raises ``ConfigError`` that begins with ``where``.
    """
    if node is None:
        return HERE
    if node in KINDS:
        node = {"kind": node}
    if isinstance(node, dict) and "kind" in node:
        kind, node = node["kind"], {key: value for key, value in node.items() if key != "kind"}
        if kind not in KINDS:
            raise ConfigError(f"{where}launcher.kind={kind}: must be {' or '.join(KINDS)}")
        for key in node if not own_word else ():
            if key in COMMANDS:
                raise ConfigError(
                    f"{where}launcher.{key}: is set by a file; it runs commands, so give it on the command line, "
                    f"'launcher.{key}=...'"
                )
        if kind == "slurm":
            return Launcher(kind="slurm", settings=node)
        if not node:
            return HERE
    if not isinstance(node, dict) or set(node) - set(KEYS):
        raise ConfigError(f"{where}launcher={node}: must be a mapping with some of {', '.join(KEYS)}")
    workers, devices = node.get("workers", "auto"), node.get("devices", "auto")
    if str(workers) != "auto" and not (type(workers) in (int, str) and str(workers).isdecimal()):
        raise ConfigError(
            f"{where}workers={workers}: must be a whole number of processes, 0 for none besides this one, or auto"
        )
    listed = isinstance(devices, list | tuple) and all(type(d) in (int, str) for d in devices)
    if devices != "auto" and not listed:
        raise ConfigError(f"{where}devices={devices}: must be auto or a list of GPUs, such as [0, 1]")
    return Launcher(
        "auto" if workers == "auto" else int(workers),
        "auto" if devices == "auto" else tuple(map(str, devices)),
    )


def timed(study: Study, jobs: Sequence[Job], *, take_over: bool = False) -> int:
    """Run, print the summary, and return the exit status: 1 if a job failed, 130 or 143 after a signal.

    On a cluster the jobs are submitted, and that is all.
    """
    if study.launcher.kind == "slurm":
        from hardpix.run.sweep.slurm import submit

        return submit(study, jobs, study.launcher.settings, take_over=take_over)
    from hardpix.run import world
    from hardpix.run.sweep.execute import run_here, summary
    from hardpix.run.sweep.pool import run_pool
    from hardpix.run.sweep.state import look

    begin = time.perf_counter()
    before = {job.number: look(job.run_dir, take_over=take_over) for job in jobs}
    launch = run_here if study.launcher.workers == 0 else run_pool
    outcome = launch(study, jobs, take_over=take_over)
    if world.rank() > 0:
        return outcome.status
    print("\n" + summary(jobs, outcome, before, time.perf_counter() - begin), flush=True)
    unfinished = {"failed", "interrupted"} & set(outcome.ends.values())
    return outcome.status or (1 if unfinished else 0)
