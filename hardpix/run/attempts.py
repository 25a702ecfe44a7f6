"""What a run that failed has left: it is kept in a folder of its own when the run starts afresh."""

from __future__ import annotations

import os
from pathlib import Path

from hardpix import record

FOLDER = "failed"  # in the run's: failed/1, failed/2, ..., each with all that a run directory has
STAYS = (FOLDER, ".lock", "output.log", "slurm.json", "wandb")  # what all attempts share


def leftovers(run_dir: Path) -> list[Path]:
    """What lies in a run's directory, the record last."""
    found = sorted(path for path in run_dir.iterdir() if path.name not in STAYS) if run_dir.is_dir() else []
    return sorted(found, key=lambda path: path.name == record.FILE_NAME)


def place(run_dir: Path) -> Path:
    """The folder for the next failed attempt."""
    number = 1
    while (run_dir / FOLDER / str(number)).exists():
        number += 1
    return run_dir / FOLDER / str(number)


def set_aside(run_dir: Path) -> Path | None:
    """Move what a failed attempt has left to a folder in ``run_dir``, and return that; None where there was nothing.

    To be called by whoever holds the directory. Stopped in between, the record is still where it was, and the rest goes
    to another folder the next time.
    """
    found, target = leftovers(run_dir), place(run_dir)
    if not found:
        return None
    target.mkdir(parents=True)
    for path in found:
        os.replace(path, target / path.name)
    return target
