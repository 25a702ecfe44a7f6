"""The experiment files behind published cells, composed: what a run that stands for a cell should have been."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from hardpix.record import flatten
from hardpix.report.effort import Experiment
from hardpix.report.published import matches
from hardpix.run.config import compose, conf_dir
from hardpix.run.rundir import plain
from hardpix.types import ConfigError

REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def experiments(cells: Sequence[str], folder: Path | None = None) -> list[Experiment]:
    """The files below ``conf/experiment`` that declare any of ``cells``.

    A pattern may hold references, as in ``hl/7/c_${method.c}/resnet18``: the keys they name vary by design, and
    the pattern stands for every value. Files that declare nothing are not composed.
    """
    folder = conf_dir() / "experiment" if folder is None else folder
    found = []
    for path in sorted(folder.rglob("*.yaml")):
        declared = [str(item) for item in _declared(path)]
        patterns = tuple(REFERENCE.sub("*", item) for item in declared)
        if any(matches(pattern, cell) for pattern in patterns for cell in cells):
            name = path.relative_to(folder).with_suffix("").as_posix()
            free = tuple(key for item in declared for key in REFERENCE.findall(item))
            factors = flatten(plain(compose([f"experiment={name}"])))
            found.append(Experiment(name, patterns, factors, free))
    return found


def _declared(path: Path) -> list[str]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    declared = content.get("reproduces") if isinstance(content, dict) else None
    return declared if isinstance(declared, list) else []
