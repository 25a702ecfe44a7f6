"""Cityscapes with fine annotations, 19 classes (Cordts et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from hardpix.data.files import FileSource, FrameFiles, existing_root
from hardpix.data.labels import LabelCode
from hardpix.data.listing import files_below
from hardpix.types import ConfigError, DataError, DatasetInfo, NoSuchSplit


class CityLabel(NamedTuple):
    """A row of the data set's label table."""

    id: int
    name: str
    colour: tuple[int, int, int]
    scored: bool  # whether it is one of the 19 classes of the benchmark


# cityscapesScripts, helpers/labels.py. The 19 scored ones, in this order, have the train ids 0..18. The 35th label,
# license plate, has the id -1 and is never drawn: its pixels hold what the plate is mounted on.
LABELS = (
    CityLabel(0, "unlabeled", (0, 0, 0), False),
    CityLabel(1, "ego vehicle", (0, 0, 0), False),
    CityLabel(2, "rectification border", (0, 0, 0), False),
    CityLabel(3, "out of roi", (0, 0, 0), False),
    CityLabel(4, "static", (0, 0, 0), False),
    CityLabel(5, "dynamic", (111, 74, 0), False),
    CityLabel(6, "ground", (81, 0, 81), False),
    CityLabel(7, "road", (128, 64, 128), True),
    CityLabel(8, "sidewalk", (244, 35, 232), True),
    CityLabel(9, "parking", (250, 170, 160), False),
    CityLabel(10, "rail track", (230, 150, 140), False),
    CityLabel(11, "building", (70, 70, 70), True),
    CityLabel(12, "wall", (102, 102, 156), True),
    CityLabel(13, "fence", (190, 153, 153), True),
    CityLabel(14, "guard rail", (180, 165, 180), False),
    CityLabel(15, "bridge", (150, 100, 100), False),
    CityLabel(16, "tunnel", (150, 120, 90), False),
    CityLabel(17, "pole", (153, 153, 153), True),
    CityLabel(18, "polegroup", (153, 153, 153), False),
    CityLabel(19, "traffic light", (250, 170, 30), True),
    CityLabel(20, "traffic sign", (220, 220, 0), True),
    CityLabel(21, "vegetation", (107, 142, 35), True),
    CityLabel(22, "terrain", (152, 251, 152), True),
    CityLabel(23, "sky", (70, 130, 180), True),
    CityLabel(24, "person", (220, 20, 60), True),
    CityLabel(25, "rider", (255, 0, 0), True),
    CityLabel(26, "car", (0, 0, 142), True),
    CityLabel(27, "truck", (0, 0, 70), True),
    CityLabel(28, "bus", (0, 60, 100), True),
    CityLabel(29, "caravan", (0, 0, 90), False),
    CityLabel(30, "trailer", (0, 0, 110), False),
    CityLabel(31, "train", (0, 80, 100), True),
    CityLabel(32, "motorcycle", (0, 0, 230), True),
    CityLabel(33, "bicycle", (119, 11, 32), True),
)
SCORED = tuple(label for label in LABELS if label.scored)
CLASSES = tuple(label.name for label in SCORED)
PALETTE = tuple(label.colour for label in SCORED)
VOID = 255

IMAGE_ENDING = "_leftImg8bit.png"
LABEL_ENDINGS = {"ids": "_gtFine_labelIds.png", "trainIds": "_gtFine_labelTrainIds.png"}


def id_to_class(ignore_index: int) -> dict[int, int]:
    """Id of the label table -> class index 0..18, or ``ignore_index`` where the benchmark does not score it."""
    index = {label.id: position for position, label in enumerate(SCORED)}
    return {label.id: index.get(label.id, ignore_index) for label in LABELS}


def class_to_id() -> dict[int, int]:
    """Class index 0..18 -> id of the label table: what the test server takes."""
    return {position: label.id for position, label in enumerate(SCORED)}


class Cityscapes(FileSource):
    """Street scenes, 2048x1024 pixels, 2975 / 500 / 1525 frames, 19 classes.

    Layout below ``root``, as released; NAME is CITY_SEQUENCE_FRAME::

        leftImg8bit/{train,val,test}/CITY/NAME_leftImg8bit.png
        gtFine/{train,val}/CITY/NAME_gtFine_labelIds.png         grey: ids 0..33; 19 of them are classes
        gtFine/{train,val}/CITY/NAME_gtFine_labelTrainIds.png    grey: 0..18 a class, 255 void

    The labels of ``test`` are not public (the release's files of them hold void alone, and are not read): that
    split can be predicted on for the test server, not scored.

    labels: ``ids`` or ``trainIds``, the files that are read. The release holds ids; train ids are made of its
        polygons by the data set's own scripts, and both give the same labels.
    """

    info = DatasetInfo(name="cityscapes", classes=CLASSES, palette=PALETTE, ignore_index=VOID)

    def __init__(self, root: str, *, labels: Literal["ids", "trainIds"] = "ids") -> None:
        if labels not in LABEL_ENDINGS:
            raise ConfigError(f"data.source.labels={labels}: must be ids or trainIds")
        self.root = Path(root)
        self._labels = labels

    def files(self, split: str) -> list[FrameFiles]:
        existing_root(self.root, "Cityscapes")
        folder = self.root / "leftImg8bit" / split
        images = sorted(folder.glob(f"*/[!.]*{IMAGE_ENDING}"))
        if not images:
            raise NoSuchSplit(
                f"{folder}: no CITY/*{IMAGE_ENDING} in it; it must hold the images of the split as the release has them"
            )
        files = [self._frame(split, image) for image in images]
        first = files[0].label
        if self._labels == "trainIds" and first is not None and not first.is_file():
            raise DataError(
                f"{first}: no such file; csCreateTrainIdLabelImgs of cityscapesscripts makes it, "
                "and data.source.labels=ids does without"
            )
        return files

    def image_files(self, split: str) -> list[Path]:
        return files_below(self.root / "leftImg8bit" / split)

    def label_reader(self, split: str) -> LabelCode:
        if self._labels == "trainIds":
            return LabelCode({**{i: i for i in range(len(CLASSES))}, VOID: VOID}, VOID)
        # 255 is -1 in 8 bits: the licence plates, where some other tool drew them.
        return LabelCode({**id_to_class(VOID), 255: VOID}, VOID)

    def submission_values(self) -> Mapping[int, int]:
        return class_to_id()

    def strays(self, split: str) -> list[Path]:
        """Label files of the kind that is read, in the cities of ``split``, that belong to no image."""
        if split == "test":
            return []
        named = {frame.label for frame in self.paired(split)}
        beside = sorted((self.root / "gtFine" / split).glob(f"*/[!.]*{LABEL_ENDINGS[self._labels]}"))
        return [path for path in beside if path not in named]

    def _frame(self, split: str, image: Path) -> FrameFiles:
        name = image.name.removesuffix(IMAGE_ENDING)
        if split == "test":
            return FrameFiles(name, image)
        label = self.root / "gtFine" / split / image.parent.name / f"{name}{LABEL_ENDINGS[self._labels]}"
        return FrameFiles(name, image, label)
