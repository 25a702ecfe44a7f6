"""Search with Optuna, trial by trial, or write the search as a sweep of Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hardpix.config import safe_files
from hardpix.config.command_line import override, quoted
from hardpix.config.compose import nearest
from hardpix.record import flatten, write_text
from hardpix.sweep.execute import attempt, command, freeze_imports, gc_unfrozen, terminable
from hardpix.sweep.jobs import Composer, Job, State, composer, counted, jobs_of, look
from hardpix.sweep.space import Dimension, Search
from hardpix.sweep.study import Study, merged
from hardpix.train.parent import present
from hardpix.train.rundir import NO_FACTOR, PLACES, check_writable, held, plain, short_name
from hardpix.types import ConfigError

if TYPE_CHECKING:
    from optuna.trial import Trial


PAUSE = 1.0  # seconds between two looks at a run that another process trains


class _Ended(Exception):
    """A signal has ended a trial; the next process goes on with it."""


def prepare(study: Study, config_dir: Path | None = None) -> tuple[Path, dict[str, Any], list[Job]]:
    """The folder, what its trials have in common, and the jobs of the search's corners.

    Raises ``ConfigError`` with every problem that a value of a list or an end of a range has.
    """
    search = _search(study)
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError('a search needs Optuna: pip install "hardpix[search]"')
    seeds = search.seeds[:1]
    cells = [merged(search.common, picked, seeds) for picked in search.probes()]
    jobs, _ = jobs_of(Study("", tuple(cells)), config_dir)
    settings = {
        "search": {d.name: {d.kind: list(d.values)} for d in search.dimensions},
        "metric": search.metric, "seeds": [seed.partition("=")[2] for seed in search.seeds],
        "sampler seed": search.seed,
    }  # fmt: skip
    flat = flatten(plain(jobs[0].config())).items()
    settings |= {key: value for key, value in flat if not key.startswith((*NO_FACTOR, "seed"))}
    return jobs[0].run_dir.parent, json.loads(json.dumps(settings)), jobs


def run(study: Study, config_dir: Path | None = None, *, take_over: bool = False) -> int:
    """Work on trials until there are ``trials``; exit status 1 if one failed now, 130 or 143 after a signal.

    Several processes share a search. A trial whose process was killed is taken up again with the same settings, its
    runs from their last checkpoints.
    """
    search, begin = _search(study), time.perf_counter()
    folder, settings, jobs = prepare(study, config_dir)
    check_writable(folder)
    safe_files.check_run_files(folder, deep=False)
    from hardpix.sweep import trials

    named = [key for key in PLACES if isinstance(settings.get(key), str)]
    settings[trials.CONTENT] = present(jobs[0].config(), named)
    store = trials.opened(folder, study.name or folder.name, search, settings)
    worker = _Worker(study, search, config_dir, take_over)
    with terminable() as stopped, gc_unfrozen():
        try:
            while not stopped:
                trial = trials.next_trial(store, folder, search, take_over=take_over)
                if trial is None:
                    break
                failed = worker.bring_to_end(store, trial)
                if failed and study.on_error == "stop":
                    break
        except _Ended:
            pass
        except (KeyboardInterrupt, SystemExit) as error:  # between two trainings
            code = error.code if isinstance(error, SystemExit) else 130
            worker.status = code if isinstance(code, int) and code else 130
    from hardpix.sweep.status import search_footer

    print("\n" + "\n".join(search_footer(trials.found(folder, store.study_name), search, over=True)), end="")
    print(f"; {time.perf_counter() - begin:.0f} s", flush=True)
    status = 128 + stopped[0] if stopped else worker.status
    return status or (1 if worker.failures else 0)


class _Worker:
    """This process's part of a search."""

    def __init__(self, study: Study, search: Search, config_dir: Path | None, take_over: bool) -> None:
        self.study, self.search, self.take_over = study, search, take_over
        self.composed = composer(config_dir)
        self.errors: dict[int, str] = {}  # of jobs, one line each
        self.status, self.failures = 0, 0

    def bring_to_end(self, store: Any, trial: Trial) -> bool:
        """Train what a trial's score is the mean of, and tell it; whether the trial failed."""
        from hardpix.sweep import trials

        picked = trials.choose(trial, self.search)
        number = f"trial {trial.number + 1} of {self.search.trials}"
        try:
            jobs = trial_jobs(self.search, picked, self.composed)
        except ConfigError as error:  # choices that do not go together
            return self._failed(store, trial, number, str(error).splitlines()[0])
        trial.set_user_attr("runs", [str(job.run_dir) for job in jobs])
        scores = []
        for index, job in enumerate(jobs):
            print(f"{number}: {job.name}", flush=True)
            end, state = self._train(job, trial, index)
            if end == "pruned":
                print(f"{number}: {state.why}", flush=True)
                trials.tell(store, trial, trials.PRUNED)
                return False
            if end == "failed" or state.record is None:
                return self._failed(store, trial, number, self.errors.get(job.number, state.why))
            score = _score(self.search, state)
            if score != score:
                return self._failed(store, trial, number, "its score is not a number")
            scores.append(score)
        trials.tell(store, trial, trials.COMPLETE, statistics.fmean(scores))
        return False

    def _train(self, job: Job, trial: Trial, index: int) -> tuple[str, State]:
        from hardpix.sweep import trials

        while True:
            with held(job.run_dir) as free:
                state = look(job.run_dir, take_over=self.take_over)
                if state.kind in ("done", "pruned"):  # by this trial before, or another one chose the same
                    return state.kind, state
                if free and state.kind != "running":
                    freeze_imports()
                    return self._attempts(job, trial, index, state, trials.reporter(trial))
            print(f"waiting for another process that trains {job.run_dir}", flush=True)
            time.sleep(PAUSE)

    def _attempts(self, job: Job, trial: Trial, index: int, state: State, report: Any) -> tuple[str, State]:
        from hardpix.train.callbacks import ReportToTrial

        for count in range(1, self.study.tries + 1):
            self.errors.pop(job.number, None)
            watch = ReportToTrial(
                report, metric=self.search.metric, earlier=index, prunes=self.search.pruner != "none"
            )
            ended = attempt(job, state, callbacks=[watch])
            if watch.refusal:
                raise ConfigError(watch.refusal)
            if ended.status:
                self.status = ended.status
                raise _Ended
            state = look(job.run_dir)
            if ended.kind == "failed":
                self.errors[job.number] = ended.text
            if ended.kind != "failed" or count == self.study.tries:
                break
            print(f"attempt {count} of {self.study.tries} failed: {ended.text}", flush=True)
        return ended.kind, state

    def _failed(self, store: Any, trial: Trial, number: str, error: str) -> bool:
        from hardpix.sweep import trials

        print(f"{number} failed: {error}", flush=True)
        trial.set_user_attr("error", error)
        trials.tell(store, trial, trials.FAILED)
        self.failures += 1
        return True


