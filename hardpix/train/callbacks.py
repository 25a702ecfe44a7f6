"""What watches a run: checkpoints, learning rate, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import (
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)

from hardpix.ranges import Count, Whole, checked
from hardpix.run import rundir
from hardpix.run.branch_time import BranchTime
from hardpix.run.cost import Cost
from hardpix.run.last_checkpoint import Finish, LastCheckpoint
from hardpix.run.snapshots import Snapshots


@checked
def build_callbacks(
    *,
    run_dir: Path,
    monitor: str,
    checkpoint_every_steps: Count | None,
    progress: Literal["auto", "rich", "plain", "none"],
    refresh_every: Whole,
    snapshots: Sequence[Count] = (),
) -> list[Callback]:
    """Checkpoints ``last`` and ``best`` (highest ``monitor``), the learning rate, costs, and a progress display.

    ``snapshots``: epochs, from 1, after which the weights are kept besides.
    """
    folder = run_dir / "checkpoints"
    best = ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=monitor,
        mode="max",
        save_top_k=1,
        enable_version_counter=False,
        save_weights_only=False,  # true would pass the averaged weights by
        save_on_train_epoch_end=False,  # only ever after a validation
    )
    last = LastCheckpoint(folder / "last.ckpt", checkpoint_every_steps)
    return [
        Finish(last),
        best,
        *([Snapshots(run_dir, snapshots)] if snapshots else []),
        last,
        LearningRateMonitor(logging_interval="step"),
        Cost(),
        BranchTime(),
        ModelScalars(),
        *_progress(progress, refresh_every, monitor),
    ]


def settle_best(run_dir: Path, trainer: pl.Trainer, score: float) -> None:
    """The last weights compete for ``best`` too: training rarely ends on a validation."""
    callback = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
    if callback is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    before, path = callback.best_model_score, run_dir / rundir.BEST
    better = before is None or score > float(before) or not path.is_file()
    # All processes save or none, whatever each sees of a shared disk: the first one decides.
    if trainer.strategy.broadcast(better):
        trainer.save_checkpoint(path, weights_only=True)


def _progress(kind: str, refresh_every: int, monitor: str) -> list[Callback]:
    if kind == "auto":
        kind = "rich" if sys.stdout.isatty() else "plain"
    if kind == "rich":
        return [RichProgress(refresh_rate=refresh_every)]
    return [PlainProgress(monitor)] if kind == "plain" else []


class ModelScalars(Callback):
    """At every validation, what the network says of itself (``Segmenter.scalars``)."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log_dict(pl_module.model.scalars())  # type: ignore[union-attr, operator]


class RichProgress(RichProgressBar):
    """Loss, mIoU and rate; without the total of epochs where steps decide how long to train."""

    def _get_train_description(self, current_epoch: int) -> str:
        return super()._get_train_description(current_epoch).replace("/-2", "")


class PlainProgress(Callback):
    """One line per validation, for logs and cluster queues: the loss and the score that ``best`` follows."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started, self.first_step = time.perf_counter(), trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        shown = {k: float(v) for k, v in trainer.callback_metrics.items()}
        rate = (trainer.global_step - self.first_step) / (time.perf_counter() - self.started)
        total = trainer.estimated_stepping_batches
        loss = f"{shown['train/loss']:.4f}" if "train/loss" in shown else "-"
        print(
            f"step {trainer.global_step}/{total:.0f}  loss {loss}  "
            f"{self.monitor} {100 * shown.get(self.monitor, float('nan')):.2f} %  {rate:.2f} steps/s",
            flush=True,
        )
