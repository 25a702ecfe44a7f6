"""``hardpix table``: names, paths, damaged records, and commands that really compose."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import re
import shlex
from pathlib import Path

import pytest

from hardpix.cli import main, tables
from hardpix.record import SCHEMA, RunRecord, read, write
from hardpix.scores import read_per_image
from hardpix.train.train import train

DEMO = ("experiment=demo", "trainer.max_steps=7", "data.source.test_frames=3")


@functools.cache
def composed(*overrides):
    from hardpix.config.compose import compose

    return compose(list(overrides))


def recorded(folder: Path, name: str, *overrides: str, status="done", miou=0.4, told=True, **changes) -> Path:
    """A run's folder as ``hardpix train`` leaves it, without the training."""
    from hardpix.record import flatten
    from hardpix.train.rundir import plain

    cfg = composed(*overrides)
    run = folder / name
    run.mkdir(parents=True)
    values = {
        "schema": SCHEMA, "run_id": name, "status": status, "seed": cfg.seed, "parent": None, "started": "",
        "code": {}, "host": {}, "factors": flatten(plain(cfg)),
        "metrics": {"test/miou": miou} if status == "done" else {},
        "overrides": [*overrides, f"run={name}"] if told else [],
    }  # fmt: skip
    write(RunRecord(**(values | changes)), run)
    return run


def commands(text: str) -> list[str]:
    return [
        command for row in json.loads(text)["rows"] for lack in row["lacking"] for command in lack["commands"]
    ]


