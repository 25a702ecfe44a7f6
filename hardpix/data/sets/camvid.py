"""CamVid, the original release and the one that came with SegNet (Brostow et al. 2009; Badrinarayanan et al. 2017)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hardpix.data.classes import Colour
from hardpix.data.files import FileSource, FrameFiles, existing_root, read_list
from hardpix.data.images import read_colour
from hardpix.data.labels import ColourCode, LabelCode, LabelReader
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
        (:data:`hardpix.data.sets.camvid.TABLE`); void alone is ignored, while some papers ignore every colour
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
            self.info = DatasetInfo("camvid32", ORIGINAL_CLASSES, ORIGINAL_PALETTE, IGNORE)

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
        damaged = f"{DAMAGED_PIXELS} pixels of {DAMAGED}, of no class's colour, are void"
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


# The classes of CamVid's original release, their grouping into 11, and the split that came with SegNet.


IGNORE = 255
VOID = "Void"

# label_colors.txt of the release, in its order. The group is the class of the 11 that it becomes: the grouping that is
# published with MathWorks' example on CamVid; the 11-class labels of SegNet show the same, as far as pictures tell.
TABLE: tuple[tuple[str, Colour, str | None], ...] = (
    ("Animal", (64, 128, 64), "pedestrian"),
    ("Archway", (192, 0, 128), "building"),
    ("Bicyclist", (0, 128, 192), "bicyclist"),
    ("Bridge", (0, 128, 64), "building"),
    ("Building", (128, 0, 0), "building"),
    ("Car", (64, 0, 128), "car"),
    ("CartLuggagePram", (64, 0, 192), "pedestrian"),
    ("Child", (192, 128, 64), "pedestrian"),
    ("Column_Pole", (192, 192, 128), "pole"),
    ("Fence", (64, 64, 128), "fence"),
    ("LaneMkgsDriv", (128, 0, 192), "road"),
    ("LaneMkgsNonDriv", (192, 0, 64), "road"),
    ("Misc_Text", (128, 128, 64), "sign"),
    ("MotorcycleScooter", (192, 0, 192), "bicyclist"),
    ("OtherMoving", (128, 64, 64), "car"),
    ("ParkingBlock", (64, 192, 128), "pavement"),
    ("Pedestrian", (64, 64, 0), "pedestrian"),
    ("Road", (128, 64, 128), "road"),
    ("RoadShoulder", (128, 128, 192), "pavement"),
    ("Sidewalk", (0, 0, 192), "pavement"),
    ("SignSymbol", (192, 128, 128), "sign"),
    ("Sky", (128, 128, 128), "sky"),
    ("SUVPickupTruck", (64, 128, 192), "car"),
    ("TrafficCone", (0, 0, 64), "pole"),
    ("TrafficLight", (0, 64, 64), "sign"),
    ("Train", (192, 64, 128), "car"),
    ("Tree", (128, 128, 0), "tree"),
    ("Truck_Bus", (192, 128, 192), "car"),
    ("Tunnel", (64, 0, 64), "building"),
    ("VegetationMisc", (192, 192, 0), "tree"),
    (VOID, (0, 0, 0), None),
    ("Wall", (64, 192, 0), "building"),
)
ORIGINAL_CLASSES = tuple(name for name, _, _ in TABLE if name != VOID)
ORIGINAL_PALETTE = tuple(colour for name, colour, _ in TABLE if name != VOID)

# In this one file 175 pixels along edges have colours that are no class.
DAMAGED, DAMAGED_PIXELS = "Seq05VD_f02610_L.png", 175

_SPLITS: dict[str, tuple[tuple[str, list[int]], ...]] = {
    "train": (
        ("0001TP_{:06d}", [*range(6690, 8521, 30)]),
        ("0006R0_f{:05d}", [*range(930, 3931, 30)]),
        ("0016E5_{:05d}", [*range(390, 871, 30), 901, *range(930, 2401, 30)]),
        ("0016E5_{:05d}", [*range(4350, 7921, 30), *range(8190, 8641, 30)]),
    ),
    "val": (("0016E5_{:05d}", [*range(7959, 8160, 2)]),),
    "test": (
        ("0001TP_{:06d}", [*range(8550, 10381, 30)]),
        ("Seq05VD_f{:05d}", [*range(0, 5101, 30)]),
    ),
}


def segnet_split(split: str) -> list[str]:
    """The frames of ``split`` in SegNet's release: 367, 101 and 233 of the 701."""
    return [form.format(number) for form, numbers in _SPLITS[split] for number in numbers]


class OriginalLabels:
    """Label files of the original release; what is no class becomes void in the one file known to be damaged."""

    def __init__(self, index: dict[str, int]) -> None:
        """``index``: class of the release -> class index; what it lacks is void."""
        self._code = ColourCode({colour: index.get(name, IGNORE) for name, colour, _ in TABLE}, IGNORE)

    def read(self, path: Path, image: Path) -> Tensor:
        raw = read_colour(path)
        if path.name == DAMAGED:
            unknown = ~np.isin(_packed(raw), _packed(np.array([colour for _, colour, _ in TABLE])))
            if unknown.sum() <= DAMAGED_PIXELS:
                raw[unknown] = 0
        return self._code.decode(raw, str(path))

    def identity(self) -> str:
        return f"{self._code.identity()} {DAMAGED}"


def _packed(colours: NDArray) -> NDArray[np.int32]:
    """RGB ``[..., 3]`` -> one number each."""
    return colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def check_colours(path: Path) -> None:
    """Refuse a ``label_colors.txt`` that contradicts :data:`TABLE`; lines are red, green, blue and name."""
    expected = {name: colour for name, colour, _ in TABLE}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if words and (len(words) != 4 or words[:3] != [str(value) for value in expected.get(words[3], ())]):
            raise DataError(
                f"{path}: the line '{line.strip()}' is none of the release's table of {len(TABLE)} colours; "
                "put the file of the release there, or take it away"
            )
