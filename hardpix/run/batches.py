"""What the batches of an epoch are, held against the settings before anything is written."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from hardpix.data import DataModule
from hardpix.methods import Method
from hardpix.models.layers import ONE_VALUE
from hardpix.types import ConfigError


class Plan(NamedTuple):
    """What a full run does. ``remarks``: what to print at its start, a line each."""

    steps: int  # of the optimiser, in all
    share: float  # of an epoch's batches that are trained on
    remarks: tuple[str, ...]


def check_batches(
    cfg: DictConfig, data: DataModule, method: Method, trainer: pl.Trainer, *, synchronised: bool
) -> Plan:
    """Refuse batches from which a run cannot train as it is set.

    ``synchronised``: batch norms share their statistics over the processes, so one image in each can train.
    """
    data.trainer = trainer  # as in training: a process sees its share of the frames
    loader = data.train_dataloader()
    if not synchronised:
        _check_single(cfg, data, method, loader, trainer)
    count, epochs = batches_per_epoch(trainer, loader), cfg.trainer.max_epochs
    remarks = _check_groups(cfg, count, trainer)
    steps = cfg.trainer.max_steps or epochs * math.ceil(len(loader) / trainer.accumulate_grad_batches)
    return Plan(steps, count / len(loader), remarks)


def batches_per_epoch(trainer: pl.Trainer, loader: DataLoader) -> int:
    """As Lightning counts them: ``trainer.limit_train_batches`` is a number of batches, or a share of them."""
    limit = trainer.limit_train_batches
    return min(len(loader), limit) if isinstance(limit, int) else int(len(loader) * limit)


def _check_groups(cfg: DictConfig, count: int, trainer: pl.Trainer) -> tuple[str, ...]:
    """An optimiser step never goes beyond an epoch of ``count`` batches."""
    each, rest = trainer.accumulate_grad_batches, count % trainer.accumulate_grad_batches
    if trainer.fast_dev_run or not rest:  # type: ignore[attr-defined]
        return ()
    number = "1 batch" if count == 1 else f"{count} batches"
    if each > count:
        raise ConfigError(
            f"trainer.accumulate={each}: an epoch has {number}, and a step ends with the epoch; set "
            f"trainer.accumulate={count} or less"
        )
    if cfg.trainer.val_every_steps is not None:
        raise ConfigError(
            f"trainer.val_every_steps={cfg.trainer.val_every_steps}: trainer.accumulate={each} does not divide the "
            f"{number} of an epoch, so validations would fall within steps; set trainer.val_every_steps=null "
            "trainer.val_every_epochs=1"
        )
    return (
        f"trainer.accumulate={each}: the last step of each epoch ({number}) has {rest}, and its loss is their mean",
    )


def _check_single(
    cfg: DictConfig, data: DataModule, method: Method, loader: DataLoader, trainer: pl.Trainer
) -> None:
    """Refuse a batch of one image, where one occurs and the networks cannot train on it."""
    frames, size = len(loader.sampler), loader.batch_size or 1  # type: ignore[arg-type]
    count, steps = batches_per_epoch(trainer, loader), cfg.trainer.max_steps
    last = count == len(loader) and (steps is None or steps * trainer.accumulate_grad_batches >= count)
    left = last and not loader.drop_last and frames % size == 1
    if not (size == 1 or left) or not (problem := single_problem(method, next(data.training_frames(0, 1)))):
        return
    if size == 1:
        raise ConfigError(f"data.batch_size=1: {problem}; set data.batch_size=2 or more")
    share = " in each process" if trainer.world_size > 1 else ""
    raise ConfigError(
        f"data.drop_last=false: {frames} frames{share} leave one over from batches of data.batch_size={size}, and "
        f"{problem}; set data.drop_last=true, or another data.batch_size"
    )


def single_problem(method: Method, batch: Mapping[str, Any]) -> str | None:
    """Why the networks of ``method`` cannot train on ``batch``, one image; None if they can.

    The losses are computed on a copy that has shapes and no values, which takes neither time nor memory. Where that
    ends for another reason (a loss that asks for a value), the networks have done their part by then.
    """
    tensors = [*method.parameters(), *method.buffers()]
    shapes = copy.deepcopy(method, {id(x): x.detach().to("meta") for x in tensors})
    empty: Any = {k: x.to("meta") if isinstance(x, Tensor) else x for k, x in batch.items()}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            shapes.losses(empty)
    except Exception as error:
        # By hardpix's own layers, and by torch's norms.
        refused = (ONE_VALUE, "Expected more than 1 value per channel")
        return ONE_VALUE if str(error).startswith(refused) else None
    return None
