"""Compare runs: settings, scores, costs, classes and images against the first one."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardpix.record import RunRecord
from hardpix.scores import PER_CLASS, PER_IMAGE, ImageRow, is_fraction, read_per_image
from hardpix.tables.compare import ABSENT, Run, by_content, differs, ignored, silenced, text, warnings
from hardpix.tables.sheet import TIMES
from hardpix.types import DataError

COSTS = ("cost/", "time/", "run/")  # a ratio says more of them than a difference


@dataclass(frozen=True)
class Side:
    """One run as it is compared. ``settings``: its configuration, flat."""

    directory: str
    record: RunRecord
    settings: dict[str, Any]
    classes: dict[str, float] | None  # IoU of each; None where the run has left none
    images: dict[str, ImageRow] | None


@dataclass(frozen=True)
class Row:
    """A number of every run; ``apart``: the difference from the first one, or the ratio to it, one fewer."""

    name: str
    values: tuple[float, ...]  # NaN where a run lacks it
    apart: tuple[float, ...]


@dataclass(frozen=True)
class Setting:
    key: str
    values: tuple[Any, ...]  # ABSENT where a run lacks it
    matters: bool  # False: a name, a seed, a logger


@dataclass(frozen=True)
class ImagesTally:
    """Of one run against the first, over the images that both score: by mIoU."""

    common: int
    better: int
    worse: int
    mean: float
    alone: int  # scored by one of the two only


@dataclass(frozen=True)
class Differences:
    sides: tuple[Side, ...]
    settings: list[Setting]
    metrics: list[Row]
    costs: list[Row]
    classes: list[Row]  # largest difference first
    images: list[Row]  # the most lost first; only those that all runs score
    tallies: list[ImagesTally]  # of each run but the first
    notes: list[str]


def side(directory: Path, record: RunRecord, settings: dict[str, Any]) -> Side:
    """With what lies next to the record: ``per_class.csv`` and ``per_image.csv``."""
    images = read_per_image(directory)
    named = None if images is None else {row.image: row for row in images}
    return Side(str(directory), record, settings, _read_classes(directory / PER_CLASS), named)


def differences(sides: Sequence[Side]) -> Differences:
    metrics = [side.record.metrics for side in sides]
    known = sorted(set().union(*metrics))
    costs = [name for name in known if name.startswith(COSTS)]
    per_class = [side.classes or {} for side in sides]
    classes = [name for name in per_class[0] if all(name in one for one in per_class)]
    return Differences(
        sides=tuple(sides),
        settings=_settings(sides),
        metrics=[_row(name, metrics, _minus) for name in known if name not in costs],
        costs=[_row(name, metrics, _over) for name in costs],
        classes=sorted((_row(name, per_class, _minus) for name in classes), key=_largest, reverse=True),
        images=sorted(_image_rows(sides), key=_most_lost),
        tallies=[_tally(sides[0].images or {}, other.images or {}) for other in sides[1:]],
        notes=_notes(sides, classes),
    )


def worst(images: Sequence[Row], count: int) -> list[Row]:
    """The images with the lowest mIoU in any of the runs."""
    scored = [row for row in images if not all(map(math.isnan, row.values))]
    return sorted(scored, key=lambda row: min(v for v in row.values if not math.isnan(v)))[:count]


def _settings(sides: Sequence[Side]) -> list[Setting]:
    found = []
    runs, settled = by_content([Run(side.directory, side.record) for side in sides])
    same = {key for key in settled if not differs(runs, key)}  # the same files at several paths
    silent = (*ignored(side.settings for side in sides), *same)
    for key in sorted(set().union(*(side.settings for side in sides))):
        values = tuple(side.settings.get(key, ABSENT) for side in sides)
        if any(not _same(value, values[0]) for value in values):
            found.append(Setting(key, values, not silenced(silent, key)))
    return found


def _same(a: Any, b: Any) -> bool:
    """1 and 1.0 are the same number; True is none."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _row(name: str, values: Sequence[dict[str, float]], apart: Callable[[float, float], float]) -> Row:
    own = tuple(one.get(name, math.nan) for one in values)
    return Row(name, own, tuple(apart(value, own[0]) for value in own[1:]))


