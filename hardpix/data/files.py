"""Splits whose frames are image files: their pairing, checks and decoding."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardpix.data.camera import read_intrinsics
from hardpix.data.images import (
    MAX_PIXELS,
    SUFFIXES,
    image_size,
    read_colour,
    read_depth,
    read_float_depth,
    refuse_lossy,
    same_size,
    traits,
)
from hardpix.data.labels import LabelReader
from hardpix.data.listing import LOSSLESS, Finder, kinds, refuse_equal_names
from hardpix.data.source import ERROR, IGNORE, Frames, Sample, Source, absent, missing_files, no_reading
from hardpix.types import ConfigError, DataError


@dataclass(frozen=True)
class FrameFiles:
    """The files of one frame; None where the data set has no such file for it."""

    name: str
    image: Path
    label: Path | None = None
    depth: Path | None = None
    camera: Path | None = None  # a text file of the 3x3 intrinsic matrix


class DepthCode(Protocol):
    """Stored depth ``[H, W]`` -> metres float32 and the mask of pixels that have a reading."""

    def __call__(self, raw: NDArray, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...


class FileSource(Source):
    """A data set of image files: a subclass says which files, and what their contents mean."""

    crop: Border | None = None  # the part of every frame that is kept
    camera: NDArray[np.float64] | None = None  # intrinsics of every frame that has no file of its own
    read_depth = staticmethod(read_depth)  # a depth file -> its stored numbers
    lossless = False  # True: a label or depth that is a JPEG is refused
    depth_missing: str = ERROR  # a frame without its depth file: see `hardpix.data.source`

    @abstractmethod
    def files(self, split: str) -> list[FrameFiles]:
        """The frames of ``split`` in order. Raises for a missing folder or list; single files are not checked."""

    @abstractmethod
    def label_reader(self, split: str) -> LabelReader:
        """What the label files of ``split`` mean."""

    def depth_code(self, raw: NDArray, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Stored depth ``[H, W]`` -> metres, and which pixels have a reading; this one: see :func:`millimetres`."""
        return millimetres(raw, path)

    def frames(self, split: str, keys: frozenset[str]) -> Frames:
        files = self.paired(split)
        refuse_equal_names((one.name, one.image) for one in files)
        for one in files:
            self.refuse(one)
        return self.open(split, files, keys)

    def paired(self, split: str) -> list[FrameFiles]:
        """``files`` with their paths as the disk has them, where these differ in their Unicode form alone."""
        find = Finder()
        return [
            FrameFiles(f.name, *(path and find(path) for path in (f.image, f.label, f.depth, f.camera)))  # type: ignore[arg-type]
            for f in self.files(split)
        ]

    def image_files(self, split: str) -> list[Path]:
        """The files of the folders whose images are frames; none where a list chooses the frames."""
        return []

    def left_out(self, split: str) -> tuple[str, ...]:
        found, used = self.image_files(split), set[Path]()
        for other in dict.fromkeys((split, *self.splits)) if found else ():  # splits may share a folder
            try:
                files = self.paired(other)
            except DataError:
                continue
            used |= {path for f in files for path in (f.image, f.label, f.depth, f.camera) if path}
        unread = [path for path in found if path not in used]
        if not unread:
            return ()
        return (f"{split}: {kinds(unread)} in {unread[0].parent} belong to no frame and are not read",)

    def refuse(self, files: FrameFiles) -> None:
        """Raise ``DataError`` for a frame with a file that cannot be right, by its name alone."""
        for path in (files.label, files.depth) if self.lossless else ():
            if path:
                refuse_lossy(path)

    def open(self, split: str, files: Sequence[FrameFiles], keys: frozenset[str]) -> FileFrames:
        """``files`` of ``split``, all of which must exist as far as ``keys`` needs them."""
        return FileFrames(
            files,
            keys,
            label_reader=self.label_reader(split),
            depth_code=self.depth_code,
            read_depth=self.read_depth,
            crop=self.crop,
            camera=self.camera,
            depth_missing=self.depth_missing,
            image_range=self.image_range,
        )

    def strays(self, split: str) -> list[Path]:
        """Label and depth files next to those of ``split`` that belong to no frame of it.

        This one looks at files of the same ending in the same folders; override it where these mix kinds.
        """
        files = self.paired(split)
        named = {path for f in files for path in (f.label, f.depth) if path}
        folders = {(path.parent, path.suffix) for path in named}
        beside = (p for folder, suffix in sorted(folders) for p in sorted(folder.glob(f"*{suffix}")))
        return [path for path in beside if path not in named and not path.name.startswith(".")]


