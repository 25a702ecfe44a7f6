"""The names, colours and numbers of a user's classes: a list, or a text, CSV or JSON file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hardpix.types import ConfigError, DataError

Colour = tuple[int, int, int]

_ID = ("id", "index")


class ClassList(NamedTuple):
    """Classes in the order of their indices."""

    names: tuple[str, ...]
    palette: tuple[Colour, ...] | None  # None: the file gives no colours
    ids: tuple[int, ...] | None  # the number of each class in the label files; None: its index


class _Row(NamedTuple):
    where: str
    name: Any
    colour: Any
    id: Any


def read_classes(classes: Sequence[str] | str) -> ClassList:
    """``data.source.classes``: the names themselves, or the path of a file that holds them.

    A text file has a name a line. A CSV file has a header with ``name``, perhaps ``r``, ``g``, ``b`` and perhaps
    ``id`` (or ``index``), in any order. A JSON file is ``{"classes": [names], "palette": [[r, g, b], ...]}`` or a
    list of ``{"name": .., "color": [r, g, b], "id": ..}``; a COCO file's ``categories`` are such a list.

    Raises ``ConfigError`` for a list and ``DataError`` for a file, with the file and the line (or entry).
    """
    if not isinstance(classes, str):
        rows = [_Row(f"data.source.classes, entry {n}", name, None, None) for n, name in enumerate(classes)]
        return _checked(rows, "data.source.classes", ConfigError)
    path = Path(classes)
    text = read_text(path, "the classes")
    reader = {".csv": _csv_rows, ".json": _json_rows}.get(path.suffix.lower(), _text_rows)
    return _checked(list(reader(text, path)), str(path), DataError)


def read_text(path: Path, what: str) -> str:
    """A UTF-8 file (with or without a byte order mark) of ``what``; ``DataError`` where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a UTF-8 text; it must hold {what}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); it must hold {what}") from None


def parse_json(text: str, where: str) -> Any:
    """A JSON text; ``DataError`` that names its line where it is damaged."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: line {error.lineno}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise DataError(f"{where}: not valid JSON (nested too deeply)") from None
    except ValueError:
        raise DataError(f"{where}: not valid JSON (a number of thousands of digits)") from None


def csv_rows(
    text: str, path: Path, required: Iterable[str], delimiter: str = ","
) -> Iterator[tuple[str, dict[str, str]]]:
    """(``file: line n``, the row by lower-case column) of a CSV text that has a header with ``required``."""
    reader = csv.reader(text.splitlines(keepends=True), strict=True, delimiter=delimiter)
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        for column in required:
            if header.count(column) != 1:
                found = ", ".join(header) or "none"
                raise DataError(
                    f"{path}: line 1: the header must name the column {column} once; its columns are: {found}"
                )
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise DataError(f"{where}: {len(row)} values for {len(header)} columns; give one each")
            yield where, dict(zip(header, (cell.strip() for cell in row), strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not readable as CSV ({error})") from None


def _text_rows(text: str, path: Path) -> Iterator[_Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _Row(f"{path}: line {number}", line.strip(), None, None)


def _csv_rows(text: str, path: Path) -> Iterator[_Row]:
    for where, row in csv_rows(text, path, ["name"]):
        given = [channel for channel in "rgb" if row.get(channel)]
        if given and len(given) < 3:
            raise DataError(f"{where}: a colour needs all of r, g and b, here is {', '.join(given)}")
        colour = [_number(row[channel], where) for channel in "rgb"] if given else None
        ids = [row[key] for key in _ID if row.get(key)]
        yield _Row(where, row["name"], colour, _number(ids[0], where) if ids else None)


def _json_rows(text: str, path: Path) -> Iterator[_Row]:
    content = parse_json(text, str(path))
    if isinstance(content, dict) and isinstance(content.get("categories"), list):
        content = content["categories"]
    if isinstance(content, dict) and isinstance(content.get("classes"), list):
        names, palette = content["classes"], content.get("palette") or [None] * len(content["classes"])
        if not isinstance(palette, list) or len(palette) != len(names):
            raise DataError(f"{path}: palette must list one [r, g, b] for each of the {len(names)} classes")
        content = [{"name": name, "color": colour} for name, colour in zip(names, palette, strict=True)]
    if not isinstance(content, list):
        raise DataError(
            f'{path}: must hold {{"classes": [...], "palette": [...]}} or a list of {{"name": ...}}'
        )
    for number, entry in enumerate(content):
        where = f"{path}: entry {number}"
        if not isinstance(entry, dict) or "name" not in entry:
            raise DataError(f'{where}: must be an object with "name", and perhaps "color" and "id"')
        ids = [entry[key] for key in _ID if entry.get(key) is not None]
        yield _Row(where, entry["name"], entry.get("color"), ids[0] if ids else None)


def _checked(rows: Sequence[_Row], what: str, fault: type[Exception]) -> ClassList:
    if not rows:
        raise fault(f"{what}: there is no class in it; it must name at least one")
    seen: dict[Any, str] = {}
    for row in rows:
        if not isinstance(row.name, str) or not row.name:
            raise fault(f"{row.where}: {row.name!r} is no name of a class; a name is a text")
        if row.name in seen:
            raise fault(f"{row.where}: the class {row.name!r} is there already ({seen[row.name]})")
        seen[row.name] = row.where
    return ClassList(tuple(row.name for row in rows), _colours(rows), _ids(rows))


def _colours(rows: Sequence[_Row]) -> tuple[Colour, ...] | None:
    bare = [row for row in rows if row.colour is None]
    if len(bare) == len(rows):
        return None
    if bare:
        raise DataError(
            f"{bare[0].where}: no colour, but other classes have one; give each class one or none"
        )
    return tuple(as_colour(row.colour, row.where, DataError) for row in rows)


def _ids(rows: Sequence[_Row]) -> tuple[int, ...] | None:
    bare = [row for row in rows if row.id is None]
    if len(bare) == len(rows):
        return None
    if bare:
        raise DataError(f"{bare[0].where}: no id, but other classes have one; give each class one or none")
    seen: dict[int, str] = {}
    for row in rows:
        if type(row.id) is not int or row.id < 0:
            raise DataError(f"{row.where}: the id {row.id!r} must be a whole number, 0 or above")
        if row.id in seen:
            raise DataError(f"{row.where}: the id {row.id} is there already ({seen[row.id]})")
        seen[row.id] = row.where
    return tuple(seen)


def as_colour(value: Any, where: str, fault: type[Exception]) -> Colour:
    """``[r, g, b]`` of whole numbers from 0 to 255; ``fault`` that names ``where`` for anything else."""
    if not (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(type(channel) is int and 0 <= channel <= 255 for channel in value)
    ):
        raise fault(f"{where}: the colour {value} must be [r, g, b], whole numbers from 0 to 255")
    red, green, blue = value
    return red, green, blue


def _number(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{where}: {text!r} must be a whole number") from None
