"""``hardpix demo``: hard-pixel methods compared on synthetic rooms, in a table and a page with pictures."""

from __future__ import annotations

import time
import traceback
from datetime import datetime
from pathlib import Path

from hardpix.cli.reports import main as page
from hardpix.config.command_line import Parser
from hardpix.config.compose import compose
from hardpix.record import write_text
from hardpix.tables.compare import collect
from hardpix.tables.render import render
from hardpix.tables.table import table
from hardpix.types import HardpixError

# One choice per row of the table; the first one is what the others' costs are relative to.
ROWS = (
    ("cross_entropy", ("method=baseline", "loss=cross_entropy")),
    ("ohem", ("method=baseline", "loss=ohem")),
    ("focal", ("method=baseline", "loss=focal")),
    ("hardness", ("method=hardness", "loss=cross_entropy")),
)
COLUMNS = (
    "test/miou=mIoU",
    "test/mean_acc=mean accuracy",
    "test/pixel_acc=pixel accuracy",
    "cost/step_seconds:x=time per step",
    "cost/peak_memory_mb:x=memory",
)
TITLE = "Hard pixels on synthetic rooms"
NOTE = "Every figure comes from the runs below; a run takes seconds, so differences are mostly noise."


def main(arguments: list[str]) -> int:
    parser = Parser("hardpix demo", description=__doc__.replace("``", ""))
    parser.add_argument("--out", type=Path, help="folder for runs and page (default: runs/demo-TIME)")
    parser.add_argument("--seeds", type=int, default=2, help="runs per row (default: 2)")
    parser.add_argument("overrides", nargs="*", help="settings of every run, such as trainer.max_steps=50")
    given = parser.parse_intermixed_args(arguments)
    out = given.out or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    if (out / "index.html").exists():
        raise HardpixError(f"{out} already holds a demo; choose another --out")
    begin = time.perf_counter()
    commands = run_all(out, given.seeds, given.overrides)
    write_table(out)
    status = page([str(out), "-o", str(out / "index.html"), "--title", TITLE], [NOTE], commands)
    print(f"{time.perf_counter() - begin:.0f} s; open {out / 'index.html'} in a browser")
    return status


def run_all(out: Path, seeds: int, overrides: list[str]) -> list[str]:
    """Train every row with every seed; a failing run is recorded and the others go on. Returns the commands."""
    from hardpix.train.train import train

    commands = []
    for seed in range(seeds):
        for name, choice in ROWS:
            settings = ["experiment=demo", *choice, f"seed={seed}", f"study={out.name}", f"run={name}-{seed}"]
            settings += [f"runs_dir={out.parent}", *overrides]
            commands.append("hardpix train " + " ".join(settings))
            print(f"\n$ {commands[-1]}", flush=True)
            try:
                train(compose(settings), settings)
            except HardpixError as error:
                print(f"failed: {error}")
            except Exception:
                traceback.print_exc()
    return commands


def write_table(out: Path) -> None:
    """Write ``table.md`` from the run records in ``out`` and print it."""
    made = table(collect([out]), ("method", "loss"), COLUMNS, "method=Baseline,loss=CrossEntropy")
    markdown = render(made, "md")
    write_text(out / "table.md", markdown)
    print(f"\n{markdown}")
