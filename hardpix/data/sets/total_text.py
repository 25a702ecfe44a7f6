"""Total-Text: photographs with straight and curved words (Ch'ng and Chan 2017; Ch'ng, Chan and Liu 2020)."""

from __future__ import annotations

from math import ceil, floor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from hardpix.data.files import FileSource, FrameFiles, existing_root
from hardpix.data.images import image_size, orientation, read_colour
from hardpix.data.labels import LabelReader
from hardpix.data.listing import files_below, is_hidden, list_images, normal, one_each
from hardpix.data.matlab import read_variable, require
from hardpix.types import ConfigError, DataError, DatasetInfo

BACKGROUND, TEXT, VOID = 0, 1, 255
FOLDERS = {
    "pixel": "groundtruth_pixel",
    "region": "groundtruth_textregion/Text_Region_Mask",
    "polygon": "Groundtruth/Polygon",
}
NAMES = {"pixel": ("", ".jpg"), "region": ("", ".png"), "polygon": ("poly_gt_", ".mat")}
Truth = Literal["pixel", "region", "polygon"]


class TotalText(FileSource):
    """Text against background, 1255 training and 300 test photographs of many sizes.

    Layout below ``root``, as the archives unpack; the ending of a name may be in capitals (img61.JPG)::

        Images/{Train,Test}/imgN.jpg                                       RGB
        groundtruth_pixel/{Train,Test}/imgN.jpg                            strokes of characters, 0 and 255
        groundtruth_textregion/Text_Region_Mask/{Train,Test}/imgN.png      areas of words, 0 and 255
        Groundtruth/Polygon/{Train,Test}/poly_gt_imgN.mat                  outlines of words (needs hardpix[mat])

    ``val`` is the test split: the data set has no other, and papers report on it.

    truth: ``pixel`` (the papers' "character level masks"; stored as JPEG, so cut at 128), ``region``, or
        ``polygon``, whose outlines are drawn (:func:`rasterise`) with the first pixel's centre
        at (1, 1), as MATLAB counts: that is how the region masks were made.
    illegible: what the words that nobody can read (transcription or orientation '#') are in ``polygon`` truth:
        ``ignore`` leaves them out of loss and scores, ``text`` counts them. In both kinds of masks they are background.

    Truth belongs to the stored pixels: where a photograph's EXIF turns it upright, its label is turned with it.
    """

    own_val = False
    info = DatasetInfo(
        name="total_text",
        classes=("background", "text"),
        palette=((0, 0, 0), (255, 255, 255)),
        ignore_index=VOID,
        main_metric="fg_iou",
    )

    def __init__(
        self, root: str, *, truth: Truth = "pixel", illegible: Literal["ignore", "text"] = "ignore"
    ) -> None:
        if truth not in FOLDERS:
            raise ConfigError(f"truth is '{truth}'; it must be one of {', '.join(FOLDERS)}")
        if illegible not in ("ignore", "text"):
            raise ConfigError(f"illegible is '{illegible}'; it must be 'ignore' or 'text'")
        self.root = Path(root)
        self._truth, self._illegible = truth, VOID if illegible == "ignore" else TEXT

    def files(self, split: str) -> list[FrameFiles]:
        existing_root(self.root, "Total-Text")
        self.check_split(split)
        labels, (prefix, suffix) = self._labels(split), NAMES[self._truth]
        found = one_each((truth_key(path), path) for path in self._truths(split))
        return [
            FrameFiles(
                image.stem, image, found.get(truth_key(image), labels / f"{prefix}{image.stem}{suffix}")
            )
            for image in sorted(list_images(self.root / "Images" / _folder(split)), key=_number)
        ]

    def image_files(self, split: str) -> list[Path]:
        return files_below(self.root / "Images" / _folder(split))

    def label_reader(self, split: str) -> LabelReader:
        if self._truth != "polygon":
            return MaskReader()
        require(self._labels(split))  # now, and not at each frame
        return PolygonReader(self._illegible)

    def strays(self, split: str) -> list[Path]:
        named = {file.label for file in self.paired(split)}
        return [path for path in self._truths(split) if path not in named]

    def remarks(self) -> tuple[str, ...]:
        if self._truth == "polygon" and self._illegible == VOID:
            return ("words marked '#' (illegible) are left out of loss and scores",)
        return ()

    def _truths(self, split: str) -> list[Path]:
        kinds = (".mat",) if self._truth == "polygon" else (".png", ".jpg", ".jpeg")
        labels = self._labels(split)
        found = sorted(labels.iterdir()) if labels.is_dir() else []
        return [path for path in found if path.suffix.lower() in kinds and not is_hidden(path.name)]

    def _labels(self, split: str) -> Path:
        return self.root / FOLDERS[self._truth] / _folder(split)


