"""iSAID: full-size aerial images and colour masks cut into patches of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hardpix.data.images import image_size, read_colour, same_size
from hardpix.data.isaid import CLASS_MASK, VOID, class_colours, is_mask
from hardpix.data.prepare.recipe import Part, Recipe, Work, write_once
from hardpix.data.stitch import write_sizes
from hardpix.data.tiles import Tile, tiles
from hardpix.types import ConfigError, DataError

SPLITS = ("train", "val", "test")
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
        for split in filter(scenes.get, SPLITS):
            cut = partial(cut_scene, out=work.out / split, side=self.patch, overlap=self.overlap)
            work.each(cut, scenes[split], f"{split} images cut")
            self._write_sizes(work, split, scenes[split])

    def _write_sizes(self, work: Work, split: str, scenes: Sequence[Scene]) -> None:
        sizes = {}
        for scene in scenes:
            try:
                sizes[scene.image.stem] = image_size(scene.image)
            except DataError:
                continue  # told when it was cut
        (work.out / split / "sizes.csv").unlink(
            missing_ok=True
        )  # more images may have come since it was written
        work.make(Path(split) / "sizes.csv", partial(write_sizes, sizes=sizes))


def find_scenes(roots: Sequence[Path]) -> dict[str, list[Scene]]:
    """The images of each split. Archives of all splits have the same names: the folder above tells the split."""
    images: dict[str, dict[str, Path]] = {split: {} for split in SPLITS}
    masks: dict[str, dict[str, Path]] = {split: {} for split in SPLITS}
    for root in roots:
        for path in sorted(root.rglob("*.png")):
            folders = [root.name, *path.relative_to(root).parts[:-1]]
            split = next((folder for folder in reversed(folders) if folder in SPLITS), None)
            if split is None or path.name.startswith("."):
                continue
            if path.stem.endswith(CLASS_MASK):
                masks[split].setdefault(path.stem.removesuffix(CLASS_MASK), path)
            elif not is_mask(path):
                images[split].setdefault(path.stem, path)
    return {split: _pair(split, images[split], masks[split]) for split in SPLITS}


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
