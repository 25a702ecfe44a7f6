"""Figures as files: PNG and PDF with the same content, a CSV of the numbers beside them, whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hardpix.atomic import obstacle, replacing
from hardpix.types import HardpixError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf")
DPI = 200
# No date and no program version: the same runs give the same bytes.
METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def targets(out: Path, kind: str) -> list[Path]:
    """The pictures to write for ``--out``: a file that ends in .png or .pdf, or both of them in a folder."""
    suffix = out.suffix.lower()
    as_file = suffix in SUFFIXES and not out.is_dir()
    folder = out.parent if as_file else out
    if suffix and not as_file and not out.is_dir():
        raise HardpixError(f"--out {out}: must end in .png or .pdf, or be a folder without a dot in its name")
    taken = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
    if taken is not None:
        raise HardpixError(f"--out {out}: {taken} is a file; name a folder, or a file in one")
    if problem := obstacle(folder, folder=True):
        raise HardpixError(f"--out {out}: {problem}; name a place that can be written")
    return [out] if as_file else [out / f"{kind}{s}" for s in SUFFIXES]


def save_chart(figure: Figure, paths: Iterable[Path]) -> None:
    for path in paths:
        suffix = path.suffix.lower()
        _write(path, partial(figure.savefig, format=suffix[1:], dpi=DPI, metadata=METADATA[suffix]))


def save_picture(picture: Image.Image, paths: Iterable[Path]) -> None:
    """Every pixel as it is, also in the PDF (where Pillow itself would compress like a photograph)."""
    for path in paths:
        if path.suffix.lower() == ".png":
            _write(path, partial(picture.save, format="png"))
        else:
            save_chart(_as_figure(picture), [path])


def save_numbers(header: Sequence[str], rows: Iterable[Sequence[object]], path: Path) -> None:
    def write(unfinished: Path) -> None:
        with open(unfinished, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)

    _write(path, write)


def _as_figure(picture: Image.Image) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(picture.width / DPI, picture.height / DPI), dpi=DPI)
    figure.figimage(np.asarray(picture), origin="upper")
    return figure


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, sync=False) as unfinished:
            write(unfinished)
    except OSError as error:
        raise HardpixError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None
