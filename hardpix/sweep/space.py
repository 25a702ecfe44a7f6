"""What a search may choose: the ``search:`` of a study's file and the conditional part of it under ``for:``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hardpix.config.command_line import override
from hardpix.config.compose import nearest
from hardpix.types import ConfigError

KINDS = ("loguniform", "uniform", "integers", "choice")
SETTINGS = ("trials", "sampler", "pruner", "metric", "seed")  # keys of a study that has a search

# Short words for Optuna's classes; any other public one is called by its own name.
SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler", "grid": "BruteForceSampler"}
PRUNERS = {"median": "MedianPruner", "hyperband": "HyperbandPruner", "none": "NopPruner"}


@dataclass(frozen=True)
class Dimension:
    """One key of a search. ``values``: lower and upper end, both included, or the values to choose from."""

    key: str
    kind: str
    values: tuple[Any, ...]
    texts: tuple[str, ...]  # the overrides of ``values``
    condition: str | None = None  # the override that it exists for

    @property
    def name(self) -> str:
        """Differs also where two choices have a key of the same name."""
        return self.key if self.condition is None else f"{self.condition}/{self.key}"

    def cells(self) -> tuple[str, ...]:
        """The overrides of every value, of a dimension with finitely many."""
        if self.kind == "integers":
            return tuple(override(self.key, value) for value in range(self.values[0], self.values[1] + 1))
        return self.texts


@dataclass(frozen=True)
class Search:
    """A study whose trials are asked of a sampler one by one."""

    dimensions: tuple[Dimension, ...]
    common: tuple[str, ...]  # overrides of every trial
    seeds: tuple[str, ...]  # a trial's score is the mean over them; empty: one run
    trials: int = 40
    sampler: str = "tpe"
    pruner: str = "median"
    metric: str | None = None  # None: the data set's main metric on the validation split
    seed: int = 0  # of the sampler

    def chosen(self, pick: Callable[[Dimension], str]) -> tuple[str, ...]:
        """The overrides of a trial; ``pick`` is asked for every dimension that exists for what was picked before."""
        picked: list[str] = []
        for dimension in self.dimensions:
            if dimension.condition is None or dimension.condition in (*self.common, *picked):
                picked.append(pick(dimension))
        return tuple(picked)

    def probes(self) -> list[tuple[str, ...]]:
        """Choices in which each value of a list, and both ends of each range, occur."""
        first = {dimension.name: dimension.texts[0] for dimension in self.dimensions}
        found = [self.chosen(lambda d: first[d.name])]
        for one in self.dimensions:
            opened = {
                other.name: one.condition for other in self.dimensions if other.texts.count(one.condition)
            }
            for text in one.texts:
                picks = first | opened | {one.name: text}
                found.append(self.chosen(lambda d, picks=picks: picks[d.name]))  # type: ignore[misc]
        return list(dict.fromkeys(found))

    def grid(self) -> list[tuple[str, ...]]:
        """Every choice there is, the last dimension moving fastest."""
        return list(self._below({}))

    def _below(self, picked: dict[str, str]) -> Iterator[tuple[str, ...]]:
        held = (*self.common, *picked.values())
        for dimension in self.dimensions:
            if dimension.name in picked or dimension.condition not in (None, *held):
                continue
            for text in dimension.cells():
                yield from self._below(picked | {dimension.name: text})
            return
        yield tuple(picked.values())


def read_search(
    path: Path,
    content: Mapping[str, Any],
    *,
    common: tuple[str, ...],
    seeds: tuple[str, ...],
    check_key: Callable[[Path, str, str], None],
) -> Search | None:
    """The search of a study's file; None where it has none. ``check_key`` refuses keys that are not to be set."""
    if "search" not in content:
        for key in SETTINGS:
            if key in content:
                raise ConfigError(f"{path}: {key}: only a study with search: has it")
        return None
    for key in ("axes", "rows"):
        if content.get(key):
            raise ConfigError(
                f"{path}: {key} and search exclude each other; search.KEY={{choice: [...]}} is an axis"
            )
    node, own = content["search"], content.get("for") or {}
    if not isinstance(node, dict) or not node or not isinstance(own, dict):
        raise ConfigError(
            f"{path}: search must be a mapping of keys to what is searched, such as {{uniform: [0, 1]}}"
        )
    found = [_dimension(path, "search", key, value) for key, value in node.items()]
    possible = {
        *common,
        *(text for dimension in found for text in dimension.texts if dimension.kind == "choice"),
    }
    for condition, inner in own.items():
        if condition not in possible:
            raise ConfigError(
                f"{path}: for.{condition}: neither overrides nor search have that choice"
                f"{nearest(str(condition), sorted(possible))}"
            )
        if not isinstance(inner, dict):
            raise ConfigError(f"{path}: for.{condition}: must be a mapping of keys to what is searched")
        found += [
            replace(_dimension(path, f"for.{condition}", key, value), condition=str(condition))
            for key, value in inner.items()
        ]
    for dimension in found:
        check_key(path, "search", dimension.key)
        if dimension.key == "seed":
            raise ConfigError(f"{path}: search.seed: chance is not searched; seeds: [0, 1] averages over it")
    search = Search(
        dimensions=tuple(found),
        common=common,
        seeds=seeds,
        trials=_whole(path, content, "trials", 40, 1),
        sampler=_named(path, content, "sampler", SAMPLERS, "tpe"),
        pruner=_named(path, content, "pruner", PRUNERS, "median"),
        metric=_metric(path, content.get("metric")),
        seed=_whole(path, content, "seed", 0, 0),
    )
    if search.sampler == "grid":
        endless = [d.key for d in found if d.kind in ("uniform", "loguniform")]
        if endless:
            raise ConfigError(f"{path}: sampler=grid: {', '.join(endless)}: a grid needs choice or integers")
    return search


