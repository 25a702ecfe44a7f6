"""What a run falls short of: the steps and frames of its settings, and the times of its steps that tell little."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hardpix.record import RunRecord

# Of a run's training, which its evaluations carry on.
TRAINING = ("run/steps", "run/planned_steps", "run/skipped_steps", "run/epoch_share")
STEP_SECONDS, SPREAD = "cost/step_seconds", "run/step_spread"
# Of the middle half of the steps, relative to the median: above it a time per step is marked.
MOST_SPREAD = 0.5


def shortfalls(record: RunRecord) -> list[str]:
    """In few words each thing in which a run is less than the full run: ``12 of 40 steps``; empty of a full one."""
    return [*_dev_run(record), *_of_training(record), *_of_scores(record)]


def is_dev_run(record: RunRecord) -> bool:
    """Whether a run only tried out whether it would run, and its scores mean nothing."""
    return bool(_dev_run(record))


def spread(record: RunRecord) -> float | None:
    """The spread of the steps' times, relative to their median, where it exceeds the bound."""
    found = record.metrics.get(SPREAD, 0.0)
    return found if found > MOST_SPREAD else None


def _dev_run(record: RunRecord) -> list[str]:
    return ["trainer.fast_dev_run=true"] if record.factors.get("trainer.fast_dev_run") is True else []


def _of_training(record: RunRecord) -> Iterator[str]:
    own, factors = record.metrics, record.factors
    made, skipped = own.get("run/steps"), own.get("run/skipped_steps", 0.0)
    planned = own.get("run/planned_steps", factors.get("trainer.max_steps"))
    if made is not None and planned is not None and made < planned:
        yield f"{made:,.0f} of {planned:,.0f} steps"
    if made is not None and skipped:
        yield f"{skipped:,.0f} of {made:,.0f} steps skipped"
    if (share := own.get("run/epoch_share", 1.0)) < 1:
        yield f"{100 * share:.2g} % of an epoch's batches"
    for key, limit in factors.items():
        above, _, name = key.rpartition("trainer.")
        if name == "limit_train_batches" and (above or "run/planned_steps" not in own) and _limits(limit):
            yield f"{key}={limit}"


def _of_scores(record: RunRecord) -> Iterator[str]:
    for split in ("train", "val", "test"):
        scored, there = record.metrics.get(f"{split}/frames"), record.frames.get(f"{record.dataset}/{split}")
        limit = record.factors.get(f"trainer.limit_{split}_batches", 1.0)
        if scored is not None and there is not None:
            if scored < there:
                yield f"{scored:,.0f} of {there:,} {split} frames"
        elif split != "train" and any(k.startswith(f"{split}/") for k in record.metrics) and _limits(limit):
            yield f"trainer.limit_{split}_batches={limit}"


def _limits(value: Any) -> bool:
    """A whole number counts batches; a share of 1.0 is all of them."""
    return value is not None and (isinstance(value, int) or value != 1.0)
