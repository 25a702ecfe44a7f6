"""Figures of a segmenter's errors: where it errs, where that is expected, what a repair changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from hardpix.draw.pictures import PAPER, ColumnGroup, Entry, Tile, colorize, heatmap
from hardpix.ops.errors import semantic_errors
from hardpix.train.results import batches, dense, unnormalize

if TYPE_CHECKING:
    from hardpix.data import DataModule
    from hardpix.types import Batch


HEADER = (
    "frame", "pixels", "errors", "hard_errors", "expected", "errors_expected", "hard_errors_expected",
    "errors_after", "repaired", "spoiled", "exchanged",
)  # fmt: skip


class FrameErrors(NamedTuple):
    """What a method says of one frame, arrays ``[H, W]``."""

    semantic: np.ndarray  # the segmenter's classes
    probability: np.ndarray  # of an error
    fused: np.ndarray | None  # the repaired classes, of a method that repairs
    labelled: np.ndarray
    wrong: np.ndarray
    hard: np.ndarray


@torch.inference_mode()
def error_rows(
    method: Any, data: DataModule, places: Sequence[int], split: str, width: int
) -> tuple[list[list[ColumnGroup]], list[tuple[Any, ...]], set[int]]:
    """A row per frame: image and truth, the segmenter, the error branch and, where there is one, the repair.

    Numbers, in labelled pixels, as in HEADER: ``expected`` have an error probability above the method's threshold;
    the last four are None for a method that repairs nothing. The set holds the labels that occur.
    """
    info, rows, numbers, present = data.info, [], [], set[int]()
    for batch in batches(data, split, places, method):
        image, truth = unnormalize(batch["image"][0], info), batch["label"][0].cpu().numpy()
        found = frame_errors(method, batch)
        row, counts = _row(found, image, truth, data, method.t, width)
        rows.append(
            [
                ColumnGroup("", [Tile(image, batch["name"][0], smooth=True), _classes(truth, "truth", data)]),
                *row,
            ]
        )
        numbers.append((batch["name"][0], *counts))
        shown = [truth, found.semantic, *([] if found.fused is None else [found.fused])]
        present |= set(np.unique(np.stack(shown)).tolist())
    return rows, numbers, present


def frame_errors(method: Any, batch: Batch) -> FrameErrors:
    """``dense`` of such a method is made of the segmenter's logits, two of right and wrong, and perhaps a repair's."""
    values = dense(method, batch).float()
    logits, pair, *_ = values.split(method.groups, 1)
    labelled, wrong, hard = semantic_errors(logits, batch["label"], method.info.ignore_index, method.rho)
    fused = method.decide(values).argmax(1) if len(method.groups) > 2 else None
    arrays = (logits.argmax(1), torch.sigmoid(pair[:, 1] - pair[:, 0]), fused, labelled, wrong, hard)
    return FrameErrors(*(None if x is None else x[0].cpu().numpy() for x in arrays))  # type: ignore[arg-type]


def _row(
    found: FrameErrors, image: np.ndarray, truth: np.ndarray, data: DataModule, t: float, width: int
) -> tuple[list[ColumnGroup], tuple[Any, ...]]:
    """The groups after the first, and the numbers after the frame's name."""
    expected = found.probability > np.float32(t)
    masks = (
        found.labelled, found.wrong, found.hard, expected & found.labelled, expected & found.wrong,
        expected & found.hard,
    )  # fmt: skip
    pixels, errors, hard, _, hit, _ = counts = tuple(int(mask.sum()) for mask in masks)
    groups = [
        ColumnGroup(
            "segmenter",
            [
                _classes(found.semantic, "prediction", data),
                Tile(
                    error_map(image, found.labelled, found.wrong, found.hard),
                    f"errors {_percent(errors, pixels)}, hard {_percent(hard, errors)} of them",
                ),
            ],
        ),
        ColumnGroup(
            "error branch",
            [Tile(probability_map(found.probability, t, width), f"P(error), {_percent(hit, errors)} found")],
        ),
    ]
    if found.fused is None:
        return groups, (*counts, None, None, None, None)
    changed = changes(truth, found.semantic, found.fused, data.info.ignore_index)
    repaired, spoiled, exchanged = (int(mask.sum()) for mask in changed)
    left = errors - repaired + spoiled
    groups.append(
        ColumnGroup(
            "detail branch",
            [
                _classes(found.fused, f"fused, errors {_percent(left, pixels)}", data),
                Tile(
                    change_map(image, found.labelled, changed),
                    f"{repaired} repaired, {spoiled} spoiled",
                ),
            ],
        )
    )
    return groups, (*counts, left, repaired, spoiled, exchanged)


def _classes(label: np.ndarray, caption: str, data: DataModule) -> Tile:
    return Tile(colorize(label, data.info.palette, data.info.ignore_index), caption)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


def summary(numbers: Sequence[tuple[Any, ...]]) -> str:
    """The figure's own frames in words."""
    rows = [dict(zip(HEADER, row, strict=True)) for row in numbers]
    total = {name: sum(row[name] or 0 for row in rows) for name in HEADER[1:]}
    summary = f"{len(rows)} frames: {total['errors']:,} errors of the segmenter"
    if rows[0]["repaired"] is None:
        union = total["errors"] + total["expected"] - total["errors_expected"]
        iou = total["errors_expected"] / union if union else math.nan
        return f"{summary}, {total['expected']:,} pixels expected to be, IoU {100 * iou:.1f} %"
    parts = [f"{total[name]:,} {name}" for name in ("repaired", "spoiled", "exchanged")]
    return f"{summary}; {', '.join(parts)}"


# Pictures of where a segmenter errs, where errors are expected, and what a repair changes (EP).
#
# Arrays are ``[H, W, 3]`` uint8 images, ``[H, W]`` labels, bool masks and float maps. The colours differ
# for every kind of colour vision, from each other and from the faded image.


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


def faded_image(image: np.ndarray) -> np.ndarray:
    """Grey and nearly white, so that colours of a map stand out from it."""
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    shown = np.rint(255 - FADED * (255 - grey)).astype(np.uint8)
    return np.repeat(shown[..., None], 3, axis=2)


def error_map(image: np.ndarray, labelled: np.ndarray, wrong: np.ndarray, hard: np.ndarray) -> np.ndarray:
    """Easy and hard errors over the faded image; ``hard`` are those of the ``wrong`` pixels."""
    shown = faded_image(image)
    shown[wrong] = EASY
    shown[hard] = HARD
    shown[~labelled] = UNLABELLED
    return shown


def change_map(image: np.ndarray, labelled: np.ndarray, changed: Changes) -> np.ndarray:
    """What a repair changed, over the faded image."""
    shown = faded_image(image)
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
    shown[_dilated(above) & ~above] = PAPER
    return shown


def _enlarged(values: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.array(Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST))


def _dilated(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask and their eight neighbours."""
    wide = np.pad(mask, 1)
    rows = wide[:-2] | wide[1:-1] | wide[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
