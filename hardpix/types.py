"""The contracts every part of hardpix speaks in. Imports nothing heavy.

Shape letters: ``B`` batch, ``C`` classes, ``c`` feature channels, ``H W`` label resolution, ``h w`` feature
resolution. Depth is in metres.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, NotRequired, TypedDict

if TYPE_CHECKING:
    from torch import Tensor


class HardpixError(Exception):
    """A fault the user can fix. Its message is one sentence: what, where, what would be right."""

    status: ClassVar[int] = 2  # of the process that ends with it


class ConfigError(HardpixError):
    """The configuration asks for something that does not exist or does not fit together."""


class Pruned(HardpixError):
    """Ends a run that is behind the other trials of a search; its record is ``failed`` with this as the error."""


class DataError(HardpixError):
    """A file of a dataset is missing, unreadable or contradicts another one."""


class NoSuchSplit(DataError):
    """A dataset has no frames under the name of a split."""


class Diverged(HardpixError):
    """The loss or a gradient is no longer a number."""

    status: ClassVar[int] = 3


class Batch(TypedDict):
    """What a method receives; plain dict, so it collates and moves between devices without code of ours."""

    image: Tensor  # [B, 3, H, W] float32, normalised
    label: Tensor  # [B, H, W] int64, info.ignore_index where unlabelled
    name: list[str]
    depth: NotRequired[Tensor]  # [B, H, W] float32, metres
    depth_valid: NotRequired[Tensor]  # [B, H, W] bool; depth means nothing where False
    unlabeled: NotRequired[Tensor]  # [U, 3, H, W] images without labels, for semi-supervision


class SegOutput(NamedTuple):
    """What a segmenter returns; everything at feature resolution."""

    # {"label": [B, C, h, w]}, and what else was asked for: {"depth": [B, 1, h, w]}
    outputs: dict[str, Tensor]
    features: dict[str, Tensor]  # enc0.. and dec0..; index 0 is the finest level; all [B, c, h, w]
    aux: dict[str, Tensor]  # auxiliary label logits [B, C, h, w] by feature name; empty in eval
    stages: Mapping[str, Tensor]  # label logits [B, C, h, w] of the head's earlier decisions; empty in eval


@dataclass(frozen=True)
class FeatureSpec:
    """One feature map, known before any forward pass.

    A backbone's maps come finest first, but for the last one, which may be finer than the one before.
    """

    stride: int  # nominal: H / h
    channels: int
    indices: bool = False  # of its max-pooling: they come with the map


@dataclass(frozen=True)
class DatasetInfo:
    """The facts of a dataset that code (never configuration) knows."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # one RGB colour per class
    ignore_index: int = 255
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB, on the 0..255 scale
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    depth_max: float | None = None  # metres; None where the dataset has no depth
    provides: frozenset[str] = frozenset({"image", "label"})
    main_metric: str = "miou"  # what papers report on it, and what `best` follows

    @property
    def num_classes(self) -> int:
        return len(self.classes)


class ClassCounts(NamedTuple):
    """Pixel statistics of a training split, for class weights. Void is never counted."""

    pixels: Tensor  # [C] int64: pixels of each class
    image_pixels: Tensor  # [C] int64: labelled pixels of the images that contain the class
