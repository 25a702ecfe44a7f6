"""LWM's maps beside what they replace, and its training step beside a plain multitask step.

``python scripts/bench_lwm.py`` prints the rows; both sides of each run in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from bench_numeric import Row, medians, row
from torch import Tensor

from hardpix.ops.depth_hardness import (
    Regions,
    depth_regions,
    median_and_max,
    scaled_depth,
    segmentation_error,
)
from hardpix.ops.pixel import pixel_cross_entropy, pixel_errors
from hardpix.types import Batch

VOID, CLASSES, SIZE = 255, 40, (2, 480, 640)
STEP = (4, 240, 320)


def rows(repeats: int = 15) -> list[Row]:
    return [*maps(repeats), *steps(max(5, repeats // 2))]


def maps(repeats: int) -> Iterator[Row]:
    """At 2 x 480 x 640 and 40 classes."""
    torch.manual_seed(0)
    logits, label, target, valid = scene()
    counted = label != VOID
    wrong = pixel_errors(logits, label, VOID)[1]

    def regions(cells: int, bins: int) -> Regions:
        return depth_regions(target, valid, counted, cells=(cells, cells), bin_size=256 / bins)

    usual = depth_regions(target, valid, counted, cells=(8, 8), bin_size=10)
    ours, loop = medians(
        repeats, partial(segmentation_error, wrong, usual), partial(_loop, wrong, target, counted)
    )
    yield row("DSE, 8x8 cells, d = 10 / loop over cells and bins", ours, loop, "<= 0.067 x")
    grids = [(cells, bins) for cells, bins in itertools.product((1, 8, 64), (4, 26, 256))]
    times = medians(repeats, *(partial(segmentation_error, wrong, regions(*grid)) for grid in grids))
    named = sorted(zip(times, grids, strict=True))
    (least, _), (most, slowest) = named[0], named[-1]
    yield row(
        f"DSE, slowest grid ({slowest[0]}^2 cells, {slowest[1]} bins) / fastest", most, least, "<= 1.15 x"
    )
    both, alone, reading = medians(
        repeats,
        partial(pixel_errors, logits, label, VOID),
        partial(pixel_cross_entropy, logits, label, VOID),
        partial(torch.amax, logits, 1),
    )
    yield row("error mask beside cross-entropy / maximum over classes", both - alone, reading, "<= 1.5 x")
    values = segmentation_error(wrong, usual) + torch.rand(SIZE)
    ours, library = medians(
        repeats, partial(median_and_max, values, counted), partial(_library, values, counted)
    )
    yield row("median and maximum per image / torch.median, max", ours, library, "<= 0.2 x")


def scene() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels with a tenth void, D* of smooth surfaces, which depth is valid."""
    logits, label = torch.randn(SIZE[0], CLASSES, *SIZE[1:]), torch.randint(0, CLASSES, SIZE)
    label[torch.rand(SIZE) < 0.1] = VOID
    depth = torch.nn.functional.interpolate(torch.rand(SIZE[0], 1, 12, 16) * 9, SIZE[1:], mode="bilinear")[
        :, 0
    ]
    valid = torch.ones(SIZE, dtype=torch.bool)
    return logits, label, scaled_depth(depth, valid, 10.0), valid


def _loop(wrong: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    out = torch.zeros(SIZE)
    high, wide = SIZE[1] // 8, SIZE[2] // 8
    for image, y, x in itertools.product(range(SIZE[0]), range(8), range(8)):
        cell = (image, slice(y * high, (y + 1) * high), slice(x * wide, (x + 1) * wide))
        bins = ((target[cell] - 1) / 10).int()
        for number in range(26):
            region = (bins == number) & counted[cell]
            if region.any():
                out[cell][region] = wrong[cell][region].float().mean()
    return out


def _library(values: Tensor, counted: Tensor) -> None:
    for image, mask in zip(values, counted, strict=True):
        kept = image[mask]
        kept.median()
        kept.max()


def steps(repeats: int) -> Iterator[Row]:
    """Forward, backward and SGD of the two-cascade network on 4 x 240 x 320 pixels; only the losses differ."""
    cases = {
        "multitask": ("none", False),
        "mined": ("sum", False),
        "multitask, sides": ("none", True),
        "mined, sides": ("sum", True),
    }
    made = {name: _step(*case) for name, case in cases.items()}
    times = dict(zip(made, medians(repeats, *made.values()), strict=True))
    yield row("LWM step, final output / multitask step", times["mined"], times["multitask"], "<= 1.05 x")
    mined, plain = times["mined, sides"], times["multitask, sides"]
    yield row("LWM step, four side outputs / multitask step with side outputs", mined, plain, "<= 1.08 x")


def _step(hardness: str, sides: bool) -> Callable[[], None]:
    from hardpix.config.compose import compose
    from hardpix.train.build import build

    cfg = compose([
        "method=lwm", f"method.hardness={hardness}", f"method.multi_scale={str(sides).lower()}",
        "method.curriculum=false", "head=refinenet_cascades", "head.widths=[128,64,64,64]", "model.aux_level=null",
        "backbone.name=resnet18", "backbone.pretrained=false", "data.num_workers=0",
    ])  # fmt: skip
    torch.manual_seed(0)
    _, method = build(cfg)
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-4)
    batch: Any = {
        "image": torch.randn(STEP[0], 3, *STEP[1:]),
        "label": torch.randint(0, 18, STEP),
        "depth": torch.rand(STEP) * 9 + 0.5,
        "depth_valid": torch.ones(STEP, dtype=torch.bool),
        "name": ["a"] * STEP[0],
    }

    def step(batch: Batch = batch) -> None:
        optimizer.zero_grad()
        torch.stack(list(method.losses(batch).values())).sum().backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    torch.set_num_threads(1)
    for r in rows():
        print(
            f"{r['name']:64} {r['ours']:8.2f} {r['reference']:8.2f} {r['unit']}  {r['ratio']:6.3f} x  {r['goal']}"
        )
