"""Compose the rows behind published cells, and list the commands of a published table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hardpix.config.catalog import split_sizes
from hardpix.config.compose import compose
from hardpix.config.published import REFERENCE
from hardpix.config.rows import Row, fill, fits, layouts, rows
from hardpix.evaluate import override
from hardpix.record import IGNORED, covers, flatten, with_batch
from hardpix.sweep.stages import Stage, read_chain
from hardpix.tables.protocol_check import SILENT, Experiment
from hardpix.train.parent import with_parent
from hardpix.train.rundir import plain
from hardpix.types import ConfigError


def experiments(cells: Sequence[str]) -> list[Experiment]:
    """The rows that fill any of ``cells``, with the factors that the record of a run holds.

    Keys of several values, and those that are named in a cell (``hn/4/none/epoch_${trainer.max_epochs}``), vary by
    design. A row that is several stages of its chain is there once for each.
    """
    found = []
    for paper in dict.fromkeys(cell.partition("/")[0] for cell in cells):
        for row in rows(paper).values():
            if any(fits(pattern, cell) for pattern in row.cells for cell in cells):
                patterns = tuple(REFERENCE.sub("*", item) for item in row.cells)
                free = (*row.free, *(f"other.{key}" for key in SILENT if row.ssim))
                found += [Experiment(row.full_name, patterns, own, free) for own in factors_of(row)]
    return found


def factors_of(row: Row) -> list[dict[str, Any]]:
    """The factors of a row's runs: of a stage with the run it starts from below, of an evaluation as it is scored."""
    others = [rows(row.paper)[name] for name in row.ssim]
    if others:
        (first, *_), (second, *_) = map(factors_of, others)
        return [first | {f"other.{key}": value for key, value in second.items() if not covers(IGNORED, key)}]
    found: list[dict[str, Any]] = []
    for cfg, link in _configs(rows(row.paper)[row.evaluate] if row.evaluate else row):
        own = flatten(plain(cfg))
        if row.evaluate:
            scored = flatten(plain(override(cfg, list(row.overrides))))
            if (
                scored["data.source._target_"] != own["data.source._target_"]
            ):  # the record has the training's data
                scored = {key: value for key, value in scored.items() if not key.startswith("data.")}
                scored |= {key: value for key, value in own.items() if key.startswith("data.")}
            own = scored
        own = with_batch(own | ({"init_from": "RUN"} if link == "init_from" else {}))
        found += [own] * (own not in found)
    return found


def _configs(row: Row) -> list[tuple[DictConfig, str | None]]:
    """The configuration and the link of a row's run; of each stage that it is in its chain."""
    if not row.chain:
        return [(compose(row.fixed), None)]
    stages = read_chain(row.chain)
    return [(_stage_config(one, stages), one.link) for one in stages if one.row == row.full_name]


def cost_of(row: Row) -> tuple[float, float, float]:
    """Parameters, operations of a forward pass and of the longest run of a row; ConfigError where it trains none."""
    from hardpix.train.estimate import estimate

    if not row.trains:
        does = f"evaluates {row.evaluate}" if row.evaluate else f"compares {' and '.join(row.ssim)}"
        raise ConfigError(f"trains nothing: {does}")
    configs = [cfg for cfg, _ in _configs(row)]
    return estimate(
        max(configs, key=lambda cfg: cfg.trainer.max_steps or cfg.trainer.max_epochs), split_sizes()
    )


def _stage_config(stage: Stage, chain: Sequence[Stage]) -> DictConfig:
    cfg = compose(list(stage.overrides))
    if stage.link is None:
        return cfg
    source = next(other for other in chain if other.name == stage.source)
    return with_parent(cfg, OmegaConf.create(plain(_stage_config(source, chain))), stage.link)


def table_commands(name: str, seeds: Sequence[int]) -> list[str]:
    """Every command that fills the cells of a published table, or of all tables of a paper, once."""
    cells = [cell for one in layouts(name) for cell in one.cells()]
    return list(dict.fromkeys(text for cell in cells for text in fill(cell, seeds).commands))
