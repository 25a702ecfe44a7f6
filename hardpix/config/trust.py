"""Decide which code and files a configuration may use.

A configuration can come from anyone: next to a run that was downloaded, in a folder of further files. So a name is
judged before anything is imported (to import a module is to run it), and again on the object that it stands for.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, ListConfig, OmegaConf

from hardpix.config.catalog import conf_dir
from hardpix.config.safe_files import read_yaml_text
from hardpix.config.schema import Signature, find_class
from hardpix.types import ConfigError

# The packages whose public classes a configuration names; functions of theirs may write files.
PUBLIC = tuple(f"hardpix.{name}" for name in ("data", "losses", "methods", "models", "ops", "optim"))

# Settings of Hydra that run commands or change what a command means: from the command line alone.
COMMANDS = ("setup", "teardown", "python", "srun_args", "additional_parameters")  # of launchers
OWN_WORD = ("hydra.job.env_set", *(f"hydra.launcher.{name}" for name in COMMANDS))
PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")
LOGGING = ("logging.StreamHandler", "logging.NullHandler", "logging.Formatter")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


def find_targets(node: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every mapping with a ``_target_`` in a configuration, however deep, with its dotted path."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key in node:  # whole numbers in a label_map
            if not OmegaConf.is_missing(node, key):
                yield from find_targets(node[key], f"{path}.{key!s}" if path else str(key))
    elif isinstance(node, ListConfig):
        for index, item in enumerate(node):
            yield from find_targets(item, f"{path}.{index}")


def find_target(target: str, trusted: Sequence[str]) -> Signature:
    """The signature of what a ``_target_`` names; ``ConfigError`` where it is not to be run, or not there."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target):
        raise ConfigError(f"{target!r} is no dotted name, such as hardpix.data.Folder")
    package = target.partition(".")[0]
    if package != "hardpix" and not _within(target, trusted):
        raise ConfigError(
            f"{target} is not part of hardpix; to let this run execute code of that package add trusted=[{package}]"
        )
    module = target.rpartition(".")[0]
    if package == "hardpix" and module not in PUBLIC:
        raise ConfigError(
            f"{target} is not for a configuration, which names public classes of {', '.join(PUBLIC)}"
        )
    try:
        return find_class(target) if package == "hardpix" else _imported(target, trusted)
    except (LookupError, ImportError, AttributeError, SyntaxError, ValueError, TypeError) as error:
        raise ConfigError(f"{target} cannot be found ({error})") from None


def check_target(node: DictConfig, group: str) -> str:
    """The target of ``node.group``, to be called; ``ConfigError`` where the configuration does not allow it."""
    target = str(OmegaConf.select(node, f"{group}._target_"))
    try:
        find_target(target, tuple(node.get("trusted") or ()))
    except ConfigError as error:
        raise ConfigError(f"{group}._target_: {error}") from None
    return target


def check_trust(cfg: DictConfig, trusted: Iterable[str], whose: str = "that run") -> None:
    """Another run's word is not enough to execute code that is no part of hardpix: it must be ``trusted`` here too."""
    node: Any = cfg
    while isinstance(node, DictConfig):
        named = node.get("trusted")
        if not isinstance(named, ListConfig | None):
            raise ConfigError(f"trusted={named}: must be a list of packages")
        foreign = sorted({str(package) for package in named or ()} - set(trusted))
        if foreign:
            raise ConfigError(
                f"{whose} executes code of {', '.join(foreign)}; to allow this add trusted=[{','.join(foreign)}]"
            )
        node = node.get("parent_config")


def named_trust(overrides: Iterable[str]) -> list[str]:
    """The packages that a command line trusts, ``trusted=[a,b]``."""
    found: list[str] = []
    for text in overrides:
        key, _, value = text.lstrip("+").partition("=")
        if key == "trusted":
            found += [part.strip(" '\"") for part in value.strip("[] ").split(",")]
    return [package for package in found if package]


def own_word(key: str) -> str:
    """Why a file of a study or chain may not set ``key``; empty where it may."""
    word = re.split(r"[./@]", key.strip(" +~"))[0]
    if word == "trusted":
        return "a file cannot trust code; give it on the command line"
    if word == "hydra":
        return "a file cannot change how Hydra works, which can run code; give it on the command line"
    return ""