class MaskReader:
    """Masks of text (near 255) on background (near 0), grey or RGB, JPEG or PNG."""

    def read(self, path: Path, image: Path) -> Tensor:
        label = (read_colour(path).mean(axis=2) >= 128).astype(np.uint8)
        # A mask with an orientation of its own has been turned already.
        return torch.from_numpy(label) if orientation(path) > 1 else turned(label, image)

    def identity(self) -> str:
        return "text from 128"


class PolygonReader:
    """Outlines of words in MATLAB files: rows of 'x:', x, 'y:', y, transcription, orientation."""

    def __init__(self, illegible: int) -> None:
        self.illegible = illegible

    def read(self, path: Path, image: Path) -> Tensor:
        size = image_size(image)
        stored = size[::-1] if orientation(image) > 4 else size
        label = np.full(stored, BACKGROUND, dtype=np.uint8)
        # Legible words last: where an illegible one overlaps them, they are text.
        for value, x, y in sorted(self._words(path), key=lambda word: word[0] == TEXT):
            label[rasterise(x - 1, y - 1, stored)] = value
        return turned(label, image)

    def identity(self) -> str:
        return f"polygons, illegible {self.illegible}"

    def _words(self, path: Path) -> list[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
        # The refined outlines of the training photographs call the variable gt.
        rows = read_variable(path, "polygt", "gt")
        if rows.ndim != 2 or rows.shape[1] < 5:
            raise DataError(
                f"{path}: its table has shape {rows.shape}; it must have a row per word: x:, x, y:, y, text"
            )
        words = []
        for row in rows:
            x, y = (np.asarray(row[column], dtype=np.float64).ravel() for column in (1, 3))
            if len(x) != len(y):
                raise DataError(f"{path}: a word has {len(x)} x but {len(y)} y coordinates; they must pair")
            marks = [str(mark).strip() for cell in row[4:] for mark in np.ravel(cell)]
            words.append((self.illegible if "#" in marks else TEXT, x, y))
        return words


def turned(label: NDArray[np.uint8], image: Path) -> Tensor:
    """A label of the stored pixels, turned upright as ``image`` is when it is read."""
    how = orientation(image)
    if how > 1:
        picture = Image.fromarray(label)
        picture.getexif()[274] = how
        label = np.array(ImageOps.exif_transpose(picture))
    return torch.from_numpy(label)


def _folder(split: str) -> str:
    return "Train" if split == "train" else "Test"


def truth_key(path: Path) -> str:
    """What an image and its truth share: ``img61`` of img61.JPG and of poly_gt_img61.mat."""
    return normal(path.stem).lower().removeprefix("poly_").removeprefix("gt_")


def _number(path: Path) -> tuple[int, str]:
    digits = "".join(character for character in path.stem if character.isdigit())
    return int(digits or 0), path.name


# Polygons drawn into masks.


def rasterise(x: NDArray, y: NDArray, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels ``[H, W]`` whose centre lies inside the polygon with corners (``x``, ``y``), even-odd rule.

    The centre of the pixel in row 2 and column 5 is x = 5, y = 2. A centre on the outline counts where the
    inside is right of it or below it, so polygons that share an edge share no pixel. Corners may lie outside;
    fewer than three enclose nothing.
    """
    height, width = size
    inside = np.zeros(size, dtype=bool)
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 3:
        return inside
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    for row in range(max(0, ceil(y.min())), min(height, floor(y.max()) + 1)):
        crosses = (y <= row) != (next_y <= row)
        x0, y0, x1, y1 = x[crosses], y[crosses], next_x[crosses], next_y[crosses]
        at = np.ceil(np.sort(x0 + (row - y0) * (x1 - x0) / (y1 - y0))).clip(0, width).astype(int)
        for start, stop in zip(at[::2], at[1::2], strict=True):
            inside[row, start:stop] = True
    return inside
