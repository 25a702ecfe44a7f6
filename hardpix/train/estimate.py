"""Estimate the cost of a configuration before it is trained: without data, weights or memory.

A training step runs on tensors of the device ``meta``, which have shapes and no values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from hardpix.data import DataModule
from hardpix.data.sampling import choose_labeled
from hardpix.record import WORLD_SIZE, flatten, with_batch
from hardpix.train.build import build
from hardpix.train.cost import Ones, Tally
from hardpix.train.rundir import plain
from hardpix.types import ConfigError


class Estimate(NamedTuple):
    """Floating-point operations are those of a :class:`hardpix.train.cost.Tally`."""

    parameters: int  # that train
    forward: float  # operations of a training step's forward passes, an image; frozen networks and teachers included
    training: float  # operations of all steps, forward and backward; NaN where their number is not known


def estimate(cfg: DictConfig, frames: Mapping[str, Mapping[str, int]]) -> Estimate:
    """Count the first training step of ``cfg``, and multiply.

    ``frames``: ``{"nyuv2": {"train": 795}}``, for lengths in epochs, as no data set is opened.
    """
    with torch.device("meta"):
        data, method = build(cfg, training=False)
    semi = "unlabeled" in method.requires
    images = data.batch_size + semi * data.unlabeled_batch_size
    tally = Tally()
    with torch.random.fork_rng(devices=[]), Ones(), tally:
        losses = method.train().losses(_batch(cfg, data))
        forward = tally.flops
        torch.stack(list(losses.values())).sum().backward()
    if tally.problem:
        raise ConfigError(f"operations cannot be counted: {tally.problem}")
    world = with_batch(flatten(plain(cfg))).get(WORLD_SIZE, 1)
    steps = _steps(cfg, data, frames.get(data.info.name, {}), world, semi=semi)
    parameters = sum(p.numel() for p in method.parameters() if p.requires_grad)
    return Estimate(parameters, forward / images, tally.flops * world * cfg.trainer.accumulate * steps)


def _batch(cfg: DictConfig, data: DataModule) -> Any:
    """A batch of the configured size, with all that a method may ask for."""
    size, crop = data.batch_size, tuple(cfg.data.train_transform.crop)
    return {
        "image": torch.empty(size, 3, *crop, device="meta"),
        "label": torch.empty(size, *crop, dtype=torch.int64, device="meta"),
        "name": [""] * size,
        "depth": torch.empty(size, *crop, device="meta"),
        "depth_valid": torch.empty(size, *crop, dtype=torch.bool, device="meta"),
        "unlabeled": torch.empty(data.unlabeled_batch_size, 3, *crop, device="meta"),
    }


def _steps(cfg: DictConfig, data: DataModule, frames: Mapping[str, int], world: int, *, semi: bool) -> float:
    """Steps of the optimiser; NaN where a length in epochs depends on frames that are not known."""
    if cfg.trainer.max_steps is not None:
        return cfg.trainer.max_steps
    count = sum(frames.get(part, math.nan) for part in data.source.parts(cfg.data.train_split))
    share, size = cfg.data.labeled, data.unlabeled_batch_size if semi else data.batch_size
    if math.isnan(count) or isinstance(share, str) or cfg.data.repeat_rare is not None:
        return math.nan
    if share is not None:
        labeled = len(choose_labeled(share, cfg.data.labeled_seed, [""] * int(count)))
        count = count - labeled if semi else labeled
    batches = count / world / size
    batches = math.floor(batches) if cfg.data.drop_last else math.ceil(batches)
    return cfg.trainer.max_epochs * math.ceil(batches / cfg.trainer.accumulate)
