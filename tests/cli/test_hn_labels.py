"""``hardpix data hn-labels`` from the command line, and what reads its result."""

import json

import numpy as np
import pytest
from PIL import Image

from hardpix.cli import main
from hardpix.data import HN
from hardpix.data.synthetic.rooms import render

ROOMS = (
    "data=synthetic",
    "data.source.height=48",
    "data.source.width=64",
    "data.source.train_frames=6",
    "data.source.val_frames=3",
)
FINE = ("--radius", "1", "--gravity-radius", "3", "--workers", "1")


def hn_labels(*words):
    return main(["data", "hn-labels", *map(str, words)])


@pytest.fixture
def made(tmp_path, capsys):
    assert hn_labels(*ROOMS, *FINE, "--out", tmp_path / "hn") == 0
    capsys.readouterr()
    return tmp_path / "hn"


@pytest.fixture
def folder(tmp_path):
    """Two rooms in folders, without labels and without a camera; and the camera."""
    for index in (1, 2):
        frame = render(0, "train", index, height=48, width=64, difficulty=0.5)
        for kind in ("images", "depths"):
            (tmp_path / "own" / "train" / kind / "a").mkdir(parents=True, exist_ok=True)
        name = f"train/{{}}/a/{index}.png"
        Image.fromarray(frame.rgb).save(tmp_path / "own" / name.format("images"))
        depth = np.round(frame.exact_depth * 1000).astype(np.uint16)
        Image.fromarray(depth).save(tmp_path / "own" / name.format("depths"))
    words = [
        "data=folder",
        f"data.source.root={tmp_path}/own",
        'data.source.depths="{split}/depths"',
        "data.source.depth_scale=1000",
        *FINE,
        "--splits",
        "train",
        "--out",
        tmp_path / "hn",
    ]
    return words, [str(v) for v in frame.K[[0, 1, 0, 1], [0, 1, 2, 2]]]


def test_it_says_what_became_of_the_frames(tmp_path, capsys):
    assert hn_labels(*ROOMS, *FINE, "--out", tmp_path / "hn") == 0
    said = capsys.readouterr().out
    facts = json.loads((tmp_path / "hn" / "hn.json").read_text())
    assert list(facts["splits"]) == ["train", "val"]
    rows = {row[0].strip(): row[1:3] for row in (line.strip("│ ").split("│") for line in said.splitlines())}
    numbers = {title: [int(cell.split()[0]) for cell in rows[title]] for title in ("frames", "labelled")}
    assert numbers["frames"] == [6, 3]
    assert numbers["labelled"] == [facts["splits"][s]["labelled"] for s in ("train", "val")]
    assert "rejected: floor not horizontal" in rows
    assert f"hardpix train data=hn data.source.root={tmp_path}/hn" in said
    assert facts["settings"]["radius"] == 1
    assert facts["source"]["width"] == 64


