"""What a checkpoint costs beside Lightning's own for the same state, and a table of a thousand runs.

``python scripts/bench_files.py`` prints the rows. Wall-clock times: waiting for the disk is what is measured.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from hardpix import record
from hardpix.run.checkpoint_files import AtomicCheckpointIO

MEGABYTES, RUNS, FACTORS = 200, 1000, 300
Row = dict[str, Any]


def rows(repeats: int = 5) -> list[Row]:
    """``{name, ours, reference, ratio, goal, unit}``: medians in ms."""
    return [checkpoint(repeats), table(repeats)]


def checkpoint(repeats: int) -> Row:
    """Ours is flushed to the disk, listed with its sha256, and leaves the one before; Lightning's is only written."""
    state = {
        "state_dict": {str(i): torch.rand(MEGABYTES * 250000 // 50) for i in range(50)},
        "global_step": 1,
    }
    with tempfile.TemporaryDirectory(dir=".") as folder:
        files = {
            "ours": (AtomicCheckpointIO(), Path(folder, "ours/last.ckpt")),
            "reference": (TorchCheckpointIO(), Path(folder, "reference/last.ckpt")),
        }
        times = in_turn(
            {
                name: lambda io=io, path=path: io.save_checkpoint(state, path)
                for name, (io, path) in files.items()
            },
            repeats,
        )
    return row(f"checkpoint of {MEGABYTES} MB / Lightning's", times, "<= 1.5 x")


def table(repeats: int) -> Row:
    """The whole process of ``hardpix table`` over a thousand records, beside one that does nothing."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(RUNS):
            directory = Path(folder) / f"run{number}"
            directory.mkdir()
            factors = {f"group.key{i}": i for i in range(FACTORS)} | {"method.alpha": number // 5}
            one = record.RunRecord(
                schema=record.SCHEMA, run_id=str(number), status="done", factors=factors, seed=number % 5,
                metrics={"test/miou": 0.5, "test/mean_acc": 0.6, "test/pixel_acc": 0.7}, parent=None,
                code={}, host={}, started="2000-01-01T00:00:00+00:00", dataset="none",
            )  # fmt: skip
            (directory / record.FILE_NAME).write_text(json.dumps(asdict(one)))
        hardpix = [sys.executable, "-m", "hardpix.cli"]
        commands = {
            "ours": [*hardpix, "table", folder, "--rows", "method.alpha"],
            "reference": [*hardpix, "--version"],
        }
        run = {
            name: lambda words=words: subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            for name, words in commands.items()
        }
        times = in_turn(run, repeats)
    return row(f"table of {RUNS} runs / hardpix --version", times, "<= 500 ms")


def in_turn(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every side, in turn so that a slow spell hits both; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, work in sides.items():
            begin = time.perf_counter()
            work()
            if turn:
                times[name].append(1000 * (time.perf_counter() - begin))
    return times


def row(name: str, times: dict[str, list[float]], goal: str) -> Row:
    ours, reference = (statistics.median(times[side]) for side in ("ours", "reference"))
    return {
        "name": name,
        "ours": ours,
        "reference": reference,
        "ratio": ours / reference,
        "goal": goal,
        "unit": "ms",
    }


if __name__ == "__main__":
    for one in rows():
        print(one)
