"""What watches a run: checkpoints, learning rate, progress."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, RichProgressBar

from hardpix.run.cost import Cost
from hardpix.types import ConfigError


def build_callbacks(
    *,
    run_dir: Path,
    monitor: str,
    checkpoint_every_steps: int | None,
    progress: str,
    refresh_every: int,
) -> list[Callback]:
    """Checkpoints ``last`` and ``best`` (highest ``monitor``), the learning rate, costs, and a progress display."""
    folder = run_dir / "checkpoints"
    best = ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=monitor,
        mode="max",
        save_top_k=1,
        enable_version_counter=False,
        save_weights_only=True,
        save_on_train_epoch_end=False,  # only ever after a validation
    )
    last = ModelCheckpoint(
        dirpath=folder,
        filename="last",
        monitor=None,
        save_top_k=1,
        enable_version_counter=False,
        every_n_train_steps=checkpoint_every_steps,
        save_on_train_epoch_end=None if checkpoint_every_steps else True,
    )
    return [best, last, LearningRateMonitor(), Cost(), *_progress(progress, refresh_every)]


def _progress(kind: str, refresh_every: int) -> list[Callback]:
    if kind not in ("auto", "rich", "plain", "none"):
        raise ConfigError(f"callbacks.progress={kind}: must be auto, rich, plain or none")
    if kind == "auto":
        kind = "rich" if sys.stdout.isatty() else "plain"
    if kind == "rich":
        return [RichProgress(refresh_rate=refresh_every)]
    return [PlainProgress()] if kind == "plain" else []


class RichProgress(RichProgressBar):
    """Loss, mIoU and rate; without the total of epochs where steps decide how long to train."""

    def _get_train_description(self, current_epoch: int) -> str:
        return super()._get_train_description(current_epoch).replace("/-2", "")


class PlainProgress(Callback):
    """One line per validation, for logs and cluster queues."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started, self.first_step = time.perf_counter(), trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        shown = {k: float(v) for k, v in trainer.callback_metrics.items()}
        rate = (trainer.global_step - self.first_step) / (time.perf_counter() - self.started)
        total = trainer.estimated_stepping_batches
        print(
            f"step {trainer.global_step}/{total:.0f}  loss {shown.get('train/loss', float('nan')):.4f}  "
            f"val mIoU {100 * shown.get('val/miou', float('nan')):.2f} %  {rate:.2f} steps/s",
            flush=True,
        )
