"""ADE20K, the 150 classes of the scene parsing challenge (Zhou et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hardpix.data.files import FileSource, FrameFiles, existing_root
from hardpix.data.labels import LabelCode
from hardpix.data.listing import files_below
from hardpix.types import DataError, DatasetInfo

OTHER = 0  # pixels of no class, and unlabelled ones
FOLDERS = {"train": "training", "val": "validation", "test": "validation"}


# The 150 classes of ADE20K's scene parsing challenge and their colours, as the data set's authors publish
# them.


# The first of each class's synonyms in objectInfo150.txt, in the order of the file values 1..150.
CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
    "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
    "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence",
    "desk", "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column",
    "signboard", "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator",
    "grandstand", "path", "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway",
    "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower", "book", "hill", "bench",
    "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar",
    "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning",
    "streetlight", "booth", "television", "airplane", "dirt track", "apparel", "pole", "land", "bannister",
    "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain",
    "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel", "basket",
    "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade name",
    "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture", "hood",
    "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor",
    "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip

# color150.mat, red green blue in hexadecimal. Two classes share a colour there: road and skyscraper.
_COLOURS = (
    "787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 "
    "08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc "
    "ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 "
    "ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff "
    "ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 "
    "008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 "
    "ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 "
    "00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 "
    "5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff "
    "ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff "
    "4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff "
)  # fmt: skip
PALETTE = tuple((int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for c in _COLOURS.split())


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
