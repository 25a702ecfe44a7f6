"""Which data a run has used: how many frames, and what tells these from those of another day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from hardpix import record
from hardpix.data import DataModule, changed_since, fingerprint
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


def skipped(data: DataModule) -> dict[str, float]:
    """``{"run/skipped_frames": n}`` for a record, where training frames could not be read."""
    found = len(data.skips.found)
    return {"run/skipped_frames": float(found)} if found else {}