def _minus(value: float, reference: float) -> float:
    return value - reference


def _over(value: float, reference: float) -> float:
    return value / reference if reference else math.nan


def _largest(row: Row) -> float:
    return max((abs(value) for value in row.apart if not math.isnan(value)), default=-1.0)


def _most_lost(row: Row) -> float:
    return min((value for value in row.apart if not math.isnan(value)), default=math.inf)


def _image_rows(sides: Sequence[Side]) -> list[Row]:
    scores = [{name: row.miou for name, row in (side.images or {}).items()} for side in sides]
    return [_row(name, scores, _minus) for name in scores[0] if all(name in one for one in scores)]


def _tally(reference: dict[str, ImageRow], other: dict[str, ImageRow]) -> ImagesTally:
    """An image without a labelled pixel counts for nothing."""
    common = reference.keys() & other.keys()
    apart = [d for name in sorted(common) if not math.isnan(d := other[name].miou - reference[name].miou)]
    return ImagesTally(
        common=len(common),
        better=sum(d > 0 for d in apart),
        worse=sum(d < 0 for d in apart),
        mean=sum(apart) / len(apart) if apart else math.nan,
        alone=len(reference.keys() ^ other.keys()),
    )


def _notes(sides: Sequence[Side], classes: Sequence[str]) -> list[str]:
    notes = [
        f"{side.directory} is {side.record.outcome}{f': {side.record.reason}' if side.record.reason else ''}."
        for side in sides
        if side.record.status != "done"
    ]
    scored = {side.record.dataset for side in sides if side.record.dataset}
    if len(scored) > 1:
        notes.append(f"The runs are scored on different data: {', '.join(sorted(scored))}.")
    for what, file, lacking in (
        ("class", PER_CLASS, [side.directory for side in sides if side.classes is None]),
        ("image", PER_IMAGE, [side.directory for side in sides if side.images is None]),
    ):
        if lacking:
            notes.append(f"No scores of each {what}: {', '.join(lacking)} lacks {file}.")
    named = [list(side.classes) for side in sides if side.classes is not None]
    if any(sorted(names) != sorted(classes) for names in named) and len(named) == len(sides):
        notes.append("The runs know different classes; those that all of them know are compared.")
    return notes + warnings([Run(side.directory, side.record) for side in sides])


def _read_classes(path: Path) -> dict[str, float] | None:
    if not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {line["class"]: float(line["iou"]) for line in csv.DictReader(file)}
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); `hardpix evaluate` writes it again.") from None


# Differences of runs as Markdown and as JSON.


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
    parts += _settings_lines(found, letters)
    parts += _numbers("Scores", found.metrics, letters, lambda row: is_fraction(row.name))
    parts += _costs(found.costs, letters)
    parts += _numbers("IoU of each class (%)", found.classes, letters, lambda row: True)
    parts += _images(found, letters, images)
    if found.notes:
        parts.append("\n".join(f"- {note}" for note in found.notes))
    return "\n\n".join(parts) + "\n"


def _settings_lines(found: Differences, letters: Sequence[str]) -> list[str]:
    shown = [setting for setting in found.settings if setting.matters]
    others = [setting for setting in found.settings if not setting.matters]
    parts = ["## Settings"]
    rows = [[s.key, *(_short(value) for value in s.values)] for s in shown]
    parts.append(_table(["key", *letters], rows) if rows else "The settings that may matter agree.")
    if others:
        pieces = [f"{s.key} ({' / '.join(_short(value) for value in s.values)})" for s in others]
        parts.append(f"Also different (names, seeds, loggers): {', '.join(pieces)}.")
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
    pieces = [
        f"{a} against {letters[0]}: {t.common} images in common, {t.better} better, {t.worse} worse, mean "
        f"difference {_signed(t.mean, True)} points"
        + (f"; {t.alone} are scored by one of the two only" if t.alone else "")
        for a, t in zip(letters[1:], found.tallies, strict=True)
    ]
    parts = [
        "## Images (mIoU of the classes in each, %)",
        "\n".join(f"{line}.  " for line in pieces).rstrip(),
    ]
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
    summary = text(value)
    return summary if len(summary) <= LONGEST else summary[: LONGEST - 1] + "…"


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
