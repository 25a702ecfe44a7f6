"""Optimisers built from a method's *named* parameter groups, so that rates are configured by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import Parameter

from hardpix.ranges import NonNegative, Positive, ShareBelowOne, checked
from hardpix.types import ConfigError

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
        betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        group_options: Mapping[str, Mapping[str, NonNegative]] | None = None,
        decay_one_dimensional: bool = True,
    ) -> None:
        options = {"betas": tuple(betas), "eps": eps}
        super().__init__(lr, weight_decay, group_options, decay_one_dimensional, options)


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW
