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
    did to statistics of norms and other buffers is undone, for which they are copied before each step. With float16
    infinite gradients are what the scaler lowers its scale by; there the loss alone decides.
    """

    def __init__(self, run_dir: Path, nan: str, max_skip: int) -> None:
        self.run_dir, self.left = run_dir, max_skip if nan == "skip" else 0
        self.skipped = 0
        self.names: list[str] = []  # of the images since the last step
        self.parameters: list[torch.nn.Parameter] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.parameters = [p for p in pl_module.parameters() if p.requires_grad]

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
        if not bad:
            return
        gradients = {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}
        self._tell(trainer, losses, gradients)
        if self.skipped >= self.left:
            raise Diverged(self._sentence(trainer, losses))
        self.skipped += 1
        optimizer.zero_grad(set_to_none=True)
        pl_module.undo_step()  # type: ignore[operator]
        print(f"{self._sentence(trainer, losses)}: left out ({self.skipped} of {self.left})", flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def _sentence(self, trainer: pl.Trainer, losses: dict[str, torch.Tensor]) -> str:
        what = ", ".join(f"{name} {float(loss):.4g}" for name, loss in losses.items())
        images = ", ".join(self.names[:4]) + (", ..." if len(self.names) > 4 else "")
        return (
            f"training diverged at step {trainer.global_step}: losses {what}, or a gradient, not finite on {images} "
            f"({self.run_dir / FILE_NAME}); lower optimizer.lr, set trainer.clip_norm, or trainer.precision=32"
        )

    def _tell(
        self, trainer: pl.Trainer, losses: dict[str, torch.Tensor], gradients: dict[str, torch.Tensor]
    ) -> None:
        if not trainer.is_global_zero:
            return
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
