"""Which runs may stand in one table: grouping by declared factors, and refusal of any other difference."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hardpix.record import WORLD_SIZE
from hardpix.report.collect import Run
from hardpix.report.identity import by_content, follows, may_be_unknown
from hardpix.report.partial import shortfalls
from hardpix.types import HardpixError

# Factors that cannot change what a run learns. An entry covers the key itself and all keys below it.
IGNORED = (
    *("seed", "data.seed"),  # what a table averages over
    *("run", "study", "runs_dir", "resume", "parent", "trusted", "reproduces"),  # names and places
    *("logger", "callbacks", "panels", "trainer.log_every_steps", "trainer.sanity_steps"),  # what watches
    *("trainer.val_every_steps", "trainer.val_every_epochs"),  # see `ignored`
    *("data.num_workers", "data.pin_memory", "data.source.cache_dir"),  # how frames arrive, not which
    *(
        "trainer.devices",
        "trainer.num_nodes",
        "trainer.strategy",
    ),  # compared as trainer.world_size
    # What came of these is told: see `warnings`.
    *("data.on_error", "data.max_skip", "data.accept_change", "data.source.depth_missing"),
)
# How often a run validates decides which of its weights are the best: it matters where those are scored.
WATCHES = ("trainer.val_every_steps", "trainer.val_every_epochs")
BEST_WEIGHTS = ("test_weights", "evaluation.weights", "parent_weights")
# Facts of the machine: they move a score by rounding and a cost by a lot, so they are told below the table.
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
        opened += ("parent_config",)  # a method that stands on other runs brings theirs along
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
    return [_told(*item) for item in _differences(runs, keys).items()]


def ignored(factors: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """IGNORED of runs with these factors: without WATCHES where some run is scored with its best weights."""
    watched = any("best" in (own.get(key) for key in BEST_WEIGHTS) for own in factors)
    return tuple(key for key in IGNORED if key not in WATCHES) if watched else IGNORED


def covers(parts: Iterable[str], key: str) -> bool:
    """Whether ``key`` is one of ``parts`` or lies below one."""
    return any(key == part or key.startswith(part + ".") for part in parts)


def silenced(parts: Iterable[str], key: str) -> bool:
    """Whether ``parts`` cover ``key``; what cannot matter in a run cannot in the run that it stands on."""
    own = re.sub(r"^(parent_config\.)+", "", key)
    return covers(parts, key) or covers(parts, own)


def warnings(runs: Sequence[Run], ignore: Sequence[str] = ()) -> list[str]:
    """One line for each fact outside the compared factors that the reader of a table should know."""
    seen = by_content(runs)[0]
    known = {key for run in seen for key in run.record.factors}
    asked = [key for key in sorted(known) if covers(ignore, key)]
    lines = [f"Ignored as asked: {_told(*item)}." for item in _differences(seen, asked).items()]
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
            told = ", ".join(f"{value} ({n} of {len(runs)} runs)" for value, n in sorted(counts.items()))
            lines.append(f"Runs differ in {key}: {told}.")
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
    """What is told but never refused: machine, versions, commit, precision."""
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


def suggestion(word: str, known: Iterable[str]) -> str:
    """`` (did you mean a, b?)`` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=3)
    return f" (did you mean {', '.join(close)}?)" if close else ""


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


def _told(key: str, values: dict[str, str]) -> str:
    told = [f"{value} in {directory}" for value, directory in list(values.items())[:MAX_VALUES]]
    more = [f"{len(values) - MAX_VALUES} more values"] if len(values) > MAX_VALUES else []
    return f"{key} ({', '.join(told + more)})"


def _refusal(count: int, differences: dict[str, dict[str, str]]) -> str:
    told = [_told(key, differences[key]) for key in sorted(differences)[:MAX_KEYS]]
    more = [f"{len(differences) - MAX_KEYS} more keys"] if len(differences) > MAX_KEYS else []
    return (
        f"These {count} runs are not comparable, because they differ in {'; '.join(told + more)}: "
        "declare these factors (rows of a table, --x or --lines of a figure), leave runs out, or name with --ignore a "
        "key that cannot matter."
    )
