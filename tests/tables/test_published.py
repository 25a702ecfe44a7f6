"""The published tables: their data, their files in conf/table, and our runs beside them."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import shlex
from pathlib import Path

import pytest
import yaml

from hardpix.cli import main
from hardpix.cli.published_rows import experiments
from hardpix.config import published
from hardpix.config.catalog import conf_dir
from hardpix.config.published import layout, layouts, pattern_problem
from hardpix.record import SCHEMA, RunRecord, write
from hardpix.tables.compare import collect
from hardpix.tables.protocol_check import Experiment
from hardpix.tables.published_render import render
from hardpix.tables.reproduction import Asked, comparison
from hardpix.tables.significance import Options
from hardpix.types import ConfigError, HardpixError

TABLES = conf_dir() / "table"
SOURCE = Path(__file__).resolve().parents[3] / "shared" / "paper_results.yaml"

# The protocol of an imaginary row.
PROTOCOL = {
    "trainer.max_steps": None,
    "trainer.max_epochs": 120,
    "backbone.name": "resnet152",
    "backbone.pretrained": True,
    "data.batch_size": 8,
    "data.source._target_": "hardpix.data.NYUv2",
    "data.source.root": "data/nyudv2",
    "data.test_split": "test",
}
SMALL = {"trainer.max_steps": 400, "trainer.max_epochs": None}


def made(name, cells, score=0.4, seed=0, status="done", factors=None, metrics=None, **changes) -> RunRecord:
    values = {
        "schema": SCHEMA, "run_id": name, "status": status, "seed": seed, "parent": None, "started": "",
        "code": {}, "host": {}, "name": name, "dataset": "nyuv2",
        "frames": {"nyuv2/train": 795, "nyuv2/val": 654, "nyuv2/test": 654},
        "metrics": ({"test/miou": score} if metrics is None else metrics) if status == "done" else {},
        "factors": PROTOCOL | {"seed": seed, "run": name, "reproduces": [cells] if isinstance(cells, str) else cells}
        | (factors or {}),
    }  # fmt: skip
    return RunRecord(**(values | changes))


def experiment(*cells, name="one", free=(), **factors) -> Experiment:
    return Experiment(name, cells, PROTOCOL | {"reproduces": list(cells), "seed": 0} | factors, free)


@pytest.fixture
def compared(tmp_path):
    """``compared(table, records, experiments, ignore)``: what stands in the table for records on disk."""

    def make(table, records, known=None, ignore=()):
        for record in records:
            folder = tmp_path / record.run_id
            folder.mkdir(exist_ok=True)
            write(record, folder)
        known = [experiment(f"{table}/*/*")] if known is None else known
        (one,) = published.tables(table)
        return comparison(layout(one, TABLES), collect([tmp_path]) if records else [], known, ignore)

    return make


def cells(table) -> dict[str, dict[str, str]]:
    """By row/column, the lines of the CSV."""
    lines = csv.DictReader(io.StringIO(render([table], "csv")))
    return {f"{line['row']}/{line['column']}": line for line in lines}


def row_of(text: str, label: str) -> list[str]:
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()]
    (found,) = [line for line in lines if line[0] == label]
    return found


# --- the data -------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_printed():
    sample = {
        "lwm/I/p_ours_lt_r152/nyuv2_miou": 51.51,
        "lwm/I/d_cfn_r152/sunrgbd_mean_acc": None,
        "lwm/II/ls_ld_ms/miou": 47.51,
        "lwm/fig7/beta/miou_min": 49.78,
        "hl/1/cityscapes/crop": "769x769",
        "hl/2/bisenetv2_baseline/train": 42.9,
        "hl/2/hrnetv2p_w48_hl/miou": 82.17,
        "hl/9/upernet_r101/increase": 12.11,
        "hl/10/u2pl_hl/1_16": 72.62,
        "hl/fig5/ann/gain": 2.37,
        "hl/ssim/trainval_vs_train/ssim": 0.95,
        "error_cascade/1/t_0.7/hard_recall": 19.78,
        "error_cascade/4/hard_recall/deeplabv3plus": 19.79,
        "error_cascade/5/ours/miou": 82.88,
        "error_cascade/runtime/total/seconds": 0.71,
        "hn/3/segnet_cifar100/dresser": 0,
        "hn/5/conv1_4/hn_miou": 19.4,
    }
    for name, value in sample.items():
        paper, table, row, column = name.split("/")
        found = published.paper(paper).table(table).row(row).cells[column]
        assert (found, type(found)) == (value, type(value)), name


def test_the_data_is_the_whole_source():
    if not SOURCE.is_file():
        pytest.skip(f"no {SOURCE.name} beside this checkout")
    source = yaml.safe_load(SOURCE.read_text())["papers"]
    ours = {
        (paper, table.id, row.id): dict(row.cells)
        for paper in published.papers()
        for table in published.tables(paper)
        for row in table.rows.values()
    }
    wanted = {
        (paper, name, row): content["cells"]
        for paper, one in source.items()
        for name, table in one["tables"].items()
        for row, content in table["rows"].items()
    }
    assert ours == wanted
    assert sum(map(len, ours.values())) > 1100
    files = {path.relative_to(TABLES).with_suffix("").as_posix(): path for path in TABLES.rglob("*.yaml")}
    content = {name: yaml.safe_load(path.read_text()) for name, path in files.items()}
    for paper, one in source.items():
        tables = {name: {"id": name} | content[f"{paper}/{name}"]["published"] for name in one["tables"]}
        assert content[paper] | {"tables": tables} == one


def test_unknown_names_are_told_with_the_nearest():
    for name, said in {
        "lwn/II": r"paper named 'lwn' \(did you mean lwm\?\)",
        "hl/fig6": r"table of paper hl named 'fig6' \(did you mean fig5\?\)",
    }.items():
        with pytest.raises(HardpixError, match=said):
            published.tables(name)
    with pytest.raises(HardpixError, match=r"row of table lwm/II named 'lsld' \(did you mean ls_ld"):
        published.paper("lwm").table("II").row("lsld")


# --- conf/table -----------------------------------------------------------------------------------------------


def test_every_table_has_a_file_and_every_printed_cell_is_shown():
    files = {path.relative_to(TABLES).with_suffix("").as_posix() for path in TABLES.rglob("*.yaml")}
    assert files == {one.table.name for one in layouts(TABLES)} | set(published.papers())
    for one in layouts(TABLES):
        assert [row.id for row in one.rows] == list(one.table.rows), one.table.name
        assert set(one.table.columns) <= {column.id for column in one.columns}, one.table.name


@pytest.mark.parametrize("form", ["md", "latex", "csv", "html"])
@pytest.mark.parametrize("name", [one.table.name for one in layouts(TABLES)])
def test_every_table_renders_without_runs(name, form, compared):
    table = compared(name, [])
    text = render([table], form)
    assert "not run" in text
    for row in table.layout.table.rows.values():
        for value in row.cells.values():
            assert value is None or str(value) in text, (row.id, value)


def test_cited_rows_wait_for_no_run(compared):
    table = compared("lwm/I", [made("a", "lwm/I/d_acnet_r50/nyuv2_miou")])
    found = cells(table)
    assert found["d_cfn_r152/nyuv2_miou"]["state"] == "cited"
    assert found["p_ours_lt_r50/nyuv2_miou"]["state"] == "not run"
    assert (found["d_acnet_r50/nyuv2_miou"]["state"], found["d_acnet_r50/nyuv2_miou"]["n"]) == ("ok", "1")
    text = render([table], "md")
    assert (
        "methods that hardpix does not have: LW-RefineNet, RDFNet (PD), RDFNet, TRL, PAP (+SN), FCN, " in text
    )
    below = text.partition("| TRL")[2].splitlines()[1]
    assert below.count("| ") > 6
    assert "not run" not in below


def test_mistakes_in_a_file_are_named(tmp_path):
    (table,) = published.tables("hl/3")
    (tmp_path / "hl").mkdir()
    for text, said in {
        "colums: []": r"key 'colums' \(did you mean columns\?\)",
        "columns: [basline]": r"column of table hl/3 named 'basline' \(did you mean baseline",
        "rows: [pspnet_r5]": r"row of table hl/3 named 'pspnet_r5' \(did you mean pspnet_r50",
        "columns: [baseline, {column: gain, minus: [hl, baseline]}]": r"column gain refers to 'hl'",
        "rows: [{row: pspnet_r50, against: x}]": "row pspnet_r50 refers to 'x'",
        "cited: [pspnet_r5]": r"row of table hl/3 named 'pspnet_r5' \(did you mean pspnet_r50",
        "rows: [": "is no YAML",
    }.items():
        (tmp_path / "hl/3.yaml").write_text(text)
        with pytest.raises(ConfigError, match=said) as caught:
            layout(table, tmp_path)
        assert "hl/3.yaml" in str(caught.value)


def test_reservations_about_printed_values_are_notes(compared):
    text = render([compared("lwm/I", [])], "md")
    lines = text.splitlines()
    copied = next(line for line in lines if line.endswith("copied by the paper from the cited work"))
    mark = copied.removeprefix("- ").partition(":")[0]
    assert f"49.60 [{mark}]" in text
    assert "46.59 (46.50) [" in text
    assert "probable: row has 3 marks" in render([compared("lwm/II", [])], "md")
    assert "S = RGB only" in text  # the file's note, in place of the data's
    assert "average to 82.92" in render([compared("error_cascade/5", [])], "md")
    assert "doubtful as printed" in render([compared("hn/3", [])], "md")
    assert "the text of the ablation says 0.01" in render([compared("hl/7", [])], "md")


# --- ours -----------------------------------------------------------------------------------------------------


def test_mean_deviation_and_difference_over_seeds(compared):
    runs = [made(f"r{seed}", "lwm/II/ls/miou", score, seed) for seed, score in enumerate((0.40, 0.42, 0.44))]
    table = compared("lwm/II", runs)
    line = cells(table)["ls/miou"]
    assert float(line["mean"]) == pytest.approx(42.0)
    assert float(line["std"]) == pytest.approx(2.0)
    assert float(line["difference"]) == pytest.approx(42.0 - 46.59)
    assert (line["n"], line["state"], line["notes"]) == ("3", "ok", "")
    assert row_of(render([table], "md"), "Ls")[1:] == [
        "46.59", "42.00 ± 2.00 (n=3)", "-4.59", "as published",
    ]  # fmt: skip
    assert cells(table)["ls_ld/miou"]["state"] == "not run"
    assert "46.59 & 42.00 $\\pm$ 2.00 (n=3) & -4.59" in render([table], "latex")
    assert "<td class='number'>42.00 ± 2.00 (n=3)</td>" in render([table], "html")


def test_wildcards_name_several_cells(compared):
    scores = {"test/miou": 0.5, "test/pixel_acc": 0.7, "test/mean_acc": 0.6}
    table = compared("lwm/I", [made("a", "lwm/I/p_ours_lt_r152/nyuv2_*", metrics=scores)])
    found = cells(table)
    assert [float(found[f"p_ours_lt_r152/nyuv2_{m}"]["mean"]) for m in ("miou", "pixel_acc", "mean_acc")] == [
        pytest.approx(50), pytest.approx(70), pytest.approx(60),
    ]  # fmt: skip
    assert found["p_ours_lt_r152/sunrgbd_miou"]["state"] == "not run"
    assert found["p_ours_lt_r50/nyuv2_miou"]["state"] == "not run"
    one = "lwm/III/*/miou"
    assert cells(compared("lwm/III", [made("a", one)]))["c_bin_10/miou"]["n"] == "1"


def test_unfinished_runs_give_no_number(compared):
    runs = [
        made("a", "lwm/II/ls/miou", 0.4, 0),
        made("b", "lwm/II/ls/miou", seed=1, status="failed", error="boom"),
        made("c", "lwm/II/ls_ld/miou", status="running"),
        made("d", "lwm/II/ls_ld_ms/miou", math.nan),
        made("e", "lwm/II/ls_ld_cl/miou", metrics={"val/miou": 0.9}),
    ]
    text = render([compared("lwm/II", runs)], "md")
    assert row_of(text, "Ls")[2:4] == ["40.00 (n=1), failed (1 of 2) [a]", "-6.59"]
    assert row_of(text, "Ls + Ld")[2:4] == ["running [b]", "-"]
    assert row_of(text, "Ls + Ld + MS")[2:4] == ["nan", "-"]
    assert row_of(text, "Ls + Ld + CL")[2:4] == ["missing", "-"]  # the score of another split is none
    assert "- a: seed 1 failed: boom (" in text


def test_seeds_that_differ_otherwise_are_refused(compared):
    cell = "lwm/II/ls/miou"
    runs = [made("a", cell), made("b", cell, seed=1, factors={"optimizer.lr": 0.1})]
    known = [experiment(cell)]
    with pytest.raises(HardpixError, match=r"differ in optimizer\.lr \(absent in .*a, 0\.1 in .*b\)"):
        compared("lwm/II", runs, known)
    assert cells(compared("lwm/II", runs, known, ["optimizer.lr"]))["ls/miou"]["n"] == "2"
    with pytest.raises(HardpixError, match="same seed 0"):
        compared("lwm/II", [made("a", cell), made("b", cell)], known)


def test_departures_from_the_experiment_are_footnotes(compared):
    small = SMALL | {"backbone.pretrained": False}
    runs = [
        made("a", "lwm/II/ls/miou", factors=small),
        made("b", "lwm/II/ls_ld/miou", factors=small),
        made("c", "lwm/II/ls_ld_ms/miou", factors=small | {"method.beta": 0.2}),
    ]
    known = [
        experiment("lwm/II/ls/miou"),
        experiment("lwm/II/ls_ld/miou", name="two"),
        experiment("lwm/II/ls_ld_ms/miou", name="three", **{"method.beta": 0.1}),
    ]
    table = compared("lwm/II", runs, known)
    text = render([table], "md")
    shared = "backbone.pretrained=false (experiment: true), "
    steps = "trainer.max_epochs=null (experiment: 120), trainer.max_steps=400 (experiment: null)"
    assert table.our_notes == (
        ("a", shared + steps),
        ("b", f"{shared}method.beta=0.2 (experiment: 0.1), {steps}"),
    )
    assert row_of(text, "Ls")[2] == "40.00 (n=1) [a]"
    assert row_of(text, "Ls + Ld")[2] == "40.00 (n=1) [a]"
    assert row_of(text, "Ls + Ld + MS")[2] == "40.00 (n=1) [b]"
    assert f"- a: {shared}{steps}" in text
    assert "<sup>a</sup>" in render([table], "html")
    assert "$^{a}$ backbone.pretrained=false" in render([table], "latex")


def test_another_class_is_told_by_its_name_and_places_are_not(compared):
    run = made(
        "a", "lwm/II/ls/miou",
        factors={"data.source.root": "/elsewhere", "data.source.partial": True, "data.source._target_": "mine.Own"},
    )  # fmt: skip
    (note,) = compared("lwm/II", [run]).our_notes
    assert note[1] == "data.source._target_=mine.Own (experiment: hardpix.data.NYUv2)"


def test_the_nearest_of_several_experiments_counts(compared):
    cell = "lwm/II/ls/miou"
    known = [experiment(cell, **{"trainer.max_epochs": 7}), experiment("lwm/II/*/miou", name="two")]
    assert compared("lwm/II", [made("a", cell)], known).our_notes == ()


def test_keys_that_an_experiment_varies_by_design_are_no_departures(compared):
    known = [experiment("lwm/III/c_bin_*/miou", free=("method.bin_size",), **{"method.bin_size": 10})]
    runs = [
        made(f"r{size}", f"lwm/III/c_bin_{size}/miou", factors={"method.bin_size": size}) for size in (1, 50)
    ]
    assert compared("lwm/III", runs, known).our_notes == ()


def test_unequal_effort_is_refused(compared):
    runs = [
        made("a", "lwm/II/ls/miou", factors=SMALL),
        made("b", "lwm/II/ls_ld/miou", factors=SMALL | {"trainer.max_steps": 4000}),
    ]
    with pytest.raises(
        HardpixError, match=r"trainer\.max_steps \(400 in lwm/II/ls/miou, 4000 in lwm/II/ls_ld"
    ):
        compared("lwm/II", runs)
    told = compared("lwm/II", runs, ignore=["trainer.max_steps"])
    assert len(told.our_notes) == 2
    assert any(note.startswith("Ignored as asked: trainer.max_steps") for note in told.notes)


def test_one_full_row_beside_a_short_one_is_refused(compared):
    runs = [made("a", "lwm/II/ls/miou"), made("b", "lwm/II/ls_ld/miou", factors=SMALL)]
    with pytest.raises(HardpixError, match=r"trainer\.max_epochs \(120 in .*ls/miou, null in .*ls_ld/miou\)"):
        compared("lwm/II", runs)


def test_something_switched_off_in_one_row_is_refused(compared):
    on = {"data.train_transform.photometric._target_": "hardpix.data.Photometric"}
    known = [experiment("lwm/II/*/miou", **on)]
    off = {"data.train_transform.photometric": None}
    runs = [made("a", "lwm/II/ls/miou", factors=on), made("b", "lwm/II/ls_ld/miou", factors=off)]
    with pytest.raises(
        HardpixError, match=r"photometric\._target_ \(hardpix\.data\.Photometric in .*absent in"
    ):
        compared("lwm/II", runs, known)


def test_rows_may_differ_as_their_experiment_files_do(compared):
    known = [
        experiment("hl/3/pspnet_r50/*", **{"backbone.name": "resnet50"}),
        experiment("hl/3/pspnet_r101/*", **{"backbone.name": "resnet101"}),
    ]
    where = {"dataset": "ade20k", "frames": {"ade20k/train": 20210, "ade20k/test": 2000}}
    val = {"data.test_split": "val"}
    runs = [
        made(f"r{size}", f"hl/3/pspnet_r{size}/hl", factors=val | {"backbone.name": f"resnet{size}"}, **where)
        for size in (50, 101)
    ]
    known = [Experiment(one.name, one.cells, {**one.factors, **val}) for one in known]
    assert compared("hl/3", runs, known).our_notes == ()
    # Both on the same smaller network: equal effort, so it may be shown, and is told.
    tiny = [
        made(r.run_id, r.factors["reproduces"], factors=val | {"backbone.name": "tiny"}, **where)
        for r in runs
    ]
    assert len(compared("hl/3", tiny, known).our_notes) == 2


def test_cells_without_an_experiment_file_are_told_and_must_agree(compared):
    runs = [
        made("a", "lwm/II/ls/miou"),
        made("b", "lwm/II/ls_ld/miou", factors={"backbone.name": "resnet50"}),
    ]
    (note,) = compared("lwm/II", runs, []).our_notes
    assert note == ("a", "no published row fills this cell, so its settings were not checked")
    runs[1] = made("b", "lwm/II/ls_ld/miou", factors={"data.batch_size": 4})
    with pytest.raises(HardpixError, match=r"data\.batch_size \(8 in .*, 4 in"):
        compared("lwm/II", runs, [])


def test_a_run_on_another_data_set_is_left_out_and_told(compared):
    table = compared("lwm/II", [made("a", "lwm/II/ls/miou", dataset="synthetic", frames={})])
    assert cells(table)["ls/miou"]["state"] == "not run"
    (note,) = [note for note in table.notes if note.startswith("Left out")]
    assert "a stands for lwm/II/ls/miou, which is about nyuv2, but its data set is synthetic." in note
    table = compared("lwm/II", [made("a", "lwm/II/ls/miou", dataset="")])
    assert any("its data set is not named in its record" in note for note in table.notes)


def test_a_part_of_a_data_set_is_told_and_must_be_the_same_part(compared):
    few = {"frames": {"nyuv2/train": 12, "nyuv2/test": 10}}
    table = compared("lwm/II", [made("a", "lwm/II/ls/miou", **few)])
    assert table.our_notes == (("a", "12 of 795 training frames, 10 of 654 scored frames"),)
    with pytest.raises(HardpixError, match=r"scored frames \(10 in .*; training frames \(12 in"):
        compared("lwm/II", [made("a", "lwm/II/ls/miou", **few), made("b", "lwm/II/ls_ld/miou")])


def test_frames_that_were_not_scored_and_steps_that_were_not_made_are_named(compared):
    few = {"test/miou": 0.4, "test/frames": 10.0, "run/steps": 3.0, "run/planned_steps": 40.0}
    table = compared("lwm/II", [made("a", "lwm/II/ls/miou", metrics=few)])
    assert table.our_notes == (("a", "10 of 654 scored frames"),)
    assert any("Less than the full run" in note and "3 of 40 steps" in note for note in table.notes)
    with pytest.raises(HardpixError, match=r"scored frames \(10 in .*654 in"):
        compared("lwm/II", [made("a", "lwm/II/ls/miou", metrics=few), made("b", "lwm/II/ls_ld/miou")])


def test_runs_that_stand_for_nothing_are_counted(compared):
    table = compared("lwm/II", [made("a", "lwm/II/ls/miou"), made("b", []), made("c", "hl/6/ce/resnet50")])
    assert "2 of 3 runs stand for no cell of lwm/II." in table.notes


def test_one_run_cannot_be_two_columns_of_a_row(compared):
    run = made("a", "lwm/V/refinenet/*")
    with pytest.raises(HardpixError, match=r"two columns of lwm/V/refinenet .* ls_ld and ls_ld_fl"):
        compared("lwm/V", [run])


def cityscapes(name, cells, score=0.7, factors=None, **changes):
    own = {"data.test_split": "val", "data.source._target_": "hardpix.data.Cityscapes"} | (factors or {})
    frames = {"cityscapes/train": 2975, "cityscapes/val": 500, "cityscapes/test": 500}
    return made(name, cells, score, factors=own, dataset="cityscapes", **({"frames": frames} | changes))


def test_gains_are_differences_over_common_seeds(compared):
    runs = [
        cityscapes("b0", "hl/fig5/fcn/baseline", 0.70),
        cityscapes("b1", "hl/fig5/fcn/baseline", 0.72, seed=1),
        cityscapes("h0", "hl/fig5/fcn/hl", 0.71),
        cityscapes("h1", "hl/fig5/fcn/hl", 0.75, seed=1),
    ]
    known = [experiment("hl/fig5/fcn/*", **runs[0].factors)]
    line = cells(compared("hl/fig5", runs, known))["fcn/gain"]
    assert float(line["mean"]) == pytest.approx(2.0)  # of +1 and +3
    assert float(line["std"]) == pytest.approx(math.sqrt(2))
    assert float(line["published"]) == 1.85
    assert float(line["difference"]) == pytest.approx(0.15)
    alone = cells(compared("hl/fig5", [cityscapes("h2", "hl/fig5/ann/hl")], known))
    assert alone["ann/gain"]["state"] == "not run"


def test_scores_of_classes_and_gains_between_rows(compared, tmp_path):
    runs = [
        cityscapes("b", "hl/2/resnet18_baseline/*", 0.70),
        cityscapes("h", "hl/2/resnet18_hl/*", 0.73),
    ]
    for run in runs:
        (tmp_path / run.run_id).mkdir()
    (tmp_path / "h/per_class.csv").write_text(
        "class,iou,acc,pixels\nroad,0.9,0.95,7\ntraffic light,0.6,0.7,5\ntrain,nan,nan,0\n"
    )
    known = [experiment("hl/2/*/*", **runs[0].factors)]
    found = cells(compared("hl/2", runs, known))
    assert float(found["resnet18_hl/road"]["mean"]) == pytest.approx(90)
    assert float(found["resnet18_hl/traffic_light"]["mean"]) == pytest.approx(60)
    assert found["resnet18_hl/train"]["state"] == "nan (1 of 1)"
    assert found["resnet18_hl/wall"]["state"] == "missing (1 of 1)"
    assert found["resnet18_baseline/road"]["state"] == "missing (1 of 1)"
    assert float(found["resnet18_hl/gain"]["mean"]) == pytest.approx(3.0)
    assert found["resnet18_hl/gain"]["published"] == "1.71"
    assert found["resnet18_baseline/gain"]["state"] == "not run"
    # An accuracy is not an IoU.
    pre = made("n", "hn/3/segnet_hn/*")
    (tmp_path / "n").mkdir()
    (tmp_path / "n/per_class.csv").write_text("class,iou,acc,pixels\nwall,0.1,0.8,7\n")
    assert float(cells(compared("hn/3", [pre]))["segnet_hn/wall"]["mean"]) == pytest.approx(80)


def test_the_split_of_a_column_is_found_by_its_name(compared):
    cell = "hl/6/ce/resnet50"
    own = {"data.test_split": "test", "data.val_split": "val"}
    scores = {"test/miou": 0.1, "val/miou": 0.6}
    run = cityscapes("a", cell, metrics=scores, factors=own)
    line = cells(compared("hl/6", [run], [experiment(cell, **run.factors)]))["ce/resnet50"]
    assert float(line["mean"]) == pytest.approx(60)
    run = cityscapes("a", cell, metrics={"test/miou": 0.1, "val/miou": 0.6})
    line = cells(compared("hl/6", [run], [experiment(cell, **run.factors)]))["ce/resnet50"]
    assert float(line["mean"]) == pytest.approx(10)  # its test split is val


def test_the_range_of_a_sweep(compared):
    def swept(name, value, score, seed=0):
        return made(name, "lwm/fig7/alpha/*", score, seed, factors={"method.alpha": value})

    runs = [
        swept("a", 0.01, 0.40), swept("b", 0.01, 0.42, 1), swept("c", 1.0, 0.50), swept("d", 100.0, 0.45),
    ]  # fmt: skip
    table = compared("lwm/fig7", runs, [experiment("lwm/fig7/alpha/*", **{"method.alpha": 1.0})])
    found = cells(table)
    assert float(found["alpha/miou_min"]["mean"]) == pytest.approx(41)  # the mean of the seeds at 0.01
    assert float(found["alpha/miou_max"]["mean"]) == pytest.approx(50)
    assert float(found["alpha/miou_max"]["difference"]) == pytest.approx(50 - 50.93)
    assert found["alpha/miou_min"]["notes"] == "min over 3 value(s) of method.alpha: 0.01, 1.0, 100.0"
    assert found["beta/miou_min"]["state"] == "not run"


def test_increases_of_memory(compared):
    def run(name, column, memory):
        return cityscapes(name, f"hl/9/pspnet_r101/{column}", metrics={"cost/peak_memory_mb": memory})

    runs = [run("b", "baseline", 1000.0), run("h", "hl", 1020.0)]
    found = cells(compared("hl/9", runs, [experiment("hl/9/*/*", **runs[0].factors)]))
    assert float(found["pspnet_r101/increase"]["mean"]) == pytest.approx(2.0)
    assert float(found["pspnet_r101/increase"]["difference"]) == pytest.approx(0.6)
    assert float(found["pspnet_r101/hl"]["mean"]) == 1020.0


def test_settings_stand_beside_printed_settings(compared):
    run = cityscapes(
        "a", "hl/1/cityscapes/*",
        factors={
            "data.batch_size": 8, "trainer.max_steps": 400, "data.train_transform.crop": [769, 769],
            "inference._target_": "hardpix.ops.SlidingWindow",
        },
    )  # fmt: skip
    text = render([compared("hl/1", [run], [experiment("hl/1/*/*", **run.factors)])], "md")
    assert row_of(text, "Cityscapes")[1:] == [
        "8", "8", "same", "40000", "400", "differs", "769x769", "769x769", "same", "sliding", "sliding", "same",
        "as published",
    ]  # fmt: skip


# --- names, files, commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("lwm/II/ls/miou", ""),
        ("lwm/I/*/nyuv2_*", ""),
        ("hl/9/pspnet_r101/baseline", ""),
        ("lwm/II/ls", "does not name cells as PAPER/TABLE/ROW/COLUMN"),
        ("lwm/II/lss/miou", "did you mean lwm/II/ls/miou"),
        ("lwm/VI/ls/miou", "did you mean lwm/V"),
        ("hl/3/pspnet_r50/gain", "names no published cell"),
        ("lwm/II/*", "does not name cells"),
    ],
)
def test_names_of_cells(pattern, said):
    problem = pattern_problem(pattern, TABLES)
    assert said in problem
    assert bool(problem) == bool(said)


def test_a_misspelt_cell_is_refused_before_training(tiny):
    from hardpix.config.compose import validate

    validate(tiny("reproduces=[lwm/II/ls/miou]"))
    with pytest.raises(ConfigError, match=r"reproduces: 'lwm/II/lz/miou' names no published cell"):
        validate(tiny("reproduces=[lwm/II/lz/miou]"))


def test_rows_are_composed_only_where_they_fill_a_cell(monkeypatch):
    from hardpix.cli import published_rows
    from hardpix.config.compose import compose

    composed = []
    monkeypatch.setattr(published_rows, "compose", lambda given: composed.append(given) or compose(given))
    (one,) = experiments(["lwm/III/c_bin_50/miou"])
    (given,) = composed
    assert given[0] == "experiment=lwm/nyuv2"
    assert (one.name, one.cells, one.free) == ("lwm/III_bin_50", ("lwm/III/c_bin_50/miou",), ())
    assert one.factors["method.bin_size"] == 50
    (one,) = experiments(["hn/4/none/epoch_5"])
    assert one.cells == ("hn/4/none/epoch_*",)
    assert set(one.free) == {"trainer.max_epochs"}


def test_the_command(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    write(made("a", "hl/7/c_0.1/resnet18", dataset="synthetic", frames={}), tmp_path / "a")
    assert main(["table", "--published", "hl/7", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "### hl/7: Hyper-parameter c" in out
    assert "which is about cityscapes, but its data set is synthetic" in out
    assert main(["table", "--published", "list"]) == 0
    assert "    rows     baseline c_0.01 c_0.1 c_0.5\n" in capsys.readouterr().out
    page = tmp_path / "hn.html"
    assert main(["table", "--published", "hn", "--format", "html", "--out", str(page)]) == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert page.read_text().count("<h2>hn/") == 5
    assert main(["table", "--published", "hn/9"]) == 2
    assert "no table of paper hn named '9'" in capsys.readouterr().err
    write(made("a", "hl/7/c_0.2/resnet18"), tmp_path / "a")
    assert main(["table", "--published", "hl/8", str(tmp_path)]) == 2
    assert "'hl/7/c_0.2/resnet18' names no published cell" in capsys.readouterr().err


def test_the_layer_of_reports_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from hardpix.cli import main; main(['table', '--published', 'lwm/II']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0


# --- what is missing, our own baseline, protocol, classes -------------------------------------------------------


def asked(**given):
    return Asked(**({"options": Options(200, 1)} | given))


def test_missing_cells_carry_the_command_that_fills_them(tmp_path):
    from hardpix.config.compose import compose, validate
    from hardpix.config.rows import fill

    (one,) = published.tables("lwm/V")
    made_table = comparison(layout(one, TABLES), [], asked=asked(fill=fill))
    text = render([made_table], "md")
    assert "not run [c1]" in text
    commands = [command for note in made_table.fill for command in note.commands]
    assert len(commands) == len(set(commands)) > 5
    assert f"- c1: not run: `{commands[0]}`" in text
    for told in commands[:3]:
        words = shlex.split(told)
        assert words[:2] == ["hardpix", "train"]
        cfg = compose(words[2:])
        validate(cfg)
        (row,) = {cell.split("/")[2] for cell in cfg.reproduces if cell.startswith("lwm/V/")}
        assert row in {line.row.id for _, lines in made_table.parts for line in lines}
    told_by_cell = [line["commands"] for line in cells(made_table).values()]
    assert all(command == "-" or command.startswith("hardpix ") for command in told_by_cell)
    page = render([made_table], "html")
    assert f"<code>{html.escape(commands[0])}</code>" in page
    assert "<sup title='not run: hardpix train experiment=" in page


def test_failed_cells_say_why(compared):
    runs = [made("a", "lwm/II/ls/miou", status="failed", error="OutOfMemoryError: 2 GiB\nmore")]
    table = compared("lwm/II", runs)
    assert row_of(render([table], "md"), "Ls")[2] == "failed [a]"
    (note,) = table.our_notes
    assert note[1].startswith("seed 0 failed: OutOfMemoryError: 2 GiB (")


def test_our_own_baseline_and_the_best_of_ours(compared, tmp_path):
    scores = {"ls": (0.40, 0.44), "ls_ld": (0.43, 0.45), "ls_ld_ms": (0.41, 0.42), "ls_ld_cl": (0.50, None)}
    runs = [
        made(f"{row}{seed}", f"lwm/II/{row}/miou", score or 0.1, seed, status="done" if score else "failed")
        for row, pair in scores.items()
        for seed, score in enumerate(pair)
    ]
    compared("lwm/II", runs)
    (one,) = published.tables("lwm/II")
    found = collect([tmp_path])
    known = [experiment("lwm/II/*/miou")]
    table = comparison(layout(one, TABLES), found, known, asked=asked(relative_to="Ls"))
    text = render([table], "md")
    assert "IoU (%) Δ Ls" in text.splitlines()[2]
    assert row_of(text, "Ls")[2:5] == ["42.00 ± 2.83 (n=2)", "-4.59", "-"]
    assert row_of(text, "Ls + Ld")[2:5] == ["**44.00 ± 1.41 (n=2)**", "-3.25", "+2.00 ± 1.41"]
    assert row_of(text, "Ls + Ld + CL")[2].startswith("50.00 (n=1), failed")  # incomplete: not the best
    assert "\\underline{42.00 $\\pm$ 2.83 (n=2)}" in render([table], "latex")
    tested = comparison(layout(one, TABLES), found, known, asked=asked(against="row=ls"))
    (entry,) = tested.parts[0][1][1].entries
    assert entry.apart.test.delta == pytest.approx(2.0)
    assert "+2.00 |" in render([tested], "md")  # two seeds and no counts of images: neither interval nor p
    assert any("without images, because" in note for note in tested.notes)
    content = json.loads(render([tested], "json"))
    assert content["schema"] == 2
    (cell,) = content["tables"][0]["parts"][0]["rows"][1]["cells"]
    assert cell["ours"]["mean"] == pytest.approx(44.0)
    assert cell["apart"]["test"]["seeds"] == [0, 1]
    assert cell["published"] == 47.25
    with pytest.raises(
        HardpixError, match=r"--against: lwm/II has no one row or column 'lz' \(known: ls, ls_ld, "
    ):
        comparison(layout(one, TABLES), found, known, asked=asked(against="lz"))
    for form in ("md", "csv", "json", "html", "latex"):
        again = comparison(layout(one, TABLES), found[::-1], known, asked=asked(against="ls"))
        assert render([again], form) == render([tested], form)


def test_a_column_can_be_the_baseline(compared, tmp_path):
    runs = [
        cityscapes("b0", "hl/fig5/fcn/baseline", 0.70),
        cityscapes("h0", "hl/fig5/fcn/hl", 0.71),
    ]
    compared("hl/fig5", runs, [experiment("hl/fig5/fcn/*", **runs[0].factors)])
    (one,) = published.tables("hl/fig5")
    known = [experiment("hl/fig5/fcn/*", **runs[0].factors)]
    table = comparison(layout(one, TABLES), collect([tmp_path]), known, asked=asked(relative_to="baseline"))
    line = {f"{x['row']}/{x['column']}": x for x in csv.DictReader(io.StringIO(render([table], "csv")))}
    assert float(line["fcn/hl"]["apart"]) == pytest.approx(1.0)
    assert line["fcn/baseline"]["apart"] == line["fcn/gain"]["apart"] == "nan"


def test_the_protocol_is_a_column(compared):
    few = {
        "factors": SMALL | {"backbone.pretrained": False, "data.train_transform.crop": [144, 192], "x.y": 1},
        "frames": {"nyuv2/train": 795, "nyuv2/test": 10},
    }
    known = [experiment("lwm/II/*/miou", **{"data.train_transform.crop": [480, 640]})]
    table = compared("lwm/II", [made("a", "lwm/II/ls/miou", **few)], known)
    told = "crop 144x192 (480x640), 400 steps (120 epochs), from scratch, 10 scored frames (654), and 1 other setting"
    assert row_of(render([table], "md"), "Ls")[-1] == told
    assert row_of(render([table], "md"), "Ls + Ld")[-1] == "-"
    assert cells(table)["ls/miou"]["protocol"] == told


def test_classes_beside_the_mean(compared, tmp_path):
    compared("lwm/II", [made("a", "lwm/II/ls/miou")])
    (tmp_path / "a/per_class.csv").write_text("class,iou,acc,pixels\nwall,0.9,0.95,7\nbed,0.5,0.7,5\n")
    (one,) = published.tables("lwm/II")
    table = comparison(
        layout(one, TABLES), collect([tmp_path]), [experiment("lwm/II/*/*")], asked=asked(per_class=True)
    )
    text = render([table], "md")
    assert row_of(text, "Ls")[1:6] == ["46.59", "40.00 (n=1)", "-6.59", "90.00 (n=1)", "50.00 (n=1)"]
    assert "wall (%) hardpix | bed (%) hardpix" in " ".join(text.split())
