"""Scores of each class from a confusion matrix, for ``per_class.csv``."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hardpix.atomic import replacing

if TYPE_CHECKING:
    import numpy as np

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
