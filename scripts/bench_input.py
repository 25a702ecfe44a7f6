"""Measure the input pipeline: time per image and core against decoding alone and OpenCV, memory, the packed form.

``python scripts/bench_input.py`` prints the rows. Real frames are read where ``HARDPIX_DATA`` (else ``data``) holds
them; files of the same size and format are generated otherwise.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hardpix.data import (
    CamVid,
    DataModule,
    Folder,
    NYUv2,
    Packed,
    Photometric,
    Source,
    TestTransform,
    TrainTransform,
    pack,
)
from hardpix.data.loading import SplitDataset, collate

BATCH, FRAMES, REPEATS = 8, 24, 5
BOTH = frozenset({"image", "label"})
PHOTOMETRIC = Photometric(brightness=32, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18, p=0.5)


def rows(threads: int = 1) -> list[dict[str, Any]]:
    """``{name, ours, reference, ratio, goal, unit}``: medians in CPU ms per image."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [*_against_decoding(folder), *_against_opencv(folder), _packed(folder), _memory(folder)]


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


def _against_opencv(folder: Path) -> list[dict[str, Any]]:
    """The same files and sizes through a pipeline in the style of toolboxes on OpenCV, where that is installed."""
    if find_spec("cv2") is None:
        print("input pipeline / OpenCV-style: not measured, pip install 'hardpix[bench]' brings OpenCV")
        return []
    import bench_opencv

    found = []
    for size, suffix in (((480, 640), "jpg"), ((360, 480), "png"), ((1024, 2048), "png")):
        crop = (769, 769) if size[0] > 1000 else size
        count = 4 if size[0] > 1000 else FRAMES
        source = _generated(folder / f"opencv_{size[0]}", size, count, suffix)
        dataset = _dataset(source, crop, None, PHOTOMETRIC)
        files = source.files("train")

        def reference(repeat: int, files: Any = files, crop: Any = crop) -> None:
            rng = np.random.default_rng(repeat)
            for index in range(FRAMES):
                frame = files[index % len(files)]
                bench_opencv.load(frame.image, frame.label, crop, rng)

        ours, theirs = _interleaved(lambda i, d=dataset: _batch(d, i), reference)
        name = (
            f"input pipeline / OpenCV-style, {size[0]}x{size[1]} {suffix.upper()}, crop {crop[0]}x{crop[1]}"
        )
        found.append(_row(name, ours, theirs, 1.0))
    return found


def _memory(folder: Path, workers: int = 8, epochs: int = 6) -> dict[str, Any]:
    """Memory of eight loader workers after the last epoch against that after the first, over 20 000 frames."""
    source = _many(folder / "many", 20_000)
    transform = TrainTransform(
        crop=(8, 8), base_size=None, ratio=(1, 1), cat_max_ratio=None, hflip=0.5, photometric=None,
        scale_with_zoom=False,
    )  # fmt: skip
    data = DataModule(
        source, train_transform=transform, test_transform=TestTransform(resize=None), batch_size=50,
        eval_batch_size=1, num_workers=workers, seed=0, pin_memory=False, drop_last=True,
    )  # fmt: skip
    sizes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are more workers than cores
        loader = data.train_dataloader()
        for epoch in range(epochs):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            for _ in loader:
                pass
            sizes.append(_children_memory())
    title = f"memory of {workers} workers, epoch {epochs} / epoch 1, 20 000 frames"
    return {**_row(title, sizes[-1], sizes[0], 1.02), "unit": "MB"}


def _many(root: Path, frames: int) -> Folder:
    """A folder of many names for one tiny picture and label."""
    arrays = {
        "images": np.zeros((8, 8, 3), np.uint8),
        "labels": np.arange(64, dtype=np.uint8).reshape(8, 8) % 2,
    }
    for kind, array in arrays.items():
        folder = root / "train" / kind
        folder.mkdir(parents=True)
        Image.fromarray(array).save(folder / "0.png")
        for index in range(1, frames):
            os.link(folder / "0.png", folder / f"{index}.png")
    return Folder(str(root), classes=["a", "b"])


def _children_memory() -> float:
    """Proportional set size of this process's children, in MB (Linux)."""
    pid = os.getpid()
    total = 0
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        for line in Path(f"/proc/{child}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


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


def _generated(root: Path, size: tuple[int, int], frames: int, suffix: str) -> Folder:
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
            f"{row['name']:64s} {row['ours']:7.2f} {row['unit']} {row['reference']:7.2f} {row['unit']} "
            f"{row['ratio']:6.2f} x {row['goal']}"
        )
