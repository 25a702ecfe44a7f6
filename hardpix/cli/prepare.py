"""``hardpix data prepare``: turn the published files of a data set into what its reader reads."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import hardpix
from hardpix.run import writable
from hardpix.run.overrides import command_words
from hardpix.types import ConfigError, DataError

if TYPE_CHECKING:
    from hardpix.data.prepare.job import Plan
    from hardpix.data.prepare.journal import Journal
    from hardpix.data.prepare.recipe import Part, Recipe

SHOWN = 20  # faults that are printed
BOOLS = {"true": True, "false": False}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "prepare",
        help="unpack and convert what you downloaded of a data set",
        description="Turn the published files of a data set into what its reader reads. Nothing is downloaded: "
        "without --from it says where the files come from. An interrupted command goes on when it is repeated.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the data set; --list shows them")
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="options of the data set's recipe")
    parser.add_argument("--list", action="store_true", help="the data sets there are recipes for")
    parser.add_argument(
        "--from",
        dest="inputs",
        nargs="+",
        action="extend",
        metavar="PATH",
        help="archives, single files, or folders that hold them or what was unpacked from them",
    )
    parser.add_argument("--to", dest="out", type=Path, metavar="DIR", help="a new folder for the result")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a CPU core)")


def run(given: argparse.Namespace) -> int:
    if given.list:
        return _list()
    inputs, more = _split(given.inputs or [])
    words = [word for word in (given.name, *given.options, *more) if word is not None]
    if not words or "=" in words[0]:
        raise ConfigError("hardpix data prepare: name the data set, or see them all with --list")
    recipe = make_recipe(words[0], words[1:])
    if given.workers is not None and given.workers < 1:
        raise ConfigError(f"--workers {given.workers}: must be 1 or more")
    if not inputs:
        if given.out:
            raise ConfigError("--from is missing: the files you downloaded, or a folder that holds them")
        print(_how(recipe, words[1:]))
        return 0
    if given.out is None:
        raise ConfigError("--to is missing: a new folder for the result")
    writable.check("--to", given.out, folder=True)
    return _prepare(recipe, inputs, given.out, given.workers or _cores())


def make_recipe(name: str, words: Sequence[str]) -> Recipe:
    """The recipe with its options from ``key=value`` words; ``ConfigError`` for what does not exist or fit."""
    from hardpix.data.prepare import RECIPES, find_recipe
    from hardpix.run.config import nearest

    if name not in RECIPES:
        raise ConfigError(f"there is no recipe for {name!r}{nearest(name, list(RECIPES))}")
    recipe = find_recipe(name)
    types = _option_types(recipe)
    options = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"{word}: must be an option of {name} as key=value; paths follow --from")
        if key not in types:
            hint = nearest(key, list(types)) if types else "; it has none"
            raise ConfigError(f"{key}: no such option of {name}{hint}")
        options[key] = _value(key, text, types[key])
    return recipe(**options)


def _option_types(recipe: type[Recipe]) -> dict[str, Any]:
    if not is_dataclass(recipe):
        return {}
    hints = get_type_hints(recipe)
    return {field.name: hints[field.name] for field in fields(recipe)}


def _value(key: str, text: str, kind: Any) -> Any:
    try:
        return BOOLS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        right = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise ConfigError(f"{key}={text}: must be {right}") from None


def _split(values: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The paths of --from, and options that were written behind them."""
    options = [v for v in values if v.partition("=")[0].isidentifier() and "=" in v and not Path(v).exists()]
    return [Path(v) for v in values if v not in options], options


def _list() -> int:
    from hardpix.data.prepare import RECIPES, find_recipe

    recipes = [find_recipe(name) for name in sorted(RECIPES)]
    width = max((len(name) for name in RECIPES), default=0)
    for recipe in recipes:
        print(f"{recipe.name:<{width}}  {recipe.title}\n{'':<{width}}  {recipe.page}")
    return 0


