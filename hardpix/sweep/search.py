"""A search by Optuna, as ``hydra/sweeper=optuna``: each job of the launcher asks for a trial, trains and scores it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig

from hardpix import record
from hardpix.config.command_line import override
from hardpix.config.compose import Composer, composer, nearest
from hardpix.record import flatten
from hardpix.scores import score_text
from hardpix.sweep.cluster import on_cluster, prepare_queue
from hardpix.sweep.jobs import Job, jobs_of
from hardpix.sweep.space import PRUNERS, SAMPLERS, Dimension, Search
from hardpix.sweep.state import counted, look
from hardpix.sweep.study import Study, merged
from hardpix.sweep.sweeper import Request, check_folders
from hardpix.sweep.work import OUTPUT, attempt, gc_unfrozen, outside_hydra
from hardpix.train import machine
from hardpix.train.parent import current_content
from hardpix.train.rundir import (
    NO_FACTOR,
    PLACES,
    locked_run_dir,
    make_run_dir,
    owner_is_alive,
    plain,
    process_began,
    short_name,
)
from hardpix.train.signals import check_stopped, terminable
from hardpix.types import ConfigError

FILE = "optuna.db"
MAIN = "val/miou"  # metric: null is the data set's main one, a fraction like this one
OWNER, SETTINGS, CONTENT = "owner", "settings", "content"
HEARTBEAT = 60  # seconds; a trial of another machine that is silent for twice as long is tried again
PAUSE = 1.0  # seconds between two looks at a run that another process trains
SHOWN = 5  # differing settings that an error names


class TrialFailed(Exception):
    """A run of the trial has failed; the search goes on."""


def sweep(settings: Mapping[str, Any], context: HydraContext, config: DictConfig) -> None:
    """Launch a job for every trial that is missing; ends by ``SystemExit`` with the search's exit status."""
    request, begin, status = Request(settings, context, config), time.perf_counter(), 0
    study = request.study()
    if study.search is None:
        raise ConfigError("hydra/sweeper=optuna: needs a study with search: (hydra.sweeper.study=NAME)")
    if settings.get("dry_run"):
        print(plan(study, request.composed))
        raise SystemExit(0)
    first = corners(study, request.composed)[0]
    check_folders([first])
    folder, limit = first.run_dir.parent, int(settings.get("n_trials") or _limit(study.search))
    storage = settings.get("storage")
    task = Trials(study, request.folders, limit, storage=storage, alone=bool(settings.get("alone")))
    found = task.opened(request.composed)
    before = _failures(found)
    _retry_dead(found)
    words = list(merged(study.search.common, study.search.seeds[:1]))
    left = 1 if task.alone else max(0, limit - _taken(found))
    size = settings.get("max_batch_size") or (1 if study.on_error == "stop" else left)
    with terminable(), gc_unfrozen():
        try:
            for start in range(0, left, max(1, size)):
                if "submitit" in request.launcher:
                    prepare_queue(config, folder, first)
                request.launch(task, [words] * min(size, left - start), start)
                if study.on_error == "stop" and _failures(found) > before:
                    break
        except (KeyboardInterrupt, SystemExit) as error:
            code = error.code if isinstance(error, SystemExit) else 130
            status = code if isinstance(code, int) and code else 130
    print("\n" + "\n".join(footer(found.trials, study.search, limit)), end="")
    print(f"; {time.perf_counter() - begin:.0f} s", flush=True)
    raise SystemExit(status or (1 if _failures(found) > before else 0))


