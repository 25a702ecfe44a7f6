"""Grids of pictures: a row per frame, columns in groups, each tile with a caption of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hardpix.report.figures import FONT_SIZE, GAP, INK, PAPER, Entry, legend
from hardpix.report.fonts import typeface

STRIP = 20  # height of a line of text
SPACE = 14  # between two groups of columns
MARGIN = 8


class Tile(NamedTuple):
    """A picture ``[H, W, 3]`` uint8; ``smooth``: a photograph, whose pixels may be averaged."""

    picture: np.ndarray
    caption: str = ""
    smooth: bool = False


class Group(NamedTuple):
    """Tiles that stand under one heading; in every row of a grid as many."""

    heading: str
    tiles: Sequence[Tile]


def grid(
    rows: Sequence[Sequence[Group]],
    *,
    title: str,
    tile_width: int,
    entries: Sequence[Entry] = (),
    bar: str = "",
) -> Image.Image:
    """The rows under a title and the groups' headings, above a legend of ``entries`` and of a map's ``bar``."""
    lefts, width = _places(rows[0], tile_width)
    headings = _strip(
        width, [(lefts[i][0], group.heading, _end(lefts[i], tile_width)) for i, group in enumerate(rows[0])]
    )
    named = any(group.heading for group in rows[0])
    parts = [_strip(width, [(0, title, width)], FONT_SIZE + 2), *([headings] if named else [])]
    parts += [_row(groups, lefts, width, tile_width) for groups in rows]
    if entries or bar:
        parts.append(legend(entries, width, bar=bar))
    height = sum(part.height + GAP for part in parts)
    canvas = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    y = MARGIN
    for part in parts:
        canvas.paste(part, (MARGIN, y))
        y += part.height + GAP
    return canvas


def _places(groups: Sequence[Group], tile: int) -> tuple[list[list[int]], int]:
    """The left edge of every tile, by group, and the width of all."""
    lefts, x = [], 0
    for group in groups:
        lefts.append([x + i * (tile + GAP) for i in range(len(group.tiles))])
        x = lefts[-1][-1] + tile + SPACE
    return lefts, x - SPACE


def _end(lefts: Sequence[int], tile: int) -> int:
    return lefts[-1] + tile


def _row(groups: Sequence[Group], lefts: Sequence[Sequence[int]], width: int, tile: int) -> Image.Image:
    shown = [[_scaled(one, tile) for one in group.tiles] for group in groups]
    height = max(one.height for group in shown for one in group)
    captions = [
        (x, one.caption, x + tile)
        for g, xs in zip(groups, lefts, strict=True)
        for one, x in zip(g.tiles, xs, strict=True)
    ]
    row = Image.new("RGB", (width, STRIP + height), PAPER)
    row.paste(_strip(width, captions, FONT_SIZE - 2), (0, 0))
    for group, xs in zip(shown, lefts, strict=True):
        for one, x in zip(group, xs, strict=True):
            row.paste(one, (x, STRIP))
    return row


def _scaled(tile: Tile, width: int) -> Image.Image:
    """To ``width``: photographs by the mean of an area when they shrink, all else by the nearest pixel."""
    height = max(1, round(tile.picture.shape[0] * width / tile.picture.shape[1]))
    shrinks = width < tile.picture.shape[1]
    method = Image.Resampling.BOX if tile.smooth and shrinks else Image.Resampling.NEAREST
    return Image.fromarray(np.ascontiguousarray(tile.picture)).resize((width, height), method)


def _strip(width: int, texts: Sequence[tuple[int, str, int]], size: int = FONT_SIZE) -> Image.Image:
    """Lines of text, each from its left edge and shortened where it would reach beyond its right one."""
    image = Image.new("RGB", (width, STRIP + max(0, size - FONT_SIZE) * 2), PAPER)
    draw = ImageDraw.Draw(image)
    for left, text, right in texts:
        font = typeface(size)
        draw.text((left, image.height / 2), _short(text, right - left, font), INK, font, anchor="lm")
    return image


def _short(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    shown, kept = text, len(text)
    while kept > 1 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[:kept].rstrip()}\N{HORIZONTAL ELLIPSIS}"
    return shown
