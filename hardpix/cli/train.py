"""``hardpix train``: Hydra composes, hardpix checks, and only then anything heavy is imported."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hardpix.config.catalog import conf_dir
from hardpix.config.compose import check_given, explain, validate
from hardpix.config.trust import check_hydra, files_judged
from hardpix.train import machine
from hardpix.train.machine import masked_errors, masked_output
from hardpix.train.parent import check_parent
from hardpix.train.rundir import check_writable
from hardpix.types import ConfigError, HardpixError


def launch(arguments: list[str]) -> int:
    """Run Hydra on ``arguments`` (overrides, ``-m``, ``--cfg job``, ``--config-dir DIR``, ...)."""
    failures: list[str] = []
    refusals: list[Exception] = []

    def task(cfg: DictConfig) -> float | None:
        multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        overrides = list(HydraConfig.get().overrides.task)
        if "SUBMITIT_EXECUTOR" in os.environ:  # a process of its own: submitit writes down words and errors
            with masked_output(), masked_errors():
                return _one(cfg, overrides)
        try:
            return _one(cfg, overrides)
        except Exception as error:
            if not multirun:
                refusals.append(error)  # raised below: Hydra would first print all overrides
                return None
            # The other jobs of a sweep go on; this one's record, its trace and the last lines tell.
            if not isinstance(error, HardpixError):
                traceback.print_exc()
            failures.append(
                f"{' '.join(overrides)}: {type(error).__name__}: {machine.explain(error) or error}"
            )
            return None

    command = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(task)
    elsewhere = any(word.startswith("hydra/launcher=submitit") for word in arguments)
    if elsewhere and not _importable("hydra_plugins.hydra_submitit_launcher"):
        raise ConfigError('hydra/launcher: submitit is not installed: pip install "hardpix[slurm]"')
    with _as_program(arguments), _judged(arguments), files_judged():
        try:
            command()
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error, arguments)) from error
        except Exception as error:
            if not elsewhere:
                raise
            failures.append(
                f"{type(error).__name__}: {error} (the first one; every run's record has its own)"
            )
    if refusals:
        raise refusals[0]
    for line in failures:
        print(f"hardpix: failed: {line}", file=sys.stderr)
    return 1 if failures else 0


def _importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


def _one(cfg: DictConfig, overrides: list[str]) -> float | None:
    check_given(cfg, overrides)
    validate(cfg)
    check_parent(cfg)  # this and the next before torch is imported
    check_writable(Path(cfg.runs_dir))
    with _outside_hydra():
        import torch

        from hardpix.train.train import train

        try:
            return train(cfg, overrides).metrics.get("test/miou")
        finally:  # a network refers to its trainer and back: the next job must not find it in memory
            gc.collect()
            torch.cuda.empty_cache()
            torch.compiler.reset()


@contextmanager
def _judged(arguments: list[str]):
    """Every configuration that Hydra composes is judged before Hydra calls anything that it names."""
    load = ConfigLoaderImpl.load_configuration

    def judged(self: ConfigLoaderImpl, *given: Any, **named: Any) -> DictConfig:
        cfg = load(self, *given, **named)
        check_hydra(cfg, arguments)
        return cfg

    ConfigLoaderImpl.load_configuration = judged  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign]


@contextmanager
def _outside_hydra():
    """Lightning starts DDP processes its own way inside Hydra, which would start a whole sweep again."""
    holder = HydraConfig.instance()
    saved, holder.cfg = holder.cfg, None
    try:
        yield
    finally:
        holder.cfg = saved


@contextmanager
def _as_program(arguments: list[str]):
    """Hydra reads ``sys.argv``; errors reach us instead of being printed with a traceback."""
    saved, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [saved[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = saved
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
