"""The contract of a data source: facts, splits, decoded frames, and which of them lack depth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hardpix.types import ConfigError, DataError, DatasetInfo

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


# Keys of a batch that a method needs.


ALWAYS = frozenset({"image", "label"})
UNLABELED = frozenset({"unlabeled"})  # what a method requires to be given images without labels
WITH_DEPTH = "data=nyuv2, sunrgbd and synthetic, and your own folder or listed data with depth files"


def needed(keys: frozenset[str], info: DatasetInfo, *, all_labelled: bool) -> frozenset[str]:
    """What to load of each frame; a ``DataError`` names what the data set lacks."""
    provided = with_validity(info.provides)
    if "label" not in provided:
        raise DataError(
            f"data set {info.name} has no labels, only {', '.join(sorted(provided))}: no segmentation can be "
            "trained or scored on it; choose another data"
        )
    if "unlabeled" in keys and all_labelled:
        raise ConfigError(
            "data.labeled=null: the method learns from frames without labels, too; set the share of the training "
            "frames that have labels, data.labeled=0.125, or the path of a list of them"
        )
    lacking = sorted(keys - provided - UNLABELED)
    if lacking:
        where = f"; depth have {WITH_DEPTH}" if "depth" in lacking else ""
        raise DataError(
            f"the method needs {', '.join(lacking)}, which data set {info.name} does not have; "
            f"it provides {', '.join(sorted(provided))}{where}"
        )
    return ALWAYS | with_validity(keys - UNLABELED)


def with_validity(keys: frozenset[str]) -> frozenset[str]:
    """Depth never comes without the mask that says where it means something."""
    return keys | {"depth_valid"} if "depth" in keys else keys


# Frames without a depth file: an error, or frames whose depth is never valid.


ERROR, IGNORE = "error", "ignore"
MAX_LISTED = 20  # frames that a line names


@runtime_checkable
class MayLackDepth(Protocol):
    """Frames that know which of them have no depth file."""

    def without_depth(self) -> Collection[int]:
        """Indices of the frames that are loaded without a reading for want of a file."""
        ...


def depth_policy(depth_missing: str) -> str:
    """``data.source.depth_missing``, checked: ``error``, or ``ignore``: depth without a reading, the rest as ever."""
    if depth_missing not in (ERROR, IGNORE):
        raise ConfigError(f"data.source.depth_missing={depth_missing}: must be {ERROR} or {IGNORE}")
    return depth_missing


def missing_files(missing: Sequence[Path], depths: Collection[Path | None]) -> DataError:
    """The error of a split that needs all of its files; where only depths are missing it says how to do without."""
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    without = all(path in depths for path in missing)
    advice = ", or data.source.depth_missing=ignore goes on without its depth" if without else ""
    return DataError(f"{missing[0]}: no such file{more}; every frame of the split needs it{advice}")


def absent(depths: Iterable[Path | None]) -> frozenset[int]:
    """Which of the frames' depth files are not there."""
    return frozenset(index for index, path in enumerate(depths) if path is None or not path.is_file())


def no_reading(size: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The depth ``[H, W]`` of a frame without a file, and its mask: nothing is valid."""
    return np.zeros(size, np.float32), np.zeros(size, np.bool_)


def without_depth(frames: Frames) -> Collection[int]:
    """Indices of the frames without a depth file, as far as they are loaded all the same."""
    return frames.without_depth() if isinstance(frames, MayLackDepth) else ()


def with_some_depth(frames: Frames, split: str) -> Frames:
    """The frames; ``DataError`` where depth is asked for and not one of them has its file."""
    if len(frames) and len(without_depth(frames)) == len(frames):
        raise DataError(
            f"none of the {len(frames)} frames of split {split} has a depth file ({frames.name(0)} is the first); "
            "what learns from depth needs some, data.source.depth_missing=ignore only does without a few"
        )
    return frames


def missing_depth_text(frames: Frames, split: str) -> str | None:
    """A line that counts and names the frames without a depth file (the first twenty); None where all have theirs."""
    names = [frames.name(index) for index in sorted(without_depth(frames))]
    if not names:
        return None
    more = f", and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return (
        f"depth_missing=ignore: {len(names)} of {len(frames)} {split} frames have no depth file and take no part in "
        f"what uses depth: {', '.join(names[:MAX_LISTED])}{more}"
    )
