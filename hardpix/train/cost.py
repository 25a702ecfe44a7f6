"""Cost and environment of a run: time, memory, floating-point operations, parameters; code and machine."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import hardpix
from hardpix.record import SPREAD
from hardpix.train.rundir import process_began

NAN = float("nan")
FEWEST = 4  # blocks that have a spread


class Count:
    """One step under a :class:`Tally`: GFLOPs an image and the parameters read; NaN before it, or where it failed."""

    def __init__(self, name: str) -> None:
        self.name, self.gflops, self.parameters = name, NAN, NAN
        self.tally: Tally | None = None  # while it counts

    def begin(self, module: pl.LightningModule) -> None:
        if is_compiled(module):
            self._remark("torch.compile hides its operations", module)
            return
        self.tally = Tally()
        self.tally.__enter__()

    def end(self, module: pl.LightningModule, images: int) -> None:
        tally = self.stop()
        if tally is None:
            return
        self.gflops, self.parameters = tally.flops / images / 1e9, float(tally.parameters)
        if tally.problem:
            self._remark(tally.problem, module)

    def stop(self) -> Tally | None:
        """Count no more, whatever has happened."""
        tally, self.tally = self.tally, None
        if tally is not None:
            tally.__exit__(None, None, None)
        return tally

    def _remark(self, reason: str, module: pl.LightningModule) -> None:
        if module.trainer.is_global_zero:
            print(f"cost/gflops_{self.name}: not counted, {reason}", flush=True)


class Cost(Callback):
    """Seconds per training step, peak memory, operations and parameters, for the cost columns of a table.

    ``step_seconds`` is the median over blocks of optimiser steps from the end of one to the end of another (loading
    included, validation not). A block is one step on the CPU and 20 on a GPU, with a synchronisation at its
    ends, so that losses that wait for the device and losses that do not are timed alike. ``run/step_spread`` is the
    distance between the quartiles of the blocks, relative to the median, of four blocks or more.

    ``peak_memory_mb`` is of training alone. On a GPU it is the most that the allocator held. On the CPU it is
    the parameters, gradients and optimiser state, plus by how much the process's resident memory rose above
    its level between steps (Linux; NaN elsewhere), so that libraries and earlier runs of the same process do
    not count.

    ``gflops_train`` and ``gflops_inference`` are billions of floating-point operations an image, as a :class:`Tally`
    counts them: forward and backward of the first training step, all that the first batch of the test needs for its
    prediction (windows and scales included). NaN under ``torch.compile``. ``parameters_train`` are those that train,
    ``parameters_inference`` those that the prediction reads.
    """

    SETTLED = 3  # steps after which lazily imported code and allocator pools are in place

    def __init__(self) -> None:
        self.blocks: list[float] = []  # seconds per step
        self.steps = 0  # since the last interruption
        self.began = NAN
        self.seen = 0
        self.baseline = NAN  # resident MB between two steps
        self.peak = self.static = self.trained = NAN
        self.counts = {name: Count(name) for name in ("train", "inference")}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.device = trainer.strategy.root_device
        self.block = 20 if self._cuda else 1
        self.trained = float(sum(p.numel() for p in pl_module.parameters() if p.requires_grad))
        self._reset()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.seen:
            self.counts["train"].begin(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.counts["train"].end(pl_module, len(batch["image"]) + len(batch.get("unlabeled", ())))
        self.seen += 1
        if self.seen == self.SETTLED and not self._cuda:
            self.baseline = _settle()
            self.steps = 0
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        if self.steps % self.block == 0:
            if self._cuda:
                torch.cuda.synchronize(self.device)
            now = time.perf_counter()
            if self.steps and self.seen > self.SETTLED:
                self.blocks.append((now - self.began) / self.block)
            self.began = now
        self.steps += 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._take_peak()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.steps = 0
            self._reset()

    def on_test_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not batch_idx:
            self.counts["inference"].begin(pl_module)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.counts["inference"].end(pl_module, len(batch["image"]))

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        for count in self.counts.values():
            count.stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_peak()
        self.static = _static_mb(trainer, pl_module)

    def result(self) -> dict[str, float]:
        """All of the above by name, ``cost/step_seconds`` ..; NaN where nothing could be measured."""
        settled = sorted(self.blocks)
        low, seconds, high = (settled[len(settled) * i // 4] if settled else NAN for i in (1, 2, 3))
        memory = self.peak if self._cuda else self.static + self.peak
        measured = {"step_seconds": seconds, "peak_memory_mb": memory, "parameters_train": self.trained}
        measured["parameters_inference"] = self.counts["inference"].parameters
        measured |= {f"gflops_{name}": count.gflops for name, count in self.counts.items()}
        spread = {SPREAD: (high - low) / seconds} if len(settled) >= FEWEST else {}
        return {f"cost/{name}": value for name, value in measured.items()} | spread

    @property
    def _cuda(self) -> bool:
        return self.device.type == "cuda"

    def _take_peak(self) -> None:
        if self._cuda:
            self.peak = _larger(torch.cuda.max_memory_allocated(self.device) / 2**20, self.peak)
        else:
            self.peak = _larger(_resident("VmHWM") - self.baseline, self.peak)

    def _reset(self) -> None:
        """Start a new peak."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _reset_resident_peak()


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
    _reset_resident_peak()
    return _resident("VmRSS")


