"""Whether a result can be written where it is to go: asked before data are read, not after."""

from __future__ import annotations

from pathlib import Path

from hardpix.atomic import obstacle
from hardpix.types import ConfigError


def check(option: str, path: Path, *, folder: bool = False) -> None:
    """``ConfigError`` with the option and the path, unless a file (or a folder of files) can be made there."""
    if problem := obstacle(path, folder=folder):
        what = "folder" if folder else "file"
        why = problem if "cannot be written" in problem else f"cannot be written, {problem}"
        raise ConfigError(f"{option} {path}: {why}; name another {what}")
