"""List what can be chosen from ``conf/``. Standard library only: completion must not wait for Hydra.

Standard library only: a list, or a completion on a key press, must not wait for Hydra.
"""

from __future__ import annotations

import csv
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent

# How a file is asked for, where it is not `hardpix train GROUP=NAME`.
USES = {
    "rows": "hardpix table PAPER/TABLE",
    "pipeline": "a part of the files of conf/data",
    "studies": "hardpix sweep NAME",
    "table": "hardpix table NAME RUNS...",
}
OTHER_WORDS = {
    "study": "studies",
    "sweeps": "studies",
    "searches": "studies",
    "chains": "studies",
    "papers": "table",
}
ALSO_CALLED = {"datasets": "data"}

ROW = re.compile(r"^([\w.-]+):", re.MULTILINE)  # the name of a published row, in a file of conf/rows
COMMAND = re.compile(r"hardpix (train|sweep|evaluate) \S")
SENTENCE_END = re.compile(r"(?<!\beq)(?<!\bal)[.!?](?=\n| +[^a-z ]|$)")


class Entry(NamedTuple):
    """One file of a group: ``name`` is what is written behind ``GROUP=``."""

    group: str
    name: str
    path: Path

    @property
    def about(self) -> str:
        return first_sentence(self.path.read_text(encoding="utf-8"))

    @property
    def use(self) -> str:
        """What to type: the command in the file's own comment, else its group's."""
        parts = [line for line in first_comment(self.path.read_text(encoding="utf-8")) if COMMAND.match(line)]
        return parts[0] if parts else use(self.group, self.name)


def conf_dir() -> Path:
    """The folder of configuration files: next to the package in a checkout, inside it in a wheel."""
    for candidate in (PACKAGE.parent / "conf", PACKAGE / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise refusal(
        f"no conf/ folder next to or inside {PACKAGE}: the installation is incomplete, install again"
    )


def groups(folder: Path | None = None) -> list[str]:
    """The folders of ``conf/``."""
    return sorted(path.name for path in (folder or conf_dir()).iterdir() if path.is_dir())


def called(group: str) -> str:
    """A group's name in a list of several: ``methods``."""
    for name, own in ALSO_CALLED.items():
        if own == group:
            return name
    if group.endswith("ss"):
        return f"{group}es"
    return group if group.endswith("s") else f"{group}s"


def use(group: str, name: str = "NAME") -> str:
    """What to type for a file of a group."""
    return USES.get(group, f"hardpix train {group}=NAME").replace("NAME", name)


def group_called(word: str, known: list[str]) -> str:
    """The group meant by ``method``, ``methods`` or ``datasets``; ConfigError with the nearest one."""
    names = {called(group): group for group in known} | {group: group for group in known}
    names |= {word: group for word, group in OTHER_WORDS.items() if group in known}
    if word in names:
        return names[word]
    raise refusal(f"there is no list {word!r}{_nearest(word, [called(group) for group in known])}")


def entries(group: str, folder: Path | None = None) -> list[Entry]:
    """The files of a group by name; those that begin with an underscore are parts of others and left out."""
    root = (folder or conf_dir()) / group
    paths = (path for path in root.rglob("*.yaml") if not path.name.startswith("_"))
    found = (Entry(group, path.relative_to(root).with_suffix("").as_posix(), path) for path in paths)
    return sorted(found, key=lambda entry: _in_order(entry.name))


def row_names(folder: Path | None = None) -> list[str]:
    """The published rows as PAPER/NAME, read without a YAML parser."""
    return [
        f"{entry.name}/{name}"
        for entry in entries("rows", folder)
        for name in ROW.findall(entry.path.read_text(encoding="utf-8"))
    ]


def matching(found: list[Entry], part: str) -> list[Entry]:
    """Those whose name begins with ``part``, else those that contain it; ConfigError with the nearest name."""
    small = part.lower()
    hits = [e for e in found if e.name.lower().startswith(small)] or [
        e for e in found if small in e.name.lower()
    ]
    if not hits:
        group = found[0].group if found else ""
        raise refusal(f"no name in conf/{group} contains {part!r}{_nearest(part, [e.name for e in found])}")
    return hits


def first_sentence(text: str) -> str:
    """Of the first comment; empty where there is none."""
    paragraph = "\n".join(first_comment(text))
    end = SENTENCE_END.search(paragraph)
    return (paragraph[: end.end()] if end else paragraph).replace("\n", " ")


def first_comment(text: str) -> list[str]:
    """Its lines, without the sign; only a comment above all content counts, and Hydra's ``@package`` is none."""
    lines: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("# @package"):
            continue
        words = line[1:].strip() if line.startswith("#") else ""
        if words:
            lines.append(words)
        elif line or lines:
            break
    return lines


def _in_order(name: str) -> list[tuple[int, int, str]]:
    """Numbers as numbers: 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def refusal(text: str) -> Exception:
    from hardpix.types import ConfigError  # a sixth of the time of a key press, for what rarely happens

    return ConfigError(text)


def _nearest(word: str, known: list[str]) -> str:
    import difflib  # only where something is wrong

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(known)}" if len(known) <= 25 else ""


@cache
def split_sizes() -> dict[str, dict[str, int]]:
    """Number of frames of a complete data set, by the name of the data set and the split: ``data/sets/frames.csv``."""
    sizes: dict[str, dict[str, int]] = {}
    with open(PACKAGE / "data" / "sets" / "frames.csv", newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            sizes.setdefault(line["dataset"], {})[line["split"]] = int(line["frames"])
    return sizes


# Files that a group of the configuration can be chosen from.


def missing_choice(text: str, conf: Path) -> tuple[str, str, list[str]] | None:
    """Group, wanted file and the files there are, if Hydra's ``text`` says that a group has no such file."""
    absent = re.search(r"Could not find '(\w+)/([^']+)'", text)
    if absent is None or not (conf / absent[1]).is_dir():
        return None
    group, wanted = absent.groups()
    names = [entry.name for entry in entries(group, conf)]
    siblings = [name for name in names if name.rpartition("/")[0] == wanted.rpartition("/")[0]]
    return group, wanted, siblings or names
