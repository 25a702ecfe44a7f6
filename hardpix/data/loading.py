"""From frames to batches: one split's data set, collation, and a loader that reports faults in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from hardpix.data.base import Frames, Sample
from hardpix.data.sample_check import checked
from hardpix.data.sampling import Draw, TrainSampler, generator
from hardpix.data.skipping import SKIPPED, Skips, too_many
from hardpix.data.transforms import Transformed
from hardpix.data.workers import killable, shielded
from hardpix.types import Batch, DataError, DatasetInfo

Finish = Callable[[dict[str, Any]], Batch]


class Transform(Protocol):
    """Sample -> tensors that collate; every random choice comes from ``rng``."""

    def __call__(self, sample: Sample, rng: torch.Generator, ignore_index: int) -> Transformed: ...


class SplitDataset(Dataset):
    """One split under a transform, indexed by (epoch, index) or (epoch, index, repeat).

    A ``DataError`` is returned, not raised: a loader worker would wrap it in the text of its stack trace.
    :class:`Loader` raises it in the main process.

    max_skip: the next readable one of up to so many further frames takes the place of one that is not, under the
    same random numbers, and says so; 0 is none.
    """

    def __init__(
        self,
        frames: Frames,
        transform: Transform,
        *,
        keys: frozenset[str],
        info: DatasetInfo,
        seed: int,
        max_skip: int = 0,
    ) -> None:
        self.frames, self.transform, self.keys = frames, transform, keys
        self.info, self.seed, self.max_skip = info, seed, max_skip

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, draw: Draw) -> Transformed | DataError:
        return self.at(draw[1], draw)

    def at(self, index: int, draw: Draw) -> Transformed | DataError:
        """Frame ``index``, with the random numbers of ``draw``."""
        skipped: dict[str, str] = {}
        for place in range(min(self.max_skip + 1, len(self))):
            other = (index + place) % len(self)
            found = self._read(other, draw)
            if isinstance(found, Transformed):
                return found._replace(skipped=skipped) if skipped else found
            if not self.max_skip:
                return found
            skipped[self.frames.name(other)] = str(found)
        return too_many(skipped, self.max_skip)

    def _read(self, index: int, draw: Draw) -> Transformed | DataError:
        try:
            sample = checked(self.frames.load(index), self.info)
            wanted = {k: v for k, v in sample.items() if k in self.keys or k in ("image", "name")}
            rng = generator(self.seed, *draw)
            return self.transform(wanted, rng, self.info.ignore_index)  # type: ignore[arg-type]
        except DataError as error:
            return DataError(f"{error} (frame {index} of {len(self)})")


class SemiDataset(Dataset):
    """Labelled frames, and after them images without labels, under one index."""

    def __init__(self, labeled: SplitDataset, unlabeled: SplitDataset) -> None:
        self.labeled, self.unlabeled = labeled, unlabeled

    def __len__(self) -> int:
        return len(self.labeled) + len(self.unlabeled)

    def __getitem__(self, draw: Draw) -> Transformed | DataError:
        after = draw[1] - len(self.labeled)
        return self.labeled[draw] if after < 0 else self.unlabeled.at(after, draw)


def collate_semi(items: Sequence[Transformed | DataError], *, labeled: int) -> dict[str, Any] | DataError:
    """:func:`collate` of the first ``labeled`` items, and the images of the others as ``unlabeled``."""
    batch, others = collate(items[:labeled]), collate(items[labeled:])
    for fault in (batch, others):
        if isinstance(fault, DataError):
            return fault
    assert isinstance(batch, dict)
    assert isinstance(others, dict)
    together = batch | {"unlabeled": others["image"], "unlabeled_extent": others["extent"]}
    skipped = batch.get(SKIPPED, {}) | others.get(SKIPPED, {})
    return together | {SKIPPED: skipped} if skipped else together


def collate(items: Sequence[Transformed | DataError]) -> dict[str, Any] | DataError:
    """Stack the tensors of samples of one size; ``extent`` ``[B, 2]`` says how much of each is picture."""
    samples: list[Transformed] = []
    for item in items:
        if isinstance(item, DataError):
            return item
        samples.append(item)
    first = samples[0]
    for other in samples[1:]:
        if other.tensors["image"].shape != first.tensors["image"].shape:
            return DataError(
                f"{first.name} and {other.name} differ in size and do not fit in one batch; "
                "set data.eval_batch_size=1 or a fixed data.test_transform.resize"
            )
    batch: dict[str, Any] = {k: default_collate([s.tensors[k] for s in samples]) for k in first.tensors}
    batch["name"] = [sample.name for sample in samples]
    batch["extent"] = torch.tensor([sample.extent for sample in samples])
    if skipped := {name: reason for sample in samples for name, reason in sample.skipped.items()}:
        batch[SKIPPED] = skipped
    return batch


class Loader(DataLoader):
    """A ``DataLoader`` that raises a worker's ``DataError`` as itself and can go on within an epoch.

    Lightning saves ``state_dict`` with a checkpoint. After a restart in the same epoch the batches that were
    already trained on are passed over (by the sampler: nothing is decoded for them).
    """

    def __init__(
        self, dataset: Dataset, *, skips: Skips | None = None, finish: Finish | None = None, **kwargs: Any
    ) -> None:
        """``skips`` counts frames that were not read and ``finish`` is applied to each batch, in the main process.

        The rest is ``DataLoader``'s.
        """
        super().__init__(dataset, **kwargs)
        self._skips, self._finish = skips, finish
        self._epoch, self._yielded = 0, 0
        self._resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: its body runs at the first batch, when Lightning has told the sampler the epoch.
        self._start()
        for batch in super().__iter__():
            batch = fault_or_batch(batch)
            self._yielded += 1
            if self._skips is not None:
                batch = self._skips.take(batch)
            yield self._finish(batch) if self._finish else batch

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            return super()._get_iterator()
        with shielded(self):
            iterator = super()._get_iterator()
        killable(getattr(iterator, "_workers", []))
        return iterator

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "batches": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume = dict(state)

    def _start(self) -> None:
        state, self._resume = self._resume, None
        self._epoch, self._yielded = 0, 0
        if not isinstance(self.sampler, TrainSampler):
            return
        self._epoch = self.sampler.epoch
        if state is not None and state["epoch"] == self._epoch and state["batches"] < len(self):
            self._yielded = state["batches"]
        self.sampler.skip = self._yielded * (self.batch_size or 1)


def fault_or_batch(batch: dict[str, Any] | DataError) -> dict[str, Any]:
    """Raise the fault that came in a batch's place."""
    if isinstance(batch, DataError):
        # A new one: raised itself, it and the frames that hold it as `batch` would be a cycle. Workers that
        # only the garbage collector ends have lost their queues by then, and each is waited for 5 seconds.
        raise DataError(*batch.args)
    return batch