def trial_jobs(search: Search, picked: Sequence[str], composed: Composer) -> list[Job]:
    """A trial's runs, one for each seed."""
    seeds: list[list[str]] = [[seed] for seed in search.seeds] or [[]]
    cells = [merged(search.common, picked, seed) for seed in seeds]
    shown = [_short(text) for text in picked if _varies(search, text)]
    names = [short_name([*shown, *seed]) for seed in seeds]
    return jobs_of(Study("", tuple(cells)), names=names, composed=composed)[0]


def plan(study: Study, config_dir: Path | None = None) -> str:
    """What the search would do, with the command that trains one of its corners."""
    search = _search(study)
    folder, _, jobs = prepare(study, config_dir)
    from hardpix.sweep import trials

    states = Counter(str(t.state.name).lower() for t in trials.found(folder, study.name or folder.name))
    lines = [f"a search of {search.trials} trials, sampler={search.sampler}, pruner={search.pruner}, in {folder}: "
             f"{counted(states)} so far"]  # fmt: skip
    lines += [_told(dimension) for dimension in search.dimensions]
    lines += ["one of its corners:", f"      {command(jobs[0], look(jobs[0].run_dir), config_dir)}"]
    return "\n".join(lines)


def _told(dimension: Dimension) -> str:
    where = "" if dimension.condition is None else f" (for {dimension.condition})"
    return f"  {dimension.key}: {dimension.kind} {', '.join(map(str, dimension.values))}{where}"


def _short(text: str) -> str:
    """A number with four digits, for a name; the setting itself has them all."""
    key, _, value = text.partition("=")
    try:
        return override(key, float(f"{float(value):.4g}")) if "." in value or "e" in value else text
    except ValueError:
        return text


