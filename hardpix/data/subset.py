"""Labelled subsets of a training split: a share of its frames, or those that a list names."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardpix.data.base import Frames, Sample, Source
from hardpix.data.files import FileSource
from hardpix.data.fingerprint import stored
from hardpix.data.listing import normal
from hardpix.data.missing_depth import with_some_depth, without_depth
from hardpix.data.sampling import generator
from hardpix.data.statistics import LABEL, LabelFrames, class_counts
from hardpix.data.union import joined, split_frames
from hardpix.ranges import InnerShare, checked
from hardpix.types import ClassCounts, DataError

IMAGE = frozenset({"image"})
ENDINGS = ("", "_leftImg8bit")  # what the stem of an image's file may have beyond its frame's name


@checked
def choose_labeled(labeled: str | InnerShare, seed: int, names: Sequence[str]) -> list[int]:
    """Ascending indices of the frames that keep their labels.

    labeled: a share in (0, 1), rounded to whole frames, one at least: the first ones of an order that depends on
        ``seed`` alone, so that of one seed a smaller share lies within a larger. Or the path of a list.
    names: of all frames of the split, in its order.
    """
    if isinstance(labeled, str):
        return sorted(listed(Path(labeled), names))
    count = max(1, int(len(names) * labeled + 0.5))
    order = torch.randperm(len(names), generator=generator(seed, len(names)))
    return sorted(order[:count].tolist())


def listed(path: Path, names: Sequence[str]) -> list[int]:
    """Indices of the frames that a text names, one a line: a frame's name, or the path of its image.

    What follows the path after a space (the path of the label, as in U2PL's lists) is passed over. A path stands for
    the frame whose name is its file's stem, or that with folders before it (``a/b.png``: ``b``, ``a__b``).
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"data.labeled={path}: no such file; it must name a frame per line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.labeled={path}: not readable as a text ({error})") from None
    names = [normal(name) for name in names]
    places = {name: index for index, name in enumerate(names)}
    by_stem: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        by_stem.setdefault(name.rpartition("__")[2], []).append(index)
    found: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        index = _named(normal(line.strip()), f"{path}: line {number}", names, places, by_stem)
        if index in found:
            raise DataError(
                f"{path}: line {number}: frame {names[index]} is there already (line {found[index]}); name it once"
            )
        found[index] = number
    if not found:
        raise DataError(f"{path}: the list is empty; it must name a frame per line")
    return list(found)


def _named(
    line: str, where: str, names: Sequence[str], places: dict[str, int], by_stem: dict[str, list[int]]
) -> int:
    """The one frame that a line stands for."""
    for name in _candidates(line):
        if name in places:
            return places[name]
    entry = line.split()[0]
    stem = PurePosixPath(entry.replace("\\", "/")).stem
    fitting = [index for ending in ENDINGS for index in by_stem.get(stem.removesuffix(ending), ())]
    fitting = list(dict.fromkeys(fitting))
    if len(fitting) > 1:
        told = ", ".join(names[index] for index in fitting[:3])
        raise DataError(f"{where}: {entry} may be {len(fitting)} frames ({told}); write the frame's name")
    if not fitting:
        raise DataError(
            f"{where}: {entry} is no frame of the training split; its names are like {names[0] if names else '-'}"
        )
    return fitting[0]


def _candidates(line: str) -> Iterator[str]:
    """Names that a line may write, the most literal first; of a path's folders the more the better."""
    yield from dict.fromkeys((line, line.split()[0]))
    for entry in dict.fromkeys((line, line.split()[0])):
        path = PurePosixPath(entry.replace("\\", "/"))
        folders = [part for part in path.parts[:-1] if part not in ("/", "..")]
        for start in range(len(folders) + 1):
            for ending in ENDINGS:
                if path.stem.endswith(ending):
                    yield "__".join((*folders[start:], path.stem.removesuffix(ending)))


class LabeledSplit:
    """The training split of a source, of whose frames all have labels or some.

    labeled: None for all, else what :func:`choose_labeled` takes, with ``seed``.
    """

    def __init__(self, source: Source, split: str, labeled: str | float | None, seed: int) -> None:
        self._source, self._split, self._labeled, self._seed = source, split, labeled, seed

    @property
    def whole(self) -> bool:
        return self._labeled is None

    def frames(self, keys: frozenset[str]) -> Frames:
        """Those with labels; the others need no label file."""
        return with_some_depth(self._labelled(keys), self._split)

    def _labelled(self, keys: frozenset[str]) -> Frames:
        source = self._source
        if self._labeled is None:
            return split_frames(source, self._split, keys)
        if isinstance(source, FileSource) and type(source).frames is FileSource.frames:
            return self._opened(source, keys)
        return chosen(split_frames(source, self._split, keys), self._indices)

    def _opened(self, source: FileSource, keys: frozenset[str]) -> Frames:
        """Those of the labelled frames alone: files of the others need not exist."""
        parts, passed = dict[str, Frames](), 0
        for part in source.parts(self._split):
            files = source.paired(part)
            kept = [files[i - passed] for i in self._indices if passed <= i < passed + len(files)]
            passed += len(files)
            for one in kept:
                source.refuse(one)
            if kept:
                parts[part] = source.open(part, kept, keys)
        return joined(list(parts), list(parts.values()))

    def images(self) -> Frames:
        """Those of the whole split."""
        return split_frames(self._source, self._split, IMAGE)

    def without_labels(self) -> Frames:
        """The images of the others."""
        known = set(self._indices)
        frames = self.images()
        return chosen(frames, [index for index in range(len(frames)) if index not in known])

    def numbers(self) -> dict[str, int]:
        """How many have labels and how many have none."""
        return {"train": len(self._indices), "unlabeled": len(self.images()) - len(self._indices)}

    def counts(self) -> ClassCounts:
        """Pixel statistics of the labels."""
        return class_counts(self.frames(LABEL), self._source.info)

    def remarks(self) -> tuple[str, ...]:
        if self._labeled is None:
            return ()
        total = len(self.images())
        return (f"labeled {self._labeled}: {len(self._indices)} of {total} training frames have labels",)

    @cached_property
    def _indices(self) -> list[int]:
        frames = self.images()
        names = [frames.name(index) for index in range(len(frames))]
        return (
            list(range(len(names)))
            if self._labeled is None
            else choose_labeled(self._labeled, self._seed, names)
        )


class Chosen:
    """Some frames of a split, under new indices."""

    def __init__(self, frames: Frames, indices: Sequence[int]) -> None:
        self._all, self._indices = frames, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def stored(self) -> Iterable[Path | str]:
        """The files of the whole split."""
        return stored(self._all)

    def without_depth(self) -> Collection[int]:
        lacking = without_depth(self._all)
        return [place for place, index in enumerate(self._indices) if index in lacking]

    def name(self, index: int) -> str:
        return self._all.name(self._indices[index])

    def load(self, index: int) -> Sample:
        return self._all.load(self._indices[index])


class ChosenLabels(Chosen):
    """Some frames of a split whose labels can be decoded alone."""

    _all: Any

    def label(self, index: int) -> Tensor:
        return self._all.label(self._indices[index])

    def fingerprint(self) -> str:
        """That of the split, and which of its frames these are."""
        places = np.array(self._indices, np.int64).tobytes()
        return hashlib.sha256(self._all.fingerprint().encode() + places).hexdigest()


def chosen(frames: Frames, indices: Sequence[int]) -> Frames:
    """The frames ``indices`` of a split, in that order."""
    return ChosenLabels(frames, indices) if isinstance(frames, LabelFrames) else Chosen(frames, indices)
