"""``hardpix page`` and ``hardpix dashboard``: a page of runs, a workspace of Weights & Biases."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardpix import record
from hardpix.cli.figure_kinds import OVERRIDE, names
from hardpix.config.command_line import Parser
from hardpix.page.page import page, write_page
from hardpix.page.runs import Part, gather, parts, swept
from hardpix.record import write_text
from hardpix.types import ConfigError, HardpixError

if TYPE_CHECKING:
    from hardpix.page.explorer import Explorer

FRAMES = 12


def main(arguments: list[str], notes: Sequence[str] = (), commands: Sequence[str] = ()) -> int:
    """``notes``: further sentences on top. ``commands``: what made the runs."""
    given = _parse(arguments)
    overrides = [word for word in given.runs if OVERRIDE.match(word)]
    places = [word for word in given.runs if word not in overrides]
    runs, damaged = gather(places)
    made = parts(runs, given.split, given.rows)
    explorers: list[Explorer | None] = [None] * len(made)
    if not given.no_explorer:
        from hardpix.page.explorer import explorer

        explorers = [explorer(part, overrides, given.split, given.frames, given.device) for part in made]
    text = page(
        given.title or _title(made),
        made,
        explorers,
        damaged=damaged,
        notes=notes,
        commands=[*commands, *_commands(arguments, places, made)],
    )
    write_page(text, given.out)
    _say(given.out, made, explorers, damaged, len(text.encode()))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        "hardpix page",
        description="One page of runs in one file, without network: the outcome, tables, learning curves, curves of "
        "swept settings, confusion matrices, cost against quality, and an explorer of hard pixels.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="run directories, or directories of runs; key=value overrides of inference and data for the explorer",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="a file that ends in .html"
    )
    parser.add_argument(
        "--rows", type=names, default=[],
        help="factors that tell rows apart, by commas: method,loss (default: those in which the runs differ)",
    )  # fmt: skip
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="N",
                        help=f"frames in the explorer, the worst ones (default: {FRAMES})")  # fmt: skip
    parser.add_argument("--split", default="test", choices=("train", "val", "test"),
                        help="of scores and of the explorer's frames")  # fmt: skip
    parser.add_argument("--no-explorer", action="store_true", help="do not load weights and data")
    parser.add_argument("--title", metavar="TEXT", help="of the page (default: the study's name)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    given = parser.parse_intermixed_args(arguments)
    if given.frames < 1:
        raise ConfigError(
            f"--frames {given.frames}: must be at least 1; --no-explorer leaves the explorer out"
        )
    if given.out.suffix.lower() not in (".html", ".htm") or given.out.is_dir():
        raise ConfigError(f"--out {given.out}: must be a file that ends in .html")
    record.check_output("--out", given.out)
    if all(OVERRIDE.match(word) for word in given.runs):
        raise ConfigError("hardpix page: name at least one run, or a directory of runs")
    return given


def _title(made: Sequence[Part]) -> str:
    """The names of the studies; of runs without one the data sets."""
    studies = dict.fromkeys(run.record.study for part in made for run in part.runs)
    named = [study for study in studies if study not in ("", "default")]
    return ", ".join(named) or f"Runs on {', '.join(part.dataset or 'unknown data' for part in made)}"


def _commands(arguments: Sequence[str], runs: Sequence[str], made: Sequence[Part]) -> list[str]:
    """What makes this page and its table."""
    lines = [shlex.join(["hardpix", "page", *arguments])]
    if len(made) == 1 and made[0].table is not None:
        lines.append(shlex.join(["hardpix", "table", *runs, "--rows", ",".join(made[0].factors)]))
    return lines


def _say(
    out: Path,
    made: Sequence[Part],
    explorers: Sequence[Explorer | None],
    damaged: Sequence[tuple[str, str]],
    size: int,
) -> None:
    problems = [part.problem for part in made if part.problem]
    problems += [f"{directory} is damaged: {why}" for directory, why in damaged]
    for problem in [*problems, *(note for found in explorers if found for note in found.notes)]:
        print(f"note: {problem}", file=sys.stderr)
    runs = sum(len(part.runs) for part in made)
    keys = [key for part in made for key in swept(part)]
    varying = f", swept: {', '.join(keys)}" if keys else ""
    print(f"{runs} runs{varying}; {size / 1e6:.1f} MB written to {out}")


# ``hardpix dashboard``: the papers' plots as a workspace of Weights & Biases, built with wandb-workspaces.
#
# Keys of the configuration are those of a run's ``config.yaml``; ``axes`` has the numbers of lists (see
# :func:`hardpix.train.loggers.nested`).


NAME = "hardpix"
SCORES = ("test/miou", "test/pixel_acc", "test/mean_acc")
AXES = (  # of the papers' figures: section, setting, title of the axis, logarithmic
    ("HL: alpha and c", "method.alpha", "alpha", True),
    ("HL: alpha and c", "method.c", "c", False),
    ("LWM: alpha, beta, d and m", "method.alpha", "alpha", True),
    ("LWM: alpha, beta, d and m", "method.beta", "beta", True),
    ("LWM: alpha, beta, d and m", "method.bin_size", "d, size of a bin of depth", False),
    ("LWM: alpha, beta, d and m", "axes.method_cells", "m, rows of the grid", False),
)
COSTS = ("cost/step_seconds", "cost/peak_memory_mb", "cost/gflops_train", "cost/gflops_inference",
         "cost/parameters_train", "cost/parameters_inference")  # fmt: skip
CURVES = ("train/loss", "val/miou", "val/pixel_acc")
DECILES = tuple(f"deciles/miou/{index:02}" for index in range(1, 11))


def dashboard(arguments: list[str]) -> int:
    parser = Parser(
        "hardpix dashboard",
        description="Make a workspace in a project of W&B: scores by method, the papers' parameters, hardness "
        "deciles, cost, learning curves and classes. Each call makes a new view.",
    )
    parser.add_argument(
        "--project", default="hardpix", help="as logger.project of the runs (default: hardpix)"
    )
    parser.add_argument("--entity", default="", help="the user or team that the project belongs to")
    parser.add_argument("--name", default=NAME, help=f"of the view (default: {NAME})")
    parser.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="CLASS",
        help="classes of the per-class bars (default: the table)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the workspace as JSON, without W&B's server"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="with --dry-run: write it there")
    given = parser.parse_args(arguments)
    if not given.dry_run and not given.entity:
        raise ConfigError("--entity: needed to say whose project it is; --dry-run needs none")
    if given.out is not None and not given.dry_run:
        raise ConfigError("--out: only with --dry-run")
    made = workspace(given.entity or "ENTITY", given.project, given.name, given.classes)
    if given.dry_run:
        text = json.dumps(workspace_json(made), indent=1) + "\n"
        if given.out is None:
            print(text, end="")
        else:
            write_text(given.out, text)
        return 0
    from hardpix.train.wandb import has_wandb_key

    if not has_wandb_key():
        raise ConfigError("no key of W&B: run wandb login or set WANDB_API_KEY")
    try:
        made.save_as_new_view()
    except Exception as error:  # of several libraries
        raise HardpixError(f"W&B did not take the workspace: {str(error).strip().splitlines()[0]}") from None
    print(made.url)
    return 0


def workspace(entity: str, project: str, name: str = NAME, classes: Sequence[str] = ()) -> Any:
    """The workspace, nothing sent."""
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as spaces
    except ImportError:
        raise ConfigError('a dashboard needs wandb-workspaces: pip install "hardpix[dashboard]"') from None

    def summary(key: str) -> Any:
        return panels.SummaryMetric(key)

    by_method: dict[str, Any] = {"groupby": panels.Config("method._target_"), "groupby_aggfunc": "mean",
                                 "groupby_rangefunc": "stddev"}  # fmt: skip
    against: dict[str, list[Any]] = {}
    for section, key, title, logarithmic in AXES:
        for score in SCORES[:1]:
            against.setdefault(section, []).append(
                panels.ScatterPlot(
                    title=f"{score} against {title}",
                    x=panels.Config(key),
                    y=summary(score),
                    log_x=logarithmic,
                )
            )
    classed: list[Any] = [
        panels.BarPlot(title=f"IoU of {name}", metrics=[summary(f"per_class/iou/{name}")], **by_method)
        for name in classes
    ]
    sections = {
        "Scores by method": [panels.BarPlot(title=key, metrics=[summary(key)], **by_method) for key in SCORES],
        **against,
        "Hardness deciles": [
            panels.BarPlot(title="mIoU by tenths of the pixels, the hardest first",
                           metrics=[summary(key) for key in DECILES]),
            *(panels.BarPlot(title=f"mIoU of the {which} tenth", metrics=[summary(key)], **by_method)
              for which, key in (("hardest", DECILES[0]), ("easiest", DECILES[-1]))),
        ],
        "Cost and quality": [
            panels.ScatterPlot(title=f"test/miou against {key}", x=summary(key), y=summary("test/miou"))
            for key in COSTS
        ],
        "Learning curves": [panels.LinePlot(title=key, y=[key], **by_method) for key in CURVES],
        "Classes": classed or [panels.WeavePanelSummaryTable(table_name="per_class")],
    }  # fmt: skip
    return spaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            spaces.Section(name=title, panels=inside, is_open=index < 3)
            for index, (title, inside) in enumerate(sections.items())
        ],
    )


def workspace_json(made: Any) -> dict[str, Any]:
    """What would be sent: the view's specification as W&B stores it."""
    return made._to_model().spec.model_dump(by_alias=True, exclude_none=True, mode="json")
