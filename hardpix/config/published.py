"""Published tables: their printed numbers, and what ``conf/table/PAPER/TABLE.yaml`` says of their cells.

The keys of such a file, all but ``published`` optional::

    published: {caption: ..., columns: ..., rows: ...}  # as printed
    labels: [label, backbone]        # attributes of the rows, one column of words each
    stacked: true                    # wide tables: published, ours and difference below each other
    columns:                         # order; absent: all as published. A name, or a mapping with `column` and
      - {column: gain, minus: [hl, baseline]}        # difference of two columns of the row
      - {column: increase, increase: [hl, baseline]} # by how many percent the first exceeds the second
      - {column: miou_min, range: min}               # min or max over runs that differ in the row's key `over`
      - {column: gain_miou, of: miou}                # difference from the row that the row's key `against` names
      - {column: crop, factor: data.train_transform.crop, words: {value: word}}  # a setting, not a score
      - {column: hl, label: ..., metric: cost/peak_memory_mb, unit: MB}  # any key of a published column
      - {column: hard_recall, metric: "hard_recall@{threshold}"}  # filled in from the row's key `threshold`
    parts:                           # sub-tables; absent: one part with `rows`, or with all rows
      - {title: (a) fusion, rows: [a_fusion_max, {row: alpha, over: method.alpha}]}
    cited: [d_fcn_v16]               # rows of methods that hardpix does not have: - instead of "not run"
    cells:                           # which row of conf/rows/PAPER.yaml fills which cells, as ROW/COLUMN or a list of
      II_ls: ls/miou                 # them; * is a wildcard, ${trainer.max_epochs} the value of that key
    steps: 50                        # so many training steps are enough for the cells
    note: ...                        # in place of the note in the data
    notes: [...]                     # what a reader must know: slips and contradictions of the paper

A column's ``metric`` with a slash is a metric of the record as it is; others belong to the column's split.
``train_frames`` says how many frames its runs should have trained on, where that is not the whole split.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hardpix.config import catalog, safe_files
from hardpix.config.catalog import conf_dir
from hardpix.config.command_line import suggestion
from hardpix.types import ConfigError, HardpixError

THRESHOLD = "{threshold}"
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
KEYS = (
    "published",
    "labels",
    "stacked",
    "columns",
    "parts",
    "rows",
    "cited",
    "note",
    "notes",
    "cells",
    "steps",
)
ATTRIBUTES = ("label", "dataset", "split", "metric", "unit")


@dataclass(frozen=True)
class LayoutColumn:
    """One column as shown. At most one of factor, minus, increase, range and of is set."""

    id: str
    label: str
    dataset: str
    split: str
    metric: str
    unit: str
    factor: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    minus: tuple[str, str] | None = None
    increase: tuple[str, str] | None = None
    range: str = ""
    of: str = ""
    train_frames: int | None = None
    classes_of: str = ""  # the column of mIoU that this one shows a class of; never in a file

    @property
    def derived(self) -> bool:
        """Computed from other cells: no run can stand for it."""
        return bool(self.minus or self.increase or self.of or self.classes_of)


@dataclass(frozen=True)
class LayoutRow:
    id: str
    label: str
    facts: Mapping[str, Any]
    metric: str = ""  # in place of the column's
    threshold: float | None = None
    over: str = ""
    against: str = ""
    cited: bool = False


@dataclass(frozen=True)
class Part:
    title: str
    rows: tuple[LayoutRow, ...]


@dataclass(frozen=True)
class Layout:
    table: Table
    labels: tuple[str, ...]
    stacked: bool
    columns: tuple[LayoutColumn, ...]
    parts: tuple[Part, ...]
    note: str
    notes: tuple[str, ...]
    fills: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # row of conf/rows: patterns ROW/COLUMN
    steps: int | None = None  # of training that are enough for these cells

    @property
    def rows(self) -> list[LayoutRow]:
        return [row for part in self.parts for row in part.rows]

    def cells(self) -> list[str]:
        """Names of the cells that a run can stand for."""
        ids = [column.id for column in self.columns if not column.derived]
        return [f"{self.table.name}/{row.id}/{column}" for row in self.rows for column in ids]

    def published(self, row: LayoutRow, column: LayoutColumn) -> Value:
        """The printed number; of an ``of`` column the gain printed next to the row's."""
        if column.of:
            gain = row.facts.get("printed_gain")
            return gain.get(column.of) if isinstance(gain, dict) else gain
        return self.table.row(row.id).cells.get(column.id)


def layout(table: Table, folder: Path) -> Layout:
    """How ``folder/PAPER/TABLE.yaml`` shows ``table``; as published where there is no such file."""
    path = folder / table.paper / f"{table.id}.yaml"
    content = _read(path) if path.is_file() else {}
    try:
        return _layout(table, content)
    except HardpixError as error:
        raise ConfigError(f"{path}: {error}") from None


def layouts(folder: Path) -> list[Layout]:
    """Every published table, in the order of the papers."""
    return [layout(table, folder) for paper in papers() for table in tables(paper)]


