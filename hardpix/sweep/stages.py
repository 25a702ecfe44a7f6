"""``hardpix chain``: train runs that start from each other, stage by stage."""

from __future__ import annotations

import gc
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hardpix import record
from hardpix.config import rows, safe_files
from hardpix.config.command_line import Parser
from hardpix.config.compose import compose, named_file, validate
from hardpix.config.trust import check_trust, named_trust, own_word
from hardpix.train import rundir
from hardpix.types import ConfigError

LINKS = ("parent", "init_from")
# Groups that a stage with a parent takes from it: settings for all stages pass it by.
FROM_PARENT = ("backbone", "head", "model", "init_from")
SHARED = ("run", "resume", "parent", "init_from")  # the chain's own business
SETTING = re.compile(r"(?:(?P<stage>\w+):)?(?P<override>[+~]?[\w@/.]+(=.*)?)", re.DOTALL)


@dataclass(frozen=True)
class Stage:
    """One run of a chain."""

    name: str
    overrides: tuple[str, ...]
    link: str | None  # parent | init_from
    source: str | None  # the stage whose run directory that key gets
    row: str = ""  # the published row, PAPER/NAME, whose overrides come first


def main(arguments: list[str]) -> int:
    parser = Parser(
        "hardpix chain",
        description="Train runs that stand on each other, as conf/chain/NAME.yaml lists them. Each stage is a run with "
        "its own record; stages that are done are skipped, one that was interrupted is resumed: give the same "
        "command again.",
    )
    parser.add_argument("name", help="a file of conf/chain/")
    parser.add_argument(
        "overrides",
        nargs="*",
        help="settings for all stages (data=camvid seed=1), or for one (detail:trainer.max_steps=500); networks "
        "(backbone, head, model) concern the stages that have none from a parent; run=NAME names the runs",
    )
    parser.add_argument(
        "--use", action="append", default=[], metavar="STAGE=RUN", help="a finished run in place of a stage"
    )
    parser.add_argument(
        "--config-dir", type=Path, help="folder of further configuration files, chain/ among them"
    )
    given = parser.parse_intermixed_args(arguments)
    stages = read_chain(given.name, given.config_dir)
    used = _used(given.use, stages)
    run_chain(given.name, stages, given.overrides, used, given.config_dir)
    return 0


def read_chain(name: str, extra: Path | None = None) -> list[Stage]:
    """The stages of ``conf/chain/NAME.yaml``, or of a file of that name below the folder ``extra``."""
    path = named_file("chain", name, extra)
    content = safe_files.read_yaml(path)
    if not isinstance(content, dict) or set(content) != {"stages"} or not isinstance(content["stages"], dict):
        raise ConfigError(f"{path}: needs the one key stages, a mapping of names to overrides")
    if not content["stages"]:
        raise ConfigError(f"{path}: needs at least one stage")
    stages: list[Stage] = []
    for key, node in content["stages"].items():
        stages.append(_stage(path, str(key), node, [s.name for s in stages]))
    return stages


def _stage(path: Path, name: str, node: Any, before: Sequence[str]) -> Stage:
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
    own = map(str, node.get("overrides") or ())
    overrides = (*rows.row(row).run_overrides, *own) if row else tuple(own)
    for text in overrides:
        key = text.partition("=")[0]
        if why := own_word(key):
            raise ConfigError(f"{path}: stage {name}: {key}: {why}")
    link = links[0] if links else None
    return Stage(name, overrides, link, node[link] if link else None, row)


def _used(given: Sequence[str], stages: Sequence[Stage]) -> dict[str, Path]:
    used = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or name not in [s.name for s in stages]:
            known = ", ".join(s.name for s in stages)
            raise ConfigError(f"--use {text}: must be STAGE=RUN, with one of the stages {known}")
        before = record.read(path)
        if before.status != "done":
            raise ConfigError(f"--use {text}: that run is {before.status}, not done")
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
            raise ConfigError(f"{text}: a chain links and resumes its runs itself; run=NAME names them all")
        network = key.split(".")[0].split("@")[0] in FROM_PARENT
        if (
            key != "run"
            and named in (None, stage.name)
            and not (network and named is None and stage.link == "parent")
        ):
            kept.append(override)
    return [*stage.overrides, *kept]


