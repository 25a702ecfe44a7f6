"""Aggregate runs to a table: mean, deviation and n over seeds, and which runs are missing."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hardpix.record import STEP_SECONDS, covers
from hardpix.tables import columns as of_table
from hardpix.tables import compare, significance
from hardpix.tables.columns import TARGET, Column, Kind, labels, titles
from hardpix.tables.compare import Run, spread, text
from hardpix.tables.significance import Options, PairedTest, PairedTests
from hardpix.types import HardpixError

DEFAULT_ROWS = ("method", "loss")


@dataclass(frozen=True)
class Row:
    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    n: int  # seeds that are done
    runs: tuple[Run, ...] = ()  # one of each seed
    lacks: tuple[Gap, ...] = ()
    protocol: str = ""  # how large the training was


@dataclass(frozen=True)
class Table:
    factors: tuple[str, ...]  # titles of the label columns
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]  # the reference first, then by label; rows of one label stay together
    notes: tuple[str, ...]
    reference: str = ""  # label of the reference row
    against: str = ""  # label of the row that the others are tested against


def table(
    runs: Sequence[Run],
    rows: Sequence[str] = DEFAULT_ROWS,
    columns: Sequence[str | Column] = (),
    relative_to: str | None = None,
    ignore: Sequence[str] = (),
    *,
    against: str | None = None,
    options: Options | None = None,
    per_class: bool = False,
    combinations: bool = False,
    choose: Choose = lambda group, factors: "",
) -> Table:
    """Aggregate comparable ``runs`` (see :func:`hardpix.tables.compare.group`, which refuses others).

    Columns are metrics as in the records, with ``*`` as wildcard, ``iou:CLASS`` of one class, ``:x`` for the ratio of
    means to the reference row (its deviation is that of the seeds' own ratios), ``:delta`` for the mean difference from
    it, both over common seeds, and ``=Title`` to rename. ``relative_to`` names that row as ``factor=value`` (several
    separated by commas) or by its label. ``against`` names a row likewise and adds a test of the difference from it to
    every metric, unless ``columns`` has columns of kind ``test`` (needs NumPy). ``per_class`` adds the IoU of each
    class, ``combinations`` the rows of the factors' product that have no run, and ``choose`` names files of the
    configuration for commands.
    """
    runs = sorted(runs, key=lambda run: run.directory)
    runs, classes = (
        of_table.with_classes(runs) if per_class or of_table.wants_classes(columns) else (runs, [])
    )
    groups = compare.group(runs, rows, ignore)
    notes: list[str] = []
    found = [by_seed(group.runs, notes) for group in groups]
    named = [labels(rows[i], [g.values[i] for g in groups], rows) for i in range(len(rows))]
    names = list(zip(*named, strict=True))
    chosen = of_table.choose(columns, runs)
    if per_class:
        chosen += [Column(f"iou:{name}") for name in classes]
    tested = None if against is None else of_table.row(against, rows, names, "--against")
    first = tested if relative_to is None else of_table.row(relative_to, rows, names, "--relative-to")
    if first is None and any(column.kind != "value" for column in chosen):
        raise HardpixError(
            "A :x or :delta column needs --relative-to, such as --relative-to loss=cross_entropy."
        )
    if tested is not None and all(column.kind != "test" for column in chosen):
        chosen = [made for column in chosen for made in _with_test(column)]

    seeds = sorted({seed for own in found for seed in own})

    def expected(place: int) -> list[int]:
        """The seeds that a row should have: those of the table, unless it stands for a seed itself."""
        return sorted(found[place]) if "seed" in rows else seeds

    options = options or Options()
    tester = PairedTests(options)
    made = [
        Row(
            names[i],
            tuple(_cells(chosen, found, i, first, tested, expected(i), tester)),
            sum(run.record.status == "done" for run in found[i].values()),
            tuple(found[i][seed] for seed in sorted(found[i])),
            tuple(_row_gaps(found[i], expected(i), chosen, rows, choose)),
            "; ".join(dict.fromkeys(map(of_table.of_run, groups[i].runs))),
        )
        for i in range(len(groups))
    ]
    if combinations:
        made += _absent(groups, found, named, chosen, rows, seeds, choose)
    lead = () if first is None else names[first]
    made.sort(key=lambda row: _place(row.labels, lead))
    notes += compare.warnings(runs, ignore)
    tests = [
        (", ".join(row.labels), cell.test) for row in made for cell in row.cells if cell.test is not None
    ]
    said = ["" if i is None else ", ".join(x for x in names[i] if x != "-") for i in (first, tested)]
    notes = [*significance.about(tests, said[1], seeds, options), *notes]
    return Table(titles(rows), tuple(chosen), tuple(made), tuple(notes), *said)


def _with_test(column: Column) -> list[Column]:
    return [column, Column(column.metric, "test")] if column.kind == "value" else [column]


def _cells(
    columns: Sequence[Column],
    found: Sequence[Mapping[int, Run]],
    place: int,
    first: int | None,
    tested: int | None,
    seeds: Sequence[int],
    tester: PairedTests,
) -> list[Cell]:
    outcomes = outcomes_of(found[place])
    cells = []
    for column in columns:
        reference = tested if column.kind == "test" else first
        base = {} if reference is None else found[reference]
        cell = aggregate(column, outcomes, outcomes_of(base), seeds)
        if column.kind == "test" and place != reference:
            cell = replace(cell, test=tester.test(found[place], base, column.metric))
        cells.append(cell)
    return cells


def _row_gaps(
    found: Mapping[int, Run],
    seeds: Sequence[int],
    columns: Sequence[Column],
    rows: Sequence[str],
    choose: Choose,
) -> list[Gap]:
    """What one row lacks, with commands after the example of its finished run, if it has one."""
    example = min(found.values(), key=lambda run: run.record.status != "done")
    metrics = list(dict.fromkeys(column.metric for column in columns))

    def command(seed: int) -> str:
        return rerun_command(example, seed) or from_factors(example, rows, seed, choose)

    return gaps_of_row(found, seeds, metrics, command, unstated_settings(example))


def _absent(
    groups: Sequence[compare.Group],
    found: Sequence[Mapping[int, Run]],
    named: Sequence[Sequence[str]],
    columns: Sequence[Column],
    rows: Sequence[str],
    seeds: Sequence[int],
    choose: Choose,
) -> list[Row]:
    """Rows of the factors' product that have no run. The command is put together from rows that share a value."""
    have = set(zip(*named, strict=True))
    examples = [min(own.values(), key=lambda run: run.record.status != "done") for own in found]
    made = []
    for wanted in itertools.product(*(dict.fromkeys(names) for names in named)):
        if wanted in have:
            continue
        alike = [
            sum(names[i] == label for names, label in zip(named, wanted, strict=True))
            for i in range(len(groups))
        ]
        template = alike.index(max(alike))
        donors = {
            factor: examples[names.index(label)]
            for factor, names, label in zip(rows, named, wanted, strict=True)
            if names[template] != label
        }
        own = [int(wanted[rows.index("seed")])] if "seed" in rows else seeds
        commands = [combined(examples[template], donors, rows, seed, choose) for seed in own]
        lack = missing_seeds(own, commands, unstated_settings(examples[template]))
        cell = Cell(math.nan, math.nan, 0, len(own), (("missing", len(own)),))
        made.append(Row(wanted, (cell,) * len(columns), 0, lacks=(lack,)))
    return made


def _place(own: Sequence[str], lead: Sequence[str]) -> list[tuple[Any, ...]]:
    """The reference's group first, and in it the reference; all else by size and name."""
    return [(tuple(own[: i + 1]) != tuple(lead[: i + 1]), natural(label)) for i, label in enumerate(own)]


def natural(label: str) -> tuple[int, float, str]:
    """Numbers by size and before words."""
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label.lower())


