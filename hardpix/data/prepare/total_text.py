"""The recipe of Total-Text: its archives in one tree, less what is not read."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import ClassVar

from hardpix.data.images import SUFFIXES
from hardpix.data.prepare.recipe import Part, Recipe, Work
from hardpix.data.total_text import FOLDERS, truth_key
from hardpix.types import DataError

SPLITS = ("Train", "Test")
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
        images = {split: self._files(work.find(f"Images/{split}", IMAGES)) for split in SPLITS}
        kinds = [kind for kind in FOLDERS if work.search(_last(kind, "*"))]
        if not kinds:
            roots = " or ".join(map(str, work.roots))
            raise DataError(f"{roots}: there is no truth; it comes from {' or '.join(ARCHIVES.values())}")
        placed = [(path, Path("Images", split, path.name)) for split in SPLITS for path in images[split]]
        for kind in kinds:
            for split in SPLITS:
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
