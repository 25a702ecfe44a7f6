"""Compose, validate and explain configurations.

``validate`` reads the constructors' signatures from source text, so a misspelt key is reported in
milliseconds and without importing torch: the constructor's signature is the schema.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from hardpix import record, secrets
from hardpix.config.catalog import conf_dir, missing_choice
from hardpix.config.published import pattern_problem
from hardpix.config.rows import row_called
from hardpix.config.schema import (
    TIMM_BACKBONE,
    NonNegative,
    Seed,
    Signature,
    Whole,
    find_signature,
    name_problem,
    range_problem,
    type_problem,
)
from hardpix.config.trust import check_trust, files_judged, find_target, find_targets, named_trust
from hardpix.types import ConfigError

# What the builder passes itself, by the first part of the dotted path: never a configuration key.
SUPPLIED: dict[str, frozenset[str]] = {
    "backbone": frozenset({"in_channels"}),
    "head": frozenset({"specs", "outputs", "align_corners", "num_classes"}),
    "model": frozenset({"build_backbone", "build_head", "outputs", "in_channels"}),
    "loss": frozenset({"ignore_index", "num_classes", "class_counts"}),
    "method": frozenset({"parts"}),
    "optimizer": frozenset({"groups"}),
    "scheduler": frozenset({"optimizer", "steps"}),
}

# Groups of plain values, and the function whose keywords they are.
PLAIN: dict[str, tuple[str, frozenset[str]]] = {
    "trainer": ("hardpix.train.build.build_trainer", frozenset({"run_dir", "callbacks", "loggers"})),
    "callbacks": ("hardpix.train.callbacks.build_callbacks", frozenset({"run_dir", "monitor"})),
    "logger": (
        "hardpix.train.loggers.build_loggers",
        frozenset({"run_dir", "identity", "config", "resume_step"}),
    ),
}

GROUPS = (
    "data", "backbone", "head", "model", "loss", "method", "inference",
    "optimizer", "scheduler", "trainer", "callbacks", "logger",
)  # fmt: skip


@dataclass
class Root:
    """The keys of a training configuration besides the groups. Types only: ``conf/train.yaml`` has the values."""

    aux_weight: NonNegative
    seed: Seed
    runs_dir: str
    study: str
    run: str | None
    resume: Any
    init_from: str | None
    freeze: list[str]
    parent: str | None
    parent_weights: str
    parent_config: dict[str, Any] | None
    test_weights: str
    panels: Whole
    notes: dict[str, Any]
    trusted: list[str]
    reproduces: list[str]


CHOICES = {
    "test_weights": ("last", "best"),
    "parent_weights": ("last", "best"),
    "resume": ("auto", True, False),
}


def compose(
    overrides: Sequence[str] = (), *, root: str = "train", config_dir: Path | None = None, hydra: bool = False
) -> DictConfig:
    """Compose a root configuration the way the command line does; ``ConfigError`` if it cannot be.

    ``config_dir``: a folder of further configuration files. ``hydra``: with Hydra's own settings.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    further = [] if config_dir is None else searchpath([config_dir])
    running, current = GlobalHydra.instance(), GlobalHydra.instance().hydra
    running.clear()  # of the command line, which may be composing a study
    try:
        with files_judged(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = hydra_compose(root, overrides=[*overrides, *further], return_hydra_config=hydra)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ~group=[1]: a bare ValueError
        raise ConfigError(explain(error, overrides)) from error
    finally:
        running.hydra = current
    check_command_line_trust(cfg, overrides)
    return cfg


def check_command_line_trust(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """A file cannot make itself trusted: the command line has to say so."""
    check_trust(cfg, named_trust(overrides), "a file of the configuration")


def compose_group(group: str, choice: str) -> DictConfig:
    """One group file on its own, for example ``inference=slide`` to put over a saved configuration."""
    cfg = compose([f"{group}={choice}"])
    return OmegaConf.create({group: cfg[group]})


def validate(cfg: DictConfig) -> None:
    """Raise ``ConfigError`` with every problem of a composed configuration, each by its dotted path."""
    problems = list(_unresolved(cfg))
    with contextlib.suppress(OmegaConfBaseException):  # reported already
        problems = [*_root_problems(cfg), *problems]
    if not problems:
        trusted = tuple(cfg.get("trusted") or ())
        for group in GROUPS:
            if group not in PLAIN and "_target_" not in cfg[group]:
                problems.append(f"{group}: has no _target_; choose a file of conf/{group}/")
            for path, node in find_targets(cfg[group], group):
                problems += _target_problems(path, node, trusted)
        for group, (function, supplied) in PLAIN.items():
            problems += _key_problems(group, cfg[group], find_signature(function), supplied)
        problems += secrets.problems(record.flatten(resolved(cfg)))
    if problems:
        raise ConfigError("\n".join(problems))
    if cfg.get("parent") is not None and cfg.get("parent_config") is not None:
        try:
            check_trust(cfg.parent_config, trusted)
            validate(cfg.parent_config)
        except ConfigError as error:
            raise ConfigError(f"parent_config: {error}") from None


def nearest(word: str, candidates: Sequence[str]) -> str:
    """A hint such as ``; did you mean 'alpha'?``, or the candidates when nothing is close."""
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(candidates))}" if candidates else ""


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """What Hydra says, without its advice to append new keys, and with the nearest known key."""
    if isinstance(error, OverrideParseException):
        return _unparsed(error.override)
    if isinstance(error, InterpolationResolutionError):
        reason = _interpolation_text(error)
        keys = [word.partition("=")[0] for word in arguments if re.search(r"\$\{", word)]
        return reason if error.full_key or len(keys) != 1 else f"{keys[0]}: {reason}"
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    unwanted = ("Set the environment variable", "To append to your", "Config search path", "provider=")
    text = " ".join(line for line in lines if not line.startswith(unwanted)).replace("\t", "")
    if absent := missing_choice(text, conf_dir()):
        if absent[0] == "experiment" and (row := row_called(absent[1])):
            return f"experiment={absent[1]}: is the published row {row.full_name} and no file: {row.about}"
        return f"{absent[0]}={absent[1]}: there is no such file{nearest(*absent[1:])}"
    missing = re.match(r"Could not override '([\w.]+)'", text)
    if missing is None:
        return text
    path = missing.group(1)
    unknown, siblings = _unknown(path, arguments)
    if unknown is None:
        return f"{path}: entries that it does not have yet are added one by one, +{path}.KEY=VALUE"
    return f"{path}: no such key{nearest(unknown, siblings)}"


