"""A data set as flat files of pixels, mapped into memory: training without decoding.

Layout of a packed data set, written by :func:`pack`::

    manifest.json        facts of the data set; per split the frames' names, sizes and the files' SHA-256
    {split}/image.bin    uint8, frame after frame [H, W, 3]
    {split}/label.bin    uint8 (uint16 above 255 classes), frame after frame [H, W]
    {split}/depth.bin    uint16 millimetres, 0 where invalid; only where the source has depth

The manifest is written last: a folder without one is unfinished and is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardpix.data.augment import Window, zoom
from hardpix.data.images import checked_range
from hardpix.data.source import Frames, Sample, Source
from hardpix.data.statistics import cache_dir, write_json
from hardpix.data.transforms import plain, sides, typed
from hardpix.data.union import split_frames
from hardpix.types import ConfigError, DataError, DatasetInfo

SCHEMA = 1
MANIFEST = "manifest.json"
DEEPEST = 65.535  # metres: the largest depth that 16 bits of millimetres hold

Progress = Callable[[str, int, int], None]  # split, frames done, frames


def pack(
    source: Source,
    out_dir: Path | str,
    *,
    size: Sequence[int] | None,
    splits: Sequence[str],
    progress: Progress | None = None,
) -> Path:
    """Write ``splits`` of ``source`` in packed form and return its folder.

    ``size``: (height, width) that every frame is resized to, once (image bilinear, the rest nearest; the ratio
    of its sides is not kept); None keeps the frames' own sizes, which may differ. Depth is rounded to
    millimetres and ends at 65.535 m. The true hardness of synthetic data is not packed.
    """
    if size is not None:
        sides("size", size)
    out = Path(out_dir)
    if (out / MANIFEST).exists():
        raise DataError(f"{out}: there is a packed data set already; name another folder or delete it")
    keys = source.info.provides & {"image", "label", "depth"}
    packed = {
        split: _pack_split(split_frames(source, split, keys), split, out, size, keys, progress)
        for split in splits
    }
    own_values = source.submission_values()
    manifest = {
        "schema": SCHEMA,
        "info": _info_to_json(source.info, keys),
        "remarks": list(source.remarks()),
        "own_val": source.own_val,
        "submission_values": None if own_values is None else sorted(own_values.items()),
        "image_range": source.image_range,  # for the images that a run on it predicts
        "splits": packed,
    }
    write_json(out / MANIFEST, manifest)
    return out


class Packed(Source):
    """A data set that :func:`pack` wrote.

    The SHA-256 of a file is checked when it is first opened and again when its size or time has changed
    (remembered in ``$HARDPIX_CACHE``, else ``~/.cache/hardpix``); ``verify`` checks it every time.
    """

    def __init__(self, root: str, *, verify: bool = False) -> None:
        self.root, self._verify = Path(root), verify
        manifest = _read_manifest(self.root)
        try:
            self.info = _info_from_json(manifest["info"])
            self._splits: dict[str, dict[str, Any]] = dict(manifest["splits"])
            # Absent from folders that were packed before these were kept.
            self._remarks = tuple(manifest.get("remarks", ()))
            self.own_val = bool(manifest.get("own_val", True))
            self.image_range = checked_range(manifest.get("image_range"))
            values = manifest.get("submission_values")
            self._values = None if values is None else [(int(index), int(own)) for index, own in values]
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise DataError(
                f"{self.root / MANIFEST}: not what hardpix data pack writes ({error}); pack the data set again"
            ) from None

    def remarks(self) -> tuple[str, ...]:
        """Those of the data set that was packed."""
        return self._remarks

    def submission_values(self) -> dict[int, int] | None:
        return None if self._values is None else dict(self._values)

    def has_split(self, split: str) -> bool:
        return split in self._splits

    def frames(self, split: str, keys: frozenset[str]) -> Frames:
        if split not in self._splits:
            raise DataError(f"{self.root}: split {split} was not packed; it has {', '.join(self._splits)}")
        facts = self._splits[split]
        wanted = [kind for kind in ("image", "label", "depth") if kind in keys or kind == "image"]
        wanted = [kind for kind in wanted if kind in facts["files"]]
        for kind in wanted:
            check_hash(self.root / split / f"{kind}.bin", facts["files"][kind], always=self._verify)
        return PackedFrames(self.root / split, facts, wanted, self.info.ignore_index)


class PackedFrames:
    """One packed split; frames are views of memory maps, read from disk where they are touched."""

    def __init__(self, folder: Path, facts: dict[str, Any], kinds: Sequence[str], ignore_index: int) -> None:
        self._folder, self._facts, self._kinds = folder, facts, kinds
        self._label_type = _label_type(ignore_index)
        self._sizes: list[tuple[int, int]] = [(h, w) for h, w in facts["sizes"]]
        self._starts = np.concatenate([[0], np.cumsum([h * w for h, w in self._sizes])])

    def __len__(self) -> int:
        return len(self._sizes)

    def __getstate__(self) -> dict[str, Any]:
        """A map is opened by each process: pickled, it would be copied whole."""
        return {key: value for key, value in self.__dict__.items() if key != "_maps"}

    def name(self, index: int) -> str:
        return self._facts["names"][index]

    def load(self, index: int) -> Sample:
        """Frame ``index``; image and label are views of the map (writing to them changes no file)."""
        image = torch.from_numpy(self._cut("image", index)).permute(2, 0, 1)
        sample = Sample(image=image, name=self.name(index))
        if "label" in self._kinds:
            sample["label"] = self.label(index)
        if "depth" in self._kinds:
            raw = self._cut("depth", index)
            sample["depth"] = torch.from_numpy(raw.astype(np.float32) / np.float32(1000))
            sample["depth_valid"] = torch.from_numpy(raw > 0)
        return sample

    def label(self, index: int) -> Tensor:
        label = torch.from_numpy(self._cut("label", index))
        return label if label.dtype == torch.uint8 else label.long()

    def fingerprint(self) -> str:
        return hashlib.sha256(self._facts["files"]["label"].encode()).hexdigest()

    def stored(self) -> Iterator[Path | str]:
        """The files of pixels, and the hashes of what they hold."""
        yield from (self._folder / f"{kind}.bin" for kind in self._facts["files"])
        yield json.dumps(self._facts["files"], sort_keys=True)

    def _cut(self, kind: str, index: int) -> NDArray:
        height, width = self._sizes[index]
        start, stop = self._starts[index : index + 2]
        pixels = self._maps[kind][start:stop]
        return pixels.reshape((height, width, *pixels.shape[1:]))

    @cached_property
    def _maps(self) -> dict[str, NDArray]:
        """``image`` [pixels, 3], ``label`` and ``depth`` [pixels]; copy-on-write, so that torch may wrap them."""
        types: dict[str, Any] = {"image": np.uint8, "label": self._label_type, "depth": np.uint16}
        maps = {k: np.memmap(self._folder / f"{k}.bin", dtype=types[k], mode="c") for k in self._kinds}
        return {k: np.asarray(m).reshape(-1, 3) if k == "image" else np.asarray(m) for k, m in maps.items()}


def check_hash(path: Path, expected: str, *, always: bool) -> None:
    """Refuse a file whose SHA-256 is not ``expected``; a pass is remembered by the file's size and time."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; pack the data set again")
    stat = path.stat()
    key = hashlib.sha256(
        f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {expected}".encode()
    ).hexdigest()
    passed = cache_dir() / "packed" / f"{key}.json"
    if passed.is_file() and not always:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise DataError(
            f"{path}: its SHA-256 is not the one in {MANIFEST}; it is damaged, pack the data set again"
        )
    write_json(passed, {"path": str(path.resolve())})


