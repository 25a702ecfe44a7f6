"""Which frames a process sees, and the random numbers of each: functions of (seed, epoch, index) alone.

Neither the number of workers, nor which worker draws a frame, nor a resumed run changes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

Draw = tuple[int, int]  # epoch, index


class TrainSampler(Sampler[Draw]):
    """A new order of the frames each epoch, dealt to ``world_size`` processes in turn, equally many to each.

    The last ``frames % world_size`` frames of the order are left out; the order differs from epoch to epoch.
    """

    def __init__(self, frames: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.frames, self.seed, self.rank, self.world_size = frames, seed, rank, world_size
        self.epoch = 0
        self.skip = 0  # frames of this process that a resumed epoch has behind it

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.frames // self.world_size

    def __iter__(self) -> Iterator[Draw]:
        order = torch.randperm(self.frames, generator=generator(self.seed, self.epoch)).tolist()
        dealt = order[: len(self) * self.world_size]
        return iter([(self.epoch, index) for index in dealt[self.rank :: self.world_size]][self.skip :])


class EvalSampler(Sampler[Draw]):
    """Every frame once over all processes: shares differ by one frame where they do not divide."""

    def __init__(self, frames: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, frames, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Draw]:
        return iter([(0, index) for index in self.indices])


def generator(*key: int) -> torch.Generator:
    """Random numbers that depend on the key alone."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
