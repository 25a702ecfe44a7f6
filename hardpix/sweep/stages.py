"""Stages of a study: runs that start from each other, as ``stages:`` of its file lists them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardpix import record
from hardpix.config import rows, safe_files
from hardpix.config.compose import Composer, named_file, validate
from hardpix.config.trust import check_trust, named_trust, own_word
from hardpix.train import rundir
from hardpix.types import ConfigError

LINKS = ("parent", "init_from")
# Groups that a stage with a parent takes from it: settings for all stages pass it by.
FROM_PARENT = ("backbone", "head", "model", "init_from")
SHARED = ("run", "resume", "parent", "init_from")  # set by the study
SETTING = re.compile(r"(?:(?P<stage>\w+):)?(?P<override>[+~]?[\w@/.]+(=.*)?)", re.DOTALL)


@dataclass(frozen=True)
class Stage:
    """One run of a chain."""

    name: str
    overrides: tuple[str, ...]
    link: str | None  # parent | init_from
    source: str | None  # the stage whose run directory that key gets
    row: str = ""  # the published row, PAPER/NAME, whose overrides come first


def read_chain(name: str, extra: Path | None = None) -> list[Stage]:
    """The stages of ``conf/studies/NAME.yaml``, or of a file of that name below ``extra``; empty where it has none."""
    path = named_file("studies", name, extra)
    content = safe_files.read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a mapping")
    return list(read_stages(path, content["stages"])) if "stages" in content else []


def read_stages(path: Path, node: Any, common: Sequence[str] = ()) -> tuple[Stage, ...]:
    """The stages in order; ``common``: overrides of all of them."""
    if not isinstance(node, dict) or not node:
        raise ConfigError(f"{path}: stages must be a mapping of names to overrides, with at least one stage")
    stages: list[Stage] = []
    for key, value in node.items():
        stages.append(_stage(path, str(key), value, common, [s.name for s in stages]))
    return tuple(stages)


def _stage(path: Path, name: str, node: Any, common: Sequence[str], before: Sequence[str]) -> Stage:
    node = {"overrides": []} if node is None else node
    known = {"overrides", "row", *LINKS}
    if not re.fullmatch(r"\w+", name):
        raise ConfigError(f"{path}: stage {name}: its name must be of letters, digits and _")
    if not isinstance(node, dict) or not set(node) <= known:
        raise ConfigError(f"{path}: stage {name} must be a mapping with {', '.join(sorted(known))}")
    links = [key for key in LINKS if key in node]
    if len(links) > 1 or any(node[key] not in before for key in links):
        raise ConfigError(
            f"{path}: stage {name}: {links} must be one link, to a stage before it ({list(before)})"
        )
    if not isinstance(node.get("overrides") or [], list):
        raise ConfigError(f"{path}: stage {name}: overrides must be a list")
    row = str(node.get("row", ""))
    own = [str(text) for text in node.get("overrides") or ()]
    overrides = (*rows.row(row).run_overrides, *common, *own) if row else (*common, *own)
    for text in overrides:
        key = text.partition("=")[0]
        if why := own_word(key):
            raise ConfigError(f"{path}: stage {name}: {key}: {why}")
    link = links[0] if links else None
    return Stage(name, overrides, link, node[link] if link else None, row)


def used_runs(given: Mapping[str, str], stages: Sequence[Stage]) -> dict[str, Path]:
    """Finished runs that take the place of stages, by ``--use STAGE=RUN``."""
    used = {}
    for name, path in given.items():
        if name not in [s.name for s in stages]:
            known = ", ".join(s.name for s in stages) or "none: this study has no stages"
            raise ConfigError(f"--use {name}={path}: must be STAGE=RUN, with one of the stages {known}")
        before = record.read(path)
        if before.status != "done":
            raise ConfigError(f"--use {name}={path}: that run is {before.status}, not done")
        used[name] = Path(path)
    return used


def overrides_of(stage: Stage, given: Sequence[str], stages: Sequence[Stage]) -> list[str]:
    """What a stage is composed from: its own overrides, then those of the command line that concern it."""
    kept = []
    for text in given:
        match = SETTING.fullmatch(text)
        named = match["stage"] if match else None
        if match is None or (named is not None and named not in [s.name for s in stages]):
            known = ", ".join(s.name for s in stages)
            raise ConfigError(f"{text}: must be KEY=VALUE or STAGE:KEY=VALUE, with one of the stages {known}")
        override = match["override"]
        key = override.lstrip("+~").partition("=")[0]
        if key in SHARED and (named is not None or key != "run"):
            raise ConfigError(f"{text}: stages are linked and resumed by the study; run=NAME names all runs")
        network = key.split(".")[0].split("@")[0] in FROM_PARENT
        passed_by = network and named is None and stage.link == "parent"
        if key != "run" and named in (None, stage.name) and not passed_by:
            kept.append(override)
    return [*stage.overrides, *kept]


def chain_name(study: str, given: Sequence[str]) -> str:
    """What the runs of a chain are called before their stage's name: the same command finds its runs again."""
    if named := next((o.partition("=")[2] for o in given if o.startswith("run=")), None):
        return named
    text = rundir.short_name([re.sub(r"^\w+:", "", o) for o in given])
    key = hashlib.sha256("\n".join(sorted(given)).encode()).hexdigest()[:6]
    return f"{study.replace('/', '-')}-{text[:60]}-{key}"


def check_chain(
    stages: Sequence[Stage], given: Sequence[str], used: Mapping[str, Path], composed: Composer
) -> None:
    """Raise unless every stage can be configured and can start from the one that it names."""
    from hardpix.train.build import method_class

    _check_data(stages, given, used, composed)
    kinds: dict[str, Any] = {}
    for stage in stages:
        try:
            overrides = overrides_of(stage, given, stages)
            if stage.name in used:
                cfg = rundir.read_config(used[stage.name])
                check_trust(cfg, named_trust(overrides))
            else:
                cfg = composed(overrides)
            validate(cfg)
            kinds[stage.name] = method_class(cfg)
            parent = kinds[str(stage.source)] if stage.link == "parent" else None
            if stage.name not in used and (problem := kinds[stage.name].parent_problem(parent)):
                raise ConfigError(f"{kinds[stage.name].__name__} {problem}")
        except ConfigError as error:
            raise ConfigError(f"stage {stage.name}: {error}") from None


def _check_data(
    stages: Sequence[Stage], given: Sequence[str], used: Mapping[str, Path], composed: Composer
) -> None:
    """One data set for all stages would replace the one that pre-training has of its own."""
    keys = {text.lstrip("+~").partition("=")[0]: text for text in given}
    asked = [text for key, text in keys.items() if key == "data" or key.startswith("data.source")]
    if not asked:
        return
    own = {s.name: composed(s.overrides).data.source["_target_"] for s in stages if s.name not in used}
    if len(set(own.values())) > 1:
        listed = ", ".join(f"{name} {target.rpartition('.')[2]}" for name, target in own.items())
        raise ConfigError(
            f"{asked[0]}: the stages train on different data sets ({listed}); name the stage that it is for, as "
            f"{list(own)[-1]}:{asked[0]}"
        )


def check_source(run_dir: Path, source: Path) -> None:
    """Raise where a stage was trained on another run than the one that its source is now."""
    if not (run_dir / record.FILE_NAME).is_file():
        return
    before, now = record.read(run_dir), record.read(source).run_id
    if before.parent not in (None, now):
        raise ConfigError(
            f"{run_dir} was trained on run {before.parent}, but {source} is run {now}: give the study another "
            "run=NAME, or delete that folder"
        )
