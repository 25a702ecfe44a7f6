"""Short names for factors and their values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hardpix.report.compare import ABSENT, text

TARGET = "_target_"


def titles(factors: Sequence[str]) -> tuple[str, ...]:
    """``method._target_`` reads ``method``, ``method.alpha`` reads ``alpha``, unless two would coincide."""
    whole = [factor.removesuffix(f".{TARGET}") for factor in factors]
    short = [name.rpartition(".")[2] for name in whole]
    return tuple(s if short.count(s) == 1 else w for s, w in zip(short, whole, strict=True))


def labels(factor: str, values: Sequence[dict[str, Any]]) -> list[str]:
    """One label for each row's values of one declared factor; different values read differently.

    ``hardpix.losses.OHEM`` reads ``OHEM``. A part of the configuration reads as its target, followed by the
    keys in which rows of that target differ: ``HardnessLevel (alpha=0.5)``. An absent value reads ``-``.
    """
    targets = [value.get(_target_key(factor)) for value in values]
    names = {target: _short(str(target)) for target in targets if target is not None}
    common = Counter(names.values())
    names = {target: name if common[name] == 1 else str(target) for target, name in names.items()}
    result = []
    for value, target in zip(values, targets, strict=True):
        peers = [other for other, its in zip(values, targets, strict=True) if its == target]
        differing = _parameters(factor, value, peers)
        result.append(" ".join(filter(None, [names.get(target), differing])) or "-")
    return result


def _target_key(factor: str) -> str:
    return factor if factor.endswith(TARGET) else f"{factor}.{TARGET}"


def _parameters(factor: str, value: dict[str, Any], peers: Sequence[dict[str, Any]]) -> str:
    if factor in value and not factor.endswith(TARGET):
        return text(value[factor])
    keys = sorted({key for peer in peers for key in peer} - {_target_key(factor)})
    differing = [key for key in keys if len({text(peer.get(key, ABSENT)) for peer in peers}) > 1]
    told = [f"{key.removeprefix(factor + '.')}={text(value[key])}" for key in differing if key in value]
    return f"({', '.join(told)})" if told else ""


def _short(target: str) -> str:
    return target.rpartition(".")[2]
