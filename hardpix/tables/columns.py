"""Columns of a table of runs, labels of its rows, and phrases for their protocol."""

from __future__ import annotations

import csv
import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hardpix.config import command_line
from hardpix.record import BELOW, covers
from hardpix.scores import OF_CLASS, PER_CLASS, is_fraction, words_of
from hardpix.tables.compare import ABSENT, FINGERPRINT, Run, folded, group, shortfalls, text
from hardpix.tables.sheet import TIMES
from hardpix.types import DataError, HardpixError

Kind = Literal["value", "ratio", "difference", "test"]
SUFFIXES: dict[str, Kind] = {":x": "ratio", ":delta": "difference"}
DEFAULT = ("fg_iou", "miou", "mean_acc", "pixel_acc")  # fg_iou: of data sets that papers score by it


# Words that say less is better; fractions are better when more.
COSTS = frozenset({"loss", "seconds", "time", "ms", "memory", "mib", "gib", "mb", "bytes", "params", "flops"})
COSTS |= {"gflops", "parameters"}


@dataclass(frozen=True)
class Column:
    """A metric itself, its ratio to the reference row, its difference from it, or a test of that difference."""

    metric: str
    kind: Kind = "value"
    title: str = ""


def choose(columns: Sequence[str | Column], runs: Sequence[Run]) -> list[Column]:
    """What was asked for, wildcards filled in; without any the split's mIoU and accuracies."""
    known = sorted({metric for run in runs if run.record.status == "done" for metric in run.record.metrics})
    chosen: list[Column] = []
    for column in columns or _default(known):
        wanted = _parse(column) if isinstance(column, str) else column
        matching = fnmatch.filter(known, wanted.metric) if "*" in wanted.metric else [wanted.metric]
        # While no run is done, nobody can say which metrics exist: the cells say "running" or "failed".
        if known and (not matching or matching[0] not in known):
            hint = command_line.suggestion(wanted.metric, known)
            raise HardpixError(f"No finished run has a metric {wanted.metric!r}{hint}.")
        chosen += [Column(metric, wanted.kind, wanted.title) for metric in matching]
    return chosen


def _default(known: Sequence[str]) -> list[str]:
    for split in ("test", "val"):
        found = [f"{split}/{name}" for name in DEFAULT if f"{split}/{name}" in known]
        if found:
            return found
    if not known:
        return ["test/miou"]
    raise HardpixError(f"Name the metrics with --columns, because no run has test/miou; some of {known[:8]}.")


def _parse(spec: str) -> Column:
    metric, _, title = spec.partition("=")
    for suffix, kind in SUFFIXES.items():
        if metric.endswith(suffix):
            return Column(metric.removesuffix(suffix), kind, title)
    return Column(metric, "value", title)


def wants_classes(columns: Sequence[str | Column]) -> bool:
    names = [column if isinstance(column, str) else column.metric for column in columns]
    return any(name.startswith(OF_CLASS) for name in names)


def with_classes(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The finished runs with ``iou:CLASS`` and ``acc:CLASS`` among their metrics; and the classes, in their order."""
    found, names = [], dict[str, None]()
    for run in runs:
        lines = read_classes(Path(run.directory)) if run.record.status == "done" else []
        names |= dict.fromkeys(line["class"] for line in lines)
        own = {f"{kind}:{line['class']}": float(line[kind]) for line in lines for kind in ("iou", "acc")}
        found.append(run._replace(record=replace(run.record, metrics=run.record.metrics | own)))
    return found, list(names)


def read_classes(folder: Path) -> list[dict[str, str]]:
    """The lines of a run's ``per_class.csv``; none where it has left none."""
    path = folder / PER_CLASS
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        for line in lines:
            float(line["iou"]), float(line["acc"]), line["class"]
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); `hardpix evaluate` writes it again.") from None
    return lines


