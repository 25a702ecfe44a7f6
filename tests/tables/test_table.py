from __future__ import annotations

import argparse
import csv
import io
import json
import math
import random
import re
import subprocess
import sys
import time

import pytest

from hardpix.cli import main
from hardpix.cli.tables import add_arguments
from hardpix.cli.tables import table_of_runs as run_command
from hardpix.record import SCHEMA, RunRecord, write
from hardpix.scores import brief
from hardpix.tables.compare import Run, collect
from hardpix.tables.render import best_rows, render
from hardpix.tables.table import combined, table
from hardpix.types import HardpixError

ROWS = ["loss._target_"]
COLUMNS = ["test/miou", "time/step_ms"]


def made(directory, loss="CrossEntropy", seed=0, miou=0.4, status="done", factors=None, **changes) -> Run:
    values = {
        "factors": {
            "loss._target_": f"hardpix.losses.{loss}",
            "trainer.steps": 100,
            "seed": seed,
            "run": directory,
        }
        | (factors or {}),
        "metrics": {"test/miou": miou, "time/step_ms": 10.0} if status == "done" else {"test/miou": 0.99},
        "code": {"commit": "abc", "dirty": "false"},
        "host": {"device": "cpu"},
    }
    fixed = {
        "schema": SCHEMA,
        "run_id": directory,
        "seed": seed,
        "parent": None,
        "started": "",
        "status": status,
    }
    return Run(directory, RunRecord(**(fixed | values | changes)))


def golden_runs() -> list[Run]:
    return [
        made("a0", "CrossEntropy", 0, 0.40, metrics={"test/miou": 0.40, "time/step_ms": 10.0}),
        made("a1", "CrossEntropy", 1, 0.42, metrics={"test/miou": 0.42, "time/step_ms": 14.0}),
        made("a2", "CrossEntropy", 2, 0.44, metrics={"test/miou": 0.44, "time/step_ms": 12.0}),
        made("b0", "Focal", 0, 0.5, factors={"loss.gamma": 2.0}),
        made("b1", "Focal", 1, status="failed", error="boom", factors={"loss.gamma": 2.0}),
        made("b2", "Focal", 2, status="failed", error="boom", factors={"loss.gamma": 2.0}),
        made("c0", "A|B_%&", 0, math.nan),
        made("c1", "A|B_%&", 1, 0.5),
        made("c2", "A|B_%&", 2, 0.5, metrics={"time/step_ms": 15.0}),
        made("d0", "OHEM", 0, status="running"),
        made("d1", "OHEM", 1, status="running"),
    ]


GOLDEN = [
    ["loss", "test/miou (%)", "time/step_ms", "n"],
    ["A¦B_%&", "missing (1 of 3), nan (1 of 3) [1]", "**11.67 ± 2.887**", "3"],
    ["CrossEntropy", "42.00 ± 2.00", "12 ± 2", "3"],
    ["Focal", "50.00 (n=1), failed (2 of 3) [2]", "10 (n=1), failed (2 of 3) [2]", "1"],
    ["OHEM", *["missing (1 of 3), running (2 of 3) [3,4]"] * 2, "0"],
]
GOLDEN_NOTES = """
- 1: c2 has no test/miou
- 2: seeds 1, 2 failed: boom
- 3: seed 2 not run (and the other settings of d0/config.yaml): `hardpix train seed=2`
- 4: seeds 0, 1 running since an unknown time
"""


def cells(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.strip().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("| ").replace("\\|", "¦").split("|")] for line in lines]


def test_markdown_is_padded_and_says_what_is_lacking():
    text = render(table(golden_runs(), ROWS, COLUMNS), "md")
    header, rule, *body = cells(text)
    assert [header, *body] == GOLDEN
    assert all(set(cell) <= {"-", ":"} for cell in rule)
    grid, _, notes = text.partition("\n\n")
    assert len({len(line) for line in grid.splitlines()}) == 1
    assert r"A\|B_%&" in text
    assert notes == GOLDEN_NOTES.lstrip()


