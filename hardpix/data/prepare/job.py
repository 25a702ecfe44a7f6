"""Plan and run the preparation of one data set, resumable anywhere."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from hardpix.data.prepare import recipe
from hardpix.data.prepare.archive import (
    CHUNK,
    Limits,
    Member,
    has_size,
    is_archive,
    judge,
    list_members,
    nearest_existing,
    unpack,
)
from hardpix.data.prepare.recipe import Bar, Journal, Part, Recipe, Work
from hardpix.record import flush_below
from hardpix.types import DataError

UNPACKED, LOG = ".unpacked", "prepare.log"
RESERVE = 1_000_000_000  # bytes of the disk that stay free
MB = 1_000_000


@dataclass(frozen=True)
class Unpacking:
    """The ``members`` of an archive that are unpacked into ``target``."""

    item: Input
    members: list[Member]
    target: Path
    changed: bool  # what is at ``target`` is of another archive
    wanted: tuple[str, ...]  # paths below ``target`` of those that could be unpacked, needed or not

    @property
    def size(self) -> int:
        return sum(member.size for member in self.members)

    def missing(self) -> int:
        """Bytes that are still to be written."""
        if self.changed:
            return self.size
        return sum(m.size for m in self.members if not has_size(self.target / m.name, m.size))


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    inputs: list[Input]
    out: Path
    unpackings: list[Unpacking]
    missing: int  # bytes to unpack
    free: int  # bytes of the disk

    def roots(self) -> list[Path]:
        """The user's folders, then single files, then what is unpacked."""
        folders = [item.path for item in self.inputs if item.is_folder]
        files = [self.out / UNPACKED / "files"] if self.single_files() else []
        unpacked = [_root(self.out, unpacking.item) for unpacking in self.unpackings]
        return list(dict.fromkeys([*folders, *files, *unpacked]))

    def work(self, workers: int = 1, bar: Bar | None = None) -> Work:
        placed: dict[Path, list[str]] = {}
        for item in self.single_files():
            placed.setdefault(self.out / UNPACKED / "files", []).append(str(_link_of(self.out, item)))
        for unpacking in self.unpackings:
            paths = (f"{unpacking.target}{os.sep}{name}" for name in unpacking.wanted)
            placed.setdefault(_root(self.out, unpacking.item), []).extend(paths)
        return Work(self.roots(), self.out, workers=workers, bar=bar, placed=placed)

    def single_files(self) -> list[Input]:
        """Files outside the folders, whose own folder is none of the data set's."""
        folders = [item.path.resolve() for item in self.inputs if item.is_folder]
        single = [item for item in self.inputs if not item.is_folder and not item.is_archive]
        return [s for s in single if not any(s.path.resolve().is_relative_to(f) for f in folders)]


def make_plan(
    recipe: Recipe, inputs: Sequence[Input], out: Path, journal: Journal, say: Callable[[str], None]
) -> Plan:
    """Judge every archive. Writes nothing; raises ``DataError`` for what is refused and for a disk too small."""
    _check_output_separate(inputs, out)
    limits = replace(Limits.of(out), members=recipe.most_files)
    unpackings = []
    for item in inputs:
        if item.part is None or not item.is_archive:
            continue
        if not item.path.name.lower().endswith((".zip", ".tar")):
            say(f"{item.path}: reading the names of what it holds")
        target = _root(out, item) / (item.name if "/" in item.name else "")
        members = judge(item.path, list_members(item.path), recipe.wanted, target, limits)
        if not members and "*" in item.part.name:  # it was taken for a part by its name
            say(f"{item.path}: none of its files is one of {recipe.name}; it is left out")
            continue
        if not members:
            raise DataError(f"{item.path}: none of its files is one of {recipe.name}; download it again")
        wanted = tuple(member.name for member in members)
        unpackings.append(Unpacking(item, members, target, _changed(item, journal), wanted))
    free = shutil.disk_usage(nearest_existing(out)).free
    plan = _needed_alone(Plan(recipe, list(inputs), out, unpackings, 0, free))
    missing = sum(unpacking.missing() for unpacking in plan.unpackings)
    if missing and missing + RESERVE > free:
        raise DataError(
            f"{out}: {size_text(missing)} are to be unpacked but {size_text(free)} are free there, of which "
            f"{size_text(RESERVE)} are kept; free some, or give another --to"
        )
    return replace(plan, missing=missing)


