"""Plan and run the check of a data set's frames in several processes."""

from __future__ import annotations

import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path

import torch

from hardpix.data.check_frames import Fault, FrameFacts, add_camera, add_traits, diagnose, examine
from hardpix.data.files import FileFrames, FileSource, FrameFiles
from hardpix.data.source import Frames, Sample, Source
from hardpix.types import DataError

LOADED_KEYS = frozenset({"image", "label", "depth", "depth_valid"})


@dataclass
class SplitPlan:
    """The frames of one split and where each is loaded from; pickles, for the processes that look at them."""

    source: Source
    split: str
    keys: frozenset[str]
    names: list[str] = field(default_factory=list)
    # What loads each frame and its place there; None where files are missing.
    groups: list[Frames] = field(default_factory=list)
    places: list[tuple[int, int] | None] = field(default_factory=list)
    files: list[FrameFiles] | None = None
    missing: dict[int, list[Fault]] = field(
        default_factory=dict
    )  # of frames that lack a file of the right kind
    unlabelled: list[int] = field(default_factory=list)  # frames that have no label by declaration
    strays: list[Path] = field(default_factory=list)
    left_out: tuple[str, ...] = ()  # what of the split's files is not read, a sentence each
    closed: str | None = None  # why the split cannot be opened at all
    same_as: str | None = None  # the split whose files these are, all of them

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Sample:
        place = self.places[index]
        if place is None:
            raise DataError(self.missing[index][0].sentence)
        return self.groups[place[0]].load(place[1])

    def look(self, index: int) -> FrameFacts:
        """The facts of frame ``index``; whatever it raises is a fault of its own."""
        if index in self.missing:
            return FrameFacts(index, self.missing[index])
        try:
            facts = examine(self.load(index), index, self.source.info)
        except Exception as error:
            return FrameFacts(index, self._diagnosed(index, error))
        group, place = self.places[index]  # type: ignore[misc]
        add_camera(facts, self.groups[group], place)
        if self.files and facts.image:
            add_traits(facts, self.files[index].image)
        return FrameFacts(index, facts.faults) if facts.faults else facts

    def _diagnosed(self, index: int, error: Exception) -> list[Fault]:
        if self.files and isinstance(self.source, FileSource) and isinstance(error, DataError):
            return diagnose(self.source, self.split, self.files[index], self.keys, error)
        kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
        named = "" if isinstance(error, DataError) else f"{self.names[index]}: "
        return [Fault("frame-unreadable", f"{named}{kind}{error}")]


def plan_splits(source: Source, splits: Sequence[str]) -> list[SplitPlan]:
    """A plan of each split; strays and splits of the same files are found here. No pixel is read."""
    plans = [_plan(source, split) for split in splits]
    for plan in plans:
        plan.left_out = () if plan.closed else source.left_out(plan.split)
    seen: dict[tuple[Path, ...], str] = {}
    for plan in plans:
        if not plan.files:
            continue
        images = tuple(files.image for files in plan.files)
        if images in seen:
            plan.same_as = seen[images]
        seen.setdefault(images, plan.split)
    if isinstance(source, FileSource):
        _find_strays(source, plans)
    return plans


def _plan(source: Source, split: str) -> SplitPlan:
    plan = SplitPlan(source, split, source.info.provides & LOADED_KEYS)
    if "depth" in plan.keys:
        plan.keys |= {"depth_valid"}
    try:
        frames = source.frames_as_they_are(split, plan.keys)
    except DataError as error:
        if not isinstance(source, FileSource):
            plan.closed = str(error)
            return plan
        try:
            files = source.paired(split)
        except DataError:
            plan.closed = str(error)
            return plan
    else:
        if not (isinstance(source, FileSource) and type(frames) is FileFrames):
            plan.groups = [frames]
            plan.names = [frames.name(index) for index in range(len(frames))]
            plan.places = [(0, index) for index in range(len(frames))]
            return plan
        files = source.paired(split)
    _place_files(plan, source, files)
    return plan


def _place_files(plan: SplitPlan, source: FileSource, files: list[FrameFiles]) -> None:
    """Frames that have the same kinds of files are opened together."""
    plan.files, plan.names = files, [f.name for f in files]
    plan.places = [None] * len(files)
    members: dict[frozenset[str], list[int]] = {}
    for index, frame in enumerate(files):
        lacking = list(_missing_files(source, frame, plan.keys))
        if lacking:
            plan.missing[index] = lacking
            continue
        keys = plan.keys
        if "label" in keys and frame.label is None:
            plan.unlabelled.append(index)
            keys -= {"label"}
        members.setdefault(keys, []).append(index)
    for group, (keys, indices) in enumerate(members.items()):
        plan.groups.append(source.open(plan.split, [files[index] for index in indices], keys))
        for place, index in enumerate(indices):
            plan.places[index] = (group, place)


