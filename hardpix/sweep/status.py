"""``hardpix sweep status``: a table of a study's jobs, live if asked; reads run records, imports no torch."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hardpix.record import RunRecord
from hardpix.run.sweep.jobs import Job, counted
from hardpix.run.sweep.state import ERROR, State, look, scores, steps_done

PAUSE = 2.0  # seconds between two looks
STYLES = {
    "done": "green", "running": "cyan", "failed": "red", "submitted": "blue", "pruned": "yellow", "waiting": "dim",
    "interrupted": "yellow",
}  # fmt: skip


def show(title: str, jobs: Sequence[Job], *, watch: bool = False) -> None:
    console = Console(highlight=False)
    if not watch:
        console.print(rendered(title, jobs, [look(job.run_dir) for job in jobs]))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            states = [look(job.run_dir) for job in jobs]
            order = sorted(
                range(len(jobs)), key=lambda i: _rank(states[i])
            )  # what moves stays on a small screen
            live.update(rendered(title, [jobs[i] for i in order], [states[i] for i in order]), refresh=True)
            if all(state.kind == "done" for state in states):
                return
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
        kind = _shown(state)
        score = _score(state.record) if state.kind == "done" else None
        table.add_row(
            str(job.number),
            escape(job.name),
            f"[{STYLES[kind]}]{kind}[/]",
            "" if score is None else f"{100 * score:.2f}",
            escape(_detail(job, state)),
        )
    return Group(table, *(escape(line) for line in footer(jobs, states)))


def footer(jobs: Sequence[Job], states: Sequence[State]) -> list[str]:
    counts = Counter(map(_shown, states))
    failed = [(job, s.why) for job, s in zip(jobs, states, strict=True) if s.kind == "failed"]
    lines = [f"job {job.number} {why}" for job, why in failed]
    kinds = ("done", "running", "failed", "interrupted", "pruned", "submitted", "waiting")
    lines += [counted({kind: counts[kind] for kind in kinds})]
    done = [
        (job, s.record)
        for job, s in zip(jobs, states, strict=True)
        if s.kind == "done" and s.record is not None
    ]
    scored = [(_score(found), job, found) for job, found in done]
    finite = [(score, job, found) for score, job, found in scored if score is not None and score == score]
    if finite:
        _, job, found = max(finite, key=lambda item: item[0])
        lines.append(f"best: {job.name}, {scores(found)}")
    left = seconds_left(jobs, states)
    if left is not None:
        lines.append(f"time left: about {duration(left)}")
    return lines


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