def test_bins_and_choice_reach_the_labels(tmp_path):
    words = ("--heights", "5", "--normals", "1", "--splits", "train", "--every", "2", "--limit", "2")
    assert hn_labels(*ROOMS, *FINE, *words, "--crop", 4, 6, 40, 52, "--out", tmp_path / "hn") == 0
    facts = json.loads((tmp_path / "hn" / "hn.json").read_text())
    assert facts["classes"][:2] == ["0.00-0.50 m", "0.50-1.00 m"]
    assert len(facts["classes"]) == 5
    lines = (tmp_path / "hn" / "train" / "frames.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [e["name"] for e in entries] == ["train_00000", "train_00002"]
    assert entries[1]["size"] == [40, 52]
    assert hn_labels(*ROOMS, *FINE, "--height-edges", 0, 1, "--limit", 1, "--out", tmp_path / "edges") == 0
    assert json.loads((tmp_path / "edges" / "hn.json").read_text())["settings"]["height_edges"] == [0, 1]


def test_data_of_ones_own_needs_a_camera_and_no_classes(folder, tmp_path, capsys):
    words, camera = folder
    assert hn_labels(*words) == 2
    assert (
        "data set folder does not tell its camera; give it as --camera FX FY CX CY" in capsys.readouterr().err
    )
    assert not (tmp_path / "hn").exists()
    assert hn_labels(*words, "--camera", *camera) == 0
    source = HN(str(tmp_path / "hn"), val_fraction=0.5)
    assert sorted(f.name for s in ("train", "val") for f in source.files(s)) == ["a__1", "a__2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x=1"], "name the data set"),
        (["data=camvid", "data.source.root=."], "data set camvid has no depth"),
        ([*ROOMS, "--workers", "0"], "--workers 0: must be at least 1"),
        ([*ROOMS, "--limit", "0"], "limit 0"),
        ([*ROOMS, "--radius", "0"], "radius and gravity_radius are 0 and 10"),
        ([*ROOMS, "--height-edges", "1", "2"], "height_edges"),
        ([*ROOMS, "--splits", "none"], "no split 'none'"),
        ([*ROOMS, "--crop", "0", "0", "99", "9"], "--crop must lie inside"),
    ],
)
def test_refusals_write_nothing(words, said, tmp_path, capsys):
    assert hn_labels(*words, "--out", tmp_path / "hn") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "hn").exists()


def test_other_settings_are_refused(made, capsys):
    assert hn_labels(*ROOMS, *FINE, "--up", "manhattan", "--out", made) == 2
    assert "it was begun with --up gravity, not manhattan" in capsys.readouterr().err
    assert hn_labels(*ROOMS, "data.source.seed=1", *FINE, "--out", made) == 2
    assert "it was begun with data.source.seed=0, not 1" in capsys.readouterr().err
    assert hn_labels(*ROOMS, *FINE, "--out", made) == 0
    assert "made now" in capsys.readouterr().out


def test_a_broken_frame_ends_with_status_1(folder, tmp_path, capsys):
    words, camera = folder
    depth = tmp_path / "own" / "train" / "depths" / "a" / "1.png"
    depth.write_bytes(depth.read_bytes()[:100])
    assert hn_labels(*words, "--camera", *camera) == 1
    output = capsys.readouterr()
    assert str(depth) in output.err
    assert "1 frames could not be used; repair their files" in output.err
    assert len(HN(str(tmp_path / "hn"), val_fraction=None).files("train")) == 1


def test_check_and_show_read_it(made, tmp_path, capsys):
    words = ["data=hn", f"data.source.root={made}"]
    assert main(["data", "check", *words, "--out", str(tmp_path / "check"), "--workers", "1"]) == 0
    report = json.loads((tmp_path / "check" / "check.json").read_text())
    assert len(report["classes"]) == 20
    crop = "data.train_transform.crop=[48,64]"
    assert main(["data", "show", *words, crop, "--out", str(tmp_path / "x.png"), "--count", "2"]) == 0
    assert Image.open(tmp_path / "x.png").width > 100
    capsys.readouterr()


def test_it_trains(made, tiny):
    from hardpix.train.train import train

    cfg = tiny("data=hn", f"data.source.root={made}", "data.batch_size=2", "trainer.max_steps=1")
    assert 0 <= train(cfg, []).metrics["test/miou"] <= 1


def test_interrupted_it_goes_on(tmp_path, monkeypatch, capsys):
    write = Image.Image.save
    left = [5]  # files until Ctrl-C

    def interrupted(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return write(*arguments, **options)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert hn_labels(*ROOMS, *FINE, "--out", tmp_path / "hn") == 130
    said = capsys.readouterr().err
    assert said == "hardpix: interrupted; the same command goes on where this one stopped\n"
    for out in ("hn", "whole"):
        assert hn_labels(*ROOMS, *FINE, "--out", tmp_path / out) == 0
    whole = {p.relative_to(tmp_path / "whole"): p.read_bytes() for p in (tmp_path / "whole").rglob("*.*")}
    assert {p.relative_to(tmp_path / "hn"): p.read_bytes() for p in (tmp_path / "hn").rglob("*.*")} == whole
