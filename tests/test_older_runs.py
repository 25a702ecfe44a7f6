"""Runs and a table of version 0.1.0 as it was before its modules were moved: loaded, scored, resumed, tabulated."""

import tarfile
from pathlib import Path

import pytest
import torch

from hardpix import record
from hardpix.cli import main

FIXTURES = Path(__file__).parent / "fixtures"
RUN = Path("runs/older/hardness")


@pytest.fixture
def older(tmp_path, monkeypatch):
    """The current folder holds ``runs/older/hardness`` and ``baseline``, two steps each on synthetic rooms."""
    with tarfile.open(FIXTURES / "older_runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
def test_scores_are_the_same(older, split):
    assert main(["evaluate", str(RUN), "--split", split, "--out", "again"]) == 0
    before = record.read(RUN / "evaluations/val" if split == "val" else RUN)
    expected = {key: value for key, value in before.metrics.items() if key.startswith(f"{split}/")}
    again = record.read("again").metrics
    assert {key: again[key] for key in expected} == pytest.approx(expected, abs=1e-3)
    assert (Path("again") / "per_image.csv").is_file()


def test_resuming_ends_as_an_uninterrupted_run(older):
    """A third step on the old checkpoint, and all three steps by today's code."""
    words = [
        word for word in record.read(RUN).overrides if not word.startswith(("run=", "trainer.max_steps="))
    ]
    before = record.read(RUN)
    assert main(["train", *words, "run=hardness", "trainer.max_steps=3", "resume=true"]) == 0
    assert main(["train", *words, "run=whole", "trainer.max_steps=3"]) == 0
    resumed, whole = record.read(RUN), record.read(RUN.with_name("whole"))
    assert (resumed.run_id, resumed.status, resumed.metrics["run/steps"]) == (before.run_id, "done", 3)
    assert resumed.data == before.data == whole.data
    states = [
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in (RUN, RUN.with_name("whole"))
    ]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():  # bits may differ between machines
        torch.testing.assert_close(value, states[1][key], rtol=1e-4, atol=1e-5, msg=key)
    expected = {key: value for key, value in whole.metrics.items() if key.startswith("test/")}
    assert {key: resumed.metrics[key] for key in expected} == pytest.approx(expected, abs=1e-3)


def test_tables_are_the_same(older):
    columns = ["--columns", "test/miou,test/pixel_acc,test/miou:delta", "--relative-to", "method=Baseline"]
    assert main(["table", str(RUN), "runs/older/baseline", *columns, "--out", "table.md"]) == 0
    assert main(["table", "runs/older", "--format", "json", "--out", "table.json"]) == 0
    assert Path("table.md").read_bytes() == (FIXTURES / "older_runs.table.txt").read_bytes()
    assert Path("table.json").read_bytes() == (FIXTURES / "older_runs.table.json").read_bytes()
