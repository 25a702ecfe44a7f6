"""Contact sheets: frames of a data set side by side, each with its label over it and its maps in colour.

Arrays are ``[H, W, 3]`` uint8 RGB images, ``[H, W]`` labels and ``[H, W]`` float maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from hardpix.report.figures import FONT_SIZE, GAP, INK, PAPER, class_entries, heatmap, legend, overlay
from hardpix.report.fonts import typeface
from hardpix.types import DatasetInfo

COLUMNS, TILE, STRIP = 6, 240, 20  # frames in a row; width of a tile; height of a line of text
HEADING = 28
PADDING = ((225, 225, 225), (190, 190, 190))  # of the checks that stand for padding


@dataclass
class Frame:
    """One frame of a sheet."""

    name: str
    image: np.ndarray
    label: np.ndarray | None = None
    # NaN where undefined; each is coloured over its own range, which its caption gives in this unit.
    maps: Mapping[str, tuple[np.ndarray, str]] = field(default_factory=dict)
    extent: tuple[int, int] | None = None  # rows and columns that are picture; the rest is padding


def contact_sheet(
    sections: Mapping[str, Sequence[Frame]], info: DatasetInfo, *, note: str = ""
) -> Image.Image:
    """A heading and rows of frames per section, over a legend of the classes that occur."""
    present: set[int] = set()
    blocks = []
    for title, frames in sections.items():
        blocks.append(_text(f"{title}", COLUMNS * (TILE + GAP), HEADING, FONT_SIZE + 4))
        for start in range(0, len(frames), COLUMNS):
            blocks.append(_row([_column(frame, info) for frame in frames[start : start + COLUMNS]]))
        for frame in frames:
            if frame.label is not None:
                present |= set(np.unique(frame.label).tolist())
    width = max([*(block.width for block in blocks), 3 * TILE])
    entries = class_entries(present - {info.ignore_index}, info)
    if info.ignore_index in present:
        entries.append(("void: not coloured", PAPER))
    mapped = any(frame.maps for frames in sections.values() for frame in frames)
    if entries or mapped:
        blocks.append(legend(entries, width, bar="low to high" if mapped else ""))
    if note:
        blocks.append(_text(note, width, STRIP))
    return _stack(blocks, width)


def _column(frame: Frame, info: DatasetInfo) -> Image.Image:
    """Name, image, label over the image and the maps, from top to bottom."""
    image = np.asarray(_fit(frame.image, Image.Resampling.BOX))
    inside = _inside(frame, image.shape[:2])
    parts = [_text(frame.name, TILE, STRIP), _tile(image, inside)]
    if frame.label is not None:
        label = _pick(frame.label, image.shape[:2])
        parts.append(_tile(overlay(image, label, info.palette, info.ignore_index), inside))
    for name, (values, unit) in frame.maps.items():
        finite = values[np.isfinite(values)]
        told = f"{finite.min():.3g} to {finite.max():.3g} {unit}" if finite.size else "no reading"
        parts.append(_text(f"{name} {told}", TILE, STRIP))
        parts.append(_tile(heatmap(_pick(values, image.shape[:2])), inside))
    return _stack(parts, TILE)


def _fit(image: np.ndarray, method: Image.Resampling) -> Image.Image:
    """To the width of a tile, or its height where the picture is taller than it is wide."""
    height, width = image.shape[:2]
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if scale > 1:
        method = Image.Resampling.NEAREST
    return Image.fromarray(np.ascontiguousarray(image)).resize(size, method)


def _pick(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixel under the centre of each pixel of a tile: labels and depth are never mixed."""
    rows, columns = ((2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(size, values.shape, strict=True))
    return values[rows][:, columns]


def _inside(frame: Frame, size: tuple[int, int]) -> np.ndarray:
    """``[h, w]``: which pixels of the tile are picture and no padding."""
    inside = np.zeros(frame.image.shape[:2], dtype=bool)
    height, width = frame.extent or frame.image.shape[:2]
    inside[:height, :width] = True
    return _pick(inside, size)


def _tile(pixels: np.ndarray, inside: np.ndarray) -> Image.Image:
    rows, columns = np.indices(inside.shape) // 8
    checks = np.array(PADDING, np.uint8)[(rows + columns) % 2]
    return Image.fromarray(np.where(inside[..., None], pixels, checks))


def _text(text: str, width: int, height: int, size: int = FONT_SIZE - 2) -> Image.Image:
    """One line, shortened in its middle where it is too long."""
    font = typeface(size)
    shown = text
    while font.getlength(shown) > width - 2 * GAP and len(text) > 8:
        text = text[: len(text) // 2 - 1] + text[len(text) // 2 + 1 :]
        shown = f"{text[: len(text) // 2]}…{text[len(text) // 2 :]}"
    strip = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(strip).text((GAP, height / 2), shown, INK, font, anchor="lm")
    return strip


def _row(columns: Sequence[Image.Image]) -> Image.Image:
    row = Image.new("RGB", (len(columns) * (TILE + GAP), max(c.height for c in columns)), PAPER)
    for place, column in enumerate(columns):
        row.paste(column, (place * (TILE + GAP), 0))
    return row


def _stack(parts: Sequence[Image.Image], width: int) -> Image.Image:
    stack = Image.new("RGB", (width, sum(part.height + GAP for part in parts)), PAPER)
    y = 0
    for part in parts:
        stack.paste(part, (0, y))
        y += part.height + GAP
    return stack
