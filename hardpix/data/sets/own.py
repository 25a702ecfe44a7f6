"""A user's own images and masks: in folders, or named by a list."""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardpix.config.schema import InnerShare, LabelValue, Positive, checked
from hardpix.data.classes import csv_rows, parse_json, read_text
from hardpix.data.files import (
    ENDINGS,
    NO_READING,
    FileSource,
    FrameFiles,
    frame_name,
    has_reading,
    missing_values,
    read_own_depth,
)
from hardpix.data.images import SUFFIXES, checked_range
from hardpix.data.labels import LabelReader, OwnLabels
from hardpix.data.listing import Stems, files_below, held_out_remarks, list_images, part_of, shares
from hardpix.data.source import ERROR, depth_policy
from hardpix.types import ConfigError, DataError, DatasetInfo, NoSuchSplit

LISTING = "the list of the frames (data.source.listing)"
KEYS = ("image", "label", "depth", "split", "name")

Row = tuple[str, dict[str, str]]  # where it stands, and its values by column; empty ones are left out


class Listed(FileSource):
    """Images and masks that a list names: a CSV file with a header (separated by commas, semicolons or tabs), a JSON
    list of objects, or JSON lines.

    Columns (or keys): ``image``, ``label``, and where wanted ``depth``, ``split``, ``name``. A frame without a
    label has an empty one; such a split can be predicted on. Without ``name`` a frame is called by its image's path.

    listing: the list; one file per split with ``{split}`` in its path, or one file with a column ``split``.
    root: the folder that the paths in the list start from; None: the folder of the list.
    classes, palette, ignore_index, label_map, label_format, ignore_colours: what the masks hold, see
    :class:`hardpix.data.labels.OwnLabels`.
    val_fraction, test_fraction: share of the frames of train that are held out as val or test, where the list has no
        such split, chosen by their names; null for none.
    image_range: the values that are black and white in image files of more than 8 bits, for example [0, 4095]; values
    beyond become black or white. None: such files are refused.
    depth_scale: counts of a depth file per metre; None: there is no depth, whatever the list says.
    depth_max: metres; the fixed range of the methods that need one.
    depth_missing_values: numbers of the depth files that are no reading; NaN, infinity and what is not above 0 are none
        either.
    depth_missing: see :func:`hardpix.data.source.depth_policy`; an empty depth in the list is missing, too.
    """

    read_depth = staticmethod(read_own_depth)
    lossless = True
    holds_out = True

    @checked
    def __init__(
        self,
        listing: str,
        *,
        classes: Sequence[str] | str,
        root: str | None = None,
        name: str = "listed",
        palette: Sequence[Sequence[int]] | None = None,
        ignore_index: LabelValue = 255,
        label_map: Mapping[int, int] | None = None,
        label_format: str = "index",
        ignore_colours: Sequence[Sequence[int]] | None = None,
        val_fraction: InnerShare | None = None,
        test_fraction: InnerShare | None = None,
        depth_scale: Positive | None = None,
        depth_max: Positive | None = None,
        depth_missing_values: Sequence[float] = NO_READING,
        depth_missing: str = "error",
        image_range: Sequence[float] | None = None,
    ) -> None:
        self._listing, self._root, self._depth_scale = listing, root, depth_scale
        self._missing = missing_values(depth_missing_values)
        self._held_out = shares(val_fraction, test_fraction)
        self.depth_missing = depth_policy(depth_missing)
        self.image_range = checked_range(image_range)
        self._labels = OwnLabels(
            classes=classes,
            palette=palette,
            ignore_index=ignore_index,
            label_map=label_map,
            label_format=label_format,
            ignore_colours=ignore_colours,
        )
        self.info = DatasetInfo(
            name=name,
            classes=self._labels.names,
            palette=self._labels.palette,
            ignore_index=self._labels.void,
            depth_max=depth_max,
            provides=frozenset(
                {"image", "label"} | ({"depth", "depth_valid"} if depth_scale is not None else set())
            ),
        )

    def files(self, split: str) -> list[FrameFiles]:
        if split != "train" and split not in self._held_out:
            return self._named(split)
        for part in self._held_out:
            try:
                self._named(part)
            except NoSuchSplit:
                continue
            raise ConfigError(
                f"{self._listing}: has frames of split {part}; data.source.{part}_fraction=null takes them"
            )
        frames = self._named("train")
        return [frames[i] for i in part_of([f.name for f in frames], split, self._held_out)]

    def _named(self, split: str) -> list[FrameFiles]:
        path = Path(self._listing.replace("{split}", split))
        files: list[FrameFiles] = []
        first: dict[str, str] = {}
        for where, row in self._rows_of(path, split):
            frame = self._frame(where, row, path.parent if self._root is None else Path(self._root))
            if frame.name in first:
                raise DataError(
                    f"{where}: the frame name {frame.name!r} is there already ({first[frame.name]}); "
                    "give each frame of a split its own in a column name"
                )
            first[frame.name] = where
            files.append(frame)
        return files

    def has_split(self, split: str) -> bool:
        path = Path(self._listing.replace("{split}", split))
        if not path.is_file():
            return False
        named = (row.get("split") for _, row in read_rows(path, self._columns()))
        return "{split}" in self._listing or split in named

    def label_reader(self, split: str) -> LabelReader:
        return self._labels.code

    def depth_code(self, raw: NDArray, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return raw.astype(np.float32) / np.float32(self._depth_scale), has_reading(raw, self._missing)

    def remarks(self) -> tuple[str, ...]:
        return (*self._labels.remarks(self.info.name), *held_out_remarks(self.info.name, self._held_out))

    def ignored_values(self) -> str:
        return self._labels.code.ignored()

    def void_as(self, index: int | None, occurring: Collection[int]) -> str:
        return self._labels.code.void_as(index, occurring)

    def strays(self, split: str) -> list[Path]:
        """None: what the list does not name was left out by choice."""
        return []

    def _rows_of(self, path: Path, split: str) -> list[Row]:
        """The rows of ``split``; a row with another split in a file of its own split is an error."""
        if "{split}" in self._listing and not path.is_file():
            raise NoSuchSplit(f"{path}: no such file; it must list the frames of the split")
        rows = list(read_rows(path, self._columns()))
        if "{split}" in self._listing:
            for where, row in rows:
                if row.get("split", split) != split:
                    raise DataError(f"{where}: the split {row['split']!r} stands in the list of {split!r}")
            chosen = rows
        else:
            for where, row in rows:
                if "split" not in row:
                    raise DataError(
                        f"{where}: no split; one list for all splits must say each frame's in a column split "
                        "(or name a file per split with {split} in data.source.listing)"
                    )
            chosen = [(where, row) for where, row in rows if row["split"] == split]
        if not chosen:
            found = sorted({row["split"] for _, row in rows if "split" in row})
            has = f"; its splits are {', '.join(' '.join(name.split()) for name in found)}" if found else ""
            raise NoSuchSplit(f"{path}: no frame of split {split!r} in it{has}")
        return chosen

    def _columns(self) -> list[str]:
        return ["image", "label", *(["depth"] if self._depth_scale is not None else [])]

    def _frame(self, where: str, row: dict[str, str], root: Path) -> FrameFiles:
        if "image" not in row:
            raise DataError(f"{where}: no image; each row must name one")
        image, label, depth = (
            _path(root, row[key]) if key in row else None for key in ("image", "label", "depth")
        )
        assert image is not None
        if image.suffix.lower() not in SUFFIXES:
            raise DataError(f"{where}: image {row['image']!r} is none of {', '.join(SUFFIXES)}")
        if self._depth_scale is not None and depth is None and self.depth_missing == ERROR:
            raise DataError(
                f"{where}: no depth; with data.source.depth_scale each row must name a depth file, "
                "or data.source.depth_missing=ignore goes on without"
            )
        name = row.get("name") or frame_name(row["image"])
        if "/" in name or "\\" in name or name in (".", ".."):
            raise DataError(f"{where}: the name {name!r} must be usable as a file name, without a slash")
        return FrameFiles(name, image, label, depth)


def _path(root: Path, written: str) -> Path:
    """A path of a list; the backslashes of Windows separate folders, unless a file has them in its name."""
    path = root / written
    return path if "\\" not in written or path.exists() else root / written.replace("\\", "/")


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a list (CSV, JSON or JSON lines, by its ending), all with ``columns``."""
    text = _text(path)
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        for where, row in csv_rows(text, path, columns, _delimiter(text, columns)):
            yield where, {key: value for key, value in row.items() if value}
    elif kind == ".json":
        entries = parse_json(text, str(path))
        if not isinstance(entries, list):
            raise DataError(f'{path}: must hold a list of objects {{"image": ..., "label": ...}}')
        for number, entry in enumerate(entries):
            yield _object(entry, f"{path}: entry {number}", columns)
    elif kind == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                where = f"{path}: line {number}"
                yield _object(_line(line, where), where, columns)
    else:
        raise ConfigError(f"data.source.listing={path}: must end in .csv, .json or .jsonl, or in .tsv")


def _text(path: Path) -> str:
    """UTF-8, or UTF-16 with a byte order mark, as spreadsheets write it."""
    try:
        with path.open("rb") as file:
            marked = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        return path.read_text(encoding="utf-16") if marked else read_text(path, LISTING)
    except UnicodeError:
        raise DataError(f"{path}: not a UTF-16 text; it must hold {LISTING}") from None
    except OSError:
        return read_text(path, LISTING)  # says why not


def _delimiter(text: str, columns: Sequence[str]) -> str:
    """What separates the columns: the first of comma, semicolon and tab that makes the header name them all."""
    header = text.partition("\n")[0]
    for mark in ",;\t":
        if {cell.strip().strip('"').lower() for cell in header.split(mark)}.issuperset(columns):
            return mark
    return ","


def _line(line: str, where: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}); each line must be one object") from None


def _object(entry: object, where: str, columns: Sequence[str]) -> Row:
    if not isinstance(entry, dict):
        raise DataError(f'{where}: must be an object {{"image": ..., "label": ...}}, but is {entry!r:.40}')
    for key in columns:
        if key not in entry:
            found = ", ".join(map(str, entry)) or "none"
            raise DataError(f"{where}: the key {key} is missing; its keys are: {found}")
    values = {key: entry[key] for key in KEYS if entry.get(key) not in (None, "")}
    for key, value in values.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: {key} must be a text, but is {value!r:.40}")
    return where, values


# A user's own images and masks.


class Folder(FileSource):
    """Images and masks in folders, paired by name.

    Layout below ``root``; ``{split}`` stands for train, val or test, and sub-folders are allowed::

        {split}/images/NAME.{png,jpg,jpeg,tif,tiff}
        {split}/labels/NAME{label_suffix}.{png,tif,tiff}    a number or a colour per pixel (label_format)
        {split}/depths/NAME.{png,tif,tiff,npy}              grey of 8 or 16 bits, or floating-point numbers

    classes, palette, ignore_index, label_map, label_format, ignore_colours: what the masks hold, see
    :class:`hardpix.data.labels.OwnLabels`.
    images, labels, depths: the folders, with ``{split}``; ``depths`` None: there is no depth.
    val_fraction, test_fraction: share of the frames of train that are held out as val or test, where there is no such
        folder, chosen by their names; null for none.
    image_range: the values that are black and white in image files of more than 8 bits, for example [0, 4095]; values
    beyond become black or white. None: such files are refused.
    depth_scale: counts of a depth file per metre.
    depth_max: metres; the fixed range of the methods that need one.
    depth_missing_values: numbers of the depth files that are no reading; NaN, infinity and what is not above 0 are none
        either.
    depth_missing: see :func:`hardpix.data.source.depth_policy`.
    """

    read_depth = staticmethod(read_own_depth)
    lossless = True
    holds_out = True

    @checked
    def __init__(
        self,
        root: str,
        *,
        classes: Sequence[str] | str,
        name: str = "folder",
        palette: Sequence[Sequence[int]] | None = None,
        ignore_index: LabelValue = 255,
        label_map: Mapping[int, int] | None = None,
        label_format: str = "index",
        ignore_colours: Sequence[Sequence[int]] | None = None,
        images: str = "{split}/images",
        labels: str = "{split}/labels",
        label_suffix: str = "",
        val_fraction: InnerShare | None = None,
        test_fraction: InnerShare | None = None,
        depths: str | None = None,
        depth_scale: Positive | None = None,
        depth_max: Positive | None = None,
        depth_missing_values: Sequence[float] = NO_READING,
        depth_missing: str = "error",
        image_range: Sequence[float] | None = None,
    ) -> None:
        if depths is not None and not depth_scale:
            raise ConfigError("data.source.depth_scale is missing; with depths it must be counts per metre")
        self.root, self.depth_missing = Path(root), depth_policy(depth_missing)
        self._folders = {"image": images, "label": labels, "depth": depths}
        self._missing = missing_values(depth_missing_values)
        self._held_out = shares(val_fraction, test_fraction)
        self._label_suffix, self._depth_scale = label_suffix, depth_scale
        self.image_range = checked_range(image_range)
        self._labels = OwnLabels(
            classes=classes,
            palette=palette,
            ignore_index=ignore_index,
            label_map=label_map,
            label_format=label_format,
            ignore_colours=ignore_colours,
        )
        self.info = DatasetInfo(
            name=name,
            classes=self._labels.names,
            palette=self._labels.palette,
            ignore_index=self._labels.void,
            depth_max=depth_max,
            provides=frozenset({"image", "label"} | ({"depth", "depth_valid"} if depths else set())),
        )

    def files(self, split: str) -> list[FrameFiles]:
        if split != "train" and split not in self._held_out:
            return self._lying_in(split)
        for part in self._held_out:
            if (
                self._folder("image", part) != self._folder("image", "train")
                and self._folder("image", part).exists()
            ):
                raise ConfigError(
                    f"{self._folder('image', part)}: there is a split {part}; data.source.{part}_fraction=null takes it"
                )
        frames = self._lying_in("train")
        return [frames[i] for i in part_of([f.name for f in frames], split, self._held_out)]

    def _lying_in(self, split: str) -> list[FrameFiles]:
        images = list_images(self._folder("image", split))
        labels = Stems(self._folder("label", split))
        depths = Stems(self._folder("depth", split)) if self._folders["depth"] else None
        frames = [self._frame(split, image, labels, depths) for image in images]
        masks = {frame.label for frame in frames}  # where they lie among the images
        kept = [frame for frame in frames if frame.image not in masks]
        alone = masks.intersection(frame.image for frame in frames).difference(frame.label for frame in kept)
        if alone:
            raise DataError(
                f"{min(map(str, alone))}: would be the image and the label of one frame; in one folder "
                "data.source.label_suffix=_mask tells NAME.png from its label NAME_mask.png"
            )
        return kept

    def image_files(self, split: str) -> list[Path]:
        return files_below(self._folder("image", "train" if split in self._held_out else split))

    def has_split(self, split: str) -> bool:
        return self._folder("image", split).is_dir()

    def label_reader(self, split: str) -> LabelReader:
        return self._labels.code

    def remarks(self) -> tuple[str, ...]:
        return (*self._labels.remarks(self.info.name), *held_out_remarks(self.info.name, self._held_out))

    def ignored_values(self) -> str:
        return self._labels.code.ignored()

    def void_as(self, index: int | None, occurring: Collection[int]) -> str:
        return self._labels.code.void_as(index, occurring)

    def depth_code(self, raw: NDArray, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return raw.astype(np.float32) / np.float32(self._depth_scale), has_reading(raw, self._missing)

    def _folder(self, kind: str, split: str) -> Path:
        return self.root / str(self._folders[kind]).replace("{split}", split)

    def _frame(self, split: str, image: Path, labels: Stems, depths: Stems | None) -> FrameFiles:
        relative = image.relative_to(self._folder("image", split)).with_suffix("")
        label = labels.find(relative.with_name(relative.name + self._label_suffix))
        depth = depths.find(relative, ENDINGS) if depths else None
        return FrameFiles("__".join(relative.parts), image, label, depth)