def test_latex_is_escaped():
    expected = r"""\begin{tabular}{lrrr}
\toprule
loss & test/miou (\%) & time/step\_ms & n \\
\midrule
A\textbar{}B\_\%\& & missing (1 of 3), nan (1 of 3)$^{1}$ & \textbf{11.67 $\pm$ 2.887} & 3 \\
CrossEntropy & 42.00 $\pm$ 2.00 & 12 $\pm$ 2 & 3 \\
Focal & 50.00 (n=1), failed (2 of 3)$^{2}$ & 10 (n=1), failed (2 of 3)$^{2}$ & 1 \\
OHEM & missing (1 of 3), running (2 of 3)$^{3,4}$ & missing (1 of 3), running (2 of 3)$^{3,4}$ & 0 \\
\bottomrule
\end{tabular}
\par\raggedright\footnotesize
$^{1}$ c2 has no test/miou\par
$^{2}$ seeds 1, 2 failed: boom\par
$^{3}$ seed 2 not run (and the other settings of d0/config.yaml): \texttt{hardpix train seed=2}\par
$^{4}$ seeds 0, 1 running since an unknown time\par
"""
    assert render(table(golden_runs(), ROWS, COLUMNS), "latex") == expected


def test_csv_is_unrounded_and_machine_readable():
    text = render(table(golden_runs(), ROWS, ["test/miou"]), "csv")
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [line["loss"] for line in lines] == ["A|B_%&", "CrossEntropy", "Focal", "OHEM"]
    entropy, focal = lines[1], lines[2]
    assert float(entropy["test/miou mean"]) == pytest.approx(0.42, abs=1e-15)
    assert float(entropy["test/miou std"]) == pytest.approx(0.02, abs=1e-15)  # n - 1, not n
    assert (entropy["test/miou n"], entropy["test/miou state"]) == ("3", "ok")
    assert focal == {
        "loss": "Focal",
        "test/miou mean": "0.5",
        "test/miou std": "nan",
        "test/miou n": "1",
        "test/miou state": "failed (2 of 3)",
        "protocol": "-",
        "lacking": "seeds 1, 2 failed: boom",
        "commands": "-",
    }
    assert lines[3]["commands"] == "hardpix train seed=2"
    assert all(value != "" for line in lines for value in line.values())


def test_a_row_that_stands_for_a_seed_lacks_no_other():
    runs = [made("a0", seed=0), made("a1", seed=1, status="failed", error="x"), made("b0", "Focal", seed=0)]
    shown = table(runs, [*ROWS, "seed"], COLUMNS, combinations=True)
    assert [(row.labels[1], row.cells[0].states) for row in shown.rows] == [
        ("0", ()), ("1", (("failed", 1),)), ("0", ()), ("1", (("missing", 1),)),
    ]  # fmt: skip
    assert [lack.seeds for row in shown.rows for lack in row.lacks] == [(1,), (1,)]


def test_one_seed_has_no_deviation_and_single_states_stay_short():
    runs = [
        made("a"),
        made("b", "Focal", status="failed"),
        made("c", "OHEM", status="running"),
        made("d", "Max", metrics={"time/step_ms": 20000.0}),
    ]
    body = cells(render(table(runs, ROWS, COLUMNS), "md"))[2:]
    assert body == [
        ["CrossEntropy", "40.00", "**10**", "1"],
        ["Focal", "failed [1]", "failed [1]", "0"],
        ["Max", "missing [2]", "20000", "1"],
        ["OHEM", "running [3]", "running [3]", "0"],
    ]


def test_html_escapes_and_marks_the_best_complete_row():
    runs = [made("a", miou=0.4), made("b", "<b>", miou=0.6), made("c", "Focal", status="failed")]
    made_table = table(runs, ROWS, ["test/miou"])
    text = render(made_table, "html")
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert "<td class='number best'>60.00</td>" in text
    title = "seed 0 failed: its record gives no reason"
    assert f"<td class='number lacking'>failed<sup title='{title}'>1</sup></td>" in text
    assert f"<p class=note><sup>1</sup> {title}</p>" in text
    assert best_rows(made_table, 0) == {0}  # "<b>" sorts first
    slow = [made("a", metrics={"time/step_ms": 2.0}), made("b", "OHEM", metrics={"time/step_ms": 1.0})]
    assert best_rows(table(slow, ROWS, ["time/step_ms"]), 0) == {1}


def test_rows_are_refused_when_an_undeclared_factor_differs():
    runs = [made("a"), made("b", "OHEM", factors={"trainer.steps": 200, "optimizer.lr": 0.1})]
    with pytest.raises(HardpixError) as caught:
        table(runs, ROWS, COLUMNS)
    message = str(caught.value)
    assert "trainer.steps (100 in a, 200 in b)" in message
    assert "optimizer.lr (absent in a, 0.1 in b)" in message
    assert "loss" not in message
    assert "\n" not in message


