"""``hardpix list``, and that every configuration file says what it is."""

import json
import subprocess
import sys

import pytest

from hardpix.cli import main
from hardpix.config import catalog
from hardpix.config.rows import row, rows
from hardpix.types import ConfigError

FILES = sorted(catalog.conf_dir().rglob("*.yaml"))


def test_every_configuration_file_begins_with_a_sentence_about_it():
    assert len(FILES) > 150
    for path in FILES:
        about = catalog.first_sentence(path.read_text(encoding="utf-8"))
        assert 10 <= len(about) <= 280, (
            f"{path}: its first comment should say in a sentence what it is: {about!r}"
        )
        assert not about.startswith("hardpix "), path


def test_every_experiment_says_how_it_is_run():
    by_name = {entry.name: entry for entry in catalog.entries("experiment")}
    assert by_name["hl/cityscapes"].use == "hardpix train experiment=hl/cityscapes"
    assert by_name["demo"].use.startswith("hardpix train -m experiment=demo method=baseline ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# One.\n# Two.\nkey: 1\n", "One."),
        ("# One that\n# goes on. Two.\n", "One that goes on."),
        ("# @package _global_\n# Of 0.5, eq. (2); see x.y. After.\n", "Of 0.5, eq. (2); see x.y."),
        ("\n# After a blank line\n\n# another comment\n", "After a blank line"),
        ("key: 1   # not of the file\n# nor this\n", ""),
        ("# @package _global_\nkey: 1\n", ""),
    ],
)
def test_first_sentence(text, sentence):
    assert catalog.first_sentence(text) == sentence


