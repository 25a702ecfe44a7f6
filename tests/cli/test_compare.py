"""``hardpix compare``: differences of settings, scores, costs, classes and images, on runs made by hand."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from hardpix import record
from hardpix.cli import main
from hardpix.scores import write_per_image

CONFIG = {
    "method": {"_target_": "hardpix.methods.Baseline"},
    "loss": {"_target_": "hardpix.losses.CrossEntropy", "normalizer": "valid"},
    "optimizer": {"lr": 0.01, "betas": [0.9, 0.999]},
    "seed": 0,
    "run": "a",
}
METRICS = {"test/miou": 0.4, "test/pixel_acc": 0.8, "cost/step_seconds": 0.5, "run/steps": 100.0}


def made(folder, changes=None, metrics=None, classes=None, images=None, without=()):
    """A run directory; ``changes`` are dotted keys of its configuration."""
    config = json.loads(json.dumps(CONFIG | {"run": folder.name}))
    for key in without:
        del config[key]
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    record.write(
        record.RunRecord(
            schema=record.SCHEMA, run_id=folder.name, status="done", factors=record.flatten(config),
            metrics=METRICS | (metrics or {}), seed=0, parent=None, code={}, host={}, started="", dataset="rooms",
        ),
        folder,
    )  # fmt: skip
    if classes is not None:
        lines = [f"{name},{iou},0.5,10" for name, iou in classes.items()]
        (folder / "per_class.csv").write_text("\n".join(["class,iou,acc,pixels", *lines]) + "\n")
    if images is not None:
        write_per_image([(name, 10, 0.5, miou) for name, miou in images.items()], folder)
    return str(folder)


def compared(capsys, *arguments):
    assert main(["compare", *arguments, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_settings_by_dotted_key(tmp_path, capsys):
    a = made(tmp_path / "a")
    b = made(tmp_path / "b", {"method._target_": "hardpix.methods.HL", "method.alpha": 0.1, "optimizer.lr": 0.01,
                              "optimizer.betas": [0.9, 0.99], "seed": 1})  # fmt: skip
    rows = {row["key"]: row for row in compared(capsys, a, b)["settings"]}
    assert set(rows) == {"method._target_", "method.alpha", "optimizer.betas", "seed", "run"}
    assert rows["method.alpha"] == {
        "key": "method.alpha", "values": [None, 0.1], "absent": [0], "matters": True,
    }  # fmt: skip
    assert rows["optimizer.betas"]["values"] == [[0.9, 0.999], [0.9, 0.99]]
    assert not rows["seed"]["matters"]
    assert not rows["run"]["matters"]


def test_an_older_configuration_has_the_defaults_of_today(tmp_path, capsys):
    """``freeze`` came later: absent and empty are the same, but not absent and set."""
    a, b = made(tmp_path / "a"), made(tmp_path / "b", {"freeze": []})
    assert [row["key"] for row in compared(capsys, a, b)["settings"]] == ["run"]
    c = made(tmp_path / "c", {"freeze": ["conv1"]})
    rows = compared(capsys, a, c)["settings"]
    assert {"key": "freeze", "values": [[], ["conv1"]], "absent": [], "matters": True} in rows


def test_what_only_the_record_knows_is_compared(tmp_path, capsys):
    a, b = made(tmp_path / "a"), made(tmp_path / "b")
    found = record.read(b)
    record.write(replace(found, factors=found.factors | {"evaluation.split": "val"}), b)
    rows = {row["key"]: row for row in compared(capsys, a, b)["settings"]}
    assert rows["evaluation.split"]["values"] == [None, "val"]


def test_scores_are_subtracted_and_costs_divided(tmp_path, capsys):
    a = made(tmp_path / "a")
    b = made(tmp_path / "b", metrics={"test/miou": 0.45, "cost/step_seconds": 1.0, "val/miou": math.nan})
    found = compared(capsys, a, b)
    metrics = {row["name"]: row for row in found["metrics"]}
    assert metrics["test/miou"]["differences"] == [pytest.approx(0.05)]
    assert metrics["val/miou"]["values"] == [None, None]
    costs = {row["name"]: row for row in found["costs"]}
    assert costs["cost/step_seconds"]["ratios"] == [2.0]
    assert set(costs) == {"cost/step_seconds", "run/steps"}
    swapped = compared(capsys, b, a)
    assert {r["name"]: r for r in swapped["costs"]}["cost/step_seconds"]["ratios"] == [0.5]


def test_classes_by_the_size_of_the_difference(tmp_path, capsys):
    a = made(tmp_path / "a", classes={"wall": 0.5, "floor": 0.5, "door": 0.2, "sky": "nan"})
    b = made(tmp_path / "b", classes={"wall": 0.51, "floor": 0.3, "door": 0.3, "sky": 0.1})
    rows = compared(capsys, a, b)["classes"]
    assert [row["name"] for row in rows] == ["floor", "door", "wall", "sky"]
    assert rows[0]["differences"] == [pytest.approx(-0.2)]
    assert rows[3]["values"] == [None, 0.1]


def test_images_that_both_score(tmp_path, capsys):
    a = made(tmp_path / "a", images={"x": 0.5, "y": 0.5, "z": 0.5, "void": math.nan, "only a": 1})
    b = made(tmp_path / "b", images={"z": 0.2, "y": 0.6, "x": 0.5, "void": math.nan})
    found = compared(capsys, a, b)
    assert [row["name"] for row in found["images"]] == ["z", "x", "y", "void"]
    (told,) = found["images_told"]
    assert told == {"common": 4, "better": 1, "worse": 1, "alone": 1, "mean": pytest.approx((0.1 - 0.3) / 3)}
    assert main(["compare", a, b, "--images", "1"]) == 0
    text = capsys.readouterr().out
    lost, gained, worst = text.index("Lose most"), text.index("Gain most"), text.index("Worst in any run")
    assert "| z " in text[lost:gained]
    assert "-30.00" in text[lost:gained]
    assert "| y " in text[gained:worst]
    assert "| x " not in text[lost:]
    assert "| z " in text[worst:]


def test_the_first_of_three_is_the_reference(tmp_path, capsys):
    runs = [
        made(tmp_path / name, metrics={"test/miou": miou})
        for name, miou in zip("abc", (0.4, 0.5, 0.1), strict=True)
    ]
    rows = {row["name"]: row for row in compared(capsys, *runs)["metrics"]}
    assert rows["test/miou"]["differences"] == pytest.approx([0.1, -0.3])
    assert main(["compare", *runs]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "test/miou" in line)
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "test/miou (%)", "40.00", "50.00", "10.00", "+10.00", "-30.00",
    ]  # fmt: skip


def test_what_a_reader_must_know_is_noted(tmp_path, capsys):
    a, b = (
        made(tmp_path / "a", classes={"wall": 0.5}),
        made(tmp_path / "b", classes={"sky": 0.5}, images={"x": 1}),
    )
    broken = replace(record.read(b), status="failed", error="boom", dataset="streets")
    record.write(broken, b)
    notes = " ".join(compared(capsys, a, b)["notes"])
    assert f"{b} is failed: boom." in notes
    assert "different data: rooms, streets" in notes
    assert f"{a} lacks per_image.csv" in notes
    assert "different classes" in notes


def test_what_is_no_run_is_refused_in_a_sentence(tmp_path, capsys):
    a = made(tmp_path / "a")
    for arguments, told in (([a, str(tmp_path)], "run.json does not exist"), ([a], "two runs or more")):
        assert main(["compare", *arguments]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1


def test_the_file_it_writes_and_that_torch_stays_out(tmp_path):
    a, b = made(tmp_path / "a"), made(tmp_path / "b")
    code = (
        "import sys; from hardpix.cli import main; "
        f"main(['compare', {a!r}, {b!r}, '--out', {str(tmp_path / 'x.md')!r}]); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "hydra", "numpy"} & set(done.stdout.split())
    assert "The settings that may matter agree." in (tmp_path / "x.md").read_text()