def to_batch(batch: dict[str, Any], info: DatasetInfo) -> Batch:
    """A collated batch, on its device, as methods see it (:class:`hardpix.types.Batch`).

    The image is normalised and its padding set to exactly 0; labels become int64. A finished batch stays as it
    is.
    """
    if "extent" not in batch:
        return cast(Batch, batch)
    out = {key: value for key, value in batch.items() if key not in ("extent", "unlabeled_extent", SKIPPED)}
    out["image"] = normalise(batch["image"], batch["extent"], info)
    if "unlabeled" in out:
        out["unlabeled"] = normalise(batch["unlabeled"], batch["unlabeled_extent"], info)
    if "label" in out:
        out["label"] = batch["label"].long()
    return cast(Batch, out)


def normalise(image: Tensor, extent: Tensor, info: DatasetInfo) -> Tensor:
    """``[B, 3, H, W]`` uint8 -> float32 ``(x - mean) / std``; 0 outside each ``extent`` (height, width)."""
    mean = torch.tensor(info.mean, device=image.device)[:, None, None]
    std = torch.tensor(info.std, device=image.device)[:, None, None]
    out = image.float().sub_(mean).div_(std)
    height, width = image.shape[-2:]
    rows = torch.arange(height, device=image.device) < extent[:, :1]
    columns = torch.arange(width, device=image.device) < extent[:, 1:]
    padding = ~(rows[:, :, None] & columns[:, None, :])
    return out.masked_fill_(padding[:, None], 0.0)
