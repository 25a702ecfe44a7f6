"""A run leaves ``per_image.csv``, which adds up to its scores; so does an evaluation of another split."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix.cli import main
from hardpix.scores import read_per_image
from hardpix.train.train import train


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


# A data set that is scored by the IoU of text: what `best` follows, what is recorded, and what tables
# show.


@pytest.fixture
def total_text(tmp_path):
    """Bright text that covers most of a dark ground, so that few steps suffice to find some."""
    rng = np.random.default_rng(0)
    for split, count in {"Train": 4, "Test": 2}.items():
        for number in range(1, count + 1):
            mask = np.zeros((32, 48), dtype=np.uint8)
            top, left = rng.integers(1, 5, 2)
            mask[top : top + 26, left : left + 40] = 255
            picture = (rng.integers(0, 80, (32, 48, 3)) + mask[..., None] // 2).astype(np.uint8)
            for folder, pixels in (("Images", picture), ("groundtruth_pixel", mask)):
                path = tmp_path / "Total-Text" / folder / split / f"img{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, quality=95)
    return tmp_path / "Total-Text"


@pytest.fixture
def run_dir(tiny, total_text, tmp_path):
    given = ["data=total_text", f"data.source.root={total_text}", "run=a", "trainer.max_steps=6"]
    train(
        tiny(*given, "data.train_transform.base_size=null", "optimizer.lr=0.05"),
        [],
    )
    return tmp_path / "runs/default/a"


def test_the_iou_of_text_is_recorded_followed_and_shown(run_dir, capsys):
    metrics = json.loads((run_dir / "run.json").read_text())["metrics"]
    (tn, fp), (fn, tp) = np.load(run_dir / "confusion.npy").tolist()
    assert metrics["test/fg_iou"] == pytest.approx(tp / (tp + fp + fn), abs=1e-6)
    assert metrics["test/miou"] == pytest.approx((tp / (tp + fp + fn) + tn / (tn + fp + fn)) / 2, abs=1e-6)
    assert 0 < metrics["val/fg_iou"] < 1  # a score of 0 would not tell the two apart

    callbacks = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)["callbacks"]
    best = next(state for name, state in callbacks.items() if "ModelCheckpoint" in name)
    assert best["monitor"] == "val/fg_iou"
    with open(run_dir / "metrics.csv", newline="") as file:
        followed = [float(row["val/fg_iou"]) for row in csv.DictReader(file) if row["val/fg_iou"]]
    assert len(followed) > 2
    assert float(best["best_model_score"]) == pytest.approx(max(followed), abs=1e-6)

    capsys.readouterr()
    assert main(["table", str(run_dir), "--columns", "test/fg_iou"]) == 0
    assert f"{100 * metrics['test/fg_iou']:.2f}" in capsys.readouterr().out
    assert main(["table", str(run_dir)]) == 0
    shown = capsys.readouterr().out
    assert shown.index("test/fg_iou (%)") < shown.index("test/miou (%)")
