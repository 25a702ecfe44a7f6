"""Jobs of a study: composed, checked, named and fingerprinted."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hardpix import record
from hardpix.config.command_line import quoted
from hardpix.config.compose import Composer, composer, validate
from hardpix.record import flatten, without_below
from hardpix.sweep.stages import chain_name, check_chain, overrides_of
from hardpix.sweep.state import State, look
from hardpix.sweep.study import Study, key_of
from hardpix.train import rundir
from hardpix.train.parent import INHERITED, current_content, recorded_content, same_content
from hardpix.train.rundir import (
    NO_FACTOR,
    PLACES,
    choose_run_dir,
    moved_paths,
    plain,
    read_config,
    short_name,
    with_absolute_paths,
)
from hardpix.types import ConfigError, HardpixError

MAX_NAME = 80  # characters of a job's name in its directory
MAX_LISTED = 5  # jobs that a problem names
MARKED = re.compile(r"-[0-9a-f]{8}$")  # names that a sweep has given


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    number: int  # from 1
    name: str  # the settings in which the study's jobs differ
    overrides: tuple[str, ...]
    fingerprint: str  # of the resolved configuration, without what has no bearing on the result
    run_dir: Path
    packed: bytes  # the composed configuration: an unpickled one is ready in a hundredth of composing's time
    source: Path | None = None  # the run that has to be done before
    level: int = 0  # how many stages come before

    def config(self) -> DictConfig:
        """The configuration with this job's directory."""
        cfg = pickle.loads(self.packed)
        cfg.run = self.run_dir.name
        return cfg

    @property
    def words(self) -> list[str]:
        """The overrides that train this job alone."""
        own = [o for o in self.overrides if not o.startswith(("study=", "run="))]
        return [*own, f"study={quoted(self.run_dir.parent.name)}", f"run={quoted(self.run_dir.name)}"]


def single(words: Sequence[str], composed: Composer) -> Job:
    """The job that :attr:`Job.words` are of."""
    cfg = composed(words)
    validate(cfg)
    return Job(
        1, str(cfg.run), tuple(words), "", choose_run_dir(cfg, words), pickle.dumps(with_absolute_paths(cfg))
    )


def stage_jobs(study: Study, used: Mapping[str, Path], composed: Composer) -> list[Job]:
    """The runs of every chain of a study with stages; ``used``: finished runs in place of stages."""
    if len(study.jobs) > 1 and any(o.startswith("run=") for o in study.jobs[0]):
        raise ConfigError("run: names the runs of one chain; leave it out where a setting has several values")
    jobs: list[Job] = []
    for given in study.jobs:
        check_chain(study.stages, given, used, composed)
        prefix = chain_name(study.name, given)
        places, levels = dict(used), dict.fromkeys(used, -1)
        for stage in (s for s in study.stages if s.name not in used):
            source = places.get(stage.source or "")
            link = [] if source is None else [f"{stage.link}='{source}'"]
            words = [
                *overrides_of(stage, given, study.stages),
                *link,
                f"run={quoted(f'{prefix}-{stage.name}')}",
            ]
            job = single(words, composed)
            places[stage.name] = job.run_dir
            levels[stage.name] = levels.get(stage.source or "", -1) + 1
            name = stage.name if len(study.jobs) == 1 else job.run_dir.name
            jobs.append(
                replace(job, number=len(jobs) + 1, name=name, source=source, level=levels[stage.name])
            )
    return jobs


def jobs_of(
    study: Study, composed: Composer | None = None, names: Sequence[str] = ()
) -> tuple[list[Job], list[str]]:
    """Every different job, and a line on each that is left out because it is one before it once more.

    ``names``: of the jobs; without them the settings in which they differ. Raises ``ConfigError`` with all problems of
    all jobs.
    """
    composed = composed or composer()
    varied = _varied(study.jobs)
    jobs: dict[tuple[str, str], Job] = {}
    problems: dict[str, list[str]] = {}
    twice: list[str] = []
    for number, overrides in enumerate(study.jobs, 1):
        name = names[number - 1] if names else short_name([o for o in overrides if key_of(o) in varied])
        try:
            cfg = composed(overrides)
            validate(cfg)
            cfg = with_absolute_paths(cfg)
            cfg.run = "run"  # a name that is right, for the check of the others
            folder = choose_run_dir(cfg, overrides).parent
        except ConfigError as error:
            problems.setdefault(str(error), []).append(f"job {number} ({name})")
            continue
        mark = fingerprint(cfg)
        key = (str(folder), mark)
        if key in jobs and not _alike(jobs[key].config(), cfg):
            mark = marked_by_content(mark, cfg)
            key = (str(folder), mark)
        if key in jobs:
            twice.append(f"job {number} ({name}) is job {jobs[key].number} once more: run once")
            continue
        directory = folder / f"{name[:MAX_NAME]}-{mark[:8]}"
        jobs[key] = Job(number, name, tuple(overrides), mark, directory, pickle.dumps(cfg))
    if problems:
        raise ConfigError("\n".join(f"{_named(who)}: {text}" for text, who in problems.items()))
    return _placed(list(jobs.values())), twice


