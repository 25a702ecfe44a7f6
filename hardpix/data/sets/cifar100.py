"""CIFAR-100: classification of tiny pictures, to pre-train on (Krizhevsky 2009)."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardpix.data.files import existing_root, frame_name
from hardpix.data.labels import voc_palette
from hardpix.data.source import Sample, Source
from hardpix.types import DataError, DatasetInfo

CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip
SIDE = 32
PIXELS = 3 * SIDE * SIDE  # of an image: all red, then all green, then all blue, row by row
RECORD = 2 + PIXELS  # of a binary file: coarse class, fine class, image
PYTHON, BINARY = "cifar-100-python", "cifar-100-binary"


class CIFAR100(Source):
    """Pictures of one object each, 32x32 pixels, 50000 training and 10000 test images, 100 classes.

    One of the two releases lies below ``root``, or is ``root`` itself; Python's where both do::

        cifar-100-python/{train,test}               pickles, of which only arrays and plain containers are read
        cifar-100-python/meta                       the names of the classes; checked where it exists
        cifar-100-binary/{train,test}.bin           3074 bytes an image: coarse class, fine class, pixels
        cifar-100-binary/fine_label_names.txt       the names of the classes; checked where it exists

    Every pixel of a label carries the (fine) class of its image, so that any head and loss can pre-train on it. The
    pixel accuracy is then close to the accuracy of images; it is no published measure. There is no validation split:
    ``val`` is the test split.

    A frame is called as its file was; where several were called the same, each has its number in the split added.
    The binary release has no file names: there it is the split and the number.
    """

    own_val = False
    info = DatasetInfo(
        name="cifar100", classes=CLASSES, palette=voc_palette(len(CLASSES)), main_metric="pixel_acc"
    )

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def frames(self, split: str, keys: frozenset[str]) -> CIFARFrames:
        existing_root(self.root, "CIFAR-100")
        self.check_split(split)
        part = "train" if split == "train" else "test"
        for folder in (self.root, self.root / PYTHON, self.root / BINARY):
            if (folder / part).is_file():
                return _read_pickle(folder / part, folder / "meta", keys)
            if (folder / f"{part}.bin").is_file():
                return _read_binary(folder / f"{part}.bin", folder / "fine_label_names.txt", keys)
        raise DataError(
            f"{self.root}: neither {PYTHON}/{part} nor {BINARY}/{part}.bin is in it; it must hold what "
            f"{PYTHON}.tar.gz or {BINARY}.tar.gz unpacks to"
        )


@dataclass(frozen=True)
class CIFARFrames:
    """The images of one file."""

    path: Path
    images: NDArray[np.uint8]  # [N, 3072]
    classes: NDArray[np.integer]  # [N]
    names: tuple[str, ...]
    keys: frozenset[str]

    def __post_init__(self) -> None:
        if len(self.classes) == 0:
            raise DataError(f"{self.path}: there is no image in it; download it again")
        wrong = np.flatnonzero((self.classes < 0) | (self.classes >= len(CLASSES)))
        if len(wrong):
            index = wrong[0]
            raise DataError(
                f"{self.path}: image {index} is of class {self.classes[index]}; classes are 0..{len(CLASSES) - 1}"
            )

    def __len__(self) -> int:
        return len(self.classes)

    def name(self, index: int) -> str:
        return self.names[index]

    def load(self, index: int) -> Sample:
        image = torch.from_numpy(self.images[index].reshape(3, SIDE, SIDE).copy())
        sample = Sample(image=image, name=self.names[index])
        if "label" in self.keys:
            sample["label"] = self.label(index)
        return sample

    def label(self, index: int) -> Tensor:
        """The class of image ``index`` at each of its pixels, ``[32, 32]`` uint8."""
        return torch.full((SIDE, SIDE), int(self.classes[index]), dtype=torch.uint8)

    def stored(self) -> list[Path]:
        """The one file."""
        return [self.path]

    def fingerprint(self) -> str:
        """Changes when the file does (its size or time)."""
        stat = self.path.stat()
        return hashlib.sha256(
            f"cifar100 {self.path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()
        ).hexdigest()


def _read_pickle(path: Path, meta: Path, keys: frozenset[str]) -> CIFARFrames:
    if meta.is_file():
        _check_names(meta, _list(meta, read_array_pickle(meta), b"fine_label_names", bytes))
    found = read_array_pickle(path)
    classes, files = _list(path, found, b"fine_labels", int), _list(path, found, b"filenames", bytes)
    data = found.get(b"data")
    if not isinstance(data, np.ndarray) or data.shape != (len(classes), PIXELS) or len(files) != len(classes):
        raise DataError(f"{path}: data, fine_labels and filenames are not of one number; download it again")
    return CIFARFrames(path, data, np.array(classes), _unique(files), keys)


def _read_binary(path: Path, listing: Path, keys: frozenset[str]) -> CIFARFrames:
    if listing.is_file():
        _check_names(listing, listing.read_bytes().split())
    raw = np.fromfile(path, np.uint8)
    if len(raw) % RECORD:
        raise DataError(f"{path}: {len(raw)} bytes are no whole images of {RECORD}; download it again")
    records = raw.reshape(-1, RECORD)
    names = tuple(f"{path.stem}_{index:05d}" for index in range(len(records)))
    return CIFARFrames(path, records[:, 2:], records[:, 1], names, keys)


def _list(path: Path, found: dict[Any, Any], key: bytes, kind: type) -> list[Any]:
    """The list ``key`` of a pickle of the release."""
    value = found.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, kind) for entry in value):
        raise DataError(f"{path}: it has no {key.decode()}; it must be the file of {PYTHON}.tar.gz")
    return value


def _check_names(path: Path, names: list[bytes]) -> None:
    wrong = [(i, own) for i, own in enumerate(CLASSES) if i >= len(names) or names[i] != own.encode()]
    if wrong or len(names) != len(CLASSES):
        index, own = wrong[0] if wrong else (len(CLASSES), "none")
        raise DataError(f"{path}: its class {index} is not {own}; it must be the file of CIFAR-100's release")


def _unique(files: list[bytes]) -> tuple[str, ...]:
    stems = [frame_name(file.decode("utf-8", "replace")) for file in files]
    times = Counter(stems)
    return tuple(stem if times[stem] == 1 else f"{stem}__{index:05d}" for index, stem in enumerate(stems))


# Pickles of arrays and plain containers, as Python 2 wrote them; nothing else in them is ever looked up or
# called.


def read_array_pickle(path: Path) -> dict[Any, Any]:
    """The dict that a pickle holds; its values may be lists, numbers, bytes (Python 2 strings) and ``uint8`` arrays.

    A pickle can name any function of Python and have it called. This one resolves three names of numpy, to
    stand-ins of its own that keep what they are given; ``DataError`` for any other name, and for damage.
    """
    try:
        found = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; the data set needs it") from None
    except Exception as error:  # damaged pickles raise almost anything
        raise DataError(f"{path}: not a pickle of arrays and plain containers ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: it holds no dict, but {type(found).__name__}")
    return {key: value.array if isinstance(value, _Array) else value for key, value in found.items()}


class _Type:
    """Stands in for ``numpy.dtype``: keeps its name and ignores its state (the byte order, which bytes lack)."""

    def __init__(self, name: Any = b"", *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands in for ``numpy.ndarray``."""

    array: NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Type) or kind.name not in (b"u1", "u1"):
            raise pickle.UnpicklingError("it holds an array that is not of bytes")
        if not isinstance(data, bytes) or len(data) != math.prod(shape):
            raise pickle.UnpicklingError(f"an array of shape {shape} does not have that many bytes")
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    """Stands in for the function by which a pickle makes an empty array, whose state follows."""
    return _Array()


_STAND_INS: dict[tuple[str, str], Callable] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # numpy 2's name of the same
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}


class _Unpickler(pickle._Unpickler):
    """Python's own and not the faster one in C, which makes room for whatever number a pickle claims."""

    dispatch: ClassVar = {
        code: read
        for code, read in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which was not run")
        return _STAND_INS[module, name]
