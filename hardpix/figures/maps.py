"""Figures of depth errors, of LWM's maps over epochs, of the predictions of several runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from hardpix.draw.charts import DepthErrors
from hardpix.draw.pictures import ColumnGroup, Tile, colorize, error, heatmap
from hardpix.figures.runs import FigureRun
from hardpix.ops.depth_hardness import DEEPEST, curriculum, scaled_depth
from hardpix.ops.hardness import HardMap
from hardpix.train import rundir
from hardpix.train.checkpoint import load_file
from hardpix.train.results import batches, dense, known_maps, unnormalize
from hardpix.types import ConfigError, HardpixError

if TYPE_CHECKING:
    from torch import Tensor

    from hardpix.data import DataModule
    from hardpix.methods import Method
    from hardpix.types import Batch


# Titles of the maps that a run may have, in the order of drawing; M is the weight of the loss.
LEFT_OUT = (222, 222, 222)  # no colour of the map; dark void would look like low values
MAPS = {"dpe": "DPE", "dse": "DSE", "hardness": "M", "curriculum": "M"}


@torch.inference_mode()
def depth_errors(
    methods: Mapping[str, Method], data: DataModule, split: str, depth_of: Method | None
) -> dict[str, DepthErrors]:
    """For each method its wrong pixels by depth error: that of ``depth_of``, or without it the method's own.

    Counted are pixels with a label and a depth reading.
    """
    counts = {label: DepthErrors() for label in methods}
    device = next(iter(methods.values())).device
    for batch in data.evaluation_loader(split):
        batch = _moved(batch, device)
        shared = None if depth_of is None else _gap(depth_of, dense(depth_of, batch), batch)
        labelled = batch["label"] != data.info.ignore_index
        for label, method in methods.items():
            found = dense(method, batch)
            gap, valid = shared or _gap(method, found, batch)
            wrong = found[:, : data.info.num_classes].argmax(1) != batch["label"]
            if not torch.isfinite(gap[valid]).all():
                raise HardpixError(
                    f"{label} predicts a depth that is no number: its training diverged; leave it out"
                )
            counts[label].add(*(x.cpu().numpy() for x in (gap, valid & labelled, wrong)))
    return counts


def _moved(batch: Batch, device: torch.device) -> Batch:
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    return cast("Batch", moved)


def _gap(method: Any, found: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """``|log D - log D*|`` ``[B, H, W]``, log D clamped to [0, log 256], and where it means something."""
    depth = batch["depth"]
    valid = batch["depth_valid"] & torch.isfinite(depth) & (depth > 0)
    target = scaled_depth(depth, valid, method.depth_max)
    return (found[:, -1].float().clamp(0, math.log(DEEPEST)) - target.log()).abs(), valid


def lwm_maps(run: FigureRun, wanted: Sequence[str]) -> list[str]:
    """The maps to draw: those the run's loss is made of, or the wanted ones of them."""
    fusion = run.cfg.method.hardness
    known = ["dpe", "dse"] + ["hardness"] * (fusion in ("sum", "product", "max"))
    known += ["curriculum"] * (fusion != "none" and bool(run.cfg.method.curriculum))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError(
            f"--maps {unknown[0]}: {run.directory} (method.hardness={fusion}, "
            f"method.curriculum={str(run.cfg.method.curriculum).lower()}) has {', '.join(known)}"
        )
    return [name for name in known if name in (wanted or known)]


def fusion_title(run: FigureRun) -> str:
    """What the weight M of a run's loss is."""
    fusion = run.cfg.method.hardness
    return MAPS.get(fusion, f"{fusion} of DPE and DSE")


@torch.inference_mode()
def map_rows(
    run: FigureRun,
    data: DataModule,
    method: Method,
    places: Sequence[int],
    split: str,
    epochs: Sequence[int],
    names: Sequence[str],
) -> tuple[list[list[ColumnGroup]], list[tuple[Any, ...]]]:
    """A row per frame: image and truth, then a group of maps per epoch. Numbers: frame, epoch, map, mean, kept.

    A map is undefined where its pixel has no label (DPE: no depth reading), and the curriculum's where the pixel
    is left out in that epoch; ``kept`` is the share of labelled pixels on which a map is defined.
    """
    rows: list[list[ColumnGroup]] = [[] for _ in places]
    numbers = []
    for epoch in epochs:
        progress = epoch / load_file(method, rundir.snapshot(run.directory, epoch))["epochs"]
        for row, batch in zip(rows, batches(data, split, places, method), strict=True):
            if not row:
                row.append(_frame(batch, data))
            maps = _maps(run, method, batch, data.info.ignore_index, progress)
            labelled = (batch["label"][0] != data.info.ignore_index).cpu().numpy()
            tiles = []
            for name in names:
                values, top = maps[name]
                inside = np.isfinite(values) & labelled
                mean = float(values[inside].mean()) if inside.any() else math.nan
                kept = float(inside.sum() / max(1, labelled.sum()))
                numbers.append((batch["name"][0], epoch, name, mean, kept))
                summary = f"{MAPS[name]} 0 to {top:g}"
                summary += f", {100 * kept:.0f} % kept" if name == "curriculum" else ""
                shown = np.where(
                    np.isfinite(values)[..., None], heatmap(values, 0, top), np.array(LEFT_OUT, np.uint8)
                )
                tiles.append(Tile(shown, summary))
            row.append(ColumnGroup(f"epoch {epoch}", tiles))
    return rows, numbers


