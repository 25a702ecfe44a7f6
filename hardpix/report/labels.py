"""Short names for factors and their values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hardpix.report.compare import ABSENT, covers, text

TARGET = "_target_"
LONG = re.compile(r"\d*\.\d{6,}(?:e[+-]?\d+)?")  # what a search draws: 0.14804560990495674


def titles(factors: Sequence[str]) -> tuple[str, ...]:
    """``method._target_`` reads ``method``, ``method.alpha`` reads ``alpha``, unless two would coincide."""
    whole = [factor.removesuffix(f".{TARGET}") for factor in factors]
    short = [name.rpartition(".")[2] for name in whole]
    return tuple(s if short.count(s) == 1 else w for s, w in zip(short, whole, strict=True))


def brief(names: Sequence[str]) -> list[str]:
    """Labels for the eye: long numbers with four digits, as long as different labels read differently."""
    short = [LONG.sub(lambda found: f"{float(found[0]):.4g}", name) for name in names]
    return short if len(set(short)) == len(set(names)) else list(names)


def labels(factor: str, values: Sequence[dict[str, Any]], declared: Sequence[str] = ()) -> list[str]:
    """One label for each row's values of one declared factor; different values read differently.

    What others of the ``declared`` factors say in a column of their own is not said again.

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
        differing = _parameters(factor, value, peers, declared)
        result.append(" ".join(filter(None, [names.get(target), differing])) or "-")
    return result


def _target_key(factor: str) -> str:
    return factor if factor.endswith(TARGET) else f"{factor}.{TARGET}"


def _parameters(
    factor: str, value: dict[str, Any], peers: Sequence[dict[str, Any]], declared: Sequence[str]
) -> str:
    if factor in value and not factor.endswith(TARGET):
        return text(value[factor])
    told_apart = [other for other in declared if other != factor and covers([factor], other)]
    keys = {key for peer in peers for key in peer} - {_target_key(factor)}
    keys = {key for key in keys if not covers(told_apart, key)}
    differing = [key for key in sorted(keys) if len({text(peer.get(key, ABSENT)) for peer in peers}) > 1]
    told = [f"{key.removeprefix(factor + '.')}={text(value[key])}" for key in differing if key in value]
    return f"({', '.join(told)})" if told else ""


def _short(target: str) -> str:
    return target.rpartition(".")[2]
