"""``hardpix sweep status`` of a search: its trials, the best so far and what it chose; imports no torch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hardpix.run.rundir import owner_lives
from hardpix.run.sweep.jobs import counted
from hardpix.run.sweep.space import Search
from hardpix.run.sweep.state import look, steps_done
from hardpix.run.sweep.status import PAUSE, STYLES

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

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
    for trial in found:
        kind = state_of(trial)
        score = "" if trial.value is None or kind != "done" else f"{trial.value:.4f}"
        table.add_row(
            str(trial.number + 1),
            escape(settings(trial)),
            f"[{STYLES[kind]}]{kind}[/]",
            score,
            escape(_detail(trial)),
        )
    return Group(table, *(escape(line) for line in footer(found, search)))


def footer(found: Sequence[FrozenTrial], search: Search) -> list[str]:
    """The best trial with its settings, and how many there are of each kind."""
    lines = []
    done = [(trial.value, trial) for trial in found if state_of(trial) == "done" and trial.value is not None]
    if done:
        score, best = max(done, key=lambda item: item[0])
        seeds = f", mean of {len(search.seeds)} seeds" if len(search.seeds) > 1 else ""
        lines.append(
            f"best: trial {best.number + 1}, {search.metric or 'val'} {score:.4f}{seeds}: {settings(best)}"
        )
    counts = Counter(state_of(trial) for trial in found)
    order = {kind: counts[kind] for kind in ("done", "pruned", "running", "failed", "waiting")}
    return [*lines, f"{len(found)} of {search.trials} trials: {counted(order)}"]


def state_of(trial: FrozenTrial) -> str:
    """``waiting``: its process is gone, and the next one goes on with it."""
    kind = CALLED[trial.state.name]
    owner = trial.user_attrs.get("owner")
    if kind == "running" and owner is not None and not _may_live(owner):
        return "waiting"
    return kind


def _may_live(owner: dict[str, str]) -> bool:
    import os
    import platform

    here = owner["hostname"] == platform.node()
    return not here or owner["pid"] == str(os.getpid()) or owner_lives(owner)


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
    return ""
