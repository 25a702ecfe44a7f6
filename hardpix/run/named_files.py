"""Files of ``conf/`` that a command names beside Hydra's groups: studies and chains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hardpix.run.config import conf_dir, nearest
from hardpix.types import ConfigError


def named_file(kind: str, name: str, extra: Path | None, further: Sequence[str] = ()) -> Path:
    """``conf/KIND/NAME.yaml``, or a file of that name below the folder ``extra``, which comes first.

    Raises ``ConfigError`` with the nearest name; ``further`` are words that might have been meant as well.
    """
    folders = [conf_dir() / kind, *([] if extra is None else [extra / kind])]
    for folder in reversed(folders):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted(p.relative_to(f).with_suffix("").as_posix() for f in folders for p in f.rglob("*.yaml"))
    raise ConfigError(f"{kind} {name}: no such file in {folders[-1]}{nearest(name, [*known, *further])}")
