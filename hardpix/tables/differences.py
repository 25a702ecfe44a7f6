"""What two runs or more differ in: settings, scores, costs, classes, images. The first one is the reference."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardpix.record import RunRecord
from hardpix.report.collect import Run
from hardpix.report.compare import ABSENT, differs, ignored, silenced, warnings
from hardpix.report.identity import by_content
from hardpix.report.per_image import ImageRow, read_per_image
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
    matters: bool  # False: a name, a seed, what watches


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
    """With what lies beside the record: ``per_class.csv`` and ``per_image.csv``."""
    images = read_per_image(directory)
    named = None if images is None else {row.image: row for row in images}
    return Side(str(directory), record, settings, _read_classes(directory / "per_class.csv"), named)


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
        ("class", "per_class.csv", [side.directory for side in sides if side.classes is None]),
        ("image", "per_image.csv", [side.directory for side in sides if side.images is None]),
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
        raise DataError(f"{path} is damaged ({error}); `hardpix evaluate` writes one anew.") from None
