"""What is known about a folder that is being prepared: ``prepare.json`` in it, always whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hardpix.atomic import UNFINISHED, remove_unfinished, write_text
from hardpix.types import DataError

NAME = "prepare.json"


@dataclass
class Journal:
    recipe: str
    options: dict[str, Any]
    hardpix: str  # version
    status: str = "running"  # then done, or faulty where single files could not be used
    given: list[str] = field(default_factory=list)  # the paths of --from
    inputs: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # path -> size, mtime_ns, md5 (None: unchecked)
    unpacked_files: int = 0
    unpacked_bytes: int = 0
    faults: int = 0


def read(folder: Path) -> Journal | None:
    """The journal of ``folder``, or None where it has none. Raises ``DataError`` where it is not one."""
    path = folder / NAME
    try:
        return Journal(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise DataError(
            f"{path}: not what hardpix data prepare wrote ({line}); give another --to, or remove {folder}"
        ) from None


def write(folder: Path, journal: Journal) -> None:
    write_text(folder / NAME, json.dumps(asdict(journal), indent=2) + "\n")


def begin(folder: Path, journal: Journal) -> Journal:
    """The journal to continue in ``folder``: ``journal`` itself where it is new.

    Raises ``DataError`` for a folder with other files, of another recipe, or of other options; what another
    command left without a result does not count.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: this is a file; --to must be a folder")
    before = read(folder)
    if before is None:
        if folder.is_dir() and any(not UNFINISHED.fullmatch(path.name) for path in folder.iterdir()):
            raise DataError(f"{folder}: it holds other files; --to must be a new or an empty folder")
        return journal
    same = (before.recipe, before.options) == (journal.recipe, journal.options)
    if not same and all(path.name == NAME or UNFINISHED.fullmatch(path.name) for path in folder.iterdir()):
        return journal  # that command stopped before it made anything
    if before.recipe != journal.recipe:
        raise DataError(f"{folder}: {before.recipe} is prepared there; give another --to")
    for key, value in journal.options.items():
        if before.options.get(key, value) != value:
            raise DataError(
                f"{folder}: it was started with {key}={before.options[key]}, not {key}={value}; give another --to"
            )
    before.hardpix = journal.hardpix
    return before


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds ``folder``, in which files that were never finished go; ``DataError`` where another process does."""
    try:
        import fcntl
    except ImportError:  # a system without it
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise DataError(f"{folder}: another process prepares it; wait for it") from None
    except OSError:  # a network file system without locks
        pass
    try:
        remove_unfinished(folder)
        yield
    finally:
        os.close(handle)