def title(column: Column) -> str:
    """What ratios and differences are to is said once below the table."""
    if column.title:
        return column.title
    name = column.metric.partition(":")[2] if column.metric.startswith("iou:") else column.metric
    unit = " (%)" if is_fraction(column.metric) else ""
    heads = {
        "value": f"{name}{unit}",
        "ratio": f"{name} {TIMES}",
        "difference": f"Δ {name}{unit}",
        "test": f"Δ {name}{unit} [95 %], p",
    }
    return heads[column.kind]


def direction(metric: str) -> int:
    """1 where more is better, -1 where less is, 0 where nobody can tell."""
    if is_fraction(metric):
        return 1
    return -1 if COSTS & words_of(metric) else 0


# Short names for factors and their values.


TARGET = "_target_"


def titles(factors: Sequence[str]) -> tuple[str, ...]:
    """``method._target_`` reads ``method``, ``method.alpha`` reads ``alpha``, unless two would coincide."""
    whole = [factor.removesuffix(f".{TARGET}") for factor in factors]
    short = [name.rpartition(".")[2] for name in whole]
    return tuple(s if short.count(s) == 1 else w for s, w in zip(short, whole, strict=True))


def labels(factor: str, values: Sequence[dict[str, Any]], declared: Sequence[str] = ()) -> list[str]:
    """One label for each row's values of one declared factor; different values read differently.

    What others of the ``declared`` factors say in a column of their own is not said again.

    ``hardpix.losses.OHEM`` reads ``OHEM``. A part of the configuration reads as its target, followed by the
    keys in which rows of that target differ: ``HardnessLevel (alpha=0.5)``. An absent value reads ``-``.
    """
    targets = [value.get(_target_key(factor)) for value in values]
    names = {target: _short(str(target)) for target in targets if target is not None}
    common = Counter(names.values())
    names = {target: name if common[name] == 1 else str(target) for target, name in names.items()}
    result = []
    for value, target in zip(values, targets, strict=True):
        peers = [other for other, its in zip(values, targets, strict=True) if its == target]
        differing = _parameters(factor, value, peers, declared)
        result.append(" ".join(filter(None, [names.get(target), differing])) or "-")
    return result


def _target_key(factor: str) -> str:
    return factor if factor.endswith(TARGET) else f"{factor}.{TARGET}"


def _parameters(
    factor: str, value: dict[str, Any], peers: Sequence[dict[str, Any]], declared: Sequence[str]
) -> str:
    if factor in value and not factor.endswith(TARGET):
        return text(value[factor])
    told_apart = [other for other in declared if other != factor and covers([factor], other)]
    keys = {key for peer in peers for key in peer} - {_target_key(factor)}
    keys = {key for key in keys if not covers(told_apart, key)}
    differing = [key for key in sorted(keys) if len({text(peer.get(key, ABSENT)) for peer in peers}) > 1]
    parts = [f"{key.removeprefix(factor + '.')}={text(value[key])}" for key in differing if key in value]
    return f"({', '.join(parts)})" if parts else ""


def _short(target: str) -> str:
    return target.rpartition(".")[2]


# Find the row of a table that a user means.


def row(selector: str, rows: Sequence[str], names: Sequence[tuple[str, ...]], option: str) -> int:
    """The one row whose labels are those asked for: ``loss=cross_entropy`` finds ``CrossEntropy``.

    ``rows``: the declared factors. ``names``: the labels of each row. A word finds the labels that begin with it
    (``hardness``: ``HardnessLevel``) where none is equal. ``option`` is named in the error.
    """
    whole = [i for i, labels in enumerate(names) if folded(selector) == folded(", ".join(_selected(labels)))]
    if len(whole) == 1:
        return whole[0]
    wanted = [part.strip().rpartition("=")[::2] for part in selector.split(",")]
    places = {
        name: i for i, factor in enumerate(rows) for name in (factor, factor.removesuffix(f".{TARGET}"))
    }
    unknown = [factor for factor, _ in wanted if factor and factor not in places]
    if unknown:
        raise HardpixError(f"{option} names {unknown[0]!r}, which is none of the rows' factors {list(rows)}.")
    for fits in (lambda own, word: own == word, lambda own, word: own.startswith(word)):
        found = [
            i
            for i, labels in enumerate(names)
            if all(
                any(fits(folded(label), folded(value)) for label in ([labels[places[f]]] if f else labels))
                for f, value in wanted
            )
        ]
        if found:
            break
    if len(found) != 1:
        labels_found = "; ".join(", ".join(labels) for labels in sorted(names))
        raise HardpixError(
            f"{option} {selector!r} fits {len(found)} rows and must fit one of: {labels_found}."
        )
    return found[0]


