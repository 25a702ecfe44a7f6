"""Check a data set: broken files, statistics, findings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hardpix.data.check_frames import Hit, SplitSums
from hardpix.data.check_workers import SplitPlan, examine_frames, plan_splits
from hardpix.data.source import Source
from hardpix.types import DatasetInfo

SCHEMA = 1

# How far the images may be from the normalisation before it is noted.
FAR_MEAN, FAR_STD = 1.0, 2.0  # in deviations; as a factor
MUCH_BEYOND = 1e-3  # share of the readings beyond depth_max that is no rounding or noise

Progress = Callable[[str, int, int], None]  # split, frames done, frames


@dataclass
class Checkup:
    """All that was found, and what to show it with."""

    info: DatasetInfo
    plans: list[SplitPlan]
    sums: list[SplitSums]  # of the plans that could be opened and are no other split's
    findings: list[Finding]

    @property
    def errors(self) -> int:
        return sum(f.level == "error" for f in self.findings)

    def spread(self, split: str, count: int) -> list[int]:
        """Up to ``count`` of the sound frames that were looked at, evenly spaced over the split."""
        sound = sorted(next(s.digests for s in self.sums if s.split == split))
        count = min(count, len(sound))
        return [sound[round(i * (len(sound) - 1) / max(1, count - 1))] for i in range(count)]

    def to_json(self) -> dict[str, Any]:
        info = self.info
        return {
            "schema": SCHEMA,
            "data": info.name,
            "classes": list(info.classes),
            "ignore_index": info.ignore_index,
            "depth_max": info.depth_max,
            "provides": sorted(info.provides),
            "normalisation": {"mean": list(info.mean), "std": list(info.std)},
            "splits": {sums.split: sums.to_json(info.classes) for sums in self.sums},
            "findings": [f.to_json() for f in self.findings],
        }


def check(
    source: Source,
    splits: Sequence[str],
    *,
    train: str | Sequence[str] = "train",
    limit: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Checkup:
    """Look at every frame of ``splits`` once, or at ``limit`` of each, evenly spaced, and those that lack files.

    ``train``: what is trained on, a split or several; the others are evaluated on. Memory holds sums, and of each
    frame its name and a digest.
    """
    trained = (train,) if isinstance(train, str) else tuple(train)
    plans = plan_splits(source, splits)
    chosen = [_chosen(plan, limit) for plan in plans]
    sums = [SplitSums(plan.split, len(plan), source.info.num_classes) for plan in plans]
    for number, facts in examine_frames(plans, chosen, workers):
        for one in facts:
            sums[number].add(one, plans[number].names[one.index])
        if progress:
            progress(plans[number].split, sums[number].looked, len(chosen[number]))
    _mark_copies(plans, sums)
    found = [f for plan, own in zip(plans, sums, strict=True) for f in _of_split(plan, own)]
    looked = [own for plan, own in zip(plans, sums, strict=True) if not plan.closed and not plan.same_as]
    if "label" in source.info.provides:
        found += _of_classes(looked, source, trained)
    found += _of_copies(looked, plans, trained)
    found += [finding("remark", None, remark=remark.rstrip(".")) for remark in source.remarks()]
    return Checkup(source.info, plans, looked, in_order(found, splits))


def _chosen(plan: SplitPlan, limit: int | None) -> list[int]:
    if plan.same_as or plan.closed:
        return []
    if limit is None or limit >= len(plan):
        return list(range(len(plan)))
    # That files are missing is known of every frame, and costs nothing.
    return sorted({index * len(plan) // limit for index in range(limit)} | plan.missing.keys())


def _mark_copies(plans: Sequence[SplitPlan], sums: Sequence[SplitSums]) -> None:
    """Splits of equal names and pixels are one split, whatever kind of source they come from."""
    seen: dict[tuple, str] = {}
    for plan, own in zip(plans, sums, strict=True):
        if plan.same_as is None and own.digests:
            key = (tuple(plan.names), tuple(sorted(own.digests.items())))
            if key in seen:
                plan.same_as = seen[key]
            seen.setdefault(key, plan.split)


def _of_split(plan: SplitPlan, sums: SplitSums) -> Iterator[Finding]:
    split, info = plan.split, plan.source.info
    if plan.closed:
        yield finding("split-closed", split, reason=plan.closed.rstrip("."))
        return
    if plan.same_as:
        yield finding("same-split", split, other=plan.same_as)
        return
    if not len(plan):
        yield finding("split-empty", split)
        return
    for code, hits in sums.hits.items():
        if code == "depth-beyond":
            share = sums.depth_beyond / sums.depth_valid
            code = code if share > MUCH_BEYOND else "depth-edge"
            yield finding(code, split, hits, of=sums.looked, depth_max=info.depth_max, share=percent(share))
        else:
            yield finding(code, split, hits, of=sums.looked)
    yield from _of_names(plan, sums)
    yield from _of_images(sums, info)
    if sums.labelled and sums.void_share > 0.5:
        yield finding("void-mostly", split, share=percent(sums.void_share))
    if sums.with_depth and info.depth_max is None and sums.depth_valid:
        yield finding("depth-unbounded", split, largest=sums.depth_largest)
    known, sound = sum(sums.cameras.values()), sums.looked - sums.broken
    if 0 < known < sound:
        yield finding("camera-partly", split, of=sound, count=known)
    if sums.looked < sums.frames:
        yield finding("limited", split, of=sums.frames, count=sums.looked)


def _of_names(plan: SplitPlan, sums: SplitSums) -> Iterator[Finding]:
    places = defaultdict(list)
    for index, name in enumerate(plan.names):
        places[name].append(index)
    twice = [Hit(i, name, "") for name, indices in places.items() if len(indices) > 1 for i in indices]
    if twice:
        yield finding("name-twice", plan.split, twice, of=len(plan))
    if plan.unlabelled:
        whole = len(plan.unlabelled) == len(plan) - len(plan.missing)
        hits = [Hit(index, plan.names[index], "") for index in plan.unlabelled]
        code = "all-unlabelled" if whole else "unlabelled"
        yield finding(code, plan.split, () if whole else hits, of=len(plan), count=len(hits))
    for sentence in plan.left_out:
        yield finding("left-out", plan.split, sentence=sentence.partition(": ")[2])
    if plan.strays:
        hits = [Hit(i, path.name, str(path)) for i, path in enumerate(plan.strays)]
        yield finding("label-stray", plan.split, hits)


def _of_images(sums: SplitSums, info: DatasetInfo) -> Iterator[Finding]:
    if len(sums.sizes) > 1:
        by_area = sorted(sums.sizes, key=lambda size: (size[0] * size[1], size))
        least, largest = (f"{w}x{h}" for h, w in (by_area[0], by_area[-1]))
        yield finding("image-sizes", sums.split, sizes=len(sums.sizes), least=least, largest=largest)
    if not sums.pixels:
        return
    mean, std, own_mean, own_std = (np.array(v) for v in (sums.mean, sums.std, info.mean, info.std))
    ratio = std / own_std
    if ((np.abs(mean - own_mean) > FAR_MEAN * own_std) | (ratio > FAR_STD) | (ratio < 1 / FAR_STD)).any():
        mean_text, std_text, own_mean_text, own_std_text = (
            "/".join(f"{value:.0f}" for value in values) for values in (mean, std, own_mean, own_std)
        )
        yield finding(
            "image-statistics", sums.split,
            mean=mean_text, std=std_text, own_mean=own_mean_text, own_std=own_std_text,
        )  # fmt: skip


def _of_classes(looked: Sequence[SplitSums], source: Source, train: tuple[str, ...]) -> Iterator[Finding]:
    """Classes that are nowhere, and those that are evaluated but never trained."""
    info = source.info
    everywhere = sum((s.class_pixels for s in looked), np.zeros(info.num_classes, np.int64))
    if everywhere.any():
        never, held = np.flatnonzero(everywhere == 0).tolist(), np.flatnonzero(everywhere).tolist()
        if never:
            advice = source.void_as(never[0], held)
            advice, classes = f" ({advice})" if advice else "", ", ".join(info.classes[i] for i in never)
            alone = len(held) == 1 and all(sums.looked == sums.frames for sums in looked)
            code, single = ("class-single", info.classes[held[0]]) if alone else ("class-never", "")
            yield finding(code, None, count=len(never), held=single, classes=classes, advice=advice)
    labelled = [s.class_pixels for s in looked if s.split in train and s.labelled]
    if not labelled:
        return
    trained = sum(labelled, np.zeros(info.num_classes, np.int64))
    for sums in looked:
        only = [i for i in range(info.num_classes) if sums.class_pixels[i] and not trained[i]]
        if only:
            summary = ", ".join(f"{info.classes[i]} (in {sums.class_images[i]} frames)" for i in only)
            yield finding("class-only-in-evaluation", sums.split, count=len(only), classes=summary)


def _of_copies(
    looked: Sequence[SplitSums], plans: Sequence[SplitPlan], train: tuple[str, ...]
) -> Iterator[Finding]:
    """Frames of equal pixels: each counts for the gravest of what it is, with the first frame it equals named."""
    names = {plan.split: plan.names for plan in plans}
    first: dict[bytes, tuple[str, int]] = {}
    for sums in sorted(
        (s for s in looked), key=lambda s: s.split not in train
    ):  # what is trained on comes first
        hits: dict[str, list[Hit]] = defaultdict(list)
        for index, digest in sorted(sums.digests.items()):
            split, other = first.setdefault(digest, (sums.split, index))
            if (split, other) != (sums.split, index):
                within = split == sums.split or (split in train and sums.split in train)
                code = "twice" if within else "leak" if split in train else "twice-in-evaluation"
                own = names[sums.split][index]
                summary = f"{own}: same pixels as {names[split][other]} of {split}"
                hits[code].append(Hit(index, own, summary))
        for code, found in hits.items():
            yield finding(code, sums.split, found, of=sums.looked)


# What a look over a data set may find: a level, what it is, and what to do.


LEVELS = ("error", "warning", "note")


class Kind(NamedTuple):
    """``what`` may hold {frames} ("3 of 105 frames"), {split} and what the finding's maker gives besides."""

    level: str
    what: str
    todo: str