class Trials:
    """What launchers call: ask for a trial, train its runs, tell its score."""

    def __init__(
        self, study: Study, folders: Sequence[Path], limit: int, *, storage: str | None, alone: bool
    ) -> None:
        self.study, self.folders, self.limit, self.storage, self.alone = study, folders, limit, storage, alone

    def __call__(self, cfg: DictConfig) -> float | None:
        composed = composer(self.folders)
        with outside_hydra(), on_cluster(Path(cfg.runs_dir) / str(cfg.study)):
            found = self.opened(composed)
            if _taken(found) < self.limit:
                found.optimize(
                    lambda trial: self._score(found, trial, composed), n_trials=1, catch=(TrialFailed,)
                )
            check_stopped()
        return None

    def opened(self, composed: Composer) -> Any:
        """The study in the storage, made if there is none; raises if its trials had other settings."""
        import optuna

        search = _search(self.study)
        folder, settings = _identity(self.study, composed)
        make_run_dir(folder)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        found = optuna.create_study(
            storage=_storage(folder, self.storage),
            study_name=self.study.name or folder.name,
            direction="maximize",
            sampler=_sampler(search),
            pruner=_of_optuna("pruners", search.pruner, PRUNERS)(),
            load_if_exists=True,
        )
        before = found.user_attrs.get(SETTINGS)
        if before is None or not any(t.state.is_finished() for t in found.get_trials(deepcopy=False)):
            found.set_user_attr(SETTINGS, settings)
            return found
        ours, theirs = _by_content(settings, before), _by_content(before, settings)
        if ours != theirs:
            keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
            differing = "; ".join(f"{key}: {theirs.get(key)} -> {ours.get(key)}" for key in keys[:SHOWN])
            raise ConfigError(
                f"{folder} has the trials of another search ({differing}): give study=NAME for a new one; only "
                "trials, sampler and pruner may change"
            )
        return found

    def _score(self, found: Any, trial: Any, composed: Composer) -> float:
        """Train what a trial's score is the mean of."""
        import optuna

        search, pid = _search(self.study), os.getpid()
        owner = {"hostname": platform.node(), "pid": str(pid), "pid_began": process_began(pid)}
        trial.set_user_attr(OWNER, owner)
        picked = search.chosen(lambda dimension: suggested(trial, dimension))
        trial.set_user_attr(SETTINGS, list(picked))
        number = f"trial {trial.number + 1}"
        try:
            jobs = trial_jobs(search, picked, composed)
        except ConfigError as error:  # choices that do not go together
            raise self._failed(trial, number, str(error).splitlines()[0]) from None
        trial.set_user_attr("runs", [str(job.run_dir) for job in jobs])
        scores = []
        for index, job in enumerate(jobs):
            print(f"{number}: {job.name}", flush=True)
            try:
                kind = self._train(job, trial, index)
            except (KeyboardInterrupt, SystemExit):
                _again(found, trial.number)
                raise
            state = look(job.run_dir)
            if kind == "pruned":
                print(f"{number}: {state.why}", flush=True)
                raise optuna.TrialPruned
            if kind == "failed" or state.record is None:
                why = "" if state.record is None else str(state.record.error)
                raise self._failed(trial, number, why)
            scores.append(_score(search, state.record))
            if scores[-1] != scores[-1]:
                raise self._failed(trial, number, "its score is not a number")
        return statistics.fmean(scores)

    def _failed(self, trial: Any, number: str, error: str) -> TrialFailed:
        print(f"{number} failed: {error}", flush=True)
        trial.set_user_attr("error", error)
        return TrialFailed(error)

    def _train(self, job: Job, trial: Any, index: int) -> str:
        """Train a run of a trial, unless it is done, with as many tries as the study allows."""
        from hardpix.train.callbacks import ReportToTrial

        search = _search(self.study)
        tries = 1 + (self.study.retries if self.study.on_error == "retry" else 0)
        while True:
            with locked_run_dir(job.run_dir) as free:
                state = look(job.run_dir)
                if state.kind in ("done", "pruned"):  # another trial chose the same
                    return state.kind
                if free and state.kind != "running":
                    for _ in range(tries):
                        watch = ReportToTrial(_reporter(trial), metric=search.metric, earlier=index,
                                              prunes=search.pruner != "none")  # fmt: skip
                        with machine.output_to_file(job.run_dir / OUTPUT) if self.alone else nullcontext():
                            kind = attempt(job.config(), job.words, look(job.run_dir), [watch])
                        if watch.refusal:
                            raise ConfigError(watch.refusal)
                        if kind != "failed":
                            break
                    return kind
            print(f"waiting for another process that trains {job.run_dir}", flush=True)
            time.sleep(PAUSE)


def trial_jobs(search: Search, picked: Sequence[str], composed: Composer) -> list[Job]:
    """A trial's runs, one for each seed."""
    seeds: list[list[str]] = [[seed] for seed in search.seeds] or [[]]
    cells = [merged(search.common, picked, seed) for seed in seeds]
    names = {d.key for d in search.dimensions if len(d.values) > 1}
    shown = [_short(text) for text in picked if text.partition("=")[0] in names]
    return jobs_of(Study("", tuple(cells)), composed, [short_name([*shown, *seed]) for seed in seeds])[0]


