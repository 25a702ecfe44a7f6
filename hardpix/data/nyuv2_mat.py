"""NYU Depth v2 as it is published: all frames in one MATLAB v7.3 file (HDF5), split and classes in two v5 files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardpix.data.base import Sample
from hardpix.data.border import Border, crop_border, shifted_camera
from hardpix.data.labels import LabelCode
from hardpix.data.matlab import open_hdf5, read_variable
from hardpix.types import DataError

LABELED, SPLITS, MAPPING = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
RAW_CLASSES, CLASSES = 894, 40

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
    if classes.size != RAW_CLASSES or classes.min() < 1 or classes.max() > CLASSES:
        raise DataError(
            f"{path}: mapClass holds {classes.size} values; "
            f"it must hold {RAW_CLASSES}, each from 1 to {CLASSES}"
        )
    return {0: 0, **{raw: int(value) for raw, value in enumerate(classes, 1)}}


def _read_v5(path: Path, key: str) -> NDArray[np.int64]:
    """A vector of whole numbers from a MATLAB v5 file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; beside {LABELED} must lie {SPLITS} and {MAPPING}")
    return read_variable(path, key).ravel().astype(np.int64)
