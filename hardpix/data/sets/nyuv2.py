"""NYU Depth v2, labelled set, 40 or 13 classes (Silberman et al. 2012; Gupta et al. 2013; Couprie et al. 2013)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardpix.data import kinect
from hardpix.data.base import Frames
from hardpix.data.border import to_border
from hardpix.data.files import FileSource, FrameFiles, existing_root, millimetres, read_list
from hardpix.data.images import SUFFIXES
from hardpix.data.labels import LabelCode
from hardpix.data.listing import files_below, one_each
from hardpix.data.missing_depth import depth_policy
from hardpix.data.nyuv2_classes import CLASSES, CLASSES_13, PALETTE_13, TO_13
from hardpix.data.nyuv2_mat import LABELED, MAPPING, SPLITS, MatFrames, raw_to_40, split_names
from hardpix.data.palette import voc_palette
from hardpix.ranges import InnerShare, Seed, Whole, checked
from hardpix.types import ConfigError, DataError, DatasetInfo

OTHERPROP = 40
VOID_IS_0 = "void_is_0.txt"  # lies in train/labels_40 where void was not merged into 40

# 8-bit depth: 10 m = 255, values truncated, so half a step is added back. 0 would be
# nearer than 4 cm: no reading.
_METRES_8BIT = ((np.arange(256, dtype=np.float32) + np.float32(0.5)) / np.float32(25.5)).astype(np.float32)


class NYUv2(FileSource):
    """Indoor RGB-D scenes, 640x480 pixels, 795 training and 654 test frames, 40 or 13 classes.

    Two layouts below ``root`` are read. The official files, where the first of them lies there (needs
    ``pip install 'hardpix[mat]'``)::

        nyu_depth_v2_labeled.mat             images, labels (894 raw classes, 0 void), depths (metres, in-painted)
        splits.mat                           trainNdxs, testNdxs
        classMapping40.mat                   mapClass: raw class -> 1..40

    Otherwise a folder of images; NNNN is the official index from 1 into the 1449 frames::

        {train,test}.txt                     the indices of the split, one a line (all of rgb/ without it)
        {train,test}/rgb/NNNN.{jpg,png}
        {train,test}/labels_40/NNNN.png      grey: 0 void, 1..40 a class (also for 13 classes)
        train/labels_40/void_is_0.txt        says that these labels do not merge void into 40; see below
        {train,test}/depth/NNNN.png          8 bits: metres = (value + 0.5) / 25.5; 16 bits: millimetres
        {train,test}/depth_16bit/NNNN.png    16 bits, millimetres, 0 no reading; used where it exists

    The data set has no validation split: ``val`` is the test split, as in the papers that report on it,
    unless ``val_fraction`` holds out training frames (neighbouring frames show one room, so the held-out
    score is optimistic; it serves to choose hyper-parameters without looking at the test frames).

    classes: 40, or 13: the groups of class13Mapping.mat.
    void_40_in_train: one common release merged void into class 40 (otherprop) in its training labels: there
        ``ignore`` treats 40 as void in ``train`` and ``class`` keeps it. Test labels are never changed, nor is
        anything where void is 0 in both splits: in the official files, and in a folder with void_is_0.txt, which
        ``hardpix data prepare nyuv2`` writes.
    border_crop: ``[top, bottom, left, right]`` of the window that is kept of every frame of every split,
        which takes the frames' white border off; null keeps whole frames.
    val_fraction: share of the training frames held out as ``val``, drawn with ``val_seed``; null for none.
    depth_missing: of a folder, see :func:`hardpix.data.missing_depth.depth_policy`.
    """

    camera = kinect.COLOUR.matrix()  # the depth is that of the colour image's pixels

    @checked
    def __init__(
        self,
        root: str,
        *,
        classes: int = 40,
        void_40_in_train: Literal["ignore", "class"],
        border_crop: Sequence[Whole] | None = None,
        val_fraction: InnerShare | None = None,
        val_seed: Seed = 0,
        depth_missing: str = "error",
    ) -> None:
        if classes not in (40, 13):
            raise ConfigError(f"classes is {classes}; it must be 40 or 13")
        if void_40_in_train not in ("ignore", "class"):
            raise ConfigError(f"void_40_in_train is '{void_40_in_train}'; it must be 'ignore' or 'class'")
        self.root, self.depth_missing = Path(root), depth_policy(depth_missing)
        self._ignore_40 = void_40_in_train == "ignore"
        self.crop = to_border(border_crop)
        self._val_fraction, self._val_seed = val_fraction, val_seed
        self.own_val = val_fraction is not None  # it is train that is divided then
        self._index = tuple(range(40)) if classes == 40 else TO_13  # label value - 1 -> class index
        self.info = DatasetInfo(
            name="nyuv2" if classes == 40 else "nyuv2_13",
            classes=CLASSES if classes == 40 else CLASSES_13,
            palette=voc_palette(len(CLASSES)) if classes == 40 else PALETTE_13,
            depth_max=10.0,
            provides=frozenset({"image", "label", "depth", "depth_valid"}),
        )

    def frames(self, split: str, keys: frozenset[str]) -> Frames:
        existing_root(self.root, "NYUv2")
        if self._official:
            names = self._hold_out(split, split_names(self.root / SPLITS, self._folder(split)))
            mapping = {raw: self._class(value) for raw, value in raw_to_40(self.root / MAPPING).items()}
            code = LabelCode(mapping, self.info.ignore_index)
            path = self.root / LABELED
            return MatFrames(path, names, keys, label_code=code, crop=self.crop, camera=self.camera)
        return super().frames(split, keys)

    def files(self, split: str) -> list[FrameFiles]:
        existing_root(self.root, "NYUv2")
        folder = self._folder(split)
        return [self._frame(folder, name) for name in self._hold_out(split, self._names(folder))]

    def image_files(self, split: str) -> list[Path]:
        folder = self._folder(split)
        chosen = self._official or (self.root / f"{folder}.txt").is_file()
        return [] if chosen else files_below(self.root / folder / "rgb")

    def strays(self, split: str) -> list[Path]:
        """The 8-bit depth of a frame whose 16-bit depth is used is none."""
        used = {f.name for f in self.files(split)}
        return [path for path in super().strays(split) if path.stem not in used]

    def label_reader(self, split: str) -> LabelCode:
        mapping = {value: self._class(value) for value in range(len(CLASSES) + 1)}
        if self._folder(split) == "train" and self._merged:
            mapping[OTHERPROP] = self.info.ignore_index
        return LabelCode(mapping, self.info.ignore_index)

    def remarks(self) -> tuple[str, ...]:
        merged = (
            "training labels: value 40 (otherprop) is read as void, with which one release merged it "
            "(void_40_in_train=ignore)"
        )
        same = "val is the test split, the data set has no other (val_fraction=null)"
        return (merged,) * self._merged + (same,) * (self._val_fraction is None)

    def submission_values(self) -> Mapping[int, int]:
        """The numbers of the label files, which count from 1."""
        return {index: index + 1 for index in range(self.info.num_classes)}

    def depth_code(self, raw: NDArray, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        if raw.dtype == np.uint16:
            return millimetres(raw, path)
        return _METRES_8BIT.take(raw), raw > 0

    @property
    def _official(self) -> bool:
        return (self.root / LABELED).is_file()

    @property
    def _merged(self) -> bool:
        """Whether 40 is taken for void in the training labels."""
        marked = (self.root / "train" / "labels_40" / VOID_IS_0).is_file()
        return self._ignore_40 and not self._official and not marked

    def _class(self, value: int) -> int:
        """0..40 of a label file -> class index."""
        return self.info.ignore_index if value == 0 else self._index[value - 1]

    def _folder(self, split: str) -> str:
        self.check_split(split)
        return "train" if split == "train" or (split == "val" and self._val_fraction) else "test"

    def _names(self, folder: str) -> list[str]:
        listing = self.root / f"{folder}.txt"
        if listing.is_file():
            names = read_list(listing)
            wrong = [name for name in names if not name.isdecimal()]
            if wrong:
                raise DataError(
                    f"{listing}: '{wrong[0]}' is no frame number of NYUv2; it must hold 0001, 0002, ..."
                )
            return names
        images = self.root / folder / "rgb"
        if not images.is_dir():
            raise DataError(
                f"{images}: no such folder; it must hold the images NNNN.jpg or .png, "
                f"or {self.root} the official {LABELED}"
            )
        found = (path for path in images.glob("[!.]*") if path.suffix.lower() in SUFFIXES)
        return sorted(one_each((path.stem, path) for path in found))

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
