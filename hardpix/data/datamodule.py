"""The one LightningDataModule: any source, its transforms and its loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from itertools import islice
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hardpix.config.schema import Count, InnerShare, PositiveShare, Seed, Whole, checked
from hardpix.data.loading import (
    Finish,
    Loader,
    SemiDataset,
    Skips,
    SplitDataset,
    Transform,
    collate,
    collate_semi,
    fault_or_batch,
    to_batch,
)
from hardpix.data.sampling import IMAGE, EvalSampler, LabeledSplit, SemiSampler, TrainSampler
from hardpix.data.source import ALWAYS, UNLABELED, Frames, Sample, Source, needed
from hardpix.data.statistics import LABEL, frame_counts, repeat_factors, sample_labels, target_mean
from hardpix.data.union import overlap_remarks, split_frames
from hardpix.types import Batch, ClassCounts, DataError, DatasetInfo


class DataModule(pl.LightningDataModule):
    """Loads the splits of a source.

    The order of frames and every random choice are functions of (seed, epoch, index, repeat): neither the number
    of workers nor a restart changes them. Run it under ``Trainer(use_distributed_sampler=False)``: it shares the
    frames out itself, equally in training and without counting any twice in evaluation.

    batch_size, eval_batch_size: frames per process; frames that differ in size evaluate one by one.
    pin_memory: page-locked buffers for the transfer; only ever where there is a CUDA device.
    drop_last: leave out the last, smaller batch of a training epoch.
    repeat_rare: show frames with rare classes more often: a class in the share f of the training frames asks for
    sqrt(repeat_rare / f) times (LVIS, Gupta et al. 2019); None shows every frame once an epoch.
    labeled: which training frames have labels, see :func:`hardpix.data.sampling.choose_labeled`; None: all. They are
    the training split for all purposes. The labels of the others are never read; methods that learn without labels
    are given their images, ``unlabeled_batch_size`` (None: ``batch_size``) in each batch, and an epoch then is one
    pass over these.
    labeled_seed: of a share's choice; not the run's, so that the seeds of a study compare the same subset.
    on_error, max_skip: training frames that cannot be read, see :class:`hardpix.data.loading.Skips`. In evaluation
    such a frame always ends the run: a score without it would be another score.
    accept_change: go on with a run whose data set has changed since it began.
    """

    @checked
    def __init__(
        self,
        source: Source,
        *,
        train_transform: Transform,
        test_transform: Transform,
        batch_size: Count,
        eval_batch_size: Count,
        num_workers: Whole,
        seed: Seed,
        pin_memory: bool,
        drop_last: bool,
        repeat_rare: PositiveShare | None = None,
        labeled: str | InnerShare | None = None,
        labeled_seed: Seed = 0,
        unlabeled_batch_size: Count | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        on_error: Literal["stop", "skip"] = "stop",
        max_skip: Whole = 0,
        accept_change: bool = False,
    ) -> None:
        super().__init__()
        self.source = source
        self._train = LabeledSplit(source, train_split, labeled, labeled_seed)
        self.unlabeled_batch_size = unlabeled_batch_size or batch_size
        self._transforms = {"train": train_transform, "test": test_transform}
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.seed = num_workers, seed
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._drop_last, self._repeat_rare = drop_last, repeat_rare
        self._splits = {"train": train_split, "val": val_split, "test": test_split}
        self._keys, self._semi = ALWAYS, False
        self.skips, self.accept_change = Skips(on_error, max_skip), accept_change

    @property
    def info(self) -> DatasetInfo:
        return self.source.info

    def use(self, keys: frozenset[str]) -> None:
        """Load these keys (and image and label, always); a ``DataError`` names those the data set lacks."""
        self._keys = needed(keys, self.info, all_labelled=self._train.whole)
        self._semi = keys >= UNLABELED

    def labeled_frames(self) -> dict[str, int]:
        """``{"train": n, "unlabeled": m}`` where only n have labels; the others are counted if the method sees them."""
        numbers = {} if self._train.whole else self._train.numbers()
        return {k: number for k, number in numbers.items() if k == "train" or self._semi}

    @property
    def class_counts(self) -> Callable[[], ClassCounts]:
        """Call it for the pixel statistics of the training labels, before any augmentation; kept on disk.

        It holds the source alone, so a loss that keeps it can be copied without this module and its trainer.
        """
        return self._train.counts

    def training_labels(self, count: int) -> Iterator[Tensor]:
        """Labels ``[1, H, W]`` int64 of ``count`` evenly spaced training frames (or all), before any augmentation."""
        return sample_labels(self._train.frames(LABEL), count)

    def training_mean(
        self, values: Callable[[Sample], Tensor], keys: frozenset[str], **named: str
    ) -> float | None:
        """:func:`target_mean` over the training frames as stored, ``keys`` of each; unreadable ones may be skipped."""
        unreadable = DataError if self.skips.allowed else ()
        return target_mean(self._train.frames(keys), values, **named, unreadable=unreadable)

    def remarks(self) -> tuple[str, ...]:
        """What a run's start prints, a line each: what becomes of label values, and how often frames repeat."""
        overlap = overlap_remarks(self.source, *self._splits.values())
        lines = (*self.source.remarks(), *self._train.remarks(), *overlap)
        if self._repeats is None:
            return lines
        most, total = self._repeats.max(), self._repeats.sum()
        line = (
            f"repeat_rare {self._repeat_rare}: an epoch shows {len(self._repeats)} frames {total:.0f} times, "
            f"{(self._repeats > 1).sum()} of them more than once, up to {most:.1f} times"
        )
        return (*lines, line)

    @property
    def splits(self) -> Mapping[str, str]:
        """The name of the split of ``train``, ``val`` and ``test``."""
        return self._splits

    def train_dataloader(self) -> DataLoader:
        dataset = self._training_dataset()
        if self._semi:
            return self._semi_loader(dataset)
        rank, world_size = self._process()
        sampler = TrainSampler(
            len(dataset), seed=self.seed, rank=rank, world_size=world_size, repeats=self._repeats
        )
        least = self.batch_size if self._drop_last else 1
        if len(sampler) < least:
            raise DataError(
                f"split {self._splits['train']} of {self.info.name} has {len(dataset)} frames for "
                f"{world_size} process(es), too few for a batch of {self.batch_size}; lower data.batch_size"
            )
        return self._loader(dataset, sampler, self.batch_size, drop_last=self._drop_last)

    def _semi_loader(self, labeled: SplitDataset) -> DataLoader:
        frames, transform = self._train.without_labels(), self._transforms["train"]
        unlabeled = self._under(frames, transform, IMAGE, self.skips.allowed)
        rank, world_size = self._process()
        sampler = SemiSampler(
            len(labeled),
            len(unlabeled),
            labeled_each=self.batch_size,
            unlabeled_each=self.unlabeled_batch_size,
            seed=self.seed,
            drop_last=self._drop_last,
            rank=rank,
            world_size=world_size,
            repeats=self._repeats,
        )
        if not sampler.batches:
            raise DataError(
                f"split {self._splits['train']} of {self.info.name} has {len(unlabeled)} frames without labels for "
                f"{world_size} process(es), too few for a batch of {self.unlabeled_batch_size}; lower "
                "data.labeled or data.unlabeled_batch_size"
            )
        return self._loader(
            SemiDataset(labeled, unlabeled),
            sampler,
            sampler.each,
            drop_last=False,
            collate_fn=partial(collate_semi, labeled=self.batch_size),
        )

    def state_dict(self) -> dict[str, Any]:
        """With a checkpoint: the frames that were skipped so far."""
        return {"skipped": dict(self.skips.found)} if self.skips.found else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skips.found = dict(state_dict["skipped"])

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self._finish(batch)

    def training_frames(self, epoch: int, count: int) -> Iterator[Batch]:
        """The first ``count`` frames of an epoch of one process, each a batch of its own, as a method sees it."""
        dataset = self._training_dataset()
        sampler = TrainSampler(len(dataset), seed=self.seed, repeats=self._repeats)
        sampler.set_epoch(epoch)
        for draw in islice(sampler, count):
            yield self._finish(fault_or_batch(collate([dataset[draw]])))

    def evaluation_dataset(self, split: str) -> SplitDataset:
        """The frames of ``train``, ``val`` or ``test`` as evaluation sees them."""
        if split not in self._splits:
            raise DataError(f"split {split!r} is unknown; the roles are {', '.join(self._splits)}")
        return self._dataset(split, self._transforms["test"])

    def evaluation_batch(self, split: str, index: int) -> Batch:
        """Frame ``index`` of a split alone, as a method sees it (on the CPU)."""
        return self._finish(fault_or_batch(collate([self.evaluation_dataset(split)[0, index]])))

    def evaluation_loader(self, split: str) -> DataLoader:
        """Each frame of a split once, in order, as finished batches: for use without this module's hooks."""
        return self._eval_loader(split, finish=self._finish)

    @cached_property
    def _repeats(self) -> NDArray[np.float64] | None:
        """How often an epoch shows each training frame; None: once."""
        if self._repeat_rare is None:
            return None
        return repeat_factors(frame_counts(self._train.frames(LABEL), self.info), self._repeat_rare)

    def _eval_loader(self, split: str, finish: Finish | None = None) -> Loader:
        dataset = self.evaluation_dataset(split)
        rank, world_size = self._process()
        sampler = EvalSampler(len(dataset), rank=rank, world_size=world_size)
        return self._loader(dataset, sampler, self.eval_batch_size, drop_last=False, finish=finish)

    def _finish(self, batch: dict[str, Any]) -> Batch:
        return to_batch(batch, self.info)

    def full_split(self, role: str) -> Frames:
        """The frames of ``train``, ``val`` or ``test``; of a partly labelled one those without labels too."""
        if role == "train" and not self._train.whole:
            return self._train.images()
        return self.evaluation_dataset(role).frames

    def _frames(self, role: str, keys: frozenset[str]) -> Frames:
        """Those of ``train``, ``val`` or ``test``."""
        if role == "train":
            return self._train.frames(keys)
        return split_frames(self.source, self._splits[role], keys)

    def _dataset(self, role: str, transform: Transform) -> SplitDataset:
        return self._under(self._frames(role, self._keys), transform, self._keys)

    def _training_dataset(self) -> SplitDataset:
        frames = self._frames("train", self._keys)
        return self._under(frames, self._transforms["train"], self._keys, self.skips.allowed)

    def _under(
        self, frames: Frames, transform: Transform, keys: frozenset[str], max_skip: int = 0
    ) -> SplitDataset:
        return SplitDataset(frames, transform, keys=keys, info=self.info, seed=self.seed, max_skip=max_skip)

    def _loader(
        self,
        dataset: Dataset,
        sampler: Sampler,
        batch_size: int,
        *,
        drop_last: bool,
        finish: Finish | None = None,
        collate_fn: Callable[..., Any] = collate,
    ) -> Loader:
        return Loader(
            dataset,
            skips=self.skips if isinstance(sampler, TrainSampler) else None,
            finish=finish,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate_fn,
            drop_last=drop_last,
            pin_memory=self._pin_memory,
            persistent_workers=self.num_workers > 0,
            # Of its own, so that opening a loader takes no number from the generator that seeds the model.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _process(self) -> tuple[int, int]:
        """Rank of this process and the number of processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
