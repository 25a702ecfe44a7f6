"""The recipe of GTAV: twenty archives into two folders, and labels of another size than their images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

from PIL import Image

from hardpix.data.gtav import SPLIT_FILE
from hardpix.data.images import image_size
from hardpix.data.prepare.recipe import Part, Recipe, Work, link_or_copy, write_once
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
