"""The loggers of a run, from the configuration to the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pytorch_lightning.loggers import Logger

from hardpix.record import RunRecord
from hardpix.run.tracking.csv_logger import MetricsCSV
from hardpix.run.tracking.wandb_logger import WandbRun, online


class Identity(NamedTuple):
    """Who a run is, for dashboards."""

    run_id: str
    name: str  # short overrides
    study: str  # the group on W&B
    job_type: str
    tags: tuple[str, ...] = ()  # method, data set, backbone, head


def build_loggers(
    *,
    run_dir: Path,
    identity: Identity,
    config: dict[str, Any],
    resume_step: int | None,
    wandb: bool | str,
    project: str,
    entity: str | None,
    tags: list[str],
) -> list[Logger]:
    """The CSV logger, and a W&B one unless ``wandb`` is false or the environment has ``WANDB_MODE=disabled``.

    ``wandb``: ``auto`` (online with a key, else offline), ``online``, ``offline`` or false. ``config``: as a record
    has it, flat.
    """
    csv = MetricsCSV(run_dir / "metrics.csv", resume_step=resume_step)
    sent = online(str(wandb)) if wandb else None
    if sent is None:
        return [csv]
    started = {
        "project": project,
        "entity": entity,
        "name": identity.name,
        "group": identity.study,
        "job_type": identity.job_type,
        "tags": [
            tag[:64] for tag in dict.fromkeys((*identity.tags, *tags)) if tag
        ],  # longer ones are refused
        "id": identity.run_id,
        "config": nested(config),
    }
    return [csv, WandbRun(run_dir, started, online=sent, earlier=list(csv.rows))]


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """``{"method.alpha": 1}`` -> ``{"method": {"alpha": 1}}``, by which W&B's panels find a key.

    A list of one number repeated, such as LWM's ``cells``, cannot be an axis: the number stands beside it under
    ``axes``, ``{"method_cells": 8}``.
    """
    found: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        node = found
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    axes = {key.replace(".", "_"): value[0] for key, value in flat.items() if _one_number(value)}
    return found | ({"axes": axes} if axes else {})


def _one_number(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(set(map(str, value))) == 1
        and isinstance(value[0], int | float)
        and not isinstance(value[0], bool)
    )


def connect(loggers: Sequence[Logger]) -> None:
    """Start what has a server; a server that does not answer is done without."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.start()


def has_dashboard(loggers: Sequence[Logger]) -> bool:
    """Whether anything reads what goes beyond ``metrics.csv`` and the record."""
    return any(isinstance(logger, WandbRun) and logger.run is not None for logger in loggers)


def log_results(
    loggers: Sequence[Logger], run_dir: Path, panels: Sequence[Path], scores: Mapping[str, float], step: int
) -> None:
    """Pictures and the per-class table of the test, and further ``scores`` of it."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.log_results(run_dir / "per_class.csv", panels, scores, step)


def close(loggers: Sequence[Logger], record: RunRecord) -> None:
    """The last word of a run: its record's metrics, and whether it is done."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.close(record)
