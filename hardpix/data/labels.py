"""Read label files: classes, their numbers and colours, and the mapping of a user's own labels."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardpix.data.classes import ClassList, Colour, as_colour, read_classes
from hardpix.data.images import Encoded, read_colour, read_index
from hardpix.types import ConfigError, DataError

FORMATS = ("index", "colour")
MAX_LABEL = 65535  # value of a label file


class OwnLabels:
    """The classes of a data set and what its files call them; the same keys for every kind of own data.

    classes: names in the order of their indices, or a file of them (:func:`hardpix.data.classes.read_classes`).
    palette: one RGB colour per class; None takes the file's, else the PASCAL VOC colours.
    ignore_index: the value in the files that marks unlabelled pixels; loss and metrics leave them out.
    label_map: value in the files -> class index (or ``ignore_index``); None: the file's ids, else the indices. Values
    that it leaves out stay what they are without it, unless it says the value of every class.
    label_format: ``index``, a number per pixel; ``colour``, a colour per pixel, those of the palette.
    ignore_colours: with ``colour``, further colours, of unlabelled pixels.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str] | str,
        palette: Sequence[Sequence[int]] | None,
        ignore_index: int = 255,
        label_map: Mapping[int, int] | None = None,
        label_format: str = "index",
        ignore_colours: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if label_format not in FORMATS:
            raise ConfigError(f"data.source.label_format={label_format}: must be {' or '.join(FORMATS)}")
        listed = read_classes(classes)
        if len(listed.names) > MAX_LABEL:
            raise ConfigError(
                f"data.source.classes: {len(listed.names)} classes; at most {MAX_LABEL} fit a label file"
            )
        self.names, self.void = listed.names, void(len(listed.names))
        self._given = palette_of(listed, palette)
        self._usual = ignore_index
        self.palette = self._given or voc_palette(len(self.names))
        if label_format == "colour":
            if label_map is not None:
                raise ConfigError(
                    "data.source.label_map maps numbers; with label_format=colour leave it null"
                )
            self.code: Numbers | Colours = self._colours(ignore_colours)
        else:
            if ignore_colours is not None:
                raise ConfigError("data.source.ignore_colours needs label_format=colour; else leave it null")
            self.code = Numbers(
                self._numbers(ignore_index, label_map, listed), self.void, self.names, ignore_index, label_map
            )

    def remarks(self, name: str) -> tuple[str, ...]:
        """The line on values that are not their class's own index, for :meth:`Source.remarks`."""
        said = mapping_sentence(self.code.mapping, self.names, usual=self._usual)
        return (f"labels of {name}: {said}",) if said else ()

    def _numbers(
        self, ignore_value: int, label_map: Mapping[int, int] | None, listed: ClassList
    ) -> dict[int, int]:
        classes = len(self.names)
        own = {value: index for index, value in enumerate(listed.ids or range(classes))}
        if beyond := [value for value in own if value > MAX_LABEL]:
            raise ConfigError(
                f"class {self.names[own[beyond[0]]]} has the id {beyond[0]}; label files hold 0 to {MAX_LABEL}"
            )
        given = label_map or {}
        if label_map is not None:
            check_targets(label_map, classes, ignore_value)
            if beyond := [value for value in label_map if value > MAX_LABEL]:
                raise ConfigError(
                    f"data.source.label_map maps {beyond[0]}; label files hold values from 0 to {MAX_LABEL}"
                )
        if is_complete(given, classes):
            own = {}
        if ignore_value in own and ignore_value not in given:
            if listed.ids is not None:
                raise ConfigError(
                    f"ignore_index {ignore_value} is also the id of class {self.names[own[ignore_value]]}; "
                    "set data.source.ignore_index to a value that no class has"
                )
            raise ConfigError(
                f"ignore_index {ignore_value} is also a class index of {classes} classes; "
                "set data.source.label_map to say which value means which class"
            )
        return {**own, ignore_value: self.void} | {
            value: index if index < classes else self.void for value, index in given.items()
        }

    def _colours(self, ignored: Sequence[Sequence[int]] | None) -> Colours:
        if len(self.names) > 254:
            raise ConfigError(f"label_format=colour: {len(self.names)} classes; at most 254 can have colours")
        if self._given is None:
            raise ConfigError(
                "label_format=colour needs the colour of each class: set data.source.palette, or name a file "
                "with colours in data.source.classes"
            )
        mapping: dict[Colour, int] = {}
        for index, colour in enumerate(self._given):
            if colour in mapping:
                twice = f"{self.names[mapping[colour]]} and {self.names[index]}"
                raise ConfigError(f"label_format=colour: {twice} have one colour {colour}; give each its own")
            mapping[colour] = index
        for entry in ignored or ():
            colour = as_colour(entry, "data.source.ignore_colours", ConfigError)
            if colour in mapping:
                raise ConfigError(
                    f"data.source.ignore_colours: {colour} is there already, as a colour of the masks"
                )
            mapping[colour] = self.void
        return Colours(mapping, self.void, self.names)


