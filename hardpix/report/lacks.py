"""What a row of a table lacks: seeds that were not run, that failed or go on, with the command that fills them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hardpix.report.collect import Run
from hardpix.report.compare import covers, text
from hardpix.report.labels import TARGET
from hardpix.report.partial import STEP_SECONDS, spread

# The name of the file that a group is chosen by, from the group and a run's factors; empty where none fits.
Choose = Callable[[str, Mapping[str, Any]], str]

UNEVEN = "uneven"  # of a cell that has its value, of which a note says how little it tells
OWN = ("run", "resume", "seed", "reproduces")  # of the run that a command was made for


@dataclass(frozen=True)
class Lack:
    """``metric``: of the only column that is concerned; empty where all are. ``commands``: one for each seed."""

    state: str
    seeds: tuple[int, ...]
    words: str
    commands: tuple[str, ...] = ()
    metric: str = ""


def of_row(
    found: Mapping[int, Run],
    seeds: Sequence[int],
    metrics: Sequence[str],
    command: Callable[[int], str],
    caution: str = "",
) -> list[Lack]:
    """``found``: the row's runs by seed, of all ``seeds`` of the table; ``command`` names one for a seed."""
    absent = [seed for seed in seeds if seed not in found]
    lacks = [missing(absent, list(map(command, absent)), caution)] if absent else []
    told: dict[tuple[str, str], list[int]] = {}
    for seed, run in sorted(found.items()):
        if run.record.status == "done":
            for metric in metrics:
                if metric not in run.record.metrics:
                    words = f"{run.directory} has no {metric}"
                    lacks.append(Lack("missing", (seed,), words, metric=metric))
        else:
            told.setdefault((run.record.outcome, reason(run)), []).append(seed)
    lacks += [Lack(state, tuple(own), f"{_seeds(own)} {words}") for (state, words), own in told.items()]
    return lacks + (_uneven(found) if STEP_SECONDS in metrics else [])


def _uneven(found: Mapping[int, Run]) -> list[Lack]:
    """The seeds whose time per step says little."""
    spreads = {seed: wide for seed, run in sorted(found.items()) if (wide := spread(run.record)) is not None}
    if not spreads:
        return []
    shares = ", ".join(f"{100 * wide:.0f} %" for wide in spreads.values())
    words = f"{_seeds(list(spreads))}: the middle half of the steps spreads over {shares} of the median step's time"
    return [Lack(UNEVEN, tuple(spreads), words, metric=STEP_SECONDS)]


def missing(seeds: Sequence[int], commands: Sequence[str], caution: str = "") -> Lack:
    words = f"{_seeds(seeds)} not run{f' ({caution})' if caution else ''}"
    return Lack("missing", tuple(seeds), words, tuple(filter(None, commands)))


def caution(example: Run) -> str:
    """What a command made after this run's own does not say."""
    own = example.record
    if "evaluation.split" in own.factors:
        return "evaluate the run of that seed"
    if any(key_of(word) in ("parent", "init_from") for word in own.overrides):
        return "give it the run of its own seed to stand on"
    return "" if own.overrides else f"and the other settings of {example.directory}/config.yaml"


def at_once(commands: Sequence[str]) -> tuple[str, ...]:
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


def again(run: Run, seed: int) -> str:
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
        if key_of(word) not in OWN and not key_of(word).startswith("hydra")
    ]


def _chosen(run: Run, key: str) -> str:
    return next((word for word in run.record.overrides if key_of(word) == key), "")


def key_of(override: str) -> str:
    """``~a``, ``+a.b=1`` and ``a.b@c=1`` are about a and a.b."""
    return re.split(r"[=@]", override.lstrip("+~"), maxsplit=1)[0].replace("/", ".")
