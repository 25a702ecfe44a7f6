"""``last.ckpt``: when it is written, so that a run which goes on from it is the run that was never stopped."""

from __future__ import annotations

import copy
import signal
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint

from hardpix.run import signals
from hardpix.run.signals import Stopped
from hardpix.types import ConfigError


class Finish(Callback):
    """Must stand before the callback that averages weights: at the end of training that one puts the average in."""

    def __init__(self, last: LastCheckpoint) -> None:
        self.last = last

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last.finish(trainer)


class LastCheckpoint(Checkpoint):
    """After every so many steps, or after every epoch; before validations in training; after the last step.

    Lightning's own hooks come too early or too late: before the schedules of epochs, or when its counters already say
    that an epoch is half done, so that a resumed run trains on other frames or leaves a validation out. Here the
    counters are those after the last batch, all else is what it is when the next step begins, and a checkpoint from
    before a validation says that it is still to come. (A ``Checkpoint`` runs after all other callbacks.)

    SIGINT, SIGTERM and SIGUSR1 end the training after the current step, with a checkpoint, by ``Stopped``. Of several
    processes each step asks all whether one has had a signal; in validations and tests, of which they may have unequal
    numbers of batches, the end of the epoch does.
    """

    def __init__(self, path: Path, every_steps: int | None) -> None:
        if every_steps is not None and every_steps < 1:
            raise ConfigError(f"callbacks.checkpoint_every_steps={every_steps}: must be 1 or above, or null")
        self.path, self.every_steps, self.saved = path, every_steps, -1
        self.counters: dict[str, Any] | None = None  # instead of those at the time of saving
        self.waits = False  # with saving, until the next epoch begins or the training ends
        self.began = time.monotonic()  # a step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signals.steps(True)
        self._raise(trainer)

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        signals.step_ended(time.monotonic() - self.began)
        # else Lightning takes the schedule that follows a score for one that a resumed epoch has had already
        trainer.fit_loop._restarting = False
        step, loop = trainer.global_step, trainer.fit_loop.epoch_loop
        epoch_ends = batch_idx + 1 == trainer.num_training_batches
        over = step == trainer.max_steps or (epoch_ends and trainer.current_epoch + 1 == trainer.max_epochs)
        stepped = not loop._should_accumulate()  # gradients of half a step are in no checkpoint
        every = stepped and (epoch_ends if self.every_steps is None else step % self.every_steps == 0)
        stop = self._told_to_stop(trainer) and stepped
        if not (epoch_ends or over or every or stop):
            self.waits = False
            return
        validates = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
        # and leaves it out where a run goes on in the validation at the end of an epoch
        follows = any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs)
        self.waits = over or (epoch_ends and (not validates or follows))
        if over or (self.waits and (every or stop)):
            self.counters = copy.deepcopy(trainer._checkpoint_connector._get_loops_state_dict())
        elif (every or stop) and not validates:
            self._save(trainer)
            self._raise(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.counters is not None:
            self._save(trainer)
        self._raise(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            signals.steps(True)
        if trainer.state.fn != "fit" or trainer.sanity_checking or self.waits:
            return
        self.counters = copy.deepcopy(trainer._checkpoint_connector._get_loops_state_dict())
        progress = self.counters["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        done = progress["total"]["completed"]
        progress["total"] |= {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
        progress["current"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        progress["is_last_batch"] = False
        self._save(trainer)
        self._raise(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        signals.step_ended()
        if trainer.world_size == 1:
            self._raise_in_validation(trainer)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._raise_in_validation(trainer)

    def _raise_in_validation(self, trainer: pl.Trainer) -> None:
        if not trainer.sanity_checking and not (trainer.state.fn == "fit" and self.waits):
            self._raise(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signals.steps(True)

    def on_test_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        signals.step_ended()
        if trainer.world_size == 1:
            self._raise(trainer)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._raise(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        signals.steps(False, alone=trainer.world_size == 1)

    def finish(self, trainer: pl.Trainer) -> None:
        """After the last validation: who resumes from here finds all rows of the training."""
        if self.counters is not None:
            self._save(trainer)
        self._raise(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.counters is not None:
            checkpoint["loops"] = self.counters

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.global_step != self.saved and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            for logger in trainer.loggers:  # before: a run killed between the two would lack rows for good
                logger.after_save_checkpoint(self)  # type: ignore[arg-type]
            trainer.save_checkpoint(self.path)
        self.saved, self.counters = trainer.global_step, None

    def _told_to_stop(self, trainer: pl.Trainer) -> bool:
        """Whether any process of the run has had a signal; to be asked by all of them alike."""
        if trainer.world_size == 1:
            return bool(signals.received())
        return trainer.strategy.reduce_boolean_decision(bool(signals.received()), all=False)

    def _raise(self, trainer: pl.Trainer) -> None:
        if self._told_to_stop(trainer):
            raise Stopped(signals.received() or signal.SIGTERM)
