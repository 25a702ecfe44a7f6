"""EP's tables from hand-written records: thresholds, stages below a run, evaluations."""

from __future__ import annotations

import csv
import io

import pytest

from hardpix.config import published
from hardpix.config.catalog import conf_dir
from hardpix.config.published import layout
from hardpix.record import SCHEMA, RunRecord, write
from hardpix.tables.compare import collect
from hardpix.tables.protocol_check import Experiment
from hardpix.tables.published_render import render
from hardpix.tables.reproduction import comparison
from hardpix.types import ConfigError, HardpixError

TABLES = conf_dir() / "table"
SEMANTIC = {
    "method._target_": "hardpix.methods.Baseline", "trainer.max_steps": 80000, "backbone.name": "xception65",
    "head._target_": "hardpix.models.DeepLabV3PlusHead", "data.batch_size": 8, "data.test_split": "val",
    "inference._target_": "hardpix.ops.WholeImage", "parent_config": None, "seed": 0,
}  # fmt: skip
NETWORKS = ("backbone.", "head.", "model.")


def on(parent, target, steps):
    """The factors of a run that stands on another."""
    own = {
        key: value for key, value in parent.items() if key != "parent_config" and "parent_config." not in key
    }
    below = {f"parent_config.{key}": value for key, value in parent.items()}
    return own | below | {"method._target_": f"hardpix.methods.{target}", "trainer.max_steps": steps}


ERRORS = on(SEMANTIC, "ErrorPrediction", 60000)
DETAIL = on(ERRORS, "Detail", 90000)
BAGGING = on(SEMANTIC, "Bagging", 90000)


def made(name, cells, metrics, factors, seed=0, dataset="cityscapes") -> RunRecord:
    frames = {
        "cityscapes": {"train": 2975, "val": 500, "test": 500},
        "ade20k": {"train": 20210, "test": 2000},
    }
    return RunRecord(
        schema=SCHEMA, run_id=name, status="done", seed=seed, parent=None, started="", code={}, host={}, name=name,
        dataset=dataset, frames={f"{dataset}/{role}": count for role, count in frames[dataset].items()},
        metrics=metrics, factors=factors | {"seed": seed, "run": name, "reproduces": [cells]},
    )  # fmt: skip


@pytest.fixture
def compared(tmp_path):
    def make(table, records, known, ignore=()):
        for record in records:
            (tmp_path / record.run_id).mkdir(exist_ok=True)
            write(record, tmp_path / record.run_id)
        (one,) = published.tables(f"error_cascade/{table}")
        return comparison(layout(one, TABLES), collect([tmp_path]), known, ignore)

    return make


def cells(table) -> dict[str, dict[str, str]]:
    lines = csv.DictReader(io.StringIO(render([table], "csv")))
    return {f"{line['row']}/{line['column']}": line for line in lines}


def test_one_run_fills_every_threshold_of_table_1(compared):
    scores = {f"test/error_iou@0.{i}": i / 100 for i in range(1, 10)}
    scores |= {f"test/hard_recall@0.{i}": (10 - i) / 20 for i in range(1, 10)}
    run = made("a", "error_cascade/1/*/*", scores, ERRORS)
    table = compared("1", [run], [Experiment("errors", ("error_cascade/1/*/*",), ERRORS)])
    found = cells(table)
    for i in range(1, 10):
        assert float(found[f"t_0.{i}/error_pixel_miou"]["mean"]) == pytest.approx(i)
        assert float(found[f"t_0.{i}/hard_recall"]["mean"]) == pytest.approx(5 * (10 - i))
    assert float(found["t_0.7/error_pixel_miou"]["difference"]) == pytest.approx(7 - 27.34)
    text = render([table], "md")
    assert "| t = 0.7 |" in text
    assert "27.34 |" in text
    assert "7.00 (n=1) |" in text
    assert "-20.34 |" in text
    assert table.our_notes == ()