def _maps(
    run: FigureRun, method: Method, batch: Batch, ignore_index: int, progress: float
) -> dict[str, tuple[np.ndarray, float]]:
    """Every map ``[H, W]`` of a frame, NaN where undefined, with the top of its range."""
    fusion = run.cfg.method.hardness
    found = method.maps(batch)
    labelled = batch["label"] != ignore_index
    weight = found.get("hardness" if fusion in ("sum", "product", "max") else fusion)
    if weight is not None:
        found["curriculum"] = torch.where(curriculum(weight, labelled, progress), weight, torch.nan)
    top = 2.0 if fusion == "sum" else 1.0
    tops = {"dpe": 1.0, "dse": 1.0, "hardness": top, "curriculum": top}
    defined = {"dpe": batch["depth_valid"]}
    return {
        name: (
            torch.where(defined.get(name, labelled), found[name].float(), torch.nan)[0].cpu().numpy(),
            tops[name],
        )
        for name in tops
        if name in found
    }


def _frame(batch: Batch, data: DataModule) -> ColumnGroup:
    truth = colorize(batch["label"][0].cpu().numpy(), data.info.palette, data.info.ignore_index)
    image = unnormalize(batch["image"][0], data.info)
    return ColumnGroup("", [Tile(image, batch["name"][0], smooth=True), Tile(truth, "truth")])


@torch.inference_mode()
def panel_rows(
    methods: Mapping[str, Method], data: DataModule, places: Sequence[int], split: str
) -> tuple[list[list[ColumnGroup]], list[tuple[str, str, int, int, float]], set[int]]:
    """A row per frame: image and truth, then each run's prediction and error.

    Numbers: frame, run, labelled pixels, wrong ones, their share. The set holds the labels that occur.
    """
    info = data.info
    rows, numbers, present = [], [], set[int]()
    for batch in batches(data, split, places, next(iter(methods.values()))):
        truth, image = batch["label"][0].cpu().numpy(), unnormalize(batch["image"][0], info)
        labelled = truth != info.ignore_index
        row = [_frame(batch, data)]
        for label, method in methods.items():
            shown = dense(method, batch)[0, : info.num_classes].argmax(0).cpu().numpy()
            pixels, wrong = int(labelled.sum()), int((labelled & (shown != truth)).sum())
            rate = wrong / pixels if pixels else math.nan
            numbers.append((batch["name"][0], label, pixels, wrong, rate))
            tiles = [
                Tile(colorize(shown, info.palette, info.ignore_index), "prediction"),
                Tile(error(image, truth, shown, info.ignore_index), f"error {100 * rate:.1f} %"),
            ]
            row.append(ColumnGroup(label, tiles))
            present |= set(np.unique(shown).tolist())
        present |= set(np.unique(truth).tolist())
        rows.append(row)
    return rows, numbers, present


def chosen_map(run: FigureRun, known: Mapping[str, HardMap], name: str | None) -> str:
    """The wanted map, or the method's own one; raises with the names that there are."""
    name = name or next(own for own in OWN_FIRST if own in known)
    if name not in known:
        raise ConfigError(f"--map {name}: {run.directory} has no such hardness map, but {', '.join(known)}")
    return name


def remarks(runs: Sequence[FigureRun], methods: Mapping[str, Method], data: DataModule) -> list[str]:
    """Why a run has no DPE and DSE."""
    parts = []
    for run in runs:
        own = methods[run.label].hard_maps()
        if "dpe" not in own:
            parts.append(f"{run.label}: no DPE and DSE, its method predicts no depth")
        elif "dpe" not in known_maps(methods[run.label], data):
            parts.append(f"{run.label}: DPE and DSE left out, {data.info.name} has no depth")
    return parts


OWN_FIRST = ("hardness", "error_probability", "uncertainty")  # what a figure shows by default
