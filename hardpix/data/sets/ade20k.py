"""ADE20K, the 150 classes of the scene parsing challenge (Zhou et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hardpix.data.ade20k_classes import CLASSES, PALETTE
from hardpix.data.files import FileSource, FrameFiles, existing_root
from hardpix.data.labels import LabelCode
from hardpix.data.listing import files_below
from hardpix.types import DataError, DatasetInfo

OTHER = 0  # pixels of no class, and unlabelled ones
FOLDERS = {"train": "training", "val": "validation", "test": "validation"}


class ADE20K(FileSource):
    """Indoor and outdoor scenes of many sizes, 20210 training and 2000 validation frames, 150 classes.

    Layout below ``root``, as ``ADEChallengeData2016.zip`` unpacks into its folder ADEChallengeData2016::

        images/{training,validation}/NAME.jpg
        annotations/{training,validation}/NAME.png    grey: 0 other (void), 1..150 a class

    The labels of the challenge's own test set are not public: ``test`` is the validation split, as in the papers
    that report on it, so a score on it is not independent of a choice made by ``val``.
    """

    info = DatasetInfo(name="ade20k", classes=CLASSES, palette=PALETTE)

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def files(self, split: str) -> list[FrameFiles]:
        existing_root(self.root, "ADE20K")
        folder = FOLDERS[split]
        images = sorted((self.root / "images" / folder).glob("[!.]*.jpg"))
        if not images:
            raise DataError(
                f"{self.root / 'images' / folder}: no NAME.jpg in it; data.source.root must be the folder "
                "ADEChallengeData2016 with images/ and annotations/"
            )
        labels = self.root / "annotations" / folder
        return [FrameFiles(image.stem, image, labels / f"{image.stem}.png") for image in images]

    def image_files(self, split: str) -> list[Path]:
        return files_below(self.root / "images" / FOLDERS[split])

    def label_reader(self, split: str) -> LabelCode:
        ignore = self.info.ignore_index
        return LabelCode({OTHER: ignore, **{index + 1: index for index in range(len(CLASSES))}}, ignore)

    def submission_values(self) -> Mapping[int, int]:
        return {index: index + 1 for index in range(len(CLASSES))}
