"""Several splits as one: ``trainval``, or splits joined by ``+``."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hardpix.data.source import CameraFrames, Frames, Sample, Source, without_depth
from hardpix.data.statistics import LabelFrames, fingerprint, stored


def parts_of(source: Source, split: str) -> tuple[str, ...]:
    """:meth:`Source.parts`; a source of another kind has no unions."""
    return source.parts(split) if isinstance(source, Source) else (split,)


def split_frames(source: Source, split: str, keys: frozenset[str]) -> Frames:
    """``source.frames`` of a split, or of the splits that make it up."""
    parts = parts_of(source, split)
    return joined(parts, [source.frames(part, keys) for part in parts])


def joined(splits: Sequence[str], parts: Sequence[Frames]) -> Frames:
    """The frames of ``parts`` one after the other; what one of them cannot do, the union cannot."""
    if len(parts) == 1:
        return parts[0]
    labels = all(isinstance(frames, LabelFrames) for frames in parts)
    cameras = all(isinstance(frames, CameraFrames) for frames in parts)
    kind = {(True, True): _WithBoth, (True, False): _WithLabels, (False, True): _WithCameras}
    return kind.get((labels, cameras), Joined)(splits, parts)


class Joined:
    """Splits one after the other.

    A frame keeps its name where the names of all parts differ; else each has its split's before it: ``val__0001``.
    """

    def __init__(self, splits: Sequence[str], parts: Sequence[Frames]) -> None:
        self._splits, self._parts = tuple(splits), tuple(parts)
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def name(self, index: int) -> str:
        return self._names[index]

    def load(self, index: int) -> Sample:
        frames, place = self._at(index)
        sample = frames.load(place)
        sample["name"] = self.name(index)
        return sample

    def stored(self) -> Iterator[Path | str]:
        """The files of all parts."""
        for frames in self._parts:
            yield from stored(frames)

    def without_depth(self) -> Collection[int]:
        starts = [end - len(frames) for end, frames in zip(self._ends, self._parts, strict=True)]
        pairs = zip(starts, self._parts, strict=True)
        return [start + place for start, frames in pairs for place in without_depth(frames)]

    def _at(self, index: int) -> tuple[Any, int]:
        """The part that has frame ``index``, and its place there."""
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        part = bisect_right(self._ends, index)
        return self._parts[part], index - (self._ends[part] - len(self._parts[part]))

    @cached_property
    def _names(self) -> list[str]:
        own = [(s, f.name(i)) for s, f in zip(self._splits, self._parts, strict=True) for i in range(len(f))]
        unique = max(Counter(name for _, name in own).values(), default=1) == 1
        return [name if unique else f"{split}__{name}" for split, name in own]


class _WithLabels(Joined):
    def label(self, index: int) -> Tensor:
        frames, place = self._at(index)
        return frames.label(place)

    def fingerprint(self) -> str:
        """Of the labels of all parts."""
        parts: Any = self._parts
        return hashlib.sha256("\n".join(frames.fingerprint() for frames in parts).encode()).hexdigest()


class _WithCameras(Joined):
    def intrinsics(self, index: int) -> NDArray[np.float64] | None:
        frames, place = self._at(index)
        return frames.intrinsics(place)


class _WithBoth(_WithLabels, _WithCameras):
    pass


def overlap_remarks(source: Source, train: str, *others: str) -> tuple[str, ...]:
    """A line for each split of ``others`` whose frames are among those of a union that is trained on."""
    parts = parts_of(source, train)
    if len(parts) == 1:
        return ()
    trained = {fingerprint(source.frames(part, frozenset({"image"}))): part for part in parts}
    lines = []
    for split in dict.fromkeys(others):
        every = [fingerprint(source.frames(part, frozenset({"image"}))) for part in parts_of(source, split)]
        if shared := [trained[one] for one in every if one in trained]:
            lines.append(
                f"data.train_split={train}: the frames of {' and '.join(shared)} are trained on, so scores on the "
                f"split {split} are those of training frames"
            )
    return tuple(lines)
