"""The keys of configuration files, read line by line: for completion, which cannot wait for a YAML parser.

Only what this project's files use is understood: block mappings of plain keys, and ``defaults`` lists.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hardpix.run.catalog import conf_dir

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
        files |= _overridden(f"experiment/{given['experiment']}")
    return files | {group: choice for group, choice in given.items() if group in files}


def keys(group: str, words: Sequence[str]) -> Outline:
    """What can be set below ``group.``, as the words of a command line choose its file."""
    return _file(group, chosen(words).get(group, "null"))


def _overridden(name: str, depth: int = 0) -> dict[str, str]:
    found: dict[str, str] = {}
    path = conf_dir() / f"{name}.yaml"
    if depth > 8 or not path.is_file():
        return found
    for group, choice in defaults(path.read_text(encoding="utf-8")):
        if group.startswith("/"):
            found[group[1:]] = choice
        elif not group:
            base = choice[1:] if choice.startswith("/") else f"experiment/{choice}"
            found |= _overridden(base, depth + 1)
    return found


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
