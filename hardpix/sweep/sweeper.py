"""Run a study with any launcher of Hydra's: plan, skip, resume, retry, and say what became of it."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from hardpix import record
from hardpix.config import safe_files
from hardpix.config.command_line import quoted
from hardpix.config.compose import composer
from hardpix.sweep.cluster import prepare_queue, processes, shapes
from hardpix.sweep.jobs import Job, jobs_of, single, stage_jobs
from hardpix.sweep.stages import check_source, used_runs
from hardpix.sweep.state import ACTION, ERROR, TO_DO, State, counted, look
from hardpix.sweep.status import plan
from hardpix.sweep.study import Study, merged, read_study
from hardpix.sweep.work import Work, gc_unfrozen
from hardpix.train import machine, rundir
from hardpix.train.rundir import locked_run_dir
from hardpix.train.signals import terminable
from hardpix.types import ConfigError, HardpixError

PAUSE = 1.0  # seconds between two looks at jobs that another program runs

_words: list[str] | None = None


@contextmanager
def command_line(words: Sequence[str]) -> Iterator[None]:
    """Within the block a sweep takes these overrides instead of those that Hydra composed for all jobs at once."""
    global _words
    _words = list(words)
    try:
        yield
    finally:
        _words = None


class Request:
    """What a sweeper was asked: its settings, the overrides, and where configuration files are."""

    def __init__(self, settings: Mapping[str, Any], context: HydraContext, config: DictConfig) -> None:
        self.settings, self.context, self.config = settings, context, config
        self.words = list(config.hydra.overrides.task) if _words is None else _words
        sources = [(str(s.provider), Path(s.path)) for s in config.hydra.runtime.config_sources]
        self.config_dir = next((path for provider, path in sources if provider == "command-line"), None)
        self.folders = [p for who, p in sources if who.startswith(("command-line", "hydra.searchpath"))]
        self.loader = Loader(self.folders)
        self.composed = self.loader.composed
        self.launcher = str(config.hydra.launcher._target_).lower()

    def study(self) -> Study:
        name = self.settings.get("study")
        study = read_study([*([] if name is None else [str(name)]), *self.words], self.config_dir)
        if given := self.settings.get("on_error"):
            study = replace(study, on_error=given)
        place = self._folder()
        return (
            study if place is None else replace(study, jobs=tuple(merged(job, place) for job in study.jobs))
        )

    def _folder(self) -> list[str] | None:
        """``hydra.sweep.dir``, where it was given, as the settings of a run."""
        given = [str(o).partition("=")[0].lstrip("+") for o in self.config.hydra.overrides.hydra]
        if "hydra.sweep.subdir" in given:
            raise ConfigError(
                "hydra.sweep.subdir: a run's folder has the run's name; set hydra.sweep.dir instead"
            )
        if "hydra.sweep.dir" not in given:
            return None
        folder = Path(os.path.normpath(str(self.config.hydra.sweep.dir)))
        return [f"runs_dir={quoted(str(folder.parent))}", f"study={quoted(folder.name)}"]

    def launch(self, task: Callable[[DictConfig], Any], jobs: Sequence[Sequence[str]], first: int) -> None:
        """Hand jobs, each its overrides, to the launcher."""
        context: Any = HydraContext(self.loader, self.context.callbacks)  # type: ignore[arg-type]
        launcher = Plugins.instance().instantiate_launcher(context, task, self.config)
        for done in launcher.launch(jobs, initial_job_idx=first):
            _ = done.return_value  # raises what the job raised, which is never a failed training


class Loader:
    """Gives launchers a job's configuration, composed as it was when it was checked, with Hydra's settings in it."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self.composed = composer(folders)

    def __reduce__(self) -> Any:
        return Loader, (self.folders,)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        cfg = self.composed(sweep_overrides)
        with open_dict(cfg):
            cfg.hydra = master_config.hydra
            cfg.hydra.overrides.task = list(sweep_overrides)
            cfg.hydra.sweep.dir = str(Path(cfg.runs_dir) / str(cfg.study))
            cfg.hydra.sweep.subdir = str(cfg.run or ".")
        return cfg


def sweep(settings: Mapping[str, Any], context: HydraContext, config: DictConfig) -> None:
    """What ``hydra/sweeper=study`` does; ends by ``SystemExit`` with the study's exit status."""
    request = Request(settings, context, config)
    if settings.get("alone"):
        job = single(request.words, request.composed)
        raise SystemExit(run(request, Study("", ()), [job], to_file=True))
    if machine.world_size() > 1:
        raise ConfigError(
            "a study is not started by torchrun or srun; start its jobs with them: hydra/launcher=pool "
            "hydra.launcher.python='torchrun --nproc_per_node=4'"
        )
    study = request.study()
    if study.search is not None:
        raise ConfigError("the study has search: add hydra/sweeper=optuna (hardpix sweep NAME does)")
    used = used_runs(settings.get("use") or {}, study.stages)
    if study.stages:
        jobs = stage_jobs(study, used, request.composed)
    else:
        jobs, twice = jobs_of(study, request.composed)
        print(*twice, sep="\n", end="\n" if twice else "")
    if settings.get("dry_run"):
        options = {key: bool(settings.get(key)) for key in ("take_over", "every", "commands")}
        print(plan(jobs, request.config_dir, **options))
        raise SystemExit(0)
    check_folders(jobs)
    raise SystemExit(run(request, study, jobs))


