"""Collect runs, group them by declared factors, and refuse any other difference."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hardpix.config.command_line import suggestion
from hardpix.record import (
    BATCH_PARTS,
    DEV_RUN,
    EFFECTIVE_BATCH,
    FILE_NAME,
    FILES,
    FRAMES,
    IGNORED,
    SPREAD,
    TRAINED_ON,
    WORLD_SIZE,
    RunRecord,
    covers,
    read,
    without_below,
)
from hardpix.types import HardpixError

# How often a run validates decides which of its weights are the best: it matters where those are scored.
WATCHES = ("trainer.val_every_steps", "trainer.val_every_epochs")
BEST_WEIGHTS = ("test_weights", "evaluation.weights", "parent_weights")
# Facts of the machine: they move a score by rounding and a cost by a lot, so they are listed below the table.
WARNED = ("trainer.accelerator",)
# Parts of `host` and `code` that differ without a meaning.
SILENT = ("hostname", "pid", "pid_began", "precision", "dirty")

MAX_KEYS, MAX_VALUES = 8, 3


class _Absent:
    """The value of a factor that a run's configuration does not have; equal to nothing else."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


@dataclass(frozen=True)
class Group:
    """The runs of one row. ``values`` holds, per declared factor, its keys and their values."""

    values: tuple[dict[str, Any], ...]
    runs: tuple[Run, ...]


def group(runs: Sequence[Run], factors: Sequence[str], ignore: Sequence[str] = ()) -> list[Group]:
    """Split ``runs`` by the declared ``factors``; raise when they differ in anything else that may matter.

    A factor is a key (``method.alpha``) or a part of the configuration (``method``: every key below it).
    Declaring ``method._target_`` lets the other keys below ``method`` differ *between* rows, since methods
    have different parameters, but not *within* a row; so does declaring the method for ``parent_config``.
    ``ignore`` adds to the keys that are never compared.
    """
    seen, settled = by_content(runs)
    given = {id(one): run for one, run in zip(seen, runs, strict=True)}
    runs = seen
    keys = sorted({key for run in runs for key in run.record.factors})
    declared = [_keys_of(factor, keys) for factor in factors]
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(_value(run, key) for part in declared for key in part)].append(run)

    shown = settled | {key for part in declared for key in part}
    known = (*ignored(run.record.factors for run in runs), *WARNED, *ignore)
    silent = shown | {key for key in keys if silenced(known, key)}
    opened = tuple(factor.removesuffix("._target_") for factor in factors if factor.endswith("._target_"))
    if "method" in factors or "method._target_" in factors:
        opened += ("parent_config",)  # a method with a parent run has its factors too
    opened += follows(key for part in declared for key in part)
    compared = [key for key in keys if key not in silent]
    differences = _differences(runs, [key for key in compared if not covers(opened, key)])
    for members in groups.values():
        differences |= _differences(members, [key for key in compared if covers(opened, key)])
    if differences:
        raise HardpixError(_refusal(len(runs), differences))
    rows = [tuple(given[id(run)] for run in members) for members in groups.values()]
    return [Group(tuple(_present(row[0], part) for part in declared), row) for row in rows]


def disagreements(runs: Sequence[Run], ignore: Sequence[str] = ()) -> list[str]:
    """One phrase for each factor that may matter and in which ``runs``, seeds of one row, differ."""
    runs, settled = by_content(runs)
    silent = (*ignored(run.record.factors for run in runs), *WARNED, *ignore, *settled)
    keys = sorted({key for run in runs for key in run.record.factors if not silenced(silent, key)})
    return [_difference_text(*item) for item in _differences(runs, keys).items()]


