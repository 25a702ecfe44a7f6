"""Files that may be anyone's: YAML of limited size, run folders without links."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hardpix.record import METRICS
from hardpix.types import ConfigError, HardpixError

MAX_BYTES = 10_000_000  # bytes of a file
MAX_EXPANDED = 10_000_000  # values and characters that it may stand for with its aliases
MAX_NESTING = 100  # lists and mappings in each other
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """The content; ``ConfigError`` in one line where it is no YAML, or asks for too much."""
    text = read_yaml_text(path)
    try:
        return yaml.load(text, LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None


def read_yaml_text(path: Path, *, aliases: bool = True) -> str:
    """The text of a file that is safe to load; ``aliases``: whether it may repeat parts of itself.

    Raises ``ConfigError``, and ``OSError`` where the file cannot be opened.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # to open a pipe is to wait for it
        raise ConfigError(f"{path}: is no regular file, which a file of YAML must be")
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1) if found.st_size <= MAX_BYTES else b""
    size = max(found.st_size, len(content))
    if size > MAX_BYTES:
        raise ConfigError(
            f"{path}: has {size / 1e6:.0f} MB; a file of YAML must have no more than {MAX_BYTES / 1e6:.0f} MB"
        )
    try:
        text = content.decode("utf-8")
        fault = _fault(text, aliases)
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if fault:
        raise ConfigError(f"{path}: {fault}")
    return text


def _fault(text: str, aliases: bool) -> str:
    """Why a text is not to be loaded; empty where it may be.

    The parser's events come one by one and hold nothing twice. What an anchor stands for is known when its end
    comes: one value and a character each for what is in it, with the aliases there at their own weight.
    """
    anchors: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor and the weight before it
    weight = 0
    for event in yaml.parse(text, LOADER):
        if isinstance(event, yaml.AliasEvent):
            if not aliases:
                return "it repeats a part of itself by an alias, which hardpix never writes"
            if event.anchor not in anchors:
                return f"its alias *{event.anchor} stands for what it lies in, or for nothing"
            weight += anchors[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            own = 1 + len(event.value)
            weight += own
            if event.anchor:
                anchors[event.anchor] = own
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, weight))
            anchors.pop(event.anchor or "", None)
            weight += 1
            if len(open_nodes) > MAX_NESTING:
                return f"its lists and mappings lie in each other more than {MAX_NESTING} deep"
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                anchors[anchor] = weight - before
        if weight > MAX_EXPANDED:
            return f"its aliases stand for more than {MAX_EXPANDED / 1e6:.0f} million values and characters"
    return ""


# Run folders: no file in them may be a link to somewhere else.
#
# A directory that was unpacked or copied from others may hold links, pipes and second names of files.


IN_PLACE = (".lock", METRICS, "output.log")  # are written where they are; the others are replaced
LINKED_INSIDE = (
    "wandb"  # W&B's folder: links in it lead to its newest run, and RUN/logs/* to logs it keeps elsewhere
)


def check_run_files(folder: Path, *, deep: bool = True) -> None:
    """``ConfigError`` for what is neither a file nor a folder of ``folder``'s own, in it or (``deep``) anywhere below.

    ``folder`` itself may be reached by a link: where runs lie is the user's choice. So are, without ``deep`` (a study,
    whose runs are asked one by one), links to folders; the names with a dot there are the program's.
    """
    for entry in _entries(folder, deep):
        path = Path(entry.path)
        if entry.is_symlink():
            if deep and not _leads_within(path, folder / LINKED_INSIDE):
                raise ConfigError(f"{path} is a link: a run is only written into files of its own")
            if not deep and (entry.name.startswith(".") or not path.is_dir()):
                raise ConfigError(f"{path} is a link: a study is only written into files of its own")
        elif not entry.is_dir() and not entry.is_file():
            raise ConfigError(f"{path} is neither a file nor a folder: remove it, or give another run=")
        elif entry.name in IN_PLACE and path.parent == folder and _names(path) > 1:
            raise ConfigError(f"{path} is also a file elsewhere (a hard link): put a copy in its place")


def make_results_folder(folder: Path) -> None:
    """Make ``folder`` for results; ``ConfigError`` where a link to somewhere else has its name."""
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a link: results are only written into folders of their own")
    folder.mkdir(parents=True, exist_ok=True)


def open_lock(path: Path) -> int:
    """A handle to the file ``path``, made if need be; ``ConfigError`` where that is no file, or not this one alone."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be opened as a file of its own ({error.strerror})") from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(handle)
        raise ConfigError(f"{path}: must be a file of its own, neither a pipe nor a hard link; remove it")
    return handle


def _entries(folder: Path, deep: bool) -> Iterator[os.DirEntry[str]]:
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # writing there will tell
        return
    for entry in found:
        yield entry
        if deep and entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path), deep)


def _leads_within(link: Path, folder: Path) -> bool:
    if folder.is_symlink() or not link.is_relative_to(folder):
        return False
    log = link.relative_to(folder).parts[1:-1] == (
        "logs",
    )  # of a run that is over: nothing writes there again
    return log or link.resolve().is_relative_to(folder.resolve())


def _names(path: Path) -> int:
    try:
        return path.lstat().st_nlink
    except FileNotFoundError:
        return 1


# Read the configuration saved with a run, as plain data of limited size.


def load(path: Path) -> DictConfig:
    """A resolved configuration as hardpix writes it; ``HardpixError`` in one line where it is not."""
    try:
        text = read_yaml_text(path, aliases=False)
        cfg = OmegaConf.create(text)
        OmegaConf.to_container(cfg, resolve=True)
    except ConfigError as error:
        raise HardpixError(f"{path} is damaged: {str(error).removeprefix(str(path)).lstrip(': ')}") from None
    except (
        OSError,
        yaml.YAMLError,
        OmegaConfBaseException,
        ValueError,
        RecursionError,
        AssertionError,
    ) as error:
        raise HardpixError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(cfg, DictConfig):
        raise HardpixError(f"{path} is damaged: it holds no mapping")
    return cfg


def load_names(path: Path) -> list[str]:
    """The names of classes that a run has next to it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HardpixError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise HardpixError(f"{path} is damaged: it must list the names of classes")
    return found
