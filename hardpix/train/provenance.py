"""Data that a run used: frame counts and fingerprints for its record, and whether they have changed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from hardpix import record
from hardpix.data import (
    DataModule,
    Frames,
    changed_since,
    content_sample,
    edited,
    fingerprint,
    missing_depth_text,
    stamp,
    without_depth,
)
from hardpix.data.check_report import Verdict, judge
from hardpix.data.loading import check_images
from hardpix.data.statistics import LabelFrames, label_counts
from hardpix.record import FRAMES
from hardpix.train import rundir
from hardpix.train.build import make
from hardpix.types import DataError

ROLES = ("train", "val", "test")
CONTENT = " content"  # after a split: the key of a sample of what its files hold


def data_record(data: DataModule, splits: Sequence[str] = ROLES) -> dict[str, Any]:
    """For a record: ``frames`` (``{"nyuv2/train": 795}``), ``data`` (what identifies them) and ``stamps``.

    A partial copy of a data set, or a changed one, must show in what is made of the record.
    """
    opened = {split: data.full_split(split) for split in splits}
    counts = {split: len(frames) for split, frames in opened.items()} | data.labeled_frames()
    counts = {kind: count for kind, count in counts.items() if kind in (*splits, "unlabeled")}
    name = data.info.name
    samples = {f"{name}/{split}{CONTENT}": content_sample(frames) for split, frames in opened.items()}
    return {
        "frames": {f"{name}/{kind}": count for kind, count in counts.items()},
        "data": {f"{name}/{split}": fingerprint(frames) for split, frames in opened.items()}
        | {key: sample for key, sample in samples.items() if sample},
        "stamps": {f"{name}/{split}": stamp(frames) for split, frames in opened.items()},
    }


def checked_data_record(data: DataModule) -> dict[str, Any]:
    """:func:`data_record`, of data whose images can be read and whose labels hold what is declared.

    Else ``DataError``, before anything is trained.
    """
    for split in ROLES:
        check_images(data.full_split(split), lenient=split == "train" and data.skips.allowed > 0)
    if refusal := label_verdict(data).refusal:
        raise DataError(refusal)
    return data_record(data)


def label_verdict(data: DataModule, splits: Sequence[str] = ROLES) -> Verdict:
    """What the labels of the splits hold, against what is declared; of data that are rendered nothing is said."""
    opened = {split: data.evaluation_dataset(split).frames for split in splits}
    lenient = {"train": data.skips.allowed > 0}
    counts = {
        split: label_counts(frames, data.info, lenient=lenient.get(split, False)).sum(0, dtype=np.int64)
        for split, frames in opened.items()
        if isinstance(frames, LabelFrames)
    }
    return judge(data.source, counts) if len(counts) == len(opened) else Verdict("", ())


def check_unchanged(before: record.RunRecord, now: dict[str, Any], data: DataModule) -> None:
    """Raise ``DataError`` where a run that goes on would find other frames or files than when it began.

    ``now``: what :func:`data_record` says. ``data.accept_change`` lets it. Records of versions without fingerprints or
    stamps are taken as they are.
    """
    if data.accept_change:
        return
    changed = [key for key, found in now["data"].items() if before.data.get(key, found) != found]
    changed = [
        key for key in changed if key.removesuffix(CONTENT) == key or key.removesuffix(CONTENT) not in changed
    ]
    touched = [
        key
        for key, found in now["stamps"].items()
        if not {key, key + CONTENT} & {*changed}
        and before.stamps.get(key, found) != found
        and edited(_frames(key, data), before.stamps[key], _began(before))
    ]
    if not changed and not touched:
        return
    summary = "; ".join(
        _change_text(key, before, data, touched=key in touched) for key in (*changed, *touched)
    )
    raise DataError(
        f"{summary}: the data set has changed since this run began ({before.started}), and what went on would be no "
        "comparable run; start a new one with another run=, or go on with data.accept_change=true"
    )


def check_moved(before: record.RunRecord, run_dir: Path, cfg: DictConfig) -> None:
    """As :func:`check_unchanged`, of a finished run whose configuration names its data by another path than ``cfg``.

    Data at the same path are not opened.
    """
    old, new = (record.flatten(rundir.plain(one)) for one in (rundir.read_config(run_dir), cfg))
    if any(key in FRAMES for key in rundir.moved_paths(old, new)):
        data: DataModule = make(cfg.data)
        check_unchanged(before, data_record(data), data)


def _change_text(key: str, before: record.RunRecord, data: DataModule, *, touched: bool) -> str:
    if "/" not in key:
        return f"{key}: the content of the file is another"
    frames, split = _frames(key, data), key.removesuffix(CONTENT)
    old, new = before.frames.get(split), data_record(data, [split.rpartition("/")[2]])["frames"][split]
    number = f"{old} -> {new} frames" if old not in (None, new) else "other file names or sizes"
    if touched:
        number = "files of the same size were written or touched, so that their content may be another"
    elif key != split:
        number = "files of the same names and sizes have another content"
    files = changed_since(frames, _began(before))
    return f"{split}: {number}" + (f", newer are {', '.join(map(str, files))}" if files else "")


def _frames(key: str, data: DataModule) -> Frames:
    return data.full_split(key.removesuffix(CONTENT).rpartition("/")[2])


def _began(before: record.RunRecord) -> float:
    return datetime.fromisoformat(before.started).timestamp()


def skip_counts(data: DataModule) -> dict[str, float]:
    """For a record, where there are any: ``run/skipped_frames``, training frames that could not be read, and
    ``run/frames_without_depth``, those whose depth was asked for and has no file.
    """
    lacking = len(without_depth(data.evaluation_dataset("train").frames)) if _may_lack_depth(data) else 0
    found = {"run/skipped_frames": len(data.skips.found), "run/frames_without_depth": lacking}
    return {key: float(count) for key, count in found.items() if count}


def unread_file_remarks(data: DataModule, splits: Sequence[str] = ROLES) -> tuple[str, ...]:
    """A line for each kind of files of the splits that are not read."""
    return tuple(dict.fromkeys(line for split in splits for line in data.source.left_out(data.splits[split])))


def depth_remarks(data: DataModule, splits: Sequence[str] = ROLES) -> tuple[str, ...]:
    """A line for each split some of whose frames have no depth file, where depth is asked for."""
    opened = {split: data.evaluation_dataset(split).frames for split in splits if _may_lack_depth(data)}
    lines = (missing_depth_text(frames, split) for split, frames in opened.items())
    return tuple(line for line in lines if line)


def _may_lack_depth(data: DataModule) -> bool:
    return getattr(data.source, "depth_missing", "error") == "ignore"
