"""Loggers of a run: ``metrics.csv`` always, Weights & Biases when asked."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from hardpix.record import METRICS, RunRecord, flush, replacing
from hardpix.scores import PER_CLASS
from hardpix.train.wandb import WandbRun, online
from hardpix.types import HardpixError


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
    csv = MetricsCSV(run_dir / METRICS, resume_step=resume_step)
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

    A list of one number repeated, such as LWM's ``cells``, cannot be an axis: the number stands next to it under
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
            logger.log_results(run_dir / PER_CLASS, panels, scores, step)


def close(loggers: Sequence[Logger], record: RunRecord) -> None:
    """The last word of a run: its record's metrics, and whether it is done."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.close(record)


# ``metrics.csv``: what every run has, whatever else it writes.


class MetricsCSV(Logger):
    """``metrics.csv``: one row per logged step, columns as they appear; a resumed run goes on in the same file.

    Rows are appended once they are complete: rewriting the file at each of them took longer than many a
    training step, and the longer the run the more. Lightning's own CSV logger does that, and deletes the rows of
    the run that is resumed.
    """

    def __init__(self, path: Path, *, resume_step: int | None) -> None:
        """``resume_step``: of the checkpoint that is continued; rows from there on are written again."""
        super().__init__()
        kept = [] if resume_step is None else [r for r in _read_rows(path) if r["step"] < resume_step]
        self.path, self.rows = path, kept
        self.columns = list(dict.fromkeys(["step", *(name for row in self.rows for name in row)]))
        self.on_disk = 0  # rows that stand in the file as they are; 0: the file is to be rewritten
        self.promised = (
            0  # rows that a checkpoint relies on: they stay in the file, also while the last one grows
        )

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **options: Any) -> None:
        """The configuration has a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step, **metrics}
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1] |= row
        else:
            self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        self.columns += new
        if new or len(self.rows) <= self.on_disk:  # a column more, or a row on disk that grew
            self.on_disk = 0

    @rank_zero_only
    def save(self) -> None:
        """What Lightning calls after every row; the newest one may still grow."""
        self._write(len(self.rows) - 1)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """A run resumed from here finds all rows up to here."""
        self.promised = len(self.rows)
        self._write(self.promised)
        if self.path.is_file():
            flush(self.path)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._write(len(self.rows))

    def _write(self, count: int) -> None:
        count = max(count, self.promised)
        if self.on_disk == 0:
            with (
                replacing(self.path) as unfinished,
                open(unfinished, "w", newline="", encoding="utf-8") as file,
            ):
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows(self.rows[:count])
        elif count > self.on_disk:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns).writerows(self.rows[self.on_disk : count])
        self.on_disk = max(self.on_disk, count)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows that are whole: of one that was being written when the process ended, half may be there."""
    if not path.is_file():
        return []
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    try:
        rows: list[dict[str, Any]] = [
            {k: v for k, v in row.items() if v != ""} for row in csv.DictReader(lines)
        ]
        return [row | {"step": int(row["step"])} for row in rows]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise HardpixError(
            f"{path} is damaged ({error}): the rows of the steps before cannot be kept; repair or remove it"
        ) from None
