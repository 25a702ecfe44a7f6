"""Links of a run to others (``parent``, ``init_from``), and whether what its paths name is unchanged.

The saved configuration of such a run has the other one's under ``parent_config``, so that tables compare how it was
trained, and the checkpoint has all weights: a run is scored, resumed and compared without the directory that it once
started from. The networks of a ``parent`` become a part of the new run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hardpix import record
from hardpix.config.compose import validate
from hardpix.config.trust import check_trust
from hardpix.record import FILES, FRAMES, own_data
from hardpix.train import rundir
from hardpix.train.rundir import CACHES, DIGITS, RUNS, differing_paths, moved_paths
from hardpix.types import ConfigError, HardpixError

INHERITED = ("backbone", "head", "model")
ONLY_RECORDED = (record.WORLD_SIZE, record.EFFECTIVE_BATCH)  # of the factors: no configuration holds them


def inherit(cfg: DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """``cfg`` with what its ``parent`` (a run directory) brings along; ``cfg`` itself where it names none.

    A resumed run keeps what it began with. Raises if the parent is no finished run, if the method cannot build on
    it, or if ``overrides`` ask for networks other than the parent's.
    """
    _check_kind(cfg, None if cfg.parent is None else _config(cfg))
    if cfg.parent is None:
        begun = _begun(cfg) if cfg.init_from and (_directory(cfg) / rundir.LAST).is_file() else None
        if (
            begun is not None
            and begun.parent_config is not None
            and _same_path(begun.init_from, cfg.init_from)
        ):
            return with_parent(cfg, begun.parent_config, "init_from")
        started = source_run(cfg.init_from)
        return cfg if started is None else with_parent(cfg, rundir.read_config(started), "init_from")
    parent = _config(cfg)
    for group in INHERITED:
        asked = [o for o in overrides if o.lstrip("+~").partition("=")[0].split(".")[0] == group]
        if asked and rundir.plain(cfg)[group] != rundir.plain(parent)[group]:
            raise ConfigError(
                f"{asked[0]}: the networks are those of parent={cfg.parent} ({short_choice(parent[group])}); "
                "leave it out"
            )
    return with_parent(cfg, parent, "parent")


def check_parent(cfg: DictConfig) -> None:
    """Refuse a ``parent`` that is no finished run; without torch, so that nobody waits for that."""
    if cfg.parent is not None:
        _config(cfg)


def with_parent(cfg: DictConfig, parent: DictConfig, link: str) -> DictConfig:
    """``cfg`` with the configuration of the run that its key ``link`` names, and of a ``parent`` the networks."""
    networks = INHERITED if link == "parent" else ()
    return _with(cfg, {group: parent[group] for group in networks} | {"parent_config": parent})


def source_run(init_from: str | None) -> Path | None:
    """The run directory that ``init_from`` names or lies in, None if it is a file of its own."""
    if init_from is None:
        return None
    folders = (Path(init_from), *Path(init_from).parents[:2])
    return next((f for f in folders if (f / record.FILE_NAME).is_file()), None)


def factors(cfg: DictConfig) -> dict[str, Any]:
    """What a record compares: of ``init_from`` only which weights of a run, not where the run lies."""
    found = record.flatten(rundir.plain(cfg))
    started = source_run(cfg.init_from)
    if started is not None:
        found["init_from"] = (Path("RUN") / Path(cfg.init_from).relative_to(started)).as_posix()
    return found


def parent_only_facts(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """What the record alone has of the parent, or of the run behind ``init_from``: factors, and which data it used."""
    started = source_run(cfg.parent or cfg.init_from)
    if started is None:
        return {}, {}
    found = record.read(started)
    own = {k: v for k, v in found.factors.items() if k.endswith(ONLY_RECORDED)}
    return {record.BELOW + k: v for k, v in own.items()}, {record.BELOW + k: v for k, v in found.data.items()}


def only_recorded(trained: record.RunRecord) -> dict[str, Any]:
    """Factors of a run that its configuration does not have."""
    found = {k: v for k, v in trained.factors.items() if k.endswith(ONLY_RECORDED)}
    return found | {"init_from": trained.factors.get("init_from")}


def _with(cfg: DictConfig, values: dict[str, Any]) -> DictConfig:
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    for key, value in values.items():
        cfg[key] = value
    OmegaConf.set_struct(cfg, True)
    return cfg


def _config(cfg: DictConfig) -> DictConfig:
    """The parent's configuration: as it was when this run began, or out of the parent's directory."""
    begun = _begun(cfg)
    if begun is not None and begun.parent_config is not None and _same_path(begun.parent, cfg.parent):
        try:  # of a directory that may be anyone's
            check_trust(begun.parent_config, cfg.trusted)
            validate(begun.parent_config)
        except HardpixError as error:
            raise ConfigError(f"{_directory(cfg) / rundir.CONFIG}: parent_config: {error}") from None
        return begun.parent_config
    directory = Path(cfg.parent)
    try:
        before = record.read(directory)
        parent = rundir.read_config(directory)
        check_trust(parent, cfg.trusted)
        validate(parent)
    except HardpixError as error:
        raise ConfigError(f"parent={cfg.parent}: {error}") from None
    if before.status != "done":
        raise ConfigError(
            f"parent={cfg.parent}: that run is {before.status}, not done; finish it first (resume=true)"
        )
    return parent


def _begun(cfg: DictConfig) -> DictConfig | None:
    """What the run that ``cfg`` resumes began with."""
    own = _directory(cfg)
    return rundir.read_config(own) if cfg.resume and cfg.run and (own / rundir.CONFIG).is_file() else None


def _same_path(one: str | None, other: str | None) -> bool:
    """Earlier versions kept them as they were given."""
    return one is not None and other is not None and os.path.abspath(one) == os.path.abspath(other)


def _directory(cfg: DictConfig) -> Path:
    return Path(cfg.runs_dir) / str(cfg.study) / str(cfg.run)


def _check_kind(cfg: DictConfig, parent: DictConfig | None) -> None:
    from hardpix.train.build import method_class  # not above: a table reads this module without torch

    method = method_class(cfg)
    if problem := method.parent_problem(None if parent is None else method_class(parent)):
        raise ConfigError(
            f"parent={'null' if cfg.parent is None else cfg.parent}: {method.__name__} {problem}"
        )


def short_choice(group: DictConfig) -> str:
    """What a group has chosen, in a word: its ``name``, else the class."""
    return str(group.get("name") or group["_target_"].rpartition(".")[2])


def file_digests(cfg: DictConfig) -> dict[str, str]:
    """What identifies the content of the files that settings name, by key; files that do not exist are left out."""
    return {key: value for key, value in current_content(cfg, FILES).items() if not _of_run(cfg, key)}


def equivalent_paths(before: record.RunRecord, stored: DictConfig, cfg: DictConfig) -> set[str]:
    """Keys of paths that are written otherwise than in the configuration of a run, and name the same.

    Of the data only that the record knows them: those who open them compare.
    """
    old, new = (record.flatten(OmegaConf.to_container(one, resolve=True)) for one in (stored, cfg))  # type: ignore[arg-type]
    found = set(differing_paths(old, new))
    for key in moved_paths(old, new):
        if key in FRAMES and own_data(before):
            continue
        if key in FRAMES or not same_content(
            recorded_content(before, [key]), current_content(cfg, [key]), [key]
        ):
            found.discard(key)
    return found


def recorded_content(before: record.RunRecord, keys: Iterable[str]) -> dict[str, Any]:
    """What lay at the paths of ``keys`` when a run began; without what its record does not know."""
    found: dict[str, Any] = {}
    for key in keys:
        if _free(key):
            found[key] = ""
        elif key in FRAMES:
            found[key] = own_data(before)
        else:
            named = before.factors.get(key) if key == "init_from" else ""  # which of that run's weights
            found[key] = before.data.get(key) or (f"{before.parent} {named}" if key in RUNS else None)
    return {key: value for key, value in found.items() if value or _free(key)}


def current_content(cfg: DictConfig, keys: Iterable[str]) -> dict[str, Any]:
    """Content at the paths of ``keys`` now, as :func:`recorded_content`; opens data only where a key needs them."""
    found: dict[str, Any] = {}
    for key in keys:
        if _free(key):
            found[key] = ""
        elif key in FRAMES:
            found[key] = next((found[k] for k in FRAMES if k in found), None) or _opened(cfg)
        else:
            found[key] = _of_run(cfg, key) or _digest(OmegaConf.select(cfg, key))
    return {key: value for key, value in found.items() if value or _free(key)}


def same_content(before: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> bool:
    """Whether the same lies at all paths of ``keys``, as far as both sides are known."""
    return all(_same_known_content(before.get(key), now.get(key)) for key in keys)


def _free(key: str) -> bool:
    """Caches are made again, and which run lies below decides on all of its paths."""
    return key in CACHES or key.startswith(record.BELOW)


def _of_run(cfg: DictConfig, key: str) -> str:
    """The run that a setting names, and which of its weights; empty where it names none."""

    path = OmegaConf.select(cfg, key)
    run_dir = source_run(path) if key in RUNS and isinstance(path, str) else None
    if run_dir is None:
        return ""
    return f"{record.read(run_dir).run_id} {factors(cfg)[key] if key == 'init_from' else ''}"


def _same_known_content(one: Any, other: Any) -> bool:
    """Of data every split that both know must be the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        common = one.keys() & other.keys()
        return bool(common) and all(one[key] == other[key] for key in common)
    return one is not None and one == other


def _opened(cfg: DictConfig) -> dict[str, str]:
    from hardpix.train.build import make
    from hardpix.train.provenance import data_record

    try:
        return data_record(make(cfg.data))["data"]
    except (HardpixError, OSError):  # reported when they are trained on
        return {}


def _digest(value: Any) -> str:
    """Of a file's content; empty where there is none."""
    if not isinstance(value, str) or not Path(value).is_file():
        return ""
    with open(value, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
