"""``hardpix sweep status`` of a search: its trials, the best so far and what it chose; imports no torch."""

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

from hardpix.report.labels import brief
from hardpix.run.rundir import owner_lives
from hardpix.run.sweep.jobs import counted
from hardpix.run.sweep.space import Search
from hardpix.run.sweep.state import look, steps_done, told
from hardpix.run.sweep.status import PAUSE, STYLES, duration

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

MAIN = "val/miou"  # metric: null is the data set's main one, a fraction like this one
CALLED = {
    "COMPLETE": "done",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


def show(title: str, folder: Path, name: str, search: Search, *, watch: bool = False) -> None:
    from hardpix.run.sweep import trials

    console = Console(highlight=False)
    if not watch:
        console.print(rendered(title, trials.found(folder, name), search))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            found = trials.found(folder, name)
            live.update(rendered(title, found, search), refresh=True)
            if len(found) >= search.trials and all(trial.state.is_finished() for trial in found):
                return
            time.sleep(PAUSE)


def rendered(title: str, found: Sequence[FrozenTrial], search: Search) -> Group:
    table = Table(title=escape(title), title_justify="left")
    for column in ("trial", "settings", "state", "score", ""):
        table.add_column(column, overflow="fold", justify="right" if column in ("trial", "score") else "left")
    metric = search.metric or MAIN
    for trial in found:
        kind = state_of(trial)
        score = "" if trial.value is None or kind != "done" else told(metric, trial.value)
        table.add_row(
            str(trial.number + 1),
            escape(" ".join(brief(settings(trial).split(" ")))),
            f"[{STYLES[kind]}]{kind}[/]",
            score,
            escape(_detail(trial)),
        )
    return Group(table, *(escape(line) for line in footer(found, search)))


def footer(found: Sequence[FrozenTrial], search: Search, *, over: bool = False) -> list[str]:
    """The best trial with its settings, how many there are of each kind, and the time left.

    ``over``: this process has ended its work, a trial that it holds waits for the next one.
    """
    lines = []
    done = [(trial.value, trial) for trial in found if state_of(trial) == "done" and trial.value is not None]
    if done:
        score, best = max(done, key=lambda item: item[0])
        seeds = f", mean of {len(search.seeds)} seeds" if len(search.seeds) > 1 else ""
        lines.append(
            f"best: trial {best.number + 1}, {search.metric or 'val'} {told(search.metric or MAIN, score)}{seeds}: "
            f"{settings(best)}"
        )
    counts = Counter(state_of(trial, over=over) for trial in found)
    order = {kind: counts[kind] for kind in ("done", "pruned", "running", "failed", "waiting")}
    lines.append(f"{len(found)} of {search.trials} trials: {counted(order)}")
    left = seconds_left(found, search)
    return lines if left is None or over else [*lines, f"time left: about {duration(left)}"]


def seconds_left(found: Sequence[FrozenTrial], search: Search) -> float | None:
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


def _detail(trial: FrozenTrial) -> str:
    runs = [Path(path) for path in trial.user_attrs.get("runs", ())]
    if trial.state.name == "PRUNED":
        return next((state.why for state in map(look, runs) if state.kind == "pruned"), "")
    if trial.state.name == "FAIL":
        return str(trial.user_attrs.get("error", ""))
    if trial.state.name == "RUNNING":
        return f"step {sum(map(steps_done, runs))}"
    return "" if trial.duration is None else duration(trial.duration.total_seconds())
