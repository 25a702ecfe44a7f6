"""One look over a data set: what is wrong with its files, what they hold, and what to do about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hardpix.data.base import Source
from hardpix.data.doctor_findings import Finding, finding, in_order, percent
from hardpix.data.doctor_plan import SplitPlan, plan_splits
from hardpix.data.doctor_pool import look_at
from hardpix.data.doctor_sums import Hit, SplitSums
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
    for number, facts in look_at(plans, chosen, workers):
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
            told = ", ".join(f"{info.classes[i]} (in {sums.class_images[i]} frames)" for i in only)
            yield finding("class-only-in-evaluation", sums.split, count=len(only), classes=told)


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
                told = f"{own}: same pixels as {names[split][other]} of {split}"
                hits[code].append(Hit(index, own, told))
        for code, found in hits.items():
            yield finding(code, sums.split, found, of=sums.looked)
