"""How many frames a run's start was trained on: a factor of runs that begin with another run's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hardpix.record import BELOW
from hardpix.report.collect import Run
from hardpix.report.compare import covers, group
from hardpix.report.identity import FINGERPRINT
from hardpix.types import HardpixError

FACTOR = "pretraining.frames"
START = ("init_from", "parent_config")  # how the start was trained, and which of its weights were taken
# What decides how many frames there are; the start may not differ in anything else.
AMOUNT = (
    "parent_config.data.source.root",
    "parent_config.data.source.train_frames",
    f"{BELOW}{FINGERPRINT}",
)


def with_pretraining(runs: Sequence[Run], ignore: Sequence[str] = ()) -> list[Run]:
    """The runs that no other one of ``runs`` starts from, with the training frames of their own start as FACTOR.

    A run that starts from none has 0. Raises where a start is not among ``runs``, or where starts differ in more than
    their frames; what remains of a run's factors is how it was trained itself.
    """
    by_id = {run.record.run_id: run for run in runs}
    starts = {run.record.parent for run in runs}
    kept = [run for run in runs if run.record.run_id not in starts]
    started = [run for run in kept if run.record.parent is not None]
    for run in started:
        if run.record.parent not in by_id:
            raise HardpixError(
                f"{run.directory} starts from run {run.record.parent}, which is not among the named ones: name its "
                f"directory, too, since --x {FACTOR} counts its frames."
            )
    if started:
        group(started, [], ignore=(*AMOUNT, *_own_keys(started), *ignore))
    return [_with_factor(run, by_id) for run in kept]


def _own_keys(runs: Sequence[Run]) -> list[str]:
    """Factors that are not of the start: a table compares them later, with those that it declares."""
    return sorted({key for run in runs for key in run.record.factors if not covers(START, key)})


def _with_factor(run: Run, by_id: dict[str, Run]) -> Run:
    frames = 0
    if run.record.parent is not None:
        start = by_id[run.record.parent]
        key = f"{start.record.dataset}/train"
        if key not in start.record.frames:
            raise HardpixError(f"{start.directory}/run.json does not tell how many frames {key} has.")
        frames = start.record.frames[key]
    own = {key: value for key, value in run.record.factors.items() if not covers(START, key)}
    data = {key: value for key, value in run.record.data.items() if not key.startswith(BELOW)}
    return Run(run.directory, replace(run.record, factors=own | {FACTOR: frames}, data=data))
