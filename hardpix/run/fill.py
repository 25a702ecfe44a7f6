"""What to type for a cell that no run fills: the files of ``conf/`` that a choice, or a published cell, comes from.

Standard library only, and no file is composed: a command needs a file's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from hardpix.report.compare import text
from hardpix.run import catalog

TARGET = re.compile(r"^( *)_target_: *(\S+)", re.MULTILINE)
SETTING = re.compile(r"^(\w+): *([^#\n]*[^#\s])", re.MULTILINE)
DECLARED = re.compile(
    r"^reproduces:[ \t]*(?:\[(?P<inline>[^\]]*)\]|\n(?P<list>(?:[ ]*-.*\n?)+))", re.MULTILINE
)
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
SEED = re.compile(r" seed=\S+")


class Source(NamedTuple):
    """One pattern of cells that a file of ``conf/experiment`` declares."""

    pattern: str
    command: str  # without a seed


def choice(group: str, factors: Mapping[str, Any]) -> str:
    """The file of ``conf/GROUP`` that made these factors, nearest in its own values; empty where none fits."""
    wanted = {factors.get(f"{group}._target_"), factors.get(f"{group}.source._target_")} - {None}
    best: tuple[int, str] | None = None
    for entry in catalog.entries(group) if group in catalog.groups() else ():
        content = entry.path.read_text(encoding="utf-8")
        targets = {target for _, target in TARGET.findall(content)}
        main = next((target for indent, target in TARGET.findall(content) if not indent), None)
        if not targets & wanted or (main is not None and main not in wanted):
            continue
        own = [(key, value) for key, value in SETTING.findall(content) if f"{group}.{key}" in factors]
        wrong = sum(
            text(factors[f"{group}.{key}"]) != value.strip("'\"") for key, value in own if key != "_target_"
        )
        best = min(filter(None, (best, (wrong, entry.name))))
    return best[1] if best else ""


def command(cell: str, seeds: Sequence[int]) -> tuple[str, ...]:
    """The commands that fill a published cell; none where no experiment file declares it.

    One for all ``seeds`` where ``hardpix train`` does it, else one for each.
    """
    from hardpix.report.published import matches  # which reads YAML

    for source in _sources():
        if source.pattern.split("/")[:2] != cell.split("/")[:2]:  # a quick look first
            continue
        if not matches(REFERENCE.sub("*", source.pattern), cell):
            continue
        program, *words = source.command.removeprefix("hardpix ").split()
        given = _references(source.pattern, cell)
        words = [
            word for word in words if word.partition("=")[0] not in given and (word != "-m" or not given)
        ]
        if program == "chain":  # its stages are told all that varies
            return tuple(" ".join(["hardpix chain", *words, f"seed={seed}"]) for seed in seeds)
        words += [f"{key}={value}" for key, value in given.items()]
        if program == "evaluate":
            return (" ".join(["hardpix evaluate", *words]),)
        many = ["-m"] * (len(seeds) > 1 and "-m" not in words)
        return (" ".join(["hardpix train", *many, *words, f"seed={','.join(map(str, seeds))}"]),)
    return ()


def _references(pattern: str, cell: str) -> dict[str, str]:
    """``hl/7/c_${method.c}/resnet18`` and ``hl/7/c_0.1/resnet18`` give ``method.c`` the value 0.1."""
    keys = REFERENCE.findall(pattern)
    parts = REFERENCE.split(pattern)[::2]
    found = re.fullmatch("(.+)".join(re.escape(part).replace(r"\*", "[^/]*") for part in parts), cell)
    return dict(zip(keys, found.groups(), strict=True)) if found else {}


@cache
def _sources() -> tuple[Source, ...]:
    found = []
    for entry in catalog.entries("experiment"):
        content = entry.path.read_text(encoding="utf-8")
        declared = DECLARED.search(content)
        if declared is None:
            continue
        items = re.split(r",|\n *-|^ *-", declared["inline"] or declared["list"] or "")
        told = entry.use.replace("NAME", entry.name)
        command = SEED.sub("", told.partition("  ")[0])
        patterns = [item.partition(" #")[0].strip(" '\"\n") for item in items]
        found += [Source(pattern, command) for pattern in patterns if pattern]
    return tuple(found)
