"""Find and compose the experiment files behind published cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hardpix.config import safe_files
from hardpix.config.catalog import conf_dir
from hardpix.config.compose import compose
from hardpix.config.published import matches
from hardpix.record import flatten, with_batch
from hardpix.sweep.stages import Stage, read_chain
from hardpix.tables.protocol_check import Experiment
from hardpix.train.parent import with_parent
from hardpix.train.rundir import plain

GROUP = "/experiment/"
REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def experiments(cells: Sequence[str], folder: Path | None = None) -> list[Experiment]:
    """The files below ``conf/experiment`` that declare any of ``cells``.

    A pattern may hold references, as in ``hl/7/c_${method.c}/resnet18``: the keys they name vary by design, and
    the pattern stands for every value. Files that declare nothing are not composed. A file that is a stage of chains
    (``conf/studies``) is composed as one, also for a file built on it: with what the stage before it brings along.
    """
    folder = conf_dir() / "experiment" if folder is None else folder
    found = []
    for path in sorted(folder.rglob("*.yaml")):
        declared = [str(item) for item in _declared(path)]
        patterns = tuple(REFERENCE.sub("*", item) for item in declared)
        if any(matches(pattern, cell) for pattern in patterns for cell in cells):
            name = path.relative_to(folder).with_suffix("").as_posix()
            free = tuple(key for item in declared for key in REFERENCE.findall(item))
            found += [Experiment(name, patterns, factors, free) for factors in _factors(name)]
    return found


def _factors(name: str) -> list[dict[str, Any]]:
    """Of the file as a stage of each chain that names it or a file that it is built on; else of the file alone."""
    own = f"experiment={name}"
    named = [own, *(f"experiment={base}" for base in _built_on(name))]
    found: list[dict[str, Any]] = []
    for chain in _chains():
        for stage in chain:
            if not set(named) & set(stage.overrides):
                continue
            overrides = tuple(own if text in named else text for text in stage.overrides)
            factors = _stage_factors(replace(stage, overrides=overrides), chain)
            if factors not in found:
                found.append(factors)
    return found or [with_batch(flatten(plain(compose([own]))))]


def _built_on(name: str) -> list[str]:
    """The experiment files among the defaults of one, and theirs."""
    content = _read(conf_dir() / "experiment" / f"{name}.yaml")
    defaults = [str(item) for item in content.get("defaults") or () if isinstance(item, str)]
    bases = [item.removeprefix(GROUP) for item in defaults if item.startswith(GROUP)]
    return [*bases, *(deeper for base in bases for deeper in _built_on(base))]


def _stage_factors(stage: Stage, chain: Sequence[Stage]) -> dict[str, Any]:
    """What the record of a chain's run holds: with the stage that it stands on, or starts from, below."""
    factors = with_batch(flatten(plain(_stage_config(stage, chain))))
    return factors | {"init_from": "RUN"} if stage.link == "init_from" else factors


def _stage_config(stage: Stage, chain: Sequence[Stage]) -> DictConfig:
    cfg = compose(list(stage.overrides))
    if stage.link is None:
        return cfg
    source = next(other for other in chain if other.name == stage.source)
    return with_parent(cfg, OmegaConf.create(plain(_stage_config(source, chain))), stage.link)


def _chains() -> list[list[Stage]]:
    folder = conf_dir() / "studies"
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.yaml"))]
    return [stages for name in names if (stages := read_chain(name))]


def _declared(path: Path) -> list[str]:
    declared = _read(path).get("reproduces")
    return declared if isinstance(declared, list) else []


def _read(path: Path) -> dict[str, Any]:
    """The content of an experiment file; empty where there is none, or none with keys."""
    if not path.is_file():
        return {}
    content = safe_files.read_yaml(path)
    return content if isinstance(content, dict) else {}
