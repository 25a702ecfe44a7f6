"""Numeric kernels beside what they replace or come on top of, in one run: ``python scripts/bench_numeric.py``.

Every row interleaves the two sides, so that a slow spell of the machine hits both, and compares medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hardpix.losses import OHEM, CrossEntropy, LossMaxPooling
from hardpix.metrics import SegmentationMetrics
from hardpix.ops import SlidingWindow
from hardpix.ops.hardness import hardness_weight, weighted_loss
from hardpix.ops.pixel import pixel_cross_entropy
from hardpix.ops.window import window_starts
from hardpix.train.cost import _resident as resident
from hardpix.train.cost import _settle as settle

VOID, SIZE = 255, (1024, 2048)
Row = dict[str, Any]


def rows(repeats: int = 15) -> list[Row]:
    """``{name, ours, reference, ratio, goal, unit}``: medians in ms; ``ratio`` is ours / reference."""
    return [*confusion(repeats), *ohem(repeats), *steps(repeats), *sliding(repeats)]


def medians(repeats: int, *sides: Callable[[], object]) -> list[float]:
    """Median milliseconds of CPU time of each side, run in turn (all threads added up)."""
    times: list[list[float]] = [[] for _ in sides]
    for i in range(repeats + 2):
        for side, spent in zip(sides, times, strict=True):
            start = time.process_time()
            side()
            if i > 1:  # two rounds to warm up
                spent.append(1e3 * (time.process_time() - start))
    return [statistics.median(spent) for spent in times]


def row(name: str, ours: float, reference: float, goal: str) -> Row:
    ratio = ours / reference
    return {"name": name, "ours": ours, "reference": reference, "ratio": ratio, "goal": goal, "unit": "ms"}


def label_pair(classes: int) -> tuple[Tensor, Tensor]:
    """(pred, label) uint8: regions some tens of pixels wide, shifted borders, 3 % of wrong pixels, some void."""
    coarse = torch.randint(0, classes, (SIZE[0] // 32, SIZE[1] // 32), dtype=torch.uint8)
    label = coarse.repeat_interleave(32, 0).repeat_interleave(32, 1)
    pred = label.roll((3, 5), (0, 1))
    wrong = torch.rand(SIZE) < 0.03
    pred[wrong] = torch.randint(0, classes, SIZE, dtype=torch.uint8)[wrong]
    label[torch.arange(SIZE[0]) % 97 < 5] = VOID
    return pred[None].contiguous(), label[None].contiguous()


def numpy_bincount(pred: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """The usual one: mask, code in int64, count."""
    kept = label < classes
    code = label[kept].astype(np.int64) * classes + pred[kept]
    return np.bincount(code, minlength=classes**2).reshape(classes, classes)


def confusion(repeats: int) -> Iterator[Row]:
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    torch.manual_seed(0)
    for classes in (19, 40, 150):
        pred, label = label_pair(classes)
        wide = label.int()  # torchmetrics takes no uint8 label with an ignore value
        metric = SegmentationMetrics(classes, VOID)
        ours, numpy_, theirs = medians(
            repeats,
            partial(metric.update, pred, label),
            partial(numpy_bincount, pred.numpy().ravel(), label.numpy().ravel(), classes),
            partial(multiclass_confusion_matrix, pred, wide, classes, ignore_index=VOID),
        )
        yield row(f"confusion matrix, {classes} classes / NumPy bincount", ours, numpy_, "<= 3 ms, <= 0.2 x")
        yield row(f"confusion matrix, {classes} classes / torchmetrics", ours, theirs, "<= 0.2 x")


def ohem(repeats: int) -> Iterator[Row]:
    """Forward passes at 2 x 19 x 513 x 513, of an untrained network and of one that is 90 % sure and right."""
    torch.manual_seed(0)
    label = torch.randint(0, 19, (2, 513, 513))
    label[:, :20] = VOID
    untrained = torch.randn(2, 19, 513, 513)
    sure = nn.functional.one_hot(label.clamp(max=18), 19).movedim(-1, 1) * 8.0
    trained = untrained + sure * (torch.rand(2, 1, 513, 513) < 0.9)
    plain = CrossEntropy(ignore_index=VOID, normalizer="valid")
    loss = OHEM(ignore_index=VOID, thresh=0.7, min_kept=100_000, reduction="kept")
    for name, logits in (("untrained", untrained), ("trained", trained)):
        ours, reference = medians(repeats, partial(loss, logits, label), partial(plain, logits, label))
        yield row(f"OHEM forward, {name} / cross-entropy forward", ours, reference, "<= 1.15 x")


def small_network() -> nn.Module:
    """ResNet-18 with a 1x1 classifier, enlarged to the input: about the smallest network anybody trains."""
    import timm

    net = timm.create_model("resnet18", num_classes=0, global_pool="")
    enlarge = nn.Upsample(scale_factor=32, mode="bilinear")
    return nn.Sequential(net, nn.Conv2d(512, 19, 1), enlarge)


def steps(repeats: int) -> Iterator[Row]:
    """Forward, backward and SGD of ResNet-18 on 4 x 256 x 256; only the loss differs."""
    torch.manual_seed(0)
    net = small_network()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    image, label = torch.randn(4, 3, 256, 256), torch.randint(0, 19, (4, 256, 256))
    label[:, :20] = VOID
    plain = CrossEntropy(ignore_index=VOID, normalizer="valid")
    pooling = LossMaxPooling(ignore_index=VOID, ratio=0.3, p=1.7, scope="batch")
    mapped = torch.randn(4, 1, 256, 256, requires_grad=True)

    def hardness(logits: Tensor, label: Tensor) -> Tensor:
        """Both players' losses on a map that is there already: the weighting alone, not the second head."""
        valid, error = label != VOID, pixel_cross_entropy(logits, label, VOID)
        weight = hardness_weight(mapped, valid, c=0.1, normalize_over="image", void_in_normalizer=False)
        played = weighted_loss(weight.detach(), error, valid, "image")
        return played - 0.01 * weighted_loss(weight, error.detach(), valid, "image")

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        optimizer.zero_grad()
        loss(net(image), label).backward()
        optimizer.step()

    reference, pooled, weighted = medians(
        repeats, lambda: step(plain), lambda: step(pooling), lambda: step(hardness)
    )
    yield row("loss max-pooling step / cross-entropy step", pooled, reference, "<= 1.01 x")
    yield row("hardness weighting step / cross-entropy step", weighted, reference, "<= 1.01 x")


