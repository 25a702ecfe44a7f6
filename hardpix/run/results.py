"""Scores of one split as files and on screen: per-class table, confusion matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hardpix.atomic import replacing
from hardpix.report.per_class import per_class_rows, write_per_class
from hardpix.report.per_image import write_per_image
from hardpix.types import DatasetInfo


def write(folder: Path, confusion: np.ndarray, info: DatasetInfo, images: Iterable[Sequence[Any]]) -> None:
    """``per_class.csv``, ``per_image.csv`` and ``confusion.npy`` (int64 ``[C, C]``, rows truth, columns prediction)."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "confusion.npy") as unfinished:
        np.save(unfinished, confusion)
    write_per_class(per_class_rows(confusion, info.classes), folder / "per_class.csv")
    write_per_image(images, folder)


def show(confusion: np.ndarray, info: DatasetInfo, *, title: str) -> None:
    """The per-class table on screen; a class that is absent prints as such and is left out of the mean."""
    rows = per_class_rows(confusion, info.classes)
    table = Table(title=title)
    for column, side in (("class", "left"), ("IoU %", "right"), ("accuracy %", "right"), ("pixels", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(row["class"], _percent(row["iou"]), _percent(row["acc"]), f"{row['pixels']:,}")
    ious = [float(row["iou"]) for row in rows if str(row["iou"]) != "nan"]
    mean = 100 * sum(ious) / len(ious) if ious else float("nan")
    table.add_section()
    table.add_row(f"mean of {len(ious)} classes", f"{mean:.2f}", "", f"{int(confusion.sum()):,}")
    Console().print(table)


def _percent(value: float | str) -> str:
    return "absent" if str(value) == "nan" else f"{100 * float(value):.2f}"
