"""Studies: a file of ``conf/studies/`` or the command line as a list of jobs, each a list of overrides."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hardpix.config import safe_files
from hardpix.config.catalog import conf_dir
from hardpix.config.command_line import override, quoted
from hardpix.config.compose import explain, named_file, nearest
from hardpix.config.published import is_published, papers, tables
from hardpix.config.rows import in_table, rows, rows_of
from hardpix.config.trust import own_word
from hardpix.sweep.space import SETTINGS, Search, read_search, replaced
from hardpix.sweep.stages import Stage, read_stages
from hardpix.types import ConfigError

KEYS = (
    "study",
    "overrides",
    "axes",
    "for",
    "rows",
    "seeds",
    "stages",
    "on_error",
    "retries",
    "search",
    *SETTINGS,
)
OWN = ("run", "resume")  # set by the sweep
STAGED = ("study", "overrides", "seeds", "stages", "on_error", "retries")  # keys of a study with stages

OnError = Literal["continue", "retry", "stop"]
Axes = dict[str, list[str]]  # key -> its overrides: {"method.alpha": ["method.alpha=0.1", ...]}


@dataclass(frozen=True)
class Study:
    """Jobs in the order in which they run, each a list of overrides without sweeps.

    With ``stages`` each job is what one chain of runs is given; with ``search`` there are none: trials are asked for.
    """

    name: str
    jobs: tuple[tuple[str, ...], ...]
    on_error: OnError = "continue"
    retries: int = 1  # of a job that fails, with on_error=retry
    search: Search | None = None
    stages: tuple[Stage, ...] = ()


def read_study(arguments: Sequence[str], extra: Path | None = None) -> Study:
    """``NAME`` and overrides, or overrides alone; commas and ranges in them are axes, as with Hydra's ``-m``.

    ``extra``: a folder of further configuration files, ``studies/`` among them. A setting on the command line that the
    file has as an axis replaces that axis wherever it stands; any other holds for all jobs.
    """
    named = bool(arguments) and "=" not in arguments[0] and arguments[0][:1] not in ("+", "~")
    if named and is_table(arguments[0]):
        content = _table(arguments[0])
    else:
        content = _content(*_read(arguments[0], extra)) if named else _Content("")
    words = arguments[1:] if named else arguments
    if content.stages:
        jobs = tuple(_chains(content, words))
        return Study(arguments[0], jobs, content.on_error, content.retries, stages=content.stages)
    given: Axes = {}
    for text in words:
        key, choices = _choices(text)
        if key in OWN:
            raise ConfigError(f"{text}: a sweep names and resumes its runs itself")
        if key in content.fixed:
            raise ConfigError(
                f"{text}: the rows of {arguments[0]} set {key}; type the command of one row, with this"
            )
        given[key] = choices
    if not named and not given:
        raise ConfigError(
            "a sweep needs the name of a file of conf/studies/, or overrides: loss=cross_entropy,ohem"
        )
    name = content.name if "study" not in given else ""
    if name:
        given["study"] = [f"study={quoted(name)}"]
    search = None if content.search is None else replaced(content.search, given)
    jobs = tuple(_expand(content, given)) if search is None else ()
    return Study(name, jobs, content.on_error, content.retries, search)


@dataclass(frozen=True)
class _Content:
    name: str
    common: tuple[str, ...] = ()
    axes: Axes = field(default_factory=dict)
    own: dict[str, Axes] = field(default_factory=dict)  # by the choice that they exist for
    rows: tuple[tuple[str, ...], ...] = ()
    seeds: tuple[str, ...] = ()
    on_error: OnError = "continue"
    retries: int = 1
    search: Search | None = None
    stages: tuple[Stage, ...] = ()
    fixed: frozenset[str] = frozenset()  # keys that make the rows of a published table what they are


def is_table(name: str) -> bool:
    """Whether a study is a published table, PAPER/TABLE."""
    return "/" in name and is_published(name) and not (conf_dir() / "studies" / f"{name}.yaml").is_file()


def _table(name: str) -> _Content:
    """The trainings behind a published table's rows, also of those that score or compare the runs of other rows."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for row in rows_of(name):
        needed = [rows(row.paper)[other] for other in filter(None, (row.evaluate, *row.ssim))] or [row]
        for one in needed:
            if one.trains and not one.chain:
                axes = [[f"{key}={value}" for value in values] for key, values in one.axes.items()]
                words = in_table(one, name) if one in rows_of(name) else [*one.fixed, one.reproduces]
                fixed = [word for word in words if word and key_of(word) not in one.axes]
                found[one.name] = [merged(fixed, cell) for cell in itertools.product(*axes)]
    if not found:
        raise ConfigError(f"{name}: no row of this table is filled by one training; see hardpix table {name}")
    cells = tuple(itertools.chain.from_iterable(found.values()))
    keys = {key_of(text) for cell in cells for text in cell}
    of_rows = frozenset(key for key in keys if key.partition(".")[0] not in ("trainer", "data"))
    return _Content(name.replace("/", "-"), rows=cells, seeds=("seed=0",), fixed=of_rows)


