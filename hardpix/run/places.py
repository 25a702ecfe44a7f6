"""Settings that are paths: stored absolute, and compared by what lies there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hardpix import record
from hardpix.report.identity import FILES, FRAMES, own_data, without_below
from hardpix.types import ConfigError, HardpixError

RUNS = ("parent", "init_from")
CACHES = ("data.source.cache_dir",)  # nothing lies there that is not made again
PLACES = tuple(dict.fromkeys((*FRAMES, *FILES, *RUNS, *CACHES)))
DIGITS = 16


def absolute(cfg: DictConfig) -> DictConfig:
    """``cfg`` with its paths as they are from the root of the disk: it is read from other working directories, too."""
    cfg = cfg.copy()
    for key in PLACES:
        value = OmegaConf.select(cfg, key)
        if isinstance(value, str) and value and not os.path.isabs(value):
            OmegaConf.update(cfg, key, os.path.abspath(value))
    return cfg


def check(cfg: DictConfig, run_dir: Path) -> None:
    """Raise ``ConfigError`` where the data of a run are no longer at the path that its configuration names."""
    for key in FRAMES:
        path = OmegaConf.select(cfg, key)
        if isinstance(path, str) and "{" not in path and not Path(path).exists():
            raise ConfigError(
                f"{key}={path}: no such file or folder, as {run_dir} was trained there; say where the data lie now, "
                f"{key}=PATH"
            )


def files(cfg: DictConfig) -> dict[str, str]:
    """What identifies the content of the files that settings name, by key; files that do not exist are left out."""
    return {key: value for key, value in present(cfg, FILES).items() if not _of_run(cfg, key)}


def moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys of paths, also of the runs below, that differ in two flat configurations."""
    return [key for key in _apart(old, new) if _place(old.get(key)) != _place(new.get(key))]


def excused(before: record.RunRecord, stored: DictConfig, cfg: DictConfig) -> set[str]:
    """Keys of paths that are written otherwise than in the configuration of a run, and name the same.

    Of the data only that the record knows them: those who open them compare.
    """
    old, new = (record.flatten(OmegaConf.to_container(one, resolve=True)) for one in (stored, cfg))  # type: ignore[arg-type]
    found = set(_apart(old, new))
    for key in moved(old, new):
        if key in FRAMES and own_data(before):
            continue
        if key in FRAMES or not same(recorded(before, [key]), present(cfg, [key]), [key]):
            found.discard(key)
    return found


def _apart(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    keys = (key for key in sorted(old.keys() | new.keys()) if without_below(key) in PLACES)
    return [key for key in keys if old.get(key) != new.get(key)]


def recorded(before: record.RunRecord, keys: Iterable[str]) -> dict[str, Any]:
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


def present(cfg: DictConfig, keys: Iterable[str]) -> dict[str, Any]:
    """What lies at the paths of ``keys`` now, as :func:`recorded`; data are opened only where a key asks for them."""
    found: dict[str, Any] = {}
    for key in keys:
        if _free(key):
            found[key] = ""
        elif key in FRAMES:
            found[key] = next((found[k] for k in FRAMES if k in found), None) or _opened(cfg)
        else:
            found[key] = _of_run(cfg, key) or _digest(OmegaConf.select(cfg, key))
    return {key: value for key, value in found.items() if value or _free(key)}


def same(before: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> bool:
    """Whether the same lies at all paths of ``keys``, as far as both sides are known."""
    return all(_alike(before.get(key), now.get(key)) for key in keys)


def _free(key: str) -> bool:
    """Caches are made again, and which run lies below decides on all of its paths."""
    return key in CACHES or key.startswith(record.BELOW)


def _of_run(cfg: DictConfig, key: str) -> str:
    """The run that a setting names, and which of its weights; empty where it names none."""
    from hardpix.run.parent import factors, source_run

    path = OmegaConf.select(cfg, key)
    run_dir = source_run(path) if key in RUNS and isinstance(path, str) else None
    if run_dir is None:
        return ""
    return f"{record.read(run_dir).run_id} {factors(cfg)[key] if key == 'init_from' else ''}"


def _alike(one: Any, other: Any) -> bool:
    """Of data every split that both know must be the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        common = one.keys() & other.keys()
        return bool(common) and all(one[key] == other[key] for key in common)
    return one is not None and one == other


def _opened(cfg: DictConfig) -> dict[str, str]:
    from hardpix.run.build import make
    from hardpix.run.data_facts import used

    try:
        return used(make(cfg.data))["data"]
    except (HardpixError, OSError):  # reported when they are trained on
        return {}


def _place(value: Any) -> Any:
    return os.path.abspath(value) if isinstance(value, str) and value else value


def _digest(value: Any) -> str:
    """Of a file's content; empty where there is none."""
    if not isinstance(value, str) or not Path(value).is_file():
        return ""
    with open(value, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
