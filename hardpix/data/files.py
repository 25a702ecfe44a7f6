"""Splits whose frames are image files: their pairing, checks and decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardpix.data.base import Sample
from hardpix.data.images import read_colour, read_depth, read_index, same_size
from hardpix.types import DataError


class Border(NamedTuple):
    """The part of a frame that is kept: rows ``top..bottom-1``, columns ``left..right-1``."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class FrameFiles:
    """The files of one frame."""

    name: str
    image: Path
    label: Path
    depth: Path | None = None


class LabelCode:
    """What the numbers of a label file mean: class indices, the ignored value, or an error."""

    def __init__(self, mapping: Mapping[int, int], ignore_index: int) -> None:
        """``mapping``: file value -> class index or ``ignore_index``; any other value is an error."""
        self.mapping = dict(mapping)
        size = 256 if max(self.mapping) < 256 else 65536
        largest = max([*self.mapping.values(), ignore_index])
        self._table = np.full(size, ignore_index, dtype=np.uint8 if largest < 256 else np.uint16)
        self._legal = np.zeros(size, dtype=bool)
        for value, index in self.mapping.items():
            self._table[value] = index
            self._legal[value] = True

    def decode(self, raw: NDArray, path: Path | str) -> Tensor:
        """Stored labels ``[H, W]`` -> uint8 class indices (int64 above 255 classes); an error names ``path``."""
        flat = torch.from_numpy(raw.ravel() if raw.dtype == np.uint8 else raw.ravel().astype(np.int64))
        counts = torch.bincount(flat, minlength=len(self._table)).numpy()
        wrong = np.flatnonzero(counts[: len(self._table)] * ~self._legal)
        wrong = np.concatenate([wrong, np.flatnonzero(counts[len(self._table) :]) + len(self._table)])
        if len(wrong):
            raise DataError(
                f"{path}: value {wrong[0]} ({counts[wrong[0]]} pixels) is no class; "
                f"allowed are {_ranges(self.mapping)}"
            )
        label = torch.from_numpy(self._table.take(raw))
        return label if label.dtype == torch.uint8 else label.long()


class DepthCode(Protocol):
    """Stored depth ``[H, W]`` -> metres float32 and the mask of pixels that have a reading."""

    def __call__(self, raw: NDArray, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...


class FileFrames:
    """One split of image files. Decodes only ``keys``; every file is known to exist when it is built."""

    def __init__(
        self,
        files: Sequence[FrameFiles],
        keys: frozenset[str],
        *,
        label_code: LabelCode,
        depth_code: DepthCode | None = None,
        crop: Border | None = None,
    ) -> None:
        self._files = files
        self._keys = keys
        self._label_code = label_code
        self._depth_code = depth_code
        self._crop = crop
        missing = [path for path in self._paths() if not path.is_file()]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError(f"{missing[0]}: no such file{more}; every frame of the split needs it")

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._files[index].name

    def load(self, index: int) -> Sample:
        """Decode one frame at its native size (less the border, where a crop is set)."""
        files = self._files[index]
        image = read_colour(files.image)
        sample = Sample(image=torch.from_numpy(image).permute(2, 0, 1), name=files.name)
        if "label" in self._keys:
            raw = read_index(files.label)
            same_size(raw, files.label, image, files.image)
            sample["label"] = self._label_code.decode(raw, files.label)
        if self._wants_depth and files.depth and self._depth_code:
            raw = read_depth(files.depth)
            same_size(raw, files.depth, image, files.image)
            depth, valid = self._depth_code(raw, files.depth)
            sample["depth"], sample["depth_valid"] = torch.from_numpy(depth), torch.from_numpy(valid)
        return crop_border(sample, self._crop, files.image) if self._crop else sample

    def label(self, index: int) -> Tensor:
        """The label of one frame alone: counting classes needs no picture decoded."""
        files = self._files[index]
        label = self._label_code.decode(read_index(files.label), files.label)
        if self._crop is None:
            return label
        top, bottom, left, right = self._crop
        return label[top:bottom, left:right]

    def fingerprint(self) -> str:
        """Changes when a label file does (its size or time), or what its numbers mean."""
        facts = [f"{self._label_code.mapping} {self._crop}"]
        for files in self._files:
            stat = files.label.stat()
            facts.append(f"{files.label.resolve()} {stat.st_size} {stat.st_mtime_ns}")
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()

    @property
    def _wants_depth(self) -> bool:
        return not self._keys.isdisjoint({"depth", "depth_valid"})

    def _paths(self) -> Iterable[Path]:
        for files in self._files:
            yield files.image
            if "label" in self._keys:
                yield files.label
            if self._wants_depth and files.depth:
                yield files.depth


def millimetres(raw: NDArray, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """16-bit depth in millimetres, 0 where the sensor has no reading."""
    return raw.astype(np.float32) / np.float32(1000), raw > 0


def read_list(path: Path) -> list[str]:
    """The non-empty lines of a list file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; it must list the frames of the split, one a line")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if not any(lines):
        raise DataError(f"{path}: the list is empty; it must name the frames of the split, one a line")
    return [line for line in lines if line]


def list_images(folder: Path) -> list[Path]:
    """The images below ``folder`` in the order of their names."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; it must hold the images of the split")
    suffixes = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if not found:
        raise DataError(f"{folder}: no PNG, JPEG or TIFF image in it; it must hold the images of the split")
    return found


def crop_border(sample: Sample, window: Border, path: Path) -> Sample:
    """Every tensor of the sample, cut to ``window``; ``path`` is named when the window leaves the frame."""
    top, bottom, left, right = window
    height, width = sample["image"].shape[-2:]
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise DataError(f"{path}: the crop {tuple(window)} does not lie inside its {width}x{height} pixels")
    cut = {k: v[..., top:bottom, left:right] for k, v in sample.items() if isinstance(v, Tensor)}
    return Sample(**cut, name=sample["name"])  # type: ignore[typeddict-item]


def _ranges(values: Iterable[int]) -> str:
    """``[0, 1, 2, 255]`` -> ``0..2, 255``."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{a}" if a == b else f"{a}..{b}" for a, b in runs)
