"""Shell completion: candidates for a command line, read from source text and ``conf/`` without importing torch.

Commands and options are read from source text (``ast``), choices from the files of ``conf/``.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hardpix.config import catalog
from hardpix.config.catalog import conf_dir

HYDRA = (
    "--help",
    "--hydra-help",
    "--multirun",
    "-m",
    "--cfg",
    "--config-dir",
    "--info",
    "--resolve",
    "--package",
)
RUN_KEYS = ("parent", "init_from")
REPLACEABLE = ("data", "inference", "trainer")  # where a trained run is used again
NO_SPACE = ("=", ".", "/", ",")  # something follows at once
SHOWN_RUNS = 50


class Place(NamedTuple):
    """Where a command is: a module and a function in it."""

    module: str
    function: str


class Option(NamedTuple):
    names: tuple[str, ...]  # () for a positional argument
    dest: str
    choices: tuple[str, ...]
    takes_value: bool


def candidates(words: Sequence[str], current: str) -> list[str]:
    """Whole words that may stand for ``current`` after ``words`` (without the program's name), sorted.

    Empty where only the shell's own file names make sense.
    """
    return sorted({word for word in _possible(list(words), current) if word.startswith(current)})


def _possible(words: list[str], current: str) -> Iterator[str]:
    commands = _commands()
    if not words:
        yield from (*commands, "--help", "--version")
        return
    if words[0] not in commands:
        return
    command, place = words[0], commands[words[0]]
    branches = _branches(place)
    if branches and len(words) == 1:
        yield from (*branches, "--help")
        return
    options = _options(command, branches.get(words[1], place) if branches else place)
    before = next((o for o in options if words[-1] in o.names), None)
    if len(words) > 1 and before is not None and before.takes_value:
        yield from before.choices
        yield from _runs(current) if before.dest in ("depth_from",) else ()
    elif current.startswith("-"):
        yield from HYDRA if command == "train" else (*(n for o in options for n in o.names), "--help")
    else:
        yield from _positional(command, words[2:] if branches else words[1:], options, current)


def _positional(command: str, words: list[str], options: list[Option], current: str) -> Iterator[str]:
    wanted = {o.dest: o.choices for o in options if not o.names}
    placed = [word for word in words if not word.startswith("-")]
    for dest, choices in wanted.items():
        if choices and dest == list(wanted)[min(len(placed), len(wanted) - 1)]:
            yield from choices
    if command == "list":
        yield from _listed(placed)
    if command == "sweep" and not placed:
        yield from ("status", *(entry.name for entry in catalog.entries("studies")))
    if command == "completion" and not placed:
        yield from ("install", "bash", "fish", "zsh")
    if "runs" in wanted or ("run" in wanted and not placed):
        yield from _runs(current)
    if command in ("train", "sweep") or "overrides" in wanted:
        again = REPLACEABLE if {"run", "runs"} & wanted.keys() else None  # None: every group
        yield from _overrides(words, current, ("data",) if command == "data" else again)


def _listed(placed: list[str]) -> Iterator[str]:
    known = catalog.groups()
    if not placed:
        yield from map(catalog.called, known)
    elif placed[0] == "rows":
        yield from (entry.name for group in ("rows", "table") for entry in catalog.entries(group))
    elif placed[0] in {*known, *map(catalog.called, known)}:
        yield from (entry.name for entry in catalog.entries(catalog.group_called(placed[0], known)))


def _overrides(words: list[str], current: str, only: tuple[str, ...] | None) -> Iterator[str]:
    """Keys, or what may stand behind ``=``: of a list by commas its last one."""
    match = re.match(r"(\w+:)?[+~]*", current)  # of a stage; added, taken away
    sign = match[0] if match else ""
    key, equals, value = current[len(sign) :].partition("=")
    files = chosen(words)
    groups = [group for group in files if only is None or group in only]
    if equals:
        head = current[: len(current) - len(value.rpartition(",")[2])]
        yield from (head + choice for choice in _values(key, words, groups, value.rpartition(",")[2]))
        return
    top, *path = key.split(".")
    if not path:
        yield from (f"{sign}{group}=" for group in groups)
        yield from (f"{sign}{group}." for group in groups if group != "experiment")
        if only is None:
            yield from (f"{sign}{name}=" for name in _root_keys())
    elif top in groups:
        found = list(_below(keys(top, words), [top, *path]))
        if not any(f"{sign}{name}".startswith(current) for name in found) and f"{top}=" not in " ".join(
            words
        ):
            for entry in catalog.entries(top):  # a choice that may still be written
                found += _below(keys(top, [*words, f"{top}={entry.name}"]), [top, *path])
        yield from (f"{sign}{name}" for name in found)


def _below(node: object, path: list[str]) -> Iterator[str]:
    """The keys next to the last one of ``path``, which begins with the group that ``node`` is."""
    for part in path[1:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    for name, inner in (node if isinstance(node, dict) else {}).items():
        if name != "_target_":
            yield f"{'.'.join(path[:-1])}.{name}{'.' if isinstance(inner, dict) and inner else '='}"


def _values(key: str, words: list[str], groups: list[str], value: str) -> Iterator[str]:
    if key in groups:
        yield from (entry.name for entry in catalog.entries(key))
    elif key in RUN_KEYS:
        yield from _runs(value)
    elif key in _root_keys():
        yield from _switch(_root_keys()[key])
    elif key.split(".")[0] in groups:
        node: object = {key.split(".")[0]: keys(key.split(".")[0], words)}
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        yield from _switch(node)


def _switch(value: object) -> tuple[str, ...]:
    return ("false", "true") if value in ("true", "false") else ()


def _root_keys() -> Outline:
    return outline((catalog.conf_dir() / "train.yaml").read_text(encoding="utf-8"))


def _runs(current: str) -> Iterator[str]:
    """Folders below the one that is being typed: a run whole, others with a slash; at first the runs of ``runs/``."""
    folder = current[: current.rfind("/") + 1]
    for path in _folders(folder):
        yield path if os.path.isfile(os.path.join(path, "run.json")) else f"{path}/"
    if not current:
        found = [run for study in _folders("runs/") for run in _folders(f"{study}/")]
        yield from [run for run in found if os.path.isfile(os.path.join(run, "run.json"))][-SHOWN_RUNS:]


def _folders(below: str) -> list[str]:
    """``below`` ends with a slash, or is empty; ``~`` is kept as it was typed."""
    try:
        with os.scandir(os.path.expanduser(below) or ".") as entries:
            return sorted(below + e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return []


def _commands() -> dict[str, Place]:
    """What stands behind each command: what its function in ``hardpix.cli`` imports first of hardpix's."""
    tree = _tree("hardpix.cli")
    places: dict[str, Place] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            imported = [i for i in ast.walk(node) if isinstance(i, ast.ImportFrom)]
            ours = [i for i in imported if (i.module or "").startswith("hardpix.")]
            places[node.name] = Place(ours[0].module or "", ours[0].names[0].name) if ours else Place("", "")
    named = _dictionary(tree, "COMMANDS")
    return {name: places.get(getattr(value, "id", ""), Place("", "")) for name, value in named.items()}


def _branches(place: Place) -> dict[str, Place]:
    """What adds the options of each sub-command of a command that has some (its own place where they share one)."""
    tree = _tree(place.module)
    adding = {name: value.elts[0] for name, value in _dictionary(tree, "COMMANDS").items()
              if isinstance(value, ast.Tuple)}  # fmt: skip
    return {name: _place(tree, place.module, node) for name, node in adding.items()} or dict.fromkeys(
        _dictionary(tree, "KINDS"), place
    )


def _place(tree: ast.Module, module: str, node: ast.expr) -> Place:
    """The function that ``name`` or ``module.name`` means in a file."""
    imported = {
        alias.asname or alias.name: (i.module or "", alias.name)
        for i in tree.body
        if isinstance(i, ast.ImportFrom)
        for alias in i.names
    }
    if isinstance(node, ast.Attribute):
        return Place(".".join(imported.get(getattr(node.value, "id", ""), ("", ""))), node.attr)
    name = getattr(node, "id", "")
    return Place(*imported.get(name, (module, name)))


def _dictionary(tree: ast.Module, name: str) -> dict[str, ast.expr]:
    """A dictionary at a module's top level with text as keys."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if getattr(targets[0], "id", "") == name and isinstance(value, ast.Dict):
            return {_text(key): one for key, one in zip(value.keys, value.values, strict=True)}
    return {}


def _options(command: str, place: Place) -> list[Option]:
    """What a function and those of its file that it calls give to ``add_argument``.

    A command of several kinds (``KINDS``) has all options of its file and of those next to it whose names begin alike.
    """
    tree = _tree(place.module)
    nodes: Sequence[ast.AST]
    if _dictionary(tree, "KINDS"):
        path = _path(place.module)
        nodes = [
            _tree(f"{place.module.rpartition('.')[0]}.{file.stem}")
            for file in path.parent.glob(f"{command}*.py")
        ]
    else:
        nodes = _reached(tree, place.function)
    found: dict[tuple[str, ...] | str, Option] = {}
    for outer in nodes:
        for node in ast.walk(outer):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                option = _option(node)
                found.setdefault(option.names or option.dest, option)
    return list(found.values())


def _reached(tree: ast.Module, function: str) -> list[ast.FunctionDef]:
    """The function of a file and those of the same file that it names, and so on; in the order of the file."""
    known = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    waiting, reached = [function], set[str]()
    while waiting:
        name = waiting.pop()
        if name in known and name not in reached:
            reached.add(name)
            waiting += [node.id for node in ast.walk(known[name]) if isinstance(node, ast.Name)]
    return [node for name, node in known.items() if name in reached]


def _option(call: ast.Call) -> Option:
    given = [_text(argument) for argument in call.args]
    keywords = {k.arg: k.value for k in call.keywords}
    names = tuple(name for name in given if name.startswith("-"))
    dest = given[0].lstrip("-").replace("-", "_") if given else ""
    listed = keywords.get("choices")
    choices = tuple(map(_text, listed.elts)) if isinstance(listed, ast.Tuple | ast.List) else ()
    switch = _text(keywords.get("action")).startswith("store_")
    return Option(names, dest, choices, bool(names) and not switch)


def _text(node: ast.AST | None) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ""


def _path(module: str) -> Path:
    """The file of a module or package of hardpix's."""
    base = catalog.PACKAGE.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if (base / "__init__.py").is_file() else base.with_suffix(".py")


def _tree(module: str) -> ast.Module:
    path = _path(module)
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])


