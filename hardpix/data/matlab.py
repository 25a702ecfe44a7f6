"""MATLAB files: one variable of a v5 file, and v7.3 files, which are HDF5. Both need ``hardpix[mat]``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hardpix.types import ConfigError, DataError


def read_variable(path: Path, *keys: str) -> NDArray:
    """The first of the variables ``keys`` that a MATLAB v5 file holds."""
    scipy_io = _need("scipy.io", path)
    try:
        found = scipy_io.loadmat(path, variable_names=keys)
    except Exception as error:  # scipy raises a class of its own for each kind of damage
        raise DataError(f"{path}: not readable as a MATLAB v5 file ({error}); download it again") from None
    for key in keys:
        if key in found:
            return found[key]
    raise DataError(
        f"{path}: variable {' or '.join(keys)} is missing; it must be the file of the official release"
    )


def open_hdf5(path: Path) -> Any:
    """A MATLAB v7.3 file as an open ``h5py.File``."""
    h5py = _need("h5py", path)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(
            f"{path}: not readable as a MATLAB v7.3 (HDF5) file ({error}); download it again"
        ) from None


def require(path: Path) -> None:
    """``ConfigError`` where MATLAB v5 files, as ``path``, could not be read."""
    _need("scipy.io", path)


def _need(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ConfigError(
            f"{path}: MATLAB files are read with h5py and scipy; install them with pip install 'hardpix[mat]'"
        ) from None
