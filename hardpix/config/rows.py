"""Published rows: names for lists of plain overrides, one file per paper, ``conf/rows/PAPER.yaml``.

A row is a list of what ``hardpix train`` is given, or a mapping for a row that takes more than one command::

    pspnet_r101: [experiment=hl/cityscapes, backbone=resnet101c_d8, head=psp]
    fig7_alpha: [experiment=lwm/nyuv2, "method.alpha=0.01,0.1,1"]           # a run for each value
    detail: {chain: error_prediction/dpc, overrides: [...]}       # a stage of conf/studies/error_prediction/dpc.yaml
    detail_ms: {evaluate: detail, overrides: [inference=multiscale]}        # the run of another row, scored otherwise
    alike: {ssim: [pspnet_r101_hl, pspnet_r50_hl]}                          # hardness maps of two rows' runs, compared

Which cells of the published tables a row fills is said there: ``cells`` in ``conf/table/PAPER/TABLE.yaml``. A run fills
the cells that its key ``reproduces`` names, so the command of a row has that key. Neither torch nor Hydra is imported.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hardpix.config import published, safe_files
from hardpix.config.catalog import ROW, conf_dir
from hardpix.config.command_line import suggestion
from hardpix.config.published import REFERENCE, Layout, layout, matches
from hardpix.types import ConfigError

KINDS = ("chain", "evaluate", "ssim")
SEVERAL = re.compile(r"([\w./]+)=([^\[\]{}'\"]+,[^\[\]{}'\"]+)")  # method.alpha=0.1,1


@dataclass(frozen=True)
class Row:
    """One row. ``cells``: patterns PAPER/TABLE/ROW/COLUMN; ``${key}`` in one stands for the value of that key."""

    paper: str
    name: str
    overrides: tuple[str, ...]
    chain: str = ""  # the file of conf/studies of which the row is a stage
    evaluate: str = ""  # the row, of the same paper, whose run is scored with these overrides
    ssim: tuple[str, ...] = ()  # the two rows whose runs are compared; then there are no overrides
    cells: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        return f"{self.paper}/{self.name}"

    @property
    def trains(self) -> bool:
        """Whether its overrides compose to a training, alone or as a stage of a chain."""
        return not self.evaluate and not self.ssim

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """Keys of several values: one run for each."""
        found = filter(None, map(SEVERAL.fullmatch, self.overrides))
        return {match[1]: tuple(match[2].split(",")) for match in found}

    @property
    def fixed(self) -> tuple[str, ...]:
        """The overrides without those of several values: they compose to one configuration."""
        return tuple(text for text in self.overrides if not SEVERAL.fullmatch(text))

    @property
    def free(self) -> tuple[str, ...]:
        """Keys that differ between the runs of the row by its design."""
        return (*self.axes, *(key for cell in self.cells for key in REFERENCE.findall(cell)))

    @property
    def run_overrides(self) -> tuple[str, ...]:
        """What a run of one configuration is composed from: the fixed overrides, and the cells that it fills."""
        return tuple(filter(None, (*self.fixed, self.reproduces)))

    @property
    def about(self) -> str:
        """One line: the overrides, and what is done with them where that is not a training of its own."""
        if self.ssim:
            return f"hardness maps of {self.ssim[0]} and {self.ssim[1]}, compared"
        start = f"the run of {self.evaluate}, scored with " * bool(self.evaluate)
        return f"{start}{_words(self.overrides)}" + f"  (a stage of hardpix sweep {self.chain})" * bool(
            self.chain
        )

    @property
    def reproduces(self) -> str:
        """The override that says which cells a run fills; empty where it fills none."""
        return f"reproduces=[{','.join(self.cells)}]" if self.cells else ""


def papers() -> list[str]:
    """The papers that have a file of rows."""
    return [name for name in published.papers() if _path(name).is_file()]


@cache
def rows(paper: str) -> dict[str, Row]:
    """The rows of a paper by name, in the order of the file; ``ConfigError`` for a mistake in one sentence."""
    published.paper(paper)  # raises with the nearest name
    path = _path(paper)
    content = safe_files.read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must map names of rows to lists of overrides")
    counts = Counter(ROW.findall(path.read_text(encoding="utf-8")))
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConfigError(f"{path}: row {twice[0]} is there twice")
    cells: dict[str, list[str]] = {str(name): [] for name in content}
    for table in layouts(paper):
        for name, patterns in table.fills.items():
            if name not in cells:
                hint = suggestion(name, cells)
                raise ConfigError(
                    f"conf/table/{table.table.name}.yaml: cells: there is no row {name!r} in {path}{hint}."
                )
            cells[name] += [f"{table.table.name}/{pattern}" for pattern in patterns]
    made = {
        str(name): _row(path, paper, str(name), node, tuple(cells[str(name)]))
        for name, node in content.items()
    }
    for one in made.values():
        for other in filter(None, (one.evaluate, *one.ssim)):
            if other not in made:
                raise ConfigError(f"{path}: row {one.name} names {other!r}{suggestion(other, made)}.")
    return made


def row(full_name: str) -> Row:
    """The row ``PAPER/NAME``."""
    paper, _, name = full_name.partition("/")
    known = rows(paper)
    if name not in known:
        raise ConfigError(f"{full_name}: there is no such row in {_path(paper)}{suggestion(name, known)}.")
    return known[name]


def row_called(word: str) -> Row | None:
    """The row that ``word`` means: PAPER/NAME, or NAME behind the folder of its experiment."""
    folder, _, name = word.rpartition("/")
    for paper in papers():
        one = rows(paper).get(name)
        if one is not None and (folder == paper or f"experiment={folder}/" in " ".join(one.overrides)):
            return one
    return None


def rows_of(name: str) -> list[Row]:
    """The rows of a paper (``hl``), or those that fill a cell of a table (``hl/6``) in the order of its cells."""
    paper, slash, _ = name.partition("/")
    if not slash:
        return list(rows(paper).values())
    found = [row_of(cell) for one in layouts(name) for cell in one.cells()]
    return list({one.name: one for one in found if one is not None}.values())


def row_of(cell: str) -> Row | None:
    """The row that fills a cell; None where no run of hardpix does."""
    paper = cell.partition("/")[0]
    for one in rows(paper).values() if paper in papers() else ():
        if any(fits(pattern, cell) for pattern in one.cells):
            return one
    return None


def fits(pattern: str, cell: str) -> bool:
    """Whether a pattern of a row's cells, in which ``${key}`` stands for any value, has a cell."""
    return matches(REFERENCE.sub("*", pattern), cell)