def pattern_problem(pattern: str, folder: Path) -> str:
    """Why ``pattern`` is the name of no published cell; empty if it is."""
    if pattern.count("/") != 3:
        return f"{pattern!r} does not name cells as PAPER/TABLE/ROW/COLUMN (lwm/II/ls/miou, * is a wildcard)"
    wanted = "/".join(pattern.split("/")[:2])
    known = [
        layout(table, folder) for paper in papers() for table in tables(paper) if matches(wanted, table.name)
    ]
    cells = [cell for one in known for cell in one.cells()]
    if any(matches(pattern, cell) for cell in cells):
        return ""
    names = cells or [table.name for paper in papers() for table in tables(paper)]
    hint = suggestion(pattern if cells else wanted, names)
    return f"{pattern!r} names no published cell{hint}; hardpix table --published list shows the names"


def _read(path: Path) -> dict[str, Any]:
    content = safe_files.read_yaml(path)
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path} must hold a mapping, not a {type(content).__name__}.")
    return content or {}


def _layout(table: Table, content: dict[str, Any]) -> Layout:
    _check_keys(content, KEYS, "the file")
    if "parts" in content and "rows" in content:
        raise ConfigError("parts and rows are both given; rows belong into the parts.")
    columns = tuple(_column(table, item) for item in content.get("columns", table.columns))
    cited = [table.row(str(row)).id for row in content.get("cited", [])]
    parts = content.get("parts") or [{"title": "", "rows": content.get("rows", list(table.rows))}]
    made = Layout(
        table,
        tuple(content.get("labels", ["label"])),
        bool(content.get("stacked", False)),
        columns,
        tuple(_part(table, part, cited) for part in parts),
        content.get("note", table.note),
        tuple(content.get("notes", [])),
        {
            str(row): (cells,) if isinstance(cells, str) else tuple(map(str, cells))
            for row, cells in content.get("cells", {}).items()
        },
        content.get("steps"),
    )
    if made.steps is not None and (type(made.steps) is not int or made.steps < 1):
        raise ConfigError(
            f"conf/table/{made.table.name}.yaml: steps: {made.steps}: must be a positive number of steps"
        )
    _check_references(made)
    _check_fills(made)
    return made


def _column(table: Table, item: Any) -> LayoutColumn:
    given = {"column": item} if isinstance(item, str) else dict(item)
    name = str(given.pop("column"))
    allowed = (*ATTRIBUTES, "factor", "words", "minus", "increase", "range", "of", "train_frames")
    _check_keys(given, allowed, f"column {name}")
    known = {key: getattr(table.columns[name], key) for key in ATTRIBUTES} if name in table.columns else {}
    if not known and not ({"metric", "of"} & given.keys()):
        table.column(name)  # raises with the nearest name
    if "of" in given:
        known = {key: getattr(table.column(given["of"]), key) for key in ATTRIBUTES} | {"label": "gain"}
    for key in ("minus", "increase"):
        if key in given:
            given[key] = tuple(given[key])
    first = next(iter(table.columns.values()))
    fallback = {"label": name, "dataset": first.dataset, "split": first.split, "unit": first.unit}
    return LayoutColumn(id=name, **(fallback | known | given))


def _part(table: Table, given: dict[str, Any], cited: list[str]) -> Part:
    _check_keys(given, ("title", "rows"), "a part")
    return Part(given.get("title", ""), tuple(_layout_row(table, item, cited) for item in given["rows"]))


def _layout_row(table: Table, item: Any, cited: list[str]) -> LayoutRow:
    given = {"row": item} if isinstance(item, str) else dict(item)
    _check_keys(given, ("row", "metric", "threshold", "over", "against"), "a row")
    row = table.row(str(given.pop("row")))
    if row.facts.get("metric"):
        given.setdefault("metric", row.facts["metric"])
    return LayoutRow(row.id, row.label, row.facts, cited=row.id in cited, **given)


def _check_references(made: Layout) -> None:
    columns, rows = [column.id for column in made.columns], [row.id for row in made.rows]
    for column in made.columns:
        for name in (*(column.minus or column.increase or ()), *filter(None, [column.of])):
            if name not in columns:
                raise ConfigError(f"column {column.id} refers to {name!r}{suggestion(name, columns)}.")
    for row in made.rows:
        if row.threshold is None and any(THRESHOLD in column.metric for column in made.columns):
            raise ConfigError(
                f"row {row.id} needs a threshold, which {THRESHOLD} in a column's metric stands for."
            )
        if row.against and row.against not in rows:
            raise ConfigError(f"row {row.id} refers to {row.against!r}{suggestion(row.against, rows)}.")


