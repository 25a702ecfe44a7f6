"""Frames whose depth file is missing: an error, or frames without a reading, which take no part in what uses depth."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hardpix.data.base import Frames
from hardpix.types import ConfigError, DataError

ERROR, IGNORE = "error", "ignore"
TOLD = 20  # frames that a line names


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


def told_without_depth(frames: Frames, split: str) -> str | None:
    """A line that counts and names the frames without a depth file (the first twenty); None where all have theirs."""
    names = [frames.name(index) for index in sorted(without_depth(frames))]
    if not names:
        return None
    more = f", and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return (
        f"depth_missing=ignore: {len(names)} of {len(frames)} {split} frames have no depth file and take no part in "
        f"what uses depth: {', '.join(names[:TOLD])}{more}"
    )
