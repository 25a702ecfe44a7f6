"""NYU Depth v2, labelled set, 40 classes (Silberman et al. 2012; Gupta et al. 2013)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardpix.data.base import Frames
from hardpix.data.files import Border, FileSource, FrameFiles, existing_root, millimetres, read_list
from hardpix.data.labels import LabelCode
from hardpix.data.nyuv2_mat import LABELED, MatFrames, raw_label_code, split_names
from hardpix.data.palette import voc_palette
from hardpix.types import ConfigError, DataError, DatasetInfo

CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture",
    "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes",
    "ceiling", "books", "refridgerator", "television", "paper", "towel", "shower curtain", "box",
    "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure",
    "otherfurniture", "otherprop",
)  # fmt: skip
OTHERPROP = 40

# 8-bit depth: 10 m = 255, values truncated, so half a step is added back. 0 would be
# nearer than 4 cm: no reading.
_METRES_8BIT = ((np.arange(256, dtype=np.float32) + np.float32(0.5)) / np.float32(25.5)).astype(np.float32)


class NYUv2(FileSource):
    """Indoor RGB-D scenes, 640x480 pixels, 795 training and 654 test frames, 40 classes.

    Two layouts below ``root`` are read. The official files, where the first of them lies there (needs
    ``pip install 'hardpix[mat]'``)::

        nyu_depth_v2_labeled.mat             images, labels (894 raw classes, 0 void), depths (metres, in-painted)
        splits.mat                           trainNdxs, testNdxs
        classMapping40.mat                   mapClass: raw class -> 1..40

    Otherwise a folder of images; NNNN is the official index from 1 into the 1449 frames::

        {train,test}.txt                     the indices of the split, one a line (all of rgb/ without it)
        {train,test}/rgb/NNNN.{jpg,png}
        {train,test}/labels_40/NNNN.png      grey: 0 void, 1..40 a class
        {train,test}/depth/NNNN.png          8 bits: metres = (value + 0.5) / 25.5; 16 bits: millimetres
        {train,test}/depth_16bit/NNNN.png    16 bits, millimetres, 0 no reading; used where it exists

    The data set has no validation split: ``val`` is the test split, as in the papers that report on it,
    unless ``val_fraction`` holds out training frames (neighbouring frames show one room, so the held-out
    score is optimistic; it serves to choose hyper-parameters without looking at the test frames).

    void_40_in_train: one common release merged void into class 40 (otherprop) in its training labels: there
        ``ignore`` treats 40 as void in ``train`` and ``class`` keeps it. Test labels are never changed, nor is
        anything in the official files: there void is 0 in both splits.
    border_crop: ``[top, bottom, left, right]`` of the window that is kept of every frame of every split,
        which takes the frames' white border off; null keeps whole frames.
    val_fraction: share of the training frames held out as ``val``, drawn with ``val_seed``; null for none.
    """

    info = DatasetInfo(
        name="nyuv2",
        classes=CLASSES,
        palette=voc_palette(len(CLASSES)),
        depth_max=10.0,
        provides=frozenset({"image", "label", "depth", "depth_valid"}),
    )

    def __init__(
        self,
        root: str,
        *,
        void_40_in_train: Literal["ignore", "class"],
        border_crop: Sequence[int] | None = None,
        val_fraction: float | None = None,
        val_seed: int = 0,
    ) -> None:
        if void_40_in_train not in ("ignore", "class"):
            raise ConfigError(f"void_40_in_train is '{void_40_in_train}'; it must be 'ignore' or 'class'")
        if border_crop is not None and len(border_crop) != 4:
            raise ConfigError(f"border_crop is {list(border_crop)}; it must be [top, bottom, left, right]")
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise ConfigError(f"val_fraction is {val_fraction}; it must lie between 0 and 1, or be null")
        self.root = Path(root)
        self._ignore_40 = void_40_in_train == "ignore"
        self.crop = None if border_crop is None else Border(*border_crop)
        self._val_fraction, self._val_seed = val_fraction, val_seed

    def frames(self, split: str, keys: frozenset[str]) -> Frames:
        existing_root(self.root, "NYUv2")
        if (self.root / LABELED).is_file():
            names = self._hold_out(split, split_names(self.root, self._folder(split)))
            code = raw_label_code(self.root, self.info.ignore_index)
            return MatFrames(self.root, names, keys, label_code=code, crop=self.crop)
        return super().frames(split, keys)

    def files(self, split: str) -> list[FrameFiles]:
        existing_root(self.root, "NYUv2")
        folder = self._folder(split)
        return [self._frame(folder, name) for name in self._hold_out(split, self._names(folder))]

    def strays(self, split: str) -> list[Path]:
        """The 8-bit depth of a frame whose 16-bit depth is used is none."""
        used = {f.name for f in self.files(split)}
        return [path for path in super().strays(split) if path.stem not in used]

    def remarks(self) -> tuple[str, ...]:
        if not self._ignore_40 or (self.root / LABELED).is_file():
            return ()
        return (
            "training labels: value 40 (otherprop) is read as void, with which one release merged it "
            "(void_40_in_train=ignore)",
        )

    def label_reader(self, split: str) -> LabelCode:
        ignore = self.info.ignore_index
        mapping = {0: ignore, **{value: value - 1 for value in range(1, len(CLASSES) + 1)}}
        if self._folder(split) == "train" and self._ignore_40:
            mapping[OTHERPROP] = ignore
        return LabelCode(mapping, ignore)

    def depth_code(self, raw: NDArray, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        if raw.dtype == np.uint16:
            return millimetres(raw, path)
        return _METRES_8BIT.take(raw), raw > 0

    def _folder(self, split: str) -> str:
        return "train" if split == "train" or (split == "val" and self._val_fraction) else "test"

    def _names(self, folder: str) -> list[str]:
        listing = self.root / f"{folder}.txt"
        if listing.is_file():
            return read_list(listing)
        images = self.root / folder / "rgb"
        if not images.is_dir():
            raise DataError(
                f"{images}: no such folder; it must hold the images NNNN.jpg or .png, "
                f"or {self.root} the official {LABELED}"
            )
        return sorted(path.stem for path in images.iterdir())

    def _hold_out(self, split: str, names: list[str]) -> list[str]:
        if self._val_fraction is None or split == "test":
            return names
        order = np.random.RandomState(self._val_seed).permutation(len(names))
        held_out = set(order[: max(1, round(self._val_fraction * len(names)))].tolist())
        return [name for i, name in enumerate(names) if (i in held_out) == (split == "val")]

    def _frame(self, folder: str, name: str) -> FrameFiles:
        base = self.root / folder
        jpeg, deep = base / "rgb" / f"{name}.jpg", base / "depth_16bit" / f"{name}.png"
        image = jpeg if jpeg.is_file() else base / "rgb" / f"{name}.png"
        depth = deep if deep.is_file() else base / "depth" / f"{name}.png"
        return FrameFiles(name, image, base / "labels_40" / f"{name}.png", depth)
