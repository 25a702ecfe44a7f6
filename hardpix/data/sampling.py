"""Labelled subsets of a training split, and samplers as functions of (seed, epoch, index, repeat)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from hardpix.config.schema import InnerShare, checked
from hardpix.data.files import FileSource
from hardpix.data.listing import normal
from hardpix.data.source import Frames, Sample, Source, with_some_depth, without_depth
from hardpix.data.statistics import LABEL, LabelFrames, class_counts, stored
from hardpix.data.union import joined, split_frames
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
        summary = ", ".join(names[index] for index in fitting[:3])
        raise DataError(f"{where}: {entry} may be {len(fitting)} frames ({summary}); write the frame's name")
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


# Which frames a process sees, and the random numbers of each: functions of (seed, epoch, index, repeat)
# alone.
#
# Neither the number of workers, nor which worker draws a frame, nor a resumed run changes them.


Draw = (
    tuple[int, int] | tuple[int, int, int]
)  # epoch, index, and which repeat of the epoch where it is not the first


class TrainSampler(Sampler[Draw]):
    """A new order of the frames each epoch, dealt to ``world_size`` processes in turn, equally many to each.

    ``repeats`` ``[frames]``: how often an epoch shows each frame, at least 1. An epoch then has as many draws as
    these sum to, rounded; a frame whose share of them is 2.3 comes up twice or three times.

    The last ``draws % world_size`` of the order are left out; the order differs from epoch to epoch.
    """

    def __init__(
        self,
        frames: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeats: NDArray[np.float64] | None = None,
    ) -> None:
        self.frames, self.seed, self.rank, self.world_size = frames, seed, rank, world_size
        self.repeats = repeats
        self.draws = frames if repeats is None else round(float(repeats.sum()))
        self.epoch = 0
        self.skip = 0  # frames of this process that a resumed epoch has behind it

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.draws // self.world_size

    def __iter__(self) -> Iterator[Draw]:
        return iter(self._dealt(generator(self.seed, self.epoch))[self.skip :])

    def _dealt(self, rng: torch.Generator) -> list[Draw]:
        """The draws of this process in an epoch."""
        drawn = self._drawn(rng)
        order = torch.randperm(self.draws, generator=rng).tolist()
        dealt = order[: self.draws - self.draws % self.world_size]
        return [drawn[place] for place in dealt[self.rank :: self.world_size]]

    def _drawn(self, rng: torch.Generator) -> list[Draw]:
        """The draws of an epoch in the order of the frames."""
        if self.repeats is None:
            return [(self.epoch, index) for index in range(self.frames)]
        indices = systematic(self.repeats, self.draws, rng).tolist()
        drawn: list[Draw] = []
        repeat = 0
        for before, index in zip([-1, *indices], indices, strict=False):
            repeat = repeat + 1 if index == before else 0
            drawn.append((self.epoch, index, repeat) if repeat else (self.epoch, index))
        return drawn


class SemiSampler(TrainSampler):
    """For each batch ``labeled_each`` draws of labelled frames, then ``unlabeled_each`` of unlabelled ones.

    Loaded in batches of ``each`` in number, an epoch is one pass over the unlabelled frames. The labelled ones repeat
    as often as that takes (``repeats``: in these proportions), none twice as often as another. Unlabelled frames come
    after the labelled ones in the draws' indices.

    drop_last: leave out the last batch where the unlabelled frames do not fill it.
    """

    def __init__(
        self,
        labeled: int,
        unlabeled: int,
        *,
        labeled_each: int,
        unlabeled_each: int,
        seed: int,
        drop_last: bool,
        rank: int = 0,
        world_size: int = 1,
        repeats: NDArray[np.float64] | None = None,
    ) -> None:
        self.shown = unlabeled // world_size  # unlabelled frames of this process
        if drop_last:
            self.shown -= self.shown % unlabeled_each
        self.batches = -(-self.shown // unlabeled_each)
        shares = np.ones(labeled) if repeats is None else repeats
        draws = self.batches * labeled_each * world_size
        super().__init__(
            labeled, seed=seed, rank=rank, world_size=world_size, repeats=shares * (draws / shares.sum())
        )
        self.unlabeled, self.labeled_each, self.unlabeled_each = unlabeled, labeled_each, unlabeled_each

    @property
    def each(self) -> int:
        """Draws of a batch."""
        return self.labeled_each + self.unlabeled_each

    def __len__(self) -> int:
        return self.draws // self.world_size + self.shown

    def __iter__(self) -> Iterator[Draw]:
        labeled = self._dealt(generator(self.seed, self.epoch))
        order = torch.randperm(self.unlabeled, generator=generator(self.seed, self.epoch, "unlabeled"))
        own = order[self.rank :: self.world_size].tolist()[: self.shown]
        drawn: list[Draw] = []
        for batch in range(self.batches):
            drawn += labeled[batch * self.labeled_each :][: self.labeled_each]
            some = own[batch * self.unlabeled_each :][: self.unlabeled_each]
            drawn += [(self.epoch, self.frames + index) for index in some]
        return iter(drawn[self.skip :])


def systematic(shares: NDArray[np.float64], draws: int, rng: torch.Generator) -> Tensor:
    """``draws`` indices, ascending: each occurs as often as its share of the draws, rounded up or down.

    Systematic resampling: a comb of ``draws`` teeth, laid over the cumulated shares at one random offset.
    """
    ends = np.cumsum(shares) * (draws / shares.sum())
    teeth = torch.rand((), generator=rng, dtype=torch.float64).item() + np.arange(draws)
    return torch.from_numpy(np.searchsorted(ends, teeth, side="right").clip(max=len(shares) - 1))


class EvalSampler(Sampler[Draw]):
    """Every frame once over all processes: shares differ by one frame where they do not divide."""

    def __init__(self, frames: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, frames, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Draw]:
        return iter([(0, index) for index in self.indices])


def generator(*key: int | str) -> torch.Generator:
    """Random numbers that depend on the key alone."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
