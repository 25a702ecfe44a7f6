"""The names, colours and numbers of a user's classes: a list, or a text, CSV or JSON file."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hardpix.config import safe_files
from hardpix.types import ConfigError, DataError

Colour = tuple[int, int, int]

_ID = ("id", "index", "idx")


class ClassList(NamedTuple):
    """Classes in the order of their indices."""

    names: tuple[str, ...]
    palette: tuple[Colour, ...] | None  # None: the file gives no colours
    ids: tuple[int, ...] | None  # the number of each class in the label files; None: its index


def read_classes(classes: Sequence[str] | str) -> ClassList:
    """``data.source.classes``: the names themselves, or the path of a file that holds them.

    A text file has a name a line, or a number and a name, or a colour and a name, or is a label map of CVAT. A CSV file
    (with commas, semicolons or tabs) has a header with ``name``, perhaps ``r``, ``g``, ``b`` and perhaps ``id`` (or
    ``index``, ``idx``), in any order. A JSON or YAML file is a list of names, ``{number: name}``,
    ``{"classes": [names], "palette": [[r, g, b], ...]}`` or a list of ``{"name": .., "color": [r, g, b], "id": ..}``; a
    COCO file's ``categories`` are such a list, and the ``names`` of a YAML file are of the first two kinds. The content
    decides; any other file is refused.

    Raises ``ConfigError`` for a list and ``DataError`` for a file, with the file and the line (or entry).
    """
    if not isinstance(classes, str):
        rows = [Row(f"data.source.classes, entry {n}", name, None, None) for n, name in enumerate(classes)]
        return _checked(rows, "data.source.classes", ConfigError)
    path = Path(classes)
    return _checked(list(_file_rows(read_text(path, "the classes"), path)), str(path), DataError)


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


def _file_rows(text: str, path: Path) -> Iterable[Row]:
    """By what the file holds, whatever it is called; what its ending promises must be in it."""
    suffix, start = path.suffix.lower(), text.lstrip()[:1]
    if suffix == ".json" or (start in ("{", "[") and suffix not in (".csv", ".yaml", ".yml")):
        return _listed_rows(parse_json(text, str(path)), path)
    if suffix in (".yaml", ".yml") or (
        start == "-" and all(x.startswith("- ") for x in text.splitlines() if x)
    ):
        content = safe_files.read_yaml(path)
        names = content.get("names") if isinstance(content, dict) else None
        return _listed_rows(content if names is None else names, path)
    header = next((line for line in text.splitlines() if line.strip()), "")
    for delimiter in ("\t", ";", ","):
        columns = [cell.strip().strip('"').lower() for cell in header.split(delimiter)]
        if "name" in columns and (len(columns) > 1 or suffix == ".csv"):
            return _csv_rows(text, path, delimiter)
    return (
        _csv_rows(text, path) if suffix in (".csv", ".tsv") or columns == ["name"] else text_rows(text, path)
    )


def _csv_rows(text: str, path: Path, delimiter: str = ",") -> Iterator[Row]:
    for where, row in csv_rows(text, path, ["name"], delimiter):
        given = [channel for channel in "rgb" if row.get(channel)]
        if given and len(given) < 3:
            raise DataError(f"{where}: a colour needs all of r, g and b, here is {', '.join(given)}")
        colour = [_number(row[channel], where) for channel in "rgb"] if given else None
        ids = [row[key] for key in _ID if row.get(key)]
        _check_known(where, row, "rgb", ids, lambda text: re.fullmatch(r"-?\d+", text))
        yield Row(where, row["name"], colour, _number(ids[0], where) if ids else None)


def _listed_rows(content: Any, path: Path) -> Iterator[Row]:
    if isinstance(content, dict) and content and all(re.fullmatch(r"\d+", str(key)) for key in content):
        content = [{"name": name, "id": int(key)} for key, name in content.items()]
    if isinstance(content, list) and content and not any(isinstance(entry, dict) for entry in content):
        content = {"classes": content}
    if isinstance(content, dict) and isinstance(content.get("categories"), list):
        content = content["categories"]
    if isinstance(content, dict) and isinstance(content.get("classes"), list):
        names, palette = content["classes"], content.get("palette") or [None] * len(content["classes"])
        if not isinstance(palette, list) or len(palette) != len(names):
            raise DataError(f"{path}: palette must list one [r, g, b] for each of the {len(names)} classes")
        content = [{"name": name, "color": colour} for name, colour in zip(names, palette, strict=True)]
    if not isinstance(content, list):
        raise DataError(
            f'{path}: must hold a list of names, {{"classes": [...], "palette": [...]}} or a list of {{"name": ...}}'
        )
    for number, entry in enumerate(content):
        where = f"{path}: entry {number}"
        if not isinstance(entry, dict) or "name" not in entry:
            raise DataError(f'{where}: must be an object with "name", and perhaps "color" and "id"')
        ids = [entry[key] for key in _ID if entry.get(key) is not None]
        _check_known(
            where, entry, ("color",), ids, lambda value: type(value) is int or isinstance(value, list)
        )
        yield Row(where, entry["name"], entry.get("color"), ids[0] if ids else None)


def _check_known(
    where: str,
    row: Mapping[str, Any],
    colours: Iterable[str],
    ids: Sequence[Any],
    numeric: Callable[[Any], Any],
) -> None:
    """Refuse numbers under a name that is not read: of a class without an id they may be its value in the labels."""
    unknown = [key for key, value in row.items() if key not in ("name", *_ID, *colours) and numeric(value)]
    if unknown and not ids:
        raise DataError(
            f"{where}: {unknown[0]}={row[unknown[0]]} is not read; name it id where it is the value of the class in "
            "the label files (a colour is r, g and b, in JSON color), or remove it"
        )


def _checked(rows: Sequence[Row], what: str, fault: type[Exception]) -> ClassList:
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


def _colours(rows: Sequence[Row]) -> tuple[Colour, ...] | None:
    bare = [row for row in rows if row.colour is None]
    if len(bare) == len(rows):
        return None
    if bare:
        raise DataError(
            f"{bare[0].where}: no colour, but other classes have one; give each class one or none"
        )
    return tuple(as_colour(row.colour, row.where, DataError) for row in rows)


def _ids(rows: Sequence[Row]) -> tuple[int, ...] | None:
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


# Texts that list classes a line each. What is no such list is refused by its content: any text has lines.


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


def _named(where: str, name: str) -> str:
    if fault := _fault(name):
        raise DataError(f"{where}: {name[:50]!r} is {fault}, not the name of a class; {KNOWN}")
    return name


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


_FORMS: tuple[tuple[re.Pattern[str], Callable[[str, re.Match[str]], Row]], ...] = (
    (_COLOURED, lambda where, match: Row(where, _named(where, match[4]), [int(match[i]) for i in (1, 2, 3)])),
    (_NUMBERED, lambda where, match: Row(where, _named(where, match[2]), id=int(match[1]))),
)


def _cvat_row(where: str, line: str) -> Row:
    match = _CVAT.fullmatch(line)
    if match is None:
        raise DataError(
            f"{where}: {line[:50]!r} is no line of CVAT's label map; each is name:r,g,b:parts:actions"
        )
    return Row(where, match[1].strip(), [int(match[i]) for i in (2, 3, 4)])


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
