"""The files that a group of the configuration can be chosen from."""

from __future__ import annotations

import re
from pathlib import Path


def missing_choice(text: str, conf: Path) -> tuple[str, str, list[str]] | None:
    """Group, wanted file and the files there are, if Hydra's ``text`` says that a group has no such file."""
    absent = re.search(r"Could not find '(\w+)/([^']+)'", text)
    if absent is None or not (conf / absent[1]).is_dir():
        return None
    return absent[1], absent[2], choices(conf / absent[1], absent[2])


def choices(folder: Path, wanted: str) -> list[str]:
    """Names of the files below ``folder``, of those in the sub-folder of ``wanted`` alone if it has one."""
    part = folder / wanted.rpartition("/")[0]
    paths = part.glob("*.yaml") if part.is_dir() and part != folder else folder.rglob("*.yaml")
    names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in paths)
    return [name for name in names if not name.rpartition("/")[2].startswith("_")]