def test_a_threshold_that_was_not_scored_is_missing(compared):
    run = made("a", "error_cascade/2/*/miou", {"test/fused_miou@0.5": 0.6, "test/miou": 0.1}, DETAIL)
    found = cells(compared("2", [run], [Experiment("detail", ("error_cascade/2/*/miou",), DETAIL)]))
    assert float(found["t_0.5/miou"]["mean"]) == pytest.approx(60)
    assert found["t_0.6/miou"]["state"] == "missing (1 of 1)"


def test_the_rows_of_table_4_are_scores_of_one_run(compared):
    scores = {
        "test/error_iou@0.7": 0.27, "test/hard_error_ratio": 0.19, "test/hard_recall@0.7": 0.2,
        "test/semantic_miou": 0.78, "test/miou": 0.8, "test/error_iou@0.6": 0.9,
    }  # fmt: skip
    run = made("a", "error_cascade/4/*/deeplabv3plus", scores, DETAIL)
    found = cells(compared("4", [run], [Experiment("detail", ("error_cascade/4/*/deeplabv3plus",), DETAIL)]))
    rows = ("error_pixel_miou", "hard_ratio", "hard_recall", "original_miou", "ours_miou")
    ours = [float(found[f"{row}/deeplabv3plus"]["mean"]) for row in rows]
    assert ours == pytest.approx([27, 19, 20, 78, 80])
    assert float(found["ours_miou/deeplabv3plus"]["difference"]) == pytest.approx(0.1)
    assert found["ours_miou/dpc"]["state"] == "not run"


def test_classes_of_table_5_are_scored_on_val(compared, tmp_path):
    run = made("a", "error_cascade/5/ours/*", {"test/miou": 0.8}, DETAIL)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/per_class.csv").write_text(
        "class,iou,acc,pixels\nroad,0.9,0.95,7\ntraffic light,0.6,0.7,5\n"
    )
    table = compared("5", [run], [Experiment("detail", ("error_cascade/5/ours/*",), DETAIL)])
    found = cells(table)
    assert float(found["ours/road"]["mean"]) == pytest.approx(90)
    assert float(found["ours/traffic_light"]["mean"]) == pytest.approx(60)
    assert float(found["ours/miou"]["mean"]) == pytest.approx(80)
    assert (found["ssma/road"]["state"], found["dpc/road"]["state"]) == ("cited", "not run")
    assert any("trained on train and scored on val" in note for note in table.notes)


def test_a_shorter_stage_below_is_a_footnote_and_an_equal_one_is_not(compared):
    cell = "error_cascade/3/ours/miou"
    known = [Experiment("detail", (cell,), DETAIL)]
    assert compared("3", [made("a", cell, {"test/miou": 0.5}, DETAIL)], known).our_notes == ()
    short = on(on(SEMANTIC | {"trainer.max_steps": 500}, "ErrorPrediction", 60000), "Detail", 90000)
    table = compared("3", [made("a", cell, {"test/miou": 0.5}, short)], known)
    told = "parent_config.parent_config.trainer.max_steps=500 (experiment: 80000)"
    assert table.our_notes == (("a", told),)
    (line,) = [line for line in render([table], "md").splitlines() if line.startswith("| Ours ")]
    assert [part.strip() for part in line.strip("| ").split("|")][1:] == [
        "79.90",
        "50.00 (n=1) [a]",
        "-29.90",
        "stage below: 500 steps (80,000)",
    ]


def test_rows_that_stand_on_different_stages_are_not_compared_below(compared):
    """Bagging stands on a segmenter, ours on an error prediction: their lengths have nothing to do with each other."""
    bagging = on(SEMANTIC | {"trainer.max_steps": 500}, "Bagging", 90000)
    ours = on(on(SEMANTIC | {"trainer.max_steps": 500}, "ErrorPrediction", 700), "Detail", 90000)
    known = [
        Experiment("bagging", ("error_cascade/3/bagging/miou",), BAGGING),
        Experiment("detail", ("error_cascade/3/ours/miou",), DETAIL),
    ]
    runs = [
        made("a", "error_cascade/3/bagging/miou", {"test/miou": 0.5}, bagging),
        made("b", "error_cascade/3/ours/miou", {"test/miou": 0.6}, ours),
    ]
    assert len(compared("3", runs, known).our_notes) == 2


