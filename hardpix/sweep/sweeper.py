"""Run a study with any launcher of Hydra's: plan, skip, resume, retry, and say what became of it."""

from __future__ import annotations

import gc
import os
import platform
import shlex
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from hardpix import record, secrets
from hardpix.config import safe_files
from hardpix.config.command_line import quoted
from hardpix.config.compose import composer
from hardpix.config.trust import check_one_line
from hardpix.secrets import masked
from hardpix.sweep import state as states
from hardpix.sweep.jobs import Job, jobs_of, single, stage_jobs
from hardpix.sweep.stages import check_source, used_runs
from hardpix.sweep.state import ACTION, ERROR, State, counted, look, scores
from hardpix.sweep.study import Study, merged, read_study
from hardpix.train import machine, rundir
from hardpix.train.rundir import held
from hardpix.train.signals import SETTLE, STOPPING
from hardpix.types import ConfigError, HardpixError, Pruned

if TYPE_CHECKING:
    import pytorch_lightning as pl

OUTPUT = "output.log"  # what a run printed, where no terminal shows it
PAUSE = 1.0  # seconds between two looks at jobs that another program runs
TURNS = 50  # how often a job of a cluster that ran out of time goes on
TO_DO = ("run", "resume", "retry")

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
        self.composed = composer(self.folders)
        self.launcher = str(config.hydra.launcher._target_)

    def study(self) -> Study:
        name = self.settings.get("study")
        study = read_study([*([] if name is None else [str(name)]), *self.words], self.config_dir)
        if given := self.settings.get("on_error"):
            study = replace(study, on_error=given)
        place = self._folder()
        return study if place is None else replace(study, jobs=tuple(merged(job, place) for job in study.jobs))

    def _folder(self) -> list[str] | None:
        """``hydra.sweep.dir``, where it was given, as the settings of a run."""
        given = [str(o).partition("=")[0].lstrip("+") for o in self.config.hydra.overrides.hydra]
        if "hydra.sweep.subdir" in given:
            raise ConfigError("hydra.sweep.subdir: a run's folder has the run's name; set hydra.sweep.dir instead")
        if "hydra.sweep.dir" not in given:
            return None
        folder = Path(os.path.normpath(str(self.config.hydra.sweep.dir)))
        return [f"runs_dir={quoted(str(folder.parent))}", f"study={quoted(folder.name)}"]

    def launch(self, task: Callable[[DictConfig], Any], jobs: Sequence[Sequence[str]], first: int) -> None:
        """Hand jobs, each its overrides, to the launcher."""
        context: Any = HydraContext(Loader(self.folders), self.context.callbacks)  # type: ignore[arg-type]
        launcher = Plugins.instance().instantiate_launcher(context, task, self.config)
        launcher.launch(jobs, initial_job_idx=first)


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
    if machine.size() > 1:
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
        from hardpix.sweep.status import plan

        print(plan(jobs, request.config_dir, **{k: bool(settings.get(k)) for k in ("take_over", "every", "commands")}))
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
    task = Work({job.run_dir.name: (job.number, job.name) for job in jobs}, take_over=take_over, to_file=to_file)
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
        size = request.settings.get("max_batch_size") or (1 if study.on_error == "stop" else len(todo))
        for first in range(0, len(todo), max(1, size)):
            batch = todo[first : first + size]
            for group in _shapes(batch) if "submitit" in request.launcher else [batch]:
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
    several = next((job for job in batch if _processes(job) != (1, 1)), None)
    if in_process and several is not None and machine.size() == 1 and not request.settings.get("alone"):
        raise ConfigError(
            f"job {several.number} ({several.name}): trainer.devices={several.config().trainer.devices} needs a process "
            "of its own for each run: add hydra/launcher=pool"
        )
    with ExitStack() as stack:
        if "submitit" in request.launcher:
            folder = batch[0].run_dir.parent
            if not stack.enter_context(held(folder)):
                raise ConfigError(f"{folder}: another sweep is submitting this study; wait for it")
            prepare_queue(request, folder, batch[0], batch)
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