# Mean, deviation and n over the seeds of one cell, and why some give no value.


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation (n - 1; NaN below two values) in the metric's own unit.

    ``states`` counts the seeds that gave no value: ``failed``, ``interrupted``, ``pruned``, ``running``, ``missing``
    (no run for a seed that other rows have, or a run without the metric), ``nan``, and ``no reference`` where the
    reference row has none. One NaN leaves no mean: averaging the seeds that did not diverge would flatter the method.
    Runs that are not done never enter a mean. ``test``: of the difference from the row that is tested against.
    """

    mean: float
    std: float
    n: int
    total: int
    states: tuple[tuple[str, int], ...] = ()
    test: PairedTest | None = None


# The outcome of one seed: what its metrics are, or the status that says why there are none.
Outcome = dict[str, float] | str


def by_seed(runs: Sequence[Run], notes: list[str]) -> dict[int, Run]:
    """One run per seed: an unfinished attempt gives way to a finished one; two finished are refused."""
    found: dict[int, Run] = {}
    rank = {"done": 3, "running": 2, "interrupted": 1}
    for run in sorted(runs, key=lambda run: run.directory):
        other = found.setdefault(run.record.seed, run)
        if other is run:
            continue
        if other.record.status == run.record.status == "done":
            raise HardpixError(
                f"{other.directory} and {run.directory} are finished runs of the same row with the same seed "
                f"{run.record.seed}, so one of them must be left out."
            )
        better, worse = sorted((other, run), key=lambda r: -rank.get(r.record.status, 0))
        found[run.record.seed] = better
        notes.append(
            f"Left out: {worse.directory} ({worse.record.outcome}), attempted again as {better.directory}."
        )
    return found


def outcomes_of(found: Mapping[int, Run]) -> dict[int, Outcome]:
    """What each seed's run scored, or its status."""
    return {
        seed: run.record.metrics if run.record.status == "done" else run.record.outcome
        for seed, run in found.items()
    }


