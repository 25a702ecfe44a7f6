"""From frames to batches: the data set of a split, checks of samples, collation, unreadable frames."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from hardpix.data.images import read_colour, traits
from hardpix.data.sampling import Draw, TrainSampler, generator
from hardpix.data.source import Frames, Sample
from hardpix.data.statistics import cache_dir, fingerprint, stamp, write_json
from hardpix.data.transforms import Transformed
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
        return too_many_skipped(skipped, self.max_skip)

    def _read(self, index: int, draw: Draw) -> Transformed | DataError:
        try:
            sample = checked_sample(self.frames.load(index), self.info)
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
        # A generator: its body runs at the first batch, when Lightning has set the sampler's epoch.
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
        with workers_ignore_signals(self):
            iterator = super()._get_iterator()
        kill_at_exit(getattr(iterator, "_workers", []))
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


# Checks of every decoded frame, whichever source it came from.
#
# A label that is no class would end a process on a GPU without a word about the file.


def checked_sample(sample: Sample, info: DatasetInfo) -> Sample:
    """The sample, with only finite positive readings valid in its depth, and none that is not finite.

    Raises ``DataError`` that names the frame where its tensors differ in size or its label is no class.
    """
    height, width = sample["image"].shape[-2:]
    for key in ("label", "depth", "depth_valid", "hardness"):
        other = sample.get(key)
        if isinstance(other, Tensor) and tuple(other.shape) != (height, width):
            raise DataError(
                f"{sample['name']}: its image measures {width}x{height} pixels but its {key} "
                f"{'x'.join(map(str, reversed(other.shape)))}; both must have one size"
            )
    if "label" in sample:
        check_label(sample["label"], info, sample["name"])
    return mask_invalid_depth(sample) if "depth" in sample and "depth_valid" in sample else sample


@runtime_checkable
class ImageFiles(Protocol):
    """Frames whose images are files."""

    image_files: Sequence[Path]
    image_range: tuple[float, float] | None


def check_images(frames: Frames, *, lenient: bool) -> None:
    """Raise ``DataError`` where an image cannot be read by its header, or has other bits than ``image_range`` says.

    ``lenient``: what cannot be opened is left to whoever loads it. Of frames without files the first one is tried.
    What was found right is known in :func:`hardpix.data.statistics.cache_dir` until a file changes.
    """
    if not isinstance(frames, ImageFiles):
        if len(frames) and not lenient:
            frames.load(0)
        return
    facts = f"{fingerprint(frames)} {stamp(frames)} {frames.image_range}"
    passed = cache_dir() / "images" / f"{hashlib.sha256(facts.encode()).hexdigest()}.json"
    if passed.is_file():
        return

    def check(index: int) -> None:
        path = frames.image_files[index]
        try:
            found = traits(path)
            if found.odd or found.deep == (frames.image_range is None):
                read_colour(path, frames.image_range)
        except DataError as error:
            if not lenient:
                raise DataError(f"{error} (frame {index} of {len(frames)})") from None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(len(frames))))
    with suppress(OSError):
        write_json(passed, {"images": len(frames)})


def check_label(label: Tensor, info: DatasetInfo, name: str) -> None:
    """Raise ``DataError`` unless every pixel is a class index or the ignored value."""
    if label.dtype not in (torch.uint8, torch.int64):
        raise DataError(f"{name}: its label is {label.dtype}; it must be uint8 or int64 class indices")
    values = label.numpy()
    # With void in the middle of the numbers the largest would tell nothing; added to, 255 becomes 0.
    wraps = values.dtype == np.uint8 and info.ignore_index == 255
    if wraps and int((values + np.uint8(1)).max(initial=0)) <= info.num_classes:
        return
    wrong = (values != info.ignore_index) & ((values < 0) | (values >= info.num_classes))
    if not wrong.any():
        return
    value = int(values[wrong][0])
    raise DataError(
        f"{name}: label {value} ({int((values == value).sum())} pixels) is no class of {info.name}; "
        f"its classes are 0..{info.num_classes - 1}, {info.ignore_index} is void"
    )


def mask_invalid_depth(sample: Sample) -> Sample:
    """NaN, infinite, negative and zero depth is no reading."""
    depth, valid = sample["depth"].numpy(), sample["depth_valid"].numpy()
    positive = depth > 0  # False of NaN
    if np.isfinite(depth.sum(dtype=np.float32)) and not (valid & ~positive).any():
        return sample
    valid = valid & positive & (depth < np.inf)
    kept = torch.from_numpy(np.where(valid, depth, np.float32(0)))
    return {**sample, "depth": kept, "depth_valid": torch.from_numpy(valid)}


# Unreadable training frames: stop, or count and replace.


SKIPPED = "skipped"  # in a batch on its way to the main process: {name of a frame: what is wrong with it}
MAX_NAMED = 20  # frames that an error names


class Skips:
    """Those of a run: which frames could not be read, and when there are too many of them.

    on_error: ``stop``, or ``skip``, which gives a frame's place in the batch to the next readable one of the split.
    max_skip: how many different frames may be skipped in a run (in each process).
    """

    def __init__(self, on_error: str, max_skip: int) -> None:
        self.allowed = max_skip if on_error == "skip" else 0
        self.found: dict[str, str] = {}

    def take(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch without what was skipped for it; each frame is printed once, and counted."""
        for name, reason in batch.pop(SKIPPED, {}).items():
            if name in self.found:
                continue
            self.found[name] = reason
            if len(self.found) > self.allowed:
                raise too_many_skipped(self.found, self.allowed)
            print(f"skipped ({len(self.found)} of at most {self.allowed}): {reason}", flush=True)
        return batch


