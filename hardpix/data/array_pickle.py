"""Pickles of arrays and plain containers, as Python 2 wrote them; nothing else in them is ever looked up or called."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hardpix.types import DataError


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
