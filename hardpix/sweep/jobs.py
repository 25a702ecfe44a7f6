"""Jobs of a study: composed, checked, fingerprinted, and their state read from records and the queue."""

from __future__ import annotations

import copy
import getpass
import hashlib
import json
import os
import pickle
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hardpix import record
from hardpix.config.compose import GROUPS, Root, compose, explain, validate
from hardpix.record import flatten, without_below
from hardpix.sweep.study import Study, key_of
from hardpix.train import rundir
from hardpix.train.parent import INHERITED, present, recorded, same_content
from hardpix.train.rundir import (
    NO_FACTOR,
    PLACES,
    choose,
    moved_paths,
    plain,
    read_config,
    short_name,
    with_absolute_paths,
)
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
            cfg = with_absolute_paths(cfg)
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
    keys = moved_paths(flatten(plain(one)), flatten(plain(other)))
    return not keys or same_content(present(one, keys), present(other, keys), keys)


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
    keys = moved_paths(flatten(plain(stored)), flatten(plain(cfg)))
    return not keys or same_content(recorded(before, keys), present(cfg, keys), keys)


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


# State of each job, read from the records of its runs.


ERROR = "error.txt"  # the traceback of a run that failed
INTERRUPTED = record.INTERRUPTED
LOST = "worker "  # how the error of a run begins whose process was killed; what it raises begins with a type
CSV = "metrics.csv"

Kind = Literal["done", "running", "submitted", "interrupted", "failed", "pruned", "new"]
ACTION = {
    "done": "skip",
    "running": "leave",
    "submitted": "leave",
    "interrupted": "resume",
    "failed": "retry",
    "pruned": "resume",
    "new": "run",
}


class State(NamedTuple):
    kind: Kind
    why: str
    record: record.RunRecord | None = None
    resume: bool = False  # whether it goes on from what is there, or starts afresh


def look(run_dir: Path, *, take_over: bool = False) -> State:
    """How far a run is; ``take_over``: one on a machine, or in a queue, that cannot be seen counts as interrupted."""
    state = _recorded(run_dir, take_over=take_over or is_own_submission(run_dir))
    place = None if state.kind == "done" else queue_place(run_dir)
    if place is None or (take_over and place.state is None):
        return state
    if not place.waits:  # its job is no more, wherever it ran
        return _recorded(run_dir, take_over=True) if state.kind == "running" else state
    if state.kind == "running":
        return state._replace(why=f"{state.why}, SLURM job {place.job}")
    how = f"cannot be asked ({place.why}): --take-over if it is lost" if place.state is None else place.state
    return State("submitted", f"submitted as {place.job}: {how}", state.record)


def _recorded(run_dir: Path, *, take_over: bool) -> State:
    """What lies in a run's directory."""
    if not (run_dir / record.FILE_NAME).is_file():
        return State("new", "not started")
    try:
        found = record.read(run_dir)
    except HardpixError as error:
        return State("failed", f"its record cannot be read: {error}")
    if found.status == "done":
        return State("done", "done", found)
    checkpoint = rundir.resumable(run_dir)
    if found.outcome == "pruned":
        return State("pruned", f"pruned {found.reason}", found, True)
    if found.status == "failed":
        goes_on = checkpoint and str(found.error).startswith(LOST)
        how = "; goes on from its last checkpoint" if goes_on else ""
        return State("failed", f"failed: {found.error}{how}", found, goes_on)
    where = f"process {found.host.get('pid', '?')} on {found.host.get('hostname', '?')}"
    if found.status == "running":
        if rundir.is_running(found):
            return State("running", f"running: {where}", found)
        if found.host.get("hostname") != platform.node() and not take_over:
            return State("running", f"running, as its record says: {where} (if not, --take-over)", found)
    ended = "killed" if found.status == "running" else found.status
    how = "goes on from its last checkpoint" if checkpoint else "starts over: no checkpoint yet"
    return State("interrupted", f"{ended} at step {steps_done(run_dir)}, {how}", found, True)


def scores(found: record.RunRecord) -> str:
    """``val/miou 41.20 %, test 40.10 %``; without what the record lacks."""
    keys = [(f"{split}/{found.main_metric}", split) for split in ("val", "test")]
    values = [(key if split == "val" else split, found.metrics.get(key)) for key, split in keys]
    return ", ".join(f"{name} {100 * value:.2f} %" for name, value in values if value is not None)


def steps_done(run_dir: Path) -> int:
    """Optimiser steps of which the run's ``metrics.csv`` tells; 0 where there is none yet."""
    path = run_dir / CSV
    if not path.is_file():
        return 0
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 65536))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        first = line.partition(b",")[0]
        if first.isdigit():
            return int(first) + 1
    return 0


# Jobs in the SLURM queue: the id kept in a run's folder, and its state from ``squeue``.


FILE = "slurm.json"  # in a run's folder: the job that it was submitted as
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
     "PREEMPTED", "TIMEOUT")
)  # states that squeue may still show of a job that comes to nothing any more  # fmt: skip
FRESH = 3.0  # seconds for which an answer of the queue holds


class Place(NamedTuple):
    """Where the job of a run stands."""

    job: str  # 123, or 123_4 of an array
    state: str | None  # as squeue names it; "" gone; None: the queue cannot be asked
    why: str = ""  # of that

    @property
    def waits(self) -> bool:
        return self.state is None or (self.state != "" and self.state not in ENDED)


def record_submission(run_dir: Path, job: str) -> None:
    rundir.claim(run_dir)
    rundir.write_text(run_dir / FILE, json.dumps({"job": job}) + "\n")


def forget_submission(run_dir: Path) -> None:
    (run_dir / FILE).unlink(missing_ok=True)


def job_of(run_dir: Path) -> str | None:
    """The id that a run was submitted under last; None if it never was."""
    path = run_dir / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return str(found["job"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def own_job() -> str | None:
    """The id of the SLURM job that this process belongs to."""
    if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def is_own_submission(run_dir: Path) -> bool:
    """Whether this process is the job that the run was submitted as."""
    own = own_job()
    return own is not None and own == job_of(run_dir)


def queue_place(run_dir: Path) -> Place | None:
    """None of a run that was never submitted, or as the job that asks."""
    job = job_of(run_dir)
    if job is None or job == own_job():
        return None
    try:
        return Place(job, queue_states().get(job, ""))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return Place(job, None, " ".join(str(said).split())[:200])


_answer: tuple[float, dict[str, str]] | None = None


def queue_states() -> dict[str, str]:
    """State by id of all jobs that this user has in the queue, elements of arrays one by one."""
    global _answer
    if _answer is None or time.monotonic() - _answer[0] > FRESH:
        command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T"]
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        pairs = (line.strip().partition("|") for line in said.splitlines() if "|" in line)
        _answer = time.monotonic(), {job: state for job, _, state in pairs}
    return _answer[1]


def refresh_queue() -> None:
    """What was known of the queue is out of date."""
    global _answer
    _answer = None
