"""``hardpix sweep``: arguments."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import yaml

from hardpix.config import safe_files
from hardpix.config.command_line import Parser
from hardpix.config.published import is_published
from hardpix.sweep.execute import command
from hardpix.sweep.jobs import ACTION, Job, counted, jobs_of, look
from hardpix.sweep.launchers import timed
from hardpix.sweep.study import HERE, KINDS, Launcher, OnError, Study, read_launcher, read_study
from hardpix.train.rundir import check_writable
from hardpix.types import ConfigError

PREFIX = "launcher."  # of a launcher's settings among the words

DESCRIPTION = """\
Train the runs of a study, conf/sweep/NAME.yaml or the product of the values on the command line
(method=baseline,hardness seed=0,1,2). All are checked before the first one trains. Give the same command again after
whatever has happened: what is done is skipped, what was interrupted goes on, what failed is tried once more. A file
with search: has Optuna choose, in as many processes as the command is given; a failed trial of it stays failed."""


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["status"]:
        return _status(arguments[1:])
    parser = _parser("hardpix sweep", DESCRIPTION)
    parser.add_argument(
        "--dry-run", action="store_true", help="list the jobs, what would be done with each, and why"
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
        "--workers",
        metavar="N",
        help="train on N processes of this machine at once, in place of the file's (default: 0, in this one); "
        "auto: one per GPU, without a GPU one per core",
    )
    parser.add_argument(
        "--launcher",
        choices=KINDS,
        help="here: on this machine; slurm: each a job of the cluster, launcher.partition=gpu "
        "launcher.timeout_min=600 ... as hydra/launcher=submitit_slurm names them",
    )
    parser.add_argument(
        "--wandb", type=Path, metavar="FILE.yaml", help="train nothing: write a search as a sweep of W&B"
    )
    given = parser.parse_intermixed_args(arguments)
    if is_published(given.words[0]):
        from hardpix.cli.published_rows import list_table

        return list_table(given.words, dry_run=given.dry_run)
    study, jobs = _jobs(given)
    study = replace(study, launcher=_launcher(study.launcher, given))
    if given.on_error:
        study = replace(study, on_error=given.on_error)
    if given.wandb:
        from hardpix.sweep import search as wandb_sweep

        print(wandb_sweep.write_wandb_sweep(study, given.wandb, given.config_dir))
        return 0
    if study.search is not None:
        if study.launcher != HERE:
            raise ConfigError(
                "a search runs in one process; start the same command again beside it, and both share the trials"
            )

        if given.dry_run:
            print(wandb_sweep.plan(study, given.config_dir))
            return 0
        return wandb_sweep.run(study, given.config_dir, take_over=given.take_over)
    if given.dry_run:
        print(plan(jobs, given.config_dir, take_over=given.take_over))
        return 0
    for folder in {job.run_dir.parent for job in jobs}:
        check_writable(folder)
        safe_files.check_run_files(folder, deep=False)
    _check_files(jobs)
    return timed(study, jobs, take_over=given.take_over)


def _check_files(jobs: Sequence[Job]) -> None:
    """Raise ``ConfigError`` where a job would write into files not its run's own; one that is done does not."""
    for job in jobs:
        try:
            safe_files.check_run_files(job.run_dir)
        except ConfigError:
            if look(job.run_dir).kind != "done":
                raise


def _launcher(file: Launcher, given: argparse.Namespace) -> Launcher:
    """That of the study's file, with what the command line says in its place."""
    kind = given.launcher or ("here" if given.workers is not None else file.kind)
    words = [word.removeprefix(PREFIX).partition("=") for word in given.settings]
    if kind == "slurm":
        if given.workers is not None:
            raise ConfigError("--workers: are processes of this machine; leave it or --launcher slurm out")
        return replace(
            file,
            kind=kind,
            settings={**file.settings, **{key: _value(key, value) for key, _, value in words}},
        )
    if words:
        raise ConfigError(f"{given.settings[0]}: is a setting of --launcher slurm")
    if given.workers is None:
        return HERE if file.kind == "slurm" else file
    return read_launcher({"workers": given.workers, "devices": file.devices}, "--")


def _value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(
            f"{PREFIX}{key}={text}: not readable as a value; do all brackets and quotes close?"
        ) from None


def _status(arguments: list[str]) -> int:
    parser = _parser("hardpix sweep status", "Where a study stands; name it as for the sweep itself.")
    parser.add_argument("--watch", action="store_true", help="go on showing it, until all is done or Ctrl-C")
    given = parser.parse_intermixed_args(arguments)
    from hardpix.sweep.status import show

    study, jobs = _jobs(given)
    try:
        if study.search is not None:
            from hardpix.sweep import search, status

            folder = search.prepare(study, given.config_dir)[0]
            name = study.name or folder.name
            status.show_search(str(folder), folder, name, study.search, watch=given.watch)
            return 0
        show(
            study.name or ", ".join(sorted({str(job.run_dir.parent) for job in jobs})),
            jobs,
            watch=given.watch,
        )
    except KeyboardInterrupt:
        return 0 if given.watch else 130
    return 0


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="NAME_OR_OVERRIDE",
        help="a file of conf/sweep/ and settings for all its jobs, or settings alone; several values make an axis",
    )
    parser.add_argument(
        "--config-dir", type=Path, help="folder of further configuration files, sweep/ among them"
    )
    return parser


def _jobs(given: argparse.Namespace) -> tuple[Study, list[Job]]:
    given.settings = [word for word in given.words if word.startswith(PREFIX)]
    study = read_study([word for word in given.words if word not in given.settings], given.config_dir)
    jobs, twice = jobs_of(study, given.config_dir)
    for line in twice:
        print(line)
    return study, jobs


def plan(jobs: Sequence[Job], config_dir: Path | None, *, take_over: bool = False) -> str:
    """What would be done with each job and why, with the command that trains it alone."""
    states = [look(job.run_dir, take_over=take_over) for job in jobs]
    counts = Counter(ACTION[state.kind] for state in states)
    lines = [f"{len(jobs)} jobs: {counted({f'to {action}': counts[action] for action in ACTION.values()})}"]
    for job, state in zip(jobs, states, strict=True):
        lines.append(f"{job.number:4} {ACTION[state.kind]:<6}  {job.name}: {state.why}")
        lines.append(f"      {command(job, state, config_dir)}")
    return "\n".join(lines)
