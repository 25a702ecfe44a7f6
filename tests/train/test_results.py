"""A run leaves ``per_image.csv``, which adds up to its scores; so does an evaluation of another split."""

from pathlib import Path

import pytest

from hardpix.cli import main
from hardpix.report.per_image import read_per_image
from hardpix.run.train import train


def test_a_run_and_an_evaluation_score_each_image_once_in_order(tiny):
    cfg = tiny("run=r", "trainer.max_steps=1", "panels=0")
    found = train(cfg, [])
    run_dir = f"{cfg.runs_dir}/default/r"
    rows = read_per_image(Path(run_dir))
    assert [row.image for row in rows] == [f"test_{i:05d}" for i in range(3)]
    right = sum(row.pixel_acc * row.pixels for row in rows) / sum(row.pixels for row in rows)
    assert right == pytest.approx(found.metrics["test/pixel_acc"], abs=2e-6)
    assert main(["evaluate", run_dir, "--split", "train", "--out", f"{run_dir}/e"]) == 0
    assert [row.image for row in read_per_image(Path(run_dir) / "e")] == [f"train_{i:05d}" for i in range(8)]