class FileFrames:
    """One split of image files. Decodes only ``keys``; every file is known to exist when it is built.

    With ``depth_missing="ignore"`` that of a depth need not: the frame's depth then has no reading.
    """

    def __init__(
        self,
        files: Sequence[FrameFiles],
        keys: frozenset[str],
        *,
        label_reader: LabelReader,
        depth_code: DepthCode | None = None,
        read_depth: Callable[[Path], NDArray] = read_depth,
        crop: Border | None = None,
        camera: NDArray[np.float64] | None = None,
        depth_missing: str = ERROR,
        image_range: tuple[float, float] | None = None,
    ) -> None:
        self._files = files
        self._keys = keys
        self._labels = label_reader
        self._depth_code, self._read_depth = depth_code, read_depth
        self._crop = crop
        self._camera = camera
        self.image_range, self.image_files = image_range, [one.image for one in files]
        ignored = self._wants_depth and depth_missing == IGNORE
        self._without_depth = absent([f.depth for f in files]) if ignored else frozenset()
        if "label" in keys:
            _all_labelled(files)
        if missing := [path for path in self._paths() if not path.is_file()]:
            raise missing_files(missing, {f.depth for f in files})

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._files[index].name

    def load(self, index: int) -> Sample:
        """Decode one frame at its native size (less the border, where a crop is set)."""
        files = self._files[index]
        image = read_colour(files.image, self.image_range)
        sample = Sample(image=torch.from_numpy(image).permute(2, 0, 1), name=files.name)
        if "label" in self._keys and files.label:
            label = self._labels.read(files.label, files.image)
            same_size(label, files.label, image, files.image)
            sample["label"] = label
        if index in self._without_depth:
            depth, valid = no_reading(image.shape[:2])
            sample["depth"], sample["depth_valid"] = torch.from_numpy(depth), torch.from_numpy(valid)
        elif self._wants_depth and files.depth and self._depth_code:
            depth, valid = self.depth(index)
            same_size(depth, files.depth, image, files.image)
            sample["depth"], sample["depth_valid"] = torch.from_numpy(depth), torch.from_numpy(valid)
        return crop_border(sample, self._crop, files.image) if self._crop else sample

    def check(self) -> None:
        """Raise ``DataError`` for a file that is no image, or of another size than its frame's image."""
        for index, files in enumerate(self._files):
            size = sorted(image_size(files.image))  # one of a frame's files may be turned upright
            paths = [files.label if "label" in self._keys else None]
            if self._wants_depth and index not in self._without_depth:
                paths.append(files.depth)
            for path in paths:
                if path and (path.suffix.lower() not in SUFFIXES or sorted(image_size(path)) != size):
                    self.load(index)
        deep = (i for i, files in enumerate(self._files) if traits(files.image).deep)
        for index in islice(deep, 1):  # whether it is read is for who decodes it
            self.load(index)

    def whole(self, index: int) -> FrameFiles | None:
        """The files of one frame; None where the frame as loaded is only a part of what they show."""
        return None if self._crop else self._files[index]

    def depth(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Metres, and which pixels have a reading, of a whole depth file: it may differ in size from the image."""
        files = self._files[index]
        if files.depth is None or self._depth_code is None:
            raise DataError(f"{files.image}: no depth belongs to this frame")
        return self._depth_code(self._read_depth(files.depth), files.depth)

    def without_depth(self) -> frozenset[int]:
        """The frames whose depth has no reading for want of a file."""
        return self._without_depth

    def label(self, index: int) -> Tensor:
        """The label of one frame alone."""
        files = self._files[index]
        if files.label is None:
            raise DataError(f"{files.image}: this frame has no label; only its image can be used")
        label = self._labels.read(files.label, files.image)
        if self._crop is None:
            return label
        top, bottom, left, right = self._crop
        return label[top:bottom, left:right]

    def intrinsics(self, index: int) -> NDArray[np.float64] | None:
        """The camera matrix ``[3, 3]`` in pixels of the frame as loaded; None where it is not known."""
        path = self._files[index].camera
        return shifted_camera(self._camera if path is None else read_intrinsics(path), self._crop)

    def fingerprint(self) -> str:
        """Changes when a label file does (its size or time), or what its contents mean."""
        facts = [f"{self._labels.identity()} {self._crop}"]
        for files in self._files:
            if files.label:
                stat = files.label.stat()
                facts.append(f"{files.label.resolve()} {stat.st_size} {stat.st_mtime_ns}")
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()

    def stored(self) -> Iterator[Path]:
        """Every file of the split, whether it is decoded or not."""
        for files in self._files:
            yield from (path for path in (files.image, files.label, files.depth) if path)

    @property
    def _wants_depth(self) -> bool:
        return not self._keys.isdisjoint({"depth", "depth_valid"})

    def _paths(self) -> Iterator[Path]:
        for index, files in enumerate(self._files):
            yield files.image
            if "label" in self._keys and files.label:
                yield files.label
            if self._wants_depth and files.depth and index not in self._without_depth:
                yield files.depth


def millimetres(raw: NDArray, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """16-bit depth in millimetres, 0 where the sensor has no reading."""
    return raw.astype(np.float32) / np.float32(1000), raw > 0


def read_list(path: Path) -> list[str]:
    """The non-empty lines of a list file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; it must list the frames of the split, one a line")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a UTF-8 text; it must list the split's frames, one a line") from None
    if not any(lines):
        raise DataError(f"{path}: the list is empty; it must name the frames of the split, one a line")
    return [line for line in lines if line]


