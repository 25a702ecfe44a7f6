"""What the user downloaded: archives, single files and folders, matched with the parts a recipe states."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from hardpix.data.prepare.entries import CHUNK, is_archive
from hardpix.data.prepare.recipe import Part
from hardpix.types import DataError

DEPTH = 3  # folders down that archives are looked for, as Work.find does


@dataclass(frozen=True)
class Input:
    """A file that is ``part``, called ``name`` in the release; or a folder, without both."""

    path: Path
    name: str = ""
    part: Part | None = None

    @property
    def is_folder(self) -> bool:
        return self.part is None

    @property
    def is_archive(self) -> bool:
        return self.part is not None and is_archive(self.path)


def gather(paths: Sequence[Path], parts: Sequence[Part]) -> list[Input]:
    """The files and folders of ``paths``, and the parts that lie in the folders, each once.

    Raises ``DataError`` for what does not exist, is no part, is given twice, has not the size of the release,
    and, where no folder could hold it, for a part that is missing.
    """
    found: dict[Path, Input] = {}
    for path in paths:
        if path.is_dir():
            found.setdefault(path.resolve(), Input(path))
            for inside in _parts_below(path, parts):
                found.setdefault(inside.path.resolve(), inside)
        elif path.exists():
            found.setdefault(path.resolve(), _the_part(path, parts))
        else:
            raise DataError(f"{path}: no such file or folder")
    inputs = list(found.values())
    _all_different(inputs)
    _all_sizes(inputs)
    _all_needed(inputs, parts)
    return inputs


def check_md5(file: Input, advance: Callable[[int], None]) -> None:
    """``DataError`` where the MD5 sum is not that of the release. ``advance`` is told of bytes that were read."""
    assert file.part
    assert file.part.md5
    digest = hashlib.md5(usedforsecurity=False)
    with open(file.path, "rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    if digest.hexdigest() != file.part.md5.lower():
        raise DataError(
            f"{file.path}: its MD5 sum is {digest.hexdigest()} but that of the release {file.part.md5}: "
            "download it again"
        )


def _match(path: Path, parts: Sequence[Part]) -> Input | None:
    for part in parts:
        name = "/".join(path.absolute().parts[-1 - part.name.count("/") :])
        if fnmatchcase(name, part.name):
            return Input(path, name, part)
    return None


def _the_part(path: Path, parts: Sequence[Part]) -> Input:
    found = _match(path, parts)
    if found is None:
        names = ", ".join(part.name for part in parts)
        raise DataError(f"{path}: none of the release's files ({names}); rename it if it is one of them")
    return found


def _parts_below(folder: Path, parts: Sequence[Part]) -> Iterator[Input]:
    """Globs by name, so that a tree of a million unpacked files takes no time."""
    names = [part.name.split("/", cut)[-1] for part in parts for cut in range(part.name.count("/") + 1)]
    for depth in range(DEPTH + 1):
        for name in names:
            for path in sorted(folder.glob("*/" * depth + name)):
                found = _match(path, parts)
                if found and path.is_file():
                    yield found


def _all_different(inputs: Sequence[Input]) -> None:
    first: dict[str, Path] = {}
    for item in inputs:
        if item.name and first.setdefault(item.name, item.path) != item.path:
            raise DataError(f"{item.path}: {first[item.name]} is the same part; give one of them")


def _all_sizes(inputs: Sequence[Input]) -> None:
    for item in inputs:
        size = item.part.size if item.part else None
        if size is not None and item.path.stat().st_size != size:
            raise DataError(
                f"{item.path} is {item.path.stat().st_size} bytes but the release is {size}: download it again"
            )


def _all_needed(inputs: Sequence[Input], parts: Sequence[Part]) -> None:
    if any(item.is_folder for item in inputs):
        return  # what was unpacked by hand has other names: the recipe will miss it
    given = [item.part for item in inputs]
    for part in parts:
        if part.needed and part not in given:
            raise DataError(f"{part.name} is missing ({part.what}); give it with --from as well")
