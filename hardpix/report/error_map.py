"""Pictures of where a segmenter errs, where errors are expected, and what a repair changes (EP).

Arrays are ``[H, W, 3]`` uint8 images, ``[H, W]`` labels, bool masks and float maps. The colours differ for every kind
of colour vision, from each other and from the faded image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from hardpix.report.figures import PAPER, Entry, heatmap

EASY, HARD = (230, 159, 0), (120, 50, 0)
REPAIRED, SPOILED, EXCHANGED = (0, 114, 178), (0, 0, 0), (86, 180, 233)
UNLABELLED = (128, 128, 128)
FADED = 0.24  # of the image's contrast is left below a map

ERROR_ENTRIES: list[Entry] = [("easy error", EASY), ("hard error", HARD), ("void in maps", UNLABELLED)]
CHANGE_ENTRIES: list[Entry] = [
    ("repaired: wrong to right", REPAIRED),
    ("spoiled: right to wrong", SPOILED),
    ("exchanged: wrong to another wrong", EXCHANGED),
]


class Changes(NamedTuple):
    """What a repair does to labelled pixels, three masks ``[H, W]`` without a common pixel."""

    repaired: np.ndarray  # wrong before, right after
    spoiled: np.ndarray  # right before, wrong after
    exchanged: np.ndarray  # another class, wrong before and after


def changes(truth: np.ndarray, before: np.ndarray, after: np.ndarray, ignore_index: int) -> Changes:
    """Compare two predictions of one frame, all ``[H, W]`` labels."""
    changed = (truth != ignore_index) & (before != after)
    right_before, right_after = before == truth, after == truth
    return Changes(changed & right_after, changed & right_before, changed & ~(right_before | right_after))


def faded(image: np.ndarray) -> np.ndarray:
    """Grey and nearly white, so that colours of a map stand out from it."""
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    shown = np.rint(255 - FADED * (255 - grey)).astype(np.uint8)
    return np.repeat(shown[..., None], 3, axis=2)


def error_map(image: np.ndarray, labelled: np.ndarray, wrong: np.ndarray, hard: np.ndarray) -> np.ndarray:
    """Easy and hard errors over the faded image; ``hard`` are those of the ``wrong`` pixels."""
    shown = faded(image)
    shown[wrong] = EASY
    shown[hard] = HARD
    shown[~labelled] = UNLABELLED
    return shown


def change_map(image: np.ndarray, labelled: np.ndarray, changed: Changes) -> np.ndarray:
    """What a repair changed, over the faded image."""
    shown = faded(image)
    for mask, color in zip(changed, (REPAIRED, SPOILED, EXCHANGED), strict=True):
        shown[mask] = color
    shown[~labelled] = UNLABELLED
    return shown


def probability_map(probability: np.ndarray, threshold: float, width: int) -> np.ndarray:
    """``[H, W]`` in colours of 0 to 1, ``width`` pixels wide; a white line on each side of which the threshold lies.

    The line is drawn just outside of what exceeds ``threshold``, one or two pixels of the picture wide.
    """
    height = max(1, round(probability.shape[0] * width / probability.shape[1]))
    above = _enlarged(probability > threshold, width, height)
    shown = _enlarged(heatmap(probability, 0, 1), width, height)
    shown[_grown(above) & ~above] = PAPER
    return shown


def _enlarged(values: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.array(Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST))


def _grown(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask and their eight neighbours."""
    wide = np.pad(mask, 1)
    rows = wide[:-2] | wide[1:-1] | wide[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
