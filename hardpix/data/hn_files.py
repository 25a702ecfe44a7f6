"""The files of labels of height and normal, all but the pictures and the labels themselves.

Layout; :func:`hardpix.data.hn_labels.make_labels` writes it and :class:`hardpix.data.HN` reads it::

    hn.json                      classes, palette, settings, source, and counts of each split
    hn.log                       a sentence for each frame that could not be read, where there are any
    {split}/images/NAME.*        the picture: a hard link to the data set's file (a copy where links are impossible),
                                 or a PNG where cropping or resizing changed it or the data set has no such file
    {split}/labels/NAME.png      grey: the class, 255 for void
    {split}/frames.jsonl         a line a frame, the rejected ones too, which have no files

A frame is done when the listing has its line and the files that the line tells of are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import hardpix
from hardpix.atomic import UNFINISHED, write_text
from hardpix.types import ConfigError, DataError

FACTS, LISTING, LOG = "hn.json", "frames.jsonl", "hn.log"
IMAGES, LABELS = "images", "labels"
SCHEMA = 1

Entry = dict[str, Any]  # what the listing says of a frame


def begin(out: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """What ``hn.json`` holds, of a new folder or of one that was begun with the same settings and source."""
    path = out / FACTS
    if not path.is_file():
        if out.exists() and (
            not out.is_dir() or any(not UNFINISHED.fullmatch(p.name) for p in out.iterdir())
        ):
            raise DataError(f"{out}: it holds other files; --out must be a new or an empty folder")
        return {"schema": SCHEMA, "hardpix": hardpix.__version__, **wanted, "splits": {}}
    facts = read_facts(path)
    for part, spelled in (("source", "data.source.{}="), ("settings", "--{} ")):
        before, now = facts[part], wanted[part]
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                option = spelled.format(key if part == "source" else key.replace("_", "-"))
                raise ConfigError(
                    f"{out}: it was begun with {option}{before.get(key)}, not {now.get(key)}; "
                    "give the same settings, or another --out"
                )
    return facts


def read_facts(path: Path) -> dict[str, Any]:
    """``hn.json`` as far as its shape goes; ``DataError`` where it is not what :func:`make_labels` wrote."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); make the labels again") from None
    parts = ("settings", "source", "splits")
    shaped = isinstance(facts, dict) and all(isinstance(facts.get(part), dict) for part in parts)
    if not shaped or facts.get("schema") != SCHEMA or not all(map(_is_tally, facts["splits"].values())):
        raise DataError(
            f"{path}: not what hardpix data hn-labels of this version writes; make the labels again"
        )
    return facts


def _is_tally(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("rejected"), dict):
        return False
    numbers = [value.get(key) for key in ("frames", "labelled", "failed")] + list(value["rejected"].values())
    return value.get("status") in ("running", "done") and all(type(n) is int and n >= 0 for n in numbers)


def read_listing(path: Path) -> list[Entry]:
    """The sound lines of a listing; of a line that was cut off the frame counts as not made."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [entry for entry in map(_entry, lines) if entry is not None]


def _entry(line: str) -> Entry | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    rejected, image = entry.get("rejected", 0), entry.get("image")
    if not (isinstance(rejected, str) or (rejected is None and isinstance(image, str))):
        return None
    files = [entry["name"], *([image] if rejected is None else [])]
    safe = all(file == Path(file).name and "\\" not in file and file not in ("", ".", "..") for file in files)
    return entry if safe else None


def write_listing(path: Path, entries: Iterable[Entry]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(map(line_of, entries)))


def line_of(entry: Entry) -> str:
    return json.dumps(entry) + "\n"


def plain_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return dict(json.loads(json.dumps(settings)))
