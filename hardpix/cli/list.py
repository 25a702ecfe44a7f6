"""``hardpix list``: methods, heads, data sets, experiments and all else that can be chosen, one line each."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from hardpix.config import catalog
from hardpix.config.catalog import Entry, use
from hardpix.config.command_line import Parser

WIDEST = 44  # names above it push their own line only


def main(arguments: list[str]) -> int:
    parser = Parser(
        "hardpix list",
        description="What can be chosen, one line each, from the first comment of each file of conf/. Without a LIST: "
        "the lists there are.",
    )
    parser.add_argument("list", nargs="?", metavar="LIST", help="methods, heads, datasets, experiments, ...")
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="names that begin with this, or contain it: hl"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args(arguments)
    known = catalog.groups()
    if given.list is None:
        text = _overview_json(known) if given.json else _overview(known)
    else:
        found = catalog.entries(catalog.group_called(given.list, known))
        if given.name is not None:
            found = catalog.matching(found, given.name)
        text = _as_json(found) if given.json else _lines(found)
    print(text)
    return 0


def _overview(known: list[str]) -> str:
    rows = [(catalog.called(group), len(catalog.entries(group)), use(group)) for group in known]
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
            "count": len(catalog.entries(group)),
            "use": use(group),
        }
        for group in known
    ]
    return json.dumps(rows, indent=1)


def _lines(found: list[Entry]) -> str:
    """A line per entry; on a terminal it ends where the screen does."""
    width = min(max(len(entry.name) for entry in found), WIDEST)
    lines = [f"{entry.name:<{width}}  {entry.about}" for entry in found]
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