def test_declared_or_ignored_differences_are_accepted_and_told():
    runs = [made("a"), made("b", factors={"trainer.steps": 200})]
    declared = table(runs, ["loss._target_", "trainer.steps"], ["test/miou"])
    assert [row.labels for row in declared.rows] == [("CrossEntropy", "100"), ("CrossEntropy", "200")]
    runs = [made("a"), made("b", seed=1, factors={"trainer.steps": 200})]
    ignored = table(runs, ROWS, ["test/miou"], ignore=["trainer"])
    assert ignored.rows[0].cells[0].n == 2
    assert ignored.notes == ("Ignored as asked: trainer.steps (100 in a, 200 in b).",)


def test_a_long_list_of_differences_is_shortened():
    runs = [made(f"r{i}", seed=i, factors={f"x.k{j}": i for j in range(12)}) for i in range(5)]
    with pytest.raises(HardpixError, match=r"2 more values.*4 more keys"):
        table(runs, ROWS, COLUMNS)


def test_parameters_of_a_declared_target_differ_between_rows_but_not_within_one():
    ohem = {"loss.threshold": 0.7}
    runs = [made("a"), made("b", "OHEM", 0, factors=ohem), made("c", "OHEM", 1, factors=ohem)]
    assert [row.n for row in table(runs, ROWS, COLUMNS).rows] == [1, 2]
    runs.append(made("d", "OHEM", 2, factors={"loss.threshold": 0.9}))
    with pytest.raises(HardpixError, match=r"loss.threshold \(0.7 in b, 0.9 in d\)"):
        table(runs, ROWS, COLUMNS)
    # A key that merely starts with the same letters is not below the declared group.
    with pytest.raises(HardpixError, match="loss_scale"):
        table([made("a"), made("b", "OHEM", factors={"loss_scale": 2})], ROWS, COLUMNS)


def test_a_declared_group_is_split_and_labelled_by_what_differs():
    runs = [
        made("a"),
        made("b", "OHEM", factors={"loss.threshold": 0.7, "loss.keep": 5}),
        made("c", "OHEM", factors={"loss.threshold": 0.9, "loss.keep": 5}),
    ]
    found = table(runs, ["loss"], COLUMNS)
    names = [row.labels[0] for row in found.rows]
    assert names == ["CrossEntropy", "OHEM (threshold=0.7)", "OHEM (threshold=0.9)"]


def test_equal_names_from_different_packages_are_told_apart():
    runs = [made("a", "OHEM"), made("b", factors={"loss._target_": "mine.OHEM"})]
    names = [row.labels[0] for row in table(runs, ROWS, COLUMNS).rows]
    assert names == ["hardpix.losses.OHEM", "mine.OHEM"]


def test_a_factor_that_some_rows_lack():
    runs = [
        made("a"),
        made("b", "HL", factors={"method.alpha": 2}),
        made("c", "HL", factors={"method.alpha": 10}),
    ]
    found = table(runs, ["method.alpha", *ROWS], COLUMNS)
    assert found.factors == ("alpha", "loss")
    assert [row.labels for row in found.rows] == [("2", "HL"), ("10", "HL"), ("-", "CrossEntropy")]


def test_two_finished_runs_of_one_seed_are_refused():
    with pytest.raises(HardpixError, match=r"first and second .* same seed 0"):
        table([made("first"), made("second")], ROWS, COLUMNS)


def test_a_repeated_attempt_replaces_the_failed_one_and_is_told():
    runs = [made("try1", status="failed"), made("try2", miou=0.5), made("try3", status="running")]
    found = table(runs, ROWS, ["test/miou"])
    cell = found.rows[0].cells[0]
    assert (cell.mean, cell.n, cell.states) == (0.5, 1, ())
    assert found.notes[0] == "Left out: try1 (failed), attempted again as try2."
    assert found.notes[1] == "Left out: try3 (running), attempted again as try2."


