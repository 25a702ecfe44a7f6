"""What the values in a user's own label files mean, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hardpix.data.classes import ClassList, Colour, as_colour, read_classes
from hardpix.data.labels import ColourCode, LabelCode, ranges
from hardpix.data.palette import voc_palette
from hardpix.types import ConfigError

FORMATS = ("index", "colour")


class OwnLabels:
    """The classes of a data set and what its files call them; the same keys for every kind of own data.

    classes: names in the order of their indices, or a file of them (:func:`hardpix.data.classes.read_classes`).
    palette: one RGB colour per class; None takes the file's, else the PASCAL VOC colours.
    ignore_index: the value in the files that marks unlabelled pixels; loss and metrics leave them out.
    label_map: value in the files -> class index (or ``ignore_index``); None: the file's ids, else the indices.
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
        self.names, self.void = listed.names, void(len(listed.names))
        self._given = palette_of(listed, palette)
        self._usual = ignore_index
        self.palette = self._given or voc_palette(len(self.names))
        if label_format == "colour":
            if label_map is not None:
                raise ConfigError(
                    "data.source.label_map maps numbers; with label_format=colour leave it null"
                )
            self.code: LabelCode | ColourCode = self._colours(ignore_colours)
        else:
            if ignore_colours is not None:
                raise ConfigError("data.source.ignore_colours needs label_format=colour; else leave it null")
            self.code = LabelCode(self._numbers(ignore_index, label_map, listed), self.void)

    def remarks(self, name: str) -> tuple[str, ...]:
        """The line on values that are not their class's own index, for :meth:`Source.remarks`."""
        said = mapping_sentence(self.code.mapping, self.names, usual=self._usual)
        return (f"labels of {name}: {said}",) if said else ()

    def _numbers(
        self, ignore_value: int, label_map: Mapping[int, int] | None, listed: ClassList
    ) -> dict[int, int]:
        classes = len(self.names)
        if label_map is None and listed.ids is not None:
            numbers = {value: index for index, value in enumerate(listed.ids)}
            if ignore_value in numbers:
                raise ConfigError(
                    f"ignore_index {ignore_value} is also the id of class {self.names[numbers[ignore_value]]}; "
                    "set data.source.ignore_index to a value that no class has"
                )
            return {**numbers, ignore_value: self.void}
        if label_map is None:
            if 0 <= ignore_value < classes:
                raise ConfigError(
                    f"ignore_index {ignore_value} is also a class index of {classes} classes; "
                    "set data.source.label_map to say which value means which class"
                )
            return {**{i: i for i in range(classes)}, ignore_value: self.void}
        check_targets(label_map, classes, ignore_value)
        # An ignored value that is no class index may stand in the masks itself, besides being a target.
        mapping = {} if 0 <= ignore_value < classes else {ignore_value: self.void}
        return mapping | {int(v): int(i) if 0 <= i < classes else self.void for v, i in label_map.items()}

    def _colours(self, ignored: Sequence[Sequence[int]] | None) -> ColourCode:
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
        return ColourCode(mapping, self.void)


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
        raise ConfigError(f"label_map maps {values[0]!r}; the values of label files are whole numbers from 0")
    wrong = [index for index in label_map.values() if not 0 <= index < classes and index != ignore_value]
    if wrong:
        raise ConfigError(
            f"label_map leads to {wrong[0]}; it must lead to 0..{classes - 1} or to ignore_index {ignore_value}"
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