def _check_fills(made: Layout) -> None:
    """Raise for a pattern of no cell, and for a cell that two rows fill."""
    filled: dict[str, str] = {}
    for row, patterns in made.fills.items():
        for pattern in patterns:
            wanted = f"{made.table.name}/{REFERENCE.sub('*', pattern)}"
            cells = [cell for cell in made.cells() if matches(wanted, cell)]
            if not cells:
                hint = suggestion(wanted, made.cells())
                raise ConfigError(f"cells: row {row}: {pattern!r} names no cell of the table{hint}.")
            for cell in cells:
                if filled.setdefault(cell, row) != row:
                    raise ConfigError(f"cells: {cell} is filled by two rows, {filled[cell]} and {row}.")


def _check_keys(given: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in allowed:
            hint = suggestion(str(key), allowed) or f" (known: {', '.join(allowed)})"
            raise ConfigError(f"{where} has a key {key!r}{hint}.")


# The numbers that four papers print in their tables: ``published`` in the files of conf/table. Title, authors and
# protocol of a paper are in conf/table/PAPER.yaml.


Value = float | int | str | None  # as printed; None: the paper reports nothing there
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Column:
    """What one column holds. ``metric`` is a score's name, ``iou:CLASS``, ``acc:CLASS`` or ``see row``."""

    id: str
    label: str
    dataset: str
    split: str
    metric: str
    unit: str  # percent: printed values are 100 times our fractions
    higher_is_better: bool


@dataclass(frozen=True)
class Row:
    id: str
    label: str
    cells: Mapping[str, Value]
    facts: Mapping[str, Any]  # what else is known: backbone, confidence, copied_from_source_paper, ...


@dataclass(frozen=True)
class Table:
    paper: str
    id: str
    caption: str
    columns: Mapping[str, Column]
    rows: Mapping[str, Row]
    note: str

    @property
    def name(self) -> str:
        return f"{self.paper}/{self.id}"

    def row(self, row: str) -> Row:
        return _named(self.rows, row, f"row of table {self.name}")

    def column(self, column: str) -> Column:
        return _named(self.columns, column, f"column of table {self.name}")


@dataclass(frozen=True)
class Paper:
    id: str
    title: str
    authors: str
    tables: Mapping[str, Table]
    protocol: Mapping[str, Any]

    def table(self, table: str) -> Table:
        return _named(self.tables, table, f"table of paper {self.id}")


@cache
def papers() -> dict[str, Paper]:
    """Every paper by its id, and its tables in their order."""
    entries = catalog.entries("table")
    found: dict[str, dict[str, Path]] = {entry.name: {} for entry in entries if "/" not in entry.name}
    for entry in entries:
        name, slash, table = entry.name.partition("/")
        if slash:
            found[name][table] = entry.path
    return {name: _paper(name, tables) for name, tables in found.items()}


def paper(name: str) -> Paper:
    return _named(papers(), name, "paper")


def tables(name: str) -> list[Table]:
    """The table ``PAPER/TABLE``, or all tables of ``PAPER``."""
    head, slash, rest = name.partition("/")
    found = paper(head)
    return [found.table(rest)] if slash else list(found.tables.values())


def is_published(word: str) -> bool:
    """Whether ``word`` is the name of a paper or of one of its tables."""
    name, slash, table = word.partition("/")
    known = papers().get(name)
    return known is not None and (not slash or table in known.tables)


def matches(pattern: str, cell: str) -> bool:
    """Whether ``PAPER/TABLE/ROW/COLUMN`` fits a pattern of four parts; ``*`` never reaches across a slash."""
    parts, own = pattern.split("/"), cell.split("/")
    return len(parts) == len(own) and all(map(fnmatch.fnmatchcase, own, parts))


def _named(known: Mapping[str, Kind], name: str, what: str) -> Kind:
    if name not in known:
        hint = suggestion(name, known) or f" (known: {', '.join(known)})"
        raise HardpixError(f"There is no {what} named {name!r}{hint}.")
    return known[name]


def _paper(name: str, tables: Mapping[str, Path]) -> Paper:
    content = _content(conf_dir() / "table" / f"{name}.yaml")
    made = {key: _table(name, key, _content(path)["published"]) for key, path in tables.items()}
    return Paper(name, content["title"], content["authors"], made, content["protocol"])


def _content(path: Path) -> dict[str, Any]:
    """Of a file that comes with hardpix."""
    return yaml.load(path.read_text(encoding="utf-8"), safe_files.LOADER)


def _table(paper_name: str, name: str, content: Mapping[str, Any]) -> Table:
    columns = {str(key): Column(str(key), **value) for key, value in content["columns"].items()}
    where = f"conf/table/{paper_name}/{name}.yaml"
    rows = {str(key): _row(where, str(key), value, columns) for key, value in content["rows"].items()}
    return Table(paper_name, name, content["caption"], columns, rows, content.get("note", ""))


def _row(where: str, name: str, content: Mapping[str, Any], columns: Iterable[str]) -> Row:
    cells = {str(key): value for key, value in content["cells"].items()}
    if unknown := cells.keys() - set(columns):
        raise HardpixError(
            f"{where}: row {name} has cells {sorted(unknown)}, which are no columns of its table."
        )
    facts = {key: value for key, value in content.items() if key not in ("label", "cells")}
    return Row(name, content["label"], cells, facts)
