"""Scores of classes and images as files next to a record, and how scores are written.

Its last column, ``counts``, holds of every class that occurs or is predicted in the image its index and the pixels hit,
in the truth and predicted: ``0:12/15/14 3:0/2/0``. Sums over images give the scores of any sample of the split. Files
written before the column existed are read as well.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hardpix.record import replacing
from hardpix.types import DataError

if TYPE_CHECKING:
    import numpy as np


PER_CLASS, PER_IMAGE = "per_class.csv", "per_image.csv"


class ImageRow(NamedTuple):
    """``pixels`` are the labelled ones; the scores are fractions, NaN where there is none.

    ``miou`` is the mean over the classes that occur in the image's labels.
    """

    image: str
    pixels: int
    pixel_acc: float
    miou: float
    counts: str = ""  # see above; empty in files of former versions

    def classes(self) -> dict[int, tuple[int, int, int]]:
        """Pixels hit, in the truth and predicted, by the class's index."""
        found = {}
        for part in self.counts.split():
            index, _, numbers = part.partition(":")
            hit, truth, predicted = map(int, numbers.split("/"))
            found[int(index)] = (hit, truth, predicted)
        return found


def write_per_image(rows: Iterable[Sequence[Any]], folder: Path) -> None:
    """Whole or not at all, in the order given; a NaN is written ``nan``.

    A row is an image's name, labelled pixels, pixel accuracy, mIoU and, where they are known, its counts: one
    (class, hit, truth, predicted) for each class.
    """
    with (
        replacing(folder / PER_IMAGE) as unfinished,
        open(unfinished, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(ImageRow._fields)
        writer.writerows(map(_line, rows))


def read_per_image(folder: Path) -> list[ImageRow] | None:
    """None where the run has left none."""
    path = folder / PER_IMAGE
    if not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [_row(row) for row in csv.DictReader(file)]
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); `hardpix evaluate` writes it again.") from None


def _line(row: Sequence[Any]) -> list[str]:
    name, pixels, acc, miou, *counts = row
    spelled = " ".join("{}:{}/{}/{}".format(*one) for one in counts[0]) if counts else ""
    return [name, str(pixels), f"{acc:.6f}", f"{miou:.6f}", spelled]


def _row(row: Mapping[str, Any]) -> ImageRow:
    scores = float(row["pixel_acc"]), float(row["miou"])
    return ImageRow(row["image"], int(row["pixels"]), *scores, row.get("counts") or "")


# Scores of each class from a confusion matrix, for ``per_class.csv``.


COLUMNS = ("class", "iou", "acc", "pixels")


def per_class_rows(confusion: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """``confusion[t, p]`` counts pixels of truth ``t`` predicted as ``p`` (void left out), ``[C, C]`` int64.

    ``iou`` is TP / (TP + FP + FN), NaN for a class that neither occurs nor is predicted; ``acc`` is TP / (TP + FN),
    NaN for one that does not occur; both are fractions. ``pixels`` counts the class in the truth.
    """
    import numpy as np

    hit, truth, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):
        iou, acc = hit / (truth + predicted - hit), hit / truth
    return [
        dict(zip(COLUMNS, (name, float(iou[i]), float(acc[i]), int(truth[i])), strict=True))
        for i, name in enumerate(classes)
    ]


def write_per_class(rows: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """A NaN is written ``nan``, never left blank."""
    with replacing(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# Words of a metric's name that say it is a fraction in [0, 1].
FRACTIONS = frozenset({"miou", "iou", "fgiou", "acc", "macc", "aacc", "accuracy", "dice"})


OF_CLASS = ("iou:", "acc:")  # iou:wall: of one class, from per_class.csv


def is_fraction(metric: str) -> bool:
    return bool(FRACTIONS & words_of(metric))


def words_of(metric: str) -> set[str]:
    name = metric.partition(":")[0] if metric.startswith(OF_CLASS) else metric
    return set(re.split(r"[^a-z0-9]+", name.lower()))


def score_text(metric: str, value: float) -> str:
    """``41.20 %`` of a metric that is a fraction, four digits of any other."""
    return f"{100 * value:.2f} %" if is_fraction(metric) else f"{value:.4g}"


LONG = re.compile(r"\d*\.\d{6,}(?:e[+-]?\d+)?")  # what a search draws: 0.14804560990495674


def brief(names: Sequence[str]) -> list[str]:
    """Labels for the eye: long numbers with four digits, as long as different labels read differently."""
    short = [LONG.sub(lambda found: f"{float(found[0]):.4g}", name) for name in names]
    return short if len(set(short)) == len(set(names)) else list(names)