def _missing_files(source: FileSource, files: FrameFiles, keys: frozenset[str]) -> Iterator[Fault]:
    try:
        source.refuse(files)
    except DataError as error:
        yield Fault("lossy", str(error))
    if not files.image.is_file():
        yield Fault("image-missing", f"{files.image}: no such file")
    if "label" in keys and files.label and not files.label.is_file():
        yield Fault("label-missing", f"{files.label}: no such file; {files.image} needs it")
    if "depth" in keys:
        if files.depth is None:
            yield Fault("depth-missing", f"{files.image}: no depth file belongs to it")
        elif not files.depth.is_file():
            yield Fault("depth-missing", f"{files.depth}: no such file; {files.image} needs it")


def _find_strays(source: FileSource, plans: Sequence[SplitPlan]) -> None:
    """What no split uses: splits may share their folders."""
    used: set[Path] = set()
    every = {plan.split: plan.files for plan in plans}
    for split in dict.fromkeys([*source.splits, *every]):
        try:
            files = every[split] if split in every else source.paired(split)
        except DataError:
            continue
        used |= {path for f in files or () for path in (f.label, f.depth) if path}
    for plan in plans:
        if plan.files and plan.same_as is None:
            plan.strays = [path for path in source.strays(plan.split) if path not in used]


# Looks at the frames of a data set in several processes, one of which may die without taking the others'
# work.


FRAMES_WITHOUT_POOL = 300  # frames that are looked at before other processes have started
CHUNK = 8  # frames at a time
MAX_WORKER_DEATHS = 8  # of processes; more are the machine's fault and not a frame's

Job = tuple[int, Sequence[int]]  # number of the plan, frames
Result = tuple[int, list[FrameFacts]]

_plans: list[SplitPlan] = []  # of a worker


def examine_frames(
    plans: Sequence[SplitPlan], chosen: Sequence[Sequence[int]], workers: int
) -> Iterator[Result]:
    """The facts of the ``chosen`` frames of each plan, in any order.

    A process that dies costs the frame that it looked at, as a fault. A source that does not pickle is looked
    at in this process.
    """
    jobs = [
        (number, frames[start : start + CHUNK])
        for number, frames in enumerate(chosen)
        for start in range(0, len(frames), CHUNK)
    ]
    cargo = _pickled(plans) if workers > 1 and sum(map(len, chosen)) >= FRAMES_WITHOUT_POOL else None
    if cargo is None:
        yield from ((number, [plans[number].look(index) for index in frames]) for number, frames in jobs)
        return
    waiting, deaths = deque(jobs), 0
    while waiting:
        suspects: list[Job] = []
        yield from _until_worker_dies(cargo, waiting, workers, suspects)
        for job in suspects:
            for number, facts in _one_by_one(cargo, job, plans[job[0]].names):
                deaths += any(fault.code == "worker-died" for fact in facts for fault in fact.faults)
                if deaths > MAX_WORKER_DEATHS:
                    raise DataError(
                        f"{facts[0].faults[0].sentence}, like {MAX_WORKER_DEATHS} before it; "
                        "memory may be short: try --workers 1"
                    )
                yield number, facts


def _until_worker_dies(
    cargo: bytes, waiting: deque[Job], workers: int, suspects: list[Job]
) -> Iterator[Result]:
    """Results of the jobs, taken from ``waiting``, until all are done; those under way at a death are suspects."""
    running: dict[Future, Job] = {}
    with _pool(cargo, workers) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < 3 * workers:
                    job = waiting[0]
                    running[pool.submit(_examine_job, job)] = job
                    waiting.popleft()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    del running[future]
                    yield result
        except BrokenProcessPool:
            suspects += running.values()


def _one_by_one(cargo: bytes, job: Job, names: Sequence[str]) -> Iterator[Result]:
    number, left = job[0], deque(job[1])
    while left:
        with _pool(cargo, 1) as pool:
            try:
                while left:
                    yield pool.submit(_examine_job, (number, [left[0]])).result()
                    left.popleft()
            except BrokenProcessPool:
                index = left.popleft()
                sentence = f"{names[index]}: the process that looked at it was killed"
                yield number, [FrameFacts(index, [Fault("worker-died", sentence)])]


def _pool(cargo: bytes, workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=_context(), initializer=_start, initargs=(cargo,))


def _context() -> BaseContext:
    """No fork of this process: torch's threads and open HDF5 files do not survive one.

    Where there is a fork server, it imports torch once for all of its children.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _pickled(plans: Sequence[SplitPlan]) -> bytes | None:
    try:
        return pickle.dumps(list(plans))
    except Exception:  # whatever a user's source raises
        return None


def _start(cargo: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word: the main process says it
    torch.set_num_threads(1)
    _plans[:] = pickle.loads(cargo)


def _examine_job(job: Job) -> Result:
    number, frames = job
    look: Callable[[int], FrameFacts] = _plans[number].look
    return number, [look(index) for index in frames]