def _how(recipe: Recipe, options: Sequence[str]) -> str:
    """Where the files come from, and the command to give when they are there."""
    width = max(len(part.name) for part in recipe.parts)
    folder = Path(os.environ.get("HARDPIX_DATA", "data")) / recipe.name
    command = [
        "hardpix",
        "data",
        "prepare",
        recipe.name,
        *options,
        "--from",
        "downloads",
        "--to",
        str(folder),
    ]
    lines = [
        recipe.title,
        f"page:     {recipe.page}",
        f"licence:  {recipe.licence}",
        "Nothing is downloaded for you. Files to get from the page:",
        *(f"  {part.name:<{width}}  {_what(part)}" for part in recipe.parts),
    ]
    if is_dataclass(recipe):
        shown = ", ".join(f"{key}={value}" for key, value in asdict(recipe).items())
        lines += [f"options:  {shown}"] if shown else []
    return "\n".join([*lines, f"Then, if they are in the folder downloads:\n  {shlex.join(command)}"])


def _what(part: Part) -> str:
    from hardpix.data.prepare.job import size_text

    size = f", {size_text(part.size)}" if part.size else ""
    return f"{part.what}{size}{'' if part.needed else ' (can be left out)'}"


def _prepare(recipe: Recipe, inputs: Sequence[Path], out: Path, workers: int) -> int:
    from hardpix.data.prepare import job, journal
    from hardpix.data.prepare.inputs import gather
    from hardpix.run.progress import progress

    options: dict[str, Any] = asdict(recipe) if is_dataclass(recipe) else {}
    state = journal.begin(out, journal.Journal(recipe.name, options, hardpix.__version__))
    if state.status == "done" and _nothing_new(inputs, recipe, state):
        job.clean(out)
        print(f"{out} is already prepared; train with {command_words(recipe.use(out))}")
        return 0
    print(f"{recipe.title}\npage:     {recipe.page}\nlicence:  {recipe.licence}")
    state.given = sorted({*state.given, *(str(path.resolve()) for path in inputs)})
    try:
        plan = job.make_plan(recipe, gather(inputs, recipe.parts), out, state, print)
        _print_plan(plan)
        with progress() as bar:
            state = job.run(plan, state, workers, bar)
    except OSError as error:
        raise DataError(f"{out}: {error}; when that is mended, the same command goes on") from error
    except KeyboardInterrupt:
        print("hardpix: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return _summary(plan, state)


def _nothing_new(paths: Sequence[Path], recipe: Recipe, state: Journal) -> bool:
    """Whether a finished command is repeated, be the files still there or not."""
    from hardpix.data.prepare.inputs import gather

    if not {str(path.resolve()) for path in paths} <= set(state.given):
        return False
    try:
        return all(item.is_folder or item.name in state.inputs for item in gather(paths, recipe.parts))
    except DataError:
        return True


def _print_plan(plan: Plan) -> None:
    from hardpix.data.prepare.job import size_text

    for unpacking in plan.unpackings:
        members, wanted = len(unpacking.members), len(unpacking.wanted)
        count = f"{members} of {wanted} files" if members < wanted else f"{wanted} files"
        print(f"unpack:   {unpacking.item.path} ({count}, {size_text(unpacking.size)})")
    for item in plan.inputs:
        if not item.is_archive:
            print(f"use:      {item.path}")
    print(
        f"disk:     {size_text(plan.missing)} to unpack, removed at the end; {size_text(plan.free)} are free"
    )


def _summary(plan: Plan, state: Journal) -> int:
    from hardpix.data.prepare import job

    out, use = plan.out, command_words(plan.recipe.use(plan.out))
    if not state.faults:
        print(f"prepared {out}; train with {use}")
        return 0
    faults = job.read_faults(out)
    print(*faults[:SHOWN], sep="\n", file=sys.stderr)
    if len(faults) > SHOWN:
        print(f"... and {len(faults) - SHOWN} more", file=sys.stderr)
    print(
        f"{len(faults)} files could not be used (all in {out / job.LOG}); the rest is in {out}. Mend them or download "
        f"them again and give the same command: it makes what is missing."
        + f" For that, {out / job.UNPACKED} stays."
        * (out / job.UNPACKED).is_dir()
    )
    return 1


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
