"""The explorer of hard pixels: frames, predictions and hardness maps of runs as pictures in the page's own data."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from hardpix.draw import pictures
from hardpix.figures import runs
from hardpix.page.runs import Part, Row
from hardpix.predict import find_device
from hardpix.scores import read_per_image
from hardpix.train import results
from hardpix.train.results import unnormalize
from hardpix.types import DatasetInfo, HardpixError

if TYPE_CHECKING:
    from hardpix.data import DataModule
    from hardpix.figures.runs import FigureRun
    from hardpix.methods import Method
    from hardpix.ops.hardness import HardMap
    from hardpix.types import Batch

MAX_RUNS = 8  # one for each row; more would make the page large
WIDTHS = (480, 360, 240, 160)  # of a picture: the first at which all of them are small enough
BUDGET = 10_000_000  # bytes of all pictures of one explorer
VOID = 255  # in labels as they are embedded
HIGH = 99.9  # percentile at which a map ends, so that one pixel does not darken all others

ENDS = ("low", "high")
Ranges = dict[str, tuple[float, float]]  # of each map


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

    def content(self) -> dict[str, Any] | None:
        """What the script draws, in the largest width that keeps the page small; None without a frame."""
        if not self.frames or self.info is None:
            return None
        for width in WIDTHS:
            content = _content(self, self.info, width)
            if len(json.dumps(content["frames"])) <= BUDGET:
                break
        return content


def score(label: np.ndarray, prediction: np.ndarray, ignore_index: int, classes: int) -> tuple[float, float]:
    """(mean IoU over the classes that occur in ``label``, share of wrong pixels); NaN without a labelled pixel."""
    valid = (label != ignore_index) & (label >= 0) & (label < classes)
    truth, guess = label[valid], prediction[valid]
    if not truth.size:
        return math.nan, math.nan
    present = np.unique(truth)
    ious = [((truth == c) & (guess == c)).sum() / ((truth == c) | (guess == c)).sum() for c in present]
    return float(np.mean(ious)), float((truth != guess).mean())


def explorer(part: Part, overrides: list[str], split: str, count: int, device: str) -> Explorer:
    """The worst frames of the split under the first finished run of each row; reasons for what is left out."""
    notes: list[str] = []
    where = find_device(device)
    chosen = [(row, row.done[0].directory) for row in part.rows if row.done]
    if len(chosen) > MAX_RUNS:
        left = ", ".join(row.label for row, _ in chosen[MAX_RUNS:])
        notes.append(f"The explorer shows the first {MAX_RUNS} rows; left out: {left}.")
    if not chosen:
        return Explorer(None, split, [], [], ["There is no finished run whose predictions could be shown."])
    data: DataModule | None = None
    first: FigureRun | None = None
    methods: dict[str, Method] = {}
    for row, directory in chosen[:MAX_RUNS]:
        try:
            run = _opened(Path(directory), first, overrides, split)
            own, method = runs.build(run, overrides, "last", where)
            if data is None:
                _check_frames(own, split)
        except (HardpixError, OSError) as error:
            notes.append(f"{row.label} ({directory}) is not in the explorer: {error}")
            continue
        if data is None:
            data, first = own, run
        methods[f"{row.label}, seed {row.done[0].record.seed}"] = method
    if data is None:
        return Explorer(None, split, [], [], notes)
    try:
        return _explored(part, data, methods, split, count, notes)
    except (HardpixError, OSError) as error:
        return Explorer(None, split, [], [], [*notes, f"There is no explorer: {error}"])


def _opened(directory: Path, first: FigureRun | None, overrides: list[str], split: str) -> FigureRun:
    """Raises if the run does not see the frames and classes of the ``first`` one."""
    if first is None:
        return runs.open_runs([directory], [], overrides, split, None)[0]
    return runs.open_runs([first.directory, directory], ["A", "B"], overrides, split, ())[1]


def _check_frames(data: DataModule, split: str) -> None:
    """Raise where the data set is absent, or has more classes than a byte."""
    if not len(data.evaluation_dataset(split)):
        raise HardpixError(f"the {split} split of {data.info.name} has no frame")
    if data.info.num_classes >= VOID:
        raise HardpixError(f"{data.info.name} has more than {VOID - 1} classes")


def _explored(
    part: Part, data: DataModule, methods: dict[str, Method], split: str, count: int, notes: list[str]
) -> Explorer:
    known = {label: results.known_maps(method, data) for label, method in methods.items()}
    results.use(data, list(methods.values()), [about for maps in known.values() for about in maps.values()])
    places, order = _worst(part.rows, data, split, count)
    batches = [data.evaluation_batch(split, place) for place in places]
    views: dict[str, list[View]] = {}
    for label, method in methods.items():
        try:
            views[label] = [_view(data, label, method, known[label], batch) for batch in batches]
        except HardpixError as error:  # a training that diverged
            notes.append(f"{label} is not in the explorer: {error}")
    frames = [
        Frame(
            batch["name"][0],
            unnormalize(batch["image"][0], data.info),
            batch["label"][0].numpy(),
            [own[i] for own in views.values()],
        )
        for i, batch in enumerate(batches)
    ]
    runs = [(label, [MapKind(n, about.title) for n, about in known[label].items()]) for label in views]
    return Explorer(data.info, split, runs, frames if runs else [], notes, order)


def _view(data: DataModule, who: str, method: Method, maps: dict[str, HardMap], batch: Batch) -> View:
    moved: Any = {k: v.to(method.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    seen = results.predict_batch(method, moved, maps, results.labelled(moved["label"], data), who)
    label, prediction = batch["label"][0].numpy(), seen.pred[0].cpu().numpy()
    shown = {name: values[0].float().cpu().numpy() for name, values in seen.maps.items()}
    return View(prediction, shown, *score(label, prediction, data.info.ignore_index, data.info.num_classes))


def _worst(rows: Sequence[Row], data: DataModule, split: str, count: int) -> tuple[list[int], str]:
    """(places, how they were chosen): lowest mIoU, mean over all runs that were scored on this split."""
    frames = data.evaluation_dataset(split).frames
    scores: dict[str, list[float]] = {}
    if split == "test":  # what a run leaves is of its test
        for run in (run for row in rows for run in row.done):
            for one in read_per_image(Path(run.directory)) or ():
                if not math.isnan(one.miou):
                    scores.setdefault(one.image, []).append(one.miou)
    known = {frames.name(i): i for i in range(len(frames))}
    ranked = sorted((sum(v) / len(v), known[name]) for name, v in scores.items() if name in known)
    if not ranked:
        places = pictures.spread(len(frames), count)
        return places, f"{len(places)} of {len(frames)} {split} frames, evenly spaced."
    places = [place for _, place in ranked[:count]]
    order = f"The {len(places)} of {len(frames)} {split} frames with the lowest mean mIoU over all runs."
    return places, order


def _content(found: Explorer, info: DatasetInfo, width: int) -> dict[str, Any]:
    ranges = [_ranges(found, i) for i in range(len(found.runs))]
    colors = pictures.heatmap(np.linspace(0, 1, 256, dtype=np.float32)[None], 0, 1)[0]

    return {
        "order": found.order,
        "classes": list(info.classes),
        "palette": [list(color) for color in info.palette],
        "colors": colors.tobytes().hex(),
        "runs": [
            {
                "label": label,
                "maps": [kind._asdict() | dict(zip(ENDS, own[kind.name], strict=True)) for kind in kinds],
            }
            for (label, kinds), own in zip(found.runs, ranges, strict=True)
        ],
        "frames": [_frame(info, frame, ranges, width) for frame in found.frames],
    }


def _ranges(found: Explorer, run: int) -> Ranges:
    """Of each map of a run over all frames that are shown: rounded, and never empty."""
    made = {}
    for kind in found.runs[run][1]:
        values = np.concatenate([frame.views[run].maps[kind.name].ravel() for frame in found.frames])
        values = values[np.isfinite(values)]
        low, high = (values.min(), np.percentile(values, HIGH)) if values.size else (0.0, 1.0)
        made[kind.name] = float(f"{low:.6g}"), float(f"{high:.6g}")
    return made


def _frame(info: DatasetInfo, frame: Frame, ranges: Sequence[Ranges], width: int) -> dict[str, Any]:
    rows, columns = _grid(frame.label.shape, width)
    void = (frame.label == info.ignore_index) | (frame.label < 0) | (frame.label >= info.num_classes)
    label = np.where(void, VOID, frame.label)[rows, columns]
    height, wide = label.shape
    picture = Image.fromarray(frame.image).resize((wide, height), Image.Resampling.BOX)
    views = [
        {
            "prediction": _png(view.prediction[rows, columns]),
            "miou": None if math.isnan(view.miou) else round(view.miou, 4),
            "wrong": None if math.isnan(view.wrong) else round(view.wrong, 4),
            "maps": [_png(_bytes(view.maps[name][rows, columns], *ends)) for name, ends in own.items()],
        }
        for view, own in zip(frame.views, ranges, strict=True)
    ]
    shape = {"name": frame.name, "width": wide, "height": height}
    return shape | {"image": _uri(picture, "jpeg", quality=88), "label": _png(label), "runs": views}


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
    return _uri(Image.fromarray(values.astype(np.uint8)), "png", optimize=True)


def _uri(image: Image.Image, form: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
