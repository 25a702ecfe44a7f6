"""Training steps of all methods, and the parts that every method is assembled from."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from hardpix.models import Head, Segmenter
from hardpix.types import Batch, DatasetInfo


class TrainingSteps(pl.LightningModule):
    """Minimises the sum of ``losses``."""

    averages: ClassVar[bool] = False  # True: predicts with its own average of the weights, another is refused
    info: DatasetInfo
    model: Segmenter
    length_setting: ClassVar[str] = ""  # of a method whose loss knows the last epoch

    def __init__(self) -> None:
        super().__init__()
        self._resumed: list[dict[str, Any]] = []  # what each process has kept in the checkpoint
        self._epoch_loss, self._epoch_steps = torch.zeros(2), 0  # sums of the total and of what is watched
        self.starts: dict[str, float] = {}  # biases of regressed outputs before the first step
        self._void_batches = torch.zeros((), dtype=torch.int64)  # without a labelled pixel, in this run
        self.last_losses: dict[str, Tensor] = {}  # of the newest batch
        self._kept: tuple[list[tuple[Tensor, Tensor]], Tensor, int] = ([], self._epoch_loss, 0)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalars; their sum is minimised."""
        raise TypeError(f"{type(self).__name__} does not say what its losses are")

    def watched(self, losses: dict[str, Tensor]) -> Tensor:
        """What a plateau schedule watches of a batch, by its mean over the epoch; here the sum of ``losses``."""
        return torch.stack([x.detach().float() for x in losses.values()]).sum()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        total = torch.stack([x.float() for x in losses.values()]).sum()
        self.last_losses = {name: x.detach() for name, x in ({"loss": total} | losses).items()}
        both = torch.stack([total.detach(), self.watched(losses).detach().float()])
        self._epoch_loss = self._epoch_loss.to(total.device) + both
        self._epoch_steps += 1
        void = (batch["label"] == self.info.ignore_index).all()
        self._void_batches = self._void_batches.to(void.device) + void
        number, last_of_step = self._step_of(batch_idx)
        if (self.global_step + 1) % self._log_every == 0 and last_of_step:  # the steps Lightning writes
            self._log_losses({"loss": total} | losses)
        # Lightning divides by this, also where the epoch has fewer batches left.
        each = self.trainer.accumulate_grad_batches
        return total if number == each else total * (each / number)

    def _step_of(self, batch_idx: int) -> tuple[int, bool]:
        """How many batches the optimiser step of one has, and whether it is the last of them."""
        each = self.trainer.accumulate_grad_batches
        begin = batch_idx - batch_idx % each
        number = int(min(each, self.trainer.num_training_batches - begin))
        return number, batch_idx + 1 == begin + number

    def keep_for_undo(self) -> None:
        """To be called before the first batch of a step that ``undo_step`` may have to leave out."""
        self._kept = [(b, b.clone()) for b in self.buffers()], self._epoch_loss, self._epoch_steps

    def undo_step(self) -> None:
        """Statistics of norms, banks of features and the sums of the epoch as before the step's batches."""
        kept, self._epoch_loss, self._epoch_steps = self._kept
        for buffer, before in kept:
            buffer.copy_(before)

    def _log_losses(self, losses: dict[str, Tensor]) -> None:
        """To loggers and displays directly: ``self.log`` copies its bookkeeping at every call, 0.3 ms a value."""
        losses = losses | {"void_batches": self._void_batches}
        values = {f"train/{name}": x.item() for name, x in losses.items()}
        self.trainer.callback_metrics["train/loss"] = losses["loss"].detach()
        self.trainer.progress_bar_metrics["train/loss"] = values["train/loss"]
        for logger in self.loggers:
            logger.log_metrics(values | {"epoch": self.current_epoch}, self.global_step)
            logger.save()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = {
            "rng": random_state(self.device),
            "epoch_loss": [self._epoch_loss.cpu(), self._epoch_steps],
            "void_batches": self._void_batches.cpu(),
        }
        checkpoint["processes"] = gathered(own)
        checkpoint["starts"] = self.starts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Earlier versions kept what the first process had.
        self._resumed = checkpoint.get("processes") or [checkpoint]
        self.starts = checkpoint.get("starts", {})

    def output_starts(self) -> dict[str, float]:
        """The bias of each regressed output before the first step, for the record; none here."""
        return {}

    def on_train_start(self) -> None:
        """A resumed run goes on as the uninterrupted one would have, in each of its processes."""
        self._log_every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not self._resumed:
            self.starts = self.output_starts()
            return
        own, self._resumed = self._resumed[min(self.trainer.global_rank, len(self._resumed) - 1)], []
        total, self._epoch_steps = own.get("epoch_loss", [torch.zeros(2), 0])
        self._epoch_loss = total.expand(2)  # older checkpoints have the total alone
        self._void_batches = own.get("void_batches", torch.zeros((), dtype=torch.int64))
        if "rng" in own:
            set_random_state(own["rng"], self.device)

    def on_train_epoch_start(self) -> None:
        """Not called when a run is resumed in mid-epoch: the sum so far then came with the checkpoint."""
        self._epoch_loss, self._epoch_steps = torch.zeros(2), 0

    def on_train_epoch_end(self) -> None:
        if self._epoch_steps:
            total, watched = self._epoch_loss / self._epoch_steps
            self.log("train/loss_epoch", total, sync_dist=True)
            self.log("train/watched_epoch", watched, sync_dist=True)
        self._epoch_loss, self._epoch_steps = torch.zeros(2), 0