def _chains(content: _Content, words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """What each chain of runs is given: the words of the command line, one value of each, seeds outermost."""
    given: Axes = {text.partition("=")[0]: _stage_choices(text) for text in words}
    if content.seeds and "seed" not in given:
        given["seed"] = list(content.seeds)
    first = [given["seed"]] if len(given.get("seed", ())) > 1 else []
    rest = [choices for key, choices in given.items() if not (first and key == "seed")]
    for cell in itertools.product(*first, *rest):
        yield tuple(sorted(cell, key=lambda text: list(given).index(text.partition("=")[0])))


def _stage_choices(text: str) -> list[str]:
    """The overrides that ``STAGE:key=1,2`` or ``key=1,2`` stands for; other words as they are."""
    stage, colon, rest = text.partition(":")
    if not (colon and stage.isidentifier()):
        stage, colon, rest = "", "", text
    if "=" not in rest and rest[:1] != "~":
        return [text]  # refused with the stages' names
    return [f"{stage}{colon}{choice}" for choice in _choices(rest)[1]]


def _expand(content: _Content, given: Axes) -> Iterator[tuple[str, ...]]:
    """Seeds outermost, so that every setting has a first result early; then the product of axes, then the rows."""
    axes, own = content.axes, content.own
    known = {"seed", *axes, *(key for some in own.values() for key in some)}
    rest = {key: choices for key, choices in given.items() if key not in known}
    seeds = given.get("seed") or list(content.seeds)
    cells: list[tuple[str, ...]] = []
    if axes or own or not content.rows:
        for choice in _product({k: given.get(k, v) for k, v in axes.items()}):
            for more in _product(rest):
                cells += _with_own(merged(content.common, choice, more), own, given)
    for row in content.rows:
        cells += [merged(content.common, row, more) for more in _product(rest)]
    for chosen in [[seed] for seed in seeds] or [[]]:
        for cell in cells:
            yield merged(cell, chosen)


def _with_own(cell: tuple[str, ...], own: Mapping[str, Axes], given: Axes) -> Iterator[tuple[str, ...]]:
    """A cell for every combination of the axes that exist for its choices only."""
    further: Axes = {}
    for condition, axes in own.items():
        if condition in cell:
            further |= {key: given.get(key, choices) for key, choices in axes.items()}
    return (merged(cell, more) for more in _product(further))


def _product(axes: Mapping[str, list[str]]) -> Iterator[tuple[str, ...]]:
    return itertools.product(*axes.values())


def merged(*parts: Iterable[str]) -> tuple[str, ...]:
    """All overrides, of those with the same key the last one: Hydra refuses a group that is chosen twice."""
    found: dict[str, str] = {}
    for text in itertools.chain(*parts):
        found[key_of(text)] = text
    return tuple(found.values())


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _choices(text: str) -> tuple[str, list[str]]:
    """The key of an override and the overrides that it stands for; more than one for ``a=1,2`` or ``a=range(1,4)``."""
    try:
        parsed = OverridesParser.create().parse_overrides([text])[0]
        if not parsed.is_sweep_override():
            return key_of(text), [text]
        if not parsed.is_discrete_sweep():
            raise ConfigError(f"{text}: a sweep needs values one by one, as a=1,2,3 or a=range(1,4)")
        key = parsed.get_key_element()
        return key_of(text), [f"{key}={value}" for value in parsed.sweep_string_iterator()]
    except OverrideParseException as error:
        raise ConfigError(explain(error, [text])) from None
    except HydraException as error:  # glob(*): it would need the group's files
        raise ConfigError(f"{text}: {error}; name the choices, as a=1,2,3") from None


def _read(name: str, extra: Path | None) -> tuple[Path, str, dict[str, Any]]:
    try:
        path = named_file("studies", name, extra, further=["status"])
    except ConfigError:
        _hint_at_published(name)
        raise
    try:
        content = OmegaConf.to_container(
            OmegaConf.create(safe_files.read_yaml_text(path))
        )  # its reader takes 1e-3 for a number
    except (yaml.YAMLError, ValueError, RecursionError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a mapping with some of {', '.join(KEYS)}")
    for key in map(str, content):
        if key not in KEYS:
            raise ConfigError(f"{path}: {key}: no such key{nearest(key, KEYS)}")
    return path, name, content  # type: ignore[return-value]


def _hint_at_published(name: str) -> None:
    """Raise with what ``name`` is, or is nearly, among the published papers, tables and rows, if it is of a paper."""
    paper, _, rest = name.partition("/")
    if paper in papers():
        if rest in rows(paper):
            raise ConfigError(
                f"{name}: a published row, one run; hardpix list rows {name} shows what to train it with"
            )
        tables(name)  # raises with the nearest
        raise ConfigError(
            f"{name}: a paper, not a study; name one of its tables: {', '.join(papers()[paper].tables)}"
        )


def _content(path: Path, name: str, content: dict[str, Any]) -> _Content:
    """A study's file, its values as overrides; raises for whatever is not of its form."""
    lists = content.get("rows") or []
    own = content.get("for") or {}
    if not isinstance(lists, list) or not isinstance(own, dict):
        raise ConfigError(
            f"{path}: rows must be a list of lists of settings, and for a mapping of choices to axes"
        )
    on_error, retries = content.get("on_error", "continue"), content.get("retries", 1)
    if on_error not in get_args(OnError):
        raise ConfigError(f"{path}: on_error={on_error}: must be one of {', '.join(get_args(OnError))}")
    if type(retries) is not int or retries < 1:
        raise ConfigError(f"{path}: retries={retries}: must be a whole number from 1")
    seeds = content.get("seeds", [])
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise ConfigError(f"{path}: seeds={seeds}: must be a list of whole numbers")
    common = _settings(path, "overrides", content.get("overrides") or [])
    chances = tuple(f"seed={seed}" for seed in seeds)
    stages: tuple[Stage, ...] = ()
    if "stages" in content:
        if wrong := sorted(set(content) - set(STAGED)):
            raise ConfigError(f"{path}: {wrong[0]}: a study with stages has {', '.join(STAGED)} only")
        stages = read_stages(path, content["stages"], common)
    search = read_search(path, content, common=common, seeds=chances, check_key=_check_own)
    found = _Content(
        name=str(content.get("study") or name.replace("/", "-")),
        common=common,
        axes=_axes(path, "axes", content.get("axes") or {}),
        own={str(k): _axes(path, f"for.{k}", axes) for k, axes in own.items()} if search is None else {},
        rows=tuple(_settings(path, f"rows.{index}", row) for index, row in enumerate(lists)),
        seeds=chances,
        on_error=on_error,
        retries=retries,
        search=search,
        stages=stages,
    )
    possible = {*found.common, *(text for choices in found.axes.values() for text in choices)}
    for condition in found.own:
        if condition not in possible:
            raise ConfigError(
                f"{path}: for.{condition}: neither overrides nor axes have that choice"
                f"{nearest(condition, sorted(possible))}"
            )
    return found


def _axes(path: Path, where: str, node: Any) -> Axes:
    """Lists of values, or texts in Hydra's grammar: ``range(1,4)``."""
    if not isinstance(node, dict):
        raise ConfigError(f"{path}: {where} must be a mapping of keys to lists of values")
    axes: Axes = {}
    for key, values in node.items():
        if isinstance(values, str):
            axes[str(key)] = _choices(f"{key}={values}")[1]
        elif isinstance(values, list) and values:
            axes[str(key)] = [override(key, value) for value in values]
        else:
            raise ConfigError(
                f"{path}: {where}.{key}: must be a list of values, or a text such as range(1,4)"
            )
        _check_own(path, where, str(key))
    return axes


def _settings(path: Path, where: str, node: Any) -> tuple[str, ...]:
    """Settings that a file gives as a list of overrides or as a mapping."""
    if isinstance(node, dict):
        texts = [override(key, value) for key, value in node.items()]
    elif isinstance(node, list) and all(isinstance(item, str) for item in node):
        texts = list(node)
    else:
        raise ConfigError(f"{path}: {where}: must be a list of settings (key=value) or a mapping")
    for text in texts:
        key, choices = _choices(text)
        _check_own(path, where, key)
        if len(choices) > 1:
            raise ConfigError(f"{path}: {where}: {text} has several values; that is an axis")
    return tuple(texts)


def _check_own(path: Path, where: str, key: str) -> None:
    if why := own_word(key):
        raise ConfigError(f"{path}: {where}: {key}: {why}")
    if key.lstrip("+~") in (*OWN, "study"):
        raise ConfigError(f"{path}: {where}: {key}: a sweep names and resumes its runs itself")
