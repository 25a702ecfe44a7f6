"""iSAID: instance masks of the DOTA-v1.0 aerial images (Waqas Zamir et al. 2019; Xia et al. 2018)."""

from __future__ import annotations

from pathlib import Path

from hardpix.data.files import FileSource, FrameFiles, existing_root
from hardpix.data.labels import ColourCode, LabelCode, LabelReader
from hardpix.data.listing import files_below, list_images
from hardpix.types import DataError, DatasetInfo

CLASSES = (
    "background", "ship", "store_tank", "baseball_diamond", "tennis_court", "basketball_court",
    "Ground_Track_Field", "Bridge", "Large_Vehicle", "Small_Vehicle", "Helicopter", "Swimming_pool",
    "Roundabout", "Soccer_ball_field", "plane", "Harbor",
)  # fmt: skip
PALETTE = (
    (0, 0, 0), (0, 0, 63), (0, 63, 63), (0, 63, 0), (0, 63, 127), (0, 63, 191), (0, 63, 255), (0, 127, 63),
    (0, 127, 127), (0, 0, 127), (0, 0, 191), (0, 0, 255), (0, 191, 127), (0, 127, 191), (0, 127, 255),
    (0, 100, 155),
)  # fmt: skip
VOID = 255
CLASS_MASK, INSTANCE_MASK = "_instance_color_RGB", "_instance_id_RGB"


class ISAID(FileSource):
    """Aerial images, 16 classes with background, 1411 / 458 / 937 images from 800 to 13000 pixels wide.

    Two layouts below ``root`` are read. Patches, in a split that has a folder ``labels``, as ``hardpix data
    prepare isaid`` writes them; the window is rows top..bottom-1 and columns left..right-1 of the image::

        {train,val,test}/images/P0003_TOP_BOTTOM_LEFT_RIGHT.png    RGB
        {train,val}/labels/P0003_TOP_BOTTOM_LEFT_RIGHT.png         grey: 0..15 a class, 255 padding

    Otherwise the images as released, whose masks lie next to them or in the folder of the semantic masks::

        {train,val,test}/images/P0003.png                                  RGB, from DOTA-v1.0
        {train,val}/images/P0003_instance_color_RGB.png                    RGB: a colour for each class
        {train,val}/Semantic_masks/images/P0003_instance_color_RGB.png     the same, used where the folder is

    The labels of ``test`` are not public: it can be predicted on, not scored. What belongs to no object is
    background, a class that counts; a released mask has no void.
    """

    info = DatasetInfo(name="isaid", classes=CLASSES, palette=PALETTE, ignore_index=VOID)

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def files(self, split: str) -> list[FrameFiles]:
        existing_root(self.root, "iSAID")
        folder = self.root / split / "images"
        images = [path for path in list_images(folder) if not is_mask(path)]
        if not images:
            raise DataError(f"{folder}: holds masks but no images; P0003.png and so on come from DOTA-v1.0")
        return [FrameFiles(image.stem, image, self._label(split, image)) for image in images]

    def image_files(self, split: str) -> list[Path]:
        return [path for path in files_below(self.root / split / "images") if not is_mask(path)]

    def label_reader(self, split: str) -> LabelReader:
        if self._is_cut(split):
            return LabelCode({**{i: i for i in range(len(CLASSES))}, VOID: VOID}, VOID)
        return class_colours()

    def strays(self, split: str) -> list[Path]:
        if self._is_cut(split):
            return super().strays(split)
        # Images, class masks and instance masks share a folder here: only a class mask can be a stray label.
        files = self.paired(split)
        named = {file.label for file in files}
        folders = sorted({file.label.parent for file in files if file.label})
        beside = (path for folder in folders for path in sorted(folder.glob(f"[!.]*{CLASS_MASK}.png")))
        return [path for path in beside if path not in named]

    def _is_cut(self, split: str) -> bool:
        return (self.root / split / "labels").is_dir()

    def _label(self, split: str, image: Path) -> Path | None:
        if split == "test":
            return None
        if self._is_cut(split):
            return self.root / split / "labels" / f"{image.stem}.png"
        return mask_folder(self.root / split) / f"{image.stem}{CLASS_MASK}.png"


def class_colours() -> ColourCode:
    """What the colours of a released class mask mean."""
    return ColourCode({colour: index for index, colour in enumerate(PALETTE)}, VOID)


def is_mask(path: Path) -> bool:
    """Whether it is one of the masks that the release puts next to an image."""
    return path.stem.endswith((CLASS_MASK, INSTANCE_MASK))


def mask_folder(split: Path) -> Path:
    """Where the class masks of a split of the release lie."""
    separate = split / "Semantic_masks" / "images"
    return separate if separate.is_dir() else split / "images"