def test_ratios_and_differences_against_a_named_row():
    ohem = [
        made("b0", "OHEM", 0, metrics={"test/miou": 0.43, "time/step_ms": 18.0}),
        made("b1", "OHEM", 1, metrics={"test/miou": 0.43, "time/step_ms": 12.0}),
        made("b2", "OHEM", 2, status="failed"),
    ]
    columns = ["test/miou", "test/miou:delta", "time/step_ms:x"]
    found = table(golden_runs()[:3] + ohem, ROWS, columns, relative_to="loss=cross_entropy")
    assert "Note: \u00d7 and Δ: beside CrossEntropy.\n" in render(found, "md")  # once, not in every head
    text = cells(render(found, "md"))
    assert text[0][2:4] == ["Δ test/miou (%)", "time/step_ms \u00d7"]
    assert text[2] == ["CrossEntropy", "42.00 ± 2.00", "+0.00 ± 0.00", "1.00\u00d7", "3"]
    # Over the common seeds 0 and 1: 0.43 against 0.40 and 0.42, and (18 + 12) / (10 + 14), 1.8 and 0.857 apart.
    ratio = "1.25 ± 0.67\u00d7 (n=2), failed (1 of 3) [1]"
    assert text[3][2:4] == ["+2.00 ± 1.41 (n=2), failed (1 of 3) [1]", ratio]
    with pytest.raises(HardpixError, match="fits 0 rows"):
        table(golden_runs(), ROWS, columns, relative_to="loss=Dice")
    with pytest.raises(HardpixError, match="needs --relative-to"):
        table(golden_runs(), ROWS, columns)


def test_a_failed_reference_is_told():
    runs = [made("a", status="failed"), made("b", "OHEM")]
    found = table(runs, ROWS, ["time/step_ms:x=cost"], relative_to="CrossEntropy")
    assert cells(render(found, "md"))[2:] == [
        ["CrossEntropy", "failed [1]", "0"],
        ["OHEM", "no reference", "1"],
    ]


def test_machine_and_code_differences_are_told_below():
    runs = [
        made("a"),
        made("b", seed=1, host={"device": "cuda"}, code={"commit": "abd", "dirty": "true"}),
    ]
    notes = table(runs, ROWS, COLUMNS).notes
    assert notes == (
        "Runs differ in code.commit: abc (1 of 2 runs), abd (1 of 2 runs).",
        "Runs differ in host.device: cpu (1 of 2 runs), cuda (1 of 2 runs).",
        "1 of 2 runs were made from code with uncommitted changes.",
    )
    assert render(table(runs, ROWS, COLUMNS), "latex").endswith(f"\n{notes[-1]}\\par\n")


def test_unknown_columns_and_factors_are_errors():
    with pytest.raises(HardpixError, match=r"metric 'test/mIoU' \(did you mean test/miou\?\)"):
        table([made("a")], ROWS, ["test/mIoU"])
    with pytest.raises(HardpixError, match=r"factor 'losss' \(did you mean loss"):
        table([made("a")], ["losss"], COLUMNS)


def test_wildcards_and_default_columns():
    runs = [made("a", metrics={"val/miou": 0.5, "val/iou/wall": 0.1, "val/iou/lamp": 0.2})]
    assert [column.metric for column in table(runs, ROWS).columns] == ["val/miou"]
    wild = table(runs, ROWS, ["val/iou/*"])
    assert [column.metric for column in wild.columns] == ["val/iou/lamp", "val/iou/wall"]


def test_the_order_of_the_records_does_not_matter():
    runs = [
        *golden_runs(),
        made("e0", "OHEM", 1, status="failed", error="again"),
        made("e1", "OHEM", 1, status="failed"),
    ]
    asked = {"relative_to": "loss=cross_entropy", "combinations": True}
    columns = [*COLUMNS, "test/miou:delta", "time/step_ms:x"]
    for form in ("md", "latex", "csv", "html", "json"):
        forward = render(table(runs, ROWS, columns, **asked), form)
        for seed in range(5):
            shuffled = random.Random(seed).sample(runs, len(runs))
            assert render(table(shuffled, ROWS, columns, **asked), form) == forward


def stored(tmp_path, runs):
    for run in runs:
        (tmp_path / run.directory).mkdir(parents=True)
        write(run.record, tmp_path / run.directory)


