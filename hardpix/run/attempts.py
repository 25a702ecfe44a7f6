"""What a run that failed has left: it is kept in a folder of its own when the run starts afresh."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from hardpix import record

FOLDER = "failed"  # in the run's: failed/1, failed/2, ...
RECORD = "record.json"  # the run.json of such an attempt, under a name by which it does not count as a run
STAYS = (FOLDER, ".lock", "output.log", "slurm.json", "wandb")  # what all attempts share


def set_aside(run_dir: Path) -> Path | None:
    """Move what a failed attempt has left to a folder in ``run_dir``, and return that; None where there was nothing.

    To be called by whoever holds the directory. Stopped in between, the record is still where it was, and the rest goes
    to another folder the next time.
    """
    target, moves = _moves(run_dir)
    if not moves:
        return None
    target.mkdir(parents=True)
    for path, place in moves:
        os.replace(path, place)
    return target


def command(run_dir: Path) -> str:
    """:func:`set_aside` for a shell; its status is that of the record's move, which fails where there is no folder."""
    target, moves = _moves(run_dir)
    lines = [["mkdir", "-p", str(target)], *(["mv", str(path), str(place)] for path, place in moves)]
    return "; ".join(map(shlex.join, lines))


def _moves(run_dir: Path) -> tuple[Path, list[tuple[Path, Path]]]:
    """The next folder, and what goes where, the record last."""
    number = 1
    while (run_dir / FOLDER / str(number)).exists():
        number += 1
    target = run_dir / FOLDER / str(number)
    found = sorted(path for path in run_dir.iterdir() if path.name not in STAYS) if run_dir.is_dir() else []
    found.sort(key=lambda path: path.name == record.FILE_NAME)
    return target, [(p, target / (RECORD if p.name == record.FILE_NAME else p.name)) for p in found]
