"""Measure the input pipeline: time per image and core against decoding alone, and the packed form.

``python scripts/bench_input.py`` prints the rows. Real frames are read where ``HARDPIX_DATA`` (else ``data``) holds
them; files of the same size and format are generated otherwise.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hardpix.data import CamVid, Folder, NYUv2, Packed, Photometric, Source, TrainTransform, pack
from hardpix.data.loading import SplitDataset, collate

BATCH, FRAMES, REPEATS = 8, 24, 5
BOTH = frozenset({"image", "label"})
PHOTOMETRIC = Photometric(brightness=32, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18, p=0.5)


def rows(threads: int = 1) -> list[dict[str, Any]]:
    """``{name, ours, reference, ratio, goal, unit}``: medians in CPU ms per image."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [*_against_decoding(folder), _packed(folder)]


def _against_decoding(folder: Path) -> list[dict[str, Any]]:
    root = Path(os.environ.get("HARDPIX_DATA", "data"))
    nyuv2: Source = NYUv2(str(root / "nyudv2"), void_40_in_train="ignore")
    camvid: Source = CamVid(str(root / "CamVid"))
    if not (root / "nyudv2").is_dir():
        nyuv2 = _generated(folder / "nyuv2", (480, 640), FRAMES, "jpg")
    if not (root / "CamVid").is_dir():
        camvid = _generated(folder / "camvid", (360, 480), FRAMES, "png")
    found = []
    for title, source, crop in (("480x640 JPEG", nyuv2, (480, 640)), ("360x480 PNG", camvid, (360, 480))):
        for what, photometric in (("", PHOTOMETRIC), (", no photometric step", None)):
            dataset = _dataset(source, crop, None, photometric)
            ours, reference = _interleaved(
                lambda i, d=dataset: _batch(d, i), lambda i, d=dataset: _decode(d, i)
            )
            found.append(_row(f"input pipeline / decoding, {title}{what}", ours, reference, 1.1))
    return found


def _packed(folder: Path) -> dict[str, Any]:
    """Packed frames of Cityscapes' size, a 769 crop at its base size; the reference is 150 images a second."""
    root = pack(
        _generated(folder / "large", (1024, 2048), 4, "png"), folder / "packed", size=None, splits=("train",)
    )
    os.environ.setdefault("HARDPIX_CACHE", str(folder / "cache"))
    dataset = _dataset(Packed(str(root)), (769, 769), (2049, 1025), PHOTOMETRIC)
    ours, _ = _interleaved(lambda i: _batch(dataset, i), lambda i: None)
    return _row("packed 1024x2048, 769 crop / 150 images per s", ours, 1000 / 150, 1.0)


def _dataset(
    source: Source, crop: tuple[int, int], base_size: tuple[int, int] | None, photometric: Any
) -> SplitDataset:
    transform = TrainTransform(
        crop=crop,
        base_size=base_size,
        ratio=(0.5, 2.0),
        cat_max_ratio=0.75,
        hflip=0.5,
        photometric=photometric,
        scale_with_zoom=False,
    )
    return SplitDataset(source.frames("train", BOTH), transform, keys=BOTH, ignore_index=255, seed=0)


def _batch(dataset: SplitDataset, repeat: int) -> None:
    """What a loader worker does with ``FRAMES`` frames; other random choices in each repeat."""
    for start in range(0, FRAMES, BATCH):
        collate([dataset[repeat, index % len(dataset)] for index in range(start, start + BATCH)])


def _decode(dataset: SplitDataset, repeat: int) -> None:
    for index in range(FRAMES):
        dataset.frames.load(index % len(dataset))


def _interleaved(ours: Callable[[int], None], reference: Callable[[int], None]) -> tuple[float, float]:
    """Median ms per image of both, measured in turns so that a busy machine slows both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(-1, REPEATS):
        for kept, function in zip(times, (ours, reference), strict=True):
            start = time.process_time()
            function(repeat % REPEATS)
            if repeat >= 0:
                kept.append((time.process_time() - start) / FRAMES * 1000)
    return float(np.median(times[0])), float(np.median(times[1]))


def _generated(root: Path, size: tuple[int, int], frames: int, suffix: str) -> Source:
    """Pictures with structure and noise, which compress about as photographs do."""
    rng = np.random.default_rng(0)
    for index in range(frames):
        coarse = rng.integers(0, 256, (size[0] // 40, size[1] // 40, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
        noisy = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        label = np.asarray(Image.fromarray(coarse[..., 0] % 19).resize(size[::-1], Image.Resampling.NEAREST))
        for kind, array, ending in (("images", noisy, suffix), ("labels", label, "png")):
            path = root / "train" / kind / f"{index}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return Folder(str(root), classes=[str(i) for i in range(19)])


def _row(name: str, ours: float, reference: float, goal: float) -> dict[str, Any]:
    ratio = ours / reference
    limit = f"<= {goal} x"
    return {"name": name, "ours": ours, "reference": reference, "ratio": ratio, "goal": limit, "unit": "ms"}


if __name__ == "__main__":
    for row in rows():
        print(
            f"{row['name']:60s} {row['ours']:7.2f} ms {row['reference']:7.2f} ms "
            f"{row['ratio']:6.2f} x {row['goal']}  {1000 / row['ours']:5.0f} images/s"
        )
