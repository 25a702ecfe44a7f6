"""List and unpack archives safely: zip and tar, with refusals, resumable.

An archive is judged whole before anything is written. What is refused is what could write outside the target
(absolute names, ``..``, links), stop at a file that is none (devices, pipes), overwrite another member, or fill
the disk. While unpacking, bytes are counted against the declared size, and a file appears only when it is whole.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from hardpix.types import DataError

PARTIAL = ".partial"  # a file that is being written, next to the targets


@dataclass(frozen=True)
class Limits:
    """What an archive may ask for. Above ``free_size`` bytes it must not expand more than ``ratio`` times
    (deflate cannot do more than 1032; pictures stay near 1), which bounds what a bomb can write.
    """

    members: int = 1_000_000
    ratio: int = 1000
    free_size: int = 100_000_000
    name_bytes: int = 255
    path_bytes: int = 4095
    folds_case: bool = False  # the file system takes A and a for the same name

    @classmethod
    def of(cls, folder: Path) -> Limits:
        """Those of the file system on which ``folder``, which need not exist yet, will be."""
        place = nearest_existing(folder)
        twin = Path(str(place).swapcase())
        folds = twin != place and twin.exists() and twin.samefile(place)
        try:
            name, path = os.pathconf(place, "PC_NAME_MAX"), os.pathconf(place, "PC_PATH_MAX") - 1
        except (AttributeError, OSError, ValueError):  # a system without it, or without a limit
            return cls(folds_case=folds)
        return cls(name_bytes=name, path_bytes=path, folds_case=folds)


def nearest_existing(path: Path) -> Path:
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def list_members(archive: Path) -> Iterator[Member]:
    """The members in order, from the headers alone; a compressed tar is read to its end, which checks it.

    Raises ``DataError`` where the archive is cut off or damaged.
    """
    for member, _ in entries(archive):
        yield member


def judge(
    archive: Path, members: Iterable[Member], wanted: Callable[[str], bool], target: Path, limits: Limits
) -> list[Member]:
    """The files to unpack below ``target``, with their names made plain (``./a//b`` is ``a/b``).

    Raises ``DataError`` that names the first member that is refused. Names are judged of all members, the rest
    only of those that are ``wanted``. What macOS adds (``__MACOSX``, ``._name``, ``.DS_Store``) is left out.
    """
    chosen: list[Member] = []
    packed, total, archive_size = 0, 0, archive.stat().st_size
    names = _Names(limits.folds_case)
    for member in members:
        parts = _safe_parts(archive, member)
        if not parts or member.folder or _of_macos(parts) or not wanted("/".join(parts)):
            continue
        name = "/".join(parts)
        fault = member.fault or names.clash(name) or _too_long(parts, target, limits)
        fault = fault or _expands(member, limits)
        if fault:
            raise _refused(archive, member, fault)
        total, packed = total + member.size, packed + (member.packed or 0)
        if total > limits.free_size and total > limits.ratio * archive_size:
            raise _refused(archive, member, f"with it the archive expands more than {limits.ratio} times")
        if packed > archive_size:
            raise _refused(archive, member, "it shares its bytes with other members")
        chosen.append(replace(member, name=name))
        if len(chosen) > limits.members:
            raise _refused(archive, member, f"it is one of more than {limits.members} files")
    return chosen


def unpack(
    archive: Path, chosen: Sequence[Member], target: Path, advance: Callable[[int], None] = lambda size: None
) -> None:
    """Write the files of :func:`judge` below ``target``; those that are there with their size are kept.

    ``advance`` is called with the bytes that are done. Raises ``DataError`` that names archive and member where one is
    damaged or longer or shorter than declared; the files before it stay, of itself nothing does.
    """
    todo = {}
    for member in chosen:
        if has_size(target / member.name, member.size):
            advance(member.size)
        else:
            todo[member.index] = member
    if not todo:
        return
    for entry, open_entry in entries(archive):
        if entry.index in todo:
            member = todo.pop(entry.index)
            with sentences(archive, member.name), open_entry() as stream:
                _write(archive, member, stream, target, advance)
        if not todo:
            return
    raise DataError(f"{archive}: it changed while it was read; leave it alone and give the same command")


def has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _write(
    archive: Path, member: Member, stream: IO[bytes], target: Path, advance: Callable[[int], None]
) -> None:
    path, partial = target / member.name, target.with_name(PARTIAL)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    try:
        with open(partial, "wb") as file:
            while chunk := stream.read(CHUNK):
                written += len(chunk)
                if written > member.size:
                    raise _refused(archive, member, f"it is longer than the {member.size} bytes it declares")
                file.write(chunk)
                advance(len(chunk))
        if written < member.size:
            raise DataError(
                f"{archive}: its member {member.name!r} has {written} bytes of {member.size}; download it again"
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class _Names:
    """The files and folders of an archive so far, which must not take each other's places."""

    def __init__(self, folds_case: bool) -> None:
        self._folds, self._files, self._folders = folds_case, set[str](), set[str]()

    def clash(self, name: str) -> str:
        """Why there cannot be a file ``name`` besides those before; empty where there can."""
        if self._folds:
            name = unicodedata.normalize("NFC", name).casefold()
        parents = [name[: slash.start()] for slash in re.finditer("/", name)]
        if name in self._files:
            return "another member has the same name"
        if name in self._folders or any(parent in self._files for parent in parents):
            return "a name is that of a file and of a folder"
        self._files.add(name)
        self._folders.update(parents)
        return ""


def _safe_parts(archive: Path, member: Member) -> list[str]:
    """The parts of the name; none for the archive's own root."""
    name = member.name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/"):
        raise _refused(archive, member, "its name is an absolute path")
    if "\\" in name:
        raise _refused(archive, member, "its name has a backslash")
    if re.match("[A-Za-z]:", "".join(parts[:1])):
        raise _refused(archive, member, "its name has a drive letter")
    if ".." in parts:
        raise _refused(archive, member, "its name leads out of the folder")
    if "\0" in name:
        raise _refused(archive, member, "its name has a NUL")
    return parts


def _of_macos(parts: Sequence[str]) -> bool:
    return parts[0] == "__MACOSX" or parts[-1].startswith("._") or parts[-1] == ".DS_Store"


def _too_long(parts: Sequence[str], target: Path, limits: Limits) -> str:
    try:
        sizes = [len(os.fsencode(part)) for part in parts]
        path = len(os.fsencode(target.absolute() / "/".join(parts)))
    except UnicodeEncodeError:
        return "its name cannot be written on this file system"
    if max(sizes) > limits.name_bytes or path > limits.path_bytes:
        return "its name is longer than the file system takes"
    return ""


def _expands(member: Member, limits: Limits) -> str:
    if member.packed is None or member.size <= max(limits.free_size, limits.ratio * member.packed):
        return ""
    return f"it expands {member.packed} bytes to {member.size}"


def _refused(archive: Path, member: Member, why: str) -> DataError:
    return DataError(
        f"{archive}: its member {member.name!r} is refused: {why}; "
        "if you trust the archive, unpack it yourself and give the folder"
    )


# What an archive declares to hold, entry by entry; zip and tar alike.


SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
CHUNK = 1 << 20  # bytes read at once
HEADER_BYTES = 16 << 20  # what the headers of one tar member may take: they are read into memory
PADDING_BYTES = 16 << 20  # how far the end of a compressed tar is read, to have its checksum compared
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError,
          OverflowError, ValueError, NotImplementedError)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """An entry of an archive as its headers declare it."""

    name: str
    size: int  # bytes when unpacked
    index: int  # which entry of the archive it is, from 0
    packed: int | None = None  # bytes in the archive, where each member is compressed by itself
    folder: bool = False
    fault: str = ""  # why it cannot be unpacked, for example that it is a link


