"""YAML files that may be anyone's: judged by their size, depth and what they stand for before they are loaded."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml

from hardpix.types import ConfigError

LARGEST = 10_000_000  # bytes of a file
EXPANDED = 10_000_000  # values and characters that it may stand for with its aliases
DEPTH = 100  # lists and mappings in each other
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: Path) -> Any:
    """The content; ``ConfigError`` in one line where it is no YAML, or asks for too much."""
    text = read_text(path)
    try:
        return yaml.load(text, LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None


def read_text(path: Path, *, aliases: bool = True) -> str:
    """The text of a file that is safe to load; ``aliases``: whether it may repeat parts of itself.

    Raises ``ConfigError``, and ``OSError`` where the file cannot be opened.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # to open a pipe is to wait for it
        raise ConfigError(f"{path}: is no regular file, which a file of YAML must be")
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1) if found.st_size <= LARGEST else b""
    size = max(found.st_size, len(content))
    if size > LARGEST:
        raise ConfigError(
            f"{path}: has {size / 1e6:.0f} MB; a file of YAML must have no more than {LARGEST / 1e6:.0f} MB"
        )
    try:
        text = content.decode("utf-8")
        fault = _fault(text, aliases)
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if fault:
        raise ConfigError(f"{path}: {fault}")
    return text


def _fault(text: str, aliases: bool) -> str:
    """Why a text is not to be loaded; empty where it may be.

    The parser's events come one by one and hold nothing twice. What an anchor stands for is known when its end
    comes: one value and a character each for what is in it, with the aliases there at their own weight.
    """
    anchors: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor and the weight before it
    weight = 0
    for event in yaml.parse(text, LOADER):
        if isinstance(event, yaml.AliasEvent):
            if not aliases:
                return "it repeats a part of itself by an alias, which hardpix never writes"
            if event.anchor not in anchors:
                return f"its alias *{event.anchor} stands for what it lies in, or for nothing"
            weight += anchors[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            own = 1 + len(event.value)
            weight += own
            if event.anchor:
                anchors[event.anchor] = own
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, weight))
            anchors.pop(event.anchor or "", None)
            weight += 1
            if len(open_nodes) > DEPTH:
                return f"its lists and mappings lie in each other more than {DEPTH} deep"
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                anchors[anchor] = weight - before
        if weight > EXPANDED:
            return f"its aliases stand for more than {EXPANDED / 1e6:.0f} million values and characters"
    return ""
