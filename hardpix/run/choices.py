"""The files that a group of the configuration can be chosen from."""

from __future__ import annotations

import re
from pathlib import Path

from hardpix.run.catalog import entries


def missing_choice(text: str, conf: Path) -> tuple[str, str, list[str]] | None:
    """Group, wanted file and the files there are, if Hydra's ``text`` says that a group has no such file."""
    absent = re.search(r"Could not find '(\w+)/([^']+)'", text)
    if absent is None or not (conf / absent[1]).is_dir():
        return None
    group, wanted = absent.groups()
    names = [entry.name for entry in entries(group, conf)]
    beside = [name for name in names if name.rpartition("/")[0] == wanted.rpartition("/")[0]]
    return group, wanted, beside or names