def replaced(search: Search, given: Mapping[str, list[str]]) -> Search:
    """With the settings of a command line: those of a searched key are all that it may choose."""
    dimensions = tuple(
        replace(d, kind="choice", values=_values(given[d.key]), texts=tuple(given[d.key]))
        if d.key in given
        else d
        for d in search.dimensions
    )
    searched = {d.key for d in search.dimensions}
    rest = {key: texts for key, texts in given.items() if key not in searched and key != "seed"}
    for texts in rest.values():
        if len(texts) > 1:
            raise ConfigError(f"{texts[0]}, {texts[1]}: of several values a search needs in its file: choice")
    common = {text.lstrip("+~").partition("=")[0]: text for text in search.common}
    common |= {key: texts[0] for key, texts in rest.items()}
    seeds = tuple(given.get("seed", search.seeds))
    return replace(search, dimensions=dimensions, common=tuple(common.values()), seeds=seeds)


def _values(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(text.partition("=")[2] for text in texts)


def _dimension(path: Path, where: str, key: Any, node: Any) -> Dimension:
    place = f"{path}: {where}.{key}"
    if not isinstance(node, dict) or len(node) != 1:
        raise ConfigError(f"{place}: must be one of {', '.join(f'{{{kind}: [...]}}' for kind in KINDS)}")
    kind, values = next(iter(node.items()))
    if kind not in KINDS:
        raise ConfigError(f"{place}: {kind}: no such kind{nearest(str(kind), KINDS)}")
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{place}.{kind}: must be a list")
    if kind != "choice":
        whole = kind == "integers"
        if len(values) != 2 or not all(type(v) is int or (type(v) is float and not whole) for v in values):
            raise ConfigError(
                f"{place}.{kind}={values}: must be two {'whole ' if whole else ''}numbers, low and high"
            )
        if not values[0] < values[1] or (kind == "loguniform" and values[0] <= 0):
            positive = ", and above 0" if kind == "loguniform" else ""
            raise ConfigError(f"{place}.{kind}={values}: the first must be below the second{positive}")
        values = values if whole else [float(v) for v in values]
    texts = tuple(override(key, value) for value in values)
    if len(set(texts)) < len(texts):
        raise ConfigError(f"{place}.{kind}={values}: holds a value twice")
    return Dimension(str(key), str(kind), tuple(values), texts)


def _whole(path: Path, content: Mapping[str, Any], key: str, default: int, least: int) -> int:
    value = content.get(key, default)
    if type(value) is not int or value < least:
        raise ConfigError(f"{path}: {key}={value}: must be a whole number from {least}")
    return value


def _named(path: Path, content: Mapping[str, Any], key: str, known: Mapping[str, str], default: str) -> str:
    """A short word, or the name of a class of Optuna's: ``CmaEsSampler``."""
    value = str(content.get(key, default))
    if value not in known and not (value.endswith(key.capitalize()) and value.isidentifier()):
        raise ConfigError(
            f"{path}: {key}={value}: must be one of {', '.join(known)}, or a class of optuna.{key}s"
        )
    return value


def _metric(path: Path, value: Any) -> str | None:
    if value is None:
        return None
    if not str(value).startswith("val/"):
        raise ConfigError(f"{path}: metric={value}: must be one of the validation split, such as val/miou: "
                          "what is chosen by the test split cannot be scored on it")  # fmt: skip
    return str(value)