def frame_name(image: str) -> str:
    """A frame's name, usable as a file stem, from its image's path in a list: ``a/b/0001.png`` -> ``a__b__0001``."""
    parts = PurePosixPath(image.replace("\\", "/")).with_suffix("").parts
    return "__".join(part for part in parts if part not in ("/", ".."))


def existing_root(root: str | Path, what: str) -> Path:
    """``root`` as a path; ``DataError`` that names the key where it is no folder."""
    path = Path(root)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; data.source.root must be the folder of {what}")
    return path


def _all_labelled(files: Sequence[FrameFiles]) -> None:
    bare = [f.image for f in files if f.label is None]
    if bare:
        raise DataError(
            f"{bare[0]}: no label belongs to it ({len(bare)} of {len(files)} frames of the split have none); "
            "such a split can be predicted on, not trained on or scored"
        )


# The part of every frame that a data set keeps, without a border that carries no picture.


class Border(NamedTuple):
    """The part of a frame that is kept: rows ``top..bottom-1``, columns ``left..right-1``."""

    top: int
    bottom: int
    left: int
    right: int


def to_border(window: Sequence[int] | None) -> Border | None:
    """``[top, bottom, left, right]`` of a configuration; None keeps whole frames."""
    if window is None:
        return None
    if len(window) != 4:
        raise ConfigError(f"border_crop is {list(window)}; it must be [top, bottom, left, right]")
    return Border(*window)


def shifted_camera(matrix: NDArray[np.float64] | None, window: Border | None) -> NDArray[np.float64] | None:
    """A camera matrix in pixels of what ``window`` keeps of its frames."""
    if matrix is None or window is None:
        return matrix
    shifted = matrix.copy()
    shifted[0, 2] -= window.left
    shifted[1, 2] -= window.top
    return shifted


def crop_border(sample: Sample, window: Border, path: Path) -> Sample:
    """Every tensor of the sample, cut to ``window``; ``path`` is named when the window leaves the frame."""
    top, bottom, left, right = window
    height, width = sample["image"].shape[-2:]
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise DataError(f"{path}: the crop {tuple(window)} does not lie inside its {width}x{height} pixels")
    cut = {k: v[..., top:bottom, left:right] for k, v in sample.items() if isinstance(v, Tensor)}
    return Sample(**cut, name=sample["name"])  # type: ignore[typeddict-item]


# The depth files of a user's own data: what they hold, and which pixels have no reading.


NO_READING = (0, 65535)  # what cameras write where they have none
ENDINGS = (*LOSSLESS, ".npy")


def missing_values(values: Sequence[float]) -> tuple[float, ...]:
    """``data.source.depth_missing_values``, checked: finite numbers."""
    given = [values] if isinstance(values, str) or not isinstance(values, Sequence) else list(values)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in given):
        raise ConfigError(
            f"data.source.depth_missing_values={values}: must list numbers of the depth files that are no reading, "
            "such as [0,65535]"
        )
    return tuple(given)


def has_reading(raw: NDArray, values: Sequence[float]) -> NDArray[np.bool_]:
    """Which pixels of stored depth are a length: none of ``values``, above 0, and neither NaN nor infinite."""
    return np.isfinite(raw) & (raw > 0) & ~np.isin(raw, values)


def read_own_depth(path: Path) -> NDArray:
    """Stored depth ``[H, W]``: an image of 8 or 16 bits or of floating-point numbers, or an array (``.npy``)."""
    if path.suffix.lower() != ".npy":
        return read_float_depth(path) if path.suffix.lower() in (".tif", ".tiff") else read_depth(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; the data set needs it") from None
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not readable as an array of NumPy ({reason})") from None
    if array.ndim != 2 or array.dtype.kind not in "uif" or not 0 < array.size <= MAX_PIXELS:
        raise DataError(
            f"{path}: holds {array.dtype} of shape {array.shape}; depth must be numbers [height, width], at most "
            f"{MAX_PIXELS} in all"
        )
    return np.array(array)
