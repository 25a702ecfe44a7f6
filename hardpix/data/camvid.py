"""CamVid in the 11-class release that came with SegNet (Brostow et al. 2009; Badrinarayanan et al. 2017)."""

from __future__ import annotations

from pathlib import Path

from hardpix.data.files import FileSource, FrameFiles, existing_root, list_images, read_list
from hardpix.data.labels import LabelCode
from hardpix.types import DataError, DatasetInfo

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
UNLABELLED = 11


class CamVid(FileSource):
    """Road scenes, 480x360 pixels, 367 / 101 / 233 frames, 11 classes.

    Layout below ``root``::

        {train,val,test}/X.png         RGB
        {train,val,test}annot/X.png    grey: 0..10 a class, 11 unlabelled
        {train,val,test}.txt           "/SegNet/CamVid/train/X.png /SegNet/CamVid/trainannot/X.png"

    The lists carry the path of their author's machine: only folder and file name count. A split without a
    list is all of its folder.
    """

    info = DatasetInfo(name="camvid", classes=CLASSES, palette=PALETTE)

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def label_reader(self, split: str) -> LabelCode:
        ignore = self.info.ignore_index
        return LabelCode({**{i: i for i in range(len(CLASSES))}, UNLABELLED: ignore}, ignore)

    def files(self, split: str) -> list[FrameFiles]:
        existing_root(self.root, "CamVid")
        listing = self.root / f"{split}.txt"
        if not listing.is_file():
            images = list_images(self.root / split)
            return [
                FrameFiles(image.stem, image, self.root / f"{split}annot" / image.name) for image in images
            ]
        return [self._pair(line, listing) for line in read_list(listing)]

    def _pair(self, line: str, listing: Path) -> FrameFiles:
        paths = line.split()
        if len(paths) != 2:
            raise DataError(f"{listing}: the line '{line}' must hold an image path and a label path")
        # The last two parts are folder and file, whatever stands before ("/SegNet/CamVid/" in the release).
        image, label = (self.root.joinpath(*Path(path).parts[-2:]) for path in paths)
        return FrameFiles(image.stem, image, label)
