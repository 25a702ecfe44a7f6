"""A run that is a trial of a search: its validations are reported, and it ends where the pruner says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from hardpix.run.config import nearest
from hardpix.run.sweep.state import told
from hardpix.types import ConfigError, Pruned


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
                f"at step {trainer.global_step} of {total}, {metric} {told(metric, score)} is behind the other trials"
            )

    def _refuse(self, text: str) -> NoReturn:
        self.refusal = text
        raise ConfigError(text)