def run_chain(
    name: str,
    stages: Sequence[Stage],
    given: Sequence[str],
    used: dict[str, Path],
    config_dir: Path | None = None,
) -> dict[str, Path]:
    """Train what is not done yet; the run directory of each stage. All stages are checked before the first begins."""
    _check_data(stages, given, used, config_dir)
    plans = [(stage, overrides_of(stage, given, stages)) for stage in stages]
    prefix = next((o.partition("=")[2] for o in given if o.startswith("run=")), None) or _name(name, given)
    _check(plans, used, config_dir)
    directories = dict(used)
    for number, (stage, overrides) in enumerate(plans, 1):
        if stage.name not in used:
            print(f"stage {number} of {len(stages)}: {stage.name}", flush=True)
            directories[stage.name] = _train(
                stage, overrides, f"{prefix}-{stage.name}", directories, config_dir
            )
        else:
            print(f"stage {number} of {len(stages)}: {stage.name} is {used[stage.name]}", flush=True)
    return directories


def _check_data(
    stages: Sequence[Stage], given: Sequence[str], used: dict[str, Path], config_dir: Path | None
) -> None:
    """One data set for all stages would replace the one that pre-training has of its own."""
    keys = {text.lstrip("+~").partition("=")[0]: text for text in given}
    asked = [text for key, text in keys.items() if key == "data" or key.startswith("data.source")]
    if not asked:
        return
    own = {
        stage.name: compose(list(stage.overrides), config_dir=config_dir).data.source["_target_"]
        for stage in stages
        if stage.name not in used
    }
    if len(set(own.values())) > 1:
        told = ", ".join(f"{name} {target.rpartition('.')[2]}" for name, target in own.items())
        raise ConfigError(
            f"{asked[0]}: the stages train on different data sets ({told}); name the stage that it is for, as "
            f"{list(own)[-1]}:{asked[0]}"
        )


def _check(plans: Sequence[tuple[Stage, list[str]]], used: dict[str, Path], config_dir: Path | None) -> None:
    """Whether every stage can be configured, and stand on the one it names."""
    from hardpix.train.build import method_class

    kinds: dict[str, Any] = {}
    for stage, overrides in plans:
        try:
            if stage.name in used:
                cfg = rundir.read_config(used[stage.name])
                check_trust(cfg, named_trust(overrides))
            else:
                cfg = compose(overrides, config_dir=config_dir)
            validate(cfg)
            kinds[stage.name] = method_class(cfg)
            parent = kinds[str(stage.source)] if stage.link == "parent" else None
            if stage.name not in used and (problem := kinds[stage.name].parent_problem(parent)):
                raise ConfigError(f"{kinds[stage.name].__name__} {problem}")
        except ConfigError as error:
            raise ConfigError(f"stage {stage.name}: {error}") from None


def _train(
    stage: Stage, overrides: list[str], run: str, directories: dict[str, Path], config_dir: Path | None
) -> Path:
    own = [f"run='{run}'"]
    if stage.link and stage.source:
        own.append(f"{stage.link}='{directories[stage.source]}'")
    cfg = compose([*overrides, *own, "resume=false"], config_dir=config_dir)
    run_dir = Path(cfg.runs_dir) / str(cfg.study) / run
    if (run_dir / record.FILE_NAME).is_file():
        before = record.read(run_dir)
        if (
            before.status not in ("failed", "interrupted") or (run_dir / rundir.LAST).is_file()
        ):  # else it starts over
            _check_source(stage, run_dir, before, directories)
            cfg = compose([*overrides, *own, "resume=true"], config_dir=config_dir)
    _train_one(cfg, [*overrides, *own])
    return run_dir


def _check_source(
    stage: Stage, run_dir: Path, before: record.RunRecord, directories: dict[str, Path]
) -> None:
    """A stage that was trained on another run than the one before it now would be a chain that never was."""
    if stage.source is None:
        return
    now = record.read(directories[stage.source]).run_id
    if before.parent != now:
        raise ConfigError(
            f"{run_dir} stands on run {before.parent}, but {directories[stage.source]} is run {now}: give the chain "
            "another run=NAME, or delete that folder"
        )


def _train_one(cfg: DictConfig, overrides: list[str]) -> None:
    import torch

    from hardpix.train.train import train

    try:
        train(cfg, overrides)
    finally:  # a network refers to its trainer and back: the next stage must not find it in memory
        gc.collect()
        torch.cuda.empty_cache()
        torch.compiler.reset()


def _name(chain: str, given: Sequence[str]) -> str:
    """The same command finds its runs again."""
    text = rundir.short_name([re.sub(r"^\w+:", "", o) for o in given])
    key = hashlib.sha256("\n".join(sorted(given)).encode()).hexdigest()[:6]
    return f"{chain.replace('/', '-')}-{text[:60]}-{key}"