def outcomes_by_seed(runs: Sequence[Run], notes: list[str]) -> dict[int, Outcome]:
    return outcomes_of(by_seed(runs, notes))


def aggregate(
    column: Column, own: dict[int, Outcome], base: dict[int, Outcome], seeds: Sequence[int]
) -> Cell:
    got = {seed: _value(own.get(seed, "missing"), column.metric) for seed in seeds}
    values = {seed: value for seed, value in got.items() if not isinstance(value, str)}
    counts = Counter(value for value in got.values() if isinstance(value, str))
    if column.kind != "value":
        against = {seed: _value(base.get(seed, "missing"), column.metric) for seed in values}
        counts["no reference"] = sum(isinstance(value, str) for value in against.values())
        values = {seed: values[seed] for seed in values if not isinstance(against[seed], str)}
        numbers = [float(against[seed]) for seed in values]
        return _summary(column.kind, list(values.values()), numbers, counts, len(seeds))
    return _summary("value", list(values.values()), [], counts, len(seeds))


def _value(outcome: Outcome, metric: str) -> float | str:
    if isinstance(outcome, str):
        return outcome
    value = outcome.get(metric)
    if value is None:
        return "missing"
    return "nan" if math.isnan(value) else value


def _summary(kind: Kind, values: list[float], against: list[float], counts: Counter[str], total: int) -> Cell:
    states = tuple(sorted((state, count) for state, count in counts.items() if count))
    n = len(values)
    if not n or counts["nan"]:
        return Cell(math.nan, math.nan, n, total, states)
    if kind == "ratio":
        below = _mean(against)
        each = [value / base if base else math.nan for value, base in zip(values, against, strict=True)]
        return Cell(_mean(values) / below if below else math.nan, _deviation(each), n, total, states)
    if kind in ("difference", "test"):
        values = [value - base for value, base in zip(values, against, strict=True)]
    return Cell(_mean(values), _deviation(values), n, total, states)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    """Without the module statistics, whose exact fractions take a quarter of the time of a large table."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


# Missing runs of a row: seeds not run, failed or running, with the command that runs them.


# The name of the file that a group is chosen by, from the group and a run's factors; empty where none fits.
Choose = Callable[[str, Mapping[str, Any]], str]

UNSTEADY = "uneven"  # of a cell that has its value, of which a note says how little it tells
RUN_KEYS = ("run", "resume", "seed", "reproduces")  # of the run that a command was made for


@dataclass(frozen=True)
class Gap:
    """``metric``: of the only column that is concerned; empty where all are. ``commands``: one for each seed."""

    state: str
    seeds: tuple[int, ...]
    words: str
    commands: tuple[str, ...] = ()
    metric: str = ""


def gaps_of_row(
    found: Mapping[int, Run],
    seeds: Sequence[int],
    metrics: Sequence[str],
    command: Callable[[int], str],
    caution: str = "",
) -> list[Gap]:
    """``found``: the row's runs by seed, of all ``seeds`` of the table; ``command`` names one for a seed."""
    absent = [seed for seed in seeds if seed not in found]
    lacks = [missing_seeds(absent, list(map(command, absent)), caution)] if absent else []
    unfinished: dict[tuple[str, str], list[int]] = {}
    for seed, run in sorted(found.items()):
        if run.record.status == "done":
            for metric in metrics:
                if metric not in run.record.metrics:
                    words = f"{run.directory} has no {metric}"
                    lacks.append(Gap("missing", (seed,), words, metric=metric))
        else:
            unfinished.setdefault((run.record.outcome, reason(run)), []).append(seed)
    lacks += [Gap(state, tuple(own), f"{_seeds(own)} {words}") for (state, words), own in unfinished.items()]
    return lacks + (_unsteady_timing(found) if STEP_SECONDS in metrics else [])


