"""How far each job of a study is, read from the runs' own records: a sweep keeps no book of its own."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

from hardpix import record
from hardpix.run import rundir
from hardpix.types import HardpixError

ERROR = "error.txt"  # the traceback of a run that failed
INTERRUPTED = "interrupted"  # what a record says of a run that a signal ended
PRUNED = "Pruned: "  # how the error of a run begins that a search ended early
CSV = "metrics.csv"

Kind = Literal["done", "running", "interrupted", "failed", "pruned", "new"]
ACTION = {"done": "skip", "running": "leave", "interrupted": "resume", "failed": "retry", "pruned": "resume",
          "new": "run"}  # fmt: skip


class State(NamedTuple):
    kind: Kind
    why: str
    record: record.RunRecord | None = None


def look(run_dir: Path, *, take_over: bool = False) -> State:
    """What lies in a run's directory; ``take_over``: a run on a machine that cannot be seen counts as interrupted."""
    if not (run_dir / record.FILE_NAME).is_file():
        return State("new", "not started")
    try:
        found = record.read(run_dir)
    except HardpixError as error:
        return State("failed", f"its record cannot be read: {error}")
    if found.status == "done":
        return State("done", "done", found)
    if found.status == "failed" and str(found.error).startswith(PRUNED):
        return State("pruned", f"pruned {str(found.error).removeprefix(PRUNED)}", found)
    if found.status == "failed" and found.error != INTERRUPTED:
        return State("failed", f"failed: {found.error}", found)
    where = f"process {found.host.get('pid', '?')} on {found.host.get('hostname', '?')}"
    if found.status == "running":
        if rundir.alive(found):
            return State("running", f"running: {where}", found)
        if found.host.get("hostname") != platform.node() and not take_over:
            return State("running", f"running, as its record says: {where} (if not, --take-over)", found)
    checkpoint = rundir.resumable(run_dir)
    ended = "interrupted" if found.status == "failed" else "killed"
    how = "goes on from its last checkpoint" if checkpoint else "starts over: no checkpoint yet"
    return State("interrupted", f"{ended} at step {steps_done(run_dir)}, {how}", found)


def clear(run_dir: Path) -> None:
    """Make a failed run's directory ready for a fresh one: without record and checkpoints, which `train` would keep."""
    (run_dir / record.FILE_NAME).unlink(missing_ok=True)
    (run_dir / ERROR).unlink(missing_ok=True)
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)


def steps_done(run_dir: Path) -> int:
    """Optimiser steps of which the run's ``metrics.csv`` tells; 0 where there is none yet."""
    try:
        with open(run_dir / CSV, "rb") as file:
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