def _pack_split(
    frames: Frames,
    split: str,
    out: Path,
    size: Sequence[int] | None,
    keys: frozenset[str],
    progress: Progress | None,
) -> dict[str, Any]:
    """Write the files of one split; what the manifest says of it is returned."""
    folder = out / split
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: (folder / f"{kind}.bin").open("wb") for kind in sorted(keys)}
    hashes = {kind: hashlib.sha256() for kind in files}
    sizes, names = [], []
    try:
        for index in range(len(frames)):
            arrays = _arrays(frames.load(index), size, keys)
            for kind, array in arrays.items():
                files[kind].write(array.data)
                hashes[kind].update(array.data)
            sizes.append(list(arrays["image"].shape[:2]))
            names.append(frames.name(index))
            if progress:
                progress(split, index + 1, len(frames))
    finally:
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
    return {"names": names, "sizes": sizes, "files": {kind: h.hexdigest() for kind, h in hashes.items()}}


def _arrays(sample: Sample, size: Sequence[int] | None, keys: frozenset[str]) -> dict[str, NDArray]:
    """A frame as the arrays that go to disk."""
    height, width = size or sample["image"].shape[-2:]
    window = Window.whole((height, width))
    tensors = plain({key: zoom(value, window) for key, value in typed(sample).items()})
    arrays: dict[str, NDArray] = {"image": np.ascontiguousarray(tensors["image"].permute(1, 2, 0).numpy())}
    if "label" in keys:
        label = tensors["label"].numpy()
        arrays["label"] = np.ascontiguousarray(label if label.dtype == np.uint8 else label.astype(np.uint16))
    if "depth" in keys:
        # A reading is never rounded to 0, which would make it invalid.
        metres = tensors["depth"].double().nan_to_num().clamp(0.001, DEEPEST)
        arrays["depth"] = ((metres * 1000).round() * tensors["depth_valid"]).numpy().astype(np.uint16)
    return arrays


def _label_type(ignore_index: int) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if ignore_index < 256 else np.uint16


def _info_to_json(info: DatasetInfo, keys: frozenset[str]) -> dict[str, Any]:
    provides = keys | {"depth_valid"} if "depth" in keys else keys
    return {**asdict(info), "provides": sorted(provides)}


def _info_from_json(stored: dict[str, Any]) -> DatasetInfo:
    tuples = {key: tuple(stored[key]) for key in ("classes", "mean", "std")}
    palette = tuple((r, g, b) for r, g, b in stored["palette"])
    return DatasetInfo(**{**stored, **tuples, "palette": palette, "provides": frozenset(stored["provides"])})


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    if not path.is_file():
        what = "packing did not finish" if root.is_dir() else "no such folder"
        raise DataError(f"{root}: {what}, there is no {MANIFEST}; write it with hardpix data pack")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not readable as JSON; pack the data set again") from None
    if not isinstance(manifest, dict) or "schema" not in manifest:
        raise DataError(f"{path}: not what hardpix data pack writes; pack the data set again")
    if manifest["schema"] != SCHEMA:
        raise ConfigError(f"{path}: schema {manifest['schema']} is not read; this version reads {SCHEMA}")
    return manifest
