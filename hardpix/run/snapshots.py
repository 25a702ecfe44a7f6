"""Weights of chosen epochs, kept for figures of how a run developed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from hardpix.methods.steps import epochs_of
from hardpix.run import rundir
from hardpix.run.checkpoint_files import save
from hardpix.types import ConfigError

KEPT = ("state_dict", "global_step", "pytorch-lightning_version")


class Snapshots(Checkpoint):
    """``checkpoints/epoch_0010.ckpt`` after epoch 10 (the first is 1): the weights alone, averaged where they are.

    Nothing of a snapshot is read when a run resumes. As a ``Checkpoint`` it runs after what averages weights and
    before ``last.ckpt``, so that a run stopped at any time resumes without leaving one out.
    """

    def __init__(self, run_dir: Path, epochs: Sequence[int]) -> None:
        self.run_dir, self.epochs, self.total = run_dir, frozenset(epochs), 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.total = epochs_of(trainer)
        late = sorted(epoch for epoch in self.epochs if epoch > self.total)
        if late and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ConfigError(
                f"callbacks.snapshots={sorted(self.epochs)}: there is no epoch {late[0]}, the run has {self.total}"
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        over = batch_idx + 1 == trainer.num_training_batches or trainer.global_step == trainer.max_steps
        epoch = trainer.current_epoch + 1
        if over and epoch in self.epochs and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save(trainer, epoch)

    def _save(self, trainer: pl.Trainer, epoch: int) -> None:
        # Whole, since averaged weights take the others' place only then.
        whole = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if not trainer.is_global_zero:
            return
        path = rundir.snapshot(self.run_dir, epoch)
        save({k: whole[k] for k in KEPT} | {"epoch": epoch, "epochs": self.total}, path)
