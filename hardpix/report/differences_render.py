"""Differences of runs as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from hardpix.report.compare import ABSENT, text
from hardpix.report.differences import Differences, Row, worst
from hardpix.report.render import TIMES, is_fraction

LONGEST = 60  # of a value in a cell


def as_json(found: Differences) -> str:
    """Fractions as they are; a number that a run lacks is null, a setting that it lacks is in ``absent``."""
    content = {
        "runs": [
            {
                "directory": side.directory,
                "name": side.record.name,
                "run_id": side.record.run_id,
                "status": side.record.outcome,
                "seed": side.record.seed,
                "dataset": side.record.dataset,
            }
            for side in found.sides
        ],
        "settings": [
            {
                "key": setting.key,
                "values": [None if value is ABSENT else value for value in setting.values],
                "absent": [i for i, value in enumerate(setting.values) if value is ABSENT],
                "matters": setting.matters,
            }
            for setting in found.settings
        ],
        "metrics": [_plain(row, "differences") for row in found.metrics],
        "costs": [_plain(row, "ratios") for row in found.costs],
        "classes": [_plain(row, "differences") for row in found.classes],
        "images": [_plain(row, "differences") for row in found.images],
        "images_told": [
            {**vars(tally), "mean": None if math.isnan(tally.mean) else tally.mean} for tally in found.tallies
        ],
        "notes": found.notes,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def markdown(found: Differences, images: int) -> str:
    """``images``: how many to show of those that lose most, gain most and are worst."""
    letters = [chr(ord("A") + i) if len(found.sides) <= 26 else str(i + 1) for i in range(len(found.sides))]
    parts = ["\n".join(f"{a} = {s.directory}  " for a, s in zip(letters, found.sides, strict=True)).rstrip()]
    parts += _settings(found, letters)
    parts += _numbers("Scores", found.metrics, letters, lambda row: is_fraction(row.name))
    parts += _costs(found.costs, letters)
    parts += _numbers("IoU of each class (%)", found.classes, letters, lambda row: True)
    parts += _images(found, letters, images)
    if found.notes:
        parts.append("\n".join(f"- {note}" for note in found.notes))
    return "\n\n".join(parts) + "\n"


def _settings(found: Differences, letters: Sequence[str]) -> list[str]:
    shown = [setting for setting in found.settings if setting.matters]
    others = [setting for setting in found.settings if not setting.matters]
    parts = ["## Settings"]
    rows = [[s.key, *(_short(value) for value in s.values)] for s in shown]
    parts.append(_table(["key", *letters], rows) if rows else "The settings that may matter agree.")
    if others:
        told = [f"{s.key} ({' / '.join(_short(value) for value in s.values)})" for s in others]
        parts.append(f"Also different (names, seeds, what watches): {', '.join(told)}.")
    return parts


def _numbers(title: str, rows: Sequence[Row], letters: Sequence[str], fraction: Any) -> list[str]:
    if not rows:
        return []
    lines = []
    for row in rows:
        percent = fraction(row)
        name = f"{row.name} (%)" if percent and "%" not in title else row.name
        lines.append(
            [name, *(_value(v, percent) for v in row.values), *(_signed(v, percent) for v in row.apart)]
        )
    return [f"## {title}", _table(["", *letters, *(f"{a} - {letters[0]}" for a in letters[1:])], lines)]


def _costs(rows: Sequence[Row], letters: Sequence[str]) -> list[str]:
    if not rows:
        return []
    lines = [
        [row.name, *(_value(v, False) for v in row.values),
         *("-" if math.isnan(v) else f"{TIMES}{v:.3g}" for v in row.apart)]
        for row in rows
    ]  # fmt: skip
    return ["## Costs", _table(["", *letters, *(f"{a} / {letters[0]}" for a in letters[1:])], lines)]


def _images(found: Differences, letters: Sequence[str], count: int) -> list[str]:
    if not found.images:
        return []
    told = [
        f"{a} against {letters[0]}: {t.common} images in common, {t.better} better, {t.worse} worse, mean "
        f"difference {_signed(t.mean, True)} points"
        + (f"; {t.alone} are scored by one of the two only" if t.alone else "")
        for a, t in zip(letters[1:], found.tallies, strict=True)
    ]
    parts = ["## Images (mIoU of the classes in each, %)", "\n".join(f"{line}.  " for line in told).rstrip()]
    lost = [row for row in found.images if any(value < 0 for value in row.apart)][:count]
    gained = [row for row in found.images if any(value > 0 for value in row.apart)]
    gained = sorted(gained, key=lambda row: -max(v for v in row.apart if not math.isnan(v)))[:count]
    for title, rows in (
        ("Lose most", lost),
        ("Gain most", gained),
        ("Worst in any run", worst(found.images, count)),
    ):
        shown = _numbers(f"{title} (%)", rows, letters, lambda row: True)
        parts += [part.replace("## ", "### ", 1).replace(" (%)", "", 1) for part in shown]
    return parts


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Padded, so that it reads well in a terminal too; numbers to the right."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in (cells[0], rule, *cells[1:])
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _short(value: Any) -> str:
    told = text(value)
    return told if len(told) <= LONGEST else told[: LONGEST - 1] + "…"


def _value(value: float, percent: bool) -> str:
    if math.isnan(value):
        return "-"
    return f"{100 * value:.2f}" if percent else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _signed(value: float, percent: bool) -> str:
    if math.isnan(value):
        return "-"
    return f"{100 * value:+.2f}" if percent else f"{value:+,.4g}"


def _plain(row: Row, apart: str) -> dict[str, Any]:
    return {"name": row.name, "values": _json(row.values), apart: _json(row.apart)}


def _json(values: Sequence[float]) -> list[float | str | None]:
    return [None if math.isnan(v) else v if math.isfinite(v) else str(v) for v in values]
