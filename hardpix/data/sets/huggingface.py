"""A Hugging Face dataset that lies on disk, with columns of images and masks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardpix.config.schema import LabelValue, checked
from hardpix.data.files import existing_root
from hardpix.data.huggingface_files import find, line, need, offline, parquet_files
from hardpix.data.images import Encoded, checked_range, read_colour, refuse_lossy, same_size
from hardpix.data.labels import ColourCode, LabelCode, OwnLabels
from hardpix.data.source import Frames, Sample, Source
from hardpix.types import DataError, DatasetInfo


class HuggingFace(Source):
    """A dataset folder as ``save_to_disk`` writes it, or one of Parquet files; read with the package ``datasets``.

    Layouts below ``root``::

        {split}/state.json, dataset_info.json, *.arrow       save_to_disk of a DatasetDict
        [data/]{split}.parquet or [data/]{split}-*.parquet   Parquet files; or {split}/*.parquet

    Parquet files are converted once, into Arrow files below ``$HARDPIX_CACHE`` (else ``~/.cache/hardpix``).

    image, label: the columns; each holds encoded images (PNG, JPEG or TIFF; a label no JPEG),
    or the label an array of numbers.
    names: a column of frame names, unique in their split and usable as file names; None: the rows' numbers.
    classes, palette, ignore_index, label_map, label_format, ignore_colours: what the masks hold, see
    :class:`hardpix.data.labels.OwnLabels`.
    image_range: the values that are black and white in image files of more than 8 bits, for example [0, 4095]; values
    beyond become black or white. None: such files are refused.
    """

    @checked
    def __init__(
        self,
        root: str,
        *,
        classes: Sequence[str] | str,
        name: str = "huggingface",
        image: str = "image",
        label: str = "label",
        names: str | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        ignore_index: LabelValue = 255,
        label_map: Mapping[int, int] | None = None,
        label_format: str = "index",
        ignore_colours: Sequence[Sequence[int]] | None = None,
        image_range: Sequence[float] | None = None,
    ) -> None:
        self.root, self.image_range = Path(root), checked_range(image_range)
        self._image, self._label, self._name_column = image, label, names
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
        )

    def frames(self, split: str, keys: frozenset[str]) -> Frames:
        existing_root(self.root, "a Hugging Face dataset")
        where = f"{self.root}, split {split}"
        columns = {"image": self._image} | ({"label": self._label} if "label" in keys else {})
        dataset = find(self.root, split)
        _check_columns(dataset, columns, where)
        return RowFrames(
            tuple(Path(file["filename"]) for file in dataset.cache_files),
            _names(dataset, self._name_column, where),
            columns,
            where=where,
            labels=self._labels.code,
            image_range=self.image_range,
        )

    def has_split(self, split: str) -> bool:
        return (self.root / split).is_dir() or bool(parquet_files(self.root, split))

    def remarks(self) -> tuple[str, ...]:
        return self._labels.remarks(self.info.name)

    def ignored_values(self) -> str:
        return self._labels.code.ignored()

    def void_as(self, index: int | None, occurring: Collection[int]) -> str:
        return self._labels.code.void_as(index, occurring)


class RowFrames:
    """One split as rows of Arrow files, which each process maps into its memory at its first frame."""

    def __init__(
        self,
        files: Sequence[Path],
        names: Sequence[str],
        columns: Mapping[str, str],
        *,
        where: str,
        labels: LabelCode | ColourCode,
        image_range: tuple[float, float] | None = None,
    ) -> None:
        self._files, self._names, self._columns = files, names, dict(columns)
        self._where, self._labels, self._image_range = where, labels, image_range
        self._opened: tuple[int, Any] | None = None  # process id, dataset

    def __len__(self) -> int:
        return len(self._names)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def name(self, index: int) -> str:
        return self._names[index]

    def load(self, index: int) -> Sample:
        """Decode one row."""
        file = self._cell("image", index)
        image = read_colour(file, self._image_range)
        sample = Sample(image=torch.from_numpy(image).permute(2, 0, 1), name=self._names[index])
        if "label" in self._columns:
            label = self.label(index)
            same_size(label, Path(self._told("label", index)), image, Path(str(file)))
            sample["label"] = label
        return sample

    def check(self) -> None:
        """Raise ``DataError`` for the first row without an image or a label."""
        for kind, column in self._columns.items():
            cells = self._rows().data.column(column)
            for index in range(len(self)) if cells.null_count else ():
                if not cells[index].is_valid:
                    self._cell(kind, index)

    def label(self, index: int) -> Tensor:
        """The label of one row alone."""
        value = self._value("label", index)
        if isinstance(value, list | np.ndarray):
            return self._numbers(value, self._told("label", index))
        file = self._cell("label", index)
        refuse_lossy(file)
        return self._labels.read(file, file)

    def _numbers(self, value: Any, where: str) -> Tensor:
        """The label of a mask that is stored as numbers."""
        try:
            array = np.array(value)
        except ValueError:  # rows of different lengths
            array = np.zeros(0)
        whole = array.dtype.kind in "ui" and array.size and array.min() >= 0 and array.max() <= 0xFFFF
        if array.ndim != 2 or not whole or not isinstance(self._labels, LabelCode):
            raise DataError(
                f"{where}: {array.dtype} of shape {array.shape}; a mask of numbers must be whole ones from 0 to 65535, "
                "[height, width], and data.source.label_format=index"
            )
        return self._labels.decode(array.astype(np.uint8 if array.max() < 256 else np.uint16), where)

    def fingerprint(self) -> str:
        """Changes when an Arrow file does (its size or time), or what the labels' contents mean."""
        facts = [self._labels.identity(), self._columns["label"]]
        for path in self._files:
            stat = path.stat()
            facts.append(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}")
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()

    def stored(self) -> list[Path]:
        """The Arrow files."""
        return list(self._files)

    def _told(self, kind: str, index: int) -> str:
        return f"{self._where}, row {index}, column {self._columns[kind]}"

    def _cell(self, kind: str, index: int) -> Encoded:
        """The encoded image of a row; one that is stored as a path is read from there."""
        where, value = self._told(kind, index), self._value(kind, index)
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if data is None and path is not None:
            try:
                data = Path(path).read_bytes()
            except OSError as error:
                raise DataError(f"{where}: its file {path} cannot be read ({error.strerror})") from None
        if data is None:
            raise DataError(f"{where}: there is no image in it; every row must have one")
        return Encoded(data, where)

    def _value(self, kind: str, index: int) -> Any:
        try:
            return self._rows()[index].column(self._columns[kind])[0].as_py()
        except Exception as error:  # damage raises classes of pyarrow's own
            raise DataError(f"{self._told(kind, index)}: cannot be read ({line(error)})") from None

    def _rows(self) -> Any:
        """The rows as Arrow tables, of this process's own files: nothing open is used across a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            datasets = need(Path(self._where))
            with offline():
                parts = [datasets.Dataset.from_file(str(path)) for path in self._files]
                self._opened = os.getpid(), datasets.concatenate_datasets(parts).with_format("arrow")
        return self._opened[1]


def _check_columns(dataset: Any, columns: Mapping[str, str], where: str) -> None:
    for kind, column in columns.items():
        feature = dataset.features.get(column)
        if feature is None:
            raise DataError(
                f"{where}: no column {column!r}; its columns are {', '.join(dataset.features)} (data.source.{kind})"
            )
        stored = getattr(feature, "dtype", None)
        arrays = ("Array2D", "List", "Sequence") if kind == "label" else ()
        if type(feature).__name__ not in ("Image", *arrays) and stored not in ("binary", "large_binary"):
            raise DataError(f"{where}: column {column!r} holds {feature}; it must hold images")
    if not len(dataset):
        raise DataError(f"{where}: no rows in it; a split must have frames")


def _names(dataset: Any, column: str | None, where: str) -> list[str]:
    if column is None:
        return [f"{row:06d}" for row in range(len(dataset))]
    if column not in dataset.features:
        raise DataError(
            f"{where}: no column {column!r}; its columns are {', '.join(dataset.features)} (data.source.names)"
        )
    seen: dict[str, int] = {}
    for row, name in enumerate(dataset.with_format(None)[column]):
        if not isinstance(name, str) or not name or "/" in name or "\\" in name or name in (".", ".."):
            raise DataError(f"{where}, row {row}: the name {name!r} must be usable as a file name")
        if name in seen:
            raise DataError(f"{where}, row {row}: the name {name!r} is there already (row {seen[name]})")
        seen[name] = row
    return list(seen)
