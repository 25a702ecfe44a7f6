"""``hardpix list``: methods, heads, data sets, published rows and all else that can be chosen, one line each."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hardpix.config import catalog
from hardpix.config.catalog import Entry, use
from hardpix.config.command_line import Parser, suggestion

if TYPE_CHECKING:
    from hardpix.config.rows import Row

WIDEST = 44  # names above it push their own line only


def main(arguments: list[str]) -> int:
    parser = Parser(
        "hardpix list",
        description="What can be chosen, one line each, from the first comment of each file of conf/. Without a LIST: "
        "the lists there are.",
    )
    parser.add_argument(
        "list", nargs="?", metavar="LIST", help="methods, heads, datasets, experiments, rows, ..."
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="names that begin with this, or contain it: hl; of rows also a published table: hl/6",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args(arguments)
    known = catalog.groups()
    if given.list is None:
        text = _overview_json(known) if given.json else _overview(known)
    elif given.list in ("rows", "row"):
        found_rows = _rows(given.name)
        text = _rows_json(found_rows) if given.json else _rows_lines(found_rows)
    else:
        found = catalog.entries(catalog.group_called(given.list, known))
        if given.name is not None:
            found = catalog.matching(found, given.name)
        text = _as_json(found) if given.json else _lines(found)
    print(text)
    return 0


def _overview(known: list[str]) -> str:
    rows = [(catalog.called(group), _count(group), use(group)) for group in known]
    names, counts = max(len(row[0]) for row in rows), max(len(str(row[1])) for row in rows)
    lines = [f"{name:<{names}}  {count:>{counts}}  {how}" for name, count, how in rows]
    return "\n".join(
        [*lines, "", "hardpix list LIST shows one of them, hardpix list LIST NAME a part of it."]
    )


def _overview_json(known: list[str]) -> str:
    rows = [
        {
            "list": catalog.called(group),
            "group": group,
            "count": _count(group),
            "use": use(group),
        }
        for group in known
    ]
    return json.dumps(rows, indent=1)


def _count(group: str) -> int:
    return len(catalog.row_names() if group == "rows" else catalog.entries(group))


def _rows(part: str | None) -> list[Row]:
    """The rows of all papers; of a paper or a published table; else those whose name has ``part``."""
    from hardpix.config import published, rows

    every = [one for paper in rows.papers() for one in rows.rows(paper).values()]
    if part is None:
        return every
    tables = [f"{paper.id}/{table}" for paper in published.papers().values() for table in paper.tables]
    if part in (*rows.papers(), *tables):
        return rows.rows_of(part)
    if found := [one for one in every if part.lower() in one.full_name.lower()]:
        return found
    names = [*rows.papers(), *tables, *(one.full_name for one in every)]
    hint = suggestion(part, names) or f" (papers: {', '.join(rows.papers())})"
    raise catalog.refusal(f"{part} is no published row, table or paper{hint}")


def _rows_lines(found: list[Row]) -> str:
    return _columns([(one.full_name, one.about) for one in found])


def _rows_json(found: list[Row]) -> str:
    rows = [
        {
            "name": one.full_name,
            "overrides": list(one.overrides),
            "chain": one.chain,
            "evaluate": one.evaluate,
            "ssim": list(one.ssim),
            "cells": list(one.cells),
        }
        for one in found
    ]
    return json.dumps(rows, indent=1)


def _lines(found: list[Entry]) -> str:
    return _columns([(entry.name, entry.about) for entry in found])


def _columns(found: list[tuple[str, str]]) -> str:
    """A line per name; on a terminal it ends where the screen does."""
    width = min(max(len(name) for name, _ in found), WIDEST)
    lines = [f"{name:<{width}}  {about}" for name, about in found]
    if sys.stdout.isatty():
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
        lines = [line if len(line) <= columns else line[: columns - 1] + "…" for line in lines]
    return "\n".join(lines)


def _as_json(found: list[Entry]) -> str:
    root = catalog.conf_dir().parent
    rows = [
        {
            "name": entry.name,
            "group": entry.group,
            "about": entry.about,
            "use": entry.use,
            "file": Path(os.path.relpath(entry.path, root)).as_posix(),
        }
        for entry in found
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False)
