"""What the numbers or colours of a label file mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardpix.data.images import Encoded, read_colour, read_index
from hardpix.types import DataError

Colour = tuple[int, int, int]


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

    def way_out(self, value: int) -> str:
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
                f"allowed are {ranges(self.mapping)}{self.way_out(int(wrong[0]))}"
            )
        label = torch.from_numpy(self._table.take(raw))
        return label if label.dtype == torch.uint8 else label.long()


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

    def way_out(self, colour: Colour) -> str:
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
                f"the data set has {len(self._colours)} colours{self.way_out(colour)}"
            )
        return torch.from_numpy(self._indices.take(places))


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
