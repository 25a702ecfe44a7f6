"""What an archive declares to hold, entry by entry; zip and tar alike."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hardpix.types import DataError

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
