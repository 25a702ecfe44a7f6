"""Frames for the figures of height and normal labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hardpix.data import HN, Frames, Source
from hardpix.data.hn_labels import KEYS, HNSettings, Picture, label_of, read_picture
from hardpix.data.sets.hn import hn_class_names, hn_palette
from hardpix.data.sets.rgbd import camera_matrix
from hardpix.data.source import CameraFrames
from hardpix.draw.pictures import PAPER, ColumnGroup, Entry, Tile, colorize
from hardpix.draw.pictures import VOID as NO_LABEL
from hardpix.ops.quantize import VOID
from hardpix.types import ConfigError, DatasetInfo

VIEWS = 3  # in a row of the figure
HEADER = ("frame", "rejected", "camera_height", "up_x", "up_y", "up_z", "labelled_share")


def class_heights(
    source: Source, frames: Frames, places: Sequence[int], settings: HNSettings, seen: Callable[[int], None]
) -> tuple[NDArray[np.int64], int]:
    """Pixels ``[C, bins]`` of each class in each height bin, and how many frames were rejected.

    Counted are pixels with a label, a depth and a normal. ``seen`` is called with the number of frames done.
    """
    bins, classes = len(settings.height_edges), source.info.num_classes
    counts, rejected = np.zeros((classes, bins), np.int64), 0
    for done, place in enumerate(places, 1):
        sample = frames.load(place)
        picture = Picture(sample["image"], sample["depth"].numpy(), sample["depth_valid"].numpy(), None)
        made = label_of(picture, camera_of(source, frames, place, settings), settings)
        rejected += made.rejected is not None
        label = sample["label"].numpy().astype(np.int64)
        counted = (label != source.info.ignore_index) & (label < classes) & (made.label != VOID)
        code = label[counted] * bins + made.label[counted]
        counts += np.bincount(code, minlength=counts.size).reshape(counts.shape)
        seen(done)
    return counts, rejected


def camera_of(source: Source, frames: Frames, place: int, settings: HNSettings) -> NDArray[np.float64]:
    """The camera matrix of a frame; raises with the option that gives it."""
    if settings.camera:
        return camera_matrix(*settings.camera)
    matrix = frames.intrinsics(place) if isinstance(frames, CameraFrames) else None
    if matrix is None:
        raise ConfigError(
            f"data set {source.info.name} does not tell the camera of {frames.name(place)}; give it as "
            "--camera FX FY CX CY, in pixels of the depth (the centre of the first one is 0 0)"
        )
    return matrix


def view_rows(
    source: Source, frames: Frames, places: Sequence[int], settings: HNSettings
) -> tuple[list[list[ColumnGroup]], list[tuple[Any, ...]], list[Entry]]:
    """Three views in a row, each with its label; the numbers, and the legend.

    Numbers: HEADER, then the pixels of each class. The labels are made of depth, or read where the source holds them.
    """
    info = label_info(source, settings)
    views, numbers = [], []
    for place in places:
        if isinstance(source, HN):
            sample = frames.load(place)
            image, label, told, facts = sample["image"], sample["label"].numpy(), "label", (None,) * 5
        else:
            picture = read_picture(frames, place)
            made = label_of(picture, camera_of(source, frames, place, settings), settings)
            image, label, height = picture.image, made.label, -made.floor
            told = f"camera {height:.2f} m above the floor"
            if made.rejected is not None:
                told = f"rejected: {made.rejected.partition(':')[0]}"
            facts = (made.rejected, height, *made.up)
        counts = np.bincount(label[label != VOID].astype(np.int64), minlength=info.num_classes)
        shown = colorize(label, info.palette, VOID)
        views.append(
            ColumnGroup("", [Tile(_pixels(image), frames.name(place), smooth=True), Tile(shown, told)])
        )
        numbers.append((frames.name(place), *facts, float((label != VOID).mean()), *counts.tolist()))
    blank = Tile(np.full((1, 1, 3), PAPER, np.uint8))
    if len(views) > VIEWS:
        views += [ColumnGroup("", [blank, blank])] * (-len(views) % VIEWS)
    rows = [views[start : start + VIEWS] for start in range(0, len(views), VIEWS)]
    entries = list(zip(info.classes, info.palette, strict=True))
    return rows, numbers, [*entries, ("no label", NO_LABEL)]


def label_info(source: Source, settings: HNSettings) -> DatasetInfo:
    """Names and colours of the labels."""
    if isinstance(source, HN):
        return source.info
    bins = len(settings.height_edges)
    names = hn_class_names(settings.height_edges, settings.normals)
    return DatasetInfo("hn", names, hn_palette(bins, settings.normals), VOID)


def wanted_keys(source: Source, *, labels: bool) -> frozenset[str]:
    """What to load of the frames; raises where the data set does not have it."""
    if isinstance(source, HN) and not labels:
        return frozenset({"image", "label"})
    needed = {"depth", *({"label"} if labels else ())}
    lacking = sorted(needed - source.info.provides)
    if lacking:
        what = "heights of classes need both" if labels else "labels of height and normal are made of it"
        raise ConfigError(f"data set {source.info.name} has no {' and no '.join(lacking)}; {what}")
    return KEYS | ({"label"} if labels else set())


def _pixels(image: torch.Tensor) -> NDArray[np.uint8]:
    """``[3, H, W]`` -> ``[H, W, 3]``."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())
