"""The explorer of hard pixels on a page of runs: frames, labels and maps as pictures in the page's own data."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hardpix.report.figures import heatmap
from hardpix.report.svg import attribute
from hardpix.types import DatasetInfo

WIDTHS = (480, 360, 240, 160)  # of a picture: the first at which all of them are small enough
BUDGET = 10_000_000  # bytes of all pictures of one explorer
VOID = 255  # in labels as they are embedded
HIGH = 99.9  # percentile at which a map ends, so that one pixel does not darken all others


class MapKind(NamedTuple):
    name: str
    title: str


@dataclass(frozen=True)
class View:
    """What one run says of a frame: classes ``[H, W]``, maps ``[H, W]`` float32 with NaN where nothing is said."""

    prediction: np.ndarray
    maps: dict[str, np.ndarray]
    miou: float  # mean IoU of the classes in the frame's labels, NaN without labels
    wrong: float  # share of the labelled pixels


@dataclass(frozen=True)
class Frame:
    name: str
    image: np.ndarray  # [H, W, 3] uint8
    label: np.ndarray  # [H, W]
    views: list[View]  # of each run


@dataclass(frozen=True)
class Explorer:
    """``runs``: label and the maps of each; ``notes``: what is not shown, and why."""

    info: DatasetInfo | None
    split: str
    runs: list[tuple[str, list[MapKind]]]
    frames: list[Frame]
    notes: list[str]
    order: str = ""  # how the frames were chosen


def score(label: np.ndarray, prediction: np.ndarray, ignore_index: int, classes: int) -> tuple[float, float]:
    """(mean IoU over the classes that occur in ``label``, share of wrong pixels); NaN without a labelled pixel."""
    valid = (label != ignore_index) & (label >= 0) & (label < classes)
    truth, guess = label[valid], prediction[valid]
    if not truth.size:
        return math.nan, math.nan
    present = np.unique(truth)
    ious = [((truth == c) & (guess == c)).sum() / ((truth == c) | (guess == c)).sum() for c in present]
    return float(np.mean(ious)), float((truth != guess).mean())


def explorer(found: Explorer, place: int) -> str:
    """The controls and the data; the script draws. ``place`` tells explorers of one page apart."""
    notes = "".join(f'<p class="note">{attribute(note)}</p>' for note in found.notes)
    if not found.frames or found.info is None:
        return notes
    content = json.dumps(_fitting(found), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<noscript><p class="lacking">The explorer needs JavaScript; all else on this page does not.</p></noscript>'
        f'<div class="explorer" role="group" aria-label="explorer of hard pixels" tabindex="-1">'
        f'<script type="application/json" id="frames-{place}">{content}</script></div>{notes}'
    )


def _fitting(found: Explorer) -> dict[str, Any]:
    """The data with pictures of the largest width that keeps the page small."""
    for width in WIDTHS:
        content, size = _content(found, width)
        if size <= BUDGET:
            break
    return content


def _content(found: Explorer, width: int) -> tuple[dict[str, Any], int]:
    assert found.info is not None
    ranges = [_ranges(found, i) for i in range(len(found.runs))]
    frames = [_frame(found, frame, ranges, width) for frame in found.frames]
    size = sum(len(text) for frame in frames for text in _pictures(frame))
    colors = heatmap(np.linspace(0, 1, 256, dtype=np.float32)[None], 0, 1)[0]
    return {
        "split": found.split,
        "order": found.order,
        "classes": list(found.info.classes),
        "palette": [list(color) for color in found.info.palette],
        "colors": colors.tobytes().hex(),
        "runs": [
            {
                "label": label,
                "maps": [
                    {"name": m.name, "title": m.title, "low": low, "high": high}
                    for m, (low, high) in zip(maps, own, strict=True)
                ],
            }
            for (label, maps), own in zip(found.runs, ranges, strict=True)
        ],
        "frames": frames,
    }, size


def _ranges(found: Explorer, run: int) -> list[tuple[float, float]]:
    """Of each map of a run over all frames that are shown: rounded, and never empty."""
    made = []
    for kind in found.runs[run][1]:
        values = np.concatenate([frame.views[run].maps[kind.name].ravel() for frame in found.frames])
        values = values[np.isfinite(values)]
        low, high = (values.min(), np.percentile(values, HIGH)) if values.size else (0.0, 1.0)
        made.append((float(f"{low:.6g}"), float(f"{high:.6g}")))
    return made


def _frame(
    found: Explorer, frame: Frame, ranges: list[list[tuple[float, float]]], width: int
) -> dict[str, Any]:
    assert found.info is not None
    ignore, classes = found.info.ignore_index, found.info.num_classes
    rows, columns = _grid(frame.label.shape, width)
    void = (frame.label == ignore) | (frame.label < 0) | (frame.label >= classes)
    label = np.where(void, VOID, frame.label)[rows, columns]
    shape = label.shape
    picture = Image.fromarray(frame.image).resize((shape[1], shape[0]), Image.Resampling.BOX)
    views = []
    for view, (_, maps), own in zip(frame.views, found.runs, ranges, strict=True):
        coded = [
            _png(_bytes(view.maps[kind.name][rows, columns], *ends))
            for kind, ends in zip(maps, own, strict=True)
        ]
        views.append(
            {
                "prediction": _png(view.prediction[rows, columns]),
                "miou": None if math.isnan(view.miou) else round(view.miou, 4),
                "wrong": None if math.isnan(view.wrong) else round(view.wrong, 4),
                "maps": coded,
            }
        )
    return {
        "name": frame.name,
        "width": shape[1],
        "height": shape[0],
        "image": _jpeg(picture),
        "label": _png(label),
        "runs": views,
    }


def _grid(shape: tuple[int, ...], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the pixels that stay, evenly spaced: the same of image, labels and maps."""
    height = shape[0] if shape[1] <= width else max(1, round(shape[0] * width / shape[1]))
    wide = min(shape[1], width)
    rows = ((np.arange(height) + 0.5) * shape[0] / height).astype(int)
    columns = ((np.arange(wide) + 0.5) * shape[1] / wide).astype(int)
    return rows[:, None], columns[None, :]


def _bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """1 at ``low`` to 255 at ``high``, clipped; 0 where there is no value."""
    finite = np.isfinite(values)
    unit = (np.where(finite, values, low) - low) / (high - low) if high > low else np.zeros(values.shape)
    return np.where(finite, 1 + np.rint(254 * np.clip(unit, 0, 1)), 0)


def _png(values: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _pictures(frame: dict[str, Any]) -> Sequence[str]:
    own = [text for run in frame["runs"] for text in (run["prediction"], *run["maps"])]
    return [frame["image"], frame["label"], *own]
