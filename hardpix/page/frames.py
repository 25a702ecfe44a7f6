"""Frames for the explorer of a page: predictions and hardness maps of its runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hardpix.draw import pictures
from hardpix.figures import runs
from hardpix.page.content import Part, Row
from hardpix.page.page import VOID, Explorer, Frame, MapKind, View, score
from hardpix.predict import find_device
from hardpix.scores import read_per_image
from hardpix.train import results
from hardpix.train.results import unnormalize
from hardpix.types import HardpixError

if TYPE_CHECKING:
    from hardpix.data import DataModule
    from hardpix.figures.runs import FigureRun
    from hardpix.methods import Method
    from hardpix.ops.hardness import HardMap
    from hardpix.types import Batch


MAX_RUNS = 8  # one for each row; more would make the page large


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
    seen = results.seen(method, moved, maps, results.labelled(moved["label"], data), who)
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
    return (
        places,
        f"The {len(places)} of {len(frames)} {split} frames with the lowest mean mIoU over all runs.",
    )
