"""Scores over the number of frames that a run's start was trained on."""

import csv
import statistics

import pytest

from hardpix import record
from hardpix.figures.curves import draw_sweep
from hardpix.tables.columns import FACTOR, with_pretraining
from hardpix.tables.compare import collect
from hardpix.types import HardpixError


def write(folder, name, *, seed=0, parent=None, frames=795, score=0.5, dataset="nyuv2", **factors):
    run = folder / name
    run.mkdir(parents=True)
    kept = {"seed": seed, "init_from": None if parent is None else "RUN", "method.alpha": 1} | factors
    made = record.RunRecord(
        record.SCHEMA, f"id-{name}", "done", kept, {"test/miou": score}, seed, parent and f"id-{parent}", {}, {},
        "2026-01-01T00:00:00+00:00", dataset=dataset, frames={f"{dataset}/train": frames, f"{dataset}/test": 7},
    )  # fmt: skip
    record.write(made, run)


@pytest.fixture
def runs(tmp_path):
    """Pre-trained on 100 and on 5000 frames or not at all, two seeds each."""
    folder = tmp_path / "runs"
    for seed in (0, 1):
        write(folder, f"none-{seed}", seed=seed, score=0.1 + seed / 100)
        for frames in (100, 5000):
            root = {"data.source.root": f"/hn{frames}", "data.batch_size": 4}
            write(folder, f"hn{frames}-{seed}", seed=seed, frames=frames, dataset="hn", **root)
            parent = {f"parent_config.{key}": value for key, value in root.items()}
            score = 0.2 + frames / 1e5 + seed / 100
            write(
                folder, f"tuned{frames}-{seed}", seed=seed, parent=f"hn{frames}-{seed}", score=score, **parent
            )
    return folder


def test_frames_are_those_of_the_start(runs):
    found = with_pretraining(collect([runs]))
    assert {run.record.run_id: run.record.factors[FACTOR] for run in found} == {
        "id-none-0": 0, "id-none-1": 0, "id-tuned100-0": 100, "id-tuned100-1": 100, "id-tuned5000-0": 5000,
        "id-tuned5000-1": 5000,
    }  # fmt: skip
    assert all("init_from" not in run.record.factors for run in found)


def test_the_sweep_has_a_point_per_number_of_frames(runs, tmp_path):
    out = tmp_path / "f.png"
    draw_sweep([str(runs)], FACTOR, "test/miou", None, [], [out])
    with open(tmp_path / "f.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r[FACTOR] for r in rows] == ["0", "100", "5000"]
    assert [float(r["mean"]) for r in rows] == pytest.approx([0.105, 0.206, 0.255])
    assert [float(r["std"]) for r in rows] == pytest.approx([statistics.stdev([0, 0.01])] * 3)
    assert out.is_file()


def test_starts_that_are_not_named_or_differ_otherwise_are_refused(runs, tmp_path):
    with pytest.raises(HardpixError, match="starts from run id-hn100-0, which is not among"):
        with_pretraining(collect([runs / "tuned100-0", runs / "hn5000-0"]))
    other = {"parent_config.data.source.root": "/hn100", "parent_config.data.batch_size": 8}
    write(runs, "tuned-other", parent="hn100-0", **other)
    with pytest.raises(HardpixError, match=r"parent_config\.data\.batch_size"):
        with_pretraining(collect([runs]))
    assert with_pretraining(collect([runs]), ["parent_config.data.batch_size"])
    write(runs, "tuned-alpha", seed=2, **{"method.alpha": 9})
    with pytest.raises(HardpixError, match=r"method\.alpha"):
        draw_sweep(
            [str(runs)], FACTOR, "test/miou", None, ["parent_config.data.batch_size"], [tmp_path / "f.png"]
        )
