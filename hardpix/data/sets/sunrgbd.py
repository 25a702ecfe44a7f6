"""SUN RGB-D, 37 classes (Song et al. 2015)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardpix.data.files import FileSource, FrameFiles, existing_root
from hardpix.data.labels import LabelCode, voc_palette
from hardpix.data.matlab import read_variable
from hardpix.data.sets.nyuv2 import CLASSES as NYU_CLASSES
from hardpix.data.source import Frames, depth_policy
from hardpix.types import ConfigError, DataError, DatasetInfo

# Its list is that of NYUv2 up to "bag", with two names of its own.
_OWN_NAMES = {"refridgerator": "fridge", "television": "tv"}
CLASSES = tuple(_OWN_NAMES.get(name, name) for name in NYU_CLASSES[:37])

SPLIT_LIST = Path("SUNRGBDtoolbox") / "traintestSUNRGBD" / "allsplit.mat"
LABELS = "labels37"
DEPTH_FOLDERS = {"filled": "depth_bfx", "raw": "depth"}
DEPTH_MAX = 8.0  # metres; the toolbox's own reader clamps there


class SUNRGBD(FileSource):
    """Indoor RGB-D scenes of four cameras, about 561x427 to 730x530 pixels, 5285 training and 5050 test frames.

    Layout below ``root``, where FRAME is ``<sensor>/<set>/<frame>`` with one or two folders more in some sets;
    ``hardpix data prepare sunrgbd`` makes it of the published archives::

        SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat    the split; needs pip install 'hardpix[mat]'
        FRAME/image/*.jpg                               RGB
        FRAME/depth_bfx/*.png, FRAME/depth/*.png        16 bits, see `depth_code`; in-painted, as measured
        FRAME/intrinsics.txt                            the camera matrix of these pictures
        labels37/FRAME.png                              grey: 0 void, 1..37 a class

    The data set has no validation split: ``val`` is the test split, as in the papers that report on it.

    depth: ``filled`` reads the in-painted depth, ``raw`` the sensor's, with its holes.
    exclude_nyu: leave out the 1449 frames of NYUv2 (``kv1/NYUdata``, 795 of train and 654 of test; the two
        data sets split them alike), for scores on scenes that NYUv2 does not have, or a union of both sets.
    partial: for a copy that lacks frames: keep those whose folder exists. Scores on a part of the test split
        compare with no other; without it a missing frame is an error.
    depth_missing: see :func:`hardpix.data.source.depth_policy`.
    """

    own_val = False
    info = DatasetInfo(
        name="sunrgbd",
        classes=CLASSES,
        palette=voc_palette(len(CLASSES)),
        depth_max=DEPTH_MAX,
        provides=frozenset({"image", "label", "depth", "depth_valid"}),
    )

    def __init__(
        self,
        root: str,
        *,
        depth: Literal["filled", "raw"] = "filled",
        exclude_nyu: bool = False,
        partial: bool = False,
        depth_missing: str = "error",
    ) -> None:
        if depth not in DEPTH_FOLDERS:
            raise ConfigError(f"data.source.depth is '{depth}'; it must be 'filled' or 'raw'")
        self.root, self.depth_missing = Path(root), depth_policy(depth_missing)
        self._depth = DEPTH_FOLDERS[depth]
        self._exclude_nyu, self._partial = exclude_nyu, partial

    def frames(self, split: str, keys: frozenset[str]) -> Frames:
        existing_root(self.root, "SUN RGB-D")
        if "label" in keys and not (self.root / LABELS).is_dir():
            raise DataError(
                f"{self.root / LABELS}: no such folder; 'hardpix data prepare sunrgbd' writes the labels into it"
            )
        return super().frames(split, keys)

    def files(self, split: str) -> list[FrameFiles]:
        existing_root(self.root, "SUN RGB-D")
        frames = self._listed(split)
        missing = [frame for frame in frames if not (self.root / frame).is_dir()]
        if missing and not self._partial:
            raise DataError(
                f"{self.root / missing[0]}: no such folder; {len(missing)} of the {len(frames)} frames of the "
                f"{split} split are missing: complete the copy, or set data.source.partial=true to go on without"
            )
        absent = set(missing)
        kept = [self._frame(frame) for frame in frames if frame not in absent]
        if not kept:
            raise DataError(
                f"{self.root}: no frame of the {split} split lies there; it must hold kv1, kv2, ..."
            )
        return kept

    def label_reader(self, split: str) -> LabelCode:
        ignore = self.info.ignore_index
        return LabelCode({0: ignore, **{i: i - 1 for i in range(1, len(CLASSES) + 1)}}, ignore)

    def depth_code(self, raw: NDArray, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Millimetres whose 16 bits are rotated left by three, 0 where there is no reading; at most 8 m."""
        if raw.dtype != np.uint16:
            raise DataError(
                f"{path}: {8 * raw.itemsize} bits; a depth image of SUN RGB-D has 16 rotated bits"
            )
        metres = ((raw >> 3) | (raw << 13)).astype(np.float32) / np.float32(1000)
        return np.minimum(metres, np.float32(DEPTH_MAX)), raw > 0

    def strays(self, split: str) -> list[Path]:
        """One folder holds labels of both splits: a stray belongs to neither."""
        other = self.files("test" if split == "train" else "train")
        named = {path for f in other for path in (f.label, f.depth) if path}
        return [path for path in super().strays(split) if path not in named]

    def remarks(self) -> tuple[str, ...]:
        said = ["sunrgbd: val is the test split"]
        if self._exclude_nyu:
            said.append("sunrgbd: the frames of NYUv2 (kv1/NYUdata) are left out of every split")
        if self._partial:
            for split in ("train", "test"):
                frames = self._listed(split)
                found = sum((self.root / frame).is_dir() for frame in frames)
                said.append(
                    f"sunrgbd: {found} of {len(frames)} {split} frames are there, the others are left out"
                )
        return tuple(said)

    def _listed(self, split: str) -> list[PurePosixPath]:
        self.check_split(split)
        frames = split_frames(self.root / SPLIT_LIST, "train" if split == "train" else "test")
        return [f for f in frames if f.parts[:2] != ("kv1", "NYUdata")] if self._exclude_nyu else frames

    def _frame(self, frame: PurePosixPath) -> FrameFiles:
        folder = self.root / frame
        return FrameFiles(
            name="__".join(frame.parts),
            image=_only(folder / "image", ".jpg"),
            label=self.root / LABELS / f"{frame}.png",
            depth=_only(folder / self._depth, ".png"),
            camera=folder / "intrinsics.txt",
        )


def split_frames(path: Path, split: str) -> list[PurePosixPath]:
    """The frames of ``train`` or ``test`` in the order of ``allsplit.mat``, as :func:`frame_path` gives them."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; it lists the frames of the split and comes with SUNRGBDtoolbox"
        )
    return [frame_path(text(cell), path) for cell in read_variable(path, f"all{split}").flat]


def frame_path(stored: str, path: Path) -> PurePosixPath:
    """A frame's folder below the data set's: what follows ``SUNRGBD/`` of a path on its authors' machine."""
    _, found, rest = stored.partition("SUNRGBD/")
    frame = PurePosixPath(rest)
    if not found or not frame.parts or frame.is_absolute() or ".." in frame.parts:
        raise DataError(
            f"{path}: '{stored}' is no frame; it must be a path with SUNRGBD/ and a folder after it"
        )
    return frame


def text(cell: NDArray | str) -> str:
    """The text of a MATLAB cell or field, which arrives in an array of one."""
    return str(np.asarray(cell).item()) if np.size(cell) == 1 else ""


def _only(folder: Path, suffix: str) -> Path:
    """The one picture of a folder; a name for the message that it is missing, where there is none."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = sorted(p for p in paths if p.suffix.lower() == suffix and not p.name.startswith("."))
    if len(found) > 1:
        raise DataError(
            f"{folder}: holds {len(found)} pictures, {found[0].name} and others; it must hold one"
        )
    return found[0] if found else folder / f"{folder.parent.name}{suffix}"
