"""CamVid, the original release and the one that came with SegNet (Brostow et al. 2009; Badrinarayanan et al. 2017)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hardpix.data import camvid_classes
from hardpix.data.camvid_classes import IGNORE, TABLE, OriginalLabels, check_colours, segnet_split
from hardpix.data.files import FileSource, FrameFiles, existing_root, read_list
from hardpix.data.labels import LabelCode, LabelReader
from hardpix.data.listing import files_below, list_images
from hardpix.types import ConfigError, DataError, DatasetInfo

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
UNLABELLED = 11
STILLS, COLOURED, TABLE_FILE = "701_StillsRaw_full", "LabeledApproved_full", "label_colors.txt"


class CamVid(FileSource):
    """Road scenes, 367 / 101 / 233 frames, 11 classes, or all of the original release.

    Two layouts below ``root`` are read. The original release, 960x720 pixels, where its first folder lies there::

        701_StillsRaw_full/X.png        RGB
        LabeledApproved_full/X_L.png    RGB: a colour per class, black void (the archive has no folder: make it)
        label_colors.txt                the table of colours, "64 128 64<tab>Animal"; checked where it exists
        {train,val,test}.txt            the frames of the split, one a line (the first word's file name);
                                        SegNet's split without them

    Otherwise SegNet's release, 480x360 pixels::

        {train,val,test}/X.png          RGB
        {train,val,test}annot/X.png     grey: 0..10 a class, 11 unlabelled
        {train,val,test}.txt            "/SegNet/CamVid/train/X.png /SegNet/CamVid/trainannot/X.png"

    SegNet's lists carry the path of their author's machine: only folder and file name count. A split without a
    list is all of its folder.

    classes: 11, or 32 for those of the original release alone. "32 classes" counts its colours, one of which is
        Void: here that is ignored, and 31 classes are trained and scored. With 11 the original colours are grouped
        (:data:`hardpix.data.camvid_classes.TABLE`); void alone is ignored, while some papers ignore every colour
        that is not one of the 11 itself.
    """

    info: DatasetInfo

    def __init__(self, root: str, *, classes: Literal[11, 32] = 11) -> None:
        if classes not in (11, 32):
            raise ConfigError(f"data.source.classes={classes}: must be 11 or 32")
        self.root = Path(root)
        if classes == 11:
            self.info = DatasetInfo("camvid", CLASSES, PALETTE, IGNORE)
        else:
            self.info = DatasetInfo("camvid32", camvid_classes.CLASSES, camvid_classes.PALETTE, IGNORE)

    @property
    def is_original(self) -> bool:
        return (self.root / STILLS).is_dir()

    def label_reader(self, split: str) -> LabelReader:
        if not self.is_original:
            return LabelCode({**{i: i for i in range(len(CLASSES))}, UNLABELLED: IGNORE}, IGNORE)
        index = {name: i for i, name in enumerate(self.info.classes)}
        if self.info.classes == CLASSES:
            index = {name: index[group] for name, _, group in TABLE if group}
        return OriginalLabels(index)

    def remarks(self) -> tuple[str, ...]:
        if not self.is_original:
            return ()
        grouped = ("camvid: the 31 classes of the release are grouped into 11",) * (
            self.info.classes == CLASSES
        )
        damaged = f"{camvid_classes.DAMAGED_PIXELS} pixels of {camvid_classes.DAMAGED}, of no class's colour, are void"
        return (*grouped, f"{self.info.name}: {damaged}")

    def files(self, split: str) -> list[FrameFiles]:
        existing_root(self.root, "CamVid")
        listing = self.root / f"{split}.txt"
        if self.is_original:
            return self._original_files(split, listing)
        if self.info.classes != CLASSES:
            raise DataError(
                f"{self.root / STILLS}: no such folder; data.source.classes=32 needs the original release, "
                "SegNet's has 11 classes"
            )
        if not listing.is_file():
            images = list_images(self.root / split)
            return [
                FrameFiles(image.stem, image, self.root / f"{split}annot" / image.name) for image in images
            ]
        return [self._pair(line, listing) for line in read_list(listing)]

    def image_files(self, split: str) -> list[Path]:
        chosen = self.is_original or (self.root / f"{split}.txt").is_file()
        return [] if chosen else files_below(self.root / split)

    def _original_files(self, split: str, listing: Path) -> list[FrameFiles]:
        if (self.root / TABLE_FILE).is_file():
            check_colours(self.root / TABLE_FILE)
        lines = read_list(listing) if listing.is_file() else segnet_split(split)
        names = [Path(line.split()[0]).stem for line in lines]
        return [
            FrameFiles(name, self.root / STILLS / f"{name}.png", self.root / COLOURED / f"{name}_L.png")
            for name in names
        ]

    def _pair(self, line: str, listing: Path) -> FrameFiles:
        paths = line.split()
        if len(paths) != 2:
            raise DataError(f"{listing}: the line '{line}' must hold an image path and a label path")
        # The last two parts are folder and file, whatever stands before ("/SegNet/CamVid/" in the release).
        image, label = (self.root.joinpath(*Path(path).parts[-2:]) for path in paths)
        return FrameFiles(image.stem, image, label)
