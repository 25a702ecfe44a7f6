"""What a run costs: seconds per training step and peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

NAN = float("nan")


class Cost(Callback):
    """Seconds per training step and peak memory, for the cost columns of a table.

    ``step_seconds`` is the median from one batch's end to the next one's (loading included, validation not).
    ``peak_memory_mb`` on CUDA is what the allocator held at most; on the CPU it is the parameters, gradients
    and optimiser state, plus by how much the process's resident memory rose above its level between steps
    (Linux; NaN elsewhere), so that libraries and earlier runs of the same process do not count.
    """

    SETTLED = 3  # batches after which lazily imported code and allocator pools are in place

    def __init__(self) -> None:
        self.durations: list[float] = []
        self.previous: float | None = None
        self.baseline = NAN  # resident MB between two steps
        self.peak = self.static = NAN  # MB: the highest rise above it; parameters, gradients, optimiser state

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self.previous is not None:
            self.durations.append(now - self.previous)
        self.previous = now
        if len(self.durations) == self.SETTLED and self.baseline != self.baseline:
            self.baseline = _settle()
            self.previous = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.previous = None
        self._take_peak()  # validation is not part of the training peak

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _reset_peak()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_peak()
        self.static = _static_mb(trainer, pl_module)

    def _take_peak(self) -> None:
        self.peak = _larger(_resident("VmHWM") - self.baseline, self.peak)

    def result(self) -> dict[str, float]:
        """``cost/step_seconds`` and ``cost/peak_memory_mb``; NaN where nothing could be measured."""
        settled = sorted(self.durations[self.SETTLED :])
        seconds = settled[len(settled) // 2] if settled else NAN
        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_allocated() / 2**20
        else:
            memory = self.static + self.peak
        return {"cost/step_seconds": seconds, "cost/peak_memory_mb": memory}


def _static_mb(trainer: pl.Trainer, module: pl.LightningModule) -> float:
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [p for p in module.parameters() if p.requires_grad]  # their gradients
    for optimizer in trainer.optimizers:
        tensors += [x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x)]
    return sum(x.numel() * x.element_size() for x in tensors) / 2**20


def _larger(a: float, b: float) -> float:
    """The larger one, a NaN passed over."""
    return b if a != a else a if b != b else max(a, b)


def _settle() -> float:
    """Give freed memory back to the system, start a new peak, and return what is resident now, in MB."""
    if not sys.platform.startswith("linux"):
        return NAN
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library: the level is only less sharp
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    _reset_peak()
    return _resident("VmRSS")


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident(key: str) -> float:
    """``VmRSS`` or ``VmHWM`` of this process in MB; NaN where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) / 1024
    return NAN
