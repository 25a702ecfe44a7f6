"""The recipe of SUN RGB-D: pictures as published, labels of 37 classes out of one MATLAB file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hardpix.data.images import image_size
from hardpix.data.matlab import open_hdf5, read_variable
from hardpix.data.prepare.recipe import Part, Recipe, Work, write_once
from hardpix.data.sets.sunrgbd import CLASSES, LABELS, SPLIT_LIST, frame_path, split_frames, text
from hardpix.types import DataError

PICTURES, TOOLBOX = "SUNRGBD.zip", "SUNRGBDtoolbox.zip"
SEGMENTATION, META = "SUNRGBD2Dseg.mat", "SUNRGBDMeta.mat"
FILES = (SEGMENTATION, META, SPLIT_LIST.name, "intrinsics.txt")
FOLDERS = ("image", "depth", "depth_bfx")
SENSORS = ("kv1", "kv2", "realsense", "xtion")


class Entry(NamedTuple):
    """One frame of SUNRGBDMeta.mat, whose order is that of SUNRGBD2Dseg.mat."""

    number: int  # from 0
    frame: PurePosixPath
    image: str  # file names
    depth: str


@dataclass(frozen=True)
class SUNRGBDRecipe(Recipe):
    """Pictures, depth and cameras as they are; ``SUNRGBD2Dseg(i).seglabel`` as grey images below ``labels37``.

    partial: for a copy that lacks frames; without it the missing frames are a fault.
    """

    partial: bool = False

    name: ClassVar[str] = "sunrgbd"
    title: ClassVar[str] = "SUN RGB-D, 37 classes"
    page: ClassVar[str] = "http://rgbd.cs.princeton.edu"
    licence: ClassVar[str] = "No licence is stated; cite Song et al. (CVPR 2015) and the sets it is made of."
    parts: ClassVar[tuple[Part, ...]] = (
        Part(PICTURES, "images, depth, intrinsics of all frames"),
        Part(TOOLBOX, "the split, and the labels in one MATLAB file"),
    )

    def use(self, out: Path) -> dict[str, str]:
        return super().use(out) | ({"data.source.partial": "true"} if self.partial else {})

    def wanted(self, member: str) -> bool:
        path = PurePosixPath(member)
        folder = path.parent.name
        if "__MACOSX" in path.parts or folder == "fullres":
            return False
        return path.name in FILES or folder in FOLDERS

    def convert(self, work: Work) -> None:
        segmentation, meta = work.find(SEGMENTATION, TOOLBOX), work.find(META, TOOLBOX)
        split = work.find(SPLIT_LIST.name, TOOLBOX)
        tree = picture_tree(work)
        entries = read_meta(meta)
        _check_count(segmentation, len(entries), meta)
        here = [entry for entry in entries if (tree / entry.frame).is_dir()]
        work.faults += unknown_frames(split, entries)
        if not self.partial:
            work.faults += missing_frames(tree, entries, here)
        for entry in work.track(here, "pictures"):
            for relative in frame_files(entry):
                if (tree / relative).is_file():
                    work.place(tree / relative, relative)
                else:
                    work.faults.append(f"{tree / relative}: no such file; it comes from {PICTURES}")
        work.each(partial(write_label, segmentation, tree, work.out), here, "labels")
        work.place(split, SPLIT_LIST)


def picture_tree(work: Work) -> Path:
    """The folder that holds those of the sensors."""
    found = [path for path in map(work.search, SENSORS) if path]
    return (found[0] if found else work.find(SENSORS[0], PICTURES)).parent


def frame_files(entry: Entry) -> tuple[Path, ...]:
    """What is read of a frame, its image first, below the tree of pictures."""
    names = (f"image/{entry.image}", f"depth/{entry.depth}", f"depth_bfx/{entry.depth}", "intrinsics.txt")
    return tuple(Path(entry.frame, name) for name in names)


def read_meta(path: Path) -> list[Entry]:
    """The frames in the order of the annotations."""
    meta = read_variable(path, META.removesuffix(".mat"))
    needed = ("rgbpath", "rgbname", "depthname")
    lacking = set(needed) - set(meta.dtype.names or ())
    if lacking:
        raise DataError(f"{path}: no field {min(lacking)}; it must be the file of {TOOLBOX}")
    rows = zip(*(meta[key].flat for key in needed), strict=True)
    return [
        # The last two parts are image/NAME; the release doubles some slashes, which a path takes as one.
        Entry(i, frame_path(text(rgb), path).parent.parent, text(name), text(depth))
        for i, (rgb, name, depth) in enumerate(rows)
    ]


def write_label(segmentation: Path, tree: Path, out: Path, entry: Entry) -> None:
    """``labels37/FRAME.png`` unless it is there."""

    def write(path: Path) -> None:
        with open_hdf5(segmentation) as file:
            label = read_label(file, entry, segmentation)
        image = tree / frame_files(entry)[0]
        if label.shape != image_size(image):
            (h, w), (ih, iw) = label.shape, image_size(image)
            raise DataError(
                f"{segmentation}: label {entry.number + 1} measures {w}x{h} pixels but {image} {iw}x{ih}; "
                f"{SEGMENTATION}, {META} and the pictures must be of one release"
            )
        Image.fromarray(label).save(path)

    write_once(out / LABELS / f"{entry.frame}.png", write)


def read_label(file: Any, entry: Entry, path: Path) -> NDArray[np.uint8]:
    """The label ``[H, W]`` of a frame: 0 void, 1..37 the classes of ``seg37list``.

    ``SUNRGBD2Dseg`` is a struct array: its field is a column of references to one array for each frame, stored
    as MATLAB stores it, columns first.
    """
    where = f"{path}, seglabel of {entry.frame}"
    try:
        references = file["SUNRGBD2Dseg"]["seglabel"]
        stored = file[references[np.unravel_index(entry.number, references.shape)]][()]
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise DataError(
            f"{where}: cannot be read ({error}); the file is damaged, download it again"
        ) from None
    if stored.ndim != 2:
        raise DataError(f"{where}: has shape {stored.shape}; it must be an array (width, height)")
    label = stored.T.astype(np.uint8)
    wrong = (label != stored.T) | (label > len(CLASSES))
    if wrong.any():
        raise DataError(f"{where}: value {stored.T[wrong][0]} is no class; allowed are 0..{len(CLASSES)}")
    return np.ascontiguousarray(label)


def _check_count(segmentation: Path, count: int, meta: Path) -> None:
    with open_hdf5(segmentation) as file:
        group = file.get("SUNRGBD2Dseg")
        if group is None or "seglabel" not in group:
            raise DataError(
                f"{segmentation}: no SUNRGBD2Dseg/seglabel in it; it must be the file of {TOOLBOX}"
            )
        labels = group["seglabel"].size
    if labels != count:
        raise DataError(
            f"{segmentation} holds {labels} labels but {meta} {count} frames; both must be of one {TOOLBOX}"
        )


def missing_frames(tree: Path, entries: list[Entry], here: list[Entry]) -> list[str]:
    """A sentence where frames of the annotations are not on disk."""
    if len(here) == len(entries):
        return []
    return [
        f"{tree}: {len(entries) - len(here)} of {len(entries)} frames have no folder there; unpack the whole of "
        f"{PICTURES}, or give partial=true to go on without"
    ]


def unknown_frames(split: Path, entries: list[Entry]) -> list[str]:
    """A sentence where the split names frames that have no annotation."""
    known = {entry.frame for entry in entries}
    unknown = [f for part in ("train", "test") for f in split_frames(split, part) if f not in known]
    if not unknown:
        return []
    return [
        f"{split}: {len(unknown)} frames have no entry in {META}, {unknown[0]} the first; take both of {TOOLBOX}"
    ]