# Keys of configuration files, read line by line without a YAML parser.
#
# Only what this project's files use is understood: block mappings of plain keys, and ``defaults`` lists.


KEY = re.compile(r"( *)([\w./@-]+):(?: +(.*))?$")
DEFAULT = re.compile(r" *- +(?:override +)?(/?[\w/]*)(?:@[\w.]+)?(?:: *([\w/.-]+))?$")

Outline = dict[str, Any]  # a key's own outline, or its value as text


def outline(text: str) -> Outline:
    """Nested keys of a file; ``defaults`` and ``hydra`` left out."""
    root: Outline = {}
    levels: list[tuple[int, Outline]] = [(-1, root)]
    for line in text.splitlines():
        found = KEY.match(line.split(" #")[0].rstrip())
        if found is None:
            continue
        indent, key, value = len(found[1]), found[2], found[3] or ""
        while levels[-1][0] >= indent:
            levels.pop()
        inner: Outline = {}
        levels[-1][1][key] = value if value else inner
        levels.append((indent, inner))
    for key in ("defaults", "hydra"):
        root.pop(key, None)
    return root


def defaults(text: str) -> list[tuple[str, str]]:
    """(group, choice) of each entry, the group as it is written and empty where there is none: ``("/head", "psp")``."""
    found, inside = [], False
    for line in text.splitlines():
        bare = line.split(" #")[0].rstrip()
        if not bare.startswith((" ", "-")):
            inside = bare == "defaults:"
        elif inside and (entry := DEFAULT.match(bare)):
            group, choice = entry[1], entry[2]
            found.append((group, choice) if choice else ("", group))
    return [entry for entry in found if entry[1] != "_self_"]


