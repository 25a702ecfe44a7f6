"""What the paths among a run's factors stand for: identified by content, so that places are not compared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hardpix.record import BATCH_PARTS, BELOW, EFFECTIVE_BATCH, WORLD_SIZE, RunRecord
from hardpix.report.collect import Run

FRAMES = (
    "data.source.root",
    "data.source.listing",
)  # identified by the fingerprints of the splits
FILES = (
    "data.source.classes",
    "data.labeled",
    "backbone.pretrained",
    "init_from",
)  # by the content of the file
FINGERPRINT = "data.fingerprint"  # of a split: data.fingerprint.train
TRAINED_ON = "trained."  # factors of the training of a run that was scored on another data set


def without_below(key: str) -> str:
    """A factor of a run below as it is called in that run."""
    return re.sub(rf"^({re.escape(BELOW)})+", "", key)


def own_data(record: RunRecord) -> dict[str, str]:
    """The fingerprints of a record's own data set, by split; not of the runs below, nor of single files."""
    splits = {k: v for k, v in record.data.items() if "/" in k and not k.startswith(BELOW)}
    return {key: value for key, value in splits.items() if key.rpartition("/")[0] == record.dataset}


def by_content(runs: Sequence[Run]) -> tuple[list[Run], set[str]]:
    """The runs with what their paths stand for in the place of the paths, and the paths that say no more than that.

    ``data.fingerprint.SPLIT`` is added for the frames of each split; where some are known of all runs, the path of
    the frames stands for these. Of a file the content counts where it is known of all runs that name one.
    """
    found = [_with_fingerprints(run) for run in runs]
    settled: set[str] = set()
    for key in sorted(
        {key for run in found for key in run.record.factors if _plain(key) in (*FRAMES, *FILES)}
    ):
        naming = [run.record for run in found if isinstance(run.record.factors.get(key), str)]
        known = _common(key, naming)
        if known:
            found = [_replaced(run, key, known) for run in found]
            settled |= {key} if _plain(key) in FRAMES else set()
    return found, settled


def _common(key: str, naming: Sequence[RunRecord]) -> list[str]:
    """Where to look in each of the records that name a path for what lies there; empty where one does not know."""
    if not naming:
        return []
    if _plain(key) in FILES:
        return [key] if all(key in record.data for record in naming) else []
    start = f"{key.removesuffix(_plain(key))}{FINGERPRINT}."
    splits = [{k for k in record.factors if k.startswith(start)} for record in naming]
    return sorted(set.intersection(*splits))


def _plain(key: str) -> str:
    return without_below(key).removeprefix(TRAINED_ON)


def _with_fingerprints(run: Run) -> Run:
    own = dict(run.record.factors)
    for key, value in run.record.data.items():
        plain = without_below(key)
        if "/" not in plain:
            continue
        name, _, split = plain.rpartition("/")
        below = key.removesuffix(plain)
        other = TRAINED_ON if not below and run.record.dataset not in ("", name) else ""
        own[f"{below}{other}{FINGERPRINT}.{split}"] = value
    return Run(run.directory, replace(run.record, factors=own))


def _replaced(run: Run, key: str, known: Sequence[str]) -> Run:
    own = run.record.factors
    if not isinstance(own.get(key), str):
        return run
    content = [str(own[name] if name in own and name != key else run.record.data[name]) for name in known]
    return Run(run.directory, replace(run.record, factors=own | {key: " ".join(content)}))


def may_be_unknown(keys: Iterable[str]) -> set[str]:
    """Those of ``keys`` that are unknown, not different, in a run that lacks them."""
    return {
        key
        for key in keys
        if _plain(key) in (WORLD_SIZE, EFFECTIVE_BATCH) or _plain(key).startswith(f"{FINGERPRINT}.")
    }


def follows(declared: Iterable[str]) -> tuple[str, ...]:
    """What differs between rows because ``declared`` does: the batch with its parts, what lies at a path."""
    found = []
    for key in declared:
        before = key.removesuffix(_plain(key))
        asked_for = _plain(key) in ("trainer.devices", "trainer.num_nodes")
        found += [before + WORLD_SIZE] if asked_for else []
        found += [before + EFFECTIVE_BATCH] if asked_for or _plain(key) in BATCH_PARTS else []
        found += [before + FINGERPRINT] if _plain(key) in FRAMES else []
    return tuple(found)
