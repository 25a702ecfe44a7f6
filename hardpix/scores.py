"""Scores of each image of a split, ``per_image.csv``: written after a test, read where runs are compared.

Its last column, ``counts``, holds of every class that occurs or is predicted in the image its index and the pixels hit,
in the truth and predicted: ``0:12/15/14 3:0/2/0``. Sums over images give the scores of any sample of the split. Files
written before the column existed are read as well.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hardpix.atomic import replacing
from hardpix.types import DataError

FILE_NAME = "per_image.csv"


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
        replacing(folder / FILE_NAME) as unfinished,
        open(unfinished, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(ImageRow._fields)
        writer.writerows(map(_line, rows))


def read_per_image(folder: Path) -> list[ImageRow] | None:
    """None where the run has left none."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [_row(row) for row in csv.DictReader(file)]
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); `hardpix evaluate` writes one anew.") from None


def _line(row: Sequence[Any]) -> list[str]:
    name, pixels, acc, miou, *counts = row
    told = " ".join("{}:{}/{}/{}".format(*one) for one in counts[0]) if counts else ""
    return [name, str(pixels), f"{acc:.6f}", f"{miou:.6f}", told]


def _row(row: Mapping[str, Any]) -> ImageRow:
    scores = float(row["pixel_acc"]), float(row["miou"])
    return ImageRow(row["image"], int(row["pixels"]), *scores, row.get("counts") or "")
