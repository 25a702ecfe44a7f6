"""The contract of a method: what is the loss, what is the prediction.

Everything that all methods share lives here: steps, logging, metrics, optimisers. A method never calls a logger,
reads the configuration or names a dataset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from hardpix.metrics import SegmentationMetrics
from hardpix.models import Head, Segmenter
from hardpix.ops.resize import resize
from hardpix.types import Batch, DataError, DatasetInfo, SegOutput


class Parts(NamedTuple):
    """The swappable parts that every method is assembled from."""

    info: DatasetInfo
    build_model: Callable[..., Segmenter]  # (outputs={"label": C}, in_channels=3)
    build_head: Callable[..., Head]  # (specs, outputs, align_corners=), the same head configuration
    loss: nn.Module  # (logits [B, C, H, W], label [B, H, W]) -> scalar, from conf/loss
    aux_loss: nn.Module  # plain cross-entropy with the same normaliser: auxiliary heads are never mined
    aux_weight: float
    infer: Callable[..., Tensor]  # (forward, image, classes=) -> logits: whole image or sliding window
    build_optimizer: Callable[[dict[str, list[Parameter]]], Optimizer]
    build_scheduler: Callable[[Optimizer, int], list[dict[str, Any]]]


class Method(pl.LightningModule):
    """Subclasses set ``self.model`` (a segmenter) and implement ``losses``; ``maps`` and ``forward`` if needed."""

    requires: ClassVar[frozenset[str]] = frozenset({"image", "label"})
    takes_loss: ClassVar[bool] = True  # False: built on plain cross-entropy, any other conf/loss is refused
    other_losses: ClassVar[str] = "method=baseline"  # what that refusal advises
    depends_on_length: ClassVar[bool] = (
        False  # True: the loss knows the last epoch, the run cannot be made longer
    )
    model: Segmenter

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts, self.info = parts, parts.info
        self.loss = parts.loss
        self._resumed_rng: dict[str, Any] | None = None
        self._epoch_loss, self._epoch_steps = torch.zeros(()), 0
        sizes = parts.info.num_classes, parts.info.ignore_index
        self.metrics = nn.ModuleDict({split: SegmentationMetrics(*sizes) for split in ("val", "test")})
        # Of a method that predicts more than classes: update(extra [B, x, H, W], batch), compute() -> named scores.
        self.extra_metrics = nn.ModuleDict()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalars; their sum is minimised."""
        raise TypeError(f"{type(self).__name__} does not say what its losses are")

    def maps(self, batch: Batch) -> dict[str, Tensor]:
        """Maps ``[B, H, W]`` worth looking at, as far as the batch's keys allow; in prediction only ``image``."""
        return {}

    def dense(self, image: Tensor) -> Tensor:
        """``[B, 3, H, W]`` (RGB alone: depth is privileged) -> class logits and what ``extra_metrics`` score.

        ``[B, C + x, H, W]``, the logits first; x is 0 unless a method predicts more.
        """
        return self.enlarge(self.model(image).outputs["label"], image.shape[-2:])

    def forward(self, image: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> class logits ``[B, C, H, W]``."""
        return self.dense(image)[:, : self.info.num_classes]

    def enlarge(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Bilinear to label size with the segmenter's own ``align_corners``, in float32.

        In half precision classes would tie; mmsegmentation converts before it resizes, too.
        """
        return resize(x.float(), (size[-2], size[-1]), align_corners=self.model.align_corners)

    def aux_losses(self, out: SegOutput, label: Tensor) -> dict[str, Tensor]:
        """Plain cross-entropy of every auxiliary head, times its weight (0.4 in mmsegmentation)."""
        return {
            f"aux_{name}": self.parts.aux_weight * self.parts.aux_loss(self.enlarge(x, label.shape), label)
            for name, x in out.aux.items()
        }

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """Named groups for the optimiser's configuration: one per child, the segmenter split into its parts."""
        groups = {name: list(child.parameters()) for name, child in self.model.named_children()}
        rest = {
            n: list(c.parameters())
            for n, c in self.named_children()
            if n not in ("model", "metrics", "extra_metrics")
        }
        return {name: members for name, members in (groups | rest).items() if members}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        total = torch.stack([x.float() for x in losses.values()]).sum()
        self._epoch_loss = self._epoch_loss.to(total.device) + total.detach()
        self._epoch_steps += 1
        last_of_step = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        if (self.global_step + 1) % self._log_every == 0 and last_of_step:  # the steps Lightning writes
            self._log_losses({"loss": total} | losses)
        return total

    def _log_losses(self, losses: dict[str, Tensor]) -> None:
        """To loggers and displays directly: ``self.log`` copies its bookkeeping at every call, 0.3 ms a value."""
        values = {f"train/{name}": x.item() for name, x in losses.items()}
        self.trainer.callback_metrics["train/loss"] = losses["loss"].detach()
        self.trainer.progress_bar_metrics["train/loss"] = values["train/loss"]
        for logger in self.loggers:
            logger.log_metrics(values | {"epoch": self.current_epoch}, self.global_step)
            logger.save()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        checkpoint["rng"] = {"cpu": torch.get_rng_state(), "cuda": cuda}
        checkpoint["epoch_loss"] = [self._epoch_loss, self._epoch_steps]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed_rng = checkpoint.get("rng")
        self._epoch_loss, self._epoch_steps = checkpoint.get("epoch_loss", [torch.zeros(()), 0])

    def on_train_start(self) -> None:
        """A resumed run drops out what the uninterrupted one would have."""
        self._log_every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._resumed_rng is not None:
            torch.set_rng_state(self._resumed_rng["cpu"].cpu())
            if len(self._resumed_rng["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([state.cpu() for state in self._resumed_rng["cuda"]])

    def on_train_epoch_start(self) -> None:
        """Not called when a run is resumed in mid-epoch: the sum so far then came with the checkpoint."""
        self._epoch_loss, self._epoch_steps = torch.zeros(()), 0

    def on_train_epoch_end(self) -> None:
        if self._epoch_steps:
            self.log("train/loss_epoch", self._epoch_loss / self._epoch_steps, sync_dist=True)
        self._epoch_loss, self._epoch_steps = torch.zeros(()), 0

    def predict_logits(self, image: Tensor) -> Tensor:
        """Class logits at the image's size by the configured inference (whole image, windows, scales)."""
        return self.parts.infer(self, image)

    def predict_dense(self, image: Tensor) -> Tensor:
        """:meth:`dense` by the configured inference, at the image's size."""
        return self.parts.infer(self.dense, image, classes=self.info.num_classes)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._score(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._score(batch, "test")

    def _score(self, batch: Batch, split: str) -> None:
        dense = self.enlarge(self.predict_dense(batch["image"]), batch["label"].shape)
        logits, extra = dense.tensor_split([self.info.num_classes], 1)
        metric: Any = self.metrics[split]
        metric.update(logits.argmax(1), batch["label"])
        if split in self.extra_metrics:
            more: Any = self.extra_metrics[split]
            more.update(extra, batch)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        metric: Any = self.metrics[split]
        scores = metric.compute()
        self.confusion = scores["confusion"].cpu()  # over all processes; the run writes it to disk
        if scores["invalid"] > 0:
            raise DataError(
                f"{int(scores['invalid'])} label pixels of the {split} split of {self.info.name} are neither one of "
                f"its {self.info.num_classes} classes nor {self.info.ignore_index}; mend the labels"
            )
        names = dict.fromkeys(("miou", "pixel_acc", "mean_acc", self.info.main_metric))
        self.log_dict({f"{split}/{name}": scores[name].float() for name in names})
        if split in self.extra_metrics:
            more: Any = self.extra_metrics[split]
            self.log_dict({f"{split}/{name}": score.float() for name, score in more.compute().items()})
            more.reset()
        self.log("mIoU", scores["miou"].float(), prog_bar=True, logger=False)
        metric.reset()

    def configure_optimizers(self) -> Any:
        optimizer = self.parts.build_optimizer(self.parameter_groups())
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], self.parts.build_scheduler(optimizer, steps)
