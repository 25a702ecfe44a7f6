"""What our logging adds to a training step, beside a bare ``fit`` of the same module; and what start-up costs.

``python scripts/bench_logging.py`` prints the rows. All times are CPU times: a busy machine hardly moves them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hardpix.config.compose import compose
from hardpix.methods import Method, Parts
from hardpix.train.build import build_trainer, make, quiet
from hardpix.train.callbacks import build_callbacks
from hardpix.train.cost import Cost
from hardpix.train.loggers import Identity, build_loggers
from hardpix.types import DatasetInfo

STEPS, SETTLED, REPEATS = 1500, 300, 5
LOGGING = (LearningRateMonitor, Cost)
Row = dict[str, Any]


def rows(repeats: int = REPEATS) -> list[Row]:
    """``{name, ours, reference, ratio, goal, unit}``: medians in ms of CPU time."""
    return [*logging(repeats), *start_up(repeats)]


class Logged(Method):
    """The smallest method: one weight, so that a step is little more than Lightning's loop."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.model: Any = nn.Linear(1, 1)
        self.clock: list[float] = []  # CPU seconds when each step began

    def losses(self, batch: Any) -> dict[str, Tensor]:
        self.clock.append(time.process_time())
        loss = self.model(batch["image"]).mean()
        return {"segmentation": loss, "hardness": -0.01 * loss}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"model": list(self.model.parameters())}


class Bare(Logged):
    """The same computation with nothing of ours around it."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.stack([x.float() for x in self.losses(batch).values()]).sum()

    on_train_start = pl.LightningModule.on_train_start
    on_train_epoch_end = pl.LightningModule.on_train_epoch_end


def logging(repeats: int) -> Iterator[Row]:
    """CPU time per step: losses logged every 10 steps, learning rate, costs and ``metrics.csv``, against none of it.

    Both sides keep Lightning's own checkpoint callback. The second row starts with as many rows in
    ``metrics.csv`` as a run of 160 000 steps has at its end; the third has every callback of a run.
    """
    quiet()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        times = [
            (
                _bare_fit(folder),
                _our_fit(folder, LOGGING),
                _our_fit(folder, LOGGING, earlier_rows=16_000),
                _our_fit(folder, Callback),
            )
            for _ in range(repeats)
        ]
    bare, *ours = (statistics.median(column) for column in zip(*times, strict=True))
    titles = ("our logging", "our logging after 160 000 steps", "all callbacks of a run")
    for title, found in zip(titles, ours, strict=True):
        yield _row(f"{title}, a step / a bare fit's", found, bare, "<= 0.1 ms more")


def _our_fit(folder: Path, kept: Any, earlier_rows: int = 0) -> float:
    cfg = compose(["logger=csv", "trainer.accelerator=cpu", f"trainer.max_steps={STEPS}"])
    identity = Identity("0", "bench", "bench", "train")
    loggers: Any = build_loggers(run_dir=folder, identity=identity, config={}, resume_step=None, **cfg.logger)
    for step in range(-earlier_rows, 0):
        loggers[0].log_metrics({"train/loss": 0.5, "train/segmentation": 0.6, "lr": 0.01}, step)
    callbacks = build_callbacks(run_dir=folder, monitor="val/miou", **cfg.callbacks)
    callbacks = [callback for callback in callbacks if isinstance(callback, kept)]
    trainer = build_trainer(run_dir=folder, callbacks=callbacks, loggers=loggers, **cfg.trainer)
    return _fit(trainer, Logged(_parts(cfg)))


def _bare_fit(folder: Path) -> float:
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=STEPS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    return _fit(trainer, Bare(_parts(compose([]))))


def _fit(trainer: pl.Trainer, method: Logged) -> float:
    """CPU milliseconds per step, from the settled step to the last."""
    batch = {"image": torch.ones(1, 1), "label": torch.zeros(1, dtype=torch.long)}
    trainer.fit(method, DataLoader([batch] * STEPS, batch_size=None))  # type: ignore[arg-type]
    return 1e3 * (method.clock[-1] - method.clock[SETTLED]) / (STEPS - 1 - SETTLED)


def _parts(cfg: Any) -> Parts:
    unused: Callable[..., Any] = nn.Identity
    info = DatasetInfo("bench", ("one", "other"), ((0, 0, 0), (255, 255, 255)))
    return Parts(
        info=info,
        build_model=unused,
        build_head=unused,
        loss=nn.Identity(),
        aux_loss=nn.Identity(),
        aux_weight=0.0,
        infer=unused,
        build_optimizer=make(cfg.optimizer),
        build_scheduler=make(cfg.scheduler),
    )


def start_up(repeats: int) -> Iterator[Row]:
    """User and system time of whole processes, against an interpreter that does nothing."""
    hardpix = str(Path(sys.executable).with_name("hardpix"))
    commands = {
        "hardpix --help": [hardpix, "--help"],
        "hardpix train --cfg job": [hardpix, "train", "--cfg", "job"],
        "hardpix train with a misspelt key": [hardpix, "train", "traner.max_steps=1"],
    }
    sides = [[sys.executable, "-c", "pass"], *commands.values()]
    times = [[_cpu_ms(side) for side in sides] for _ in range(repeats + 1)][1:]
    bare, *ours = (statistics.median(column) for column in zip(*times, strict=True))
    limits = ("<= 400 ms", "<= 400 ms", "<= 500 ms")
    for title, found, limit in zip(commands, ours, limits, strict=True):
        yield _row(f"start-up of {title} / of python", found, bare, limit)


def _cpu_ms(command: list[str]) -> float:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    used = os.wait4(process.pid, 0)[2]
    return 1e3 * (used.ru_utime + used.ru_stime)


def _row(name: str, ours: float, reference: float, goal: str) -> Row:
    ratio = ours / reference
    return {"name": name, "ours": ours, "reference": reference, "ratio": ratio, "goal": goal, "unit": "ms"}


if __name__ == "__main__":
    for r in rows():
        print(f"{r['name']:58} {r['ours']:8.3f} {r['reference']:8.3f} ms {r['ratio']:6.2f} x  {r['goal']}")