def test_columns_whose_stages_were_trained_unequally_are_refused(compared):
    cell = "error_cascade/4/*/{}"
    known = [Experiment("one", (cell.format("*"),), DETAIL)]
    short = on(on(SEMANTIC | {"trainer.max_steps": 500}, "ErrorPrediction", 60000), "Detail", 90000)
    runs = [
        made("a", cell.format("deeplabv3plus"), {"test/miou": 0.5}, DETAIL),
        made("b", cell.format("pspnet"), {"test/miou": 0.6}, short),
    ]
    key = r"parent_config\.parent_config\.trainer\.max_steps"
    with pytest.raises(HardpixError, match=rf"{key} \(80000 in .*deeplabv3plus, 500 in .*pspnet\)"):
        compared("4", runs, known)
    assert compared("4", runs, known, ["parent_config.parent_config.trainer.max_steps"]).our_notes


def test_an_experiment_outside_chains_knows_nothing_of_what_a_run_stands_on(compared):
    """Networks and all below come from the parent; they are compared among the runs alone."""
    alone = {key: value for key, value in DETAIL.items() if not key.startswith("parent_config")}
    alone |= {"parent_config": None, "backbone.name": "tiny", "head._target_": "hardpix.models.FCNHead"}
    known = [Experiment("detail", ("error_cascade/4/*/*",), alone)]
    runs = [made("a", "error_cascade/4/*/deeplabv3plus", {"test/miou": 0.5}, DETAIL)]
    assert compared("4", runs, known).our_notes == ()
    short = on(on(SEMANTIC | {"trainer.max_steps": 500}, "ErrorPrediction", 60000), "Detail", 90000)
    runs.append(made("b", "error_cascade/4/*/pspnet", {"test/miou": 0.5}, short))
    with pytest.raises(HardpixError, match=r"parent_config\.parent_config\.trainer\.max_steps"):
        compared("4", runs, known)


def test_an_evaluation_at_several_scales_stands_beside_its_run(compared):
    """The record of an evaluation has the factors of its run, another inference and cells of its own."""
    scales = DETAIL | {"inference._target_": "hardpix.ops.MultiScale"}
    known = [
        Experiment("detail", ("error_cascade/6/ours/miou",), DETAIL),
        Experiment("detail_ms", ("error_cascade/6/ours_ms/miou",), scales),
    ]
    told = {"evaluation.split": "test", "evaluation.weights": "last"}
    runs = [
        made("a", "error_cascade/6/ours/miou", {"test/miou": 0.43}, DETAIL, dataset="ade20k"),
        made("b", "error_cascade/6/ours_ms/miou", {"test/miou": 0.45}, scales | told, dataset="ade20k"),
    ]
    known = [Experiment(e.name, e.cells, {**e.factors, "test_weights": "last"}) for e in known]
    runs[0] = made("a", "error_cascade/6/ours/miou", {"test/miou": 0.43}, known[0].factors, dataset="ade20k")
    table = compared("6", runs, known)
    found = cells(table)
    assert [float(found[f"{row}/miou"]["mean"]) for row in ("ours", "ours_ms")] == pytest.approx([43, 45])
    assert table.our_notes == ()
    assert found["dilatednet/miou"]["state"] == "cited"


def test_a_column_with_a_threshold_needs_one_in_every_row(tmp_path):
    (table,) = published.tables("error_cascade/2")
    (tmp_path / "error_cascade").mkdir()
    column = '{column: miou, metric: "fused_miou@{threshold}"}'
    (tmp_path / "error_cascade/2.yaml").write_text(f"columns: [{column}]\nrows: [t_0.5]\n")
    with pytest.raises(
        ConfigError, match=r"row t_0\.5 needs a threshold, which \{threshold\} in a column's metric"
    ):
        layout(table, tmp_path)
    text = f"columns: [{column}]\nrows: [{{row: t_0.5, threshold: 0.5}}]\n"
    (tmp_path / "error_cascade/2.yaml").write_text(text)
    assert layout(table, tmp_path).rows[0].threshold == 0.5