Entry = tuple[Member, Callable[[], IO[bytes]]]  # and what opens it


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def entries(archive: Path) -> Iterator[Entry]:
    """Each member and what opens it, which must be called before the next one is asked for."""
    return _zip_entries(archive) if archive.name.lower().endswith(".zip") else _tar_entries(archive)


def _zip_entries(archive: Path) -> Iterator[Entry]:
    with sentences(archive), zipfile.ZipFile(archive) as file:
        infos = file.infolist()
        for index, info in enumerate(infos):
            kind = stat.S_IFMT(info.external_attr >> 16)
            member = Member(
                name=info.orig_filename,  # filename ends at a NUL
                size=info.file_size,
                index=index,
                packed=info.compress_size,
                folder=info.filename.endswith("/") or kind == stat.S_IFDIR,
                fault=_zip_fault(info, kind),
            )
            yield member, lambda info=info: file.open(info)  # type: ignore[misc]


def _zip_fault(info: zipfile.ZipInfo, kind: int) -> str:
    if kind == stat.S_IFLNK:
        return "it is a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "it is a device or a pipe"
    if info.flag_bits & 0x2041:  # encrypted, strongly encrypted, masked headers
        return "it is encrypted"
    if info.compress_type not in METHODS:
        return f"it is packed by method {info.compress_type}, which is not known here"
    return ""


