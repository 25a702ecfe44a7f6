"""HL's training step beside that of its cross-entropy baseline: time against the operations it adds, and memory.

``python scripts/bench_hl.py`` prints the rows; both sides run in turn. The hardness head is a second decode head, with
no gradient towards the backbone: a step may take as much longer as its operations are more, and 5 % more than that.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from bench_numeric import Row, medians, row

from hardpix.train.cost import Tally
from hardpix.train.cost import _resident as resident
from hardpix.train.cost import _settle as settle

BATCH, SIZE = 2, 96
STRIDE_8 = ("backbone=resnet50c_d8",)
CASES: dict[str, tuple[str, ...]] = {
    "PSPNet": (*STRIDE_8, "head=psp"),
    "DeepLabv3+": (*STRIDE_8, "head=deeplabv3plus"),
    "UPerNet": ("backbone=resnet50", "head=uper"),
    "NonLocal": (*STRIDE_8, "head=nonlocal"),
    "FCN": (*STRIDE_8, "head=fcn"),
    "LR-ASPP": ("backbone=mobilenetv3_large_d8", "head=lraspp", "model.aux_level=null"),
}


def rows(repeats: int = 5) -> list[Row]:
    found = [*steps(repeats), *weighting(repeats), *memory()]
    return [*found, *on_gpu(4 * repeats)] if torch.cuda.is_available() else found


def steps(repeats: int) -> Iterator[Row]:
    """ResNet-50 (LR-ASPP: MobileNetV3), 2 crops of 96x96.

    On a CPU LR-ASPP misses its goal: its head's time goes to norms and enlargements, which count as no operation.
    """
    for name, settings in CASES.items():
        hl, plain = Step("hl_released", settings), Step("baseline", settings)
        share = operations(hl) / operations(plain)
        ours, reference = medians(repeats, hl, plain)
        title = f"HL step / cross-entropy step, {name} ({share:.3f} x the operations)"
        yield row(title, ours, reference, f"<= {1.05 * share:.3f} x")


def weighting(repeats: int) -> Iterator[Row]:
    """What is left of HL's step when its map is there already: the two weighted losses."""
    given = Step("hl_released", CASES["FCN"])
    given.method.hardness_logits = partial(_given, torch.randn(BATCH, 1, SIZE, SIZE, requires_grad=True))
    ours, reference = medians(4 * repeats, given, Step("baseline", CASES["FCN"]))
    yield row("HL step with a given map / cross-entropy step, FCN", ours, reference, "<= 1.01 x")


def memory() -> Iterator[Row]:
    """Peak of resident memory above that of the process without the network, in a step of PSPNet."""
    peaks = []
    for method in ("hl_released", "baseline"):
        gc.collect()
        before = settle()
        run = Step(method, CASES["PSPNet"])
        run()
        settle()
        run()
        peaks.append(resident("VmHWM") - before)
        del run
    yield row("memory of an HL step / cross-entropy step, PSPNet", *peaks, "-") | {"unit": "MB"}


def on_gpu(repeats: int) -> Iterator[Row]:
    """PSPNet with ResNet-101, 2 crops of 769x769."""
    settings = ("backbone=resnet101c_d8", "head=psp", "model.align_corners=true")
    sides = [Step(method, settings, size=769, device="cuda") for method in ("hl_released", "baseline")]
    times: list[list[float]] = [[], []]
    for i in range(repeats + 3):
        for side, spent in zip(sides, times, strict=True):
            torch.cuda.synchronize()
            start = time.perf_counter()
            side()
            torch.cuda.synchronize()
            if i > 2:
                spent.append(1e3 * (time.perf_counter() - start))
    ours, reference = map(statistics.median, times)
    share = operations(sides[0]) / operations(sides[1])
    del sides, side
    title = f"HL step / cross-entropy step, PSPNet, ResNet-101, 769x769, GPU ({share:.3f} x the operations)"
    yield row(title, ours, reference, "<= 1.2 x")
    peaks = [_gpu_peak(method, settings) for method in ("hl_released", "baseline")]
    yield row("memory of an HL step / cross-entropy step, the same", *peaks, "<= 1.014 x") | {"unit": "MB"}


def _gpu_peak(method: str, settings: tuple[str, ...]) -> float:
    gc.collect()
    torch.cuda.empty_cache()
    run = Step(method, settings, size=769, device="cuda")
    run()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 2**20


class Step:
    """Forward, backward and SGD of a method on one batch that stays."""

    def __init__(
        self, method: str, settings: tuple[str, ...], *, size: int = SIZE, device: str = "cpu"
    ) -> None:
        from hardpix.config.compose import compose
        from hardpix.train.build import build

        overrides = [f"method={method}", "loss.normalizer=all", "data.num_workers=0", *settings]
        torch.manual_seed(0)
        self.method: Any = build(compose([*overrides, "backbone.pretrained=false"]))[1].to(device)
        self.optimizer = torch.optim.SGD(self.method.parameters(), lr=1e-4, momentum=0.9)
        label = torch.randint(0, self.method.info.num_classes, (BATCH, size, size))
        label[:, :20] = self.method.info.ignore_index
        image = torch.randn(BATCH, 3, size, size)
        self.batch = {"image": image.to(device), "label": label.to(device), "name": ["a"] * BATCH}

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        torch.stack(list(self.method.losses(self.batch).values())).sum().backward()
        self.optimizer.step()


def operations(run: Callable[[], None]) -> float:
    with Tally() as tally:
        run()
    return tally.flops


def _given(mapped: torch.Tensor, *_: object) -> torch.Tensor:
    return mapped


if __name__ == "__main__":
    torch.set_num_threads(1)
    for r in rows():
        print(
            f"{r['name']:76} {r['ours']:8.1f} {r['reference']:8.1f} {r['unit']}  {r['ratio']:6.3f} x  {r['goal']}"
        )