def corners(study: Study, composed: Composer) -> list[Job]:
    """Jobs with every value of a list and both ends of each range; raises with every problem that one has."""
    search = _search(study)
    cells = [merged(search.common, picked, search.seeds[:1]) for picked in search.probes()]
    return jobs_of(Study("", tuple(cells)), composed)[0]


def suggested(trial: Any, dimension: Dimension) -> str:
    """The override that Optuna chooses of a dimension."""
    if dimension.kind == "choice":
        return trial.suggest_categorical(dimension.name, dimension.texts)
    low, high = dimension.values
    if dimension.kind == "integers":
        return f"{dimension.key}={trial.suggest_int(dimension.name, low, high)}"
    return f"{dimension.key}={trial.suggest_float(dimension.name, low, high, log=dimension.kind == 'loguniform')}"


def plan(study: Study, composed: Composer) -> str:
    """What the search would do, with the overrides of one of its corners."""
    search, first = _search(study), corners(study, composed)[0]
    counts = Counter(t.state.name.lower() for t in trials_of(study, first.run_dir.parent))
    lines = [f"a search of {search.trials} trials, sampler={search.sampler}, pruner={search.pruner}, in "
             f"{first.run_dir.parent}: {counted(counts)} so far"]  # fmt: skip
    for one in search.dimensions:
        where = "" if one.condition is None else f" (for {one.condition})"
        lines.append(f"  {one.key}: {one.kind} {', '.join(map(str, one.values))}{where}")
    return "\n".join([*lines, "one of its corners:", f"      hardpix train {' '.join(first.overrides)}"])


def show_search(study: Study, composed: Composer) -> int:
    folder = corners(study, composed)[0].run_dir.parent
    print("\n".join(footer(trials_of(study, folder), _search(study), _search(study).trials)))
    print(f"all trials: optuna-dashboard sqlite:///{folder / FILE}")
    return 0


def trials_of(study: Study, folder: Path) -> list[Any]:
    """The trials so far; looks only."""
    if not (folder / FILE).is_file():
        return []
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        return optuna.load_study(storage=_storage(folder, None), study_name=study.name or folder.name).trials
    except KeyError:
        return []


def footer(trials: Sequence[Any], search: Search, limit: int) -> list[str]:
    """The best trial with its settings, and how many there are of each kind."""
    done = [t for t in trials if t.state.name == "COMPLETE"]
    lines = []
    if done:
        best = max(done, key=lambda t: t.value)
        seeds = f", mean of {len(search.seeds)} seeds" if len(search.seeds) > 1 else ""
        text = " ".join(best.user_attrs.get(SETTINGS, ()))
        lines.append(f"best: trial {best.number + 1}, {search.metric or 'val'} "
                     f"{score_text(search.metric or MAIN, best.value)}{seeds}: {text}")  # fmt: skip
    again = {n for t in trials for n in t.system_attrs.get("retry_history", ())}
    counts = Counter(t.state.name for t in trials if t.number not in again)
    names = {
        "COMPLETE": "done",
        "PRUNED": "pruned",
        "RUNNING": "running",
        "FAIL": "failed",
        "WAITING": "waiting",
    }
    total = sum(counts.values())
    return [*lines, f"{total} of {limit} trials: {counted({n: counts[k] for k, n in names.items()})}"]


def _search(study: Study) -> Search:
    assert study.search is not None
    return study.search


def _limit(search: Search) -> int:
    return min(search.trials, len(search.grid())) if search.sampler == "grid" else search.trials


def _failures(found: Any) -> int:
    """Trials with a failed run; those that were cut short are none."""
    return sum("error" in t.user_attrs and t.state.name == "FAIL" for t in found.get_trials(deepcopy=False))


def _taken(found: Any) -> int:
    """Trials that have ended or are being worked on; one that was tried again counts once, one that waits does not."""
    trials = found.get_trials(deepcopy=False)
    again = {number for t in trials for number in t.system_attrs.get("retry_history", ())}
    return sum(t.state.name != "WAITING" and t.number not in again for t in trials)


