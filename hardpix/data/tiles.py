"""Large pictures cut into overlapping tiles, and the names that say where each tile lies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from hardpix.ops.window import window_starts
from hardpix.types import ConfigError, DataError

_NAME = re.compile(r"(?P<frame>.+)_(?P<top>\d+)_(?P<bottom>\d+)_(?P<left>\d+)_(?P<right>\d+)")


class Tile(NamedTuple):
    """Rows ``top..bottom-1`` and columns ``left..right-1`` of a frame."""

    frame: str
    top: int
    bottom: int
    left: int
    right: int

    @property
    def name(self) -> str:
        """``P0003_0_896_512_1408``: mmsegmentation's order, rows before columns."""
        return "_".join(map(str, self))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left


def tiles(frame: str, size: tuple[int, int], side: int, overlap: int) -> list[Tile]:
    """The tiles of ``side`` x ``side`` pixels that cover a frame of ``size`` (height, width), row by row.

    Neighbours share ``overlap`` pixels; the last tile of a row or column is shifted back inside. A frame that is
    smaller than a tile has one, which reaches beyond it: whoever cuts pads there, below and to the right.
    """
    if not 0 <= overlap < side:
        raise ConfigError(f"overlap={overlap}: must be 0 or more and less than the patch, which is {side}")
    tops, lefts = (window_starts(length, side, side - overlap) for length in size)
    return [Tile(frame, top, top + side, left, left + side) for top in tops for left in lefts]


def read_name(path: Path) -> Tile:
    """The tile that a file's name tells of; ``DataError`` where it tells of none."""
    found = _NAME.fullmatch(path.stem)
    numbers = [int(found[key]) for key in ("top", "bottom", "left", "right")] if found else [0] * 4
    if found is None or numbers[0] >= numbers[1] or numbers[2] >= numbers[3]:
        raise DataError(
            f"{path}: the name tells of no patch; it must be FRAME_TOP_BOTTOM_LEFT_RIGHT, as P0003_0_896_512_1408"
        )
    return Tile(found["frame"], *numbers)
