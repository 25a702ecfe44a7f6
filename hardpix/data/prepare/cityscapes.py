"""The recipe of Cityscapes: its two archives, less what is not read."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from hardpix.data.cityscapes import IMAGE_ENDING, LABEL_ENDINGS
from hardpix.data.prepare.recipe import Part, Recipe, Work

IMAGES, LABELS = "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"


class CityscapesRecipe(Recipe):
    """The release as it is, without instances, colours and polygons; nothing is converted."""

    name: ClassVar[str] = "cityscapes"
    title: ClassVar[str] = "Cityscapes, fine annotations"
    page: ClassVar[str] = "https://www.cityscapes-dataset.com/downloads/"
    licence: ClassVar[str] = "Non-commercial use after registration; the data set must not be passed on."
    parts: ClassVar[tuple[Part, ...]] = (
        Part(IMAGES, "the images of train, val and test", size=11_592_327_197),
        Part(LABELS, "the fine labels of train and val", size=252_567_705),
    )

    def wanted(self, member: str) -> bool:
        if member.endswith(tuple(LABEL_ENDINGS.values())):
            return "/test/" not in f"/{member}"  # void alone
        return member.endswith(IMAGE_ENDING)

    def convert(self, work: Work) -> None:
        work.find("leftImg8bit", IMAGES)
        work.find("gtFine", LABELS)
        found = {
            path.relative_to(base.parent): path
            for base in _folders(work, ("leftImg8bit", "gtFine"))
            for path in sorted(base.glob("*/*/[!.]*.png"))
            if self.wanted(path.relative_to(base.parent).as_posix())
        }
        for relative in work.track(sorted(found), "files"):
            work.place(found[relative], relative)
        work.faults += [
            f"{found[image]}: no {_label(image)} belongs to it; unpack the whole of {LABELS}"
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
