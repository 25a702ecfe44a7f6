"""What must hold of every decoded frame, whichever source it came from: checked where it is loaded, on the CPU.

A label that is no class would end a process on a GPU without a word about the file.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hardpix.data.base import Sample
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
