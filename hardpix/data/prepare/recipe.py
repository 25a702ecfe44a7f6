"""The contract of a recipe of ``hardpix data prepare``, its journal and its progress bars."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar, Protocol, TypeVar

from hardpix.record import UNFINISHED, remove_unfinished, replacing, write_text
from hardpix.types import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One file that the user downloads. ``size`` (bytes) and ``md5`` are checked where they are known."""

    name: str  # of the file; * stands for anything. With folders (train/images/x.zip) where these tell files apart
    what: str
    size: int | None = None
    md5: str | None = None
    needed: bool = True


class Bar(Protocol):
    """Shows how far a step is."""

    def __call__(self, title: str, done: int, total: int, note: str = "") -> None: ...


class Recipe(ABC):
    """How the published files of one data set become what its reader reads.

    A subclass is a frozen dataclass whose fields, if any, are its options (``key=value`` on the command line):
    ints, floats, strings or bools with defaults. Its ``__post_init__`` raises ``ConfigError`` for values that
    cannot be: nothing has been written then.
    """

    name: ClassVar[str]  # on the command line, and of conf/data/NAME.yaml
    title: ClassVar[str]
    page: ClassVar[str]  # where the user downloads it
    licence: ClassVar[str]  # its terms in one sentence
    parts: ClassVar[tuple[Part, ...]]
    most_files: ClassVar[int] = 1_000_000  # wanted ones in one archive; with more it is refused

    @abstractmethod
    def convert(self, work: Work) -> None:
        """Write everything below ``work.out``; called again after an interruption, it skips what is there."""

    def wanted(self, member: str) -> bool:
        """Whether a member of an archive, named by its path in it, is worth unpacking."""
        return True

    def needed(self, work: Work) -> Collection[str] | None:
        """Those of ``work.files()`` that :meth:`convert` has yet to read; None: all that are wanted.

        Of archives only these are unpacked, and only these are kept where single files could not be used. A recipe
        that overrides this finds its files by :meth:`Work.files`: others that it counts on may not be on disk.
        """
        return None

    def use(self, out: Path) -> dict[str, str]:
        """The settings that train on the result."""
        return {"data": self.name, "data.source.root": str(out)}