# What the numbers or colours of a label file mean.


class LabelCode:
    """Grey or palette images of numbers: each number is a class, the ignored value, or an error."""

    def __init__(self, mapping: Mapping[int, int], ignore_index: int) -> None:
        """``mapping``: file value -> class index or ``ignore_index``; any other value is an error."""
        self.mapping = dict(mapping)
        self.ignore_index = ignore_index
        size = 256 if max(self.mapping) < 256 else 65536
        largest = max([*self.mapping.values(), ignore_index])
        self._table = np.full(size, ignore_index, dtype=np.uint8 if largest < 256 else np.uint16)
        self._legal = np.zeros(size, dtype=bool)
        for value, index in self.mapping.items():
            self._table[value] = index
            self._legal[value] = True

    def read(self, path: Path | Encoded, image: Path | Encoded) -> Tensor:
        return self.decode(read_index(path), str(path))

    def identity(self) -> str:
        return f"{self.mapping}"

    def suggested_override(self, value: int) -> str:
        """What the sentence on a value that is no class ends with: the settings that allow it, where there are any."""
        return ""

    def decode(self, raw: NDArray, path: Path | str) -> Tensor:
        """Stored labels ``[H, W]`` -> uint8 class indices (int64 above 255 classes); an error names ``path``."""
        flat = torch.from_numpy(raw.ravel() if raw.dtype == np.uint8 else raw.ravel().astype(np.int64))
        counts = torch.bincount(flat, minlength=len(self._table)).numpy()
        wrong = np.flatnonzero(counts[: len(self._table)] * ~self._legal)
        wrong = np.concatenate([wrong, np.flatnonzero(counts[len(self._table) :]) + len(self._table)])
        if len(wrong):
            raise DataError(
                f"{path}: value {wrong[0]} ({counts[wrong[0]]} pixels) is no class; "
                f"allowed are {ranges(self.mapping)}{self.suggested_override(int(wrong[0]))}"
            )
        label = torch.from_numpy(self._table.take(raw))
        return label if label.dtype == torch.uint8 else label.long()


class Numbers(LabelCode):
    """Numbers whose meaning is set by ``label_map`` and ``ignore_index``; its errors say how."""

    def __init__(
        self,
        mapping: Mapping[int, int],
        ignore_index: int,
        names: Sequence[str],
        ignore_value: int,
        label_map: Mapping[int, int] | None,
    ) -> None:
        super().__init__(mapping, ignore_index)
        self._names, self._ignore_value, self._given = tuple(names), ignore_value, dict(label_map or {})

    def suggested_override(self, value: int) -> str:
        """``; to ignore it: 'data.source.label_map={7:255}'; to read it as road: 'data.source.label_map={7:0}'``."""
        last = f" ({len(self._names) - 1} for {self._names[-1]})" if len(self._names) > 1 else ""
        return (
            f"; to ignore it: {self._with({value: None})}; to read it as {self._names[0]}: "
            f"{self._with({value: 0})}{last}"
        )

    def ignored(self) -> str:
        """For :meth:`Source.ignored_values`."""
        return ranges(v for v, i in self.mapping.items() if i == self.ignore_index)

    def void_as(self, index: int | None, occurring: Collection[int]) -> str:
        """For :meth:`Source.void_as`; a new class comes first."""
        if self._ignore_value not in self.mapping:
            return ""
        new = index is None
        others = {value: None for value in self._given if self.mapping[value] == self.ignore_index}
        classes = {value: target + new for value, target in self.mapping.items() if target in occurring}
        given = {**others, **classes, self._ignore_value: index or 0}
        names = with_new(self._names) if new else self._names
        fix = " ".join(([spelled_names(names)] if new else []) + [self._spelled(given, len(names))])
        return f"if {self._ignore_value} marks {names[index or 0]}: {fix}"

    def _with(self, more: Mapping[int, int | None]) -> str:
        """The overrides that read further values as classes, or as ignored (None), and all others as now."""
        now = {v: None if i == self.ignore_index else i for v, i in self.mapping.items()}
        given = {value: now[value] for value in self._given} | dict(more)
        if is_complete(given, len(self._names)):  # what it leaves out would be no class any more
            given = {v: i for v, i in now.items() if v != self._ignore_value} | given
        return self._spelled(given, len(self._names))

    def _spelled(self, given: Mapping[int, int | None], classes: int) -> str:
        ignored = self._ignore_value
        if (
            ignored < classes or given.get(ignored) is not None
        ):  # what leads to it would be a class, or is one now
            free = (*range(254, classes - 1, -1), *range(MAX_LABEL - 1, 254, -1))
            ignored = next(value for value in free if value not in self.mapping and value not in given)
            given = {self._ignore_value: None, **given}
        spelled = ",".join(f"{v}:{ignored if i is None else i}" for v, i in sorted(given.items()))
        other = f" data.source.ignore_index={ignored}" if ignored != self._ignore_value else ""
        return f"'data.source.label_map={{{spelled}}}'{other}"


