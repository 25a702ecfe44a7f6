"""``hardpix train``: Hydra composes, hardpix checks, and only then anything heavy is imported."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hardpix.config.catalog import conf_dir
from hardpix.config.command_line import Parser
from hardpix.config.compose import SCALARS, check_command_line_trust, compose, explain, searchpath, validate
from hardpix.config.trust import check_hydra, files_judged
from hardpix.sweep.sweeper import command_line
from hardpix.sweep.work import clean_up, outside_hydra
from hardpix.train.parent import check_parent
from hardpix.train.rundir import check_writable
from hardpix.types import ConfigError

EXTRAS = {"submitit": ("hydra_submitit_launcher", "slurm"), "joblib": ("hydra_joblib_launcher", "joblib")}
OURS = ("study", "optuna")  # sweepers
REFUSED = {
    "experimental_rerun": "--experimental-rerun: a pickle would be run; hardpix train run=NAME continues a run",
    "shell_completion": "-sc: completes no other command; hardpix completion install brings TAB to bash, zsh and fish",
    "config_path": "--config-path: hardpix's own conf/ is always the first; add a folder with --config-dir",
    "config_name": "--config-name: the root is always train; put a file into DIR/experiment/ and choose it: "
    "--config-dir DIR experiment=NAME",
}


def launch(arguments: Sequence[str]) -> int:
    """Run Hydra on ``arguments`` (overrides, ``-m``, ``--cfg job``, ``--config-dir DIR``, ...)."""
    given, flags = _read(arguments)
    many = given.multirun or any(o.startswith("hydra.mode=") and "MULTI" in o for o in given.overrides)
    sweeper = next((o.partition("=")[2] for o in given.overrides if o.startswith("hydra/sweeper=")), "study")
    ours = many and sweeper in OURS
    words = [o for o in given.overrides if not ours or _of_hydra(o) or _for_all(o)]
    _check_extras(words)
    folder = [] if given.config_dir is None else [Path(given.config_dir)]
    fixed = [o for o in words if not (many and _several(o))]
    check_hydra(compose([*fixed, *_places(words, folder)], hydra=True), given.overrides)
    if "hydra.run.dir" in {o.lstrip("+").partition("=")[0] for o in words}:
        raise ConfigError("hydra.run.dir: a run is in runs_dir/study/run; give these three instead")
    raised: list[Exception] = []

    def task(cfg: DictConfig) -> float | None:
        try:
            return _train(cfg)
        except Exception as error:
            if many:
                raise
            raised.append(error)  # raised below: Hydra would first print all overrides
            return None

    command = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(task)
    own = command_line([o for o in given.overrides if not _of_hydra(o)]) if ours else nullcontext()
    with _as_program([*flags, *words]), files_judged(), _explained(given.overrides), own:
        try:
            command()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    if raised:
        raise raised[0]
    return 0


def _read(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's own flags, of which it must be known what they mean before Hydra begins; and all flags as given."""
    parser = Parser("hardpix train", add_help=False)
    parser.add_argument("overrides", nargs="*")
    for names in ("--multirun -m", "--run -r", "--help -h", "--hydra-help", "--version", "--resolve"):
        parser.add_argument(*names.split(), action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    for names in (
        "--package -p",
        "--config-dir -cd",
        "--experimental-rerun",
        "--config-path -cp",
        "--config-name -cn",
    ):
        parser.add_argument(*names.split())
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--info", "-i", nargs="?", const="all")
    given = parser.parse_intermixed_args(list(arguments))
    for name, why in REFUSED.items():
        if getattr(given, name):
            raise ConfigError(why)
    if given.config_dir is not None and not Path(given.config_dir).is_dir():
        raise ConfigError(f"--config-dir {given.config_dir}: there is no such folder")
    left = list(given.overrides)
    flags = [a for a in arguments if not (a in left and not left.remove(a))]  # type: ignore[func-returns-value]
    chosen = [n for n in ("run", "multirun", "cfg", "info") if getattr(given, n)]
    if len(chosen) > 1:
        raise ConfigError(
            f"--{chosen[0]} and --{chosen[1]}: give one of them; hardpix sweep --dry-run lists a sweep's jobs"
        )
    if given.resolve and not (given.cfg or given.help):
        raise ConfigError("--resolve: goes with --cfg job")
    return given, flags


def _of_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def _for_all(override: str) -> bool:
    """Whether the configuration of a sweep as such may have an override: a choice of files, or a key at the top."""
    key, _, value = override.partition("=")
    return (
        (key in SCALARS or key.replace("_", "").isalpha())
        and not set(",()[]{}<>") & set(value)
        and bool(value)
    )


def _several(override: str) -> bool:
    return OverridesParser.create().parse_override(override).is_sweep_override()


def _places(words: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """``--config-dir`` as a search path, unless one is given."""
    return [] if any(o.lstrip("+").startswith("hydra.searchpath=") for o in words) else searchpath(folders)


def _check_extras(words: Sequence[str]) -> None:
    for kind, (module, extra) in EXTRAS.items():
        if any(word.startswith(f"hydra/launcher={kind}") for word in words):
            try:
                found = find_spec(f"hydra_plugins.{module}") is not None
            except (ModuleNotFoundError, ValueError):
                found = False
            if not found:
                raise ConfigError(f'hydra/launcher: {kind} is not installed: pip install "hardpix[{extra}]"')


def _train(cfg: DictConfig) -> float | None:
    overrides = list(HydraConfig.get().overrides.task)
    check_command_line_trust(cfg, overrides)
    validate(cfg)
    check_parent(cfg)  # this and the next before torch is imported
    check_writable(Path(cfg.runs_dir))
    with outside_hydra():
        from hardpix.train.train import train

        try:
            return train(cfg, overrides).metrics.get("test/miou")
        finally:
            clean_up()


@contextmanager
def _explained(arguments: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, arguments)) from error


@contextmanager
def _as_program(arguments: list[str]) -> Iterator[None]:
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
