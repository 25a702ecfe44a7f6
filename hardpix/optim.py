"""Optimisers over named parameter groups, and learning-rate schedules per optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from hardpix.config.schema import InnerShare, NonNegative, Positive, Share, ShareBelowOne, Whole, checked
from hardpix.types import ConfigError

__all__ = ["SGD", "Adam", "AdamW", "Constant", "Plateau", "Poly"]


# Optimisers built from a method's *named* parameter groups, so that rates are configured by name.


Groups = dict[str, list[Parameter]]
GROUP_KEYS = ("lr_mult", "weight_decay")


def parameter_groups(
    groups: Groups,
    *,
    lr: float,
    weight_decay: float,
    overrides: Mapping[str, Mapping[str, float]],
    decay_one_dimensional: bool,
) -> list[dict[str, Any]]:
    """Optimiser groups, one or two per name: rate ``lr * lr_mult``; 1-d ones apart if undecayed.

    ``overrides`` maps a group's name to ``lr_mult`` and ``weight_decay``. Frozen parameters are left out.
    """
    for name, keys in overrides.items():
        if name not in groups:
            raise ConfigError(
                f"optimizer.group_options.{name}: this method has the groups {', '.join(sorted(groups))}"
            )
        for key in set(keys) - set(GROUP_KEYS):
            raise ConfigError(f"optimizer.group_options.{name}.{key}: known keys are {', '.join(GROUP_KEYS)}")
    result = []
    for name, parameters in groups.items():
        chosen = overrides.get(name, {})
        rate, decay = lr * chosen.get("lr_mult", 1.0), chosen.get("weight_decay", weight_decay)
        trained = [p for p in parameters if p.requires_grad]
        flat = [] if decay_one_dimensional else [p for p in trained if p.ndim <= 1]
        rest = trained if decay_one_dimensional else [p for p in trained if p.ndim > 1]
        for suffix, members, group_decay in (("", rest, decay), ("_1d", flat, 0.0)):
            if members:
                result.append(
                    {"params": members, "lr": rate, "weight_decay": group_decay, "name": name + suffix}
                )
    return result


class _Factory:
    """Holds the settings; called with a method's named groups it returns the optimiser."""

    optimizer: type[torch.optim.Optimizer]

    def __init__(
        self,
        lr: float,
        weight_decay: float,
        groups: Mapping[str, Mapping[str, float]] | None,
        decay_one_dimensional: bool,
        options: dict[str, Any],
    ) -> None:
        self.lr, self.weight_decay, self.options = lr, weight_decay, options
        self.overrides, self.decay_one_dimensional = groups or {}, decay_one_dimensional

    def __call__(self, groups: Groups) -> torch.optim.Optimizer:
        members = parameter_groups(
            groups,
            lr=self.lr,
            weight_decay=self.weight_decay,
            overrides=self.overrides,
            decay_one_dimensional=self.decay_one_dimensional,
        )
        return self.optimizer(members, lr=self.lr, **self.options)  # type: ignore[call-arg]


class SGD(_Factory):
    """Stochastic gradient descent with momentum."""

    optimizer = torch.optim.SGD

    @checked
    def __init__(
        self,
        *,
        lr: Positive,
        momentum: ShareBelowOne,
        weight_decay: NonNegative,
        nesterov: bool = False,
        group_options: Mapping[str, Mapping[str, NonNegative]] | None = None,
        decay_one_dimensional: bool = True,
    ) -> None:
        options = {"momentum": momentum, "nesterov": nesterov}
        super().__init__(lr, weight_decay, group_options, decay_one_dimensional, options)


class Adam(_Factory):
    """Adam; its weight decay is an L2 term in the gradient."""

    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam

    @checked
    def __init__(
        self,
        *,
        lr: Positive,
        weight_decay: NonNegative,
        betas: tuple[ShareBelowOne, ShareBelowOne],
        eps: NonNegative,
        group_options: Mapping[str, Mapping[str, NonNegative]] | None = None,
        decay_one_dimensional: bool = True,
    ) -> None:
        options = {"betas": tuple(betas), "eps": eps}
        super().__init__(lr, weight_decay, group_options, decay_one_dimensional, options)


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW


# Learning-rate schedules, counted in optimiser steps, each with an optional linear warm-up.
#
# Each is called with ``(optimizer, steps)`` and returns the list of scheduler dicts that Lightning
# expects.


def poly_factor(step: int, *, steps: int, base: float, power: float, min_lr: float) -> float:
    """``lr(t) / lr0`` of ``lr(t) = (lr0 - lr_min) (1 - t/T)^power + lr_min`` (mmsegmentation)."""
    left = 1 - min(step, steps) / max(steps, 1)
    return ((base - min_lr) * left**power + min_lr) / base


