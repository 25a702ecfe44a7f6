"""HN's tables from hand-written records: initialisations beside each other, lengths, fixed layers, class accuracies."""

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
from hardpix.types import HardpixError

TABLES = conf_dir() / "table"
FRAMES = {"nyuv2": {"train": 795, "test": 654}, "camvid": {"train": 367, "val": 101, "test": 233}}
NONE = {
    "method._target_": "hardpix.methods.Baseline", "trainer.max_steps": 40000, "data.batch_size": 1, "freeze": [],
    "data.source._target_": "hardpix.data.NYUv2", "init_from": None, "parent_config": None,
}  # fmt: skip


def started(source, steps, **own):
    """The factors of a run that starts from one on another data set."""
    start = NONE | {"data.source._target_": f"hardpix.data.{source}", "trainer.max_steps": steps}
    below = {f"parent_config.{key}": value for key, value in start.items() if key != "parent_config"}
    return {**NONE, **below, "init_from": "RUN", **own}


HN, CIFAR = started("HN", 200000), started("CIFAR100", 40000)


def made(name, cell, metrics, factors, dataset="nyuv2") -> RunRecord:
    return RunRecord(
        schema=SCHEMA, run_id=name, status="done", seed=0, parent=None, started="", code={}, host={}, name=name,
        dataset=dataset, frames={f"{dataset}/{role}": count for role, count in FRAMES[dataset].items()},
        metrics=metrics, factors=factors | {"seed": 0, "run": name, "reproduces": [cell]},
    )  # fmt: skip


@pytest.fixture
def compared(tmp_path):
    def make(table, records, known):
        for record in records:
            (tmp_path / record.run_id).mkdir(exist_ok=True)
            write(record, tmp_path / record.run_id)
        (one,) = published.tables(f"hn/{table}")
        return comparison(layout(one, TABLES), collect([tmp_path]), known)

    return make


def cells(table) -> dict[str, dict[str, str]]:
    lines = csv.DictReader(io.StringIO(render([table], "csv")))
    return {f"{line['row']}/{line['column']}": line for line in lines}


def scores(accuracy, mean, miou):
    return {"test/pixel_acc": accuracy, "test/mean_acc": mean, "test/miou": miou}


def known(**factors):
    return [Experiment(cell, (cell.replace("__", "/") + "/*",), value) for cell, value in factors.items()]


def test_initialisations_stand_beside_the_printed_numbers(compared):
    runs = [
        made("a", "hn/2/none/*", scores(0.4, 0.15, 0.09), NONE),
        made("b", "hn/2/height10_normals/*", scores(0.5, 0.25, 0.2), HN),
    ]
    table = compared("2", runs, known(hn__2__none=NONE, hn__2__height10_normals=HN))
    found = cells(table)
    assert [float(found[f"none/{column}"]["mean"]) for column in ("global_acc", "avg_acc", "miou")] == [
        pytest.approx(value) for value in (40, 15, 9)
    ]
    assert float(found["height10_normals/miou"]["difference"]) == pytest.approx(20 - 18.24)
    assert found["height/miou"]["state"] == "not run"
    assert table.our_notes == ()  # all at the protocol
    (line,) = [line for line in render([table], "md").splitlines() if "10 bins + normals" in line]
    for text in ("52.92", "26.16", "18.24", "50.00 (n=1)", "20.00 (n=1)", "+1.76"):
        assert text in line


def test_a_shorter_pre_training_is_told_and_not_compared_with_another_kind(compared):
    """CIFAR-100's 40,000 steps have nothing to do with those of HN labels; two lengths on HN labels do."""
    short = started("HN", 500)
    experiments = known(hn__3__segnet_cifar100=CIFAR, hn__3__segnet_hn=HN, hn__3__segnet_none=NONE)
    runs = [
        made("a", "hn/3/segnet_none/*", scores(0.4, 0.1, 0.1), NONE),
        made("b", "hn/3/segnet_cifar100/*", scores(0.3, 0.1, 0.1), CIFAR),
        made("c", "hn/3/segnet_hn/*", scores(0.5, 0.1, 0.1), short),
    ]
    table = compared("3", runs, experiments)
    assert table.our_notes == (("a", "parent_config.trainer.max_steps=500 (experiment: 200000)"),)
    runs = [
        made("a", "hn/2/height/*", scores(0.4, 0.1, 0.1), HN),
        made("b", "hn/2/height10_normals/*", scores(0.4, 0.1, 0.1), short),
        made("c", "hn/2/none/*", scores(0.4, 0.1, 0.1), NONE),
    ]
    rows = known(hn__2__height=HN, hn__2__height10_normals=HN, hn__2__none=NONE)
    with pytest.raises(HardpixError, match=r"parent_config\.trainer\.max_steps \(200000 in .*, 500 in"):
        compared("2", runs, rows)