class Work:
    """What a recipe works with: where the user's files lie, where results go, progress and faults."""

    def __init__(
        self,
        roots: Sequence[Path],
        out: Path,
        *,
        workers: int = 1,
        bar: Bar | None = None,
        placed: Mapping[Path, Sequence[str]] | None = None,
    ) -> None:
        """``roots``: folders with the user's files and with what was unpacked from archives, in that order.

        An archive is unpacked into a root of its own; those whose parts have folders share one, in which the
        archive's name, too, is a folder: ``train/images/x.zip/...``. ``placed``: root -> the files that may be put
        there, which :meth:`files` names; of other roots it names those that are there.
        """
        self.roots, self.out, self.workers = list(roots), out, workers
        self._placed = placed or {}
        self._bar = bar
        self.faults: list[str] = []  # a sentence for each file that could not be used; the others go on

    def files(self) -> Iterator[str]:
        """The paths of all files, root by root; of archives the wanted ones, whether they are unpacked or not."""
        for root in self.roots:
            if root in self._placed:
                yield from self._placed[root]
                continue
            for folder, below, names in os.walk(root):
                below.sort()
                yield from (os.path.join(folder, name) for name in sorted(names))

    def find(self, pattern: str, comes_from: str) -> Path:
        """The first file or folder whose path ends in ``pattern`` (wildcards allowed), at most three folders down.

        Raises ``DataError`` with ``comes_from`` (the file to download) where there is none.
        """
        found = self.search(pattern)
        if found is None:
            places = " or ".join(str(root) for root in self.roots)
            raise DataError(f"{places}: there is no {pattern}; it comes from {comes_from}")
        return found

    def search(self, pattern: str) -> Path | None:
        """Like :meth:`find`, but None where there is none."""
        for depth in range(4):
            for root in self.roots:
                found = sorted(root.glob("*/" * depth + pattern))
                if found:
                    return found[0]
        return None

    def track(self, items: Sequence[T], title: str) -> Iterator[T]:
        """``items`` one by one, with progress under ``title``."""
        for done, item in enumerate(items):
            self._show(title, done, len(items))
            yield item
        self._show(title, len(items), len(items))

    def each(self, function: Callable[[T], None], items: Sequence[T], title: str) -> None:
        """``function`` of every item, over the work's processes; a ``DataError`` joins :attr:`faults`.

        With several processes ``function`` and the items must pickle.
        """
        if self.workers <= 1 or len(items) < 2 * self.workers:
            results: Iterable[str | None] = (_fault(function, item) for item in items)
            self._collect(results, len(items), title)
            return
        with ProcessPoolExecutor(self.workers, get_context("spawn"), begin_worker) as pool:
            chunk = max(1, min(4, len(items) // (4 * self.workers)))
            try:
                jobs = pool.map(_fault, [function] * len(items), items, chunksize=chunk)
                self._collect(jobs, len(items), title)
            except BrokenProcessPool:
                raise DataError(
                    f"{title}: a process was stopped from outside, perhaps for want of memory; use fewer --workers"
                ) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # else all the rest would be done first
                raise

    def place(self, source: Path, relative: str | Path) -> None:
        """Put the user's file at ``out/relative`` as it is: a hard link where that is possible, else a copy."""
        write_once(self.out / relative, lambda path: link_or_copy(source, path))

    def make(self, relative: str | Path, write: Callable[[Path], None]) -> None:
        """``write`` the file ``out/relative`` unless it is there; see :func:`write_once`."""
        write_once(self.out / relative, write)

    def _collect(self, results: Iterable[str | None], total: int, title: str) -> None:
        self._show(title, 0, total)
        for done, fault in enumerate(results, 1):
            if fault is not None:
                self.faults.append(fault)
            self._show(title, done, total)

    def _show(self, title: str, done: int, total: int) -> None:
        if self._bar:
            self._bar(title, done, total)


def write_once(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with a temporary path and rename it to ``path``: a file that exists is whole, and is kept.

    An empty one is made again: that is what a power cut leaves of a file whose content was not on the disk yet. All
    are flushed at the end, before the journal says that they are done. The temporary path keeps the suffix, by which
    image libraries choose a format.
    """
    if path.exists() and path.stat().st_size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, sync=False) as unfinished:
        write(unfinished)


def link_or_copy(source: Path, path: Path) -> None:
    try:
        os.link(source.resolve(), path)
    except OSError:
        shutil.copyfile(source, path)


def begin_worker() -> None:
    """Ctrl-C, and a parent that was killed, end a worker at once and without a word: its files are whole or none."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a shell starts what runs in its background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _fault(function: Callable[[T], None], item: T) -> str | None:
    try:
        function(item)
    except DataError as error:
        return str(error)
    return None


# The journal of a folder that is being prepared: ``prepare.json``, written atomically.


JOURNAL = "prepare.json"


@dataclass
class Journal:
    recipe: str
    options: dict[str, Any]
    hardpix: str  # version
    status: str = "running"  # then done, or faulty where single files could not be used
    given: list[str] = field(default_factory=list)  # the paths of --from
    inputs: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # path -> size, mtime_ns, md5 (None: unchecked)
    unpacked_files: int = 0
    unpacked_bytes: int = 0
    faults: int = 0


def read_journal(folder: Path) -> Journal | None:
    """The journal of ``folder``, or None where it has none. Raises ``DataError`` where it is not one."""
    path = folder / JOURNAL
    try:
        return Journal(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise DataError(
            f"{path}: not what hardpix data prepare wrote ({line}); give another --to, or remove {folder}"
        ) from None


def write_journal(folder: Path, journal: Journal) -> None:
    write_text(folder / JOURNAL, json.dumps(asdict(journal), indent=2) + "\n")


def begin_journal(folder: Path, journal: Journal) -> Journal:
    """The journal to continue in ``folder``: ``journal`` itself where it is new.

    Raises ``DataError`` for a folder with other files, of another recipe, or of other options; what another
    command left without a result does not count.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: this is a file; --to must be a folder")
    before = read_journal(folder)
    if before is None:
        if folder.is_dir() and any(not UNFINISHED.fullmatch(path.name) for path in folder.iterdir()):
            raise DataError(f"{folder}: it holds other files; --to must be a new or an empty folder")
        return journal
    same = (before.recipe, before.options) == (journal.recipe, journal.options)
    if not same and all(path.name == JOURNAL or UNFINISHED.fullmatch(path.name) for path in folder.iterdir()):
        return journal  # that command stopped before it made anything
    if before.recipe != journal.recipe:
        raise DataError(f"{folder}: {before.recipe} is prepared there; give another --to")
    for key, value in journal.options.items():
        if before.options.get(key, value) != value:
            raise DataError(
                f"{folder}: it was started with {key}={before.options[key]}, not {key}={value}; give another --to"
            )
    before.hardpix = journal.hardpix
    return before


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds ``folder``, in which files that were never finished go; ``DataError`` where another process does."""
    try:
        import fcntl
    except ImportError:  # a system without it
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise DataError(f"{folder}: another process prepares it; wait for it") from None
    except OSError:  # a network file system without locks
        pass
    try:
        remove_unfinished(folder)
        yield
    finally:
        os.close(handle)


# Progress of a long command: bars on a terminal, else a line every few seconds.


PAUSE = 5.0  # seconds between two lines


@contextmanager
def progress() -> Iterator[Bar]:
    """A function that takes title, done, total and perhaps a note, and shows them until the block ends."""
    if not sys.stdout.isatty():
        yield PlainBars()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns) as shown:
        tasks: dict[str, TaskID] = {}

        def bar(title: str, done: int, total: int, note: str = "") -> None:
            if title not in tasks:
                tasks[title] = shown.add_task(title, note="")
            shown.update(tasks[title], completed=done, total=total, note=note)

        yield bar


class PlainBars:
    """A line every few seconds, and one at the end of each title, for logs and cluster queues."""

    def __init__(self, pause: float = PAUSE) -> None:
        self._pause, self._last, self._ended = pause, time.monotonic(), ""

    def __call__(self, title: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if done >= total and self._ended != title:
            self._ended = title
        elif done >= total or now - self._last < self._pause:
            return
        self._last = now
        print(f"{title}: {done}/{total}{note and f', {note}'}", flush=True)
