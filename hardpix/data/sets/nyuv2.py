"""NYU Depth v2: the labelled set as images or MATLAB files, and frames of the raw recordings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardpix.config.schema import InnerShare, Seed, Whole, checked
from hardpix.data.camera import COLOUR
from hardpix.data.files import (
    Border,
    FileSource,
    FrameFiles,
    crop_border,
    existing_root,
    millimetres,
    read_list,
    shifted_camera,
    to_border,
)
from hardpix.data.images import SUFFIXES
from hardpix.data.labels import LabelCode, voc_palette
from hardpix.data.listing import files_below, one_each
from hardpix.data.matlab import open_hdf5, read_variable
from hardpix.data.source import Frames, Sample, depth_policy
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
    depth_missing: of a folder, see :func:`hardpix.data.source.depth_policy`.
    """

    camera = COLOUR.matrix()  # the depth is that of the colour image's pixels

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


# The classes of NYU Depth v2: 40 (Gupta et al. 2013) and the 13 that group them (Couprie et al. 2013).


CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture",
    "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes",
    "ceiling", "books", "refridgerator", "television", "paper", "towel", "shower curtain", "box",
    "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure",
    "otherfurniture", "otherprop",
)  # fmt: skip

# class13Mapping.mat; a test compares every entry.
GROUPS = {
    "bed": ("bed",),
    "books": ("books",),
    "ceiling": ("ceiling",),
    "chair": ("chair",),
    "floor": ("floor", "floor mat"),
    "furniture": (
        "cabinet", "bookshelf", "counter", "shelves", "dresser", "refridgerator", "night stand", "otherfurniture",
    ),
    "objects": (
        "pillow", "mirror", "clothes", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "toilet",
        "sink", "lamp", "bathtub", "bag", "otherstructure", "otherprop",
    ),
    "picture": ("picture",),
    "sofa": ("sofa",),
    "table": ("table", "desk"),
    "tv": ("television",),
    "wall": ("wall", "door"),
    "window": ("window", "blinds", "curtain"),
}  # fmt: skip
CLASSES_13 = tuple(GROUPS)

# The colours that SceneNet RGB-D draws the 13 classes in (McCormac et al. 2017).
PALETTE_13 = (
    (0, 0, 255), (233, 89, 48), (0, 218, 0), (149, 0, 240), (222, 241, 24), (255, 206, 206), (0, 224, 229),
    (106, 136, 204), (117, 29, 41), (240, 35, 235), (0, 167, 156), (249, 139, 0), (225, 229, 194),
)  # fmt: skip

# Index into CLASSES -> index into CLASSES_13.
TO_13 = tuple(
    next(index for index, members in enumerate(GROUPS.values()) if name in members) for name in CLASSES
)


# NYU Depth v2 as it is published: all frames in one MATLAB v7.3 file (HDF5), split and classes in two v5
# files.


LABELED, SPLITS, MAPPING = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
RAW_CLASSES, MAT_CLASSES = 894, 40

# MATLAB stores columns first and HDF5 says so by reversing the axes: x stands before y.
_SHAPES = {"images": (3, 640, 480), "labels": (640, 480), "depths": (640, 480)}


