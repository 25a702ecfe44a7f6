"""What must hold of every decoded frame, whichever source it came from: checked where it is loaded, on the CPU.

A label that is no class would end a process on a GPU without a word about the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hardpix.data.base import Frames, Sample
from hardpix.data.fingerprint import fingerprint, stamp
from hardpix.data.images import read_colour, traits
from hardpix.data.statistics import cache_dir, write_json
from hardpix.types import DataError, DatasetInfo


def checked(sample: Sample, info: DatasetInfo) -> Sample:
    """The sample, with only finite positive readings valid in its depth, and none that is not finite.

    Raises ``DataError`` that names the frame where its tensors differ in size or its label is no class.
    """
    height, width = sample["image"].shape[-2:]
    for key in ("label", "depth", "depth_valid", "hardness"):
        other = sample.get(key)
        if isinstance(other, Tensor) and tuple(other.shape) != (height, width):
            raise DataError(
                f"{sample['name']}: its image measures {width}x{height} pixels but its {key} "
                f"{'x'.join(map(str, reversed(other.shape)))}; both must have one size"
            )
    if "label" in sample:
        check_label(sample["label"], info, sample["name"])
    return readings(sample) if "depth" in sample and "depth_valid" in sample else sample


@runtime_checkable
class ImageFiles(Protocol):
    """Frames whose images are files."""

    image_files: Sequence[Path]
    image_range: tuple[float, float] | None


def check_images(frames: Frames, *, lenient: bool) -> None:
    """Raise ``DataError`` where an image cannot be read by its header, or has other bits than ``image_range`` says.

    ``lenient``: what cannot be opened is left to whoever loads it. Of frames without files the first one is tried.
    What was found right is known in :func:`hardpix.data.statistics.cache_dir` until a file changes.
    """
    if not isinstance(frames, ImageFiles):
        if len(frames) and not lenient:
            frames.load(0)
        return
    facts = f"{fingerprint(frames)} {stamp(frames)} {frames.image_range}"
    passed = cache_dir() / "images" / f"{hashlib.sha256(facts.encode()).hexdigest()}.json"
    if passed.is_file():
        return

    def check(index: int) -> None:
        path = frames.image_files[index]
        try:
            found = traits(path)
            if found.odd or found.deep == (frames.image_range is None):
                read_colour(path, frames.image_range)
        except DataError as error:
            if not lenient:
                raise DataError(f"{error} (frame {index} of {len(frames)})") from None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(len(frames))))
    with suppress(OSError):
        write_json(passed, {"images": len(frames)})


def check_label(label: Tensor, info: DatasetInfo, name: str) -> None:
    """Raise ``DataError`` unless every pixel is a class index or the ignored value."""
    if label.dtype not in (torch.uint8, torch.int64):
        raise DataError(f"{name}: its label is {label.dtype}; it must be uint8 or int64 class indices")
    values = label.numpy()
    # With void in the middle of the numbers the largest would tell nothing; added to, 255 becomes 0.
    wraps = values.dtype == np.uint8 and info.ignore_index == 255
    if wraps and int((values + np.uint8(1)).max(initial=0)) <= info.num_classes:
        return
    wrong = (values != info.ignore_index) & ((values < 0) | (values >= info.num_classes))
    if not wrong.any():
        return
    value = int(values[wrong][0])
    raise DataError(
        f"{name}: label {value} ({int((values == value).sum())} pixels) is no class of {info.name}; "
        f"its classes are 0..{info.num_classes - 1}, {info.ignore_index} is void"
    )


def readings(sample: Sample) -> Sample:
    """NaN, infinite, negative and zero depth is no reading."""
    depth, valid = sample["depth"].numpy(), sample["depth_valid"].numpy()
    positive = depth > 0  # False of NaN
    if np.isfinite(depth.sum(dtype=np.float32)) and not (valid & ~positive).any():
        return sample
    valid = valid & positive & (depth < np.inf)
    kept = torch.from_numpy(np.where(valid, depth, np.float32(0)))
    return {**sample, "depth": kept, "depth_valid": torch.from_numpy(valid)}
