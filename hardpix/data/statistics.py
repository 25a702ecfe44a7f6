"""Class statistics of a split, counted once and kept on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from hardpix.data.base import Frames, Source
from hardpix.types import ClassCounts, DatasetInfo


@runtime_checkable
class LabelFrames(Protocol):
    """Frames that decode a label alone and know when their label files change."""

    def __len__(self) -> int: ...

    def label(self, index: int) -> Tensor: ...

    def fingerprint(self) -> str: ...


def cache_dir() -> Path:
    """``$HARDPIX_CACHE``, else ``~/.cache/hardpix``."""
    return Path(os.environ.get("HARDPIX_CACHE") or Path.home() / ".cache" / "hardpix")


def class_counts(frames: Frames, info: DatasetInfo) -> ClassCounts:
    """Pixels of each class, and labelled pixels of the images that contain it; void is not counted.

    Kept in :func:`cache_dir` for frames that can tell whether their files changed.
    """
    if not isinstance(frames, LabelFrames):
        return count(_loaded_labels(frames), info)
    path = cache_dir() / "class_counts" / f"{frames.fingerprint()}.json"
    if path.is_file():
        stored = json.loads(path.read_text())
        return ClassCounts(torch.tensor(stored["pixels"]), torch.tensor(stored["image_pixels"]))
    counts = count((frames.label(index) for index in range(len(frames))), info)
    write_json(path, {"pixels": counts.pixels.tolist(), "image_pixels": counts.image_pixels.tolist()})
    return counts


def split_counts(source: Source, split: str) -> ClassCounts:
    """Class statistics of a split's labels."""
    return class_counts(source.frames(split, frozenset({"label"})), source.info)


def count(labels: Iterator[Tensor], info: DatasetInfo) -> ClassCounts:
    """Count over labels ``[H, W]``."""
    pixels = torch.zeros(info.num_classes, dtype=torch.int64)
    image_pixels = torch.zeros(info.num_classes, dtype=torch.int64)
    for label in labels:
        seen = torch.bincount(label.flatten(), minlength=info.num_classes)[: info.num_classes]
        pixels += seen
        image_pixels += (seen > 0) * seen.sum()
    return ClassCounts(pixels, image_pixels)


def write_json(path: Path, content: object) -> None:
    """Write so that a reader sees the whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def _loaded_labels(frames: Frames) -> Iterator[Tensor]:
    for index in range(len(frames)):
        yield frames.load(index)["label"]
