"""Frames for the figures of height and normal labels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hardpix.data import HN, Frames, Source
from hardpix.data.hn_labels import KEYS, HNSettings, Picture, label_of, read_picture
from hardpix.data.sets.hn import hn_class_names, hn_palette
from hardpix.data.sets.rgbd import camera_matrix
from hardpix.data.source import CameraFrames
from hardpix.draw.pictures import PAPER, ColumnGroup, Entry, Tile, class_entries, colorize
from hardpix.draw.pictures import VOID as NO_LABEL
from hardpix.ops import geometry
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
    source: Source, frames: Frames, places: Sequence[int], settings: HNSettings, *, semantics: bool = False
) -> tuple[list[list[ColumnGroup]], list[tuple[Any, ...]], list[Entry]]:
    """Three views in a row, each with its label; the numbers, and the legend.

    Numbers: HEADER, then the pixels of each class. The labels are made of depth, or read where the source holds them.
    ``semantics``: the labels of the data set's own classes next to them, two views in a row.
    """
    info = label_info(source, settings)
    views, numbers, present, across = [], [], set[int](), VIEWS - semantics
    for place in places:
        if isinstance(source, HN):
            sample = frames.load(place)
            image, label, summary, facts = sample["image"], sample["label"].numpy(), "label", (None,) * 5
        else:
            picture = read_picture(frames, place)
            made = label_of(picture, camera_of(source, frames, place, settings), settings)
            image, label, height = picture.image, made.label, -made.floor
            summary = f"camera {height:.2f} m above the floor"
            if made.rejected is not None:
                summary = f"rejected: {made.rejected.partition(':')[0]}"
            facts = (made.rejected, height, *made.up)
        tiles = [
            Tile(_pixels(image), frames.name(place), smooth=True),
            Tile(colorize(label, info.palette, VOID), summary),
        ]
        if semantics:
            truth = frames.load(place)["label"].numpy()
            tiles.append(Tile(colorize(truth, source.info.palette, source.info.ignore_index), "classes"))
            present |= {int(value) for value in np.unique(truth)} - {source.info.ignore_index}
        views.append(ColumnGroup("", tiles))
        numbers.append(_numbers(frames.name(place), facts, label, info))
    blank = Tile(np.full((1, 1, 3), PAPER, np.uint8))
    if len(views) > across:
        views += [ColumnGroup("", [blank] * len(views[0].tiles))] * (-len(views) % across)
    rows = [views[start : start + across] for start in range(0, len(views), across)]
    return rows, numbers, [*label_entries(info), *class_entries(present, source.info)]


class LabelledCloud(NamedTuple):
    """The pixels of a frame that have depth, as points ``[N, 3]`` in metres, and the colours ``[N, 3]`` of each.

    x: to the right, and y: forward of the camera; z: above the floor.
    """

    points: NDArray[np.float32]
    colors: dict[str, NDArray[np.uint8]]  # "image" and "labels"
    tile: Tile  # the frame
    numbers: tuple[Any, ...]  # HEADER, then the pixels of each class


def first_cloud(source: Source, frames: Frames, places: Sequence[int], settings: HNSettings) -> LabelledCloud:
    """The first of ``places`` that is not rejected, in space; raises where all of them are."""
    for place in places[:-1]:
        with contextlib.suppress(ConfigError):
            return labelled_cloud(source, frames, place, settings)
    return labelled_cloud(source, frames, places[-1], settings)


def labelled_cloud(source: Source, frames: Frames, place: int, settings: HNSettings) -> LabelledCloud:
    """A frame in space, with its labels of height and normal; raises where the frame is rejected."""
    picture, camera = read_picture(frames, place), camera_of(source, frames, place, settings)
    made, name = label_of(picture, camera, settings), frames.name(place)
    if made.rejected is not None:
        raise ConfigError(f"--image {name}: {made.rejected}; choose another frame")
    seen = geometry.inverse_depth(picture.depth, picture.valid) > 0
    points = geometry.upright(geometry.points(picture.depth, camera)[seen], made.up)
    points[:, 2] -= np.float32(made.floor)
    info, image = label_info(source, settings), _pixels(picture.image)
    colors = {"image": image[seen], "labels": colorize(made.label, info.palette, VOID)[seen]}
    facts = (made.rejected, -made.floor, *made.up)
    return LabelledCloud(
        points, colors, Tile(image, name, smooth=True), _numbers(name, facts, made.label, info)
    )


def _numbers(
    name: str, facts: tuple[Any, ...], label: NDArray[np.uint8], info: DatasetInfo
) -> tuple[Any, ...]:
    """HEADER, then the pixels of each class."""
    counts = np.bincount(label[label != VOID].astype(np.int64), minlength=info.num_classes)
    return (name, *facts, float((label != VOID).mean()), *counts.tolist())


def label_info(source: Source, settings: HNSettings) -> DatasetInfo:
    """Names and colours of the labels."""
    if isinstance(source, HN):
        return source.info
    bins = len(settings.height_edges)
    names = hn_class_names(settings.height_edges, settings.normals)
    return DatasetInfo("hn", names, hn_palette(bins, settings.normals), VOID)


def label_entries(info: DatasetInfo) -> list[Entry]:
    """The legend of labels of height and normal."""
    return [*zip(info.classes, info.palette, strict=True), ("no label", NO_LABEL)]


def wanted_keys(source: Source, *, labels: bool, depth: bool = False) -> frozenset[str]:
    """What to load of the frames; raises where the data set does not have it."""
    if isinstance(source, HN) and not (labels or depth):
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
