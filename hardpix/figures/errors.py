"""The frames of ``hardpix figure errors``: what a segmenter has wrong, where that is expected, what repair changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hardpix.ops.error import semantic_errors
from hardpix.report.error_map import change_map, changes, error_map, probability_map
from hardpix.report.figures import colorize
from hardpix.report.grid import Group, Tile
from hardpix.run.figure_runs import batches, dense
from hardpix.run.panels import unnormalize

if TYPE_CHECKING:
    from hardpix.data import DataModule
    from hardpix.types import Batch

HEADER = (
    "frame", "pixels", "errors", "hard_errors", "expected", "errors_expected", "hard_errors_expected",
    "errors_after", "repaired", "spoiled", "exchanged",
)  # fmt: skip


class Found(NamedTuple):
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
) -> tuple[list[list[Group]], list[tuple[Any, ...]], set[int]]:
    """A row per frame: image and truth, the segmenter, the error branch and, where there is one, the repair.

    Numbers, in labelled pixels, as in HEADER: ``expected`` have an error probability above the method's threshold;
    the last four are None for a method that repairs nothing. The set holds the labels that occur.
    """
    info, rows, numbers, present = data.info, [], [], set[int]()
    for batch in batches(data, split, places, method):
        image, truth = unnormalize(batch["image"][0], info), batch["label"][0].cpu().numpy()
        found = find(method, batch)
        row, counts = _row(found, image, truth, data, method.t, width)
        rows.append(
            [Group("", [Tile(image, batch["name"][0], smooth=True), _classes(truth, "truth", data)]), *row]
        )
        numbers.append((batch["name"][0], *counts))
        shown = [truth, found.semantic, *([] if found.fused is None else [found.fused])]
        present |= set(np.unique(np.stack(shown)).tolist())
    return rows, numbers, present


def find(method: Any, batch: Batch) -> Found:
    """``dense`` of such a method is made of the segmenter's logits, two of right and wrong, and perhaps a repair's."""
    values = dense(method, batch).float()
    logits, pair, *_ = values.split(method.groups, 1)
    labelled, wrong, hard = semantic_errors(logits, batch["label"], method.info.ignore_index, method.rho)
    fused = method.decide(values).argmax(1) if len(method.groups) > 2 else None
    arrays = (logits.argmax(1), torch.sigmoid(pair[:, 1] - pair[:, 0]), fused, labelled, wrong, hard)
    return Found(*(None if x is None else x[0].cpu().numpy() for x in arrays))  # type: ignore[arg-type]


def _row(
    found: Found, image: np.ndarray, truth: np.ndarray, data: DataModule, t: float, width: int
) -> tuple[list[Group], tuple[Any, ...]]:
    """The groups after the first, and the numbers after the frame's name."""
    expected = found.probability > np.float32(t)
    masks = (
        found.labelled, found.wrong, found.hard, expected & found.labelled, expected & found.wrong,
        expected & found.hard,
    )  # fmt: skip
    pixels, errors, hard, _, hit, _ = counts = tuple(int(mask.sum()) for mask in masks)
    groups = [
        Group(
            "segmenter",
            [
                _classes(found.semantic, "prediction", data),
                Tile(
                    error_map(image, found.labelled, found.wrong, found.hard),
                    f"errors {_percent(errors, pixels)}, hard {_percent(hard, errors)} of them",
                ),
            ],
        ),
        Group(
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
        Group(
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
    told = f"{len(rows)} frames: {total['errors']:,} errors of the segmenter"
    if rows[0]["repaired"] is None:
        union = total["errors"] + total["expected"] - total["errors_expected"]
        iou = total["errors_expected"] / union if union else math.nan
        return f"{told}, {total['expected']:,} pixels expected to be, IoU {100 * iou:.1f} %"
    parts = [f"{total[name]:,} {name}" for name in ("repaired", "spoiled", "exchanged")]
    return f"{told}; {', '.join(parts)}"
