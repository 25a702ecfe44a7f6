"""Weights as a file of tensors and text alone (safetensors): nothing in it can be run, so it may come from anyone."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hardpix import atomic
from hardpix.types import HardpixError

SUFFIX = ".safetensors"
PREFIX = "hardpix."  # of the keys of the file's texts


def write(state: Mapping[str, Tensor], path: Path, facts: Mapping[str, str]) -> int:
    """Tensors under their names, ``facts`` as texts beside them; returns the bytes written."""
    from safetensors.torch import save

    # Tensors that share memory are refused there: each gets its own.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    with atomic.replacing(path) as unfinished:
        unfinished.write_bytes(save(state, {f"{PREFIX}{k}": v for k, v in facts.items()}))
    return path.stat().st_size


def read(path: Path) -> dict[str, Tensor]:
    """The tensors by name; ``HardpixError`` for a file that is damaged, or another kind of file."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # the reader's own kinds
        raise _damaged(path, error) from None


def facts(path: Path) -> dict[str, Any]:
    """What the file says of itself, without the ``hardpix.`` of its keys; texts of other programs stay texts."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            texts = file.metadata() or {}
    except Exception as error:
        raise _damaged(path, error) from None
    return {key.removeprefix(PREFIX): text for key, text in texts.items() if key.startswith(PREFIX)}


def classes(path: Path) -> list[str] | None:
    """The names of the classes that the weights were trained on; None where the file does not tell."""
    try:
        found = json.loads(facts(path).get("classes", "null"))
    except (ValueError, RecursionError):
        return None
    told = isinstance(found, list) and all(isinstance(name, str) for name in found)
    return found if told else None


def packed_part(path: Path) -> str | None:
    """The first compressed part of a zip file; torch writes none, and a few bytes of one can fill the memory."""
    try:
        with zipfile.ZipFile(path) as file:
            found = (i for i in file.infolist() if i.compress_type != zipfile.ZIP_STORED)
            return next((info.filename for info in found), None)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # no zip file, or a damaged one: told by who reads it


def _damaged(path: Path, error: Exception) -> HardpixError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    return HardpixError(f"{path} is not a safetensors file, or is damaged ({line})")