def _selected(labels: Sequence[str]) -> list[str]:
    return [label for label in labels if label != "-"]


# Phrases for the size of a training: crop, batch, length, start, frames.


Factors = Mapping[str, Any]
PARENT_PREFIX = "parent_config."  # before the factors of the parent run


def _size(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else text(value)


def _length(own: Factors) -> str:
    steps, epochs = own.get("trainer.max_steps"), own.get("trainer.max_epochs")
    return f"{steps:,} steps" if steps is not None else f"{epochs} epochs" if epochs is not None else ""


def _start(own: Factors) -> str:
    if own.get("init_from"):
        return "weights of another run"
    pretrained = own.get("backbone.pretrained", ABSENT)
    if pretrained is ABSENT:
        return ""
    tag = str(own.get("backbone.name") or "").partition(".")[2]  # of timm's weights
    return {True: f"pre-trained {tag}".strip(), False: "from scratch"}.get(pretrained, "weights from a file")


def _backbone(own: Factors) -> str:
    name, target = own.get("backbone.name"), own.get("backbone._target_", "")
    return str(name).partition(".")[0] if name else str(target).rpartition(".")[2]


def _key(key: str, shown: Callable[[Any], str] = text) -> Callable[[Factors], str]:
    return lambda own: "" if own.get(key) is None else shown(own[key])


# Name of a setting, how its value reads, and the keys it covers; a word that needs no name has none.
SETTINGS: tuple[tuple[str, Callable[[Factors], str], tuple[str, ...]], ...] = (
    ("crop", _key("data.train_transform.crop", _size), ("data.train_transform.crop",)),
    ("images", _key("data.test_transform.resize", _size), ("data.test_transform.resize",)),
    ("batch", _key("data.batch_size"), ("data.batch_size",)),
    ("accumulated", _key("trainer.accumulate"), ("trainer.accumulate",)),
    ("processes", _key("trainer.world_size"), ("trainer.world_size",)),
    ("", _length, ("trainer.max_steps", "trainer.max_epochs")),
    ("backbone", _backbone, ("backbone",)),
    ("", _start, ("init_from", "backbone.pretrained", "backbone.name")),
    ("inference", _key("inference._target_", lambda name: name.rpartition(".")[2]), ("inference",)),
)
# What changes nothing by itself: it follows from another setting that is shown.
SIMPLE = {"accumulated": "1", "processes": "1", "images": "", "inference": "WholeImage"}


def phrases(own: Factors) -> list[str]:
    """Of runs that stand for no paper: ``crop 96x128, batch 8, 240 steps, from scratch``."""
    found = []
    for name, value, _ in SETTINGS:
        word = value(own)
        if word and word != SIMPLE.get(name):
            found.append(f"{name} {word}".strip())
    return found


def of_run(run: Run) -> str:
    """With the frames of its training, and what it falls short of."""
    frames = [count for key, count in run.record.frames.items() if key.endswith("/train")]
    frame_count = [f"{frames[0]:,} training frames"] if len(frames) == 1 else []
    return ", ".join([*phrases(run.record.factors), *frame_count, *shortfalls(run.record)])


def departures(
    own: Factors, keys: Mapping[str, tuple[Any, Any]], frames: Mapping[str, tuple[int, int]]
) -> str:
    """``crop 144x192 (512x1024), 300 steps (40,000), from scratch``: ours, and the paper's in parentheses.

    ``own``: a run's factors. ``keys`` and ``frames``: where it departs, and the two values. Empty at the protocol.
    """
    found: list[str] = []
    unsaid = 0
    for depth in sorted({_depth(key) for key in keys}):
        below = PARENT_PREFIX * depth
        mine = {key.removeprefix(below): value for key, value in own.items() if _depth(key) == depth}
        differing = {key.removeprefix(below): pair for key, pair in keys.items() if _depth(key) == depth}
        phrases_found, spoken = _departure_phrases(mine, differing)
        found += [f"{'stage below: ' if depth else ''}{words}" for words in phrases_found]
        unsaid += len(differing) - spoken
    found += [f"{count:,} {name} ({whole:,})" for name, (count, whole) in frames.items()]
    if unsaid:
        found.append(f"{'and ' if found else ''}{unsaid} other setting{'s' if unsaid > 1 else ''}")
    return ", ".join(found)


def _depth(key: str) -> int:
    """How many runs below its own a factor belongs to."""
    return len(re.match(rf"(?:{re.escape(PARENT_PREFIX)})*", key)[0]) // len(PARENT_PREFIX)  # type: ignore[index]


def _departure_phrases(own: Factors, keys: Mapping[str, tuple[Any, Any]]) -> tuple[list[str], int]:
    """The phrases, and how many of the keys they speak for."""
    wanted = {key: value for key, value in own.items() if key not in keys}
    wanted |= {key: theirs for key, (_, theirs) in keys.items() if theirs is not ABSENT}
    found: list[str] = []
    spoken: list[str] = []
    for name, value, of in SETTINGS:
        concerned = [key for key in keys if covers(of, key) and key not in spoken]
        here, there = value(own), value(wanted)
        if concerned and here != there:
            spoken += concerned
            found.append(_phrase(name, here or "none", there or "none"))
    return found, len(spoken)


def _phrase(name: str, here: str, there: str) -> str:
    if here == "from scratch":
        return here
    unit = here.partition(" ")[2] if not name else ""
    there = there.removesuffix(f" {unit}") if unit in ("steps", "epochs") else there
    return f"{name} {here} ({there})".strip()


# Number of frames of the pretraining, as a factor of runs with another run's weights.


FACTOR = "pretraining.frames"
START = ("init_from", "parent_config")  # how the start was trained, and which of its weights were taken
# What decides how many frames there are; the start may not differ in anything else.
AMOUNT = (
    "parent_config.data.source.root",
    "parent_config.data.source.train_frames",
    f"{BELOW}{FINGERPRINT}",
)


def with_pretraining(runs: Sequence[Run], ignore: Sequence[str] = ()) -> list[Run]:
    """The runs that no other one of ``runs`` starts from, with the training frames of their own start as FACTOR.

    A run that starts from none has 0. Raises where a start is not among ``runs``, or where starts differ in more than
    their frames; what remains of a run's factors is how it was trained itself.
    """
    by_id = {run.record.run_id: run for run in runs}
    starts = {run.record.parent for run in runs}
    kept = [run for run in runs if run.record.run_id not in starts]
    started = [run for run in kept if run.record.parent is not None]
    for run in started:
        if run.record.parent not in by_id:
            raise HardpixError(
                f"{run.directory} starts from run {run.record.parent}, which is not among the named ones: name its "
                f"directory, too, since --x {FACTOR} counts its frames."
            )
    if started:
        group(started, [], ignore=(*AMOUNT, *_own_keys(started), *ignore))
    return [_with_factor(run, by_id) for run in kept]


def _own_keys(runs: Sequence[Run]) -> list[str]:
    """Factors that are not of the start: a table compares them later, with those that it declares."""
    return sorted({key for run in runs for key in run.record.factors if not covers(START, key)})


def _with_factor(run: Run, by_id: dict[str, Run]) -> Run:
    frames = 0
    if run.record.parent is not None:
        start = by_id[run.record.parent]
        key = f"{start.record.dataset}/train"
        if key not in start.record.frames:
            raise HardpixError(f"{start.directory}/run.json does not tell how many frames {key} has.")
        frames = start.record.frames[key]
    own = {key: value for key, value in run.record.factors.items() if not covers(START, key)}
    data = {key: value for key, value in run.record.data.items() if not key.startswith(BELOW)}
    return Run(run.directory, replace(run.record, factors=own | {FACTOR: frames}, data=data))
