"""Trainer callbacks: progress, snapshots, averaged weights, divergence, reports to a search."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    Callback,
    Checkpoint,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)

from hardpix import record
from hardpix.config.compose import nearest
from hardpix.config.schema import Count, Whole, checked
from hardpix.methods.steps import epochs_of
from hardpix.record import write_text
from hardpix.scores import score_text
from hardpix.train import rundir
from hardpix.train.checkpoint import save
from hardpix.train.cost import BranchTime, Cost
from hardpix.train.resume import Finish, LastCheckpoint
from hardpix.types import ConfigError, Diverged, Pruned


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


def update_best(run_dir: Path, trainer: pl.Trainer, score: float) -> None:
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


# A loss or a gradient that is no number ends the training at that step, and says on which images.


FILE_NAME = "diverged.json"
MAX_NAMED = 10  # parameters in the file


class Divergence(Callback):
    """Before every optimiser step: are the loss and all gradients finite?

    ``nan="skip"`` leaves such a step out, at most ``max_skip`` times in a run, and stops at the next; what its batches
    did to statistics of norms and other buffers is undone, for which they are copied before each step.

    With float16 the loss alone decides: a step whose gradients are not finite is skipped by the loss scaler, which
    lowers its scale. Such steps are counted (the schedule goes on over them), and a scale below 1 stops the run.
    """

    def __init__(self, run_dir: Path, nan: str, max_skip: int) -> None:
        self.run_dir, self.left = run_dir, max_skip if nan == "skip" else 0
        self.skipped = self.overflowed = 0  # steps: for ``nan``, and by the loss scaler
        self.scale = math.inf  # of the loss scaler, before the step
        self.left_out = False  # the newest step, for ``nan``
        self.names: list[str] = []  # of the images since the last step
        self.parameters: list[torch.nn.Parameter] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.parameters = [p for p in pl_module.parameters() if p.requires_grad]
        if (scaler := _scaler(trainer)) is not None:
            self.scale = scaler.get_scale()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.names = []
            if self.skipped < self.left:
                pl_module.keep_for_undo()  # type: ignore[operator]
        self.names += batch.get("name", [])

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        losses: dict[str, torch.Tensor] = pl_module.last_losses  # type: ignore[assignment]
        total = losses["loss"]
        if trainer.precision != "16-mixed":
            norms = torch._foreach_norm([p.grad for p in self.parameters if p.grad is not None])
            total = total + torch.stack(norms).sum() if norms else total
        bad = not math.isfinite(total)  # one value for all: the only wait for the device
        if trainer.world_size > 1:
            bad = trainer.strategy.reduce_boolean_decision(bad, all=False)
        self.left_out = bad
        if not bad:
            return
        self._tell(trainer, pl_module)
        if self.skipped >= self.left:
            raise Diverged(self._sentence(trainer, losses))
        self.skipped += 1
        optimizer.zero_grad(set_to_none=True)
        pl_module.undo_step()  # type: ignore[operator]
        print(f"{self._sentence(trainer, losses)}: left out ({self.skipped} of {self.left})", flush=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Before a checkpoint is saved: the scaler lowers its scale at a skipped step, and at no other."""
        scaler = _scaler(trainer)
        if scaler is None or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        before, self.scale = self.scale, scaler.get_scale()
        if self.scale < before and not self.left_out:
            self.overflowed += 1
        if self.scale < 1:
            self._tell(trainer, pl_module)
            raise Diverged(
                f"training diverged at step {trainer.global_step}: the float16 loss scale fell below 1, and "
                f"{self.total} steps were skipped because their gradients were not finite, the last on "
                f"{self._images()} ({self.run_dir / FILE_NAME}); set trainer.precision=bf16-mixed, or 32"
            )

    @property
    def total(self) -> int:
        """Skipped steps of the run."""
        return self.skipped + self.overflowed

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "overflowed": self.overflowed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.overflowed = state_dict["skipped"], state_dict.get("overflowed", 0)

    def _images(self) -> str:
        return ", ".join(self.names[:4]) + (", ..." if len(self.names) > 4 else "")

    def _sentence(self, trainer: pl.Trainer, losses: dict[str, torch.Tensor]) -> str:
        what = ", ".join(f"{name} {float(loss):.4g}" for name, loss in losses.items())
        return (
            f"training diverged at step {trainer.global_step}: losses {what}, or a gradient, not finite on "
            f"{self._images()} "
            f"({self.run_dir / FILE_NAME}); lower optimizer.lr, set trainer.clip_norm, or trainer.precision=32"
        )

    def _tell(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        losses: dict[str, torch.Tensor] = pl_module.last_losses  # type: ignore[assignment]
        gradients = {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}
        bad = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
        content = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "seed": record.read(self.run_dir).seed,
            "losses": {name: str(float(loss)) for name, loss in losses.items()},
            "images": self.names,
            "gradients": bad[:MAX_NAMED],
        }
        write_text(self.run_dir / FILE_NAME, json.dumps(content, indent=1) + "\n")