def epochs_of(trainer: pl.Trainer) -> int:
    """Epochs that a fit will have seen at its end, whether its length was given in steps or in epochs; at least 1."""
    per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return max(1, math.ceil(trainer.estimated_stepping_batches / per_epoch))


# The swappable parts that every method is assembled from.


class Regression(NamedTuple):
    """An output of the segmenter that estimates a number at each pixel, and where its bias starts.

    At 0 such an output begins far from its target, and the large gradients of its loss spoil the shared features.
    """

    start: float | None  # None: the mean of ``target`` over the training frames
    keys: frozenset[str]  # what ``target`` reads of a frame
    target: Callable[
        [Mapping[str, Any]], Tensor
    ]  # a frame's tensors as stored -> the target at its valid pixels, ``[N]``
    identity: str  # of the target: what it depends on besides the frames


class Parts(NamedTuple):
    """What a method is given; factories, so that it may build several networks of one kind."""

    info: DatasetInfo
    build_model: Callable[..., Segmenter]  # (outputs={"label": C}, in_channels=3)
    build_head: Callable[..., Head]  # (specs, outputs, align_corners=), the same head configuration
    loss: nn.Module  # (logits [B, C, H, W], label [B, H, W]) -> scalar, from conf/loss
    aux_loss: nn.Module  # plain cross-entropy with the same normaliser: auxiliary heads are never mined
    aux_weight: float
    infer: Callable[..., Tensor]  # (forward, image, groups=) -> logits: whole image, windows, scales
    build_optimizer: Callable[[dict[str, list[Parameter]]], Optimizer]
    build_scheduler: Callable[[Optimizer, int], list[dict[str, Any]]]
    parent: TrainingSteps | None = None  # the method of the parent run, with its networks


# The random number generators of a process, and what each of several processes keeps of its own in a
# checkpoint.


def random_state(device: torch.device) -> dict[str, Any]:
    """Of Python, NumPy and torch, and of ``device`` where that is a GPU; plain data and tensors."""
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002 - the generator others share
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Earlier versions kept the states of torch alone, of all GPUs in a list."""
    torch.set_rng_state(state["cpu"].cpu())
    cuda = state["cuda"]
    if isinstance(cuda, list):
        index = device.index or 0
        cuda = cuda[index] if index < len(cuda) else None
    if device.type == "cuda" and cuda is not None:
        torch.cuda.set_rng_state(cuda.cpu(), device)
    if "python" in state:
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002


def gathered(own: Any) -> list[Any]:
    """What every process gives, by rank. All of them must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found