def fingerprint(cfg: DictConfig, without: Sequence[str] = ()) -> str:
    """The same for configurations that train and score the same, however they were written; 64 hex digits.

    Paths are left out: two configurations that differ in these alone may name the same files. ``without``: what else
    is left out, by how its keys begin.
    """
    left_out = (*NO_FACTOR, *without)
    flat = {
        key: value
        for key, value in flatten(plain(cfg)).items()
        if not key.startswith(left_out) and not (isinstance(value, str) and without_below(key) in PLACES)
    }
    text = json.dumps(_numbers(flat), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def marked_by_content(mark: str, cfg: DictConfig) -> str:
    """Another fingerprint, for a job that differs from the one with ``mark`` in what lies at its paths alone.

    The paths themselves count where nothing can be read there.
    """
    paths = {
        key: value for key, value in flatten(plain(cfg)).items() if key in PLACES and isinstance(value, str)
    }
    text = json.dumps([mark, paths | current_content(cfg, paths)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _alike(one: DictConfig, other: DictConfig) -> bool:
    """Whether the paths of two jobs lead to the same files; what lies there is read where they differ."""
    keys = moved_paths(flatten(plain(one)), flatten(plain(other)))
    return not keys or same_content(current_content(one, keys), current_content(other, keys), keys)


def _numbers(value: Any) -> Any:
    """1.0 as 1: a setting typed either way is the same."""
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _varied(jobs: Sequence[Sequence[str]]) -> set[str]:
    """Keys that not all jobs have, or not with the same value; not which published cells they fill."""
    counts: dict[str, int] = {}
    for text in (text for job in jobs for text in set(job)):
        counts[text] = counts.get(text, 0) + 1
    return {key_of(text) for text, count in counts.items() if count < len(jobs)} - {"reproduces"}


def _placed(jobs: Sequence[Job]) -> list[Job]:
    """The jobs with the directories that they have already, whatever those are called.

    The mark at the end of a name spares reading. Another version of hardpix may have given another one, or a hand
    another name: runs whose mark is no job's are known by the configuration in them.
    """
    marks = {job.fingerprint[:8] for job in jobs}
    there = {folder: _present(folder) for folder in {job.run_dir.parent for job in jobs}}
    read: dict[Path, dict[str, list[str]]] = {}
    placed: list[Job] = []
    for job in jobs:
        folder, own = job.run_dir.parent, job.fingerprint[:8]
        names = [there[folder][own]] if own in there[folder] else []
        if not names:
            if folder not in read:
                read[folder] = _read([folder / n for mark, n in there[folder].items() if mark not in marks])
            names = read[folder].get(_own(job.config()), []) if read[folder] else []
        directory = next((name for name in names if _belongs(job, folder / name)), None)
        if directory is None and own in there[folder]:  # the same settings on other data
            mark = marked_by_content(job.fingerprint, job.config())
            job = replace(
                job, fingerprint=mark, run_dir=folder / MARKED.sub(f"-{mark[:8]}", job.run_dir.name)
            )
            directory = there[folder].get(mark[:8])
        placed.append(job if directory is None else replace(job, run_dir=folder / directory))
    return placed


def _belongs(job: Job, run_dir: Path) -> bool:
    """Whether a run of the job's settings was trained on what lies at the job's paths now."""
    cfg = job.config()
    try:
        stored, before = read_config(run_dir), record.read(run_dir)
    except (HardpixError, OmegaConfBaseException):
        return True  # it cannot be read, which is reported when it is resumed
    keys = moved_paths(flatten(plain(stored)), flatten(plain(cfg)))
    return not keys or same_content(recorded_content(before, keys), current_content(cfg, keys), keys)


def _present(folder: Path) -> dict[str, str]:
    """The directories of a study's folder by the mark at their end, by their name where it has none."""
    if not folder.is_dir():
        return {}
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return {name[-8:] if MARKED.search(name) else name: name for name in names}


def _read(run_dirs: Sequence[Path]) -> dict[str, list[str]]:
    """The names of runs by what they have trained; of several alike those that are done first.

    Others count only where a sweep has named them: what failed is cleared, and not all is a sweep's to clear.
    """
    found: dict[str, list[tuple[bool, str]]] = {}
    for path in run_dirs:
        state = look(path)
        if state.record is None or (state.kind != "done" and not MARKED.search(path.name)):
            continue
        try:
            own = _own(read_config(path))
        except (HardpixError, OmegaConfBaseException):
            continue
        found.setdefault(own, []).append((state.kind == "done", path.name))
    return {own: [name for _, name in sorted(alike, reverse=True)] for own, alike in found.items()}


def _own(cfg: DictConfig) -> str:
    """The fingerprint without what a run takes over from its parent, or from the run that it starts from."""
    networks = () if cfg.parent is None else tuple(f"{group}." for group in INHERITED)
    return fingerprint(cfg, ("parent_config", *networks))


def _named(who: Sequence[str]) -> str:
    more = f" and {len(who) - MAX_LISTED} more" if len(who) > MAX_LISTED else ""
    return ", ".join(who[:MAX_LISTED]) + more


def command(job: Job, state: State, config_dir: Path | None = None) -> str:
    """The command line that does with this job alone what the sweep would do."""
    folder = [] if config_dir is None else ["--config-dir", str(config_dir)]
    line = shlex.join(["hardpix", "train", *folder, *job.words, *(["resume=true"] if state.resume else [])])
    if state.kind == "failed" and not state.resume:  # `train` keeps what a failed run has left
        return f"{rundir.set_aside_command(job.run_dir)} && {line}"
    return line
