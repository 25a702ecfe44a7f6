"""Which files of a folder are frames: listed, paired by name, and counted where they are left out."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hardpix.data.images import SUFFIXES
from hardpix.types import ConfigError, DataError, NoSuchSplit

# Pictures by their names that are not decoded. One among the images would be a frame that is left out.
OTHER_PICTURES = (
    ".apng", ".arw", ".avif", ".bmp", ".cr2", ".dib", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif", ".j2c", ".j2k",
    ".jfif", ".jif", ".jp2", ".jpc", ".jpe", ".jpf", ".jpx", ".jxl", ".mpo", ".nef", ".pbm", ".pcx", ".pfm", ".pgm",
    ".pnm", ".ppm", ".psd", ".ras", ".sgi", ".tga", ".webp",
)  # fmt: skip
LOSSLESS = (".png", ".tif", ".tiff")
LOSSY = (".jpg", ".jpeg")
_SYSTEM = (
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "__macosx",
    "@eadir",
)  # of systems, not the user's


def files_below(folder: Path) -> list[Path]:
    """The files below ``folder``, sorted; linked folders are entered, once each.

    What begins with a dot is left out: macOS keeps ``._0001.png``, which is no image, next to ``0001.png``; so are the
    files and folders of thumbnails and icons that systems make. A folder with the name of an image is refused: the
    frame that is meant would be left out without a word.
    """
    found: list[Path] = []
    entered: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in folders:
            if name.lower().endswith(SUFFIXES):
                raise DataError(
                    f"{Path(parent, name)}: is a folder, not an image; put the image there, or rename it"
                )
        found += [Path(parent, name) for name in names if not is_hidden(name)]
    return sorted(found)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is one of the system's, or hidden."""
    return name.startswith(".") or name.lower() in _SYSTEM


def list_images(folder: Path) -> list[Path]:
    """The images below ``folder`` in the order of their names; pictures of other formats among them are refused."""
    if not folder.is_dir():
        raise NoSuchSplit(f"{folder}: no such folder; it must hold the images of the split")
    files = files_below(folder)
    refuse_other_pictures(files, folder)
    found = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not found:
        raise DataError(f"{folder}: no PNG, JPEG or TIFF image in it; it must hold the images of the split")
    return found


def refuse_other_pictures(files: Iterable[Path], folder: Path) -> None:
    """Raise ``DataError`` where pictures of a format that is not decoded are among ``files``."""
    others = [path for path in files if is_picture(path)]
    if others:
        raise DataError(
            f"{folder}: {kinds(others)} of formats that are not read would be left out; convert them to PNG, or "
            "take them out of the folder"
        )


def is_picture(path: Path) -> bool:
    """Whether a file is by its name a picture of a format that is not decoded."""
    return path.suffix.lower() in OTHER_PICTURES


def kinds(files: Sequence[Path]) -> str:
    """``3 files (2 .bmp, 1 .txt, such as a.bmp)``."""
    counts = Counter(path.suffix.lower() or "without an ending" for path in files).most_common()
    listed = ", ".join(f"{count} {suffix}" for suffix, count in counts)
    return f"{len(files)} file{'s' if len(files) > 1 else ''} ({listed}, such as {files[0].name})"


def normal(name: str | Path) -> str:
    """A name in Unicode's composed form: macOS may have written it in the decomposed one, which looks the same."""
    return unicodedata.normalize("NFC", str(name))


class Finder:
    """Finds files whose name is written in another Unicode form; each folder is listed once."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def __call__(self, path: Path) -> Path:
        """``path``, or where it is missing the file whose path differs in its Unicode form alone."""
        if str(path).isascii() or path.exists():
            return path
        parent = self(path.parent) if path.parent != path else path
        if parent not in self._folders:
            self._folders[parent] = {}
            for entry in sorted(parent.iterdir()) if parent.is_dir() else ():
                self._folders[parent].setdefault(normal(entry.name), []).append(entry)
        found = self._folders[parent].get(normal(path.name), [])
        if len(found) > 1:
            raise _ambiguous(path, found, "have one name")
        return found[0] if found else path


class Stems:
    """The files below a folder by their path without its ending, in whatever Unicode form it is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, list[Path]] = {}
        for path in files_below(folder):
            self._files.setdefault(normal(path.relative_to(folder).with_suffix("")), []).append(path)

    def find(self, stem: Path, suffixes: Sequence[str] = LOSSLESS) -> Path:
        """The file of ``stem`` (below the folder) with one of ``suffixes``; raises ``DataError`` where there are two.

        Where there is none it is the JPEG, which is refused, or the PNG, which is missing.
        """
        files = self._files.get(normal(stem), [])
        for allowed in (suffixes, LOSSY):
            found = [path for path in files if path.suffix.lower() in allowed]
            if len(found) > 1:
                raise _ambiguous(self._folder / stem, found, "have one name")
            if found:
                return found[0]
        return self._folder / stem.with_name(f"{stem.name}.png")


def _ambiguous(path: Path, found: Sequence[Path], why: str) -> DataError:
    if normal(found[0].name) == normal(found[1].name):
        why += " in two Unicode forms"
    return DataError(
        f"{path}: {found[0].name} and {found[1].name} {why}; take away the one that does not belong to the frame"
    )


def refuse_equal_names(images: Iterable[tuple[str, Path]]) -> None:
    """Raise ``DataError`` where two frames of a split, given by name and image, have one name (in any Unicode form)."""
    seen: dict[str, Path] = {}
    for name, image in images:
        other = seen.setdefault(normal(name), image)
        if other is not image:
            raise DataError(
                f"{image}: the frame's name {name!r} is that of {other} too, and both would share one label; "
                "rename one of the two files with its label, or take it away"
            )


def shares(val: float | None, test: float | None) -> dict[str, float]:
    """``data.source.val_fraction`` and ``test_fraction`` as far as they are given."""
    found = {split: share for split, share in (("test", test), ("val", val)) if share is not None}
    if sum(found.values()) >= 1:
        raise ConfigError(
            f"data.source.val_fraction={val} and data.source.test_fraction={test}: must leave a share of train"
        )
    return found


def part_of(names: Sequence[str], split: str, held_out: Mapping[str, float]) -> list[int]:
    """Which of the frames of train (ascending indices) are ``split``, where shares of them are ``held_out``.

    A digest of its name decides on each frame, so that no order of the files and no other frame's name moves it far.
    """
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(normal(names[i]).encode()).digest())
    parts: dict[str, list[int]] = {}
    for part, share in held_out.items():
        count = max(1, round(share * len(names)))
        parts[part], order = order[:count], order[count:]
    parts["train"] = order
    if not parts[split]:
        raise DataError(f"{len(names)} frames of train are too few to hold out {', '.join(held_out)}")
    return sorted(parts[split])


def held_out_remarks(name: str, held_out: Mapping[str, float]) -> tuple[str, ...]:
    """A sentence for the frames of train that are another split."""
    return tuple(
        f"{name}: {split} is held out of train ({split}_fraction={share}); frames of one video or place look alike, "
        "which makes its scores too good"
        for split, share in held_out.items()
    )


def one_each(named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Files by a name of theirs; raises ``DataError`` where two have one."""
    found: dict[str, Path] = {}
    for name, path in named:
        if found.setdefault(name, path) is not path:
            raise _ambiguous(path.parent / name, (found[name], path), "stand for one frame")
    return found
