"""The dashboard reads nothing that runs do not log: its keys are looked up in real runs' offline files."""

import json
import re

import pytest

from hardpix.cli import main
from hardpix.train.loggers import nested
from hardpix.train.train import train
from hardpix.types import ConfigError, HardpixError

pytest.importorskip("wandb_workspaces")


def strings(node):
    if isinstance(node, dict):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)
    elif isinstance(node, str):
        yield node


def panels(made):
    return [
        panel for section in made["section"]["panelBankConfig"]["sections"] for panel in section["panels"]
    ]


def reads(made):
    """(settings, summary keys, logged keys) that the panels of a workspace's JSON name."""
    config, summary, history = set(), set(), set()
    for panel in panels(made):
        for text in strings(panel["config"]):
            if match := re.fullmatch(r"(?:config:)?(\w+)\.value\.([\w.]+)", text):
                config.add(f"{match[1]}.{match[2]}")
            elif match := re.fullmatch(r"summary(?:_metrics\.|:)(.+)", text):
                summary.add(match[1])
            elif panel["viewType"] == "Run History Line Plot" and text in panel["config"]["metrics"]:
                history.add(text)
    return config, summary, history


@pytest.fixture(scope="module")
def logged(tmp_path_factory, composed_tiny, offline):
    """What W&B has of a run of HL and one of LWM, the configuration nested as it is sent."""
    folder = tmp_path_factory.mktemp("dashboard")
    for method in ("hardness", "lwm"):
        train(composed_tiny(folder / "runs", [f"run={method}", f"method={method}", "logger=default",
                                              "logger.wandb=offline", "panels=0"]), [])  # fmt: skip
    return [offline(folder / "runs/default" / method) for method in ("hardness", "lwm")]


def has(config, key):
    node = config
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return isinstance(node, int | float | str)


@pytest.mark.slow
def test_every_key_that_a_panel_reads_is_logged(logged, tmp_path):
    assert main(["dashboard", "--dry-run", "--project", "p", "--classes", "wall", "floor",
                 "--out", str(tmp_path / "d.json")]) == 0  # fmt: skip
    config, summary, history = reads(json.loads((tmp_path / "d.json").read_text()))
    assert {"method.alpha", "method.beta", "method.c", "method.bin_size", "axes.method_cells"} <= config
    assert {
        "test/miou",
        "deciles/miou/01",
        "deciles/miou/10",
        "cost/step_seconds",
        "per_class/iou/wall",
    } <= summary
    assert {"train/loss", "val/miou"} <= history
    assert {key for key in config if not any(has(run.config, key) for run in logged)} == set()
    assert {key for key in summary if not any(key in run.summary for run in logged)} == set()
    rows = {key for run in logged for row in run.rows.values() for key in row}
    assert history - rows == set()


def test_the_deciles_are_of_the_runs_own_map(logged):
    for run in logged:
        scores = [run.summary[f"deciles/pixel_acc/{index:02}"] for index in range(1, 11)]
        assert all(0 <= score <= 1 for score in scores)
        assert sum(scores) / 10 == pytest.approx(run.summary["test/pixel_acc"], abs=0.02)


def test_the_sections_and_the_table_of_classes(capsys):
    assert main(["dashboard", "--dry-run"]) == 0
    made = json.loads(capsys.readouterr().out)
    names = [section["name"] for section in made["section"]["panelBankConfig"]["sections"]]
    assert names == ["Scores by method", "HL: alpha and c", "LWM: alpha, beta, d and m", "Hardness deciles",
                     "Cost and quality", "Learning curves", "Classes"]  # fmt: skip
    assert "per_class" in set(strings(panels(made)[-1]["config"]))


def test_what_is_missing_is_told(monkeypatch):
    from hardpix.cli import reports

    with pytest.raises(ConfigError, match="--entity"):
        reports.dashboard(["--project", "p"])
    with pytest.raises(ConfigError, match="--out"):
        reports.dashboard(["--entity", "e", "--out", "x"])
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="no key"):
        reports.dashboard(["--entity", "e"])
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "canary0123456789abcdef0123456789abcdef01")

    def refused(self):
        raise RuntimeError("not today\nat all")

    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save_as_new_view", refused)
    with pytest.raises(HardpixError, match=r"did not take the workspace: not today$"):
        reports.dashboard(["--entity", "e"])


def test_lists_of_one_number_can_be_axes():
    flat = {"method.cells": [8, 8], "a.b": [1, 2], "freeze": [], "x": [True], "y.z.w": "t"}
    assert nested(flat) == {"method": {"cells": [8, 8]}, "a": {"b": [1, 2]}, "freeze": [], "x": [True],
                            "y": {"z": {"w": "t"}}, "axes": {"method_cells": 8}}  # fmt: skip
