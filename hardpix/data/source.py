"""What a dataset is: facts, splits and decoded frames. The rest builds on this alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import ClassVar, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hardpix.types import ConfigError, DatasetInfo

TRAINVAL = "trainval"


class Sample(TypedDict):
    """One decoded frame at its native size, before any transform; plain CPU tensors."""

    image: Tensor  # [3, H, W] uint8, RGB
    name: str  # unique in its split, usable as a file stem
    label: NotRequired[Tensor]  # [H, W] uint8 (int64 above 255 classes), ignore_index where unlabelled
    depth: NotRequired[Tensor]  # [H, W] float32, metres
    depth_valid: NotRequired[Tensor]  # [H, W] bool
    hardness: NotRequired[Tensor]  # [H, W] float32 in [0, 1]: true hardness, where the data know it


class Frames(Protocol):
    """One split: a sized collection that decodes one frame at a time (called from loader workers)."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def load(self, index: int) -> Sample:
        """Decode frame ``index``; raises ``DataError`` that names the file and what would be right."""
        ...


@runtime_checkable
class JudgedFrames(Protocol):
    """Frames whose files can be judged without decoding them."""

    def check(self) -> None:
        """Raise ``DataError`` for the first file that its header shows to be unusable: before training, not after."""
        ...


@runtime_checkable
class CameraFrames(Protocol):
    """Frames whose camera is known."""

    def intrinsics(self, index: int) -> NDArray[np.float64] | None:
        """The camera matrix ``[3, 3]`` in pixels of the frame as loaded; None where it is not known."""
        ...


class Source(ABC):
    """A dataset: its facts and its splits. Constructing one touches no pixel data."""

    info: DatasetInfo
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    holds_out: ClassVar[bool] = False  # whether val_fraction and test_fraction hold out frames of train
    own_val: bool = True  # False: its val is the test split, there is no other
    image_range: tuple[float, float] | None = (
        None  # of image files with more than 8 bits: what is black and white
    )

    def check_split(self, split: str) -> None:
        """Raises unless ``split`` is one of ``splits``: a misspelt name must not stand for the frames of another."""
        if split not in self.splits:
            raise ConfigError(f"{self.info.name} has no split {split!r}; there are {', '.join(self.splits)}")

    def has_split(self, split: str) -> bool:
        """Whether the files of the data set have a split of this name; it comes before a union called so."""
        return split in self.splits

    def parts(self, split: str) -> tuple[str, ...]:
        """The splits that make up ``split``: train and val of ``trainval``, those that ``a+b`` names, else itself."""
        if (split != TRAINVAL and "+" not in split) or self.has_split(split):
            return (split,)
        if split != TRAINVAL:
            return tuple(dict.fromkeys(part for one in split.split("+") for part in self.parts(one)))
        if "val" not in self.splits:
            self.check_split(split)
        if not self.own_val:
            raise ConfigError(
                f"split {split}: {self.info.name} has no validation split, its val is the test split; use "
                "data.train_split=train"
            )
        return ("train", "val")

    @abstractmethod
    def frames(self, split: str, keys: frozenset[str]) -> Frames:
        """The frames of ``split``, decoding only ``keys`` (a subset of ``info.provides``).

        Lists and checks the files (all present, pairs complete) and raises ``DataError`` before any training.
        """

    def frames_as_they_are(self, split: str, keys: frozenset[str]) -> Frames:
        """``frames`` for a look over the data set: where it can, a missing file is an error of its frame's ``load``."""
        return self.frames(split, keys)

    def remarks(self) -> tuple[str, ...]:
        """What a run's start prints, a line each: every value of the files that is mapped or left out by choice."""
        return ()

    def left_out(self, split: str) -> tuple[str, ...]:
        """A sentence for each kind of files among those of ``split`` that are not read, with their number."""
        return ()

    def advice(self, role: str, splits: Mapping[str, str]) -> str:
        """What to do where the split of ``role`` is missing; ``splits``: the name of each role's split."""
        if role == "train":
            return f"; data.train_split={splits['train']} must name the split to train on"
        other = splits["val"] if role == "test" and splits["val"] != splits["test"] else splits["train"]
        held = f", data.source.{role}_fraction=0.2 holds out a fifth of train" if self.holds_out else ""
        return f"; data.{role}_split={other} scores that split instead{held}"

    def ignored_values(self) -> str:
        """Of own data: ``255``, the values or colours of the files that are no class; else empty."""
        return ""

    def void_as(self, index: int | None, occurring: Collection[int]) -> str:
        """Of own data: the overrides that read as class ``index`` (None: as a new one) what is ignored now.

        ``occurring``: the classes whose own values occur. Empty where there are no such settings.
        """
        return ""

    def submission_values(self) -> Mapping[int, int] | None:
        """Class index -> number in the files that the data set's test server takes; None: the indices."""
        return None