def shown(capsys, *arguments) -> str:
    assert main(["table", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_published_name_comes_first_and_a_path_that_exists_wins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert shown(capsys, "hl/7").startswith("### hl/7: Hyper-parameter c")
    assert shown(capsys, "hl/7") == shown(capsys, "--published", "hl/7")
    recorded(tmp_path / "lwm", "II", *DEMO)
    assert main(["table", "lwm/II"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("| method ")
    assert (
        "lwm/II is a path here and a published table, too: taken as the path; --published lwm/II" in told.err
    )
    assert shown(capsys, "lwm/III", "lwm").startswith("### lwm/III: ")
    assert main(["table", "lwm/VI"]) == 2
    assert "lwm/VI is no run, and no published table; did you mean lwm/V?" in capsys.readouterr().err


def test_a_damaged_record_is_told_and_the_others_shown(tmp_path, capsys):
    recorded(tmp_path, "a", *DEMO)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/run.json").write_text("{")
    text = shown(capsys, tmp_path)
    assert "| Baseline | CrossEntropy |" in " ".join(text.split())
    assert f"Note: 1 record could not be read: {tmp_path}/b/run.json is damaged" in text
    for form in ("html", "latex", "json"):
        assert "1 record could not be read" in shown(capsys, tmp_path, "--format", form)
    assert main(["table", str(tmp_path), "--format", "csv"]) == 0
    assert "note: 1 record could not be read" in capsys.readouterr().err
    assert "1 record could not be read" in shown(capsys, "lwm/II", tmp_path)
    assert main(["table", str(tmp_path), "--strict"]) == 2
    assert "b/run.json is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_missing_seeds_and_combinations_carry_commands_that_compose_to_what_is_missing(tmp_path, capsys):
    from hardpix.config.compose import validate
    from hardpix.record import flatten
    from hardpix.train.rundir import plain

    odd = "data.source.classes=null"
    for seed in (0, 1):
        recorded(tmp_path, f"a{seed}", *DEMO, f"seed={seed}", odd)
    recorded(tmp_path, "b0", *DEMO, "method=baseline", "seed=0", odd, "loss=ohem", "loss.thresh=0.6")
    hard = ("method=hardness", "method.alpha=0.05", "loss=cross_entropy")  # one of them must give way
    recorded(tmp_path, "c1", *DEMO, *hard, "seed=1", odd)
    text = shown(capsys, tmp_path, "--rows", "method,loss", "--combinations", "--format", "json")
    rows = {tuple(row["labels"].values()): row for row in json.loads(text)["rows"]}
    assert list(rows) == [
        (method, loss) for method in ("Baseline", "HardnessLevel") for loss in ("CrossEntropy", "OHEM")
    ]
    assert rows["Baseline", "CrossEntropy"]["lacking"] == []
    wanted = {
        ("Baseline", "OHEM"): {1: ("loss=ohem", "loss.thresh=0.6")},
        ("HardnessLevel", "CrossEntropy"): {0: ("method=hardness", "method.alpha=0.05")},
        ("HardnessLevel", "OHEM"): dict.fromkeys(
            (0, 1), ("method=hardness", "method.alpha=0.05", "loss=ohem", "loss.thresh=0.6")
        ),
    }
    for labels, seeds in wanted.items():
        (lack,) = rows[labels]["lacking"]
        assert lack["seeds"] == list(seeds)
        for command, (seed, choice) in zip(lack["commands"], seeds.items(), strict=True):
            words = shlex.split(command)
            assert words[:2] == ["hardpix", "train"]
            cfg = composed(*words[2:])
            validate(cfg)
            expected = composed(*DEMO, odd, *choice, f"seed={seed}")
            assert flatten(plain(cfg)) == flatten(plain(expected)), command
    markdown = shown(capsys, tmp_path, "--combinations")
    assert "missing (2 of 2) [3]" in markdown
    assert re.search(r"- 3: seeds 0, 1 not run: `hardpix train -m .* seed=0,1`", markdown)
    assert "2 of 2" not in shown(capsys, tmp_path)  # only where asked for


def test_records_without_a_command_line_name_the_choices(tmp_path, capsys):
    recorded(tmp_path, "a0", *DEMO, "method=hardness", told=False)
    recorded(tmp_path, "b1", *DEMO, "loss=focal", "seed=1", told=False)
    text = shown(capsys, tmp_path, "--combinations", "--format", "json")
    found = commands(text)
    assert "hardpix train method=hardness loss=cross_entropy seed=1" in found
    assert "hardpix train method=baseline loss=focal seed=0" in found
    for command in found:
        composed(*shlex.split(command)[2:])
    assert "and the other settings of" in text


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("method", "hl_released"),
        ("method", "baseline"),
        ("loss", "ohem_released"),
        ("loss", "balanced_cityscapes"),
    ],
)
def test_choices_are_found_by_what_they_made(group, name):
    from hardpix.record import flatten
    from hardpix.train.rundir import plain

    assert tables.choice(group, flatten(plain(composed(f"{group}={name}")))) == name
    assert tables.choice(group, {f"{group}._target_": "mylab.Own"}) == ""


def test_how_often_a_run_validates_is_no_difference_unless_its_best_weights_are_scored(tmp_path, capsys):
    recorded(tmp_path / "x", "a", *DEMO)
    recorded(tmp_path / "x", "b", *DEMO, "trainer.val_every_epochs=2", "seed=1")
    assert "n=" not in shown(capsys, tmp_path / "x")
    recorded(tmp_path / "y", "a", *DEMO, "test_weights=best")
    recorded(tmp_path / "y", "b", *DEMO, "test_weights=best", "trainer.val_every_epochs=2", "seed=1")
    assert main(["table", str(tmp_path / "y")]) == 2
    assert "trainer.val_every_epochs (3 in" in capsys.readouterr().err


def test_two_real_runs_against_each_other(tiny, capsys):
    """What a test leaves behind adds up to the recorded scores, so that a sample of it is a sample of them."""
    given = ("trainer.max_steps=1", "panels=0")
    for name, loss in (("a", "cross_entropy"), ("b", "ohem")):
        cfg = tiny(f"run={name}", f"loss={loss}", *given)
        train(cfg, [f"loss={loss}", *given, f"run={name}"])
    folder = Path(cfg.runs_dir) / "default"
    assert read(folder / "b").overrides == ["loss=ohem", *given, "run=b"]
    counts = [row.classes() for row in read_per_image(folder / "b")]
    hit = sum(numbers[0] for one in counts for numbers in one.values())
    pixels = sum(numbers[1] for one in counts for numbers in one.values())
    assert hit / pixels == pytest.approx(
        read(folder / "b").metrics["test/pixel_acc"], abs=1e-6
    )  # recorded as float32
    capsys.readouterr()  # what training printed
    text = shown(capsys, folder, "--against", "loss=cross_entropy", "--format", "json", "--resamples", 40)
    tests = {cell["metric"]: cell["test"] for cell in json.loads(text)["rows"][1]["cells"] if "test" in cell}
    assert set(tests) == {"test/miou", "test/mean_acc", "test/pixel_acc"}
    for test in tests.values():
        assert (test["images"], test["why"], test["seeds"]) == (3, None, [0])
        assert (test["p"], test["label"]) == (None, "images only, 1 seed")
        assert test["low"] <= test["delta"] <= test["high"]
    wide = shown(capsys, folder, "--per-class", "--columns", "test/miou", "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(wide)))
    names = [line["class"] for line in csv.DictReader((folder / "a/per_class.csv").open())]
    assert [key[4:-5] for key in lines[0] if key.startswith("iou:") and key.endswith(" mean")] == names
    known = [float(lines[0][f"iou:{name} mean"]) for name in names]
    known = [value for value in known if not math.isnan(value)]
    assert sum(known) / len(known) == pytest.approx(float(lines[0]["test/miou mean"]), abs=1e-6)


@pytest.mark.parametrize(("word", "meant"), [("lmw/II", "lwm/II"), ("hl6", "hl/6"), ("nowhere", "")])
def test_a_mistyped_table_gets_the_nearest_name(word, meant, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["table", word]) == 2
    said = capsys.readouterr().err
    assert (f"{word} is no run, and no published table; did you mean {meant}?" in said) == bool(meant)
    assert meant or "nowhere holds no run" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep", "s", "--on-error", "retrry"], "did you mean retry?"),
        (["figure", "swep"], "did you mean sweep?"),
        (["table", "--per-clsas"], "did you mean --per-class?"),
        (["sweep"], "are required: NAME_OR_OVERRIDE; hardpix sweep --help says more"),
        (["table", "--resamples", "x"], "--resamples: x: must be a whole number from 1"),
    ],
)
def test_what_is_mistyped_gets_one_line_with_the_nearest_name(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hardpix {words[0]}: ")
    assert said in line
