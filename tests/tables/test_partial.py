"""Runs that are less than what their settings say, and times that vary: neither stands in a table without a word."""

import json

import pytest

from hardpix.record import SCHEMA, RunRecord, write
from hardpix.tables.compare import Run, collect, shortfalls
from hardpix.tables.render import render
from hardpix.tables.table import table

FULL = {
    "test/miou": 0.4,
    "val/miou": 0.3,
    "test/frames": 20.0,
    "val/frames": 10.0,
    "run/steps": 40.0,
    "run/planned_steps": 40.0,
}
FACTORS = {
    "loss._target_": "hardpix.losses.CrossEntropy",
    "trainer.max_steps": 40,
    "trainer.max_epochs": None,
    "trainer.fast_dev_run": False,
    "trainer.limit_train_batches": 1.0,
    "trainer.limit_val_batches": 1.0,
    "trainer.limit_test_batches": 1.0,
}


def made(directory="a", seed=0, factors=None, **metrics):
    given = {key.replace("__", "/"): value for key, value in metrics.items()}
    known = {key: value for key, value in (FULL | given).items() if value is not None}
    own = RunRecord(
        schema=SCHEMA, run_id=directory, status="done", factors=FACTORS | (factors or {}), metrics=known, seed=seed,
        parent=None, code={}, host={}, started="", dataset="rooms",
        frames={"rooms/train": 80, "rooms/val": 10, "rooms/test": 20},
    )  # fmt: skip
    return Run(directory, own)


@pytest.mark.parametrize(
    ("factors", "metrics", "said"),
    [
        ({}, {}, []),
        ({}, {"run__steps": 12.0}, ["12 of 40 steps"]),
        (
            {"trainer.max_steps": 4000},
            {"run__steps": 1200.0, "run__planned_steps": 4000.0},
            ["1,200 of 4,000 steps"],
        ),
        ({}, {"run__skipped_steps": 3.0}, ["3 of 40 steps skipped"]),
        ({}, {"test__frames": 7.0}, ["7 of 20 test frames"]),
        (
            {},
            {"val__frames": 1.0, "run__epoch_share": 0.25},
            ["25 % of an epoch's batches", "1 of 10 val frames"],
        ),
        ({"trainer.fast_dev_run": True}, {"run__steps": 1.0}, ["trainer.fast_dev_run=true", "1 of 40 steps"]),
        # records that do not say what was done
        (
            {
                "trainer.limit_test_batches": 1,
                "trainer.limit_val_batches": 0.5,
                "trainer.limit_train_batches": 3,
            },
            {"test__frames": None, "val__frames": None, "run__planned_steps": None},
            [
                "trainer.limit_train_batches=3",
                "trainer.limit_val_batches=0.5",
                "trainer.limit_test_batches=1",
            ],
        ),
        ({}, {"run__steps": 12.0, "run__planned_steps": None}, ["12 of 40 steps"]),
        ({"trainer.limit_test_batches": 7}, {}, []),  # no less than all
        (
            {"parent_config.trainer.limit_train_batches": 2},
            {},
            ["parent_config.trainer.limit_train_batches=2"],
        ),
    ],
)
def test_what_a_run_falls_short_of(factors, metrics, said):
    assert sorted(shortfalls(made(factors=factors, **metrics).record)) == sorted(said)


def test_a_table_marks_what_is_less_than_the_full_run():
    runs = [made("a", 0), made("b", 1, test__frames=7.0)]
    text = render(table(runs, ["loss"]), "md")
    assert "Less than the full run: b (7 of 20 test frames)." in text
    assert "7 of 20 test frames" in table(runs, ["loss"]).rows[0].protocol
    assert "Less than" not in render(table(runs[:1], ["loss"]), "md")


def test_a_dev_run_enters_no_mean(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        tried = made(name, seed, {"trainer.fast_dev_run": True}, run__steps=1.0, test__frames=1.0)
        write(tried.record, tmp_path / name)
    found = table(collect([tmp_path]), ["loss"])
    (cell,) = found.rows[0].cells
    assert (cell.n, cell.states) == (0, (("fast_dev_run", 2),))
    text = render(found, "md")
    assert "trainer.fast_dev_run=true, 1 of 40 steps" in text
    entries = json.loads(render(found, "json"))["rows"][0]["runs"]
    assert [entry["status"] for entry in entries] == ["fast_dev_run", "fast_dev_run"]


@pytest.mark.parametrize("form", ["md", "latex", "html", "csv", "json"])
def test_a_time_whose_steps_spread_is_marked(form):
    runs = [
        made("a", 0, {"method.x": 1}, cost__step_seconds=1.0, run__step_spread=0.1),
        made("b", 0, {"method.x": 2}, cost__step_seconds=2.0, run__step_spread=1.3),
    ]
    found = table(runs, ["method.x"], ["cost/step_seconds", "test/miou"], None)
    text = render(found, form)
    assert "middle half of the steps" in text
    assert ("130 %" if form != "latex" else r"130 \%") in text
    calm, uneven = found.rows
    assert not calm.lacks
    (lack,) = uneven.lacks
    assert (lack.metric, lack.seeds) == ("cost/step_seconds", (0,))
    if form == "md":
        line = next(x for x in text.splitlines() if x.startswith("| 2"))
        assert "2 [1]" in line or "2 ¹" in line or "2<sup>1</sup>" in line, line
    assert "middle half" not in render(table(runs, ["method.x"], ["test/miou"]), form)
