"""Which frames of a split can be looked at, and how: with whole files, without, and for sources that are no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hardpix.data.base import Frames, Sample, Source
from hardpix.data.doctor_frame import Fault, FrameFacts, add_camera, add_traits, diagnose, examine
from hardpix.data.files import FileFrames, FileSource, FrameFiles
from hardpix.types import DataError

LOADED = frozenset({"image", "label", "depth", "depth_valid"})


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
    plan = SplitPlan(source, split, source.info.provides & LOADED)
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
        lacking = list(_lacking(source, frame, plan.keys))
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


def _lacking(source: FileSource, files: FrameFiles, keys: frozenset[str]) -> Iterator[Fault]:
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
