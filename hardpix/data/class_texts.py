"""Texts that list classes a line each. What is no such list is refused by its content: any text has lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hardpix.types import DataError

KNOWN = (
    "a class list is a text of one name a line (or number and name, or r g b and name), a CSV file with a column "
    "name, a JSON or YAML list of names, or a label map of CVAT"
)

_NUMBERED = re.compile(r"(\d+)[ \t]+([^\d\W].*)")
_COLOURED = re.compile(r"(\d+)[ \t]+(\d+)[ \t]+(\d+)[ \t]+([^\d\W].*)")
_CVAT = re.compile(r"([^:]+):(\d+),(\d+),(\d+):([^:]*):([^:]*)")
_LONGEST, _WORDS = 40, 5  # of a name, or of each of the synonyms that commas part
_HEADERS = (
    "class",
    "classes",
    "label",
    "labels",
    "category",
    "categories",
    "names",
    "class name",
    "class_name",
)
_FRAMES = 3  # names that differ in a long number alone are frames

# What no name of a class holds, and what the line is instead.
_OTHERS: tuple[tuple[str, str], ...] = (
    (r"[\x00-\x1f\x7f]", "columns or a text of another coding"),
    (r"^(#|//|--|\*|>|!)", "a comment or a heading"),
    (r"[{}\[\]<>|=;`\"]|\w\(", "a part of a table, a program or a configuration"),
    (r":", "a key and its value"),
    (r"^[./~]|\\|/.*/|\.\w{2,4}$", "the path of a file"),
    (r"^[\W\d_]*$", "no word"),
    (r"[.!?,]$", "a sentence"),
    (r"\d{5,}", "the name of a frame"),
)


class Row(NamedTuple):
    """One class as a file has it."""

    where: str
    name: Any
    colour: Any = None
    id: Any = None


def text_rows(text: str, path: Path) -> list[Row]:
    """The classes of a text without a header; ``DataError`` that names the first line that is no class."""
    lines = [
        (f"{path}: line {n}", line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()
    ]
    cvat = bool(lines) and lines[0][1].startswith("# label:color_rgb:parts:actions")
    if cvat:
        return [_cvat_row(where, line) for where, line in lines[1:]]
    for pattern, row in _FORMS:
        found = [pattern.fullmatch(line) for _, line in lines]
        if lines and all(found):
            return [row(where, match) for (where, _), match in zip(lines, found, strict=True) if match]
    for where, line in lines:
        if fault := _fault(line):
            raise DataError(f"{where}: {line[:50]!r} is {fault}, not the name of a class; {KNOWN}")
    _check_alike(lines)
    _check_header(lines)
    return [Row(where, line) for where, line in lines]


_FORMS: tuple[tuple[re.Pattern[str], Callable[[str, re.Match[str]], Row]], ...] = (
    (_COLOURED, lambda where, match: Row(where, _named(where, match[4]), [int(match[i]) for i in (1, 2, 3)])),
    (_NUMBERED, lambda where, match: Row(where, _named(where, match[2]), id=int(match[1]))),
)


def _named(where: str, name: str) -> str:
    if fault := _fault(name):
        raise DataError(f"{where}: {name[:50]!r} is {fault}, not the name of a class; {KNOWN}")
    return name


def _cvat_row(where: str, line: str) -> Row:
    match = _CVAT.fullmatch(line)
    if match is None:
        raise DataError(
            f"{where}: {line[:50]!r} is no line of CVAT's label map; each is name:r,g,b:parts:actions"
        )
    return Row(where, match[1].strip(), [int(match[i]) for i in (2, 3, 4)])


def _fault(line: str) -> str:
    """What a line is that is no name; empty for a name."""
    for pattern, what in _OTHERS:
        if re.search(pattern, line):
            return what
    if re.match(r"\d+\s", line):
        return "a number and a name, as not all lines are"
    parts = [part.strip() for part in line.split(",")]
    if not all(parts) or max(map(len, parts)) > _LONGEST or max(len(p.split()) for p in parts) > _WORDS:
        return "a sentence"
    return ""


def _check_header(lines: Sequence[tuple[str, str]]) -> None:
    """Refuse a header, which would shift every class."""
    if lines and lines[0][1].lower() in _HEADERS:
        raise DataError(f"{lines[0][0]}: {lines[0][1]!r} looks like a header; remove the line, or write name")


def _check_alike(lines: Sequence[tuple[str, str]]) -> None:
    """Refuse a table without a header, and a list of frames."""
    commas = {line.count(",") for _, line in lines}
    if len(commas) == 1 and commas != {0}:
        where, line = lines[0]
        raise DataError(f"{where}: {line[:50]!r} is a line of a table without a header; {KNOWN}")
    shapes = {re.sub(r"\d{4,}", "#", line) for _, line in lines}
    if len(lines) >= _FRAMES and len(shapes) == 1 and "#" in min(shapes):
        raise DataError(
            f"{lines[0][0]}: {lines[0][1][:50]!r} is the name of a frame, as are all lines; {KNOWN}"
        )