def _retry_dead(found: Any) -> None:
    """Have the trials tried again whose process on this machine is gone; Optuna's heartbeat sees to those elsewhere."""
    for trial in found.get_trials(deepcopy=False):
        owner = trial.user_attrs.get(OWNER)
        here = owner is not None and owner["hostname"] == platform.node()
        if trial.state.name == "RUNNING" and here and not owner_is_alive(owner):
            _again(found, trial.number)


def _again(found: Any, number: int) -> None:
    """Put an interrupted trial's settings back into the queue: its runs go on from their checkpoints."""
    from optuna.trial import TrialState

    frozen = found.trials[number]
    found.tell(number, state=TrialState.FAIL)
    _retry_callback()(found, frozen)


def _retry_callback() -> Any:
    from optuna import storages

    name = "RetryHeartbeatStaleTrialCallback"  # since 4.9; before it had another name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(storages, name if hasattr(storages, name) else "RetryFailedTrialCallback")()


def _storage(folder: Path, url: str | None) -> Any:
    from optuna.storages import RDBStorage

    path = (folder / FILE).absolute().as_posix()
    wait: Any = (
        {} if url else {"engine_kwargs": {"connect_args": {"timeout": 60}}}
    )  # for another process to write
    key = "heartbeat_stale_trial_callback"
    if key not in RDBStorage.__init__.__code__.co_varnames:
        key = "failed_trial_callback"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RDBStorage(
            url or f"sqlite:///{path}", heartbeat_interval=HEARTBEAT, **{key: _retry_callback()}, **wait
        )


def _sampler(search: Search) -> Any:
    """Optuna's sampler, with another seed for every trial: with one seed it would repeat its draws in every process."""
    kind = _of_optuna("samplers", search.sampler, SAMPLERS)

    class PerTrial(kind):  # type: ignore[misc, valid-type]
        def before_trial(self, study: Any, trial: Any) -> None:
            kind.__init__(self, seed=search.seed * 1_000_003 + trial.number)
            super().before_trial(study, trial)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are experimental
        return PerTrial(seed=search.seed)


def _of_optuna(module: str, name: str, known: Mapping[str, str]) -> Any:
    import optuna

    found = getattr(getattr(optuna, module), known.get(name, name), None)
    if found is None:
        raise ConfigError(
            f"{module[:-1]}={name}: optuna.{module} has no such class{nearest(name, list(known))}"
        )
    return found


def _reporter(trial: Any) -> Any:
    def report(score: float, step: int) -> bool:
        trial.report(score, step)
        return trial.should_prune()

    return report


def _score(search: Search, found: record.RunRecord) -> float:
    metric = search.metric or f"val/{found.main_metric}"
    if metric not in found.metrics:
        known = [name for name in found.metrics if name.startswith("val/")]
        raise ConfigError(f"metric={metric}: no run logs it{nearest(metric, known)}")
    return found.metrics[metric]


def _identity(study: Study, composed: Composer) -> tuple[Path, dict[str, Any]]:
    """The folder of a search, and what its trials have in common."""
    search, first = _search(study), corners(study, composed)[0]
    cfg = first.config()
    settings: dict[str, Any] = {
        "search": {d.name: {d.kind: list(d.values)} for d in search.dimensions},
        "metric": search.metric, "seeds": [seed.partition("=")[2] for seed in search.seeds],
        "sampler seed": search.seed,
    }  # fmt: skip
    settings |= {k: v for k, v in flatten(plain(cfg)).items() if not k.startswith((*NO_FACTOR, "seed"))}
    settings[CONTENT] = current_content(cfg, [key for key in PLACES if isinstance(settings.get(key), str)])
    return first.run_dir.parent, json.loads(json.dumps(settings))


def _by_content(own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with what lies at their paths in place of the paths, where that is known of both sides."""
    contents = own.get(CONTENT, {})
    known = contents.keys() & other.get(CONTENT, {}).keys()
    return {key: value for key, value in own.items() if key != CONTENT} | {
        key: contents[key] for key in known
    }


def _short(text: str) -> str:
    """A number with four digits, for a name; the setting itself has them all."""
    key, _, value = text.partition("=")
    try:
        return override(key, float(f"{float(value):.4g}")) if "." in value or "e" in value else text
    except ValueError:
        return text
