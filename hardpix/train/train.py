"""Train one run, from a composed configuration to its record."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger

from hardpix import record
from hardpix.config import safe_files
from hardpix.config.compose import validate
from hardpix.data import DataModule
from hardpix.data.loading import end_with_parent
from hardpix.methods import Method
from hardpix.models import convert_sync_batch_norm
from hardpix.record import TESTED, remove_unfinished
from hardpix.train import loggers as tracking
from hardpix.train import machine, parent, provenance, results, resume, rundir
from hardpix.train.build import (
    Plan,
    build,
    build_trainer,
    check_batches,
    compile_model,
    fit_to_labels,
    quiet,
    start_regressions,
)
from hardpix.train.callbacks import apply_ema_weights, build_callbacks, check_trained, update_best
from hardpix.train.checkpoint import init_from, load_weights, read_checkpoint
from hardpix.train.cost import Cost, code_versions, host_facts
from hardpix.train.parent import factors, inherit, only_recorded, parent_only_facts, short_choice, source_run
from hardpix.train.provenance import depth_remarks, label_verdict, unread_file_remarks
from hardpix.train.results import decile_scores, write_panels
from hardpix.train.rundir import (
    FREE_ON_RESUME,
    MAX_NAMED,
    NO_FACTOR,
    check_writable,
    differences,
    is_running,
    read_config,
    resumable,
    writing_run_dir,
)
from hardpix.train.signals import EXIT_TIMEOUT, GRACE, Signals, Stopped, status_of
from hardpix.types import ConfigError

JOB_VARIABLE = "HARDPIX_JOB"  # run directory, for the processes that Lightning starts for DDP


class Job(NamedTuple):
    """Everything of one run, built and checked, nothing written yet."""

    cfg: DictConfig
    run_dir: Path
    data: DataModule
    method: Method
    callbacks: list[pl.Callback]
    loggers: list[Logger]
    trainer: pl.Trainer
    resume_path: Path | None
    plan: Plan
    factors: dict[str, Any]  # of the record


def train(
    cfg: DictConfig, overrides: Sequence[str] = (), callbacks: Sequence[pl.Callback] = ()
) -> record.RunRecord:
    """Train, test and record; the directory is ``runs_dir/study/run``.

    What cannot work is refused before anything is written. The record then says ``running`` until the end,
    ``done``, ``interrupted`` by a signal, or ``failed`` with the error; whatever is raised is raised on, a signal as
    ``SystemExit`` with its status (130, 143, 138). ``overrides`` (the command line) name the run and stand in its
    record; ``callbacks`` watch it besides its own.
    """
    validate(cfg)
    given, cfg = cfg, inherit(rundir.with_absolute_paths(cfg), overrides)
    run_dir = rundir.choose_run_dir(cfg, overrides)
    # torchrun and srun start all processes alike: the first one writes
    further = machine.rank() > 0
    before = None if further else inspect(run_dir, cfg)
    if before is not None and resume.is_complete(before, cfg):
        provenance.check_moved(before, run_dir, cfg)
        print(f"{run_dir} is done: nothing to resume")
        return before
    started = new_record(cfg, run_dir, overrides, before)
    job = _assemble(cfg, run_dir, started, callbacks)
    if before is not None:
        resume.check_length(before, cfg, job.method)
    if further:
        with Signals() as signals, signals.raising():
            return replace(started, metrics=_run(job))
    info = job.data.info
    used = provenance.checked_data_record(job.data)
    used["data"] |= started.data
    started = replace(started, factors=job.factors, dataset=info.name, main_metric=info.main_metric, **used)
    if before is not None and job.resume_path is not None:
        resume.check_processes(before, job.trainer.world_size)
        provenance.check_unchanged(before, used, job.data)
    if cfg.run is None and not rundir.make_run_dir(run_dir, new=True):
        return train(given, overrides, callbacks)  # another one has taken this very name at the same moment
    with writing_run_dir(run_dir), Signals() as signals:
        if inspect(run_dir, cfg) != before:
            raise ConfigError(
                f"{run_dir}: another process has begun this run in the meantime; see what it does"
            )
        remove_unfinished(run_dir)
        if before is None and (run_dir / record.FILE_NAME).is_file():  # of an attempt that failed
            rundir.set_aside(run_dir)
        rundir.write_config(run_dir, cfg)
        rundir.write_classes(run_dir, job.data.info.classes)
        record.write(started, run_dir)
        return _recorded(job, started, before, signals)


def _recorded(
    job: Job, started: record.RunRecord, before: record.RunRecord | None, signals: Signals
) -> record.RunRecord:
    """Train, and write what became of it."""
    interrupted = replace(started, status="interrupted", error=record.INTERRUPTED)
    signals.before_exit = lambda: record.write(interrupted, job.run_dir)
    os.environ[JOB_VARIABLE] = str(job.run_dir)
    begin = time.perf_counter()
    try:
        with signals.raising():
            metrics = _run(job)
    except BaseException as error:
        status = signals.status(error)
        line = record.INTERRUPTED if status_of(error) else machine.one_line(error)
        spent = {"run/seconds": time.perf_counter() - begin + resume.seconds(before)}
        ended = replace(started, status="interrupted" if status else "failed", error=line, metrics=spent)
        _write(ended, job.run_dir, signals)
        tracking.close(job.loggers, ended)
        if status:
            raise SystemExit(status) from error
        raise
    finally:
        os.environ.pop(JOB_VARIABLE, None)
    metrics["run/seconds"] = time.perf_counter() - begin + resume.seconds(before)
    metrics |= {
        k: v for k, v in resume.costs(before).items() if math.isnan(metrics.get(k, math.nan))
    }  # too short a leg to measure
    done = replace(started, status="done", metrics=metrics)
    _write(done, job.run_dir, signals)
    tracking.close(job.loggers, done)
    return done


def _write(found: record.RunRecord, run_dir: Path, signals: Signals) -> None:
    with signals.record_lock:
        signals.before_exit = None
        record.write(found, run_dir)


def join(run_dir: Path) -> None:
    """What a further DDP process does: the same run, without claiming the directory or recording.

    It ends with the first one, which Lightning would kill while it records a signal, were this one's status not 0.
    """
    end_with_parent()
    with suppress(Stopped), Signals(grace=GRACE + EXIT_TIMEOUT) as signals, signals.raising():
        _run(_assemble(rundir.read_config(run_dir), run_dir, record.read(run_dir)))


def _assemble(
    cfg: DictConfig, run_dir: Path, started: record.RunRecord, further: Sequence[pl.Callback] = ()
) -> Job:
    quiet()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data, method = build(cfg)
    resume_path = resume.checkpoint(run_dir, cfg)
    if method.parts.parent is not None and resume_path is None:  # else its own checkpoint has all weights
        rundir.check_classes(Path(cfg.parent), data.info.classes, data.info.name)
        load_weights(method.parts.parent, Path(cfg.parent), cfg.parent_weights)
        print(f"parent: {cfg.parent}, {cfg.parent_weights} weights", flush=True)
    if resume_path is None:
        start_regressions(method, data, cfg)
    if cfg.init_from and resume_path is None:
        print(f"init_from: {init_from(method, cfg.init_from, data.info.classes, cfg)}", flush=True)
    monitor = f"val/{data.info.main_metric}"
    callbacks = [*build_callbacks(run_dir=run_dir, monitor=monitor, **cfg.callbacks), *further]
    trainer = build_trainer(run_dir=run_dir, callbacks=callbacks, loggers=[], **cfg.trainer)
    known = record.with_batch(started.factors | {record.WORLD_SIZE: trainer.world_size})
    writes = machine.rank() == 0  # rows of metrics.csv
    loggers = trainer.loggers = tracking.build_loggers(
        run_dir=run_dir,
        identity=tracking.Identity(started.run_id, started.name, started.study, "train", _tags(cfg, data)),
        config=known | {f"code.{key}": value for key, value in started.code.items()},
        resume_step=read_checkpoint(resume_path)["global_step"] if resume_path and writes else None,
        **cfg.logger,
    )
    on_gpu = trainer.strategy.root_device.type == "cuda"  # torch has no synchronised norm on the CPU
    synchronised = cfg.trainer.sync_batchnorm and trainer.world_size > 1 and on_gpu
    plan = check_batches(cfg, data, method, trainer, synchronised=synchronised)
    if synchronised:
        convert_sync_batch_norm(method)
    compile_model(method, cfg.trainer.compile)
    return Job(cfg, run_dir, data, method, callbacks, loggers, trainer, resume_path, plan, known)


def _run(job: Job) -> dict[str, float]:
    print(f"run {job.run_dir}", flush=True)
    trainer, method = job.trainer, job.method
    # In every process: the counts must be there before the first step.
    remarks = (*job.plan.remarks, *start_remarks(job.data, method))
    for line in remarks if trainer.is_global_zero else ():
        print(line, flush=True)
    if job.resume_path is None:
        fit_to_labels(method, job.data)
    tracking.connect(job.loggers)
    trainer.fit(method, datamodule=job.data, ckpt_path=job.resume_path, weights_only=True)
    skipped = check_trained(trainer, method)
    apply_ema_weights(trainer, method)
    _finish_counters(trainer)
    metrics = _test(job.cfg, job.run_dir, trainer, method, job.data) | provenance.skip_counts(job.data)
    if trainer.is_global_zero:
        paths = write_panels(method, job.data, job.run_dir / "panels", split="test", count=job.cfg.panels)
        shown = (
            tracking.has_dashboard(job.loggers) and trainer.world_size == 1
        )  # counted in this process alone
        deciles = decile_scores(method, job.data, trainer.strategy.root_device) if shown else {}
        tracking.log_results(job.loggers, job.run_dir, paths, deciles, trainer.global_step)
    cost = next(c for c in job.callbacks if isinstance(c, Cost)).result()
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
    return (
        metrics
        | cost
        | ({"run/skipped_steps": float(skipped)} if skipped else {})
        | ({"run/epoch_share": job.plan.share} if job.plan.share < 1 else {})
        | {f"run/{name}_bias": value for name, value in method.starts.items()}
        | {
            "run/steps": float(trainer.global_step),
            "run/planned_steps": float(job.plan.steps),
            "run/batches_per_step": batches / trainer.global_step,
            "run/parameters": float(sum(p.numel() for p in method.parameters())),
        }
    )


def _tags(cfg: DictConfig, data: DataModule) -> tuple[str, ...]:
    """Method, data set, backbone, head."""
    return (short_choice(cfg.method), data.info.name, short_choice(cfg.backbone), short_choice(cfg.head))


def _finish_counters(trainer: pl.Trainer) -> None:
    """What is logged from here on stands at the last step and epoch, also where there was nothing left to train."""
    loop = trainer.fit_loop
    loop.epoch_loop._batches_that_stepped = trainer.global_step
    loop.epoch_progress.current.completed = math.ceil(
        loop.epoch_loop.batch_progress.total.ready / trainer.num_training_batches
    )


def _test(
    cfg: DictConfig, run_dir: Path, trainer: pl.Trainer, method: Method, data: DataModule
) -> dict[str, float]:
    """Scores of the validation and test splits with the last (or best) weights; files for the test split."""
    metrics = dict(trainer.validate(method, datamodule=data, verbose=False, weights_only=True)[0])
    update_best(run_dir, trainer, metrics[f"val/{data.info.main_metric}"])
    if cfg.test_weights != "last":
        load_weights(method, run_dir, cfg.test_weights)
        metrics = dict(trainer.validate(method, datamodule=data, verbose=False, weights_only=True)[0])
    metrics |= trainer.test(method, datamodule=data, verbose=False, weights_only=True)[0]
    metrics = {k: v for k, v in metrics.items() if k.startswith(("val/", *TESTED))}
    if trainer.is_global_zero:
        results.write(run_dir, method.confusion.numpy(), data.info, method.images)
        results.show(method.confusion.numpy(), data.info, title=f"{run_dir.name}: test split")
    return metrics


def new_record(
    cfg: DictConfig, run_dir: Path, overrides: Sequence[str], before: record.RunRecord | None
) -> record.RunRecord:
    if before is None:
        known, below = parent_only_facts(cfg)
    else:  # the run that this one started from may be gone by now
        known = {k: v for k, v in only_recorded(before).items() if k.startswith((record.BELOW, "init_from"))}
        below = {k: v for k, v in before.data.items() if k.startswith(record.BELOW)}
    return record.RunRecord(
        schema=record.SCHEMA,
        run_id=before.run_id if before else rundir.new_id(),
        status="running",
        factors=factors(cfg) | known,
        metrics={},
        seed=cfg.seed,
        parent=before.parent if before else _parent(cfg.parent or cfg.init_from),
        code=code_versions(),
        host=host_facts(cfg.trainer.accelerator, str(cfg.trainer.precision)),
        started=before.started if before else rundir.utc_now(),
        name=before.name if before else str(cfg.run or rundir.short_name(overrides)),
        study=cfg.study,
        overrides=before.overrides if before else list(overrides),
        data=below | parent.file_digests(cfg),
    )


def _parent(source: str | None) -> str | None:
    """The id of the parent run, or of the one whose weights this one starts from."""
    run_dir = source_run(source)
    return None if run_dir is None else record.read(run_dir).run_id


# Remarks printed before training: labels, draws, weights.


_printed_remarks: set[str] = set()  # remarks on the optimiser: all jobs of a sweep would say the same


def start_remarks(data: DataModule, method: Method) -> tuple[str, ...]:
    """Remarks of the data set, on repeated frames and missing depth, of losses, of a method on its optimiser: lines.

    The last kind comes once in a process.
    """
    speaking = [module for module in method.modules() if hasattr(module, "remarks")]
    optimizer = method.parts.build_optimizer(method.parameter_groups())
    new = [line for line in method.optimizer_remarks(optimizer) if line not in _printed_remarks]
    _printed_remarks.update(new)
    return (
        *data.remarks(),
        *unread_file_remarks(data),
        *depth_remarks(data),
        *label_verdict(data).lines,
        *(line for module in speaking for line in module.remarks(data.info.classes)),  # type: ignore[operator]
        *_parent_remarks(method),
        *new,
    )


def _parent_remarks(method: Method) -> tuple[str, ...]:
    model = method.model
    if not (model.head.decides_twice and len(model.aux_head)):
        return ()
    return (
        "the head's first stage stands for an auxiliary head, and one trains besides; as published it is "
        "model.aux_level=null",
    )


def inspect(run_dir: Path, cfg: DictConfig) -> record.RunRecord | None:
    """What lies in the directory, before anything is written: the record to continue when resuming, else None.

    ``resume=auto`` continues a run of the very same configuration, whatever became of it; ``true`` one that may be
    longer by now. A directory that holds another run is refused, unless that one failed before its first checkpoint;
    so is one whose run is alive in another process, one that cannot be written, and one with files not of its own.
    """
    check_writable(run_dir)
    safe_files.check_run_files(run_dir)
    if not (run_dir / record.FILE_NAME).is_file():
        if resumable(run_dir):
            raise ConfigError(
                f"{run_dir} holds checkpoints but no {record.FILE_NAME}: another run= starts a new run"
            )
        return None
    before = record.read(run_dir)
    if before.status == "running" and is_running(before):
        raise ConfigError(
            f"{run_dir}: process {before.host['pid']} on {before.host['hostname']} is training this run; "
            "wait for it or stop it"
        )
    unfinished = before.status in ("failed", "interrupted") and not resumable(run_dir)
    if not cfg.resume:
        if unfinished:
            return None
        raise ConfigError(
            f"{run_dir} already holds a run ({before.status}): resume=auto continues it, another run= starts a new one"
        )
    free = FREE_ON_RESUME if cfg.resume is True else NO_FACTOR
    elsewhere = parent.equivalent_paths(before, read_config(run_dir), cfg)
    differing = differences(run_dir, cfg, free, elsewhere)
    if not differing:
        return before
    if unfinished and cfg.resume is not True:
        return None
    more = f"; and {len(differing) - MAX_NAMED} more" if len(differing) > MAX_NAMED else ""
    found = f"{'; '.join(differing[:MAX_NAMED])}{more}"
    if cfg.resume is not True and not differences(run_dir, cfg, FREE_ON_RESUME, elsewhere):
        raise ConfigError(
            f"{run_dir} already holds a run ({before.status}), {found}: resume=true continues it that way, "
            "another run= starts a new one"
        )
    raise ConfigError(
        f"{run_dir} already holds a run ({before.status}) of another configuration ({found}); give the same settings "
        "to continue it, or another run= for a new run"
    )