def check_folders(jobs: Sequence[Job]) -> None:
    """Raise ``ConfigError`` where a job would write into files not its run's own; one that is done does not."""
    for folder in {job.run_dir.parent for job in jobs}:
        rundir.check_writable(folder)
        safe_files.check_run_files(folder, deep=False)
    for job in jobs:
        try:
            safe_files.check_run_files(job.run_dir)
        except ConfigError:
            if look(job.run_dir).kind != "done":
                raise


def run(request: Request, study: Study, jobs: Sequence[Job], *, to_file: bool = False) -> int:
    """Train what is not done, print the summary, and return the exit status: 1 if a job failed, 128 + n a signal."""
    begin, status = time.perf_counter(), 0
    take_over = bool(request.settings.get("take_over"))
    before = {job.number: look(job.run_dir, take_over=take_over) for job in jobs}
    task = Work(
        {job.run_dir.name: (job.number, job.name) for job in jobs}, take_over=take_over, to_file=to_file
    )
    with terminable(), gc_unfrozen():
        try:
            for level in sorted({job.level for job in jobs}):
                if not _level(request, study, [job for job in jobs if job.level == level], task):
                    break
        except (KeyboardInterrupt, SystemExit) as error:
            code = error.code if isinstance(error, SystemExit) else 130
            status = code if isinstance(code, int) and code else 130
    after = {job.number: look(job.run_dir) for job in jobs}
    if machine.rank() == 0:
        print("\n" + summary(jobs, before, after, time.perf_counter() - begin), flush=True)
    unfinished = {"failed", "interrupted"} & {state.kind for state in after.values()}
    return status or (1 if unfinished else 0)


def _level(request: Request, study: Study, jobs: Sequence[Job], task: Work) -> bool:
    """Train jobs none of which waits for another; False where the study ends with a failed one."""
    for attempt in range(1 + (study.retries if study.on_error == "retry" else 0)):
        found = [(job, look(job.run_dir, take_over=task.take_over)) for job in jobs if _ready(job)]
        kinds = TO_DO if attempt == 0 else ("retry",)
        for job, state in found if attempt == 0 else ():
            if ACTION[state.kind] not in TO_DO and state.kind != "done":
                task.tell(job.run_dir.name, state)
        todo = [job for job, state in found if ACTION[state.kind] in kinds]
        one_by_one = (
            study.on_error == "stop" or "basic" in request.launcher
        )  # which keeps what it has launched
        size = request.settings.get("max_batch_size") or (1 if one_by_one else len(todo))
        for first in range(0, len(todo), max(1, size)):
            batch = todo[first : first + size]
            for group in shapes(batch) if "submitit" in request.launcher else [batch]:
                _launch(request, group, task, first)
            if study.on_error == "stop" and any(look(job.run_dir).kind == "failed" for job in batch):
                return False
    return True


def _ready(job: Job) -> bool:
    """Whether the run that a job starts from is done; raises where the job began with another one."""
    if job.source is None:
        return True
    if look(job.source).kind != "done":
        return False
    check_source(job.run_dir, job.source)
    return True


def _launch(request: Request, batch: Sequence[Job], task: Work, first: int) -> None:
    in_process = "submitit" not in request.launcher and "pool" not in request.launcher
    several = next((job for job in batch if processes(job) != (1, 1)), None)
    if in_process and several is not None and machine.world_size() == 1 and not request.settings.get("alone"):
        raise ConfigError(
            f"job {several.number} ({several.name}): trainer.devices={several.config().trainer.devices} needs a "
            "process of its own for each run: add hydra/launcher=pool"
        )
    with ExitStack() as stack:
        if "submitit" in request.launcher:
            folder = batch[0].run_dir.parent
            if not stack.enter_context(locked_run_dir(folder)):
                raise ConfigError(f"{folder}: another sweep is submitting this study; wait for it")
            prepare_queue(request.config, folder, batch[0], batch)
        try:
            request.launch(task, [job.words for job in batch], first)
        except HardpixError:
            raise
        except Exception as error:  # a worker that was killed, a queue that refuses
            if in_process and "basic" in request.launcher:
                raise
            print(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:500]}", file=sys.stderr)
            if not any(record_there(job) for job in batch):
                raise ConfigError(f"hydra/launcher: {str(error).strip().splitlines()[0][:500]}") from error
            while any(ACTION[look(job.run_dir).kind] == "leave" for job in batch):
                time.sleep(PAUSE)


def record_there(job: Job) -> bool:
    return (job.run_dir / record.FILE_NAME).is_file()


def summary(
    jobs: Sequence[Job], before: Mapping[int, State], after: Mapping[int, State], seconds: float
) -> str:
    """How many of each, then a line for each job that is not done."""
    shown = {job.number: {"new": "waiting"}.get(k := after[job.number].kind, k) for job in jobs}
    counts = Counter(shown.values())
    earlier = sum(state.kind == "done" for state in before.values())
    known = f" ({earlier} before)" if earlier else ""
    order = {
        f"done{known}": counts["done"],
        **{k: counts[k] for k in ("failed", "pruned", "running", "submitted", "interrupted", "waiting")},
    }
    lines = [f"{len(jobs)} jobs: {counted(order)}; {seconds:.0f} s"]
    for job in jobs:
        end, found = shown[job.number], after[job.number].record
        if end == "failed":
            error = found.error if found is not None else after[job.number].why
            lines.append(f"  failed       {job.name}: {error} ({job.run_dir / ERROR})")
        elif end != "done":
            lines.append(f"  {end:<11}  {job.name}")
    return "\n".join(lines)