class ColourCode:
    """RGB images whose colours are classes; for at most 254 classes."""

    def __init__(self, mapping: Mapping[Colour, int], ignore_index: int) -> None:
        """``mapping``: RGB colour -> class index or ``ignore_index``; any other colour is an error."""
        self.mapping = dict(mapping)
        self.ignore_index = ignore_index
        # Sorted packed colours: a search among them needs no table of 16 million entries in every worker.
        order = sorted((_packed(colour), index) for colour, index in self.mapping.items())
        self._colours = np.array([colour for colour, _ in order], dtype=np.int32)
        self._indices = np.array([index for _, index in order], dtype=np.uint8)

    def read(self, path: Path | Encoded, image: Path | Encoded) -> Tensor:
        return self.decode(read_colour(path), str(path))

    def identity(self) -> str:
        return f"{self.mapping}"

    def suggested_override(self, colour: Colour) -> str:
        """As of :class:`LabelCode`."""
        return ""

    def decode(self, raw: NDArray[np.uint8], path: Path | str) -> Tensor:
        """RGB ``[H, W, 3]`` -> uint8 class indices ``[H, W]``; an error names ``path`` and the colour."""
        red, green, blue = (raw[..., channel].astype(np.int32) for channel in range(3))
        values = red << 16 | green << 8 | blue
        places = np.searchsorted(self._colours, values).clip(max=len(self._colours) - 1)
        known = self._colours.take(places) == values
        if not known.all():
            first = int(values[~known][0])
            colour = first >> 16, first >> 8 & 255, first & 255
            raise DataError(
                f"{path}: colour {colour} ({int((values == first).sum())} pixels) is no class; "
                f"the data set has {len(self._colours)} colours{self.suggested_override(colour)}"
            )
        return torch.from_numpy(self._indices.take(places))


class Colours(ColourCode):
    """Colours whose meaning is set by ``palette`` and ``ignore_colours``; its errors say how."""

    def __init__(self, mapping: Mapping[Colour, int], ignore_index: int, names: Sequence[str]) -> None:
        super().__init__(mapping, ignore_index)
        self._names = tuple(names)

    def ignored(self) -> str:
        """For :meth:`Source.ignored_values`."""
        colours = [c for c, index in self.mapping.items() if index == self.ignore_index]
        return ", ".join(map(str, colours))

    def void_as(self, index: int | None, occurring: Collection[int]) -> str:
        """For :meth:`Source.void_as`, where one colour is ignored; a new class comes first."""
        ignored = [c for c, i in self.mapping.items() if i == self.ignore_index]
        if len(ignored) != 1:
            return ""
        palette = {i: c for c, i in self.mapping.items() if i != self.ignore_index}
        colours = [palette[i] for i in range(len(self._names))]
        if index is None:
            names, colours = with_new(self._names), [*ignored, *colours]
        else:
            names, colours[index] = self._names, ignored[0]
        spelled = ",".join("[{},{},{}]".format(*c) for c in colours)
        fix = f"'data.source.palette=[{spelled}]' data.source.ignore_colours=null"
        return f"if {ignored[0]} marks {names[index or 0]}: {spelled_names(names) + ' ' if index is None else ''}{fix}"

    def suggested_override(self, colour: Colour) -> str:
        ignored = [c for c, index in self.mapping.items() if index == self.ignore_index] + [colour]
        spelled = ",".join("[{},{},{}]".format(*c) for c in ignored)
        fix = f"'data.source.ignore_colours=[{spelled}]'"
        return f"; to ignore it: {fix}; a class's colour belongs in data.source.palette"


