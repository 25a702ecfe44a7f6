"""Cut large pictures into overlapping patches, and stitch label patches together."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hardpix.data.images import SUFFIXES, read_index
from hardpix.ops.window import window_starts
from hardpix.types import ConfigError, DataError

NAMED = 3  # missing patches named in full; the others are counted


def stitch(size: tuple[int, int], patches: Iterable[tuple[Tile, NDArray]]) -> NDArray:
    """The label ``[H, W]`` of a frame of ``size`` from labels of its tiles, of one type.

    Where tiles overlap, a pixel takes the label of the tile in which it lies deepest: farthest from the tile's
    inner edges, which are those that are not the frame's. The earlier tile keeps a pixel that lies equally deep.
    What a tile has beyond the frame is cut off. Pixels that no tile covers are 0.
    """
    label, depth = np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=np.int32)
    for tile, patch in patches:
        label = label.astype(np.promote_types(label.dtype, patch.dtype), copy=False)
        rows, columns = slice(tile.top, tile.bottom), slice(tile.left, tile.right)
        seen = label[rows, columns]
        height, width = seen.shape
        down = _depths(tile.top, tile.bottom, size[0])[:height]
        right = _depths(tile.left, tile.right, size[1])[:width]
        its_depth = np.minimum(down[:, None], right)
        deeper = its_depth > depth[rows, columns]
        np.copyto(seen, patch[:height, :width], where=deeper)
        np.copyto(depth[rows, columns], its_depth, where=deeper)
    return label


def stitch_files(
    files: Sequence[Path], out: Path, *, overlap: int, sizes: dict[str, tuple[int, int]] | None = None
) -> list[str]:
    """Write ``out/FRAME.png`` for every frame of the label patches ``files``, over what is there.

    ``sizes``: (height, width) of the frames; without it a frame reaches as far as its patches do, which for one
    smaller than a patch includes the padding. Returns a sentence for every frame that could not be stitched.
    """
    frames: dict[str, dict[Tile, Path]] = {}
    for file in files:
        tile = read_name(file)
        other = frames.setdefault(tile.frame, {}).setdefault(tile, file)
        if other != file:
            raise DataError(f"{file} and {other} are the same patch; give each once")
    side = _common_side([tile for group in frames.values() for tile in group])
    out.mkdir(parents=True, exist_ok=True)
    faults = []
    for frame, group in sorted(frames.items()):
        try:
            size = _extent(group) if sizes is None else _known_size(frame, sizes)
            _check_complete(frame, group, tiles(frame, size, side, overlap))
            patches = ((tile, _read(group[tile], tile)) for tile in sorted(group))
            Image.fromarray(stitch(size, patches)).save(out / f"{frame}.png")
        except DataError as error:
            faults.append(str(error))
    return faults


def find_patches(folder: Path) -> list[Path]:
    """The images in ``folder``."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; it must hold label patches")
    found = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"{folder}: no image in it; it must hold label patches")
    return found


def write_sizes(path: Path, sizes: dict[str, tuple[int, int]]) -> None:
    """A table ``frame,height,width``."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("frame", "height", "width"))
        writer.writerows((frame, *size) for frame, size in sizes.items())


def read_sizes(path: Path) -> dict[str, tuple[int, int]]:
    """What :func:`write_sizes` wrote."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["frame"]: (int(row["height"]), int(row["width"])) for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: not readable as a table frame,height,width ({type(error).__name__}: {error}); "
            "hardpix data prepare writes it as sizes.csv next to the patches"
        ) from None


def _depths(start: int, stop: int, length: int) -> NDArray[np.int32]:
    """Along one side: how far each pixel of the tile lies from its nearer inner edge; 1 at the edge."""
    place = np.arange(start, stop, dtype=np.int32)
    far = np.int32(length + (stop - start))
    from_start = place - start + 1 if start > 0 else np.full_like(place, far)
    from_stop = stop - place if stop < length else np.full_like(place, far)
    return np.minimum(from_start, from_stop)


def _common_side(found: Sequence[Tile]) -> int:
    """The side of the square that every tile is."""
    side = found[0].size[0]
    for tile in found:
        if tile.size != (side, side):
            raise DataError(
                f"{tile.name} is a patch of {tile.size[1]}x{tile.size[0]} pixels but {found[0].name} one of "
                f"{found[0].size[1]}x{found[0].size[0]}; all patches must be squares of one size"
            )
    return side


def _extent(group: Iterable[Tile]) -> tuple[int, int]:
    return max(tile.bottom for tile in group), max(tile.right for tile in group)


def _known_size(frame: str, sizes: dict[str, tuple[int, int]]) -> tuple[int, int]:
    if frame not in sizes:
        raise DataError(f"{frame}: the table of sizes does not name this frame; it must name every one")
    return sizes[frame]


def _check_complete(frame: str, group: dict[Tile, Path], expected: Sequence[Tile]) -> None:
    """Every expected tile is there and no other, else the overlap or the size is not that of the cutting."""
    wrong = sorted(set(group) - set(expected))
    if wrong:
        raise DataError(
            f"{group[wrong[0]]}: no patch of the frame lies there; "
            "the overlap and the frame's size must be those that it was cut with"
        )
    missing = [tile for tile in expected if tile not in group]
    if missing:
        named = ", ".join(tile.name for tile in missing[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise DataError(
            f"{frame}: {len(missing)} of its {len(expected)} patches are missing: {named}{more}; "
            "the frame is left out, predict them all"
        )


def _read(path: Path, tile: Tile) -> NDArray:
    patch = read_index(path)
    if patch.shape != tile.size:
        raise DataError(
            f"{path} measures {patch.shape[1]}x{patch.shape[0]} pixels, "
            f"but its name says {tile.size[1]}x{tile.size[0]}; it must be the label of that patch"
        )
    return patch


# Large pictures cut into overlapping tiles, and the names that say where each tile lies.


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
