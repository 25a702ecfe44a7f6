"""The jobs of a study, composed and checked before anything trains, each with the fingerprint that identifies it."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hardpix import record
from hardpix.record import flatten
from hardpix.report.identity import without_below
from hardpix.run.config import GROUPS, Root, compose, explain, validate
from hardpix.run.parent import INHERITED
from hardpix.run.places import PLACES, absolute, moved, present, recorded, same
from hardpix.run.rundir import NO_FACTOR, choose, plain, read_config, short_name
from hardpix.run.sweep.state import look
from hardpix.run.sweep.study import Study, key_of
from hardpix.types import ConfigError, HardpixError

SCALARS = {f.name for f in fields(Root)} - set(GROUPS)
SHOWN = 80  # characters of a job's name in its directory
TOLD = 5  # jobs that a problem names
MARKED = re.compile(r"-[0-9a-f]{8}$")  # names that a sweep has given

Composer = Callable[[Sequence[str]], DictConfig]


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    number: int  # from 1
    name: str  # the settings in which the study's jobs differ
    overrides: tuple[str, ...]
    fingerprint: str  # of the resolved configuration, without what has no bearing on the result
    run_dir: Path
    packed: bytes  # the composed configuration: an unpickled one is ready in a hundredth of composing's time

    def config(self, *, resume: bool = False) -> DictConfig:
        """What ``train`` is given: the configuration with this job's directory."""
        cfg = pickle.loads(self.packed)
        cfg.run, cfg.resume = self.run_dir.name, resume
        return cfg


def jobs_of(
    study: Study, config_dir: Path | None = None, names: Sequence[str] = (), composed: Composer | None = None
) -> tuple[list[Job], list[str]]:
    """Every different job, and a line on each that is left out because it is one before it once more.

    ``names``: of the jobs; without them the settings in which they differ. ``composed``: of :func:`composer`, for
    further jobs.
    Raises ``ConfigError`` with all problems of all jobs.
    """
    varied = _varied(study.jobs)
    jobs: dict[tuple[str, str], Job] = {}
    problems: dict[str, list[str]] = {}
    twice: list[str] = []
    composed = composed or composer(config_dir)
    for number, overrides in enumerate(study.jobs, 1):
        name = names[number - 1] if names else short_name([o for o in overrides if key_of(o) in varied])
        try:
            cfg = composed(overrides)
            validate(cfg)
            cfg = absolute(cfg)
            cfg.run = "run"  # a name that is right, for the check of the others
            folder = choose(cfg, overrides).parent
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
        directory = folder / f"{name[:SHOWN]}-{mark[:8]}"
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
    text = json.dumps([mark, paths | present(cfg, paths)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _alike(one: DictConfig, other: DictConfig) -> bool:
    """Whether the paths of two jobs lead to the same files; what lies there is read where they differ."""
    keys = moved(flatten(plain(one)), flatten(plain(other)))
    return not keys or same(present(one, keys), present(other, keys), keys)


def _numbers(value: Any) -> Any:
    """1.0 as 1: a setting typed either way is the same."""
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def composer(config_dir: Path | None = None) -> Composer:
    """A function from overrides to a configuration, for many of them: what chooses files is composed once.

    Hydra reads and merges files for a tenth of a second; the values of a command line come last and take a
    millisecond, in Hydra as here.
    """
    bases: dict[tuple[str, ...], DictConfig] = {}
    parser = OverridesParser.create()

    def composed(overrides: Sequence[str]) -> DictConfig:
        files = tuple(o for o in overrides if not _is_value(o))
        if files not in bases:
            bases[files] = compose(files, config_dir=config_dir)
        cfg = copy.deepcopy(bases[files])
        try:
            values = parser.parse_overrides([o for o in overrides if _is_value(o)])
            ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error, overrides)) from None
        return cfg

    return composed


def _is_value(override: str) -> bool:
    """Whether an override sets a key, rather than choosing a file: names of groups have no dot."""
    key = key_of(override)
    return key in SCALARS or ("." in key and not set("/@") & set(key) and not key.startswith("hydra."))


def _varied(jobs: Sequence[Sequence[str]]) -> set[str]:
    """Keys that not all jobs have, or not with the same value."""
    counts: dict[str, int] = {}
    for text in (text for job in jobs for text in set(job)):
        counts[text] = counts.get(text, 0) + 1
    return {key_of(text) for text, count in counts.items() if count < len(jobs)}


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
    keys = moved(flatten(plain(stored)), flatten(plain(cfg)))
    return not keys or same(recorded(before, keys), present(cfg, keys), keys)


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
    """The fingerprint without what a run takes over from the one that it stands on or starts from."""
    networks = () if cfg.parent is None else tuple(f"{group}." for group in INHERITED)
    return fingerprint(cfg, ("parent_config", *networks))


def _named(who: Sequence[str]) -> str:
    more = f" and {len(who) - TOLD} more" if len(who) > TOLD else ""
    return ", ".join(who[:TOLD]) + more


def counted(states: Mapping[str, int]) -> str:
    """``3 done, 1 failed``; what there is none of is left out."""
    return ", ".join(f"{count} {name}" for name, count in states.items() if count) or "nothing"
