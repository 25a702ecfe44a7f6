"""The SSIM of two runs' hardness maps as a record of its own, for tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hardpix import record
from hardpix.report.compare import IGNORED, covers
from hardpix.run import rundir
from hardpix.run.parent import only_recorded
from hardpix.types import ConfigError

if TYPE_CHECKING:
    from hardpix.data import DataModule
    from hardpix.run.figure_runs import FigureRun

OTHER = "other"  # the second run's factors lie below it


def check(folder: Path) -> None:
    """Raise where a record would be replaced."""
    if (folder / record.FILE_NAME).exists():
        raise ConfigError(f"--record {folder}: already holds a {record.FILE_NAME}; name a new folder")
    taken = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
    if taken is not None:
        raise ConfigError(f"--record {folder}: {taken} is a file; name a folder")


def write(
    given: argparse.Namespace, runs: Sequence[FigureRun], data: DataModule, mean: float, frames: int
) -> None:
    """``run.json`` of an evaluation of the first run, whose one metric is ``SPLIT/ssim``."""
    first, second = (record.read(run.directory) for run in runs)
    factors = record.flatten(rundir.plain(runs[0].cfg)) | {
        "evaluation.split": given.split,
        "evaluation.weights": given.weights,
        "reproduces": given.reproduces,
    }
    factors |= only_recorded(first)
    factors |= {f"{OTHER}.{key}": value for key, value in second.factors.items() if not covers(IGNORED, key)}
    done = replace(
        first, run_id=rundir.new_id(), parent=first.run_id, status="done", error=None, factors=factors,
        metrics={f"{given.split}/ssim": mean}, started=rundir.utc_now(), dataset=data.info.name,
        frames=first.frames | {f"{data.info.name}/{given.split}": frames},
    )  # fmt: skip
    given.record.mkdir(parents=True, exist_ok=True)
    print(f"written to {record.write(done, given.record)}")
