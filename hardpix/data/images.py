"""Decode image files. Every fault is a ``DataError`` that names the file and what would be right."""

from __future__ import annotations

import errno
import io
import os
import re
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from hardpix.data.pixels import COLOUR, DEEP, Range, indices, remember, rgb, sixteen_bits, stored
from hardpix.types import DataError

FORMATS = ("PNG", "JPEG", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MAX_PIXELS = 80_000_000  # below Pillow's own warning; a small file can claim a picture that fills the memory
_LIMIT = "HARDPIX_MAX_PIXELS"
_MORE = f"; {_LIMIT}=N in the environment sets another limit"
if os.environ.get(_LIMIT, "").isdecimal():
    MAX_PIXELS = Image.MAX_IMAGE_PIXELS = int(os.environ[_LIMIT])

LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of the machine: open files, memory


class Encoded(NamedTuple):
    """An image file that lies in memory; messages name it as ``where``."""

    data: bytes
    where: str

    def __str__(self) -> str:
        return self.where


def read_colour(path: Path | Encoded, image_range: Range | None = None) -> NDArray[np.uint8]:
    """RGB ``[H, W, 3]``; what has more than 8 bits is read by ``image_range``: see :func:`hardpix.data.pixels.rgb`."""

    def content() -> bytes:
        return path.data if isinstance(path, Encoded) else path.read_bytes()

    return rgb(_open(path), path, image_range, content)


def read_image(path: Path, image_range: Range | None = None) -> Tensor:
    """RGB ``[3, H, W]`` uint8; a view of the decoded ``[H, W, 3]`` pixels."""
    return torch.from_numpy(read_colour(path, image_range)).permute(2, 0, 1)


def read_index(path: Path | Encoded) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A label image ``[H, W]``, 8 or 16 bits: grey, palette (whose indices count, not its colours), equal channels."""
    return indices(_open(path), path)


def read_depth(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A depth image ``[H, W]`` in its stored units: 8 or 16 bits, as the file has them."""
    image = _open(path)
    if image.mode in DEEP:
        return sixteen_bits(image, path)
    if image.mode != "L":
        raise DataError(f"{path}: depth must be a grey image of 8 or 16 bits, but this one is {image.mode}")
    return _pixels(image)


def read_float_depth(path: Path) -> NDArray:
    """As :func:`read_depth`, and images of floating-point numbers."""
    image = _open(path)
    return _pixels(image) if image.mode == "F" else read_depth(path)


def refuse_lossy(path: Path | Encoded) -> None:
    """Refuse a JPEG (by its ending, or by its first bytes) where numbers must be exact."""
    by_name = isinstance(path, Path) and path.suffix.lower() in (".jpg", ".jpeg")
    if by_name or (isinstance(path, Encoded) and path.data.startswith(b"\xff\xd8")):
        raise DataError(f"{path}: JPEG changes numbers at every edge; labels and depth must be PNG or TIFF")


def same_size(array: NDArray | Tensor, path: Path, other: NDArray, other_path: Path) -> None:
    """Refuse two images ``[H, W, ...]`` of one frame that differ in height or width."""
    if tuple(array.shape[:2]) == other.shape[:2]:
        return
    (h, w), (other_h, other_w) = array.shape[:2], other.shape[:2]
    advice = "both must have one size"
    if (h, w) == (other_w, other_h) and orientation(other_path) > 4:
        advice = (
            f"{other_path.name} carries an EXIF orientation, which was applied: "
            "rotate the other file alike, or take the tag out"
        )
    raise DataError(f"{path} measures {w}x{h} pixels but {other_path} {other_w}x{other_h}; {advice}")


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image as :func:`read_colour` gives it, from its header alone."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            _judge(image, path)
            width, height = image.size
            return (width, height) if _orientation(image) > 4 else (height, width)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise _bomb(path, error) from None
    except Exception as error:  # Pillow's readers raise almost anything at broken files
        raise _unreadable(path, error) from None


def image_mode(path: Path) -> str:
    """The pixel format of an image as Pillow names it (L grey, P palette, RGB, ...), from its header alone."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.mode
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise _bomb(path, error) from None
    except Exception as error:  # Pillow's readers raise almost anything at broken files
        raise _unreadable(path, error) from None


def orientation(path: Path) -> int:
    """The EXIF orientation of an image file, 1 (upright) to 8; 1 where it has none."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return _orientation(image)
    except Exception:  # told by who reads the pixels
        return 1


class Traits(NamedTuple):
    """What decoding an image file changes without a word."""

    turned: bool  # an EXIF orientation is applied
    transparent: bool  # transparency is dropped
    deep: bool  # more than 8 bits become 8
    odd: bool  # of a kind that is refused


def traits(path: Path) -> Traits:
    """From the header of an image file alone; raises ``DataError`` where it cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
            found = stored(image)
            odd = image.mode not in (*COLOUR, *DEEP, "F") or found.signed or found.channels > 0
            return Traits(_orientation(image) > 1, transparent, found.bits > 8, odd)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise _bomb(path, error) from None
    except Exception as error:  # Pillow's readers raise almost anything at broken files
        raise _unreadable(path, error) from None


def decodes(path: Path) -> bool:
    """Whether the pixels of an image file can be decoded, whatever they may mean."""
    try:
        _open(path)
    except DataError:
        return False
    return True


def _orientation(image: Image.Image) -> int:
    # Without an EXIF block Pillow would look for one behind the pixels, which costs a decoding.
    return int(image.getexif().get(274, 1)) if "exif" in image.info else 1


def _open(path: Path | Encoded) -> Image.Image:
    """Decode a file after its header has been judged; turned upright where its EXIF says so."""
    try:
        opened = io.BytesIO(path.data) if isinstance(path, Encoded) else path.open("rb")
        with opened as file, Image.open(file, formats=FORMATS) as image:
            _judge(image, path)
            pages = (
                getattr(image, "n_frames", 1) if image.format in ("PNG", "TIFF") else 1
            )  # a JPEG has previews
            if pages > 1:
                raise DataError(f"{path}: holds {pages} pages, of which one would be read; save one a file")
            if image.format == "PNG":
                at = file.tell()
                _check_sums(file)
                file.seek(at)
            remember(image)
            image.load()
            return ImageOps.exif_transpose(image) if _orientation(image) > 1 else image
    except DataError:
        raise
    except Image.DecompressionBombError as error:  # Pillow judges the header too, far above our limit
        raise _bomb(path, error) from None
    except Exception as error:  # Pillow's readers raise almost anything at broken files
        raise _unreadable(path, error) from None


def _check_sums(file: IO[bytes]) -> None:
    """The checksum of every part of a PNG up to its end: Pillow passes over those of the pixels."""
    file.seek(8)
    while True:
        head = file.read(8)
        left, kind = int.from_bytes(head[:4], "big"), head[4:]
        found = zlib.crc32(kind)
        while left and (block := file.read(min(left, 1 << 20))):
            found, left = zlib.crc32(block, found), left - len(block)
        written = file.read(4)
        if left or len(kind) + len(written) < 8:
            raise ValueError("it is cut off")
        if found != int.from_bytes(written, "big"):
            raise ValueError("a checksum is wrong: its bytes have changed since it was written")
        if kind == b"IEND":
            return


def _judge(image: Image.Image, path: Path | Encoded) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{path}: its header claims {image.width}x{image.height} pixels; at most {MAX_PIXELS} are read{_MORE}"
        )


def _bomb(path: Path | Encoded, error: Exception) -> DataError:
    claimed = re.search(r"\d+ pixels", str(error))
    many = claimed[0] if claimed else "too many pixels"
    return DataError(f"{path}: its header claims {many}; at most {MAX_PIXELS} are read{_MORE}")


def _unreadable(path: Path | Encoded, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.errno in LACKS:
        raise error  # no fault of the file
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file; the data set needs it")
    reason = "it is empty" if _is_empty(path) else " ".join(str(error).split()).replace(f" {str(path)!r}", "")
    return DataError(f"{path}: not a readable {', '.join(FORMATS)} image ({reason})")


def _is_empty(path: Path | Encoded) -> bool:
    if isinstance(path, Encoded):
        return not path.data
    return path.is_file() and path.stat().st_size == 0


def _pixels(image: Image.Image) -> NDArray:
    return np.array(image)  # a copy: `asarray` is read-only, which torch warns of
