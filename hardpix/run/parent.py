"""Runs that stand on another run: its networks and whole configuration become a part of the new one.

The saved configuration of such a run has the parent's under ``parent_config``, its checkpoint has all weights:
a run is scored, resumed and compared without the directory that it once started from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from hardpix import record
from hardpix.run import rundir
from hardpix.run.build import method_class
from hardpix.run.config import validate
from hardpix.types import ConfigError, HardpixError

INHERITED = ("backbone", "head", "model")


def inherit(cfg: DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """``cfg`` with what its ``parent`` (a run directory) brings along; ``cfg`` itself where it names none.

    A resumed run keeps what it began with. Raises if the parent is no finished run, if the method cannot stand on
    it, or if ``overrides`` ask for networks other than the parent's.
    """
    _check_kind(cfg, None if cfg.parent is None else _config(cfg))
    if cfg.parent is None:
        return cfg
    parent = _config(cfg)
    for group in INHERITED:
        asked = [o for o in overrides if o.lstrip("+~").partition("=")[0].split(".")[0] == group]
        if asked and rundir.plain(cfg)[group] != rundir.plain(parent)[group]:
            raise ConfigError(
                f"{asked[0]}: the networks are those of parent={cfg.parent} ({_told(parent[group])}); leave it out"
            )
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    for group in INHERITED:
        cfg[group] = parent[group]
    cfg.parent_config = parent
    OmegaConf.set_struct(cfg, True)
    return cfg


def _config(cfg: DictConfig) -> DictConfig:
    """The parent's configuration: as it was when this run began, or out of the parent's directory."""
    own = Path(cfg.runs_dir) / str(cfg.study) / str(cfg.run)
    if cfg.resume and cfg.run and (own / rundir.CONFIG).is_file():
        saved = rundir.read_config(own)
        if saved.parent_config is not None and saved.parent == cfg.parent:
            return saved.parent_config
    directory = Path(cfg.parent)
    try:
        before = record.read(directory)
        parent = rundir.read_config(directory)
        validate(parent)
    except HardpixError as error:
        raise ConfigError(f"parent={cfg.parent}: {error}") from None
    if before.status != "done":
        raise ConfigError(
            f"parent={cfg.parent}: that run is {before.status}, not done; finish it first (resume=true)"
        )
    return parent


def _check_kind(cfg: DictConfig, parent: DictConfig | None) -> None:
    method = method_class(cfg)
    if problem := method.parent_problem(None if parent is None else method_class(parent)):
        raise ConfigError(
            f"parent={'null' if cfg.parent is None else cfg.parent}: {method.__name__} {problem}"
        )


def _told(group: DictConfig) -> str:
    return str(group.get("name") or group["_target_"].rpartition(".")[2])