class Work:
    """What launchers call with the configuration of a job: train it, unless it is done or another process has it."""

    def __init__(
        self, names: Mapping[str, tuple[int, str]], *, take_over: bool = False, to_file: bool = False
    ) -> None:
        self.names, self.take_over, self.to_file = names, take_over, to_file

    def tell(self, run: str, state: State) -> None:
        number, name = self.names[run]
        what = f"({ACTION[state.kind]}: {state.why})"
        print(f"job {number} of {len(self.names)}: {name} {what}", flush=True)

    def __call__(self, cfg: DictConfig) -> float | None:
        overrides = list(HydraConfig.get().overrides.task)
        with outside_hydra(), on_cluster(directory(cfg)):
            if machine.rank() > 0:
                train(cfg, overrides)
            else:
                self._work(cfg, overrides)
        return None

    def _work(self, cfg: DictConfig, overrides: Sequence[str]) -> None:
        run_dir = directory(cfg)
        if look(run_dir).kind == "done":  # without a trace: also where one may only read
            return
        with held(run_dir) as free:
            state = look(run_dir, take_over=self.take_over)
            if not free and state.kind != "done":
                state = State("running", "running: another sweep on this machine has it")
            self.tell(run_dir.name, state)
            if ACTION[state.kind] not in TO_DO:
                return
            with machine.written_to(run_dir / OUTPUT) if self.to_file else nullcontext():
                kind = attempt(cfg, overrides, state)
                found = record.read(run_dir)
            number, name = self.names[run_dir.name]
            what = f"failed: {found.error} ({run_dir / ERROR})" if kind == "failed" else f"{kind}, {scores(found)}"
            print(f"job {number} of {len(self.names)}: {name} {what.rstrip(', ')}", flush=True)
        check_stopped()


def directory(cfg: DictConfig) -> Path:
    return Path(cfg.runs_dir) / str(cfg.study) / str(cfg.run)


def attempt(
    cfg: DictConfig, overrides: Sequence[str], state: State, callbacks: Sequence[pl.Callback] = ()
) -> str:
    """Train once: ``done``, ``failed`` with traces, or ``pruned``; a signal raises ``SystemExit``."""
    run_dir = directory(cfg)
    if not states.is_own_submission(run_dir):
        states.forget_submission(run_dir)
    if state.kind == "failed" and not state.resume and (kept := rundir.set_aside(run_dir)):
        print(f"{run_dir.name} starts afresh; what it had saved is kept in {kept}", flush=True)
    cfg.resume = state.resume
    freeze_imports()
    try:
        train(cfg, overrides, callbacks)
    except Pruned:
        return "pruned"
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        if not isinstance(error, HardpixError):
            print(masked(text), file=sys.stderr, flush=True)
        leave_traces(cfg, masked(machine.one_line(error)), text)
        return "failed"
    (run_dir / ERROR).unlink(missing_ok=True)
    return "done"


def train(cfg: DictConfig, overrides: Sequence[str], callbacks: Sequence[pl.Callback] = ()) -> None:
    from hardpix.train.train import train

    try:
        train(cfg, overrides, callbacks)
    finally:
        clean_up()


def leave_traces(cfg: DictConfig, line: str, text: str, *, again: bool = False) -> None:
    """``error.txt``, and a record that says so where the run came to its end before it had written that.

    ``again``: also where a record says that the run had failed before.
    """
    run_dir = directory(cfg)
    rundir.claim(run_dir)
    rundir.write_text(run_dir / ERROR, masked(text))
    state = look(run_dir, take_over=True)
    if state.kind == "failed" and state.record is not None and not again:
        return
    record.write(replace(state.record or _unbegun(cfg), status="failed", error=line), run_dir)


def _unbegun(cfg: DictConfig) -> record.RunRecord:
    """The record of a run that did not come as far as writing one: no device is known to have had it."""
    from hardpix.train.cost import code_versions
    from hardpix.train.parent import factors

    return record.RunRecord(
        schema=record.SCHEMA,
        run_id=rundir.new_id(),
        status="failed",
        factors=factors(cfg),
        metrics={},
        seed=cfg.seed,
        parent=None,
        code=code_versions(),
        host={"hostname": platform.node()},
        started=rundir.utc_now(),
        name=str(cfg.run),
        study=cfg.study,
    )


def command(job: Job, state: State, config_dir: Path | None = None) -> str:
    """The command line that does with this job alone what the sweep would do."""
    folder = [] if config_dir is None else ["--config-dir", str(config_dir)]
    line = shlex.join(["hardpix", "train", *folder, *job.words, *(["resume=true"] if state.resume else [])])
    if state.kind == "failed" and not state.resume:  # `train` keeps what a failed run has left
        return f"{rundir.command(job.run_dir)} && {line}"
    return line


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


# Jobs in the queue of a cluster, through Hydra's launchers submitit_slurm and submitit_local.


def _processes(job: Job) -> tuple[int, int]:
    """(nodes, processes on each) of a job."""
    trainer = job.config().trainer
    devices = len(trainer.devices) if OmegaConf.is_list(trainer.devices) else trainer.devices
    return int(trainer.num_nodes), devices if isinstance(devices, int) and devices > 0 else 1


def _shapes(jobs: Sequence[Job]) -> list[list[Job]]:
    """One array for the jobs of one number of nodes and processes."""
    found: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        found.setdefault(_processes(job), []).append(job)
    return list(found.values())