def ignored(factors: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """IGNORED of runs with these factors: without WATCHES where some run is scored with its best weights."""
    watched = any("best" in (own.get(key) for key in BEST_WEIGHTS) for own in factors)
    return tuple(key for key in IGNORED if key not in WATCHES) if watched else IGNORED


def silenced(parts: Iterable[str], key: str) -> bool:
    """Whether ``parts`` cover ``key``; what cannot matter in a run cannot in its parent run."""
    own = re.sub(r"^(parent_config\.)+", "", key)
    return covers(parts, key) or covers(parts, own)


def warnings(runs: Sequence[Run], ignore: Sequence[str] = ()) -> list[str]:
    """One line for each fact outside the compared factors that the reader of a table should know."""
    seen = by_content(runs)[0]
    known = {key for run in seen for key in run.record.factors}
    asked = [key for key in sorted(known) if covers(ignore, key)]
    lines = [f"Ignored as asked: {_difference_text(*item)}." for item in _differences(seen, asked).items()]
    asked_for = [run.record.factors for run in runs if "trainer.devices" in run.record.factors]
    if unknown := sum(WORLD_SIZE not in own for own in asked_for):
        lines.append(
            f"{unknown} of {len(runs)} runs do not record how many processes they trained in (trainer.devices=auto of "
            "an earlier version), and so not how large their batch was."
        )
    facts = [_facts(run) for run in runs]
    for key in sorted({key for known in facts for key in known}):
        counts = Counter(text(known.get(key, ABSENT)) for known in facts)
        if len(counts) > 1:
            summary = ", ".join(f"{value} ({n} of {len(runs)} runs)" for value, n in sorted(counts.items()))
            lines.append(f"Runs differ in {key}: {summary}.")
    used = [run.record.data for run in runs]
    for key in sorted({key for one in used for key in one}):
        found = Counter(one[key] for one in used if key in one)
        if len(found) > 1:
            lines.append(
                f"Runs differ in the data of {key} (in frames, or names or sizes of files), by fingerprint: "
                f"{', '.join(f'{value} ({n} of {len(runs)} runs)' for value, n in sorted(found.items()))}."
            )
    for run in runs:
        if left := run.record.metrics.get("run/skipped_frames"):
            lines.append(f"{run.directory} skipped {left:.0f} training frames that could not be read.")
        if bare := run.record.metrics.get("run/frames_without_depth"):
            lines.append(
                f"{run.directory} had no depth file for {bare:.0f} training frames, and used none there."
            )
    lines += _partial(runs)
    dirty = sum(run.record.code.get("dirty", "").lower() in ("true", "1", "yes", "dirty") for run in runs)
    if dirty:
        lines.append(f"{dirty} of {len(runs)} runs were made from code with uncommitted changes.")
    return lines


def _partial(runs: Sequence[Run]) -> list[str]:
    """A line for the runs that are less than their settings say, all of one kind together."""
    found: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        if run.record.status == "done" and (words := shortfalls(run.record)):
            found[", ".join(words)].append(run.directory)
    return [f"Less than the full run: {', '.join(own)} ({words})." for words, own in found.items()]


def _facts(run: Run) -> dict[str, Any]:
    """What is noted but never refused: machine, versions, commit, precision."""
    facts = {key: run.record.factors[key] for key in WARNED if key in run.record.factors}
    for part, content in (("host", run.record.host), ("code", run.record.code)):
        facts |= {f"{part}.{name}": value for name, value in content.items() if name not in SILENT}
    return facts


def text(value: Any) -> str:
    """A factor's value as it is written in the configuration."""
    if isinstance(value, (str, _Absent)):
        return str(value)
    return json.dumps(value)


def folded(name: str) -> str:
    """Data sets and classes are spelt with and without underscores and spaces."""
    return name.lower().replace("_", "").replace(" ", "")


def _keys_of(factor: str, keys: Sequence[str]) -> list[str]:
    found = [key for key in keys if covers([factor], key)]
    if not found:
        groups = {key.split(".")[0] for key in keys}
        raise HardpixError(f"No run has a factor {factor!r}{suggestion(factor, groups.union(keys))}.")
    return found


def _value(run: Run, key: str) -> Any:
    """Hashable; lists compare by content."""
    value = run.record.factors.get(key, ABSENT)
    return json.dumps(value, sort_keys=True) if isinstance(value, (list, dict)) else value


def _present(run: Run, keys: Sequence[str]) -> dict[str, Any]:
    return {key: run.record.factors[key] for key in keys if key in run.record.factors}


def differs(runs: Sequence[Run], key: str) -> bool:
    """Whether ``runs`` have more than one value of a factor."""
    return bool(_differences(runs, [key]))


def _differences(runs: Sequence[Run], keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """``{key: {value: directory of the first run that has it}}`` for the keys with more than one value."""
    found: dict[str, dict[str, str]] = {}
    unknown = may_be_unknown(keys)
    for key in keys:
        telling = runs if key not in unknown else [run for run in runs if key in run.record.factors]
        every = [run.record.factors.get(key, ABSENT) for run in telling]
        if every.count(every[0]) == len(every):  # nearly always, and much quicker than the below
            continue
        values: dict[Any, Run] = {}
        for run in telling:
            values.setdefault(_value(run, key), run)
        if len(values) > 1:
            found[key] = {text(run.record.factors.get(key, ABSENT)): run.directory for run in values.values()}
    return found


def _difference_text(key: str, values: dict[str, str]) -> str:
    parts = [f"{value} in {directory}" for value, directory in list(values.items())[:MAX_VALUES]]
    more = [f"{len(values) - MAX_VALUES} more values"] if len(values) > MAX_VALUES else []
    return f"{key} ({', '.join(parts + more)})"


def _refusal(count: int, differences: dict[str, dict[str, str]]) -> str:
    parts = [_difference_text(key, differences[key]) for key in sorted(differences)[:MAX_KEYS]]
    more = [f"{len(differences) - MAX_KEYS} more keys"] if len(differences) > MAX_KEYS else []
    return (
        f"These {count} runs are not comparable, because they differ in {'; '.join(parts + more)}: "
        "declare these factors (rows of a table, --x or --lines of a figure), leave runs out, or name with --ignore a "
        "key that cannot matter."
    )


# Find run records below files and directories.


class Run(NamedTuple):
    """A record and where it lies; the directory is only ever shown, never compared."""

    directory: str
    record: RunRecord


def collect(paths: Iterable[str | os.PathLike[str]], unreadable: list[str] | None = None) -> list[Run]:
    """Every run at or below ``paths`` (``run.json`` files, runs, directories of runs), once, by directory.

    A path without any run is an error, and so is a damaged record: a table must not quietly lack a row. With a list
    ``unreadable`` a damaged record is passed over, and what is wrong with it is put there, for all to read.
    """
    found = directories_of(paths)
    if not found:
        raise HardpixError("No runs were named: give at least one run directory or a directory of runs.")
    runs = []
    for directory in found:
        try:
            runs.append(Run(str(directory), _judged(read(directory))))
        except HardpixError as error:
            if unreadable is None:
                raise
            unreadable.append(str(error))
    if not runs:
        raise HardpixError((unreadable or [""])[0])
    return sorted(runs, key=lambda run: run.directory)


def _judged(record: RunRecord) -> RunRecord:
    """A run with ``trainer.fast_dev_run`` has no score, whatever its record says."""
    if record.status != "done" or not is_dev_run(record):
        return record
    return replace(record, status="failed", error=f"{DEV_RUN}{', '.join(shortfalls(record))}")


def directories_of(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Every run's directory at or below ``paths``, once; a path without any run is an error. Nothing is read."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        directories = list(_run_directories(path))
        if not directories:
            raise HardpixError(f"{path} holds no run: a directory with {FILE_NAME} at or below it is needed.")
        for directory in directories:
            found.setdefault(directory.resolve(), directory)
    return list(found.values())


def _run_directories(path: Path) -> Iterator[Path]:
    """Those at or below ``path``, without the evaluations in them; nothing is read."""
    if path.is_file() and path.name == FILE_NAME:
        yield path.parent
        return
    for directory, below, files in os.walk(path, followlinks=False):
        below.sort()
        if FILE_NAME in files:
            below.clear()  # its evaluations are records of their own, to be named
            yield Path(directory)


# What the paths among a run's factors stand for: identified by content, so that places are not compared.


FINGERPRINT = "data.fingerprint"  # of a split: data.fingerprint.train


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


# What a run falls short of: the steps and frames of its settings, and the times of its steps that tell
# little.


# Of the middle half of the steps, relative to the median: above it a time per step is marked.
MOST_SPREAD = 0.5


def shortfalls(record: RunRecord) -> list[str]:
    """In few words each thing in which a run is less than the full run: ``12 of 40 steps``; empty of a full one."""
    return [*_dev_run(record), *_of_training(record), *_of_scores(record)]


def is_dev_run(record: RunRecord) -> bool:
    """Whether a run only tried out whether it would run, and its scores mean nothing."""
    return bool(_dev_run(record))


def spread(record: RunRecord) -> float | None:
    """The spread of the steps' times, relative to their median, where it exceeds the bound."""
    found = record.metrics.get(SPREAD, 0.0)
    return found if found > MOST_SPREAD else None


def _dev_run(record: RunRecord) -> list[str]:
    return ["trainer.fast_dev_run=true"] if record.factors.get("trainer.fast_dev_run") is True else []


def _of_training(record: RunRecord) -> Iterator[str]:
    own, factors = record.metrics, record.factors
    made, skipped = own.get("run/steps"), own.get("run/skipped_steps", 0.0)
    planned = own.get("run/planned_steps", factors.get("trainer.max_steps"))
    if made is not None and planned is not None and made < planned:
        yield f"{made:,.0f} of {planned:,.0f} steps"
    if made is not None and skipped:
        yield f"{skipped:,.0f} of {made:,.0f} steps skipped"
    if (share := own.get("run/epoch_share", 1.0)) < 1:
        yield f"{100 * share:.2g} % of an epoch's batches"
    for key, limit in factors.items():
        above, _, name = key.rpartition("trainer.")
        if name == "limit_train_batches" and (above or "run/planned_steps" not in own) and _limits(limit):
            yield f"{key}={limit}"


def _of_scores(record: RunRecord) -> Iterator[str]:
    for split in ("train", "val", "test"):
        scored, there = record.metrics.get(f"{split}/frames"), record.frames.get(f"{record.dataset}/{split}")
        limit = record.factors.get(f"trainer.limit_{split}_batches", 1.0)
        if scored is not None and there is not None:
            if scored < there:
                yield f"{scored:,.0f} of {there:,} {split} frames"
        elif split != "train" and any(k.startswith(f"{split}/") for k in record.metrics) and _limits(limit):
            yield f"trainer.limit_{split}_batches={limit}"


def _limits(value: Any) -> bool:
    """A whole number counts batches; a share of 1.0 is all of them."""
    return value is not None and (isinstance(value, int) or value != 1.0)