def too_many_skipped(found: dict[str, str], allowed: int) -> DataError:
    """The error that names all frames (the first twenty) which could not be read."""
    summary = "; ".join(list(found.values())[:MAX_NAMED])
    more = f"; and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return DataError(
        f"{len(found)} training frames cannot be read, and data.max_skip={allowed} of them may be skipped: "
        f"{summary}{more}; repair them or raise data.max_skip"
    )


# Processes that load data: signals that are meant for a run do not end them, and they end with the run.


# What a terminal, `timeout`, a cluster or a container sends to all processes of a run.
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
PR_SET_PDEATHSIG = 1  # of prctl, Linux alone


@contextmanager
def workers_ignore_signals(loader: DataLoader) -> Iterator[None]:
    """Workers that ``loader`` starts in the block ignore ``SIGNALS``, from their first moment on.

    They are forked with these signals blocked, and then ignore them: torch sets its own handlers before it calls
    ``worker_init_fn``.
    """
    inner = loader.worker_init_fn
    main = threading.current_thread() is threading.main_thread()
    loader.worker_init_fn = partial(_start_worker, inner, os.getpid() if main else None)
    blocked = (
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if hasattr(signal, "pthread_sigmask") else None
    )
    try:
        with _handlers_deferred() if main else nullcontext():
            yield
    finally:
        if blocked is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        loader.worker_init_fn = inner


@contextmanager
def _handlers_deferred() -> Iterator[None]:
    """Python's handlers of ``SIGNALS`` run after the block.

    Another thread may take a signal that the main one blocks; an exception of a handler would be lost in the
    callbacks of a fork, which hold locks.
    """
    received: list[int] = []
    handlers: dict[int, Any] = {one: signal.getsignal(one) for one in SIGNALS}
    handlers = {one: handler for one, handler in handlers.items() if callable(handler)}
    for one in handlers:
        signal.signal(one, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
        for number in received:
            handlers[number](number, None)


def _start_worker(inner: Callable[[int], Any] | None, parent: int | None, number: int) -> None:
    """In a worker."""
    signal.set_wakeup_fd(-1)  # the parent's
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if parent is not None:
        end_with_parent(parent)
    if inner is not None:
        inner(number)


def end_with_parent(parent: int | None = None) -> None:
    """Have the system end this process when the thread that started it ends, however it ends.

    ``parent``: its process; one that is gone already ends this one here. Elsewhere than on Linux nothing is done:
    torch's workers look after their parent every five seconds.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os._exit(1)


def kill_at_exit(workers: list[Any]) -> None:
    """Have those that do not end by themselves killed: torch and multiprocessing send SIGTERM, which they ignore."""
    _quiet_exit()
    for worker in workers:
        process = getattr(worker, "_popen", None)
        if process is not None and hasattr(process, "kill"):
            process.terminate = process.kill


@cache
def _quiet_exit() -> None:
    """Where multiprocessing ends workers as the program exits, torch's handler must not take it for a fault."""
    if hasattr(signal, "SIGCHLD"):
        atexit.register(signal.signal, signal.SIGCHLD, signal.SIG_DFL)
