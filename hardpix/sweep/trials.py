"""Trials of a search in ``runs/STUDY/optuna.db``. The only file that imports optuna."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from hardpix.config.safe_files import open_lock
from hardpix.sweep.space import Dimension, Search
from hardpix.train.rundir import claim, owner_lives, process_began
from hardpix.types import ConfigError

FILE = "optuna.db"
LOCK = ".optuna.lock"
WAIT = 60  # seconds that a process waits for another one to finish writing
OWNER, SETTINGS = "owner", "settings"
CONTENT = "content"  # among the settings: what lies at the paths of others
SHOWN = 5  # differing settings that an error names

COMPLETE, PRUNED, FAILED, RUNNING = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAIL,
    TrialState.RUNNING,
)


def opened(folder: Path, name: str, search: Search, settings: Mapping[str, Any]) -> Study:
    """The study in ``folder``, made if there is none; raises if its trials had other ``settings``.

    A sampler seeded once would repeat its first draws in every further process: each trial has a generator of its own,
    seeded by the search's seed and the trial's number.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    claim(folder)
    with locked(folder):
        study = optuna.create_study(
            storage=_storage(folder),
            study_name=name,
            direction="maximize",
            sampler=_PerTrial(_sampler(search)),
            pruner=_pruner(search),
            load_if_exists=True,
        )
        before = study.user_attrs.get(SETTINGS, settings)
        begun = any(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        if not begun:
            study.set_user_attr(SETTINGS, dict(settings))
    before, settings = _by_content(before, settings), _by_content(settings, before)
    if begun and before != settings:
        keys = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
        told = "; ".join(f"{key}: {before.get(key)} -> {settings.get(key)}" for key in keys[:SHOWN])
        raise ConfigError(
            f"{folder / FILE} has the trials of another search ({told}): give study=NAME for a new one; "
            "only trials, sampler and pruner may change"
        )
    return study


def _by_content(own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with what lies at their paths in place of the paths, where that is known of both sides."""
    contents = own.get(CONTENT, {})
    known = contents.keys() & other.get(CONTENT, {}).keys()
    return {key: value for key, value in own.items() if key != CONTENT} | {
        key: contents[key] for key in known
    }


def found(folder: Path, name: str) -> list[FrozenTrial]:
    """The trials so far, by number; looks only."""
    if not (folder / FILE).is_file():
        return []
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        return optuna.load_study(storage=_storage(folder), study_name=name).trials
    except KeyError:
        return []


def next_trial(study: Study, folder: Path, search: Search, *, take_over: bool = False) -> Trial | None:
    """A trial that this process may work on: one whose process is gone, else a new one; None when there is no more.

    A trial of another machine counts as worked on, unless ``take_over``.
    """
    with locked(folder):
        trials = study.get_trials(deepcopy=False)
        for one in trials:
            if one.state == RUNNING and not _owned(one.user_attrs.get(OWNER), take_over=take_over):
                trial = Trial(study, one._trial_id)
                _own(trial)
                return trial
        cells = search.grid() if search.sampler == "grid" else []
        if len(trials) >= (min(search.trials, len(cells)) if cells else search.trials):
            return None
        trial = study.ask()
        _own(trial)
        if cells:
            trial.set_user_attr("cell", list(cells[trial.number]))
        return trial


def choose(trial: Trial, search: Search) -> tuple[str, ...]:
    """The overrides of a trial; what it has chosen before stays."""
    cell = trial.user_attrs.get("cell")

    def pick(dimension: Dimension) -> str:
        if cell is not None:
            return next(text for text in dimension.cells() if text in cell)
        return _suggested(trial, dimension)

    picked = search.chosen(pick)
    trial.set_user_attr("settings", list(picked))
    return picked


def _suggested(trial: Trial, dimension: Dimension) -> str:
    if dimension.kind == "choice":
        return trial.suggest_categorical(dimension.name, dimension.texts)
    low, high = dimension.values
    if dimension.kind == "integers":
        return f"{dimension.key}={trial.suggest_int(dimension.name, low, high)}"
    return f"{dimension.key}={trial.suggest_float(dimension.name, low, high, log=dimension.kind == 'loguniform')}"


def reporter(trial: Trial) -> Callable[[float, int], bool]:
    """What a run calls at each validation; whether the pruner would end the trial."""
    known = set(trial.study._storage.get_trial(trial._trial_id).intermediate_values)

    def report(score: float, step: int) -> bool:
        if step not in known:  # a resumed run comes by its last validations again
            trial.report(score, step)
        return trial.should_prune()

    return report


def tell(study: Study, trial: Trial, state: TrialState, value: float | None = None) -> None:
    study.tell(trial, value, state)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time decides which trial is next."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = open_lock(folder / LOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _storage(folder: Path) -> RDBStorage:
    path = (folder / FILE).absolute().as_posix()
    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": WAIT}})


def _own(trial: Trial) -> None:
    owner = {"hostname": platform.node(), "pid": str(os.getpid()), "pid_began": process_began(os.getpid())}
    trial.set_user_attr(OWNER, owner)


def _owned(owner: Mapping[str, str] | None, *, take_over: bool) -> bool:
    if owner is None:  # it ended between two writes
        return False
    return owner_lives(owner) if owner["hostname"] == platform.node() else not take_over


def _sampler(search: Search) -> Callable[[int], BaseSampler]:
    kind = optuna.samplers.TPESampler if search.sampler == "tpe" else optuna.samplers.RandomSampler
    return lambda number: kind(seed=search.seed * 1_000_003 + number)


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    kinds: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    return kinds[search.pruner]()


class _PerTrial(BaseSampler):
    """A new sampler for every trial."""

    def __init__(self, make: Callable[[int], BaseSampler]) -> None:
        self.make, self.inner = make, make(0)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.inner = self.make(trial.number)
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self.inner.after_trial(study, trial, state, values)
