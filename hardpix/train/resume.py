"""Write ``last.ckpt`` and resume from it exactly."""

from __future__ import annotations

import copy
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, Checkpoint

from hardpix import record
from hardpix.methods import Method
from hardpix.record import SPREAD
from hardpix.train import machine, rundir, signals
from hardpix.train.checkpoint import MANIFEST, manifest, newest, sha256
from hardpix.train.signals import Stopped
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


# Resuming: which checkpoint, what remains, what earlier attempts recorded.


def checkpoint(run_dir: Path, cfg: DictConfig) -> Path | None:
    """Where to go on from; None where the run begins. Raises ``HardpixError`` if no checkpoint is whole.

    A damaged ``last.ckpt`` gives its place to the one before; of several processes the first one sees to that.
    """
    if not cfg.resume or not rundir.resumable(run_dir):
        return None
    last = run_dir / rundir.LAST
    if machine.rank() > 0:
        return last  # by the time that it is read, when all processes have met
    found = newest(run_dir)
    if found == last:
        return found
    print(f"going on from {found.name}, the one before", flush=True)
    listed = manifest(last.parent)
    digest = sha256(found)
    entry = next((e for e in listed.values() if e.get("sha256") == digest), None)
    found.replace(last)
    if entry is not None:  # after a stop between renaming and listing it stands under the other name
        others = {name: other for name, other in listed.items() if name not in (found.name, last.name)}
        text = json.dumps(others | {last.name: entry}, indent=1, sort_keys=True) + "\n"
        record.write_text(last.parent / MANIFEST, text)
    return last


def is_complete(before: record.RunRecord, cfg: DictConfig) -> bool:
    """Whether the run that is to be resumed has nothing left to train; refuses to make it shorter."""
    lengths = {key: before.factors.get(f"trainer.{key}") for key in ("max_steps", "max_epochs")}
    if cfg.trainer.max_steps is not None and cfg.trainer.max_steps < before.metrics.get("run/steps", 0):
        raise ConfigError(
            f"trainer.max_steps={cfg.trainer.max_steps}: the run has already made "
            f"{before.metrics['run/steps']:.0f} steps; give as many or more"
        )
    return before.status == "done" and all(cfg.trainer[key] == value for key, value in lengths.items())


def check_length(before: record.RunRecord, cfg: DictConfig, method: Method) -> None:
    """A schedule that ends with the training cannot be stretched: the record would tell of another run."""
    for key in ("max_steps", "max_epochs"):
        old, new = before.factors.get(f"trainer.{key}"), cfg.trainer[key]
        if old != new and getattr(method.parts.build_scheduler, "depends_on_length", True):
            raise ConfigError(
                f"trainer.{key}: {old} -> {new}, but the schedule was made for the old length; start a new run "
                "(only scheduler=constant and plateau can be trained longer)"
            )
        if old != new and method.depends_on_length:
            raise ConfigError(
                f"trainer.{key}: {old} -> {new}, but {method.length_setting} was made for the old length; "
                "start a new run"
            )


def check_processes(before: record.RunRecord, now: int) -> None:
    """Refuse other processes than the run began with: each has its share of the frames and its own random state."""
    began, nodes = before.factors.get(record.WORLD_SIZE, now), before.factors.get("trainer.num_nodes", 1)
    if began != now:
        raise ConfigError(
            f"{record.WORLD_SIZE}: {began} -> {now}, the run began in {began} processes; continue it with "
            f"trainer.devices={began // nodes} trainer.num_nodes={nodes}, or start a new run with another run="
        )


def seconds(before: record.RunRecord | None) -> float:
    """What earlier attempts of a resumed run took, as far as it was recorded."""
    found = before.metrics.get("run/seconds", 0.0) if before else 0.0
    return found if found == found else 0.0


def costs(before: record.RunRecord | None) -> dict[str, float]:
    return {k: v for k, v in before.metrics.items() if k.startswith("cost/") or k == SPREAD} if before else {}
