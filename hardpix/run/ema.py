"""An exponential moving average of the weights: what is validated, saved and tested."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging


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


def settle(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """The average becomes the weights, where no training that would have ended did that (nothing was left to train)."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EMA) and callback._average_model is not None:
            callback.on_train_end(trainer, module)
