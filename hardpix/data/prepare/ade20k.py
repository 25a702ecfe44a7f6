"""The recipe of ADE20K: its one archive as it is."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from hardpix.data.prepare.recipe import Part, Recipe, Work

ARCHIVE = "ADEChallengeData2016.zip"
SUFFIXES = {"images": ".jpg", "annotations": ".png"}
SPLITS = ("training", "validation")


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
        return SUFFIXES.get(kind) == path.suffix and split in SPLITS

    def convert(self, work: Work) -> None:
        base = work.find("annotations/validation", ARCHIVE).parent.parent
        for split in SPLITS:
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
    return {path.stem: path for path in sorted((base / kind / split).glob(f"[!.]*{SUFFIXES[kind]}"))}
