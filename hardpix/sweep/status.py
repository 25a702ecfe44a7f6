"""``hardpix sweep status`` and ``--dry-run``: what is done, what would be, and the time left; imports no torch."""

from __future__ import annotations

import shutil
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hardpix import record
from hardpix.config.compose import composer
from hardpix.record import RunRecord, flatten
from hardpix.sweep.jobs import Job, command, jobs_of, stage_jobs
from hardpix.sweep.stages import used_runs
from hardpix.sweep.state import ACTION, ERROR, TO_DO, State, counted, look, scores, steps_done
from hardpix.sweep.study import read_study
from hardpix.train.rundir import plain
from hardpix.types import HardpixError

PAUSE = 2.0  # seconds between two looks
# Runs that differ in none of these take about the same time.
KIND = ("method._target_", "head._target_", "backbone.name", "data.source._target_", "data.batch_size",
        "trainer.max_steps", "trainer.max_epochs")  # fmt: skip
STYLES = {
    "done": "green", "running": "cyan", "failed": "red", "submitted": "blue", "pruned": "yellow", "waiting": "dim",
    "interrupted": "yellow",
}  # fmt: skip


def plan(
    jobs: Sequence[Job], config_dir: Path | None = None, *, take_over: bool = False, every: bool = False,
    commands: bool = False,
) -> str:  # fmt: skip
    """A line for each job, at most a screen of them: what would be done with it and why; and the time that it takes."""
    states = [look(job.run_dir, take_over=take_over) for job in jobs]
    counts = Counter(ACTION[state.kind] for state in states)
    lines = [f"{len(jobs)} jobs: {counted({f'to {action}': counts[action] for action in ACTION.values()})}"]
    room = len(jobs) if every or commands else max(5, shutil.get_terminal_size((80, 24)).lines - 4)
    shown = len(jobs) if len(jobs) <= room else room - 1
    for job, state in list(zip(jobs, states, strict=True))[:shown]:
        lines.append(f"{job.number:4} {ACTION[state.kind]:<6}  {job.name}: {state.why}")
        if commands:
            lines.append(f"      {command(job, state, config_dir)}")
    if shown < len(jobs):
        lines.append(f"  ... and {len(jobs) - shown} more (--all)")
    seconds = estimate(jobs, states)
    if seconds:
        lines.append(f"about {duration(seconds)} of training, by finished runs of the same kind")
    return "\n".join(lines)


def estimate(jobs: Sequence[Job], states: Sequence[State]) -> float | None:
    """Seconds that the jobs to do take one after the other; None where no run of their kind is finished."""
    known: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for folder in {job.run_dir.parent.parent for job in jobs}:
        for path in folder.glob("*/*/run.json"):
            try:
                found = record.read(path.parent)
            except HardpixError:
                continue
            if found.status == "done" and found.metrics.get("run/seconds", 0.0) > 0:
                known[_kind(found.factors)].append(found.metrics["run/seconds"])
    total = 0.0
    for job, state in zip(jobs, states, strict=True):
        if ACTION[state.kind] in TO_DO:
            seconds = known.get(_kind(flatten(plain(job.config()))))
            if not seconds:
                return None
            total += statistics.fmean(seconds)
    return total


def _kind(factors: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(factors.get(key)) for key in KIND)


def show(
    words: Sequence[str], config_dir: Path | None, use: Mapping[str, str], *, watch: bool = False
) -> int:
    """Print the table of a study, or go on showing it until all is done."""
    study = read_study(words, config_dir)
    composed = composer([] if config_dir is None else [config_dir])
    if study.stages:
        jobs = stage_jobs(study, used_runs(use, study.stages), composed)
    else:
        jobs = jobs_of(study, composed)[0]
    title = study.name or ", ".join(sorted({str(job.run_dir.parent) for job in jobs}))
    console = Console(highlight=False)
    if not watch:
        console.print(rendered(title, jobs, [look(job.run_dir) for job in jobs]))
        return 0
    with Live(console=console, auto_refresh=False) as live:
        while True:
            found = sorted(((job, look(job.run_dir)) for job in jobs), key=lambda pair: _rank(pair[1]))
            live.update(rendered(title, *zip(*found, strict=True)), refresh=True)  # what moves is on top
            if all(state.kind == "done" for _, state in found):
                return 0
            time.sleep(PAUSE)