RESTORE = "Unpack or download the files again, or take these frames out of the split."
ONE_BY_ONE = "Fix what each sentence says, or take these frames out of the split."

KINDS = {
    "split-closed": Kind(
        "error",
        "The split cannot be opened: {reason}.",
        "Fix that, or name other splits with --splits (in training: data.train_split, data.val_split and "
        "data.test_split).",
    ),
    "split-empty": Kind("error", "The split has no frames.", "Check data.source.root and the list of the split."),
    "image-missing": Kind("error", "The image file is missing for {frames}.", RESTORE),
    "label-missing": Kind("error", "The label file is missing for {frames}.", RESTORE),
    "depth-missing": Kind("error", "The depth file is missing for {frames}.", RESTORE),
    "lossy": Kind(
        "error",
        "A label or depth file is a JPEG for {frames}.",
        "Export these labels and depths again as PNG: in a JPEG the numbers at every edge are lost.",
    ),
    "image-unreadable": Kind("error", "The image cannot be decoded for {frames}.", RESTORE),
    "label-unreadable": Kind("error", "The label cannot be decoded for {frames}.", RESTORE),
    "depth-unreadable": Kind("error", "The depth cannot be decoded for {frames}.", RESTORE),
    "frame-unreadable": Kind("error", "Loading fails for {frames}.", ONE_BY_ONE),
    "camera-unreadable": Kind("error", "The camera matrix cannot be read for {frames}.", RESTORE),
    "worker-died": Kind(
        "error",
        "The process that looked at it was killed for {frames}.",
        "The frame may need more memory than there is: look at its file's size, or use fewer --workers.",
    ),
    "size-mismatch": Kind(
        "error",
        "Image, label and depth do not have one size for {frames}.",
        "Export them again at one size; labels and depth without interpolation.",
    ),
    "label-values": Kind(
        "error",
        "The label is not one of class numbers or colours of this data set for {frames}.",
        "Correct the labels, or the class list or label map in the configuration.",
    ),
    "depth-values": Kind(
        "error",
        "The depth file does not hold depth as the data set stores it for {frames}.",
        "Export the depth again, or correct its coding in the configuration.",
    ),
    "name-twice": Kind(
        "error",
        "The frame's name is used more than once in the split by {frames}.",
        "Rename files: predictions and pictures are stored under the names and would overwrite each other.",
    ),
    "leak": Kind(
        "error",
        "The same pixels as in a training frame are found in {frames}.",
        "Take them out of one of the two splits: scores on frames that were trained on are too good.",
    ),
    "twice-in-evaluation": Kind(
        "warning",
        "The same pixels as in another evaluation split are found in {frames}.",
        "Take them out of one of the two splits: choices made on one are no longer blind to the other.",
    ),
    "twice": Kind(
        "warning",
        "The same pixels as in an earlier frame of the split are found in {frames}.",
        "Keep one of each: the others weigh the picture more than once in training or in the score.",
    ),
    "unlabelled": Kind(
        "error",
        "No label belongs to {frames}.",
        "Leave these frames out of the split: training and scores need every label.",
    ),
    "all-unlabelled": Kind(
        "warning",
        "No frame of the split has a label.",
        "It can be predicted on only; for scores name another split (data.val_split, data.test_split).",
    ),
    "label-void": Kind(
        "warning",
        "Every pixel is unlabelled in {frames}.",
        "Leave them out, or check that their labels were exported: nothing is learned from them.",
    ),
    "void-mostly": Kind(
        "warning",
        "{share} of the label pixels are void.",
        "If that was not intended, check which label values are mapped to void.",
    ),
    "class-only-in-evaluation": Kind(
        "warning",
        "Classes occur here of which no pixel was found in training: {classes}.",
        "Add training frames that show it; until then it scores 0 and draws the mean over classes down.",
    ),
    "class-single": Kind(
        "error",
        "{held} is the only class in all splits, though {classes} too are declared: every score would be 100 %.",
        "Check the class list and the label values{advice}.",
    ),
    "class-never": Kind(
        "warning",
        "Classes have no pixel in any of the splits: {classes}.",
        "Check the class list and the label values{advice}; such a class has no score and takes no part in the mean.",
    ),
    "image-constant": Kind(
        "warning", "All pixels have one colour in {frames}.", "Look at the files: an export may have failed."
    ),
    "image-grey": Kind(
        "note", "The image has no colour in {frames}.", "Nothing, if they should be grey; they are read as RGB."
    ),
    "image-turned": Kind(
        "note",
        "An EXIF orientation is applied to the image of {frames}.",
        "Check in the contact sheet that labels and depth are stored upright; if not, remove the tag.",
    ),
    "image-transparent": Kind(
        "note",
        "Transparency is dropped from the image of {frames}.",
        "Nothing, if the colours below it are the picture; else blend the images before.",
    ),
    "image-deep": Kind(
        "note",
        "The image has more than 8 bits, read by data.source.image_range, in {frames}.",
        "Check in the contact sheet that black and white are what they should be.",
    ),
    "image-sizes": Kind(
        "note",
        "The images have {sizes} different sizes, from {least} to {largest} pixels.",
        "Evaluate one by one: data.eval_batch_size=1.",
    ),
    "image-statistics": Kind(
        "note",
        "Mean {mean} and deviation {std} of the channels are far from the normalisation's {own_mean} and {own_std}.",
        "Training copes, but look whether the images are what they should be (exposure, channels in RGB order).",
    ),
    "depth-empty": Kind("warning", "No pixel has a depth reading in {frames}.", "Look at the depth files."),
    "depth-constant": Kind("warning", "The depth is one number in {frames}.", "Look at the depth files."),
    "depth-beyond": Kind(
        "warning",
        "Depth beyond the data set's {depth_max:g} m occurs in {frames} ({share} of all readings).",
        "Check the unit of the depth files; else raise depth_max: methods with a fixed range end there.",
    ),
    "depth-edge": Kind(
        "note",
        "A few readings lie beyond the data set's {depth_max:g} m in {frames} ({share} of all readings).",
        "Nothing: methods with a fixed range of depth end there.",
    ),
    "depth-unbounded": Kind(
        "note", "The data set states no depth_max.", "Give it if a depth method asks for it: {largest:.4g} m occur."
    ),
    "camera-outside": Kind(
        "error",
        "The camera's principal point lies outside the picture for {frames}.",
        "Give the camera matrix in pixels of the images as stored, and in the order fx 0 cx, 0 fy cy, 0 0 1.",
    ),
    "camera-partly": Kind(
        "warning",
        "The camera is known for only {frames}.",
        "Add the missing camera files, or methods that use geometry cannot train on this split.",
    ),
    "label-stray": Kind(
        "note",
        "{count} label or depth files belong to no frame.",
        "Nothing, if their images were left out on purpose; else restore the images or fix the names.",
    ),
    "left-out": Kind(
        "warning",
        "Files are not read: {sentence}.",
        "Nothing, if they are no frames; else convert pictures to PNG, and give them the names of the layout.",
    ),
    "same-split": Kind(
        "note",
        "Splits {other} and {split} are the same frames; they were looked at once, as {other}.",
        "Say so next to the scores: what is chosen on one of them is chosen on the other too.",
    ),
    "remark": Kind("note", "{remark}.", "Nothing, if it is what you want; the setting is in conf/data."),
    "limited": Kind(
        "note",
        "Only {frames} were looked at.",
        "Run it without --limit before you rely on what is not found here.",
    ),
}  # fmt: skip


