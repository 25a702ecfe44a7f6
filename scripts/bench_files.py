"""What a checkpoint costs, in time and memory, beside Lightning's own for the same state; a table of a thousand runs.

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
from hardpix.train.checkpoint import AtomicCheckpointIO

MEGABYTES, RUNS, FACTORS = 200, 1000, 300
Row = dict[str, Any]


def rows(repeats: int = 5) -> list[Row]:
    """``{name, ours, reference, ratio, goal, unit}``: medians."""
    return [checkpoint(repeats), memory(), table(repeats)]


def checkpoint(repeats: int) -> Row:
    """Ours is flushed to the disk, listed with its sha256, and leaves the one before; Lightning's is only written."""
    state = made()
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


def made() -> dict[str, Any]:
    return {
        "state_dict": {str(i): torch.rand(MEGABYTES * 250000 // 50) for i in range(50)},
        "global_step": 1,
    }


def memory() -> Row:
    """The state with what saving it adds at the peak, beside the state; Lightning's own in the name."""
    state, added = MEGABYTES * 1e6 / 2**20, {}
    for side in ("AtomicCheckpointIO", "TorchCheckpointIO"):
        words = [sys.executable, "-c", f"import bench_files as b; print(b.added_by(b.{side}()))"]
        done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
        added[side] = float(done.stdout)
    name = f"memory to save {MEGABYTES} MB / the state (Lightning's {1 + added['TorchCheckpointIO'] / state:.2f})"
    ours = state + added["AtomicCheckpointIO"]
    return {
        "name": name,
        "ours": ours,
        "reference": state,
        "ratio": ours / state,
        "goal": "<= 1.1 x",
        "unit": "MiB",
    }


def added_by(saving: Any) -> float:
    """MiB by which the process grows at most while it saves, in Linux."""

    def now(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024

    state = made()
    with tempfile.TemporaryDirectory() as folder:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before = now("VmRSS")
        saving.save_checkpoint(state, Path(folder, "last.ckpt"))
    return now("VmHWM") - before


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