def _reset_resident_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident(key: str) -> float:
    """``VmRSS`` or ``VmHWM`` of this process in MB; NaN where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) / 1024
    return NAN


# How long a method's branches take in a test, per image.


WARM_UP = 2  # batches at the start of a test that are not counted


class BranchTime(Callback):
    """``time/<branch>`` of every branch and ``time/total``: seconds per image, means over a test; NaN of two batches.

    ``Method.branches`` names the children and their branches; methods without branches are left alone. The total is
    that of the prediction, from the image to class probabilities (enlargements, windows and scales included, loading
    and scoring not). On a GPU every measurement waits for the device, so that branches do not overlap.
    """

    def __init__(self) -> None:
        self.stack = ExitStack()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.branches: dict[str, str] = getattr(pl_module, "branches", {})
        if not self.branches:
            return
        self.seconds = dict.fromkeys([*self.branches.values(), "total"], 0.0)
        self.images, self.counting = 0, False
        wait = partial(_wait, pl_module.device)
        for child, name in self.branches.items():
            self.stack.enter_context(self._timed_module(getattr(pl_module, child), name, wait))
        for step in ("predict_dense", "decide"):
            self.stack.enter_context(self._timed_step(pl_module, step, wait))

    def on_test_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.counting = batch_idx >= WARM_UP
        if self.branches and self.counting:
            self.images += len(batch["image"])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.branches:
            each = {
                f"time/{k}": s / self.images if self.images else float("nan") for k, s in self.seconds.items()
            }
            pl_module.log_dict(each, sync_dist=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.stack.close()

    @contextmanager
    def _timed_module(self, module: Any, name: str, wait: Callable[[], None]) -> Iterator[None]:
        began: list[float] = []

        def before(*_: Any) -> None:
            began[:] = [_now(wait)]

        def after(*_: Any) -> None:
            self._add(name, _now(wait) - began[0])

        handles = module.register_forward_pre_hook(before), module.register_forward_hook(after)
        yield
        for handle in handles:
            handle.remove()

    @contextmanager
    def _timed_step(self, method: Any, step: str, wait: Callable[[], None]) -> Iterator[None]:
        function = getattr(method, step)

        def timed(*given: Any) -> Any:
            began = _now(wait)
            result = function(*given)
            self._add("total", _now(wait) - began)
            return result

        setattr(method, step, timed)
        yield
        delattr(method, step)

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] += seconds if self.counting else 0.0


def _now(wait: Callable[[], None]) -> float:
    wait()
    return time.perf_counter()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Floating-point operations, counted while they run.


class Tally(TorchDispatchMode):
    """Counts what runs while it is active; a context manager that may be entered again, and then counts on.

    ``flops`` are those of convolutions, matrix products and attention, forward and backward, by torch's formulas, a
    multiplication and an addition being two; norms, activations, poolings, enlargements and losses count nothing.
    Where a formula fails they are NaN and ``problem`` says why: what runs is never disturbed. ``parameters`` is the
    number of weights in the parameters that entered any operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.problem = 0.0, ""
        self._read: dict[int, int] = {}  # sizes by identity

    @property
    def parameters(self) -> int:
        return sum(self._read.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._read |= {id(x): x.numel() for x in tree_leaves((args, kwargs)) if isinstance(x, nn.Parameter)}
        formula: Any = flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # inference mode brings whole layers here, which autograd has taken apart before
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self._add(formula, args, kwargs, out)
        return out

    def _add(self, formula: Any, args: Any, kwargs: Any, out: Any) -> None:
        try:
            self.flops += formula(*args, **kwargs, out_val=out)
        except Exception as error:
            self.flops, self.problem = float("nan"), f"{type(error).__name__}: {error}"


def is_compiled(module: nn.Module) -> bool:
    """Whether a part of ``module`` runs under ``torch.compile``, into which no count sees."""
    return any(getattr(part, "_compiled_call_impl", None) is not None for part in module.modules())


# Which code and which machine a run had; never a factor of a comparison.


PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "torchmetrics", "hydra-core", "numpy")


def code_versions() -> dict[str, str]:
    """Versions of what computes, and the commit of the checkout (with whether it has uncommitted changes)."""
    found = {"hardpix": hardpix.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    commit = _git("rev-parse", "HEAD")
    if commit:
        found |= {"commit": commit, "dirty": str(bool(_git("status", "--porcelain")))}
    return found


def host_facts(accelerator: str, precision: str) -> dict[str, str]:
    gpu = torch.cuda.is_available() and accelerator != "cpu"
    device = torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU"
    threads = str(torch.get_num_threads())
    return {
        "device": device,
        "precision": precision,
        "threads": threads,
        "system": platform.system(),
        "hostname": platform.node(),
        "pid": str(os.getpid()),
        "pid_began": process_began(os.getpid()),
    }


def _git(*arguments: str) -> str:
    """Output of git in the checkout that holds the package; empty where there is no such checkout."""
    root = Path(hardpix.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