@cache
def layouts(name: str) -> list[Layout]:
    """The table ``PAPER/TABLE``, or all tables of ``PAPER``, as ``conf/table`` lays them out."""
    return [layout(table, conf_dir() / "table") for table in published.tables(name)]


def _path(paper: str) -> Path:
    return conf_dir() / "rows" / f"{paper}.yaml"


def _row(path: Path, paper: str, name: str, node: Any, cells: tuple[str, ...]) -> Row:
    given = {"overrides": node} if isinstance(node, list) else node
    known = ("overrides", *KINDS)
    if not isinstance(given, dict) or not set(given) <= set(known) or len(set(given) & set(KINDS)) > 1:
        raise ConfigError(
            f"{path}: row {name}: must be a list of overrides, or a mapping of overrides and one of {', '.join(KINDS)}"
        )
    for key in ("overrides", "ssim"):
        if not isinstance(given.get(key, []), list):
            raise ConfigError(f"{path}: row {name}: {key} must be a list")
    overrides = tuple(map(str, given.get("overrides", ())))
    for text in overrides:
        if "=" not in text:
            raise ConfigError(f"{path}: row {name}: {text}: must be KEY=VALUE")
    pair = tuple(map(str, given.get("ssim", ())))
    if pair and len(pair) != 2:
        raise ConfigError(f"{path}: row {name}: ssim must name two rows")
    return Row(
        paper,
        name,
        overrides,
        str(given.get("chain", "")),
        str(given.get("evaluate", "")),
        pair,
        cells,
    )


