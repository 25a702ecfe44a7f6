"""GTAV, "Playing for Data": rendered street scenes with the labels of Cityscapes (Richter et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hardpix.data.files import FileSource, FrameFiles, existing_root
from hardpix.data.images import image_mode, image_size
from hardpix.data.labels import ColourCode, LabelCode
from hardpix.data.listing import files_below
from hardpix.data.matlab import read_variable
from hardpix.data.sets.cityscapes import CLASSES, LABELS, PALETTE, VOID, class_to_id, id_to_class
from hardpix.types import DataError, DatasetInfo

SPLIT_FILE = "split.mat"
LICENSE_PLATE = 34  # the one id beyond Cityscapes' files, where licence plates are not drawn


class GTAV(FileSource):
    """Rendered street scenes, 1914x1052 pixels, 24966 frames, the 19 classes of Cityscapes.

    Layout below ``root``, as the parts 01..10 of the release unpack::

        images/NNNNN.png    RGB
        labels/NNNNN.png    palette: ids of Cityscapes, and 34 licence plate (void); grey files of ids and RGB files
                            of the data set's colours are read too
        split.mat           trainIds, valIds, testIds (of read_mapping.zip; needs pip install 'hardpix[mat]')

    With ``split.mat`` its numbers are the splits, 12403 / 6382 / 6181 frames. Without it every frame is one of
    ``train`` and there is no other split. The frames are the images that lie there: a part of the release will do.

    60 labels of the release differ in size from their images: such a frame is refused, and
    ``hardpix data prepare gtav`` resizes its label. Two images, 15188 and 17705, are reported to be blank.
    """

    info = DatasetInfo(name="gtav", classes=CLASSES, palette=PALETTE, ignore_index=VOID)

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def files(self, split: str) -> list[FrameFiles]:
        existing_root(self.root, "GTAV")
        images = sorted((self.root / "images").glob("[!.]*.png"))
        if not images:
            raise DataError(f"{self.root / 'images'}: no NNNNN.png in it; it must hold the frames of GTAV")
        chosen = self._numbers(split)
        if chosen is not None:
            images = [image for image in images if _number(image) in chosen]
            if not images:
                raise DataError(f"{self.root}: none of the images belongs to {split} by {SPLIT_FILE}")
        return [FrameFiles(image.stem, image, self.root / "labels" / image.name) for image in images]

    def image_files(self, split: str) -> list[Path]:
        return files_below(self.root / "images")

    def label_reader(self, split: str) -> IdOrColour:
        return IdOrColour()

    def remarks(self) -> tuple[str, ...]:
        splits = (
            f"the splits are those of {SPLIT_FILE}"
            if (self.root / SPLIT_FILE).is_file()
            else f"no {SPLIT_FILE}: every frame is a training frame"
        )
        return (f"gtav: label {LICENSE_PLATE} (license plate) is void", f"gtav: {splits}")

    def submission_values(self) -> Mapping[int, int]:
        return class_to_id()

    def strays(self, split: str) -> list[Path]:
        """Labels without an image; all splits share a folder."""
        labels = sorted((self.root / "labels").glob("[!.]*.png"))
        return [label for label in labels if not (self.root / "images" / label.name).is_file()]

    def _numbers(self, split: str) -> set[int] | None:
        """The frames that belong to ``split``; None: all."""
        path = self.root / SPLIT_FILE
        if path.is_file():
            return {int(number) for number in read_variable(path, f"{split}Ids").ravel()}
        if split == "train":
            return None
        raise DataError(
            f"{path}: no such file, so every frame is one of train and there is no {split}; put the file of "
            f"read_mapping.zip there, or set data.{split}_split=train and evaluate the run with data=cityscapes"
        )


class IdOrColour:
    """Labels of either kind that GTAV comes in, distinguished by the file's pixel format."""

    def __init__(self) -> None:
        self._ids = LabelCode({**id_to_class(VOID), LICENSE_PLATE: VOID}, VOID)
        # Black is five void labels; where a class shares its colour with one (pole, polegroup), it is the class.
        colours = {label.colour: VOID for label in LABELS} | {c: i for i, c in enumerate(PALETTE)}
        self._colours = ColourCode(colours, VOID)

    def read(self, path: Path, image: Path) -> Tensor:
        coloured = image_mode(path) in ("RGB", "RGBA")
        label = (self._colours if coloured else self._ids).read(path, image)
        (h, w), (image_h, image_w) = label.shape, image_size(image)
        if (h, w) != (image_h, image_w):
            raise DataError(
                f"{path} measures {w}x{h} pixels but its image {image_w}x{image_h}, as in 60 frames of the release; "
                "`hardpix data prepare gtav` resizes such labels, or take both files away"
            )
        return label

    def identity(self) -> str:
        return f"{self._ids.identity()} {self._colours.identity()}"


def _number(image: Path) -> int | None:
    return int(image.stem) if image.stem.isdecimal() else None