def test_a_list_has_every_file_but_the_parts(capsys):
    assert main(["list", "methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = sorted(path.stem for path in (catalog.conf_dir() / "method").glob("*.yaml"))
    assert [line.split()[0] for line in lines] == names
    assert any(line.split(maxsplit=1)[1].startswith("HL (Not All") for line in lines)
    assert not [e.name for e in catalog.entries("experiment") if e.path.name.startswith("_")]


def test_the_overview_counts(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    counts = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines if "  " in line}
    heads = len(list((catalog.conf_dir() / "head").glob("*.yaml")))
    assert counts["heads"] == [str(heads), "hardpix train head=NAME"]
    assert counts["tables"][1] == "hardpix table NAME RUNS..."
    assert counts["rows"] == [str(len(catalog.row_names())), "hardpix table PAPER/TABLE"]
    assert {"losses", "datasets", "callbacks", "studies"} <= set(counts)


def test_json(capsys):
    assert main(["list", "experiments", "hn/camvid", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "name": "hn/camvid",
            "group": "experiment",
            "about": "What all rows of table 4 share: SegNet on CamVid, 480x360 pixels, 11 classes, global accuracy "
            "after 5, 10, 50 and 100 epochs.",
            "use": "hardpix train experiment=hn/camvid",
            "file": "conf/experiment/hn/camvid.yaml",
        }
    ]
    assert main(["list", "--json"]) == 0
    assert {"list": "methods", "group": "method", "use": "hardpix train method=NAME"}.items() <= next(
        row for row in json.loads(capsys.readouterr().out) if row["list"] == "methods"
    ).items()


# M parameters, GFLOPs of the forward passes of an image, PFLOPs of the training: each derived apart from the code, and
# the last one of three forward passes a step, of which a network on maps without gradient needs less.
COSTS = {
    "hl/pspnet_r18": (12.8, 252, 242),
    "hl/pspnet_r18_hl": (14.2, 274, 263),
    "hn/segnet_hn_fixed4": (21.8, 301, 26),
    "hn/camvid_hn": (29.4, 213, 23),  # of four stages that of 100 epochs
    "error_cascade/deeplabv3plus": (41.1, 239, 459),
    "error_cascade/deeplabv3plus_errors": (0.5, 274, 166),
    "error_cascade/deeplabv3plus_detail": (8.6, 479, 640),
    "error_cascade/ade20k_detail": (8.6, 220, 293),
    "error_cascade/bagging": (8.6, 443, 614),
    "error_cascade/dpc": (41.6, 286, 549),
    "error_cascade/dupsampling": (42.2, 226, 434),
    "error_cascade/layer_cascade": (49.5, 431, 828),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if "r18" in name else pytest.mark.slow) for name in COSTS]
)
def test_costs_of_published_rows(name, capsys):
    assert main(["list", "rows", name, "--cost", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)[0]["cost"]
    parameters, forward, training = COSTS[name]
    assert cost["parameters"] / 1e6 == pytest.approx(parameters, abs=0.051)
    assert cost["forward_flops"] / 1e9 == pytest.approx(forward, rel=0.003)
    assert 0.89 * training < cost["training_flops"] / 1e15 < 1.025 * training


def test_costs_are_a_line_each(capsys, monkeypatch):
    names = ("hl/pspnet_r18", "error_cascade/ade20k_detail_ms", "hn/pretrain")
    monkeypatch.setattr("hardpix.config.rows.rows_of", lambda table: list(map(row, names)))
    assert main(["list", "rows", "hl/6", "--cost"]) == 0
    header, first, scored, unknown, *about = capsys.readouterr().out.splitlines()
    assert header.split() == ["row", "M", "parameters", "GFLOPs", "PFLOPs"]
    assert first.split() == ["hl/pspnet_r18", "12.8", "251.7", "241.5"]
    assert scored.split(maxsplit=4)[1:] == ["-", "-", "-", "trains nothing: evaluates ade20k_detail"]
    assert "data/hn: no such folder" in unknown
    assert about[0].startswith("M parameters: those that train.")


def test_only_rows_have_costs(capsys):
    assert main(["list", "heads", "--cost"]) == 2
    assert "hardpix list rows hl --cost" in capsys.readouterr().err


@pytest.mark.slow
def test_every_row_of_a_paper_has_a_cost(capsys):
    """All but evaluations of another row's run."""
    assert main(["list", "rows", "error_cascade", "--cost", "--json"]) == 0
    costs = {one["name"].partition("/")[2]: one["cost"] for one in json.loads(capsys.readouterr().out)}
    assert costs.keys() == rows("error_cascade").keys()
    for name, published in rows("error_cascade").items():
        *numbers, problem = costs[name].values()
        assert (problem is None) == published.trains
        assert all(number is not None for number in numbers) == published.trains


def test_a_filter_is_a_beginning_or_else_a_part():
    found = catalog.entries("experiment")
    begun = [e.name for e in catalog.matching(found, "HL")]
    assert begun
    assert all(name.startswith("hl/") for name in begun)
    assert [e.name for e in catalog.matching(found, "branch")] == [
        "error_prediction/ade20k_branch", "error_prediction/cityscapes_branch",
    ]  # fmt: skip


def test_numbers_are_in_order():
    names = [e.name for e in catalog.entries("table")]
    assert names.index("hl/2") < names.index("hl/10")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["metods"], "did you mean methods?"),
        (["dataset"], "did you mean datasets?"),
        (["heads", "dpcc"], "did you mean dpc?"),
        (["zzzz"], "there are backbones, "),
    ],
)
def test_what_does_not_exist_gets_the_nearest(arguments, told, capsys):
    assert main(["list", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_groups_by_any_name():
    known = catalog.groups()
    assert [catalog.group_called(word, known) for word in ("loss", "losses", "data", "datasets")] == [
        "loss", "loss", "data", "data",
    ]  # fmt: skip
    with pytest.raises(ConfigError):
        catalog.group_called("", known)


def test_nothing_heavy_is_imported():
    code = "import sys; from hardpix.cli import main; main(['list', 'experiments']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "hydra", "omegaconf", "yaml", "numpy"}