def _unparsed(override: str) -> str:
    """An argument outside Hydra's grammar: mostly a path with an accent, a bracket or a sign, which it wants quoted."""
    key, equals, value = override.partition("=")
    if not (key and equals):
        return f"{override}: not a setting; settings are group=choice or key.sub=value"
    if value[:1] in ("[", "{", "'", '"'):
        return f"{override}: not readable as a value; do all brackets and quotes close?"
    if "${" in value:  # which a shell would read within double quotes
        return f"{override}: an interpolation within another must be quoted, for the shell too: '{key}=\"{value}\"'"
    home = "; write $HOME for ~" if value.startswith("~") else ""
    quoted = value.replace("'", "\\'")
    return (
        f"{override}: a value with such letters or signs must be quoted, for the shell too: "
        f"\"{key}='{quoted}'\"{home}"
    )


def _unknown(path: str, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The first part of ``path`` that is no key, and the keys there, as the command line chooses the groups."""
    chosen = [a for a in arguments if re.fullmatch(r"\w+=[\w/]+", a) and a.split("=")[0] in GROUPS]
    try:
        cfg = compose(chosen)
    except ConfigError:
        return path, []
    node: Any = cfg
    for part in path.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            return part, [str(key) for key in node] if isinstance(node, DictConfig) else []
        node = node[part]
    return None, []


def _root_problems(cfg: DictConfig) -> Iterator[str]:
    scalar = [f.name for f in fields(Root)]
    known = [*GROUPS, *scalar]
    for key in map(str, cfg):
        if key not in known:
            yield f"{key}: no such key at the top level{nearest(key, known)}"
    for key, words in CHOICES.items():
        if cfg.get(key, words[0]) not in words:
            yield f"{key}={cfg.get(key)}: must be {' or '.join(map(str, words)).lower()}"
    if isinstance(cfg.get("reproduces"), ListConfig):
        for pattern in cfg.reproduces:
            if problem := pattern_problem(str(pattern), conf_dir() / "table"):
                yield f"reproduces: {problem}"
    for group in GROUPS:
        if not isinstance(cfg.get(group), DictConfig):
            yield f"{group}: missing; choose a file of conf/{group}/, for example {group}=NAME"
    scalars = [k for k in scalar if k in cfg and not OmegaConf.is_missing(cfg, k)]
    try:
        OmegaConf.merge(OmegaConf.structured(Root), {key: cfg[key] for key in scalars})
    except OmegaConfBaseException:
        yield from (problem for key in scalars for problem in _scalar_problem(cfg, key))
    else:
        types = find_signature(f"{__name__}.{Root.__name__}").types
        for key in scalars:
            if wrong := value_problem(cfg, key, key, types[key], typed=False):
                yield wrong
    if "://" in str(cfg.get("init_from")):
        yield f"init_from={cfg.init_from}: a URL is not read; fetch the file and give its path"


def _scalar_problem(cfg: DictConfig, key: str) -> Iterator[str]:
    try:
        OmegaConf.merge(OmegaConf.structured(Root), {key: cfg[key]})
    except OmegaConfBaseException as error:
        yield f"{key}={cfg[key]}: {str(error).splitlines()[0]}{text_hint(cfg, key, key)}"


def _unresolved(cfg: DictConfig) -> Iterator[str]:
    try:
        for key in OmegaConf.missing_keys(cfg):
            yield f"{key}: needs a value (it is ???)"
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        yield _interpolation_text(error)


def _interpolation_text(error: OmegaConfBaseException) -> str:
    reason = str(error).splitlines()[0].rpartition("resolving interpolation: ")[2].strip('"')
    return f"{error.full_key}: {reason}" if error.full_key else reason


def _target_problems(path: str, node: DictConfig, trusted: tuple[str, ...]) -> list[str]:
    try:
        signature = find_target(str(node["_target_"]), trusted)
    except ConfigError as error:
        return [f"{path}._target_: {error}"]
    group = path.partition(".")[0]
    supplied = SUPPLIED.get(group, frozenset()) if path == group else frozenset()
    problems = _key_problems(path, node, signature, supplied)
    name = node.get("name")  # a missing one is reported already
    if (
        node["_target_"] == TIMM_BACKBONE
        and not trusted
        and name is not None
        and (problem := name_problem(name))
    ):
        problems.append(f"{path}.name={name}: {problem}")
    return problems


def _key_problems(path: str, node: DictConfig, signature: Signature, supplied: frozenset[str]) -> list[str]:
    given = [str(k) for k in node if k not in ("_target_", "_partial_")]
    problems = []
    for key in given:
        if key in supplied:
            problems.append(f"{path}.{key}: set by the program, not a configuration key")
        elif key not in signature.names:
            hint = nearest(key, sorted(signature.names - supplied))
            problems.append(f"{path}.{key}: no such key{hint}")
        elif key in signature.types:
            problem = value_problem(node, key, f"{path}.{key}", signature.types[key])
            problems += [problem] if problem else []
    missing = signature.required - supplied - set(given)
    problems += [f"{path}.{key}: needs a value" for key in sorted(missing)]
    return problems


# Studies: files of ``conf/`` that a command names.


def named_file(kind: str, name: str, extra: Path | None, further: Sequence[str] = ()) -> Path:
    """``conf/KIND/NAME.yaml``, or a file of that name below the folder ``extra``, which comes first.

    Raises ``ConfigError`` with the nearest name; ``further`` are words that might have been meant as well.
    """
    folders = [conf_dir() / kind, *([] if extra is None else [extra / kind])]
    for folder in reversed(folders):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted(p.relative_to(f).with_suffix("").as_posix() for f in folders for p in f.rglob("*.yaml"))
    raise ConfigError(f"{name}: no such file in {folders[-1]}{nearest(name, [*known, *further])}")


# A value of the configuration, held against its annotation: type, range, what float32 holds, texts of
# numbers.


# Of float32: from the first on a number is infinite, below the second it is 0.
FLOAT32_MAX, FLOAT32_MIN = 3.4028235677973366e38, 1.401298464324817e-45
MAX_INT = 2**63 - 1
NUMBER = r"[-+]?(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?inf|nan"
WORD = "true|false|null"


def value_problem(
    node: DictConfig, key: str, path: str, annotation: str, *, typed: bool = True
) -> str | None:
    """What is wrong with the value of ``key``, one sentence that begins with ``path``; None if nothing is.

    Not ``typed``: the plain types of the annotation are judged elsewhere.
    """
    value = resolved(node[key])
    wanted = (type_problem(value, annotation) if typed else None) or range_problem(value, annotation)
    if wanted := wanted or _text_for_number(value, annotation):
        return f"{path}={value}: must be {wanted}{text_hint(node, key, path)}"
    why = _number_problem(value, annotation)
    return f"{path}={value}: {why}" if why else None


def text_hint(node: DictConfig, key: str, path: str) -> str:
    """What to type where the value of ``key`` is, or holds, a text that reads as a number; else its interpolation."""
    origin = ""
    raw = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index, call-overload]
    for place, text, source in _texts(path, resolved(node[key]), raw):
        if not re.fullmatch(rf"({NUMBER}|{WORD})", text, re.IGNORECASE):
            origin = origin or (f" (from {source})" if "${" in str(source) else "")
            continue
        if "${" not in str(source):
            return f"; {text!r} is a text: write {place}{text} without quotes"
        if "oc.decode:" in source:
            return f"; {text!r} is a text: take out the quotes that {source} gives"
        decoded = f"${{oc.decode:{source}}}"
        written = f"'{place}\"{decoded}\"'" if place else f'"{decoded}"'
        return f"; {text!r} is a text, as every environment variable is: write {written}"
    return origin


def resolved(value: Any) -> Any:
    """A value with its interpolations resolved, lists and mappings as Python's own."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _texts(path: str, value: Any, raw: Any) -> Iterator[tuple[str, str, Any]]:
    """(``path=``, text, as it was written) of all texts in a value; an element of a list has no path of its own."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(f"{path}.{key}", inner, raw[key] if isinstance(raw, Mapping) else raw)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            for _, text, source in _texts(path, inner, raw[index] if isinstance(raw, list) else raw):
                yield "", text, source
    elif isinstance(value, str):
        yield f"{path}=", value, raw


def _text_for_number(value: Any, annotation: str) -> str | None:
    """What is wanted besides a text, where a text reads as just that: a share where a share or a file is named."""
    kinds = [kind.strip() for kind in annotation.split("|")]
    others = " | ".join(kind for kind in kinds if kind != "str")
    if (
        not isinstance(value, str)
        or "str" not in kinds
        or not others
        or type_problem(object(), others) is None
    ):
        return None
    if re.fullmatch("true|false", value, re.IGNORECASE):
        read: Any = True
    elif re.fullmatch(NUMBER, value, re.IGNORECASE):
        read = int(value) if re.fullmatch(r"[-+]?\d+", value) else float(value)
    else:
        return None
    return None if type_problem(read, others) or range_problem(read, others) else type_problem(value, others)


def _number_problem(value: Any, annotation: str) -> str | None:
    """Why a value within its range cannot be computed with. Objects of their own in it are judged by themselves."""
    if isinstance(value, Mapping):
        value = [] if "_target_" in value else list(value.values())
    if isinstance(value, list):
        return next((why for item in value if (why := _number_problem(item, annotation))), None)
    if isinstance(value, int):
        return f"must be at most {MAX_INT} in size" if abs(value) > MAX_INT else None
    if not isinstance(value, float) or (math.isinf(value) and "inf]" in annotation):
        return None
    if not math.isfinite(value):
        return "must be a finite number"
    if abs(value) >= FLOAT32_MAX:
        return f"is infinite in float32, in which networks train; must be below {FLOAT32_MAX:.3g}"
    if 0 < abs(value) < FLOAT32_MIN:
        return f"is 0 in float32, in which networks train; must be 0, or at least {FLOAT32_MIN:.3g}"
    return None


# Many configurations, as of a study.

SCALARS = {f.name for f in fields(Root)} - set(GROUPS)


def searchpath(folders: Sequence[str | Path]) -> list[str]:
    """The override by which further folders of configuration files are found."""
    places = ["'file://{}'".format(str(Path(folder).absolute()).replace("'", "\\'")) for folder in folders]
    return [f"hydra.searchpath=[{','.join(places)}]"] if places else []


Composer = Callable[[Sequence[str]], DictConfig]


def composer(folders: Sequence[str | Path] = ()) -> Composer:
    """A function from overrides to a configuration that reads each choice of files once.

    Hydra reads and merges files for a tenth of a second. Values are applied to a copy of the result, as Hydra does;
    what fails there is composed by Hydra, which raises. ``folders``: further configuration files.
    """
    bases: dict[tuple[str, ...], DictConfig] = {}
    parser = OverridesParser.create()
    further = searchpath(folders)

    def composed(overrides: Sequence[str]) -> DictConfig:
        files = tuple(o for o in overrides if not _is_value(o))
        if files not in bases:
            bases[files] = compose([*files, *further])
        cfg = copy.deepcopy(bases[files])
        try:
            for value in parser.parse_overrides([o for o in overrides if _is_value(o)]):
                _apply(value, cfg)
        except (HydraException, OmegaConfBaseException, LookupError):
            cfg = compose([*overrides, *further])
        return cfg

    return composed


def _is_value(override: str) -> bool:
    """Whether an override sets a key, rather than choosing a file: names of groups have no dot."""
    key = override.lstrip("+~").partition("=")[0]
    return key in SCALARS or ("." in key and not set("/@") & set(key) and not key.startswith("hydra."))


def _apply(override: Override, cfg: DictConfig) -> None:
    """Set, add or delete one value; raises where Hydra would."""
    key, value = override.key_or_group, override.value()
    there = OmegaConf.select(cfg, key, throw_on_missing=False)
    if override.is_delete():
        if there is None or value not in (None, there):
            raise LookupError(key)
        above, _, name = key.rpartition(".")
        with open_dict(cfg):
            del (OmegaConf.select(cfg, above) if above else cfg)[name]
    elif override.is_add() and there is not None and not isinstance(value, dict | list):
        raise LookupError(key)
    else:
        new = override.is_add() or override.is_force_add()
        OmegaConf.update(cfg, key, value, merge=True, force_add=new)
