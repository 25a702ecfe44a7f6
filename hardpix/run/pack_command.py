"""``hardpix data pack``: decode and resize a data set once, for fast loading."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hardpix.run import writable
from hardpix.run.overrides import command_words
from hardpix.types import ConfigError


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "pack",
        help="decode and resize once, into files that are mapped into memory",
        description="Write the packed form of a dataset; train on it with data=packed data.source.root=DIR.",
    )
    parser.add_argument("overrides", nargs="+", help="the dataset, such as data=nyuv2 data.source.root=PATH")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="default: sizes as they are")
    parser.add_argument("--splits", nargs="+", help="default: all splits of the dataset")


def run(given: argparse.Namespace) -> int:
    if not any(o.startswith("data=") for o in given.overrides):
        raise ConfigError("hardpix data pack: name the dataset, for example data=nyuv2")
    writable.check("--out", given.out, folder=True)
    from rich.progress import Progress, TaskID

    from hardpix.run.config import compose, validate

    cfg = compose(given.overrides)
    validate(cfg)

    from hardpix.data.packed import pack
    from hardpix.run.build import make

    source = make(cfg.data.source)
    size = tuple(given.size) if given.size else None
    splits = list(dict.fromkeys(given.splits or source.splits))
    with Progress() as bar:
        tasks: dict[str, TaskID] = {}

        def advance(split: str, done: int, total: int) -> None:
            """A split gets its bar with its first frame: what cannot be opened leaves only its error."""
            if split not in tasks:
                tasks[split] = bar.add_task(split)
            bar.update(tasks[split], completed=done, total=total)

        pack(source, given.out, size=size, splits=splits, progress=advance)
    use = command_words({"data": "packed", "data.source.root": str(given.out)})
    print(f"packed to {given.out}; train with {use}")
    return 0
