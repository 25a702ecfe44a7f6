"""``hardpix sweep``: a short word for ``hardpix train -m`` with the study's sweeper."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from hardpix.cli.train import launch
from hardpix.config.command_line import Parser, override, quoted
from hardpix.config.compose import composer
from hardpix.sweep.study import OnError, is_table, read_study
from hardpix.types import ConfigError

DESCRIPTION = """\
Train the runs of a study, conf/studies/NAME.yaml or the product of the values on the command line
(method=baseline,hardness seed=0,1,2). All are checked before the first one trains. Give the same command again after
whatever has happened: what is done is skipped, what was interrupted goes on, what failed is tried once more. A file
with stages: has runs that start from each other; one with search: has Optuna choose. hydra/launcher=pool trains several
at once on this machine, hydra/launcher=submitit_slurm in the queue of a cluster."""


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["status"]:
        return _status(arguments[1:])
    parser = _parser("hardpix sweep", DESCRIPTION)
    parser.add_argument(
        "--dry-run", action="store_true", help="list the jobs, a line each, with the time that they take"
    )
    parser.add_argument("--all", action="store_true", help="with --dry-run: every job, not a screen of them")
    parser.add_argument(
        "--commands", action="store_true", help="with --dry-run: and the command that trains each"
    )
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="resume also runs whose record says that they run on another machine, which cannot be seen from here",
    )
    parser.add_argument(
        "--on-error", choices=get_args(OnError), help="in place of the file's (default: continue)"
    )
    parser.add_argument(
        "--use", action="append", default=[], metavar="STAGE=RUN", help="a finished run in place of a stage"
    )
    parser.add_argument(
        "--wandb", type=Path, metavar="FILE.yaml", help="train nothing: write a search as a sweep of W&B"
    )
    given = parser.parse_intermixed_args(arguments)
    own = [word for word in given.words if not word.startswith(("hydra.", "hydra/"))]
    study = read_study(own, given.config_dir)
    _list_others(own)
    if given.wandb:
        from hardpix.sweep.wandb_file import write_wandb_sweep

        print(write_wandb_sweep(study, given.wandb, given.config_dir))
        return 0
    return launch(["-m", *_as_hydra(given, "optuna" if study.search else "study")])


def _list_others(words: list[str]) -> None:
    """Print the commands of a published table's rows that take more than one training."""
    from hardpix.cli.published_rows import table_commands

    if not is_table(words[0]):
        return
    seed = next((word.partition("=")[2] for word in words if word.startswith("seed=")), "0")
    seeds = [int(part) for part in seed.split(",") if part.isdecimal()]
    others = [line for line in table_commands(words[0], seeds or [0]) if not line.startswith("hardpix train")]
    if others:
        print("rows that take other commands:", *others, sep="\n  ")


def _as_hydra(given: argparse.Namespace, sweeper: str) -> list[str]:
    """The arguments of ``hardpix train -m`` that say the same."""
    named = given.words[:1] if "=" not in given.words[0] and given.words[0][:1] not in ("+", "~") else []
    settings = {
        "study": named[0] if named else None,
        "on_error": given.on_error,
        "take_over": given.take_over,
        "dry_run": given.dry_run or given.commands or given.all,
        "every": given.all,
        "commands": given.commands,
    }
    words = [f"hydra/sweeper={sweeper}"]
    words += [override(f"hydra.sweeper.{key}", value) for key, value in settings.items() if value]
    words += [f"+hydra.sweeper.use.{name}={quoted(path)}" for name, path in _used(given.use).items()]
    folder = [] if given.config_dir is None else ["--config-dir", str(given.config_dir)]
    return [*folder, *words, *given.words[len(named) :]]


def _used(given: list[str]) -> dict[str, str]:
    for text in given:
        if "=" not in text:
            raise ConfigError(f"--use {text}: must be STAGE=RUN")
    return {name: path for name, _, path in (text.partition("=") for text in given)}


def _status(arguments: list[str]) -> int:
    parser = _parser("hardpix sweep status", "State of a study's runs; name it as for the sweep itself.")
    parser.add_argument("--watch", action="store_true", help="go on showing it, until all is done or Ctrl-C")
    parser.add_argument("--use", action="append", default=[], metavar="STAGE=RUN", help="as for the sweep")
    given = parser.parse_intermixed_args(arguments)
    study = read_study(given.words, given.config_dir)
    if study.search is not None:
        from hardpix.sweep.search import show_search

        return show_search(study, composer([] if given.config_dir is None else [given.config_dir]))
    from hardpix.sweep.status import show

    try:
        return show(given.words, given.config_dir, _used(given.use), watch=given.watch)
    except KeyboardInterrupt:
        return 0 if given.watch else 130


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="NAME_OR_OVERRIDE",
        help="a file of conf/studies/ and settings for all its jobs, or settings alone; several values make an axis; "
        "STAGE:key=value for one stage; hydra/launcher=... and hydra.launcher.KEY=... say where jobs run",
    )
    parser.add_argument(
        "--config-dir", type=Path, help="folder of further configuration files, studies/ among them"
    )
    return parser