def check_trained(trainer: pl.Trainer, module: pl.LightningModule) -> int:
    """The number of skipped steps of a run that has ended; ``Diverged`` where its weights are none that it trained."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    bad = [name for name, value in tensors if not torch.isfinite(value).all()]
    if bad:
        raise Diverged(
            f"training diverged: {bad[0]} (and {len(bad) - 1} more) is not finite; lower optimizer.lr, "
            "set trainer.clip_norm, or use trainer.precision=32"
        )
    skipped = next(c.total for c in trainer.callbacks if isinstance(c, Divergence))  # type: ignore[attr-defined]
    if 0 < trainer.global_step <= skipped:
        raise Diverged(
            f"training diverged: all {skipped} steps were skipped because a loss or gradient was not finite, so the "
            "weights are those that the run began with; lower optimizer.lr, or set trainer.precision=32"
        )
    return skipped


def _scaler(trainer: pl.Trainer) -> Any:
    """The loss scaler of float16; None under any other precision."""
    return getattr(trainer.precision_plugin, "scaler", None)


# Weights of chosen epochs, kept for figures of how a run developed.


SNAPSHOT_KEYS = ("state_dict", "global_step", "pytorch-lightning_version")


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
        save({k: whole[k] for k in SNAPSHOT_KEYS} | {"epoch": epoch, "epochs": self.total}, path)


# An exponential moving average of the weights: what is validated, saved and tested.


class EMA(EMAWeightAveraging):
    """Lightning's averaging, which ends with the training.

    Lightning swaps the average in for every later validation too, also when other weights (``best``) have been
    loaded by then. And it makes the average before the strategy moves the network, on the device of that time.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._average_model = None


def apply_ema_weights(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """The average becomes the weights, where no training that would have ended did that (nothing was left to train)."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EMA) and callback._average_model is not None:
            callback.on_train_end(trainer, module)


# Report validations of a trial, and stop it when the pruner says so.


class ReportToTrial(Callback):
    """Give a trial the score of each validation, and end the run early where it is behind.

    ``report(score, step)`` returns whether to end it; ``step``: optimiser steps of this run on top of ``earlier`` runs
    of the same trial, each as long as this one. The last validation only reports: by then the run is whole.
    """

    def __init__(
        self, report: Callable[[float, int], bool], *, metric: str | None, earlier: int, prunes: bool
    ) -> None:
        self.report, self.metric, self.earlier, self.prunes = report, metric, earlier, prunes
        self.refusal = ""  # why no trial of this search can be scored

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.prunes and trainer.world_size > 1:
            self._refuse("pruner: works for runs of one process; set pruner: none, or trainer.devices=1")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metric = self.metric or f"val/{pl_module.info.main_metric}"  # type: ignore[union-attr]
        if metric not in trainer.callback_metrics:
            known = [str(name) for name in trainer.callback_metrics if str(name).startswith("val/")]
            self._refuse(f"metric={metric}: no run logs it{nearest(metric, known)}")
        score = float(trainer.callback_metrics[metric])
        total = int(trainer.estimated_stepping_batches)
        if score != score:
            return
        ends = self.report(score, self.earlier * total + trainer.global_step)
        if self.prunes and ends and trainer.global_step < total:
            raise Pruned(
                f"at step {trainer.global_step} of {total}, {metric} {score_text(metric, score)} "
                "is behind the other trials"
            )

    def _refuse(self, text: str) -> NoReturn:
        self.refusal = text
        raise ConfigError(text)
