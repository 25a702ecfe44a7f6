"""What the figures of hardness maps show, computed over a split or, for their evolution, on one frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hardpix.metrics import ErrorRanking, HardnessGroups
from hardpix.metrics.hardness import rank_edges
from hardpix.ops.hard_map import HardMap, rank_correlation
from hardpix.ops.ssim import mean_ssim, ssim_map
from hardpix.report.hardness_charts import Pair, Ranked, Step
from hardpix.run import rundir
from hardpix.run.checkpoint import load_file
from hardpix.run.figure_runs import FigureRun, batches
from hardpix.run.hard_maps import frames, labelled, maps_of, seen
from hardpix.run.panels import unnormalize

FOR_GROUPS, FOR_RANKING = 8192, 2048  # intervals of hardness, besides those of a grid
SAMPLE, PIXELS = 16, 1 << 18  # frames that the intervals are chosen on, and at most so many pixels of each

if TYPE_CHECKING:
    from torch import Tensor

    from hardpix.data import DataModule
    from hardpix.methods import Method
    from hardpix.metrics.hardness import Group
    from hardpix.types import Batch, DatasetInfo


@torch.inference_mode()
def deciles(
    methods: Mapping[str, Method],
    rankings: Mapping[str, HardMap],
    name: str,
    data: DataModule,
    split: str,
    limit: int | None,
) -> dict[tuple[str, str], list[Group]]:
    """(run, run whose map ``name`` ranks the pixels) -> groups: every run on the first ranking and on its own.

    ``rankings``: of the runs that have the map, by label, the first run among them.
    """
    first = next(iter(methods))
    pairs = [(run, first) for run in methods] + [(run, run) for run in rankings if run != first]
    device = methods[first].device
    classes = data.info.num_classes
    edges = _edges(
        methods, {run: {name: about} for run, about in rankings.items()}, FOR_GROUPS, data, split, limit
    )
    counts = {pair: HardnessGroups(classes, edges[pair[1], name]).to(device) for pair in pairs}
    for batch in frames(data, split, limit, device):
        valid = labelled(batch["label"], data)
        found = {
            run: seen(method, batch, {name: rankings[run]} if run in rankings else {}, valid, run)
            for run, method in methods.items()
        }
        for (run, by), count in counts.items():
            count.update(found[by].maps[name], found[run].pred, batch["label"])
    return {pair: count.compute() for pair, count in counts.items()}


@torch.inference_mode()
def ranking(
    methods: Mapping[str, Method],
    maps: Mapping[str, Mapping[str, HardMap]],
    data: DataModule,
    split: str,
    limit: int | None,
) -> list[Ranked]:
    """For every run and each of its ``maps`` how well it ranks the run's errors, and how it goes with the truth."""
    device = next(iter(methods.values())).device
    edges = _edges(methods, maps, FOR_RANKING, data, split, limit)
    counts = {key: ErrorRanking(cuts).to(device) for key, cuts in edges.items()}
    for batch in frames(data, split, limit, device):
        valid = labelled(batch["label"], data)
        for run, method in methods.items():
            found = seen(method, batch, maps[run], valid, run)
            for name, values in found.maps.items():
                truth: Any = None if name == "true" else batch.get("hardness")
                counts[run, name].update(values, found.wrong, truth)
    return [
        Ranked(run, name, maps[run][name].title, bool(maps[run][name].needs), **count.compute())
        for (run, name), count in counts.items()
    ]


def _edges(
    methods: Mapping[str, Method],
    maps: Mapping[str, Mapping[str, HardMap]],
    count: int,
    data: DataModule,
    split: str,
    limit: int | None,
) -> dict[tuple[str, str], Tensor]:
    """Of (run, map) the edges that its values on a few frames of the split suggest."""
    device = next(iter(methods.values())).device
    values: dict[tuple[str, str], list[Tensor]] = {
        (run, name): [] for run, own in maps.items() for name in own
    }
    for batch in frames(data, split, min(SAMPLE, limit or SAMPLE), device):
        valid = labelled(batch["label"], data)
        for run, own in maps.items():
            for name, found in maps_of(methods[run], batch, own, valid, run).items():
                flat = found.flatten()
                values[run, name].append(flat[:: -(-len(flat) // PIXELS)])
    return {
        (run, name): rank_edges(torch.cat(parts), maps[run][name].bounded, count)
        for (run, name), parts in values.items()
    }


@torch.inference_mode()
def similarities(
    methods: Sequence[Method],
    maps: Sequence[HardMap],
    labels: Sequence[str],
    name: str,
    data: DataModule,
    split: str,
    limit: int | None,
    shown: Sequence[str],
) -> tuple[list[tuple[str, float]], list[Pair]]:
    """(frame, SSIM of the two methods' maps) of a split, NaN where no window has a label; and the ``shown`` frames.

    The frames are those of ``data``, the first method's; the second sees them as its own data set normalises.
    """
    values, pairs = [], []
    for batch in frames(data, split, limit, methods[0].device):
        valid = labelled(batch["label"], data)
        a, b = (
            maps_of(method, normalised(batch, data.info, method.info), {name: about}, valid, who)[name]
            for method, about, who in zip(methods, maps, labels, strict=True)
        )
        local = ssim_map(a, b)
        for i, (frame, value) in enumerate(zip(batch["name"], mean_ssim(local).tolist(), strict=True)):
            values.append((frame, value))
            if frame in shown:
                image = unnormalize(batch["image"][i], data.info)
                one, two, around = (x[i].cpu().numpy() for x in (a, b, local))
                pairs.append(Pair(frame, image, one, two, around, value))
    return values, pairs


def normalised(batch: Batch, of: DatasetInfo, wanted: DatasetInfo) -> Batch:
    """A batch as another data set's mean and deviation would have it."""
    if (of.mean, of.std) == (wanted.mean, wanted.std):
        return batch
    image = batch["image"]
    mean, std, mean_wanted, std_wanted = (
        image.new_tensor(x).view(3, 1, 1) for x in (of.mean, of.std, wanted.mean, wanted.std)
    )
    changed: Any = dict(batch) | {"image": (image * std + mean - mean_wanted) / std_wanted}
    return changed


@torch.inference_mode()
def evolution(
    run: FigureRun,
    method: Method,
    maps: Mapping[str, HardMap],
    data: DataModule,
    place: int,
    split: str,
    epochs: Sequence[int],
) -> tuple[Batch, list[Step]]:
    """The frame, and for each kept epoch the map (the first of ``maps``), the loss and the prediction on it."""
    (batch,) = batches(data, split, [place], method)
    valid = labelled(batch["label"], data)
    name, steps = next(iter(maps)), []
    for epoch in epochs:
        kept = load_file(method, rundir.snapshot(run.directory, epoch))
        found = seen(method, batch, maps, valid, f"{run.label}, epoch {epoch}")
        values, loss = found.maps[name][0], found.maps["loss"][0]
        both = torch.isfinite(values) & torch.isfinite(loss)
        rho = rank_correlation(values[both], loss[both]) if both.any() else math.nan
        share = float(found.wrong.sum() / valid.sum().clamp_min(1))
        shown, cost, pred = (x.cpu().numpy() for x in (values, loss, found.pred[0]))
        steps.append(Step(epoch, int(kept["global_step"]), shown, cost, pred, rho, share))
    return batch, steps
