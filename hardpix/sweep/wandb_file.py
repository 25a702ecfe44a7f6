"""A search as a sweep of Weights & Biases: the YAML file that ``wandb sweep`` takes.

Keys and values: docs.wandb.ai, "Sweep configuration options". The agent writes what was chosen in place of
``${args_no_hyphens}`` as ``key=value`` words, which are Hydra's overrides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hardpix.config.command_line import quoted
from hardpix.config.compose import composer
from hardpix.record import write_text
from hardpix.sweep.search import corners
from hardpix.sweep.space import Dimension, Search
from hardpix.sweep.study import Study, merged
from hardpix.types import ConfigError

METHODS = {"tpe": "bayes", "random": "random", "grid": "grid"}
DISTRIBUTIONS = {"loguniform": "log_uniform_values", "uniform": "uniform", "integers": "int_uniform"}


def write_wandb_sweep(study: Study, path: Path, config_dir: Path | None = None) -> str:
    """Write the file; returns the commands that start the sweep with it."""
    content = sweep_of(study, config_dir)
    head = "# wandb sweep THIS_FILE, then on each machine: wandb agent ENTITY/PROJECT/ID\n"
    write_text(path, head + yaml.safe_dump(content, sort_keys=False, width=110))
    return f"wandb sweep {path}\nwandb agent ENTITY/PROJECT/ID      # as wandb sweep prints it; once for each worker"


def sweep_of(study: Study, config_dir: Path | None = None) -> dict[str, Any]:
    """The file's content; raises for what such a sweep cannot do."""
    search = study.search
    if search is None:
        raise ConfigError("--wandb: only a study with search: can be a sweep of W&B")
    dimensions = _unconditional(search)
    if len(search.seeds) > 1:
        raise ConfigError("seeds: a sweep of W&B trains one run for each choice; give one, as seed=0")
    if search.metric is None:
        raise ConfigError("metric: W&B needs its name, such as val/miou")
    corner = corners(study, composer([] if config_dir is None else [config_dir]))[0]
    logger = corner.config().logger
    if not logger.wandb:
        raise ConfigError("logger.wandb=false: a sweep of W&B reads the scores there; leave logger=csv out")
    fixed = merged(search.common, search.seeds, [f"study={quoted(study.name)}"] if study.name else [])
    folder = [] if config_dir is None else ["--config-dir", str(config_dir.resolve())]
    content: dict[str, Any] = {
        "name": study.name or "search",
        "program": "hardpix",
        "project": str(logger.project),
        "method": METHODS.get(search.sampler, "bayes"),
        "metric": {"name": search.metric, "goal": "maximize"},
        "run_cap": search.trials,
        "parameters": {d.key: _parameter(d) for d in dimensions},
        "command": ["${env}", "${program}", "train", *folder, *fixed, "${args_no_hyphens}"],
    }
    if logger.entity:
        content["entity"] = str(logger.entity)
    if search.pruner == "hyperband":
        content["early_terminate"] = {
            "type": "hyperband",
            "min_iter": 3,
        }  # validations; the others W&B has not
    return content


def _unconditional(search: Search) -> list[Dimension]:
    """The dimensions that every trial has; raises where some have them and others not."""
    possible = {*search.common, *(text for d in search.dimensions for text in d.texts)}
    sure = {*search.common, *(d.texts[0] for d in search.dimensions if len(d.texts) == 1)}
    for dimension in search.dimensions:
        if dimension.condition in possible - sure:
            raise ConfigError(
                f"for.{dimension.condition}: a sweep of W&B has no conditions; write a file for each choice, this one "
                f"with {dimension.condition} on the command line"
            )
    return [d for d in search.dimensions if d.condition in (None, *sure)]


def _parameter(dimension: Dimension) -> dict[str, Any]:
    if dimension.kind != "choice":
        low, high = dimension.values
        return {"distribution": DISTRIBUTIONS[dimension.kind], "min": low, "max": high}
    pairs = zip(dimension.values, dimension.texts, strict=True)
    return {"values": [_value(value, text.partition("=")[2]) for value, text in pairs]}


def _value(value: Any, text: str) -> Any:
    """A number as such; of all else the text by which Hydra reads it back."""
    return value if type(value) in (int, float) else text
