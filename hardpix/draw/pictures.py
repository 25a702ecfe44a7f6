"""Pictures of frames: coloured labels, overlays, heat maps, grids, contact sheets.

Arrays are ``[H, W]`` labels, ``[H, W]`` float maps and ``[H, W, 3]`` uint8 RGB images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hardpix.types import DatasetInfo

VOID = (24, 24, 24)  # unlabelled, and undefined values of a map; not black, which palettes use for a class
WRONG = (230, 30, 40)
PAPER, INK = (255, 255, 255), (20, 20, 20)
COLORMAP = "viridis"  # perceptually uniform, readable in grey and by the colour-blind

TILE_WIDTH = 256  # small images are magnified by a whole factor to about this
MAX_TILE_WIDTH = 640  # large ones are thinned by a whole factor to at most this
GAP, STRIP, LINE, FONT_SIZE = 4, 22, 22, 14

Palette = Sequence[tuple[int, int, int]]
Entry = tuple[str, tuple[int, int, int]]  # of a legend


def colorize(label: np.ndarray, palette: Palette, ignore_index: int) -> np.ndarray:
    """``[H, W]`` labels to ``[H, W, 3]`` uint8; the ignored value and any other without a colour become VOID."""
    colors = np.array([*palette, VOID], np.uint8)
    unknown = (label < 0) | (label >= len(palette)) | (label == ignore_index)
    return colors[np.where(unknown, len(palette), label)]


def overlay(
    image: np.ndarray, label: np.ndarray, palette: Palette, ignore_index: int, *, opacity: float = 0.55
) -> np.ndarray:
    """Label colours over the image; ignored pixels show the image alone."""
    blended = (1 - opacity) * image + opacity * colorize(label, palette, ignore_index)
    return np.where((label == ignore_index)[..., None], image, np.rint(blended)).astype(np.uint8)


def heatmap(values: np.ndarray, vmin: float | None = None, vmax: float | None = None) -> np.ndarray:
    """``[H, W]`` floats to ``[H, W, 3]`` uint8, ``vmin`` darkest, clipped to the range; NaN and inf become VOID.

    The range defaults to that of the finite values.
    """
    finite = np.isfinite(values)
    low, high = _range(values)
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    unit = (np.where(finite, values, low) - low) / (high - low) if high > low else np.zeros(values.shape)
    colors = _colors()[np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)]
    return np.where(finite[..., None], colors, np.array(VOID, np.uint8))


def error(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, ignore_index: int) -> np.ndarray:
    """Wrong pixels in WRONG over the darkened grey image; pixels without truth are VOID."""
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    shown = np.repeat(np.rint(40 + 0.7 * grey).astype(np.uint8)[..., None], 3, axis=2)
    shown[truth != prediction] = WRONG
    shown[truth == ignore_index] = VOID
    return shown


def panel(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    info: DatasetInfo,
    maps: Mapping[str, np.ndarray] | None = None,
) -> Image.Image:
    """Image, truth, prediction, error and one tile per map, each titled, over a legend of the classes present.

    The error's title gives the share of wrong pixels among the labelled ones, a map's title its range.
    """
    maps = maps or {}
    labelled = truth != info.ignore_index
    wrong = 100 * (truth != prediction)[labelled].mean() if labelled.any() else 0.0
    tiles = {
        "image": image,
        "truth": colorize(truth, info.palette, info.ignore_index),
        "prediction": colorize(prediction, info.palette, info.ignore_index),
        f"error {wrong:.1f} %": error(image, truth, prediction, info.ignore_index),
    }
    for name, values in maps.items():
        low, high = _range(values)
        tiles[f"{name} {low:.2g} to {high:.2g}"] = heatmap(values)
    row = _row_of_tiles(tiles)
    legend = _legend(truth, prediction, info, row.width, bar=bool(maps))
    canvas = Image.new("RGB", (row.width, row.height + legend.height), PAPER)
    canvas.paste(row, (0, 0))
    canvas.paste(legend, (0, row.height))
    return canvas


@lru_cache(maxsize=1)
def _colors() -> np.ndarray:
    """``[256, 3]`` uint8."""
    from matplotlib import colormaps  # 0.3 s that a label image need not wait for

    return np.rint(colormaps[COLORMAP](np.arange(256))[:, :3] * 255).astype(np.uint8)


def _range(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _fit(tile: np.ndarray) -> np.ndarray:
    """Whole factors and no interpolation, so that every pixel of the tile is one of the data."""
    width = tile.shape[1]
    if width > MAX_TILE_WIDTH:
        step = -(-width // MAX_TILE_WIDTH)
        return tile[::step, ::step]
    factor = max(1, round(TILE_WIDTH / width))
    return tile.repeat(factor, axis=0).repeat(factor, axis=1)


def _row_of_tiles(tiles: Mapping[str, np.ndarray]) -> Image.Image:
    fitted = {title: _fit(tile) for title, tile in tiles.items()}
    height, width = next(iter(fitted.values())).shape[:2]
    row = Image.new("RGB", (len(fitted) * (width + GAP) - GAP, STRIP + height), PAPER)
    draw, font = ImageDraw.Draw(row), typeface(FONT_SIZE)
    for i, (title, tile) in enumerate(fitted.items()):
        x = i * (width + GAP)
        draw.text((x + GAP, STRIP / 2), title, INK, font, anchor="lm")
        row.paste(Image.fromarray(tile), (x, STRIP))
    return row


def _legend(
    truth: np.ndarray, prediction: np.ndarray, info: DatasetInfo, width: int, *, bar: bool
) -> Image.Image:
    """Swatches of the classes in the truth or the prediction, of void and of wrong, wrapped to ``width``."""
    present = set(np.union1d(truth, prediction).tolist())
    return legend(
        [*class_entries(present, info), ("wrong", WRONG)], width, bar="map low to high" if bar else ""
    )


def class_entries(present: Collection[int], info: DatasetInfo) -> list[Entry]:
    """Name and colour of the classes among ``present``, in their order, and of void."""
    entries = [(name, info.palette[i]) for i, name in enumerate(info.classes) if i in present]
    return [*entries, ("void", VOID)] if info.ignore_index in present else entries


def legend(entries: Sequence[Entry], width: int, *, bar: str = "") -> Image.Image:
    """Swatches with their names, wrapped to ``width``; ``bar`` names the colours of a map, from low to high."""
    font = typeface(FONT_SIZE)
    x, y, places = GAP, 0, []
    for name, _ in [*entries, *([(bar, PAPER)] if bar else [])]:
        wide = LINE + int(font.getlength(name)) + 3 * GAP
        if x > GAP and x + wide > width:
            x, y = GAP, y + LINE
        places.append((x, y))
        x += wide
    image = Image.new("RGB", (width, y + LINE + GAP), PAPER)
    draw = ImageDraw.Draw(image)
    for (name, color), (x, y) in zip(entries, places, strict=False):
        draw.rectangle((x, y + GAP, x + 14, y + GAP + 14), color, outline=INK)
        draw.text((x + LINE, y + LINE / 2), name, INK, font, anchor="lm")
    if bar:
        x, y = places[-1]
        image.paste(Image.fromarray(_colors()[None].repeat(14, 0)).resize((64, 14)), (x, y + GAP))
        draw.text((x + 68, y + LINE / 2), bar.removeprefix("map "), INK, font, anchor="lm")
    return image


# Grids of pictures: a row per frame, columns in groups, each tile with a caption of its own.


CAPTION_HEIGHT = 20  # height of a line of text
SPACE = 14  # between two groups of columns
MARGIN = 8


class Tile(NamedTuple):
    """A picture ``[H, W, 3]`` uint8; ``smooth``: a photograph, whose pixels may be averaged."""

    picture: np.ndarray
    caption: str = ""
    smooth: bool = False


class ColumnGroup(NamedTuple):
    """Tiles that stand under one heading; in every row of a grid as many."""

    heading: str
    tiles: Sequence[Tile]


def grid(
    rows: Sequence[Sequence[ColumnGroup]],
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
    parts += [_grid_row(groups, lefts, width, tile_width) for groups in rows]
    if entries or bar:
        parts.append(legend(entries, width, bar=bar))
    height = sum(part.height + GAP for part in parts)
    canvas = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    y = MARGIN
    for part in parts:
        canvas.paste(part, (MARGIN, y))
        y += part.height + GAP
    return canvas


def _places(groups: Sequence[ColumnGroup], tile: int) -> tuple[list[list[int]], int]:
    """The left edge of every tile, by group, and the width of all."""
    lefts, x = [], 0
    for group in groups:
        lefts.append([x + i * (tile + GAP) for i in range(len(group.tiles))])
        x = lefts[-1][-1] + tile + SPACE
    return lefts, x - SPACE


def _end(lefts: Sequence[int], tile: int) -> int:
    return lefts[-1] + tile


def _grid_row(
    groups: Sequence[ColumnGroup], lefts: Sequence[Sequence[int]], width: int, tile: int
) -> Image.Image:
    shown = [[_scaled(one, tile) for one in group.tiles] for group in groups]
    height = max(one.height for group in shown for one in group)
    captions = [
        (x, one.caption, x + tile)
        for g, xs in zip(groups, lefts, strict=True)
        for one, x in zip(g.tiles, xs, strict=True)
    ]
    row = Image.new("RGB", (width, CAPTION_HEIGHT + height), PAPER)
    row.paste(_strip(width, captions, FONT_SIZE - 2), (0, 0))
    for group, xs in zip(shown, lefts, strict=True):
        for one, x in zip(group, xs, strict=True):
            row.paste(one, (x, CAPTION_HEIGHT))
    return row


def _scaled(tile: Tile, width: int) -> Image.Image:
    """To ``width``: photographs by the mean of an area when they shrink, all else by the nearest pixel."""
    height = max(1, round(tile.picture.shape[0] * width / tile.picture.shape[1]))
    shrinks = width < tile.picture.shape[1]
    method = Image.Resampling.BOX if tile.smooth and shrinks else Image.Resampling.NEAREST
    return Image.fromarray(np.ascontiguousarray(tile.picture)).resize((width, height), method)


def _strip(width: int, texts: Sequence[tuple[int, str, int]], size: int = FONT_SIZE) -> Image.Image:
    """Lines of text, each from its left edge and shortened where it would reach beyond its right one."""
    image = Image.new("RGB", (width, CAPTION_HEIGHT + max(0, size - FONT_SIZE) * 2), PAPER)
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


# Contact sheets: frames of a data set side by side, each with its label over it and its maps in colour.
#
# Arrays are ``[H, W, 3]`` uint8 RGB images, ``[H, W]`` labels and ``[H, W]`` float maps.


COLUMNS, TILE, HEADER_HEIGHT = 6, 240, 20  # frames in a row; width of a tile; height of a line of text
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
            blocks.append(_sheet_row([_column(frame, info) for frame in frames[start : start + COLUMNS]]))
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
        blocks.append(_text(note, width, HEADER_HEIGHT))
    return _stack(blocks, width)


def _column(frame: Frame, info: DatasetInfo) -> Image.Image:
    """Name, image, label over the image and the maps, from top to bottom."""
    image = np.asarray(_fit_tile(frame.image, Image.Resampling.BOX))
    inside = _inside(frame, image.shape[:2])
    parts = [_text(frame.name, TILE, HEADER_HEIGHT), _tile(image, inside)]
    if frame.label is not None:
        label = _pick(frame.label, image.shape[:2])
        parts.append(_tile(overlay(image, label, info.palette, info.ignore_index), inside))
    for name, (values, unit) in frame.maps.items():
        finite = values[np.isfinite(values)]
        summary = f"{finite.min():.3g} to {finite.max():.3g} {unit}" if finite.size else "no reading"
        parts.append(_text(f"{name} {summary}", TILE, HEADER_HEIGHT))
        parts.append(_tile(heatmap(_pick(values, image.shape[:2])), inside))
    return _stack(parts, TILE)


def _fit_tile(image: np.ndarray, method: Image.Resampling) -> Image.Image:
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


def _sheet_row(columns: Sequence[Image.Image]) -> Image.Image:
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


# Point clouds.


def cloud(
    points: np.ndarray, colors: np.ndarray, *, width: int, turn: float, tilt: float, dot: int = 5
) -> np.ndarray:
    """Points ``[N, 3]`` (right, forward, up) in their colours without perspective: ``[H, width, 3]`` uint8.

    ``turn``: degrees that the viewer stands to the right of the camera; ``tilt``: degrees that it looks down. A point
    is a square of ``dot`` pixels, and hides those behind it.
    """
    sine, cosine = np.sin(np.deg2rad([turn, tilt])), np.cos(np.deg2rad([turn, tilt]))
    across = points[:, 0] * cosine[0] + points[:, 1] * sine[0]
    away = points[:, 1] * cosine[0] - points[:, 0] * sine[0]
    down = -points[:, 2] * cosine[1] - away * sine[1]
    far_first = np.argsort(points[:, 2] * sine[1] - away * cosine[1], kind="stable")
    place = np.stack([down, across], 1)[far_first]
    place -= place.min(0)
    rows, columns = np.rint(place * ((width - dot) / max(place[:, 1].max(), 1e-6))).astype(int).T
    picture = np.full((rows.max() + dot, width, 3), PAPER, np.uint8)
    y, x = np.divmod(np.arange(dot * dot), dot)
    # Of squares that share a pixel the last one, which is the nearest, stays.
    picture[rows[:, None] + y, columns[:, None] + x] = colors[far_first][:, None]
    return picture


# The typeface of pictures: matplotlib's, which has the letters of most languages, unlike Pillow's own.


@lru_cache(maxsize=8)
def typeface(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, ``size`` pixels high."""
    from matplotlib import get_data_path  # not needed by those who draw no text

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def spread(total: int, count: int) -> list[int]:
    """``count`` places of ``total`` (all, if they are fewer), evenly spaced from the first to the last."""
    count = min(count, total)
    return sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)})