def test_collect_finds_each_run_once(tmp_path):
    stored(tmp_path, [made("s/a"), made("s/b/c", seed=1)])
    found = collect([tmp_path / "s", tmp_path / "s/a/run.json", tmp_path / "s/a"])
    assert [run.directory for run in found] == [str(tmp_path / "s/a"), str(tmp_path / "s/b/c")]
    (tmp_path / "empty").mkdir()
    for lacking in ("empty", "nowhere"):
        with pytest.raises(HardpixError, match=f"{lacking} holds no run"):
            collect([tmp_path / "s", tmp_path / lacking])
    (tmp_path / "s/a/run.json").write_text("{")
    with pytest.raises(HardpixError, match=r"s/a/run.json is damaged"):
        collect([tmp_path])
    told: list[str] = []
    assert [run.directory for run in collect([tmp_path], told)] == [str(tmp_path / "s/b/c")]
    assert len(told) == 1
    assert told[0].startswith(f"{tmp_path}/s/a/run.json is damaged")
    with pytest.raises(HardpixError, match="is damaged"):
        collect([tmp_path / "s/a"], [])  # nothing is left to show


def test_the_command(tmp_path, capsys):
    stored(tmp_path, golden_runs())
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = [str(tmp_path), "--rows", "loss._target_", "--columns", "test/miou,time/step_ms:x=cost"]
    arguments += ["--relative-to", "loss=cross_entropy"]
    assert run_command(parser.parse_args(arguments)) == 0
    assert "| CrossEntropy | 42.00 ± 2.00 |" in " ".join(capsys.readouterr().out.split())
    assert (
        run_command(parser.parse_args([*arguments, "--out", str(tmp_path / "t.tex"), "--format", "latex"]))
        == 0
    )
    assert (tmp_path / "t.tex").read_text().startswith(r"\begin{tabular}")