def _rank(state: State) -> int:
    return ("running", "failed", "submitted", "interrupted", "pruned", "new", "done").index(state.kind)


def _shown(state: State) -> str:
    """``interrupted`` is what a signal has ended; a run that was killed waits like one that has not begun."""
    killed = state.kind == "interrupted" and state.record is not None and state.record.status != "interrupted"
    return "waiting" if killed or state.kind == "new" else state.kind


def rendered(title: str, jobs: Sequence[Job], states: Sequence[State]) -> Group:
    """The table and, below it, what failed, counts, the best run so far and the time left."""
    table = Table(title=escape(title), title_justify="left")
    for column in ("job", "settings", "state", "score", ""):
        table.add_column(column, overflow="fold", justify="right" if column in ("job", "score") else "left")
    for job, state in zip(jobs, states, strict=True):
        kind, score = _shown(state), _score(state.record) if state.kind == "done" else None
        shown = "" if score is None else f"{100 * score:.2f}"
        table.add_row(str(job.number), escape(job.name), f"[{STYLES[kind]}]{kind}[/]", shown,
                      escape(_detail(job, state)))  # fmt: skip
    return Group(table, *(escape(line) for line in footer(jobs, states)))


def footer(jobs: Sequence[Job], states: Sequence[State]) -> list[str]:
    pairs = list(zip(jobs, states, strict=True))
    counts = Counter(map(_shown, states))
    lines = [f"job {job.number} {state.why}" for job, state in pairs if state.kind == "failed"]
    kinds = ("done", "running", "failed", "interrupted", "pruned", "submitted", "waiting")
    lines += [counted({kind: counts[kind] for kind in kinds})]
    done = [
        (_score(s.record), job, s.record) for job, s in pairs if s.kind == "done" and s.record is not None
    ]
    finite = [(score, job, found) for score, job, found in done if score is not None and score == score]
    if finite:
        _, job, found = max(finite, key=lambda item: item[0])
        lines.append(f"best: {job.name}, {scores(found)}")
    left = seconds_left(jobs, states)
    return lines if left is None else [*lines, f"time left: about {duration(left)}"]


def _score(found: RunRecord | None) -> float | None:
    """Of the validation split: what is chosen by must not be the test."""
    return None if found is None else found.metrics.get(f"val/{found.main_metric}")


def _detail(job: Job, state: State) -> str:
    if state.kind == "running" and state.record is not None:
        total = state.record.factors.get("trainer.max_steps")
        epochs = state.record.factors.get("trainer.max_epochs")
        return f"step {steps_done(job.run_dir)}" + (f" of {total}" if total else f", {epochs} epochs in all")
    if state.kind == "done" and state.record is not None:
        return duration(state.record.metrics.get("run/seconds", 0.0))
    if state.kind == "failed" and (job.run_dir / ERROR).is_file():
        return str(job.run_dir / ERROR)
    return state.why if state.kind in ("interrupted", "pruned", "submitted") else ""


def seconds_left(jobs: Sequence[Job], states: Sequence[State]) -> float | None:
    """From the mean of the finished jobs; None before the first is done, and when nothing is left to run."""
    seconds = [s.record.metrics["run/seconds"] for s in states if s.kind == "done" and s.record is not None
               and s.record.metrics.get("run/seconds", 0.0) > 0]  # fmt: skip
    shares = [_share_left(job, state) for job, state in zip(jobs, states, strict=True)]
    if not seconds or not sum(shares):
        return None
    running = sum(state.kind == "running" for state in states)
    return statistics.fmean(seconds) * sum(shares) / max(1, running)


def _share_left(job: Job, state: State) -> float:
    """How much of a job is to come; a failed one is not waited for."""
    if state.kind in ("done", "failed"):
        return 0.0
    total = state.record.factors.get("trainer.max_steps") if state.record is not None else None
    return 1.0 - min(1.0, steps_done(job.run_dir) / total) if total and state.kind != "new" else 1.0


def duration(seconds: float) -> str:
    """``2 h 05 min``, ``3 min 20 s``, ``8 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
