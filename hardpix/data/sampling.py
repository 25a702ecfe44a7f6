"""Which frames a process sees, and the random numbers of each: functions of (seed, epoch, index, repeat) alone.

Neither the number of workers, nor which worker draws a frame, nor a resumed run changes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

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
