"""How long a method's branches take in a test, per image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

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
