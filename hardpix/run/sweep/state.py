"""How far each job of a study is, read from the runs' own records: a sweep keeps no book of its own."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Literal, NamedTuple

from hardpix import record
from hardpix.report.columns import is_fraction
from hardpix.run import rundir
from hardpix.run.sweep import queue
from hardpix.types import HardpixError

ERROR = "error.txt"  # the traceback of a run that failed
INTERRUPTED = record.INTERRUPTED
LOST = "worker "  # how the error of a run begins whose process was killed; what it raises begins with a type
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


class State(NamedTuple):
    kind: Kind
    why: str
    record: record.RunRecord | None = None
    resume: bool = False  # whether it goes on from what is there, or starts afresh


def look(run_dir: Path, *, take_over: bool = False) -> State:
    """How far a run is; ``take_over``: one on a machine, or in a queue, that cannot be seen counts as interrupted."""
    state = _recorded(run_dir, take_over=take_over or queue.ours(run_dir))
    place = None if state.kind == "done" else queue.place(run_dir)
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
        if rundir.alive(found):
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


def told(metric: str, value: float) -> str:
    """``41.20 %`` of a metric that is a fraction, four digits of any other."""
    return f"{100 * value:.2f} %" if is_fraction(metric) else f"{value:.4g}"


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