def warmup_factor(step: int, *, warmup_steps: int, warmup_ratio: float) -> float:
    """Linear from ``warmup_ratio`` at step 0 to 1 at ``warmup_steps`` (mmsegmentation's linear warm-up)."""
    if step >= warmup_steps:
        return 1.0
    return 1 - (1 - step / warmup_steps) * (1 - warmup_ratio)


def warmup_of(warmup_steps: int, warmup_ratio: float) -> Callable[[int], float]:
    """The warm-up as a function of the step."""
    return partial(warmup_factor, warmup_steps=warmup_steps, warmup_ratio=warmup_ratio)


class _PerStep:
    """A schedule that is a factor per step: the decay times the warm-up."""

    depends_on_length = False  # true: training cannot be made longer afterwards
    min_lr = 0.0

    def __init__(self, warmup: Callable[[int], float]) -> None:
        self.warmup = warmup

    def decay(self, step: int, *, base: float, steps: int) -> float:
        raise TypeError("a schedule says how it decays")

    def __call__(self, optimizer: Optimizer, steps: int) -> list[dict[str, Any]]:
        factors = [self._factor(group["lr"], steps) for group in optimizer.param_groups]
        return [{"scheduler": LambdaLR(optimizer, factors), "interval": "step", "name": "lr"}]

    def _factor(self, base: float, steps: int) -> Callable[[int], float]:
        if base < self.min_lr and base > 0:
            raise ConfigError(
                f"scheduler.min_lr={self.min_lr}: above the rate {base:g} of a parameter group, which would rise; "
                "lower scheduler.min_lr (0 for Adam and AdamW)"
            )
        if base == 0:
            return lambda step: 0.0
        return lambda step: self.decay(step, base=base, steps=steps) * self.warmup(step)


class Poly(_PerStep):
    """Polynomial decay to ``min_lr`` over all optimiser steps; ``min_lr`` holds for every parameter group."""

    depends_on_length = True

    @checked
    def __init__(
        self, *, power: Positive, min_lr: NonNegative, warmup_steps: Whole, warmup_ratio: Share
    ) -> None:
        super().__init__(warmup_of(warmup_steps, warmup_ratio))
        self.power, self.min_lr = power, min_lr

    def decay(self, step: int, *, base: float, steps: int) -> float:
        return poly_factor(step, steps=steps, base=base, power=self.power, min_lr=self.min_lr)


class Constant(_PerStep):
    """The same rate throughout, after the warm-up."""

    @checked
    def __init__(self, *, warmup_steps: Whole, warmup_ratio: Share) -> None:
        super().__init__(warmup_of(warmup_steps, warmup_ratio))

    def decay(self, step: int, *, base: float, steps: int) -> float:
        return 1.0


class _ScalePlateau(ReduceLROnPlateau):
    """Decides when to drop, and keeps the product of all drops in ``scale`` (so it is part of its state)."""

    def __init__(self, optimizer: Optimizer, *, max_drops: int, **options: Any) -> None:
        super().__init__(optimizer, mode="min", **options)
        self.scale, self.drops, self.max_drops = 1.0, 0, max_drops

    def _reduce_lr(self, epoch: int) -> None:
        if self.drops < self.max_drops:
            self.drops += 1
            self.scale *= self.factor


class Plateau:
    """Multiply the rate by ``factor`` when the training loss (epoch mean) stops decreasing.

    Which loss: :meth:`hardpix.methods.Method.watched`, the total unless the method says otherwise.

    LWM divides by 10 "when the loss stops decreasing": factor 0.1, patience 5 epochs, relative threshold
    1e-3, at most 3 drops. The epoch decides about drops, the step about the warm-up.
    """

    depends_on_length = False

    @checked
    def __init__(
        self,
        *,
        factor: InnerShare,
        patience: Whole,
        threshold: NonNegative,
        max_drops: Whole,
        warmup_steps: Whole,
        warmup_ratio: Share,
    ) -> None:
        self.options = {"factor": factor, "patience": patience, "threshold": threshold}
        self.max_drops = max_drops
        self.warmup = warmup_of(warmup_steps, warmup_ratio)

    def __call__(self, optimizer: Optimizer, steps: int) -> list[dict[str, Any]]:
        plateau = _ScalePlateau(optimizer, max_drops=self.max_drops, **self.options)
        rate = LambdaLR(optimizer, lambda step: plateau.scale * self.warmup(step))
        return [
            {"scheduler": rate, "interval": "step", "name": "lr"},
            {"scheduler": plateau, "interval": "epoch", "monitor": "train/watched_epoch", "name": "plateau"},
        ]