def check_one_line(node: Any, path: str) -> None:
    """Refuse line breaks and the like, which in a script would begin a command."""
    if isinstance(node, dict):
        for key, value in node.items():
            check_one_line(str(key), path)
            check_one_line(value, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for item in node:
            check_one_line(item, path)
    elif isinstance(node, str) and not node.isprintable():
        raise ConfigError(f"{path}={node!r}: must be of one line, without signs that are not printed")


def check_hydra(cfg: DictConfig, arguments: Sequence[str]) -> None:
    """Refuse what Hydra would call by itself before hardpix sees a configuration: callbacks and loggers."""
    hydra = cfg.get("hydra")
    trusted, given = named_trust(arguments), {a.lstrip("+~").partition("=")[0] for a in arguments}
    for path, node in find_targets(hydra, "hydra"):
        target = str(node["_target_"])
        plugin = path in ("hydra.launcher", "hydra.sweeper") and target.startswith(PLUGINS)
        if not plugin and not _within(target, trusted):
            raise ConfigError(
                f"{path}._target_: {target} is not part of hardpix; to let it run add "
                f"trusted=[{target.partition('.')[0]}]"
            )
    for name in ("hydra_logging", "job_logging"):
        _check_logging(OmegaConf.to_container(hydra[name], resolve=True), f"hydra.{name}")
    for key in OWN_WORD:
        if OmegaConf.select(cfg, key) and not any(g == key or g.startswith(f"{key}.") for g in given):
            raise ConfigError(f"{key}: is set by a file; it runs commands, so give it on the command line")
    if "submitit" in str(OmegaConf.select(cfg, "hydra.launcher._target_")):  # it writes a script
        launcher: Any = OmegaConf.to_container(hydra.launcher, resolve=True)
        check_one_line({k: v for k, v in launcher.items() if k != "setup"}, "hydra.launcher")
    for place in hydra.get("searchpath") or ():
        if not str(place).startswith("file://") and "://" in str(place):
            raise ConfigError(
                f"hydra.searchpath: {place} must be a folder, file://PATH: a package would be run"
            )


def _check_logging(node: Any, path: str) -> None:
    """Python's logging calls whatever a configuration names under ``()`` or ``class``."""
    if isinstance(node, list):
        for item in node:
            _check_logging(item, path)
    elif isinstance(node, dict):
        for key, value in node.items():
            known = value in LOGGING if key == "class" else key != "()"
            if not known:
                raise ConfigError(
                    f"{path}.{key}={value}: is not called; choose hydra/job_logging=default or none"
                )
            _check_logging(value, f"{path}.{key}")
    elif isinstance(node, str) and node.startswith(("ext://", "cfg://")) and node not in STREAMS:
        raise ConfigError(f"{path}={node}: must be {' or '.join(STREAMS)}")


def _within(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _imported(target: str, trusted: Sequence[str]) -> Signature:
    """The signature of an object of a user's trusted package; imports it.

    A package in the working directory is found too, as it would be by ``python -m``.
    """
    if "" not in sys.path:
        sys.path.append("")
    module, _, name = target.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    home = str(getattr(found, "__module__", None) or module)
    if not _within(home, (*trusted, *PUBLIC)):
        raise ImportError(f"it is of {home}, which is not trusted")
    parameters = inspect.signature(found).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return Signature(
        frozenset(p.name for p in named), frozenset(p.name for p in named if p.default is p.empty), {}
    )


# Check configuration files that Hydra reads by itself.


@contextmanager
def files_judged() -> Iterator[None]:
    """Within the block a file of too many bytes, levels or repetitions is refused before Hydra loads it."""
    load, own = ConfigRepository.load_config, conf_dir().resolve()

    def judged(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path=config_path, object_type=ObjectType.CONFIG)
        if source is not None and source.scheme() == "file":
            path = Path(source.path, source._normalize_file_name(config_path)).resolve()
            if not path.is_relative_to(own):
                read_yaml_text(path)
        return load(self, config_path)

    ConfigRepository.load_config = judged  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigRepository.load_config = load  # type: ignore[method-assign]
