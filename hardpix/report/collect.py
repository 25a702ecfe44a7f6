"""Finding run records below files and directories."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hardpix.record import DEV_RUN, FILE_NAME, RunRecord, read
from hardpix.report.partial import is_dev_run, shortfalls
from hardpix.types import HardpixError


class Run(NamedTuple):
    """A record and where it lies; the directory is only ever shown, never compared."""

    directory: str
    record: RunRecord


def collect(paths: Iterable[str | os.PathLike[str]], unreadable: list[str] | None = None) -> list[Run]:
    """Every run at or below ``paths`` (``run.json`` files, runs, directories of runs), once, by directory.

    A path without any run is an error, and so is a damaged record: a table must not quietly lack a row. With a list
    ``unreadable`` a damaged record is passed over, and what is wrong with it is put there, for all to read.
    """
    found = directories_of(paths)
    if not found:
        raise HardpixError("No runs were named: give at least one run directory or a directory of runs.")
    runs = []
    for directory in found:
        try:
            runs.append(Run(str(directory), _judged(read(directory))))
        except HardpixError as error:
            if unreadable is None:
                raise
            unreadable.append(str(error))
    if not runs:
        raise HardpixError((unreadable or [""])[0])
    return sorted(runs, key=lambda run: run.directory)


def _judged(record: RunRecord) -> RunRecord:
    """A run with ``trainer.fast_dev_run`` has no score, whatever its record says."""
    if record.status != "done" or not is_dev_run(record):
        return record
    return replace(record, status="failed", error=f"{DEV_RUN}{', '.join(shortfalls(record))}")


def directories_of(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Every run's directory at or below ``paths``, once; a path without any run is an error. Nothing is read."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        directories = list(_run_directories(path))
        if not directories:
            raise HardpixError(f"{path} holds no run: a directory with {FILE_NAME} at or below it is needed.")
        for directory in directories:
            found.setdefault(directory.resolve(), directory)
    return list(found.values())


def _run_directories(path: Path) -> Iterator[Path]:
    """Those at or below ``path``, without the evaluations in them; nothing is read."""
    if path.is_file() and path.name == FILE_NAME:
        yield path.parent
        return
    for directory, below, files in os.walk(path, followlinks=False):
        below.sort()
        if FILE_NAME in files:
            below.clear()  # its evaluations are records of their own, to be named
            yield Path(directory)
