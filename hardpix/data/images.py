"""Decode image files. Every fault is a ``DataError`` that names the file and what would be right."""

from __future__ import annotations

import errno
import io
import math
import os
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin
from torch import Tensor
from torchvision.io import ImageReadMode, decode_png

from hardpix.types import ConfigError, DataError

FORMATS = ("PNG", "JPEG", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MAX_PIXELS = 80_000_000  # below Pillow's own warning; a small file can claim a picture that fills the memory
_LIMIT = "HARDPIX_MAX_PIXELS"
_MORE = f"; {_LIMIT}=N in the environment sets another limit"
if os.environ.get(_LIMIT, "").isdecimal():
    MAX_PIXELS = Image.MAX_IMAGE_PIXELS = int(os.environ[_LIMIT])

OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of the machine: open files, memory


class Encoded(NamedTuple):
    """An image file that lies in memory; messages name it as ``where``."""

    data: bytes
    where: str

    def __str__(self) -> str:
        return self.where


def read_colour(path: Path | Encoded, image_range: Range | None = None) -> NDArray[np.uint8]:
    """RGB ``[H, W, 3]``; what has more than 8 bits is read by ``image_range``: see :func:`hardpix.data.images.rgb`."""

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
    except Exception:  # reported by who reads the pixels
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
    if isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
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


# The pixels of an opened image file: class numbers as they are stored, and colours of 3 x 8 bits.


DEEP = ("I;16", "I;16L", "I;16B", "I")  # grey of 16 bits, as Pillow calls it on various platforms
COLOUR = ("RGB", "RGBA", "P", "PA", "L", "LA", "1")

Range = tuple[float, float]

_BITS, _PHOTOMETRIC, _CHANNELS, _FORMAT = 258, 262, 277, 339  # tags of a TIFF
_UNSIGNED = (1, 4)  # of _FORMAT; 4 is undefined


class Stored(NamedTuple):
    """How a file stores its pixels, which the decoded picture no longer tells."""

    bits: int = 8  # of each channel
    channels: int = 0  # that are not decoded
    backwards: bool = False  # grey whose 0 is white
    signed: bool = False
    png: bool = False


def remember(image: Image.Image) -> None:
    """Keep with an opened file what its header says; decoding loses it."""
    image.info["stored"] = stored(image)


def stored(image: Image.Image) -> Stored:
    """From the header of an opened file, before its pixels are decoded."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = {tag: np.ravel(image.tag_v2.get(tag, 1)).tolist() for tag in (_BITS, _CHANNELS, _FORMAT)}
        return Stored(
            bits=max(tags[_BITS]),
            channels=max(0, tags[_CHANNELS][0] - len(image.getbands())),
            backwards=image.tag_v2.get(_PHOTOMETRIC) == 0,
            signed=image.mode in COLOUR and any(kind not in _UNSIGNED for kind in tags[_FORMAT]),
        )
    if not isinstance(image, PngImagePlugin.PngImageFile) or not image.tile:
        return Stored()
    bits = re.search(r"\d+", str(image.tile[0].args))  # such as L;4 and RGB;16B
    return Stored(int(bits[0]) if bits else 8, png=True)


def indices(image: Image.Image, where: object) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The class numbers ``[H, W]`` of a decoded label, as stored at every bit depth.

    Several equal channels are one number; an alpha channel says nothing where it is opaque.
    """
    found: Stored = image.info["stored"]
    if image.mode not in (*COLOUR, *DEEP):
        raise DataError(
            f"{where}: a label must be a grey or palette image of class numbers, but this one is {image.mode}; "
            "save it as a grey PNG"
        )
    deep = image.mode in DEEP
    if found.backwards or found.signed or found.channels or (found.bits > 8 and not deep):
        raise DataError(
            f"{where}: a label must be a plain image of class numbers, but "
            f"{_unsupported_form(image)}; save it as a grey PNG"
        )
    if deep:
        return sixteen_bits(image, where)
    pixels = np.array(image).astype(np.uint8, copy=False)
    if image.mode == "L" and found.bits < 8:
        return pixels // np.uint8(255 // (2**found.bits - 1))  # decoding stretches to 0..255
    if pixels.ndim == 2:
        return pixels
    if image.mode in ("LA", "PA", "RGBA") and (pixels[..., -1] != 255).any():
        raise DataError(
            f"{where}: a label must say a class everywhere, but its alpha channel (mode {image.mode}) is not opaque; "
            "save it without transparency"
        )
    first = pixels[..., 0]
    if image.mode in ("RGB", "RGBA") and (pixels[..., 1:3] != first[..., None]).any():
        raise DataError(
            f"{where}: a label must be an image of class numbers, but this one is {image.mode} with colours; "
            "data.source.label_format=colour with one colour per class in data.source.palette reads colours"
        )
    return np.ascontiguousarray(first)


def rgb(
    image: Image.Image, where: object, image_range: Range | None, content: Callable[[], bytes]
) -> NDArray[np.uint8]:
    """RGB ``[H, W, 3]`` of a decoded image. Grey is repeated, palettes are looked up, alpha is dropped.

    What has more than 8 bits is read by ``image_range``, the values that become 0 and 255; without it ``DataError``.
    ``content``: gives the bytes of the file, of whose 16-bit colours Pillow decodes the upper 8 bits alone.
    """
    found: Stored = image.info["stored"]
    if image.mode in (*DEEP, "F"):
        if found.backwards:
            raise DataError(f"{where}: {_unsupported_form(image)}; save it with 0 as black")
        grey = np.array(image)
        return np.repeat(scaled(grey, where, image_range, f"mode {image.mode}")[:, :, None], 3, axis=2)
    if image.mode not in COLOUR:
        raise DataError(f"{where}: an image of mode {image.mode} is not read; convert it to RGB or grey")
    if found.signed or found.channels or (found.bits > 8 and not found.png):
        raise DataError(f"{where}: {_unsupported_form(image)}; save it as RGB or grey of 8 bits a channel")
    if found.bits > 8:
        return scaled(_deep_colours(content()), where, image_range, f"mode {image.mode}")
    if image_range not in (None, (0, 255)):
        raise DataError(
            f"{where}: has 8 bits, to which data.source.image_range={_range_text(image_range)} does not apply; "
            "data.source.image_range=null reads images of 8 bits"
        )
    # A palette with transparency must pass RGBA, else Pillow warns and guesses.
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _deep_colours(data: bytes) -> NDArray[np.uint16]:
    picture = decode_png(
        torch.frombuffer(bytearray(data), dtype=torch.uint8),
        mode=ImageReadMode.RGB,
        apply_exif_orientation=True,
    )
    return picture.permute(1, 2, 0).numpy()


def scaled(values: NDArray, where: object, image_range: Range | None, kind: str) -> NDArray[np.uint8]:
    """Values of more than 8 bits -> 0..255 by ``image_range``; those beyond it become 0 or 255."""
    if not np.isfinite(values).all():
        raise DataError(
            f"{where}: holds values that are not finite; an image must have a number in each pixel"
        )
    if image_range is None:
        raise DataError(
            f"{where}: has values from {values.min()} to {values.max()} ({kind}, more than 8 bits); for own data "
            f"data.source.image_range={_range_text(_fitting(values))} says which values are black and white"
        )
    low, high = image_range
    numbers: NDArray[np.floating] = values.astype(np.float64 if values.dtype == np.int32 else np.float32)
    share = (numbers - low) / (high - low)
    return np.rint(share.clip(0, 1) * 255).astype(np.uint8)


def _fitting(values: NDArray) -> Range:
    """A range that holds the values: all numbers of so many bits, or [0, 1]."""
    least, most = float(values.min()), float(values.max())
    if least < 0:
        return math.floor(least), math.ceil(most)
    if values.dtype.kind == "f" and most <= 1:
        return 0, 1
    return 0, 2 ** max(8, math.ceil(math.log2(most + 1))) - 1


def sixteen_bits(image: Image.Image, where: object) -> NDArray[np.uint16]:
    """Pixels of 16 bits. A TIFF can hold 32, or signs, under the same mode: what does not fit would wrap around."""
    pixels = np.array(image)
    if pixels.dtype != np.uint16 and pixels.size and not 0 <= pixels.min() <= pixels.max() <= 0xFFFF:
        raise DataError(
            f"{where}: holds values from {pixels.min()} to {pixels.max()}; grey images of 16 bits (0 to 65535) are read"
        )
    return pixels.astype(np.uint16)


def checked_range(image_range: Sequence[float] | None) -> Range | None:
    """``data.source.image_range``; raises ``ConfigError`` unless two finite numbers in ascending order."""
    if image_range is None:
        return None
    given = list(image_range) if isinstance(image_range, Sequence) else [image_range]
    numbers = [v for v in given if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(given) != 2 or len(numbers) != 2 or not -math.inf < numbers[0] < numbers[1] < math.inf:
        raise ConfigError(
            f"data.source.image_range={image_range}: must be [black, white], two numbers in ascending order, "
            "such as [0,4095] for 12 bits"
        )
    return numbers[0], numbers[1]


def _range_text(image_range: Range | None) -> str:
    return "null" if image_range is None else "[{:.10g},{:.10g}]".format(*image_range)


def _unsupported_form(image: Image.Image) -> str:
    found: Stored = image.info["stored"]
    if found.backwards:
        return "its numbers run backwards (TIFF of the kind WhiteIsZero)"
    if found.signed:
        return "its numbers have signs or are no whole numbers"
    if found.channels:
        count = len(image.getbands()) + found.channels
        return f"it has {count} channels, of which {image.mode} would be read"
    return f"its channels have {found.bits} bits each (mode {image.mode})"
