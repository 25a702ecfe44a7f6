"""NYU Depth v2, labelled set: the official MATLAB files become the folder that ``hardpix.data.NYUv2`` reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hardpix.data.labels import LabelCode
from hardpix.data.nyuv2 import VOID_IS_0
from hardpix.data.nyuv2_mat import LABELED, MAPPING, SPLITS, MatFrames, raw_to_40, split_names
from hardpix.data.prepare.recipe import Part, Recipe, Work, write_once

READ = frozenset({"image", "label", "depth"})


@dataclass(frozen=True)
class NYUv2Recipe(Recipe):
    """Every frame is written as PNG, without loss but for the depth, which is rounded to millimetres.

    raw_depth: write the sensor's readings, before in-painting, to ``depth_raw`` too.
    """

    name: ClassVar[str] = "nyuv2"
    title: ClassVar[str] = "NYU Depth v2, labelled set"
    page: ClassVar[str] = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
    licence: ClassVar[str] = "No licence is stated; cite Silberman et al. 2012."
    parts: ClassVar[tuple[Part, ...]] = (
        Part(LABELED, "frames, labels and depth", 2972037809, "520609c519fba3ba5ac58c8fefcc3530"),
        Part(
            SPLITS,
            "which frames train and test: http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat",
            2626,
            "08e3c3aea27130ac7c01ffd739a4535f",
        ),
        Part(MAPPING, "the 40 classes, not from that page: https://github.com/ankurhanda/nyuv2-meta-data"),
    )

    raw_depth: bool = True

    def convert(self, work: Work) -> None:
        labeled, splits, classes = (work.find(part.name, part.name) for part in self.parts)
        code = LabelCode(raw_to_40(classes), ignore_index=0)
        # First of all: labels without it would be read as those of the release that merged void into 40.
        work.make(Path("train", "labels_40", VOID_IS_0), _explain)
        for split in ("train", "test"):
            names = split_names(splits, split)
            frames = MatFrames(labeled, names, READ, label_code=code)
            write = partial(_write, frames, work.out / split, self.raw_depth)
            work.each(write, range(len(names)), f"writing {split} frames")
            work.make(f"{split}.txt", partial(_write_list, names))


def _write(frames: MatFrames, folder: Path, raw_depth: bool, index: int) -> None:
    """The files of one frame; those that are all there are not read again."""
    name = f"{frames.name(index)}.png"
    kinds = ["rgb", "labels_40", "depth"] + ["depth_raw"] * raw_depth
    paths = {kind: folder / kind / name for kind in kinds}
    if all(path.exists() for path in paths.values()):
        return
    sample = frames.load(index)
    arrays = {
        "rgb": sample["image"].permute(1, 2, 0).numpy(),
        "labels_40": sample["label"].numpy(),
        "depth": to_millimetres(sample["depth"].numpy()),
    }
    if raw_depth:
        arrays["depth_raw"] = to_millimetres(frames.raw_depth(index))
    for kind, path in paths.items():
        write_once(path, Image.fromarray(arrays[kind]).save)


def to_millimetres(metres: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded; 0 where there is no reading, and what 16 bits cannot hold is none."""
    millimetres = np.rint(metres.astype(np.float64) * 1000)
    with np.errstate(invalid="ignore"):
        held = (millimetres > 0) & (millimetres < 65536)
    return np.where(held, millimetres, 0).astype(np.uint16)


def _explain(path: Path) -> None:
    path.write_text("In these labels void is 0 and 40 is otherprop alone. hardpix looks for this file.\n")


def _write_list(names: list[str], path: Path) -> None:
    path.write_text("\n".join(names) + "\n")
