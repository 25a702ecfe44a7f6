"""The files of a Hugging Face dataset on disk, opened with the package ``datasets`` and without a network."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hardpix.data.statistics import cache_dir
from hardpix.types import ConfigError, DataError, NoSuchSplit

# Nothing is ever asked of a network, whatever a file names.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def find(root: Path, split: str) -> Any:
    """The dataset of a split, memory-mapped."""
    datasets = need(root)
    folder, parquet = root / split, parquet_files(root, split)
    try:
        with offline():
            if (folder / "state.json").is_file():
                return datasets.Dataset.load_from_disk(str(folder), keep_in_memory=False)
            if parquet:
                cache = cache_dir() / "huggingface"
                return datasets.Dataset.from_parquet([str(p) for p in parquet], cache_dir=str(cache))
    except Exception as error:  # each kind of damage raises a class of its own
        raise DataError(f"{root}: split {split} cannot be read ({line(error)})") from None
    if (root / "state.json").is_file():
        raise DataError(
            f"{root}: a dataset without splits; save a DatasetDict, whose splits have a folder each"
        )
    there = ", ".join(_splits(root)) or "none"
    raise NoSuchSplit(
        f"{root}: no split {split!r}; it must be saved with save_to_disk ({split}/state.json) or lie in Parquet files "
        f"({split}-*.parquet); its splits are: {there}"
    )


def parquet_files(root: Path, split: str) -> list[Path]:
    """The Parquet files of a split."""
    return [
        *sorted((root / split).glob("*.parquet")),
        *(
            path
            for place in (root, root / "data")
            for pattern in (f"{split}.parquet", f"{split}-*.parquet")
            for path in sorted(place.glob(pattern))
        ),
    ]


def _splits(root: Path) -> list[str]:
    """The names of the splits that lie in the folder of a dataset."""
    folders = [path for path in root.iterdir() if path.is_dir()]
    saved = [p.name for p in folders if (p / "state.json").is_file() or any(p.glob("*.parquet"))]
    parquet = [p.stem.partition("-")[0] for place in (root, root / "data") for p in place.glob("*.parquet")]
    return sorted({*saved, *parquet} - {"data"})


@contextmanager
def offline() -> Iterator[None]:
    before = {key: os.environ.get(key) for key in _OFFLINE}
    os.environ.update(_OFFLINE)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def need(path: Path) -> Any:
    try:
        with offline():  # the package looks at them when it is imported
            return importlib.import_module("datasets")
    except ModuleNotFoundError:
        raise ConfigError(
            f"{path}: Hugging Face datasets are read with the package datasets; "
            "install it with pip install 'hardpix[hf]'"
        ) from None


def line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
