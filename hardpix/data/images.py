"""Decode image files. Every fault is a ``DataError`` that names the file and what would be right."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hardpix.types import DataError

FORMATS = ("PNG", "JPEG", "TIFF")
MAX_PIXELS = 80_000_000  # below Pillow's own warning; a small file can claim a picture that fills the memory

_COLOUR = ("RGB", "RGBA", "RGBX", "P", "PA", "L", "LA", "1")
_DEEP = ("I;16", "I;16L", "I;16B", "I")  # 16-bit grey, as Pillow calls it on various platforms
_INDEX = ("L", "P", "1")

# What Pillow raises on broken files, over its formats.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)


def read_colour(path: Path) -> NDArray[np.uint8]:
    """RGB ``[H, W, 3]``. Grey is repeated, palettes looked up, alpha dropped; 16-bit grey keeps its high byte."""
    image = _open(path)
    if image.mode in _DEEP:
        grey = (_pixels(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode not in _COLOUR:
        raise DataError(f"{path}: an image of mode {image.mode} is not read; convert it to RGB or grey")
    # A palette with transparency must pass RGBA, else Pillow warns and guesses.
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return _pixels(image if image.mode == "RGB" else image.convert("RGB"))


def read_image(path: Path) -> Tensor:
    """RGB ``[3, H, W]`` uint8; a view of the decoded ``[H, W, 3]`` pixels."""
    return torch.from_numpy(read_colour(path)).permute(2, 0, 1)


def read_index(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A label image ``[H, W]``: grey or palette (whose indices count, not its colours), 8 or 16 bits."""
    image = _open(path)
    if image.mode in _DEEP:
        return _pixels(image).astype(np.uint16)
    if image.mode not in _INDEX:
        raise DataError(
            f"{path}: a label must be a grey or palette image of class numbers, but this one is {image.mode}"
        )
    return _pixels(image).astype(np.uint8, copy=False)


def read_depth(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A depth image ``[H, W]`` in its stored units: 8 or 16 bits, as the file has them."""
    image = _open(path)
    if image.mode in _DEEP:
        return _pixels(image).astype(np.uint16)
    if image.mode != "L":
        raise DataError(f"{path}: depth must be a grey image of 8 or 16 bits, but this one is {image.mode}")
    return _pixels(image)


def same_size(array: NDArray, path: Path, other: NDArray, other_path: Path) -> None:
    """Refuse two images of one frame that differ in height or width."""
    if array.shape[:2] != other.shape[:2]:
        (h, w), (other_h, other_w) = array.shape[:2], other.shape[:2]
        raise DataError(
            f"{path} measures {w}x{h} pixels but {other_path} {other_w}x{other_h}; both must have one size"
        )


def _open(path: Path) -> Image.Image:
    """Decode a file after its header has been judged; the orientation tag is not applied."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: its header claims {image.width}x{image.height} pixels; "
                    f"at most {MAX_PIXELS} are read"
                )
            image.load()
            return image
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; the data set needs it") from None
    except Image.DecompressionBombError:  # Pillow judges the header too, far above our limit
        raise DataError(f"{path}: its header claims too many pixels; at most {MAX_PIXELS} are read") from None
    except _BROKEN as error:
        reason = "it is empty" if _is_empty(path) else str(error).replace(f" {str(path)!r}", "")
        raise DataError(f"{path}: not a readable {', '.join(FORMATS)} image ({reason})") from None


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _pixels(image: Image.Image) -> NDArray:
    return np.array(image)  # a copy: `asarray` is read-only, which torch warns of