def prepare_queue(request: Request, folder: Path, first: Job, batch: Sequence[Job] = ()) -> None:
    """Fill in what the queue is told, and write down what each job will be found by in it."""
    config, conf = request.config, request.config.hydra.launcher
    check_one_line(str(folder), "the study's folder")
    given = {str(o).partition("=")[0].lstrip("+") for o in config.hydra.overrides.hydra}
    slurm = "Slurm" in str(conf._target_)
    with open_dict(config):
        config.hydra.sweep.dir = str(folder)
        own = conf.name if "hydra.launcher.name" in given else f"hardpix-{folder.name}"
        conf.name = f"{own}-{rundir.new_id()[:6]}"
        if slurm:
            for key, value in zip(("nodes", "tasks_per_node"), _processes(first), strict=True):
                if f"hydra.launcher.{key}" in given and conf[key] != value:
                    raise ConfigError(
                        f"hydra.launcher.{key}={conf[key]}: trainer of {first.name} has {value}; give both the same"
                    )
                conf[key] = value
            conf.additional_parameters = {"requeue": True} | OmegaConf.to_container(conf.additional_parameters)
            if "hydra.launcher.max_num_timeout" not in given:
                conf.max_num_timeout = TURNS
    settings: Any = OmegaConf.to_container(conf, resolve=True)
    check_one_line({k: v for k, v in settings.items() if k != "setup"}, "hydra.launcher")
    if problems := secrets.problems(record.flatten(settings)):
        raise ConfigError(f"hydra.launcher.{problems[0]}")
    if slurm:
        for index, job in enumerate(batch):
            states.record_submission(job.run_dir, f"{conf.name}/{index if len(batch) > 1 else ''}")
        states.refresh_queue()
        print("submitted; Ctrl-C ends the waiting for the jobs, and they stay in the queue", flush=True)


@contextmanager
def on_cluster(run_dir: Path) -> Iterator[None]:
    """In a job of submitit: save when the time is nearly over or room must be made, then requeue."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        yield
        return
    if machine.rank() == 0 and states.own_job():
        states.record_submission(run_dir, str(states.own_job()))
    number = next((n for n in (signal.SIGUSR2, signal.SIGUSR1) if callable(signal.getsignal(n))), None)
    again: Any = None if number is None else signal.getsignal(number)  # writes down what is left, requeues, exits
    warned: list[int] = []

    def warn(*_: object) -> None:
        """The time is nearly over: train as it ends on SIGTERM, at the end of a step, with a checkpoint."""
        warned.append(1)
        training = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if len(warned) == 1 and not getattr(training, "received", 0):  # a second one would end it at once
            os.kill(os.getpid(), signal.SIGTERM)

    if number is not None:
        signal.signal(number, warn)
    try:
        with machine.masked_output(), machine.masked_errors(), terminable():
            yield
    except SystemExit as stop:
        by = (143, 128 + number) if number is not None else ()
        if machine.rank() == 0 and stop.code in by and (warned or stop.code != 143 or _makes_room()):
            again(number, None)
        raise
    if look(run_dir).kind == "failed" and machine.rank() == 0:
        raise HardpixError(f"{run_dir} failed: see {ERROR} there")  # as the queue's own books should have it


def _makes_room() -> bool:
    """Whether SIGTERM came of a pre-emption: one who cancels the job wants it to end."""
    states.refresh_queue()
    try:
        return states.queue_states().get(states.own_job() or "") in ("RUNNING", "PREEMPTED")
    except Exception:  # without an answer nothing is asked of the queue
        return False


# Isolate jobs that share a process: Hydra, memory, signals.


@contextmanager
def outside_hydra() -> Iterator[None]:
    """Lightning starts DDP processes its own way inside Hydra, which would start a whole sweep again."""
    holder = HydraConfig.instance()
    saved, holder.cfg = holder.cfg, None
    try:
        yield
    finally:
        holder.cfg = saved


_freezing = False


def freeze_imports() -> None:
    """Exempt the half a million objects of the imports from collection, which took 0.4 s after every job."""
    if _freezing and not gc.get_freeze_count():
        import hardpix.train.train  # noqa: F401

        gc.collect()
        gc.freeze()


def clean_up() -> None:
    """A network refers to its trainer and back: the next job must not find it in memory."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()


@contextmanager
def gc_unfrozen() -> Iterator[None]:
    """Freeze within the block alone: at the end of a process libraries complain of what was never collected."""
    global _freezing
    _freezing = True
    try:
        yield
    finally:
        _freezing = False
        gc.unfreeze()


_stopped: list[int] = []  # the signals that came while a study runs


@contextmanager
def terminable() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGUSR1 raise ``SystemExit``; in a training, handlers of its own end the run first."""
    last = -SETTLE

    def handler(number: int, _: object) -> None:
        nonlocal last
        if time.monotonic() - last < SETTLE:  # `timeout` and others send it to a process and its group
            return
        last = time.monotonic()
        _stopped.append(number)
        if signal.getsignal(number) is handler:
            check_stopped()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield
    finally:
        _stopped.clear()
        for number, former in before.items():
            signal.signal(number, former)


def check_stopped() -> None:
    """Raise ``SystemExit`` where a signal has asked the study to end."""
    if _stopped:
        raise SystemExit(128 + _stopped[0])
