"""Which data a run has used: how many frames, and what tells these from those of another day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from hardpix import record
from hardpix.data import DataModule, changed_since, fingerprint, told_without_depth, without_depth
from hardpix.types import DataError

ROLES = ("train", "val", "test")


def used(data: DataModule, splits: Sequence[str] = ROLES) -> dict[str, Any]:
    """For a record: ``frames`` (``{"nyuv2/train": 795}``) and ``data`` (their fingerprints) of the splits.

    A partial copy of a data set, or a changed one, must show in what is made of the record.
    """
    opened = {split: data.whole_split(split) for split in splits}
    counts = {split: len(frames) for split, frames in opened.items()} | data.labeled_frames()
    counts = {kind: count for kind, count in counts.items() if kind in (*splits, "unlabeled")}
    name = data.info.name
    return {
        "frames": {f"{name}/{kind}": count for kind, count in counts.items()},
        "data": {f"{name}/{split}": fingerprint(frames) for split, frames in opened.items()},
    }


def check_unchanged(before: record.RunRecord, now: dict[str, str], data: DataModule) -> None:
    """Raise ``DataError`` where a run that goes on would find other frames or files than when it began.

    ``data.accept_change`` lets it. Records of versions without fingerprints are taken as they are.
    """
    changed = [key for key, found in now.items() if before.data.get(key, found) != found]
    if not changed or data.accept_change:
        return
    told = "; ".join(_told(key, before, data) for key in changed)
    raise DataError(
        f"{told}: the data set has changed since this run began ({before.started}), and what went on would be no "
        "comparable run; start a new one with another run=, or go on with data.accept_change=true"
    )


def _told(key: str, before: record.RunRecord, data: DataModule) -> str:
    frames = data.whole_split(key.rpartition("/")[2])
    old, new = before.frames.get(key), used(data, [key.rpartition("/")[2]])["frames"][key]
    number = f"{old} -> {new} frames" if old not in (None, new) else "other file names or sizes"
    files = changed_since(frames, datetime.fromisoformat(before.started).timestamp())
    return f"{key}: {number}" + (f", newer are {', '.join(map(str, files))}" if files else "")


def left_out(data: DataModule) -> dict[str, float]:
    """For a record, where there are any: ``run/skipped_frames``, training frames that could not be read, and
    ``run/frames_without_depth``, those whose depth was asked for and has no file.
    """
    lacking = len(without_depth(data.evaluation_dataset("train").frames)) if _may_lack_depth(data) else 0
    found = {"run/skipped_frames": len(data.skips.found), "run/frames_without_depth": lacking}
    return {key: float(count) for key, count in found.items() if count}


def told_of_depth(data: DataModule, splits: Sequence[str] = ROLES) -> tuple[str, ...]:
    """A line for each split some of whose frames have no depth file, where depth is asked for."""
    opened = {split: data.evaluation_dataset(split).frames for split in splits if _may_lack_depth(data)}
    lines = (told_without_depth(frames, split) for split, frames in opened.items())
    return tuple(line for line in lines if line)


def _may_lack_depth(data: DataModule) -> bool:
    return getattr(data.source, "depth_missing", "error") == "ignore"
