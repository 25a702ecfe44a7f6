"""A loss or a gradient that is no number ends the training at that step, and says on which images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from hardpix import record
from hardpix.atomic import write_text
from hardpix.types import Diverged

FILE_NAME = "diverged.json"
TOLD = 10  # parameters in the file


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
            "gradients": bad[:TOLD],
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
