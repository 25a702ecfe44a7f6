"""``hardpix sweep status``: tables of a study's jobs and of a search's trials; imports no torch."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hardpix.record import RunRecord
from hardpix.scores import brief, score_text
from hardpix.sweep.jobs import ERROR, Job, State, counted, look, scores, steps_done
from hardpix.sweep.space import Search
from hardpix.train.rundir import owner_lives

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


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


# ``hardpix sweep status`` of a search: its trials, the best so far and what it chose; imports no torch.


MAIN = "val/miou"  # metric: null is the data set's main one, a fraction like this one
CALLED = {
    "COMPLETE": "done",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


def show_search(title: str, folder: Path, name: str, search: Search, *, watch: bool = False) -> None:
    from hardpix.sweep import trials

    console = Console(highlight=False)
    if not watch:
        console.print(search_rendered(title, trials.found(folder, name), search))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            found = trials.found(folder, name)
            live.update(search_rendered(title, found, search), refresh=True)
            if len(found) >= search.trials and all(trial.state.is_finished() for trial in found):
                return
            time.sleep(PAUSE)


def search_rendered(title: str, found: Sequence[FrozenTrial], search: Search) -> Group:
    table = Table(title=escape(title), title_justify="left")
    for column in ("trial", "settings", "state", "score", ""):
        table.add_column(column, overflow="fold", justify="right" if column in ("trial", "score") else "left")
    metric = search.metric or MAIN
    for trial in found:
        kind = state_of(trial)
        score = "" if trial.value is None or kind != "done" else score_text(metric, trial.value)
        table.add_row(
            str(trial.number + 1),
            escape(" ".join(brief(settings(trial).split(" ")))),
            f"[{STYLES[kind]}]{kind}[/]",
            score,
            escape(_trial_detail(trial)),
        )
    return Group(table, *(escape(line) for line in search_footer(found, search)))


def search_footer(found: Sequence[FrozenTrial], search: Search, *, over: bool = False) -> list[str]:
    """The best trial with its settings, how many there are of each kind, and the time left.

    ``over``: this process has ended its work, a trial that it holds waits for the next one.
    """
    lines = []
    done = [(trial.value, trial) for trial in found if state_of(trial) == "done" and trial.value is not None]
    if done:
        score, best = max(done, key=lambda item: item[0])
        seeds = f", mean of {len(search.seeds)} seeds" if len(search.seeds) > 1 else ""
        lines.append(
            f"best: trial {best.number + 1}, {search.metric or 'val'} "
            f"{score_text(search.metric or MAIN, score)}{seeds}: "
            f"{settings(best)}"
        )
    counts = Counter(state_of(trial, over=over) for trial in found)
    order = {kind: counts[kind] for kind in ("done", "pruned", "running", "failed", "waiting")}
    lines.append(f"{len(found)} of {search.trials} trials: {counted(order)}")
    left = search_seconds_left(found, search)
    return lines if left is None or over else [*lines, f"time left: about {duration(left)}"]


def search_seconds_left(found: Sequence[FrozenTrial], search: Search) -> float | None:
    """From the mean of what finished trials took, pruned ones among them; None before the first, and at the end."""
    seconds = [
        trial.duration.total_seconds()
        for trial in found
        if trial.duration is not None and state_of(trial) in ("done", "pruned")
    ]
    limit = min(search.trials, len(search.grid())) if search.sampler == "grid" else search.trials
    left = limit - sum(trial.state.is_finished() for trial in found)
    if not seconds or left <= 0:
        return None
    return statistics.fmean(seconds) * left / max(1, sum(state_of(trial) == "running" for trial in found))


def state_of(trial: FrozenTrial, *, over: bool = False) -> str:
    """``waiting``: its process is gone, and the next one goes on with it."""
    kind = CALLED[trial.state.name]
    owner = trial.user_attrs.get("owner")
    if kind == "running" and owner is not None and not _may_live(owner, over):
        return "waiting"
    return kind


def _may_live(owner: dict[str, str], over: bool) -> bool:
    import os
    import platform

    here = owner["hostname"] == platform.node()
    if here and owner["pid"] == str(os.getpid()):
        return not over
    return not here or owner_lives(owner)


def settings(trial: FrozenTrial) -> str:
    return " ".join(trial.user_attrs.get("settings", ()))


def _trial_detail(trial: FrozenTrial) -> str:
    runs = [Path(path) for path in trial.user_attrs.get("runs", ())]
    if trial.state.name == "PRUNED":
        return next((state.why for state in map(look, runs) if state.kind == "pruned"), "")
    if trial.state.name == "FAIL":
        return str(trial.user_attrs.get("error", ""))
    if trial.state.name == "RUNNING":
        return f"step {sum(map(steps_done, runs))}"
    return "" if trial.duration is None else duration(trial.duration.total_seconds())