def test_a_table_of_a_thousand_runs_is_quick_and_needs_the_standard_library_alone(tmp_path):
    config = {f"group{i % 10}.key{i}": i for i in range(300)} | {"data.mean": [1.0, 2.0, 3.0]}
    stored(
        tmp_path, [made(f"r{i}", f"Loss{i % 100}", i // 100, i / 1000, factors=config) for i in range(1000)]
    )
    start = time.process_time()
    text = render(table(collect([tmp_path]), ROWS, COLUMNS), "html")
    assert time.process_time() - start < 2.5  # 0.4 s here alone; room for a busy machine
    assert text.count("<tr>") == 101
    code = (
        "import sys; from hardpix.cli import main; before = set(sys.modules)\n"
        f"main(['table', {str(tmp_path / 'r0')!r}, '--rows', 'loss', '--combinations', '--format', 'json'])\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - {'hardpix'} - set(sys.stdlib_module_names)\n"
        "sys.exit(', '.join(new) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def grouped_runs() -> list[Run]:
    scores = {
        ("Baseline", "Focal"): 0.5,
        ("Baseline", "OHEM"): 0.6,
        ("Hard_1", "Focal"): 0.7,
        ("Hard_1", "OHEM"): 0.55,
    }
    scores[("Hard_1", "Max")] = 0.7
    return [
        made(f"{method}{loss}", loss, miou=value, factors={"method._target_": f"m.{method}"})
        for (method, loss), value in scores.items()
    ]


def test_rows_of_one_group_name_it_once_and_the_best_and_second_are_marked():
    columns = ["test/miou", "time/step_ms"]
    found = table(grouped_runs(), ["method", "loss"], columns, relative_to="method=hard,loss=ohem")
    lines = [line.split("|") for line in render(found, "md").splitlines() if line.startswith("|")][2:]
    assert [[cell.strip() for cell in line[1:4]] for line in lines] == [
        ["Hard_1", "OHEM", "55.00"],  # the reference's group comes first, and it the first of its group
        ["", "Focal", "**70.00**"],
        ["", "Max", "**70.00**"],
        ["Baseline", "Focal", "50.00"],
        ["", "OHEM", "60.00"],
    ]
    latex = render(found, "latex")
    assert r" & OHEM & \underline{60.00} & 10 & 1 \\" in latex
    assert r" & Max & \textbf{70.00} & 10 & 1 \\" in latex
    assert latex.count(r"\addlinespace") == 1
    assert latex.count("Hard\\_1") == 1
    page = render(found, "html")
    assert "<th scope=row rowspan=3 class=rows>Hard_1</th>" in page
    assert "<th scope=row rowspan=2 class=rows>Baseline</th>" in page
    assert "<td class='number second'>60.00</td>" in page
    content = list(csv.DictReader(io.StringIO(render(found, "csv"))))
    assert [line["method"] for line in content] == ["Hard_1"] * 3 + ["Baseline"] * 2


def test_less_is_better_for_costs_and_equal_prints_share_a_rank():
    runs = [
        made("a", "A", metrics={"cost/step_seconds": 2.00001, "test/miou": 0.50001}),
        made("b", "B", metrics={"cost/step_seconds": 2.0, "test/miou": 0.5}),
        made("c", "C", metrics={"cost/step_seconds": 3.0, "test/miou": 0.4}),
        made("d", "D", status="failed"),
    ]
    found = table(runs, ["loss"], ["cost/step_seconds", "test/miou"])
    assert best_rows(found, 0) == best_rows(found, 1) == {0, 1}
    assert best_rows(table(runs[:1], ["loss"], ["test/miou"]), 0) == set()  # nothing to be better than


@pytest.mark.parametrize("form", ["runs", "tests"])
def test_latex_is_well_formed(form):
    """Every row has as many cells as the head; every brace and environment is closed; no bare special character."""
    columns = ["test/miou", "time/step_ms:x"]
    runs = grouped_runs() if form == "runs" else golden_runs()
    rows = ["method", "loss"] if form == "runs" else ["loss"]
    text = render(table(runs, rows, columns, relative_to="OHEM" if form == "tests" else "hard,ohem"), "latex")
    body, _, below = text.partition(r"\end{tabular}")
    alignment = body.partition(r"\begin{tabular}{")[2].partition("}")[0]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) > 3
    for line in lines:
        assert line.replace(r"\&", "").count("&") == len(alignment) - 1
    bare = re.sub(r"\\(textbackslash|[a-z]+|[&%$#_{}\\])", "", text)
    assert bare.count("{") == bare.count("}")
    assert not re.findall(r"[#%~|<>]|(?<!\$)\^", bare)
    assert bare.replace("$^{", "$").count("$") % 2 == 0
    assert all(line.endswith(r"\par") for line in below.strip().splitlines()[1:])


def test_json_holds_everything_unrounded():
    content = json.loads(render(table(golden_runs(), ROWS, COLUMNS), "json"))
    assert (content["schema"], content["kind"], content["factors"]) == (2, "runs", ["loss"])
    assert [column["unit"] for column in content["columns"]] == ["fraction", ""]
    bad, entropy, focal, ohem = content["rows"]
    cell = entropy["cells"][0]
    assert cell["mean"] == pytest.approx(0.42, abs=1e-15)
    assert (cell["n"], cell["best"], cell["values"]) == (3, False, {"0": 0.4, "1": 0.42, "2": 0.44})
    assert bad["cells"][0]["mean"] is None
    assert bad["cells"][0]["states"] == {"missing": 1, "nan": 1}
    assert focal["runs"][1]["reason"] == "failed: boom"
    assert focal["lacking"] == [
        {
            "state": "failed",
            "seeds": [1, 2],
            "metric": None,
            "note": "seeds 1, 2 failed: boom",
            "commands": [],
        }
    ]
    assert ohem["lacking"][0]["commands"] == ["hardpix train seed=2"]


def test_what_all_trainings_share_is_a_note_and_what_they_do_not_a_column():
    own = {"data.train_transform.crop": [96, 128], "data.batch_size": 8, "backbone.pretrained": False}
    runs = [
        made("a", factors=own | {"trainer.max_steps": 2000}, frames={"rooms/train": 32}),
        made("b", "OHEM", factors=own | {"trainer.max_steps": 4000}, frames={"rooms/train": 32}),
    ]
    text = render(table(runs, ["loss", "trainer.max_steps"], ["test/miou"]), "md")
    assert "Note: All rows: crop 96x128, batch 8, from scratch, 32 training frames.\n" in text
    assert [line[-1] for line in cells(text)] == [
        "protocol",
        "-----------",
        "2,000 steps",
        "4,000 steps",
    ]
    same = render(table(runs[:1], ["loss"], ["test/miou"]), "md")
    assert "protocol" not in same
    assert "2,000 steps" in same
    lines = csv.DictReader(io.StringIO(render(table(runs[:1], ["loss"], ["test/miou"]), "csv")))
    assert next(lines)["protocol"] == "crop 96x128, batch 8, 2,000 steps, from scratch, 32 training frames"


def test_classes_beside_the_mean_and_one_alone(tmp_path):
    stored(tmp_path, [made("a"), made("b", "OHEM", miou=0.5), made("c", "Focal", status="failed")])
    for name, wall in (("a", 0.5), ("b", 0.6)):
        (tmp_path / name / "per_class.csv").write_text(
            f"class,iou,acc,pixels\nwall,{wall},0.7,5\nlamp,nan,nan,0\n"
        )
    runs = collect([tmp_path])
    text = cells(render(table(runs, ["loss"], ["test/miou"], per_class=True), "md"))
    assert text[0] == ["loss", "test/miou (%)", "wall (%)", "lamp (%)", "n"]
    assert text[2] == ["CrossEntropy", "40.00", "50.00", "nan", "1"]
    assert text[4] == ["OHEM", "**50.00**", "**60.00**", "nan", "1"]
    assert text[3][1:4] == ["failed [1]"] * 3
    alone = cells(render(table(runs, ["loss"], ["acc:wall", "iou:lamp"]), "md"))
    assert alone[0][1:3] == ["acc:wall (%)", "lamp (%)"]
    assert alone[2][1] == "70.00"
    with pytest.raises(HardpixError, match=r"metric 'iou:wal' \(did you mean iou:wall"):
        table(runs, ["loss"], ["iou:wal"])


def test_a_row_is_found_by_label_choice_or_how_it_begins():
    runs = [
        made("a"),
        made("b", "OHEM", factors={"loss.keep": 5}),
        made("c", "OHEM", factors={"loss.keep": 9}),
    ]
    for selector, label in {
        "loss=cross_entropy": "CrossEntropy",
        "cross": "CrossEntropy",
        "OHEM (keep=9)": "OHEM (keep=9)",
    }.items():
        assert table(runs, ["loss"], ["test/miou"], relative_to=selector).reference == label
    with pytest.raises(HardpixError, match=r"--relative-to 'loss=ohem' fits 2 rows"):
        table(runs, ["loss"], ["test/miou"], relative_to="loss=ohem")
    with pytest.raises(HardpixError, match=r"--relative-to names 'los'"):
        table(runs, ["loss"], ["test/miou"], relative_to="los=ohem")


def test_a_choice_in_a_command_gives_way_with_all_its_settings():
    words = ["loss=ohem", "loss.thresh=0.6", "a.b=[1,2]", "run=x", "seed=3", "resume=true"]
    own = {"template": words, "donor": ["loss=focal"]}
    template, donor = (made(name, overrides=words) for name, words in own.items())
    found = combined(template, {"loss": donor}, ["method", "loss"], 5, lambda group, factors: "")
    assert found == "hardpix train 'a.b=[1,2]' loss=focal seed=5"


def test_a_run_that_a_search_ended_early_is_pruned_and_not_failed():
    error = "Pruned: at step 2 of 8, val/miou 0.0100 is behind the other trials"
    runs = [made("runs/a"), made("runs/b", "OHEM", miou=0.9, status="failed", error=error, metrics={})]
    text = render(table(runs, ["loss"], ["test/miou"]), "md")
    assert cells(text)[3][:2] == ["OHEM", "pruned [1]"]
    assert "- 1: seed 0 pruned: at step 2 of 8, val/miou 0.0100 is behind" in text
    assert "failed" not in text


def test_long_numbers_of_labels_are_short_for_the_eye_and_whole_for_programs():
    values = (0.14804560990495674, 0.0431171005868549)
    runs = [
        made(f"runs/{v}", factors={"method._target_": "a.HL", "method.alpha": v, "method.c": c})
        for v, c in zip(values, (0.1, 0.5), strict=True)
    ]
    found = table(runs, ["method", "method.alpha"], ["test/miou"])
    assert [row[:2] for row in cells(render(found, "md"))[2:]] == [
        ["HL (c=0.1)", "0.148"],
        ["HL (c=0.5)", "0.04312"],
    ]
    assert "0.14804560990495674" in render(found, "csv")
    assert brief(["0.12345678", "0.12345679"]) == ["0.12345678", "0.12345679"]


def test_html_is_a_page_and_a_file_that_cannot_be_written_is_told(tmp_path, capsys):
    stored(tmp_path / "runs", golden_runs())
    words = ["table", str(tmp_path / "runs"), "--rows", "loss", "--format", "html"]
    assert main([*words, "--out", str(tmp_path / "new" / "t.html")]) == 0
    assert (tmp_path / "new" / "t.html").read_text().startswith("<!DOCTYPE html>")
    (tmp_path / "file").write_text("")
    assert main([*words, "--out", str(tmp_path / "file" / "t.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