def chosen(words: Sequence[str]) -> dict[str, str]:
    """The file of each group: by the words of a command line, else by its experiment, else by ``train.yaml``."""
    root = (conf_dir() / "train.yaml").read_text(encoding="utf-8")
    files = {group: choice for group, choice in defaults(root) if "/" not in group and " " not in group}
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if "experiment" in given:
        files |= _overridden(given["experiment"])
    return files | {group: choice for group, choice in given.items() if group in files}


def keys(group: str, words: Sequence[str]) -> Outline:
    """What can be set below ``group.``, as the words of a command line choose its file."""
    return _file(group, chosen(words).get(group, "null"))


def _overridden(experiment: str) -> dict[str, str]:
    """The files that an experiment chooses."""
    path = conf_dir() / "experiment" / f"{experiment}.yaml"
    found = defaults(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {group[1:]: choice for group, choice in found if group.startswith("/")}


def _file(group: str, choice: str, depth: int = 0) -> Outline:
    path: Path = conf_dir() / group / f"{choice}.yaml"
    if depth > 8 or not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    own = outline(text)
    if text.startswith("# @package _global_"):
        own = own.get(group) or {}
    whole: Outline = {}
    for other, name in defaults(text):
        if other in ("", f"/{group}") or text.find(f"{other}@_here_") >= 0:
            whole = _merged(whole, _file(other.strip("/") or group, name, depth + 1))
    return _merged(whole, own)


def _merged(below: Outline, above: Outline) -> Outline:
    both = {k: _merged(below[k], above[k]) for k in below.keys() & above.keys()
            if isinstance(below[k], dict) and isinstance(above[k], dict)}  # fmt: skip
    return below | above | both
