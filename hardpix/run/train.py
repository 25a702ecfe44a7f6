"""One training run, from a composed configuration to its record."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from hardpix import record
from hardpix.data import DataModule
from hardpix.methods import Method
from hardpix.models import convert_sync_batch_norm
from hardpix.run import results, rundir, tracking
from hardpix.run.build import build
from hardpix.run.callbacks import build_callbacks
from hardpix.run.checkpoint import init_from, load_weights
from hardpix.run.config import validate
from hardpix.run.cost import Cost
from hardpix.run.environment import code_versions, host_facts
from hardpix.run.panels import write_panels
from hardpix.run.trainer import build_trainer, compile_model
from hardpix.types import HardpixError

JOB_VARIABLE = "HARDPIX_JOB"  # run directory, for the processes that Lightning starts for DDP


def train(cfg: DictConfig, overrides: Sequence[str] = ()) -> record.RunRecord:
    """Train, test and record; the directory is ``runs_dir/study/run``.

    The record says ``running`` until the end, then ``done``, or ``failed`` with the error; whatever is raised
    is raised on. ``overrides`` (the command line) only name the run.
    """
    validate(cfg)
    run_dir = rundir.choose(cfg, overrides)
    before = rundir.claim(run_dir, cfg)
    rundir.write_config(run_dir, cfg)
    started = _new_record(cfg, run_dir, overrides, before)
    record.write(started, run_dir)
    os.environ[JOB_VARIABLE] = str(run_dir)
    try:
        metrics = _run(cfg, run_dir, started)
    except BaseException as error:
        line = (str(error).strip().splitlines() or [""])[0]
        record.write(
            replace(started, status="failed", error=f"{type(error).__name__}: {line}"[:500]), run_dir
        )
        raise
    finally:
        os.environ.pop(JOB_VARIABLE, None)
    done = replace(started, status="done", metrics=metrics)
    record.write(done, run_dir)
    return done


def join(run_dir: Path) -> None:
    """What a further DDP process does: the same run, without claiming the directory or recording."""
    cfg = rundir.read_config(run_dir)
    _run(cfg, run_dir, record.read(run_dir))


def _run(cfg: DictConfig, run_dir: Path, started: record.RunRecord) -> dict[str, float]:
    begin = time.perf_counter()
    quiet()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data, method = build(cfg)
    print(f"run {run_dir}", flush=True)
    if cfg.init_from:
        print(f"init_from: {init_from(method, cfg.init_from)}", flush=True)
    resume_path = run_dir / rundir.LAST if cfg.resume and (run_dir / rundir.LAST).is_file() else None
    identity = tracking.Identity(started.run_id, started.name, started.study, "train")
    loggers = tracking.build_loggers(
        run_dir=run_dir,
        identity=identity,
        config=started.factors,
        resumed=resume_path is not None,
        **cfg.logger,
    )
    try:
        callbacks = build_callbacks(run_dir=run_dir, monitor=f"val/{data.info.main_metric}", **cfg.callbacks)
        trainer = build_trainer(run_dir=run_dir, callbacks=callbacks, loggers=loggers, **cfg.trainer)
        on_gpu = trainer.strategy.root_device.type == "cuda"  # torch has no synchronised norm on the CPU
        if cfg.trainer.sync_batchnorm and trainer.world_size > 1 and on_gpu:
            convert_sync_batch_norm(method)
        compile_model(method, cfg.trainer.compile)
        trainer.fit(method, datamodule=data, ckpt_path=resume_path, weights_only=True)
        _check_finite(method)
        metrics = _test(cfg, run_dir, trainer, method, data)
        if trainer.is_global_zero:
            paths = write_panels(method, data, run_dir / "panels", split="test", count=cfg.panels)
            tracking.log_images(loggers, "panels", paths, trainer.global_step)
        cost = next(c for c in callbacks if isinstance(c, Cost)).result()
        metrics |= cost | {
            "run/seconds": time.perf_counter() - begin,
            "run/steps": float(trainer.global_step),
            "run/parameters": float(sum(p.numel() for p in method.parameters())),
        }
        return metrics
    finally:
        tracking.close(loggers)


def _test(
    cfg: DictConfig, run_dir: Path, trainer: pl.Trainer, method: Method, data: DataModule
) -> dict[str, float]:
    """Scores of the validation and test splits with the last (or best) weights; files for the test split."""
    metrics = dict(trainer.validate(method, datamodule=data, verbose=False, weights_only=True)[0])
    _settle_best(run_dir, trainer, metrics[f"val/{data.info.main_metric}"])
    if cfg.test_weights != "last":
        load_weights(method, run_dir, cfg.test_weights)
        metrics = dict(trainer.validate(method, datamodule=data, verbose=False, weights_only=True)[0])
    metrics |= trainer.test(method, datamodule=data, verbose=False, weights_only=True)[0]
    metrics = {k: v for k, v in metrics.items() if k.startswith(("val/", "test/"))}
    if trainer.is_global_zero:
        results.write(run_dir, method.confusion.numpy(), data.info)
        results.show(method.confusion.numpy(), data.info, title=f"{run_dir.name}: test split")
    return metrics


def _settle_best(run_dir: Path, trainer: pl.Trainer, score: float) -> None:
    """The last weights compete for ``best`` too: training rarely ends on a validation."""
    callback = next((c for c in trainer.checkpoint_callbacks if c.monitor is not None), None)  # type: ignore[attr-defined]
    if callback is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    before = callback.best_model_score  # type: ignore[attr-defined]
    if before is None or score > float(before) or not (run_dir / rundir.BEST).is_file():
        trainer.save_checkpoint(run_dir / rundir.BEST, weights_only=True)


def _new_record(
    cfg: DictConfig, run_dir: Path, overrides: Sequence[str], before: record.RunRecord | None
) -> record.RunRecord:
    return record.RunRecord(
        schema=record.SCHEMA,
        run_id=before.run_id if before else rundir.new_id(),
        status="running",
        factors=record.flatten(rundir.plain(cfg)),
        metrics={},
        seed=cfg.seed,
        parent=_parent(cfg.init_from),
        code=code_versions(),
        host=host_facts(cfg.trainer.accelerator, str(cfg.trainer.precision)),
        started=before.started if before else rundir.utc_now(),
        name=before.name if before else str(cfg.run or rundir.short_name(overrides)),
        study=cfg.study,
    )


def _parent(init: str | None) -> str | None:
    """The id of the run whose weights this one starts from, where they lie in a run directory."""
    if init is None:
        return None
    for folder in (Path(init), *Path(init).parents[:2]):
        if (folder / record.FILE_NAME).is_file():
            return record.read(folder).run_id
    return None


def _check_finite(method: Method) -> None:
    bad = [name for name, p in method.named_parameters() if not torch.isfinite(p).all()]
    if bad:
        raise HardpixError(
            f"training diverged: {bad[0]} (and {len(bad) - 1} more) is not finite; lower optimizer.lr, "
            "set trainer.clip_norm, or use trainer.precision=32"
        )


def quiet() -> None:
    """Lightning's advice about things that are chosen here on purpose."""
    import logging

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for text in (".*does not have many workers.*", ".*number of training batches.*", ".*Checkpoint directory.*",
                 ".*ckpt_path.*", ".*exists and is not empty.*", ".*isinstance.treespec.*", ".*LeafSpec.*",
                 ".*lr_scheduler.step.*before.*optimizer.step.*", ".*`log_every_n_steps`.*"):  # fmt: skip
        warnings.filterwarnings("ignore", text)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=DeprecationWarning)
