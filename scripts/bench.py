"""Speed of every part that claims it, side by side in one run: ``python scripts/bench.py`` (``make bench``).

Each row sets ours beside a reference, run in turn so that a slow spell hits both, and compares medians. A missed
goal is printed like a reached one; the exit status is 0 either way.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bench_cascade
import bench_files
import bench_hl
import bench_hn
import bench_input
import bench_logging
import bench_lwm
import bench_numeric
import torch
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
SUITES: dict[str, Callable[[], Iterable[Row]]] = {
    "confusion": lambda: bench_numeric.confusion(15),
    "input": bench_input.rows,
    "logging": lambda: bench_logging.logging(7),
    "startup": lambda: bench_logging.start_up(5),
    "sliding": lambda: bench_numeric.sliding(15),
    "ohem": lambda: bench_numeric.ohem(15),
    "steps": lambda: bench_numeric.steps(25),
    "lwm": lambda: bench_lwm.rows(15),
    "cascade": lambda: bench_cascade.rows(3),
    "hn": lambda: bench_hn.rows(15),
    "files": lambda: bench_files.rows(5),
    "hl": lambda: bench_hl.rows(5),
}
PACKAGES = ("torch", "numpy", "pytorch-lightning", "torchmetrics", "timm", "pillow")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES), metavar="NAME",
                        help=f"some of {', '.join(SUITES)}")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write conditions and rows there too")
    parser.add_argument("--threads", type=int, default=1, help="of torch; 1 measures a core")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=None if sys.stdout.isatty() else 132)
    conditions = measured_on(arguments.threads, choose_data())
    for key, value in conditions.items():
        console.print(f"[dim]{key:14}[/dim] {value}", highlight=False)
    rows: list[Row] = []
    for name in arguments.only:
        with console.status(name):
            rows += [row | {"suite": name, "reached": reached(row)} for row in SUITES[name]()]
    console.print(drawn(rows))
    console.print(f"{sum(row['reached'] for row in rows)} of {len(rows)} goals reached")
    if arguments.json:
        arguments.json.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


def choose_data() -> str:
    """Let the input rows read real frames where there are any; says what they read."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.setdefault("HARDPIX_DATA", str(beside if beside.is_dir() else "data")))
    found = [name for name in ("nyudv2", "CamVid") if (root / name).is_dir()]
    return f"real frames of {' and '.join(found)} in {root}" if found else "generated files (no HARDPIX_DATA)"


def measured_on(threads: int, data: str) -> dict[str, Any]:
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    busy = load > 0.5 * cores
    return {
        "time": "CPU time of the process, medians, both sides in turn",
        "processor": f"{cpu_name()}, {cores} cores, {threads} thread(s) of torch",
        "load": f"{load:.2f} at the start" + (": BUSY, trust ratios more than times" if busy else ""),
        "versions": ", ".join(
            [f"python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES)]
        ),
        "input": data,
    }


def cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", listing.read_text()) if listing.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def reached(row: Row) -> bool:
    """Whether every limit of the goal holds: ``<= 1.1 x`` the reference, ``<= 3 ms``, ``<= 0.1 ms more``."""
    measured = {"x": row["ratio"], "ms": row["ours"], "ms more": row["ours"] - row["reference"]}
    limits = re.findall(r"<= ([\d.]+) (x|ms more|ms)", row["goal"])
    return all(measured[unit] <= float(limit) for limit, unit in limits)


def drawn(rows: list[Row]) -> Table:
    table = Table(title="hardpix bench")
    table.add_column("measured / reference", no_wrap=True)
    for heading in ("ours", "reference", "ratio", "goal", "reached"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        ours, reference = (f"{row[side]:.2f} {row['unit']}" for side in ("ours", "reference"))
        verdict = "yes" if row["reached"] else "[bold red]no[/bold red]"
        table.add_row(row["name"], ours, reference, f"{row['ratio']:.3f}", row["goal"], verdict)
    return table


if __name__ == "__main__":
    main()