@torch.inference_mode()
def sliding(repeats: int) -> Iterator[Row]:
    """1025 x 2049 in 769 windows, against the same eight forward passes of a two-layer network.

    Then the peak of memory with windows at a third of the stride, 40 of them, against that of eight.
    """
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=4, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 19, 1),
        nn.Upsample((769, 769), mode="bilinear"),
    ).eval()
    image = torch.randn(1, 3, 1025, 2049)
    slide = window_of(513)
    corners = [(y, x) for y in window_starts(1025, 769, 513) for x in window_starts(2049, 769, 513)]

    def bare() -> None:
        for y, x in corners:
            net(image[..., y : y + 769, x : x + 769])

    ours, reference = medians(repeats, lambda: slide(net, image), bare)
    yield row("sliding window / its bare forward passes", ours, reference, "<= 1.4 x")
    few, many = (peak_memory(partial(window_of(stride), net, image)) for stride in (513, 171))
    yield row("sliding window, memory of 40 windows / of 8", many, few, "<= 1.1 x") | {"unit": "MB"}


def window_of(stride: int) -> SlidingWindow:
    return SlidingWindow(
        crop=(769, 769), stride=(stride, stride), batch=1, base_size=None, align_corners=False
    )


def peak_memory(call: Callable[[], object]) -> float:
    """By how many MB the process's resident memory rises during a call; NaN where the system does not say."""
    before = settle()
    call()
    return resident("VmHWM") - before


if __name__ == "__main__":
    for r in rows():
        print(
            f"{r['name']:58} {r['ours']:8.2f} {r['reference']:8.2f} {r['unit']}  {r['ratio']:6.3f} x  {r['goal']}"
        )
