"""Frames and batches as what a contact sheet draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from hardpix.atomic import replacing
from hardpix.data.base import Sample
from hardpix.report.contact import Frame
from hardpix.run.panels import unnormalize
from hardpix.types import Batch, ConfigError, DatasetInfo


def frame_of_sample(sample: Sample) -> Frame:
    """A decoded frame, before any transform."""
    image = sample["image"].permute(1, 2, 0).contiguous().numpy()
    return Frame(sample["name"], image, *_label_and_maps(sample))


def frame_of_batch(batch: Batch, place: int, info: DatasetInfo) -> Frame:
    """Frame ``place`` of a finished batch: the picture before its normalisation, and what of it is padding."""
    one = {key: value[place] for key, value in batch.items() if isinstance(value, Tensor)}
    image = unnormalize(one["image"], info)
    return Frame(batch["name"][place], image, *_label_and_maps(one), extent=extent(one["image"]))


def extent(image: Tensor) -> tuple[int, int]:
    """Rows and columns of a normalised ``[3, H, W]`` image that are picture: padding is exactly 0."""
    drawn = (image != 0).any(dim=0).numpy()
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    return (int(rows[-1]) + 1, int(columns[-1]) + 1) if len(rows) else (0, 0)


def make_folder(folder: Path) -> None:
    """Make ``folder`` and try to write to it: before a long look, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be made ({error.strerror}); name another folder") from None
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"--out {folder}: not writable ({error.strerror}); name another folder") from None


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write so that a reader sees the whole file or the former one."""
    with replacing(path, sync=False) as unfinished:
        picture.save(unfinished)


def _label_and_maps(
    tensors: Mapping[str, Any],
) -> tuple[np.ndarray | None, dict[str, tuple[np.ndarray, str]]]:
    label = tensors["label"].numpy() if "label" in tensors else None
    maps = {}
    if "depth" in tensors:
        valid = tensors["depth_valid"].numpy() if "depth_valid" in tensors else True
        maps["depth"] = (np.where(valid, tensors["depth"].numpy(), np.nan), "m")
    if "hardness" in tensors:
        maps["hardness"] = (tensors["hardness"].numpy(), "")
    return label, maps
