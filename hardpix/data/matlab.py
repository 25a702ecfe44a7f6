"""MATLAB files: one variable of a v5 file, and v7.3 files, which are HDF5. Both need ``hardpix[mat]``.

scipy's reader of v5 files takes numbers of the file for places in memory: a damaged one ends the process, or worse. So
it runs in a process of its own, which stays for the next file.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hardpix.types import ConfigError, DataError

READER = """
import json, pickle, struct, sys
from scipy.io import loadmat
answers, sys.stdout = sys.stdout.buffer, sys.stderr
for line in sys.stdin:
    path, keys = json.loads(line)
    try:
        answer = pickle.dumps((loadmat(path, variable_names=keys), ""))
    except Exception as error:  # scipy raises a class of its own for each kind of damage
        answer = pickle.dumps(({}, str(error) or type(error).__name__))
    answers.write(struct.pack("<Q", len(answer)) + answer)
    answers.flush()
"""

_reader: tuple[int, subprocess.Popen] | None = (
    None  # and the process that began it: one forked from it has its own
)
_alone = threading.Lock()


def read_variable(path: Path, *keys: str) -> NDArray:
    """The first of the variables ``keys`` that a MATLAB v5 file holds."""
    _need("scipy.io", path)
    found, wrong = _loaded(path, keys)
    if wrong:
        raise DataError(f"{path}: not readable as a MATLAB v5 file ({wrong}); download it again")
    for key in keys:
        if key in found:
            return found[key]
    raise DataError(
        f"{path}: variable {' or '.join(keys)} is missing; it must be the file of the official release"
    )


def _loaded(path: Path, keys: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The variables, or what is wrong."""
    global _reader
    if not path.is_file():
        return {}, "no such file"
    with _alone:
        if _reader is None or _reader[0] != os.getpid() or _reader[1].poll() is not None:
            words = [sys.executable, "-I", "-c", READER]
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
            _reader = os.getpid(), process
        process = _reader[1]
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([str(path.resolve()), keys]).encode() + b"\n")
            process.stdin.flush()
            size = process.stdout.read(8)
            answer = process.stdout.read(int.from_bytes(size, "little"))
        except OSError:
            size = answer = b""
        if len(size) < 8 or len(answer) < int.from_bytes(size, "little"):
            process.kill()
            process.wait()
            _reader = None
            return {}, "damaged: its reader crashed"
    return pickle.loads(answer)


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