def run(plan: Plan, journal: Journal, workers: int, bar: Bar) -> Journal:
    """Check, unpack, convert. Called again after an interruption it goes on where it was.

    Returns the journal, ``done`` or ``faulty``; the faults, if any, are in ``prepare.log``, one a line.
    """
    out = plan.out
    out.mkdir(parents=True, exist_ok=True)
    with recipe.only_writer(out):
        journal.status = "running"
        recipe.write_journal(out, journal)
        _check_inputs(plan, journal, bar)
        for unpacking in plan.unpackings:
            _unpack(unpacking, bar)
        for item in plan.single_files():
            _link(item.path, _link_of(out, item))
        journal.unpacked_files = sum(len(u.members) for u in plan.unpackings)
        journal.unpacked_bytes = sum(u.size for u in plan.unpackings)
        recipe.write_journal(out, journal)
        work = plan.work(workers, bar)
        plan.recipe.convert(work)
        _finish(plan, journal, work)
    return journal


def clean(out: Path) -> None:
    """Remove what was unpacked."""
    shutil.rmtree(out / UNPACKED, ignore_errors=True)


def read_faults(out: Path) -> list[str]:
    return (out / LOG).read_text(encoding="utf-8").splitlines()


def size_text(size: int) -> str:
    """``11.6 GB``; in powers of ten, as download pages have it."""
    value, unit = float(size), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


def _needed_alone(plan: Plan) -> Plan:
    """The plan with those members alone that the recipe says it needs."""
    needed = plan.recipe.needed(plan.work())
    if needed is None:
        return plan
    unpackings = []
    for unpacking in plan.unpackings:
        members = [m for m in unpacking.members if f"{unpacking.target}{os.sep}{m.name}" in needed]
        unpackings.append(replace(unpacking, members=members))
    return replace(plan, unpackings=unpackings)


def _root(out: Path, item: Input) -> Path:
    """Archives that folders tell apart keep these, in a root that they share."""
    return out / UNPACKED / ("tree" if "/" in item.name else item.name)


def _link_of(out: Path, item: Input) -> Path:
    return out / UNPACKED / "files" / item.name


def _check_output_separate(inputs: Sequence[Input], out: Path) -> None:
    """A folder that held its own result would have it taken for the release when the command is repeated."""
    result = out.resolve()
    for item in inputs:
        given = item.path.resolve()
        if result.is_relative_to(given) or given.is_relative_to(result):
            raise DataError(
                f"--to {out} and --from {item.path}: one lies in the other; give a --to next to it"
            )


def _record(item: Input) -> dict[str, int]:
    stat = item.path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _changed(item: Input, journal: Journal) -> bool:
    before = journal.inputs.get(item.name)
    return before is not None and {k: before.get(k) for k in ("size", "mtime_ns")} != _record(item)


def _check_inputs(plan: Plan, journal: Journal, bar: Bar) -> None:
    """Compare MD5 sums where they are known; the journal remembers, so that each file is read once."""
    for unpacking in plan.unpackings:
        if unpacking.changed:  # before the journal forgets it
            shutil.rmtree(unpacking.target, ignore_errors=True)
    for item in plan.inputs:
        if item.part is None:
            continue
        known = journal.inputs.get(item.name, {})
        if item.part.md5 and (_changed(item, journal) or known.get("md5") != item.part.md5.lower()):
            check_md5(item, _megabytes(f"checking {item.path.name} (MB)", _record(item)["size"], bar))
        md5 = item.part.md5 and item.part.md5.lower()
        journal.inputs[item.name] = {"path": str(item.path.resolve()), **_record(item), "md5": md5}
        recipe.write_journal(plan.out, journal)


def _unpack(unpacking: Unpacking, bar: Bar) -> None:
    title = f"unpacking {unpacking.item.path.name} (MB)"
    unpack(unpacking.item.path, unpacking.members, unpacking.target, _megabytes(title, unpacking.size, bar))


def _megabytes(title: str, total: int, bar: Bar) -> Callable[[int], None]:
    """Takes the bytes since the last call."""
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        bar(title, round(done / MB), round(total / MB))

    return advance


