"""The configuration beside a run, which may be anyone's: plain data of no more than its own size."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hardpix.plain_yaml import read_text
from hardpix.types import ConfigError, HardpixError


def load(path: Path) -> DictConfig:
    """A resolved configuration as hardpix writes it; ``HardpixError`` in one line where it is not."""
    try:
        text = read_text(path, aliases=False)
        cfg = OmegaConf.create(text)
        OmegaConf.to_container(cfg, resolve=True)
    except ConfigError as error:
        raise HardpixError(f"{path} is damaged: {str(error).removeprefix(str(path)).lstrip(': ')}") from None
    except (
        OSError,
        yaml.YAMLError,
        OmegaConfBaseException,
        ValueError,
        RecursionError,
        AssertionError,
    ) as error:
        raise HardpixError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(cfg, DictConfig):
        raise HardpixError(f"{path} is damaged: it holds no mapping")
    return cfg


def load_names(path: Path) -> list[str]:
    """The names of classes that a run has beside it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HardpixError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise HardpixError(f"{path} is damaged: it must list the names of classes")
    return found