@dataclass
class Finding:
    """One thing that was found in one split (None: in the data set)."""

    code: str
    split: str | None
    count: int
    what: str
    hits: list[Hit] = field(default_factory=list)
    todo: str = ""

    @property
    def level(self) -> str:
        return KINDS[self.code].level

    def to_json(self) -> dict[str, Any]:
        examples = [{"name": hit.name, "index": hit.index, "detail": hit.sentence} for hit in self.hits]
        return {
            "level": self.level, "code": self.code, "split": self.split, "count": self.count,
            "what": self.what, "what_to_do": self.todo, "frames": examples,
        }  # fmt: skip


def finding(
    code: str,
    split: str | None,
    hits: Iterable[Hit] = (),
    *,
    of: int = 0,
    count: int | None = None,
    **words: Any,
) -> Finding:
    """A finding with its sentences filled in; ``of`` is the number of frames that were looked at."""
    kept = sorted(hits, key=lambda hit: hit.index)
    number = len({hit.index for hit in kept}) if count is None else count
    words = {"split": split, "count": number, "frames": f"{number} of {of} frames", **words}
    kind = KINDS[code]
    return Finding(code, split, number, kind.what.format(**words), kept, kind.todo.format(**words))


def in_order(findings: Iterable[Finding], splits: Sequence[str]) -> list[Finding]:
    """Errors first; then by code, in the order of :data:`KINDS`, and by split."""
    codes, places = list(KINDS), {split: place for place, split in enumerate(splits)}
    return sorted(
        findings, key=lambda f: (LEVELS.index(f.level), codes.index(f.code), places.get(f.split or "", -1))
    )


def percent(share: float) -> str:
    """``0.0123`` -> ``1.2 %``; what is less than a hundredth of a percent reads as that."""
    return f"{100 * share:.3g} %" if share == 0 or share >= 1e-4 else "less than 0.01 %"
