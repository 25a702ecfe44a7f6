"""Pictures of one frame: labels in colour, errors, maps, and the panel that puts them side by side.

Arrays are ``[H, W]`` labels, ``[H, W]`` float maps and ``[H, W, 3]`` uint8 RGB images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from hardpix.report.fonts import typeface
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