# The commands that train a row.


PLACEHOLDER = "RUN: the run of a command before it"


class Fill(NamedTuple):
    """What to type for a row, and what a reader should know of it."""

    commands: tuple[str, ...] = ()
    about: str = ""


def fill(cell: str, seeds: Sequence[int]) -> Fill:
    """The commands that fill a published cell; none where no row does."""
    one = row_of(cell)
    return Fill() if one is None else commands(one, seeds, cell)


def commands(one: Row, seeds: Sequence[int], cell: str = "") -> Fill:
    """The commands of a row for ``seeds``, for all of its cells.

    For a ``cell`` whose name holds the value of a key, the runs of that value alone; in a table of ``steps``, of so
    many steps.
    """
    if one.chain:
        made = tuple(_line("hardpix sweep", one.chain, f"seed={seed}") for seed in seeds)
        return Fill(made, f"a stage of this chain: {_words(one.overrides)}")
    if one.evaluate:
        base = commands(rows(one.paper)[one.evaluate], seeds)
        scored = _line("hardpix evaluate", "RUN", *one.overrides, one.reproduces)
        return Fill((*base.commands, scored), "; ".join(filter(None, (base.about, PLACEHOLDER))))
    if one.ssim:
        trained = [text for name in one.ssim for text in commands(rows(one.paper)[name], seeds[:1]).commands]
        runs = " ".join(f"RUN_OF_{name}" for name in one.ssim)
        compared = f"hardpix figure ssim {runs} --out {one.name} --record {one.name} --reproduces"
        return Fill(
            (*trained, _line(compared, ",".join(one.cells))), "RUN_OF_ROW: the run of that row's command"
        )
    words, many = _training(one, cell), len(seeds) > 1
    many = many or any(SEVERAL.fullmatch(word) for word in words)
    return Fill((_line(f"hardpix train{' -m' * many}", *words, f"seed={','.join(map(str, seeds))}"),))


def _training(one: Row, cell: str) -> list[str]:
    """The words behind ``hardpix train``, without a seed."""
    given = _values(one, cell)
    words = [word for word in one.overrides if word.partition("=")[0] not in given]
    words += [f"{key}={value}" for key, value in given.items()]
    cells = [REFERENCE.sub(lambda match: given.get(match[1], match[0]), own) for own in one.cells]
    words, cells = _within(words, cells, "/".join(cell.split("/")[:2]))
    return [*words, f"reproduces=[{','.join(cells)}]"] if cells else words


def in_table(one: Row, table: str) -> list[str]:
    """What the runs of a row are composed from in ``PAPER/TABLE``: with the table's ``steps``, for its cells alone."""
    words, cells = _within(list(one.overrides), list(one.cells), table)
    return [*words, f"reproduces=[{','.join(cells)}]"] if cells else words


def _within(words: list[str], cells: list[str], table: str) -> tuple[list[str], list[str]]:
    """In a table of ``steps``, so many steps instead of the row's, and the cells of that table alone."""
    steps = layouts(table)[0].steps if table else None
    if steps is None:
        return words, cells
    words = [word for word in words if not word.startswith("trainer.max_steps=")]
    return [*words, f"trainer.max_steps={steps}"], [own for own in cells if own.startswith(f"{table}/")]


def _values(one: Row, cell: str) -> Mapping[str, str]:
    """``hn/4/none/epoch_${trainer.max_epochs}`` and ``hn/4/none/epoch_5`` give ``trainer.max_epochs`` the value 5."""
    for pattern in one.cells if cell else ():
        keys = REFERENCE.findall(pattern)
        parts = REFERENCE.split(pattern)[::2]
        found = re.fullmatch("(.+)".join(re.escape(part).replace(r"\*", "[^/]*") for part in parts), cell)
        if keys and found:
            return dict(zip(keys, found.groups(), strict=True))
    return {}


def _line(program: str, *words: str) -> str:
    """A command line, quoted for the shell."""
    return f"{program} {_words(words)}"


def _words(words: Sequence[str]) -> str:
    return " ".join(shlex.quote(word) for word in words if word)
