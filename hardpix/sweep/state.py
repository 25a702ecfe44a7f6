"""State of a study's runs, read from their records and from the queue of a cluster."""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from hardpix import record
from hardpix.train import rundir
from hardpix.types import HardpixError

ERROR = "error.txt"  # the traceback of a run that failed
INTERRUPTED = record.INTERRUPTED
LOST = "worker "  # how the error of a run begins whose process was killed
CSV = "metrics.csv"

Kind = Literal["done", "running", "submitted", "interrupted", "failed", "pruned", "new"]
ACTION = {
    "done": "skip",
    "running": "leave",
    "submitted": "leave",
    "interrupted": "resume",
    "failed": "retry",
    "pruned": "resume",
    "new": "run",
}
TO_DO = ("run", "resume", "retry")


class State(NamedTuple):
    kind: Kind
    why: str
    record: record.RunRecord | None = None
    resume: bool = False  # whether it goes on from what is there, or starts afresh


def look(run_dir: Path, *, take_over: bool = False) -> State:
    """How far a run is; ``take_over``: one on a machine, or in a queue, that cannot be seen counts as interrupted."""
    state = _recorded(run_dir, take_over=take_over or is_own_submission(run_dir))
    place = None if state.kind == "done" else queue_place(run_dir)
    if place is None or (take_over and place.state is None):
        return state
    if not place.waits:  # its job is no more, wherever it ran
        return _recorded(run_dir, take_over=True) if state.kind == "running" else state
    if state.kind == "running":
        return state._replace(why=f"{state.why}, SLURM job {place.job}")
    how = f"cannot be asked ({place.why}): --take-over if it is lost" if place.state is None else place.state
    return State("submitted", f"submitted as {place.job}: {how}", state.record)


def _recorded(run_dir: Path, *, take_over: bool) -> State:
    """What lies in a run's directory."""
    if not (run_dir / record.FILE_NAME).is_file():
        return State("new", "not started")
    try:
        found = record.read(run_dir)
    except HardpixError as error:
        return State("failed", f"its record cannot be read: {error}")
    if found.status == "done":
        return State("done", "done", found)
    checkpoint = rundir.resumable(run_dir)
    if found.outcome == "pruned":
        return State("pruned", f"pruned {found.reason}", found, True)
    if found.status == "failed":
        goes_on = checkpoint and str(found.error).startswith(LOST)
        how = "; goes on from its last checkpoint" if goes_on else ""
        return State("failed", f"failed: {found.error}{how}", found, goes_on)
    where = f"process {found.host.get('pid', '?')} on {found.host.get('hostname', '?')}"
    if found.status == "running":
        if rundir.is_running(found):
            return State("running", f"running: {where}", found)
        if found.host.get("hostname") != platform.node() and not take_over:
            return State("running", f"running, as its record says: {where} (if not, --take-over)", found)
    ended = "killed" if found.status == "running" else found.status
    how = "goes on from its last checkpoint" if checkpoint else "starts over: no checkpoint yet"
    return State("interrupted", f"{ended} at step {steps_done(run_dir)}, {how}", found, True)


def scores(found: record.RunRecord) -> str:
    """``val/miou 41.20 %, test 40.10 %``; without what the record lacks."""
    keys = [(f"{split}/{found.main_metric}", split) for split in ("val", "test")]
    values = [(key if split == "val" else split, found.metrics.get(key)) for key, split in keys]
    return ", ".join(f"{name} {100 * value:.2f} %" for name, value in values if value is not None)


def steps_done(run_dir: Path) -> int:
    """Optimiser steps of which the run's ``metrics.csv`` tells; 0 where there is none yet."""
    path = run_dir / CSV
    if not path.is_file():
        return 0
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 65536))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        first = line.partition(b",")[0]
        if first.isdigit():
            return int(first) + 1
    return 0


# Jobs in the SLURM queue: what a run was submitted as, and its state from ``squeue``.


FILE = "slurm.json"  # in a run's folder: the job that it was submitted as, by its name/index or its id
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
     "PREEMPTED", "TIMEOUT")
)  # states that squeue may still show of a job that comes to nothing any more  # fmt: skip
FRESH = 3.0  # seconds for which an answer of the queue holds


class Place(NamedTuple):
    """Where the job of a run stands."""

    job: str  # NAME/4, or 123_4 once it has started
    state: str | None  # as squeue names it; "" gone; None: the queue cannot be asked
    why: str = ""  # of that

    @property
    def waits(self) -> bool:
        return self.state is None or (self.state != "" and self.state not in ENDED)


def record_submission(run_dir: Path, job: str) -> None:
    rundir.make_run_dir(run_dir)
    rundir.write_text(run_dir / FILE, json.dumps({"job": job}) + "\n")


def forget_submission(run_dir: Path) -> None:
    (run_dir / FILE).unlink(missing_ok=True)


def job_of(run_dir: Path) -> str | None:
    """What a run was submitted as last; None if it never was."""
    path = run_dir / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return str(found["job"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def own_job() -> str | None:
    """The id of the SLURM job that this process belongs to."""
    if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def is_own_submission(run_dir: Path) -> bool:
    """Whether this process is the job that the run was submitted as."""
    own = own_job()
    return own is not None and own == job_of(run_dir)


def queue_place(run_dir: Path) -> Place | None:
    """None of a run that was never submitted, or as the job that asks."""
    job = job_of(run_dir)
    if job is None or job == own_job():
        return None
    try:
        return Place(job, queue_states().get(job, ""))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return Place(job, None, " ".join(str(said).split())[:200])


_answer: tuple[float, dict[str, str]] | None = None


def queue_states() -> dict[str, str]:
    """State by id, and by name/index, of all jobs that this user has in the queue, elements of arrays one by one."""
    global _answer
    if _answer is None or time.monotonic() - _answer[0] > FRESH:
        command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T|%j"]
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        found: dict[str, str] = {}
        for line in said.splitlines():
            job, _, rest = line.strip().partition("|")
            state, _, name = rest.partition("|")
            if state:
                found |= {job: state, f"{name}/{job.partition('_')[2]}": state}
        _answer = time.monotonic(), found
    return _answer[1]


def refresh_queue() -> None:
    """Ask ``squeue`` again the next time."""
    global _answer
    _answer = None


def counted(states: Mapping[str, int]) -> str:
    """``3 done, 1 failed``; what there is none of is left out."""
    return ", ".join(f"{count} {name}" for name, count in states.items() if count) or "nothing"
