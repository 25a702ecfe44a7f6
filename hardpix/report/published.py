"""The numbers that four papers print in their tables, as data: ``published.yaml`` beside this file."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hardpix.report.compare import suggestion
from hardpix.types import HardpixError

FILE = Path(__file__).with_name("published.yaml")

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
    """Every paper by its id, its tables in the order of the file."""
    content = yaml.load(FILE.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {str(key): _paper(str(key), value) for key, value in content["papers"].items()}


def paper(name: str) -> Paper:
    return _named(papers(), name, "paper")


def tables(name: str) -> list[Table]:
    """The table ``PAPER/TABLE``, or all tables of ``PAPER``."""
    head, slash, rest = name.partition("/")
    found = paper(head)
    return [found.table(rest)] if slash else list(found.tables.values())


def matches(pattern: str, cell: str) -> bool:
    """Whether ``PAPER/TABLE/ROW/COLUMN`` fits a pattern of four parts; ``*`` never reaches across a slash."""
    parts, own = pattern.split("/"), cell.split("/")
    return len(parts) == len(own) and all(map(fnmatch.fnmatchcase, own, parts))


def _named(known: Mapping[str, Kind], name: str, what: str) -> Kind:
    if name not in known:
        hint = suggestion(name, known) or f" (known: {', '.join(known)})"
        raise HardpixError(f"There is no {what} named {name!r}{hint}.")
    return known[name]


def _paper(name: str, content: Mapping[str, Any]) -> Paper:
    made = {str(key): _table(name, str(key), value) for key, value in content["tables"].items()}
    return Paper(name, content["title"], content["authors"], made, content["protocol"])


def _table(paper_name: str, name: str, content: Mapping[str, Any]) -> Table:
    columns = {str(key): Column(str(key), **value) for key, value in content["columns"].items()}
    rows = {str(key): _row(str(key), value, columns) for key, value in content["rows"].items()}
    return Table(paper_name, name, content["caption"], columns, rows, content.get("note", ""))


def _row(name: str, content: Mapping[str, Any], columns: Iterable[str]) -> Row:
    cells = {str(key): value for key, value in content["cells"].items()}
    if unknown := cells.keys() - set(columns):
        raise HardpixError(
            f"{FILE}: row {name} has cells {sorted(unknown)}, which are no columns of its table."
        )
    facts = {key: value for key, value in content.items() if key not in ("label", "cells")}
    return Row(name, content["label"], cells, facts)