def with_new(names: Sequence[str]) -> tuple[str, ...]:
    """The classes after one that would have the pixels which are ignored now."""
    return next((new for new in ("background", "foreground", "other") if new not in names), "new"), *names


def spelled_names(names: Sequence[str]) -> str:
    """The override that declares these classes."""
    spelled = ",".join(name if re.fullmatch(r"[A-Za-z][\w-]*", name) else json.dumps(name) for name in names)
    return f"'data.source.classes=[{spelled}]'"


def is_complete(label_map: Mapping[int, int | None], classes: int) -> bool:
    """Whether it says a value of every class."""
    return set(range(classes)) <= set(label_map.values())


def void(classes: int) -> int:
    """The ignored index of loaded labels: the last value of their type, whatever the files use."""
    return 255 if classes < 256 else 65535


def palette_of(listed: ClassList, palette: Sequence[Sequence[int]] | None) -> tuple[Colour, ...] | None:
    """The colours that ``data.source.palette`` gives, else those of the file; None where neither does."""
    if palette is None:
        return listed.palette
    if len(palette) != len(listed.names):
        raise ConfigError(
            f"palette has {len(palette)} colours for {len(listed.names)} classes; give one each"
        )
    return tuple(as_colour(colour, "data.source.palette", ConfigError) for colour in palette)


def check_targets(label_map: Mapping[int, int], classes: int, ignore_value: int) -> None:
    """Refuse a ``label_map`` with a value that no file can hold, or that leads to no class."""
    values = [v for v in label_map if type(v) is not int or v < 0]
    if values:
        raise ConfigError(
            f"data.source.label_map maps {values[0]!r}; the values of label files are whole numbers from 0"
        )
    wrong = [
        i for i in label_map.values() if type(i) is not int or (not 0 <= i < classes and i != ignore_value)
    ]
    if wrong:
        raise ConfigError(
            f"data.source.label_map leads to {wrong[0]!r}; it must lead to 0..{classes - 1} or to ignore_index "
            f"{ignore_value}"
        )


def mapping_sentence(
    mapping: Mapping[Any, int],
    names: Sequence[str],
    *,
    usual: int | None = None,
) -> str:
    """``7 -> road, 8 -> sidewalk, 3 values -> ignored (0..2)``; empty where every value is its class's own index.

    ``usual``: the ignored value that goes without saying.
    """
    classes = {value: index for value, index in mapping.items() if index < len(names)}
    ignored = [value for value in mapping if value not in classes]
    if all(value == index for value, index in classes.items()) and set(ignored) <= {usual}:
        return ""
    parts = [f"{value} -> {names[index]}" for value, index in classes.items()]
    if ignored:
        numbers = all(isinstance(value, int) for value in ignored)
        listed = ranges(ignored) if numbers else ", ".join(map(str, ignored))
        many = len(ignored) > 1
        parts.append(f"{len(ignored)} values -> ignored ({listed})" if many else f"{listed} -> ignored")
    return ", ".join(parts)


class LabelReader(Protocol):
    """Reads label files of one kind."""

    def read(self, path: Path, image: Path) -> Tensor:
        """The label ``[H, W]`` of ``image``: uint8 class indices (int64 above 255 classes) and the ignored value.

        Raises ``DataError`` that names ``path`` where the file cannot be read or holds what is no class.
        """
        ...

    def identity(self) -> str:
        """A text that differs whenever ``read`` would give another label for the same file."""
        ...


def ranges(values: Iterable[int]) -> str:
    """``[0, 1, 2, 255]`` -> ``0..2, 255``."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{a}" if a == b else f"{a}..{b}" for a, b in runs)


def _packed(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue


# Colours for classes that have none of their own.


def voc_palette(classes: int) -> tuple[tuple[int, int, int], ...]:
    """The PASCAL VOC colours of indices 1.. (0, black, is left to void): the index's bits, spread over RGB."""
    return tuple(_voc_colour(index) for index in range(1, classes + 1))


def _voc_colour(index: int) -> tuple[int, int, int]:
    colour = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            colour[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return colour[0], colour[1], colour[2]
