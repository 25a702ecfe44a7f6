"""Frames of NYU Depth v2's raw recordings: colour and depth without labels (Silberman et al. 2012)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from hardpix.data.border import to_border
from hardpix.data.files import FileSource, FrameFiles, existing_root, read_list
from hardpix.data.labels import LabelCode
from hardpix.data.missing_depth import depth_policy
from hardpix.ranges import Whole, checked
from hardpix.types import DataError, DatasetInfo

IMAGES, DEPTHS, INTRINSICS, LISTING = "images", "depths", "intrinsics.txt", "frames.jsonl"


class NYUv2Raw(FileSource):
    """Indoor RGB-D video, 640x480 pixels, without labels: to pre-train on depth. One split, ``train``.

    Layout below ``root``, as ``hardpix data prepare nyuv2_raw`` writes it::

        frames.jsonl                one frame a line: name, scene, depth_time, colour_time (seconds), gap_ms
        images/NAME.jpg             undistorted colour, white where the camera saw nothing
        depths/NAME.png             16 bits, millimetres in the image's pixels, 0 no reading (not in-painted)
        intrinsics.txt              the camera's 3x3 matrix, for pixels counted from 0

    border_crop: ``[top, bottom, left, right]`` of the window that is kept of every frame; null keeps whole frames.
    depth_missing: see :func:`hardpix.data.missing_depth.depth_policy`.
    """

    splits: ClassVar[tuple[str, ...]] = ("train",)
    info = DatasetInfo(
        name="nyuv2_raw",
        classes=(),
        palette=(),
        depth_max=10.0,
        provides=frozenset({"image", "depth", "depth_valid"}),
    )

    @checked
    def __init__(
        self, root: str, *, border_crop: Sequence[Whole] | None = None, depth_missing: str = "error"
    ) -> None:
        self.root, self.depth_missing = Path(root), depth_policy(depth_missing)
        self.crop = to_border(border_crop)

    def files(self, split: str) -> list[FrameFiles]:
        existing_root(self.root, "NYUv2's raw frames")
        if split != "train":
            raise DataError(f"nyuv2_raw has no split {split!r}; its frames are all train")
        listing = self.root / LISTING
        return [self._frame(_name(line, listing)) for line in read_list(listing)]

    def label_reader(self, split: str) -> LabelCode:
        """There are no label files."""
        return LabelCode({self.info.ignore_index: self.info.ignore_index}, self.info.ignore_index)

    def remarks(self) -> tuple[str, ...]:
        return ("the recordings show rooms of nyuv2's test split too",)

    def _frame(self, name: str) -> FrameFiles:
        return FrameFiles(
            name,
            self.root / IMAGES / f"{name}.jpg",
            depth=self.root / DEPTHS / f"{name}.png",
            camera=self.root / INTRINSICS,
        )


def _name(line: str, listing: Path) -> str:
    try:
        return str(json.loads(line)["name"])
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{listing}: the line '{line}' must be a JSON object with a name") from None
