"""Recipes of photographs: iSAID, Total-Text, ADE20K, CIFAR-100."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hardpix.data.images import SUFFIXES, image_size, read_colour, same_size
from hardpix.data.patches import Tile, tiles, write_sizes
from hardpix.data.prepare.recipe import Part, Recipe, Work, write_once
from hardpix.data.sets.cifar100 import BINARY, PYTHON
from hardpix.data.sets.isaid import CLASS_MASK, VOID, class_colours, is_mask
from hardpix.data.sets.total_text import FOLDERS, truth_key
from hardpix.types import ConfigError, DataError

ISAID_SPLITS = ("train", "val", "test")
STRIP = 1024  # rows of a mask decoded at a time: whole, the largest would take a gigabyte


class Scene(NamedTuple):
    """A full-size image and its mask; ``test`` has no masks."""

    image: Path
    mask: Path | None


@dataclass(frozen=True)
class ISAIDRecipe(Recipe):
    """Patches of ``patch`` x ``patch`` pixels whose neighbours share ``overlap`` pixels.

    The defaults and the names are mmsegmentation's. The last patch of a row or column is shifted back inside;
    a smaller image is padded below and to the right, the image with 0 and the label with 255.
    """

    name = "isaid"
    title = "iSAID, aerial images of DOTA-v1.0, 16 classes"
    page = "https://captain-whu.github.io/iSAID/dataset.html"
    licence = "Academic use only; images from Google Earth are under Google Earth's terms as well."
    parts = (
        Part("train/images/part*.zip", "images of DOTA-v1.0, train: part1.zip, part2.zip, part3.zip"),
        Part("train/Semantic_masks/images.zip", "semantic masks of iSAID, train"),
        Part("val/images/part1.zip", "images of DOTA-v1.0, validation"),
        Part("val/Semantic_masks/images.zip", "semantic masks of iSAID, validation"),
        Part("test/images/part*.zip", "images of DOTA-v1.0, test: part1.zip, part2.zip", needed=False),
    )

    patch: int = 896
    overlap: int = 384

    def wanted(self, member: str) -> bool:
        return member.endswith(".png") and not member.endswith("_instance_id_RGB.png")

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise ConfigError(f"patch={self.patch}: must be 1 pixel or more")
        tiles("", (self.patch, self.patch), self.patch, self.overlap)  # refuses an overlap that cannot be

    def convert(self, work: Work) -> None:
        """``{split}/images``, ``{split}/labels`` and ``{split}/sizes.csv`` (of the whole images) below ``out``."""
        scenes = find_scenes(work.roots)
        for split in ("train", "val"):
            if not scenes[split]:
                roots = " or ".join(map(str, work.roots))
                raise DataError(
                    f"{roots}: no {split} image of iSAID; there must be {split}/images/P0000.png and so on"
                )
        for split in filter(scenes.get, ISAID_SPLITS):
            cut = partial(cut_scene, out=work.out / split, side=self.patch, overlap=self.overlap)
            work.each(cut, scenes[split], f"{split} images cut")
            self._write_sizes(work, split, scenes[split])

    def _write_sizes(self, work: Work, split: str, scenes: Sequence[Scene]) -> None:
        sizes = {}
        for scene in scenes:
            try:
                sizes[scene.image.stem] = image_size(scene.image)
            except DataError:
                continue  # reported when it was cut
        (work.out / split / "sizes.csv").unlink(
            missing_ok=True
        )  # more images may have come since it was written
        work.make(Path(split) / "sizes.csv", partial(write_sizes, sizes=sizes))


def find_scenes(roots: Sequence[Path]) -> dict[str, list[Scene]]:
    """The images of each split. Archives of all splits have the same names: the folder above tells the split."""
    images: dict[str, dict[str, Path]] = {split: {} for split in ISAID_SPLITS}
    masks: dict[str, dict[str, Path]] = {split: {} for split in ISAID_SPLITS}
    for root in roots:
        for path in sorted(root.rglob("*.png")):
            folders = [root.name, *path.relative_to(root).parts[:-1]]
            split = next((folder for folder in reversed(folders) if folder in ISAID_SPLITS), None)
            if split is None or path.name.startswith("."):
                continue
            if path.stem.endswith(CLASS_MASK):
                masks[split].setdefault(path.stem.removesuffix(CLASS_MASK), path)
            elif not is_mask(path):
                images[split].setdefault(path.stem, path)
    return {split: _pair(split, images[split], masks[split]) for split in ISAID_SPLITS}


def cut_scene(scene: Scene, *, out: Path, side: int, overlap: int) -> None:
    """Write the patches of one image, and of its mask, that are not there."""
    found = tiles(scene.image.stem, image_size(scene.image), side, overlap)
    kinds = ("images", "labels") if scene.mask else ("images",)
    paths = [out / kind / f"{tile.name}.png" for kind in kinds for tile in found]
    if all(path.exists() for path in paths):
        return
    image = read_colour(scene.image)
    # Labels first: an image without its label would stop the reader, were this interrupted here.
    if scene.mask:
        if not scene.mask.is_file():
            raise DataError(
                f"{scene.image}: there is no mask {scene.mask.name} of it; the semantic masks hold it"
            )
        _write(_read_mask(scene.mask, image, scene.image), found, out / "labels", VOID)
    _write(image, found, out / "images", 0)


def _pair(split: str, images: dict[str, Path], masks: dict[str, Path]) -> list[Scene]:
    if split == "test":
        return [Scene(image, None) for _, image in sorted(images.items())]
    beside = {name: image.with_name(f"{name}{CLASS_MASK}.png") for name, image in images.items()}
    return [Scene(image, masks.get(name, beside[name])) for name, image in sorted(images.items())]


def _read_mask(path: Path, image: NDArray[np.uint8], image_path: Path) -> NDArray[np.uint8]:
    mask, code = read_colour(path), class_colours()
    same_size(mask, path, image, image_path)
    strips = range(0, len(mask), STRIP)
    return np.concatenate([code.decode(mask[top : top + STRIP], path).numpy() for top in strips])


def _write(picture: NDArray[np.uint8], found: Sequence[Tile], folder: Path, fill: int) -> None:
    for tile in found:
        cut = picture[tile.top : tile.bottom, tile.left : tile.right]
        room = [(0, wanted - had) for wanted, had in zip(tile.size, cut.shape, strict=False)]
        padded = np.pad(cut, [*room, *[(0, 0)] * (cut.ndim - 2)], constant_values=fill)
        write_once(folder / f"{tile.name}.png", partial(_save, padded))


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    # Level 1 writes twice as fast as the default, and a few per cent more.
    Image.fromarray(picture).save(path, compress_level=1)


# The recipe of Total-Text: its archives in one tree, less what is not read.


TOTAL_TEXT_SPLITS = ("Train", "Test")
IMAGES = "totaltext.zip"
ARCHIVES = {
    "pixel": "groundtruth_pixel.zip",
    "region": "groundtruth_textregion.zip",
    "polygon": "groundtruth_text.zip",
}


class TotalTextRecipe(Recipe):
    """Photographs and truth as they are; one kind of truth will do."""

    name: ClassVar[str] = "total_text"
    title: ClassVar[str] = "Total-Text, words against background"
    page: ClassVar[str] = "https://github.com/cs-chan/Total-Text-Dataset"
    licence: ClassVar[str] = "Non-commercial research use only."
    parts: ClassVar[tuple[Part, ...]] = (
        Part(IMAGES, "the photographs, 441 MB"),
        Part(ARCHIVES["pixel"], "masks of characters, 80 MB; what hardpix reads by default", needed=False),
        Part(ARCHIVES["region"], "masks of words, 6 MB", needed=False),
        Part(ARCHIVES["polygon"], "outlines of words, MATLAB format", needed=False),
    )

    def wanted(self, member: str) -> bool:
        path = PurePosixPath(member)
        if path.name.startswith(".") or "__MACOSX" in path.parts:
            return False
        return path.suffix.lower() in SUFFIXES or (path.suffix == ".mat" and "Polygon" in path.parts)

    def convert(self, work: Work) -> None:
        images = {split: self._files(work.find(f"Images/{split}", IMAGES)) for split in TOTAL_TEXT_SPLITS}
        kinds = [kind for kind in FOLDERS if work.search(_last(kind, "*"))]
        if not kinds:
            roots = " or ".join(map(str, work.roots))
            raise DataError(f"{roots}: there is no truth; it comes from {' or '.join(ARCHIVES.values())}")
        placed = [
            (path, Path("Images", split, path.name)) for split in TOTAL_TEXT_SPLITS for path in images[split]
        ]
        for kind in kinds:
            for split in TOTAL_TEXT_SPLITS:
                truth = self._files(work.find(_last(kind, split), ARCHIVES[kind]))
                placed += [(path, Path(FOLDERS[kind], split, path.name)) for path in truth]
                known = {truth_key(path) for path in truth}
                work.faults += [
                    f"{image}: no {kind} truth belongs to it; unpack the whole of {ARCHIVES[kind]}"
                    for image in images[split]
                    if truth_key(image) not in known
                ]
        for path, relative in work.track(placed, "files"):
            work.place(path, relative)

    def use(self, out: Path) -> dict[str, str]:
        kind = next((kind for kind, folder in FOLDERS.items() if (out / folder).is_dir()), "pixel")
        return super().use(out) | ({} if kind == "pixel" else {"data.source.truth": kind})

    def _files(self, folder: Path) -> list[Path]:
        return sorted(path for path in folder.iterdir() if self.wanted(f"{folder.parent.name}/{path.name}"))


def _last(kind: str, split: str) -> str:
    """How a folder of truth ends, however much of the path above it the user kept."""
    return f"{FOLDERS[kind].rpartition('/')[2]}/{split}"


# The recipe of ADE20K: its one archive as it is.


ARCHIVE = "ADEChallengeData2016.zip"
ADE20K_SUFFIXES = {"images": ".jpg", "annotations": ".png"}
ADE20K_SPLITS = ("training", "validation")


class ADE20KRecipe(Recipe):
    """Images and annotations of both splits; nothing is converted. A frame that lacks either is left out."""

    name: ClassVar[str] = "ade20k"
    title: ClassVar[str] = "ADE20K, scene parsing challenge of 2016"
    page: ClassVar[str] = "http://sceneparsing.csail.mit.edu/"
    licence: ClassVar[str] = "Images for non-commercial research and education only."
    parts: ClassVar[tuple[Part, ...]] = (
        Part(ARCHIVE, "images and annotations, 0.9 GB", md5="7328b3957e407ddae1d3cbf487f149ef"),
    )

    def wanted(self, member: str) -> bool:
        path = Path(member)
        kind, split = (path.parts[-3], path.parts[-2]) if len(path.parts) > 2 else ("", "")
        return ADE20K_SUFFIXES.get(kind) == path.suffix and split in ADE20K_SPLITS

    def convert(self, work: Work) -> None:
        base = work.find("annotations/validation", ARCHIVE).parent.parent
        for split in ADE20K_SPLITS:
            images, labels = (_files(base, kind, split) for kind in ("images", "annotations"))
            work.faults += [
                f"{images[name]}: no annotation belongs to it" for name in images if name not in labels
            ]
            work.faults += [
                f"{labels[name]}: no image belongs to it" for name in labels if name not in images
            ]
            for name in work.track(sorted(images.keys() & labels), f"{split} frames"):
                for path in (labels[name], images[name]):
                    work.place(path, path.relative_to(base))


def _files(base: Path, kind: str, split: str) -> dict[str, Path]:
    """Name -> file, in the order of the names."""
    return {path.stem: path for path in sorted((base / kind / split).glob(f"[!.]*{ADE20K_SUFFIXES[kind]}"))}


# The recipe of CIFAR-100: one of its archives as it is.


FILES = {PYTHON: ("train", "test", "meta"), BINARY: ("train.bin", "test.bin", "fine_label_names.txt")}


class CIFAR100Recipe(Recipe):
    """Either release will do; nothing is converted."""

    name: ClassVar[str] = "cifar100"
    title: ClassVar[str] = "CIFAR-100"
    page: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar.html"
    licence: ClassVar[str] = (
        "No terms except that it be cited (Krizhevsky 2009) are known here; see its page."
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part(
            f"{PYTHON}.tar.gz",
            "the release for Python",
            size=169_001_437,
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            needed=False,
        ),
        Part(
            f"{BINARY}.tar.gz",
            "or the binary release",
            size=168_513_733,
            md5="03b5dce01913d631647c71ecec9e9cb8",
            needed=False,
        ),
    )

    def wanted(self, member: str) -> bool:
        path = Path(member)
        return path.name in FILES.get(path.parent.name, ())

    def convert(self, work: Work) -> None:
        release = PYTHON if work.search(f"{PYTHON}/train") else BINARY
        for name in FILES[release]:
            found = work.find(f"{release}/{name}", f"{PYTHON}.tar.gz or {BINARY}.tar.gz")
            work.place(found, f"{release}/{name}")
