"""Which runs wait in a SLURM queue: the id that a run's folder keeps, and what ``squeue`` says of it."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from hardpix.run import rundir

FILE = "slurm.json"  # in a run's folder: the job that it was submitted as
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
     "PREEMPTED", "TIMEOUT")
)  # states that squeue may still show of a job that comes to nothing any more  # fmt: skip
FRESH = 3.0  # seconds for which an answer of the queue holds


class Place(NamedTuple):
    """Where the job of a run stands."""

    job: str  # 123, or 123_4 of an array
    state: str | None  # as squeue names it; "" gone; None: the queue cannot be asked
    why: str = ""  # of that

    @property
    def waits(self) -> bool:
        return self.state is None or (self.state != "" and self.state not in ENDED)


def remember(run_dir: Path, job: str) -> None:
    rundir.claim(run_dir)
    rundir.write_text(run_dir / FILE, json.dumps({"job": job}) + "\n")


def forget(run_dir: Path) -> None:
    (run_dir / FILE).unlink(missing_ok=True)


def job_of(run_dir: Path) -> str | None:
    """The id that a run was submitted under last; None if it never was."""
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


def ours(run_dir: Path) -> bool:
    """Whether this process is the job that the run was submitted as."""
    own = own_job()
    return own is not None and own == job_of(run_dir)


def place(run_dir: Path) -> Place | None:
    """None of a run that was never submitted, or as the job that asks."""
    job = job_of(run_dir)
    if job is None or job == own_job():
        return None
    try:
        return Place(job, states().get(job, ""))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return Place(job, None, " ".join(str(said).split())[:200])


_answer: tuple[float, dict[str, str]] | None = None


def states() -> dict[str, str]:
    """State by id of all jobs that this user has in the queue, elements of arrays one by one."""
    global _answer
    if _answer is None or time.monotonic() - _answer[0] > FRESH:
        command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T"]
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        pairs = (line.strip().partition("|") for line in said.splitlines() if "|" in line)
        _answer = time.monotonic(), {job: state for job, _, state in pairs}
    return _answer[1]


def ask_anew() -> None:
    """What was known of the queue is out of date."""
    global _answer
    _answer = None
