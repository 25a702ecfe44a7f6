"""``hardpix dashboard``: the papers' plots as a workspace of Weights & Biases, built with wandb-workspaces.

Keys of the configuration are those of a run's ``config.yaml``; ``axes`` has the numbers of lists (see
:func:`hardpix.run.tracking.loggers.nested`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hardpix.arguments import Parser
from hardpix.atomic import write_text
from hardpix.types import ConfigError, HardpixError

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


def main(arguments: list[str]) -> int:
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
        raise ConfigError("--entity: W&B must be told whose project it is; --dry-run needs none")
    if given.out is not None and not given.dry_run:
        raise ConfigError("--out: only with --dry-run")
    made = workspace(given.entity or "ENTITY", given.project, given.name, given.classes)
    if given.dry_run:
        text = json.dumps(as_json(made), indent=1) + "\n"
        if given.out is None:
            print(text, end="")
        else:
            write_text(given.out, text)
        return 0
    from hardpix.run.tracking.wandb_logger import has_wandb_key

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


def as_json(made: Any) -> dict[str, Any]:
    """What would be sent: the view's specification as W&B stores it."""
    return made._to_model().spec.model_dump(by_alias=True, exclude_none=True, mode="json")