def _tar_entries(archive: Path) -> Iterator[Entry]:
    with sentences(archive), _decompressed(archive) as stream:
        capped = _Capped(stream, HEADER_BYTES)
        with tarfile.TarFile(fileobj=capped) as file:  # type: ignore[arg-type]
            index, last = 0, ""
            while True:
                with sentences(archive, last):
                    capped.left = HEADER_BYTES
                    info = file.next()
                    capped.left = None
                    if info is None:
                        _check_end(capped.last, stream, compressed=archive.suffix.lower() != ".tar")
                        return
                last, member = info.name, _tar_member(info, index)
                yield member, lambda info=info: file.extractfile(info)  # type: ignore[misc]
                file.members.clear()  # type: ignore[attr-defined]  # it would remember all of them
                index += 1


def _tar_member(info: tarfile.TarInfo, index: int) -> Member:
    fault = ""
    if info.issym() or info.islnk():
        fault = f"it is a link to {info.linkname!r}"
    elif info.issparse():
        fault = "it is a sparse file"
    elif info.ischr() or info.isblk() or info.isfifo():
        fault = "it is a device or a pipe"
    elif not (info.isreg() or info.isdir()):
        fault = f"it is of the unknown kind {info.type!r}"
    elif info.size < 0:
        fault = f"its size is {info.size}"
    return Member(info.name, info.size, index, folder=info.isdir(), fault=fault)


def _check_end(block: bytes, stream: IO[bytes], *, compressed: bool) -> None:
    """``block`` ended the archive. It must be zeros: a damaged header, too, looks like the end to ``tarfile``."""
    if block.strip(b"\0") or (len(block) < tarfile.BLOCKSIZE and (block or not compressed)):
        raise tarfile.ReadError("unexpected end of data")
    for _ in range(PADDING_BYTES // CHUNK if compressed else 0):
        if not stream.read(CHUNK):
            return


def _decompressed(archive: Path) -> IO[bytes]:
    name = archive.name.lower()
    if name.endswith("gz"):
        return gzip.open(archive)  # type: ignore[return-value]
    if name.endswith("bz2"):
        return bz2.open(archive)
    if name.endswith("xz"):
        return lzma.open(archive)
    return open(archive, "rb")


class _Capped:
    """A stream of which only ``left`` bytes can be read (None: all); seeking is free. Knows its last read."""

    def __init__(self, stream: IO[bytes], left: int) -> None:
        self.seek, self.tell, self._read = stream.seek, stream.tell, stream.read
        self.left: int | None = left
        self.last = b""

    def read(self, size: int) -> bytes:
        if self.left is not None:
            if not 0 <= size <= self.left:
                raise tarfile.ReadError("a header that long is none")
            self.left -= size
        self.last = self._read(size)
        return self.last


@contextmanager
def sentences(archive: Path, member: str = "") -> Iterator[None]:
    """What the libraries raise at damaged archives, as one sentence; a system's error passes."""
    try:
        yield
    except BROKEN as error:
        raise _damaged(archive, member, error) from error
    except OSError as error:
        if error.errno not in (
            None,
            errno.EINVAL,
        ):  # none: of gzip and bz2; invalid: a place outside the file
            raise
        raise _damaged(archive, member, error) from error


def _damaged(archive: Path, member: str, error: Exception) -> DataError:
    where = f" at its member {member!r}" if member else ""
    return DataError(f"{archive}: it is cut off or damaged{where} ({error}); download it again")