def _varies(search: Search, text: str) -> bool:
    key = text.partition("=")[0]
    return any(d.key == key and len(d.values) > 1 for d in search.dimensions)


def _score(search: Search, state: State) -> float:
    found = state.record
    assert found is not None
    metric = search.metric or f"val/{found.main_metric}"
    if metric not in found.metrics:
        known = [name for name in found.metrics if name.startswith("val/")]
        raise ConfigError(f"metric={metric}: no run logs it{nearest(metric, known)}")
    return found.metrics[metric]


def _search(study: Study) -> Search:
    assert study.search is not None
    return study.search


# A search as a sweep of Weights & Biases: the YAML file that ``wandb sweep`` takes.
#
# Keys and values: docs.wandb.ai, "Sweep configuration options". The agent writes what was chosen in place
# of ``${args_no_hyphens}`` as ``key=value`` words, which are Hydra's overrides.


METHODS = {"tpe": "bayes", "random": "random", "grid": "grid"}
DISTRIBUTIONS = {"loguniform": "log_uniform_values", "uniform": "uniform", "integers": "int_uniform"}


def write_wandb_sweep(study: Study, path: Path, config_dir: Path | None = None) -> str:
    """Write the file; returns the commands that start the sweep with it."""
    content = sweep_of(study, config_dir)
    head = "# wandb sweep THIS_FILE, then on each machine: wandb agent ENTITY/PROJECT/ID\n"
    write_text(path, head + yaml.safe_dump(content, sort_keys=False, width=110))
    return f"wandb sweep {path}\nwandb agent ENTITY/PROJECT/ID      # as wandb sweep prints it; once for each worker"


def sweep_of(study: Study, config_dir: Path | None = None) -> dict[str, Any]:
    """The file's content; raises for what such a sweep cannot do."""
    search = study.search
    if search is None:
        raise ConfigError("--wandb: only a study with search: can be a sweep of W&B")
    dimensions = _unconditional(search)
    if len(search.seeds) > 1:
        raise ConfigError("seeds: a sweep of W&B trains one run for each choice; give one, as seed=0")
    if search.metric is None:
        raise ConfigError("metric: W&B must be told its name, such as val/miou")
    _, _, corners = prepare(study, config_dir)
    logger = corners[0].config().logger
    if not logger.wandb:
        raise ConfigError("logger.wandb=false: a sweep of W&B reads the scores there; leave logger=csv out")
    fixed = merged(search.common, search.seeds, [f"study={quoted(study.name)}"] if study.name else [])
    folder = [] if config_dir is None else ["--config-dir", str(config_dir.resolve())]
    content: dict[str, Any] = {
        "name": study.name or "search",
        "program": "hardpix",
        "project": str(logger.project),
        "method": METHODS[search.sampler],
        "metric": {"name": search.metric, "goal": "maximize"},
        "run_cap": search.trials,
        "parameters": {d.key: _parameter(d) for d in dimensions},
        "command": ["${env}", "${program}", "train", *folder, *fixed, "${args_no_hyphens}"],
    }
    if logger.entity:
        content["entity"] = str(logger.entity)
    if search.pruner == "hyperband":
        content["early_terminate"] = {
            "type": "hyperband",
            "min_iter": 3,
        }  # validations; the others W&B has not
    return content


def _unconditional(search: Search) -> list[Dimension]:
    """The dimensions that every trial has; raises where some have them and others not."""
    possible = {*search.common, *(text for d in search.dimensions for text in d.texts)}
    sure = {*search.common, *(d.texts[0] for d in search.dimensions if len(d.texts) == 1)}
    for dimension in search.dimensions:
        if dimension.condition in possible - sure:
            raise ConfigError(
                f"for.{dimension.condition}: a sweep of W&B has no conditions; write a file for each choice, with "
                f"{dimension.condition} on the command line for this one"
            )
    return [d for d in search.dimensions if d.condition in (None, *sure)]


def _parameter(dimension: Dimension) -> dict[str, Any]:
    if dimension.kind != "choice":
        low, high = dimension.values
        return {"distribution": DISTRIBUTIONS[dimension.kind], "min": low, "max": high}
    pairs = zip(dimension.values, dimension.texts, strict=True)
    return {"values": [_value(value, text.partition("=")[2]) for value, text in pairs]}


def _value(value: Any, text: str) -> Any:
    """A number as such; of all else the text by which Hydra reads it back."""
    return value if type(value) in (int, float) else text
