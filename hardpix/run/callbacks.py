"""What watches a run: checkpoints, learning rate, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import (
    Callback,
    Checkpoint,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)

from hardpix.run.branch_time import BranchTime
from hardpix.run.cost import Cost
from hardpix.run.snapshots import Snapshots
from hardpix.types import ConfigError


def build_callbacks(
    *,
    run_dir: Path,
    monitor: str,
    checkpoint_every_steps: int | None,
    progress: str,
    refresh_every: int,
    snapshots: Sequence[int] = (),
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
        best,
        *([Snapshots(run_dir, snapshots)] if snapshots else []),
        last,
        LearningRateMonitor(logging_interval="step"),
        Cost(),
        BranchTime(),
        ModelScalars(),
        *_progress(progress, refresh_every, monitor),
    ]


def _progress(kind: str, refresh_every: int, monitor: str) -> list[Callback]:
    if kind not in ("auto", "rich", "plain", "none"):
        raise ConfigError(f"callbacks.progress={kind}: must be auto, rich, plain or none")
    if kind == "auto":
        kind = "rich" if sys.stdout.isatty() else "plain"
    if kind == "rich":
        return [RichProgress(refresh_rate=refresh_every)]
    return [PlainProgress(monitor)] if kind == "plain" else []


class LastCheckpoint(Checkpoint):
    """``last.ckpt`` after every so many steps, or after every epoch, and after the last step.

    At the end of an epoch Lightning's own hooks come too early or too late: before validation and the schedules
    of epochs, or when its counters already say that an epoch is half done, so that a resumed run trains on other
    frames than the uninterrupted one. Here the counters are those after the last batch, and all else is what it
    is when the next epoch begins. (A ``Checkpoint`` runs after all other callbacks.)
    """

    def __init__(self, path: Path, every_steps: int | None) -> None:
        if every_steps is not None and every_steps < 1:
            raise ConfigError(f"callbacks.checkpoint_every_steps={every_steps}: must be 1 or above, or null")
        self.path, self.every_steps, self.saved = path, every_steps, -1
        self.counters: dict[str, Any] | None = None  # after the last batch of an epoch whose end is to come

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        epoch_ends = batch_idx + 1 == trainer.num_training_batches
        over = step == trainer.max_steps or (epoch_ends and trainer.current_epoch + 1 == trainer.max_epochs)
        due = epoch_ends if self.every_steps is None else step % self.every_steps == 0
        if over or (due and not epoch_ends):
            self._save(trainer)
        elif due:
            self.counters = trainer._checkpoint_connector._get_loops_state_dict()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.counters is not None:
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.counters is not None:
            checkpoint["loops"] = self.counters

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.global_step != self.saved and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)  # type: ignore[arg-type]
        self.saved, self.counters = trainer.global_step, None


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