def test_a_row_without_its_pre_training_is_no_row_with_it(compared):
    runs = [made("a", "hn/2/height/*", scores(0.4, 0.1, 0.1), NONE)]
    ((_, told),) = compared("2", runs, known(hn__2__height=HN)).our_notes
    assert "init_from=null (experiment: RUN)" in told
    assert "parent_config.data.source._target_=absent (experiment: hardpix.data.HN)" in told


def test_class_accuracies_of_table_3_and_its_doubtful_rows(compared, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/per_class.csv").write_text(
        "class,iou,acc,pixels\nwall,0.5,0.8,9\nbookshelf,0.2,0.3,4\ndresser,0.0,0.125,3\n"
    )
    run = made("a", "hn/3/deeplab_hn/*", scores(0.6, 0.5, 0.3), HN)
    table = compared("3", [run], known(hn__3__deeplab_hn=HN))
    found = cells(table)
    ours = [
        float(found[f"deeplab_hn/{column}"]["mean"]) for column in ("wall", "bookshelf", "dresser", "miou")
    ]
    assert ours == pytest.approx([80, 30, 12.5, 30])
    assert found["deeplab_hn/sofa"]["state"].startswith("missing")
    doubted = [line.row.id for _, lines in table.parts for line in lines if line.entries[0].published_marks]
    assert doubted == ["deeplab_none", "deeplab_imagenet", "deeplab_hn"]
    assert "doubtful as printed" in render([table], "md")


def test_each_number_of_epochs_is_a_column(compared):
    lengths = {5: 0.8, 10: 0.82, 50: 0.85, 100: 0.86}
    factors = {
        n: started("HN", 200000, **{"trainer.max_steps": None, "trainer.max_epochs": n}) for n in lengths
    }
    runs = [
        made(f"r{n}", f"hn/4/hn/epoch_{n}", scores(value, 0.1, 0.1), factors[n], "camvid")
        for n, value in lengths.items()
    ]
    experiment = Experiment("camvid_hn", ("hn/4/hn/epoch_*",), factors[100], ("trainer.max_epochs",))
    table = compared("4", runs, [experiment])
    found = cells(table)
    assert [float(found[f"hn/epoch_{n}"]["mean"]) for n in lengths] == pytest.approx([80, 82, 85, 86])
    assert float(found["hn/epoch_5"]["difference"]) == pytest.approx(80 - 78.98)
    assert table.our_notes == ()


def test_fixed_layers_have_a_block_for_each_initialisation(compared):
    fixed = started("HN", 200000, freeze=["conv1", "conv2"])
    imagenet = NONE | {"freeze": ["conv1", "conv2"]}
    runs = [
        made("a", "hn/5/conv1_2/hn_*", scores(0.5, 0.3, 0.2), fixed),
        made("b", "hn/5/conv1_2/imagenet_*", scores(0.4, 0.2, 0.1), imagenet),
        made("c", "hn/5/conv1_3/hn_*", scores(0.4, 0.2, 0.1), fixed),
    ]
    table = compared(
        "5",
        runs,
        [
            Experiment("a", ("hn/5/conv1_2/hn_*",), fixed),
            Experiment("b", ("hn/5/conv1_2/imagenet_*",), imagenet),
            Experiment("c", ("hn/5/conv1_3/hn_*",), fixed | {"freeze": ["conv1", "conv2", "conv3"]}),
        ],
    )
    found = cells(table)
    assert float(found["conv1_2/hn_global_acc"]["difference"]) == pytest.approx(50 - 54.0)
    assert float(found["conv1_2/imagenet_miou"]["difference"]) == pytest.approx(10 - 17.5)
    assert found["conv1/hn_miou"]["state"] == "not run"
    ((_, told),) = table.our_notes  # the one that left conv3 free
    assert told.startswith('freeze=["conv1", "conv2"] (experiment: ')