class MatFrames:
    """One split of the labelled file; each process opens the file for itself at its first frame."""

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        keys: frozenset[str],
        *,
        label_code: LabelCode,
        crop: Border | None = None,
        camera: NDArray[np.float64] | None = None,
    ) -> None:
        """``path``: the labelled file; ``names``: official indices from 1, as text; ``camera``: its intrinsics."""
        self._path, self._names, self._crop = path, names, crop
        self._camera = camera
        self._label_code = label_code
        self._with_label = "label" in keys
        self._with_depth = not keys.isdisjoint({"depth", "depth_valid"})
        self._opened: tuple[int, Any] | None = None  # process id, file
        self._check()

    def __len__(self) -> int:
        return len(self._names)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def name(self, index: int) -> str:
        return self._names[index]

    def load(self, index: int) -> Sample:
        """Read one frame (less the border, where a crop is set)."""
        sample = Sample(image=torch.from_numpy(self._read("images", index)), name=self.name(index))
        if self._with_label:
            sample["label"] = self._whole_label(index)
        if self._with_depth:
            depth = self._read("depths", index).astype(np.float32, copy=False)
            sample["depth"] = torch.from_numpy(depth)
            sample["depth_valid"] = torch.from_numpy(np.isfinite(depth) & (depth > 0))
        return crop_border(sample, self._crop, self._path) if self._crop else sample

    def label(self, index: int) -> Tensor:
        """The label of one frame alone."""
        label = self._whole_label(index)
        if self._crop is None:
            return label
        top, bottom, left, right = self._crop
        return label[top:bottom, left:right]

    def intrinsics(self, index: int) -> NDArray[np.float64] | None:
        """The camera matrix ``[3, 3]`` in pixels of the frame as loaded; None where it is not known."""
        return shifted_camera(self._camera, self._crop)

    def raw_depth(self, index: int) -> NDArray[np.float32]:
        """The sensor's readings ``[480, 640]`` in metres, in the colour image's pixels; 0 where there is none."""
        return self._read("rawDepths", index)

    def fingerprint(self) -> str:
        """Changes when the file does (its size or time), the frames, or what the labels' numbers mean."""
        stat = self._path.stat()
        facts = [self._path.resolve(), stat.st_size, stat.st_mtime_ns, self._label_code.mapping, self._crop]
        return hashlib.sha256("\n".join(map(str, [*facts, *self._names])).encode()).hexdigest()

    def stored(self) -> list[Path]:
        """The one file."""
        return [self._path]

    def _whole_label(self, index: int) -> Tensor:
        where = f"{self._path}, labels of frame {self._names[index]}"
        return self._label_code.decode(self._read("labels", index), where)

    def _read(self, key: str, index: int) -> NDArray:
        """Frame ``index`` of a dataset with y before x: ``[3, H, W]`` or ``[H, W]``."""
        try:
            stored = self._file()[key][int(self._names[index]) - 1]
        except KeyError:
            raise DataError(f"{self._path}: dataset {key} is missing; download the file again") from None
        except OSError as error:
            raise DataError(
                f"{self._path}: {key} of frame {self._names[index]} cannot be read ({error}); "
                "the file is damaged, download it again"
            ) from None
        return np.ascontiguousarray(stored.swapaxes(-1, -2))

    def _file(self) -> Any:
        """The open file. A handle is never used in a forked process: HDF5's state does not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), open_hdf5(self._path)
        return self._opened[1]

    def _check(self) -> None:
        """Every dataset that is read exists, has its shape and holds every frame of the split."""
        used = ["images"] + ["labels"] * self._with_label + ["depths"] * self._with_depth
        last = max(int(name) for name in self._names)
        with open_hdf5(self._path) as file:
            for key in used:
                shape = file[key].shape if key in file else None
                if shape is None or shape[1:] != _SHAPES[key]:
                    found = "is missing" if shape is None else f"has shape {shape}"
                    right = ", ".join(map(str, _SHAPES[key]))
                    raise DataError(
                        f"{self._path}: dataset {key} {found}; it must have shape (frames, {right}), x before y"
                    )
                if shape[0] < last:
                    raise DataError(
                        f"{self._path}: {key} holds {shape[0]} frames, but {SPLITS} names frame {last}; "
                        "the two must be of one release"
                    )


def split_names(path: Path, folder: str) -> list[str]:
    """The official indices, from 1, of the frames of ``train`` or ``test`` in splits.mat: four digits each."""
    key = f"{folder}Ndxs"
    numbers = _read_v5(path, key)
    if numbers.size == 0 or numbers.min() < 1:
        raise DataError(f"{path}: {key} must hold frame numbers from 1")
    return [f"{number:04d}" for number in numbers]


def raw_to_40(path: Path) -> dict[int, int]:
    """The 894 raw classes -> 1..40, from classMapping40.mat; raw 0, void, stays 0."""
    classes = _read_v5(path, "mapClass")
    if classes.size != RAW_CLASSES or classes.min() < 1 or classes.max() > MAT_CLASSES:
        raise DataError(
            f"{path}: mapClass holds {classes.size} values; "
            f"it must hold {RAW_CLASSES}, each from 1 to {MAT_CLASSES}"
        )
    return {0: 0, **{raw: int(value) for raw, value in enumerate(classes, 1)}}


def _read_v5(path: Path, key: str) -> NDArray[np.int64]:
    """A vector of whole numbers from a MATLAB v5 file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; next to {LABELED} must lie {SPLITS} and {MAPPING}")
    return read_variable(path, key).ravel().astype(np.int64)


# Frames of NYU Depth v2's raw recordings: colour and depth without labels (Silberman et al. 2012).


IMAGES, DEPTHS, INTRINSICS, LISTING = "images", "depths", "intrinsics.txt", "frames.jsonl"


class NYUv2Raw(FileSource):
    """Indoor RGB-D video, 640x480 pixels, without labels: to pre-train on depth. One split, ``train``.

    Layout below ``root``, as ``hardpix data prepare nyuv2_raw`` writes it::

        frames.jsonl                one frame a line: name, scene, depth_time, colour_time (seconds), gap_ms
        images/NAME.jpg             undistorted colour, white where the camera saw nothing
        depths/NAME.png             16 bits, millimetres in the image's pixels, 0 no reading (not in-painted)
        intrinsics.txt              the camera's 3x3 matrix, for pixels counted from 0

    border_crop: ``[top, bottom, left, right]`` of the window that is kept of every frame; null keeps whole frames.
    depth_missing: see :func:`hardpix.data.source.depth_policy`.
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