def _unsteady_timing(found: Mapping[int, Run]) -> list[Gap]:
    """The seeds whose time per step says little."""
    spreads = {seed: wide for seed, run in sorted(found.items()) if (wide := spread(run.record)) is not None}
    if not spreads:
        return []
    shares = ", ".join(f"{100 * wide:.0f} %" for wide in spreads.values())
    words = f"{_seeds(list(spreads))}: the middle half of the steps spreads over {shares} of the median step's time"
    return [Gap(UNSTEADY, tuple(spreads), words, metric=STEP_SECONDS)]


def missing_seeds(seeds: Sequence[int], commands: Sequence[str], caution: str = "") -> Gap:
    words = f"{_seeds(seeds)} not run{f' ({caution})' if caution else ''}"
    return Gap("missing", tuple(seeds), words, tuple(filter(None, commands)))


def unstated_settings(example: Run) -> str:
    """What a command made after this run's own does not say."""
    own = example.record
    if "evaluation.split" in own.factors:
        return "evaluate the run of that seed"
    if any(key_of(word) in ("parent", "init_from") for word in own.overrides):
        return "give it the parent run of its own seed"
    return "" if own.overrides else f"and the other settings of {example.directory}/config.yaml"


def joined_commands(commands: Sequence[str]) -> tuple[str, ...]:
    """Commands for one seed each, which differ in nothing else, as one for all of them."""
    parts = [command.rpartition(" seed=") for command in commands]
    if len(parts) < 2 or len({head for head, _, _ in parts}) > 1:
        return tuple(commands)
    head = parts[0][0].replace("hardpix train", "hardpix train -m", 1)
    return (f"{head} seed={','.join(seed for _, _, seed in parts)}",)


def reason(run: Run) -> str:
    """``failed: OutOfMemoryError: ... (runs/a)``: the first line of what a run ended with."""
    if run.record.status == "running":
        return f"running since {run.record.started or 'an unknown time'}"
    if run.record.status == "interrupted":
        return "interrupted by a signal" + (f": {run.record.reason}" if run.record.reason else "")
    return f"{run.record.outcome}: {run.record.reason or 'its record gives no reason'}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def rerun_command(run: Run, seed: int) -> str:
    """The command of ``run`` for another seed; empty where its record does not hold it, or it is an evaluation."""
    return _command([*_kept(run), f"seed={seed}"]) if run.record.overrides else ""


def from_factors(run: Run, factors: Sequence[str], seed: int, choose: Choose) -> str:
    """Of the declared factors alone; empty for an evaluation."""
    evaluated = "evaluation.split" in run.record.factors
    return "" if evaluated else _command([*by_factors(run, factors, choose), f"seed={seed}"])


def combined(template: Run, donors: Mapping[str, Run], rows: Sequence[str], seed: int, choose: Choose) -> str:
    """The command of ``template`` with other values of some factors: those of the ``donors``, by factor.

    Without recorded command lines the factors alone, by the names of their files.
    """
    if "evaluation.split" in template.record.factors:
        return ""
    shared = [factor for factor in rows if factor not in donors]
    words = _kept(template) if template.record.overrides else by_factors(template, shared, choose)
    for factor, donor in donors.items():
        group = factor.removesuffix(f".{TARGET}")
        own = [word for word in _kept(donor) if covers([group], key_of(word))]
        same = _chosen(template, "experiment") == _chosen(donor, "experiment")
        if not own and not (donor.record.overrides and same):
            own = by_factors(donor, [factor], choose)
        words = [word for word in words if not covers([group], key_of(word))] + own
    return _command([*words, f"seed={seed}"])


def by_factors(run: Run, factors: Sequence[str], choose: Choose) -> list[str]:
    """Overrides that name a run's declared factors: ``method=hardness method.alpha=0.1``."""
    own = run.record.factors
    words = []
    for factor in factors:
        group = factor.removesuffix(f".{TARGET}")
        if group in own:
            words.append(f"{group}={text(own[group])}")
        elif name := choose(group, own):
            words.append(f"{group}={name}")
    return words


def _command(words: Sequence[str]) -> str:
    return " ".join(["hardpix train", *map(shlex.quote, words)])


def _kept(run: Run) -> list[str]:
    return [
        word
        for word in run.record.overrides
        if key_of(word) not in RUN_KEYS and not key_of(word).startswith("hydra")
    ]


def _chosen(run: Run, key: str) -> str:
    return next((word for word in run.record.overrides if key_of(word) == key), "")


def key_of(override: str) -> str:
    """``~a``, ``+a.b=1`` and ``a.b@c=1`` are about a and a.b."""
    return re.split(r"[=@]", override.lstrip("+~"), maxsplit=1)[0].replace("/", ".")
