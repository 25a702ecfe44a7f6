"""Scores of each image of a split, ``per_image.csv``: written after a test, read where runs are compared."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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


def write_per_image(rows: Iterable[tuple[str, int, float, float]], folder: Path) -> None:
    """Whole or not at all, in the order given; a NaN is written ``nan``."""
    path = folder / FILE_NAME
    temporary = path.with_name(f".{FILE_NAME}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(ImageRow._fields)
            writer.writerows((name, pixels, f"{acc:.6f}", f"{miou:.6f}") for name, pixels, acc, miou in rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def _row(row: Mapping[str, Any]) -> ImageRow:
    return ImageRow(row["image"], int(row["pixels"]), float(row["pixel_acc"]), float(row["miou"]))