def _link(source: Path, path: Path) -> None:
    """``path`` as another name of ``source``."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), path)
    except OSError:  # on another disk
        path.symlink_to(source.resolve())


def _finish(plan: Plan, journal: Journal, work: Work) -> None:
    out, faults = plan.out, work.faults
    log = out / LOG
    log.unlink(missing_ok=True)
    if faults:
        lines = [" ".join(fault.split()) for fault in faults]
        log.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    flush_below(out, leave_out=UNPACKED)  # before anything relies on the results, or is removed for them
    journal.faults, journal.status = len(faults), "faulty" if faults else "done"
    recipe.write_journal(out, journal)
    if faults:
        _keep(out / UNPACKED, plan.recipe.needed(work))
    else:
        clean(out)


def _keep(unpacked: Path, needed: Collection[str] | None) -> None:
    """Remove what the same command, given again, does not read or makes again."""
    shutil.rmtree(unpacked / "files", ignore_errors=True)
    for folder, _, names in os.walk(unpacked, topdown=False):
        for name in names:
            if needed is not None and os.path.join(folder, name) not in needed:
                os.unlink(os.path.join(folder, name))
        with suppress(OSError):  # it is not empty
            os.rmdir(folder)


# Match downloaded archives, files and folders with the parts of a recipe.


DEPTH = 3  # folders down that archives are looked for, as Work.find does


@dataclass(frozen=True)
class Input:
    """A file that is ``part``, called ``name`` in the release; or a folder, without both."""

    path: Path
    name: str = ""
    part: Part | None = None

    @property
    def is_folder(self) -> bool:
        return self.part is None

    @property
    def is_archive(self) -> bool:
        return self.part is not None and is_archive(self.path)


def gather(paths: Sequence[Path], parts: Sequence[Part]) -> list[Input]:
    """The files and folders of ``paths``, and the parts that lie in the folders, each once.

    Raises ``DataError`` for what does not exist, is no part, is given twice, has not the size of the release,
    and, where no folder could hold it, for a part that is missing.
    """
    found: dict[Path, Input] = {}
    for path in paths:
        if path.is_dir():
            found.setdefault(path.resolve(), Input(path))
            for inside in _parts_below(path, parts):
                found.setdefault(inside.path.resolve(), inside)
        elif path.exists():
            found.setdefault(path.resolve(), _the_part(path, parts))
        else:
            raise DataError(f"{path}: no such file or folder")
    inputs = list(found.values())
    _all_different(inputs)
    _all_sizes(inputs)
    _all_needed(inputs, parts)
    return inputs


def check_md5(file: Input, advance: Callable[[int], None]) -> None:
    """``DataError`` where the MD5 sum is not that of the release. ``advance`` is called with the bytes read."""
    assert file.part
    assert file.part.md5
    digest = hashlib.md5(usedforsecurity=False)
    with open(file.path, "rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    if digest.hexdigest() != file.part.md5.lower():
        raise DataError(
            f"{file.path}: its MD5 sum is {digest.hexdigest()} but that of the release {file.part.md5}: "
            "download it again"
        )


def _match(path: Path, parts: Sequence[Part]) -> Input | None:
    for part in parts:
        name = "/".join(path.absolute().parts[-1 - part.name.count("/") :])
        if fnmatchcase(name, part.name):
            return Input(path, name, part)
    return None


def _the_part(path: Path, parts: Sequence[Part]) -> Input:
    found = _match(path, parts)
    if found is None:
        names = ", ".join(part.name for part in parts)
        raise DataError(f"{path}: none of the release's files ({names}); rename it if it is one of them")
    return found


def _parts_below(folder: Path, parts: Sequence[Part]) -> Iterator[Input]:
    """Globs by name, so that a tree of a million unpacked files takes no time."""
    names = [part.name.split("/", cut)[-1] for part in parts for cut in range(part.name.count("/") + 1)]
    for depth in range(DEPTH + 1):
        for name in names:
            for path in sorted(folder.glob("*/" * depth + name)):
                found = _match(path, parts)
                if found and path.is_file():
                    yield found


def _all_different(inputs: Sequence[Input]) -> None:
    first: dict[str, Path] = {}
    for item in inputs:
        if item.name and first.setdefault(item.name, item.path) != item.path:
            raise DataError(f"{item.path}: {first[item.name]} is the same part; give one of them")


def _all_sizes(inputs: Sequence[Input]) -> None:
    for item in inputs:
        size = item.part.size if item.part else None
        if size is not None and item.path.stat().st_size != size:
            raise DataError(
                f"{item.path} is {item.path.stat().st_size} bytes but the release is {size}: download it again"
            )


def _all_needed(inputs: Sequence[Input], parts: Sequence[Part]) -> None:
    if any(item.is_folder for item in inputs):
        return  # what was unpacked by hand has other names: the recipe will miss it
    given = [item.part for item in inputs]
    for part in parts:
        if part.needed and part not in given:
            raise DataError(f"{part.name} is missing ({part.what}); give it with --from as well")
