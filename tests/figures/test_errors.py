"""``hardpix figure errors``: its numbers against counting, its pixels, and what it refuses."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix.cli import main
from hardpix.config.compose import compose
from hardpix.draw.pictures import GAP, MARGIN, SPACE, heatmap
from hardpix.evaluate import loaded
from hardpix.figures import errors
from hardpix.figures import runs as figure_runs
from hardpix.train.train import train
from tests.boundary import threshold_near

pytestmark = pytest.mark.slow  # trains runs

LINE = (
    "data.source.height=32", "data.source.width=48", "data.source.train_frames=8", "data.source.val_frames=1",
    "data.source.test_frames=2", "data.train_transform.crop=[32,48]", "data.batch_size=4", "data.num_workers=0",
    "trainer.accelerator=cpu", "trainer.devices=1", "trainer.max_steps=2", "trainer.sanity_steps=0",
    "callbacks.progress=none", "logger=csv", "panels=1", "study=e",
)  # fmt: skip
TOP = MARGIN + 24 + GAP + 20 + GAP + 20  # title, headings, captions
LEFT = np.cumsum([0, 48 + GAP, 48 + SPACE, 48 + GAP, 48 + SPACE, 48 + SPACE, 48 + GAP]) + MARGIN


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A segmenter, its error branch and a detail branch on both."""
    folder = tmp_path_factory.mktemp("errors")
    line = [*LINE, f"runs_dir={folder}"]
    train(compose([*line, "backbone.name=test_resnet", "head.channels=8", "run=semantic"]), [])
    own = ["method=error_prediction", "method.channels=32", f"parent={folder}/e/semantic", "run=errors"]
    train(compose([*line, *own]), [])
    own = ["method=detail", "method.channels=32", f"parent={folder}/e/errors", "run=detail"]
    train(compose([*line, *own]), [])
    return folder / "e"


@pytest.fixture
def halved(monkeypatch):
    """Every method's threshold halves its error probabilities of the first frame."""
    build = figure_runs.build

    def halves(*given):
        data, method = build(*given)
        method.t = half(by_hand(method, data, 0)["p"])
        return data, method

    monkeypatch.setattr(figure_runs, "build", halves)


def half(values):
    return threshold_near(values, float(np.median(values)))


def by_hand(method, data, place):
    """What the figure is about, from the channels of the method's output."""
    batch = data.evaluation_batch("test", place)
    with torch.inference_mode():
        found = method.dense(batch["image"])[0].double().numpy()
    count = data.info.num_classes
    semantic, right, wrong, detail = found[:count], found[count], found[count + 1], found[count + 2 :]
    shown = np.exp(semantic - semantic.max(0))
    return {
        "label": batch["label"][0].numpy(),
        "semantic": semantic.argmax(0),
        "sure": (shown / shown.sum(0)).max(0),
        "p": 1 / (1 + np.exp(right - wrong)),
        "detail": detail.argmax(0) if len(detail) else None,
    }


def figure(*words):
    return main(["figure", *map(str, words)])


def numbers(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def kind(f, y, x, t, rho=0.95):
    """(is an error, is hard, is expected, detail's change) of one pixel; None where it has no label."""
    truth, one = f["label"][y, x], f["semantic"][y, x]
    if truth == 255:
        return None
    other = one if f["detail"] is None or f["p"][y, x] <= t else f["detail"][y, x]
    change = (
        "" if other == one else {truth == other: "repaired", truth == one: "spoiled"}.get(True, "exchanged")
    )
    return one != truth, one != truth and f["sure"][y, x] > rho, f["p"][y, x] > t, change


@pytest.mark.parametrize("name", ["errors", "detail"])
@pytest.mark.usefixtures("halved")
def test_numbers_are_counted_pixels(runs, tmp_path, name):
    words = (
        "errors",
        runs / name,
        "--out",
        tmp_path / "f.png",
        "--device",
        "cpu",
        "--count",
        2,
        "--tile",
        48,
    )
    assert figure(*words) == 0
    _, data, method = loaded(runs / name, "last", [])
    picture = np.asarray(Image.open(tmp_path / "f.png"))
    t = half(by_hand(method, data, 0)["p"])
    changed = set()
    for place, row in enumerate(numbers(tmp_path / "f.csv")):
        f = by_hand(method, data, place)
        kinds = {(y, x): kind(f, y, x, t) for y, x in np.ndindex(f["label"].shape)}
        known = [k for k in kinds.values() if k is not None]
        expected = {
            "pixels": len(known),
            "errors": sum(k[0] for k in known),
            "hard_errors": sum(k[1] for k in known),
            "expected": sum(k[2] for k in known),
            "errors_expected": sum(k[2] and k[0] for k in known),
            "hard_errors_expected": sum(k[2] and k[1] for k in known),
        }
        changes = {c: sum(k[3] == c for k in known) for c in ("repaired", "spoiled", "exchanged")}
        assert row["frame"] == f"test_0000{place}"
        assert {key: int(row[key]) for key in expected} == pytest.approx(
            expected, abs=2
        )  # float32 at an edge
        if name == "errors":
            assert row["repaired"] == row["errors_after"] == ""
            continue
        assert {key: int(row[key]) for key in changes} == pytest.approx(changes, abs=2)
        assert int(row["errors_after"]) == int(row["errors"]) - int(row["repaired"]) + int(row["spoiled"])
        changed |= {c for c, n in changes.items() if n}
        if place == 0:
            check_pixels(picture, kinds, f)
    assert name == "errors" or changed >= {"spoiled"} or changed >= {"repaired"}


def check_pixels(picture, kinds, f):
    """Nearly every pixel of the maps of the first row, whose tiles have a pixel for each of the frame's."""
    wrong = 0
    for (y, x), k in kinds.items():
        truth, change = (picture[TOP + y, LEFT[i] + x].tolist() for i in (3, 6))
        if k is None:
            wrong += truth != list(errors.UNLABELLED) or change != list(errors.UNLABELLED)
            continue
        wrong += (truth == list(errors.EASY)) != (k[0] and not k[1])
        wrong += (truth == list(errors.HARD)) != k[1]
        for color in ("repaired", "spoiled", "exchanged"):
            wrong += (change == list(getattr(errors, color.upper()))) != (k[3] == color)
    assert wrong <= 4
    colors = heatmap(f["p"], 0, 1).astype(int)
    heat = picture[TOP : TOP + 32, LEFT[4] : LEFT[4] + 48].astype(int)
    white = (heat == 255).all(2)
    assert (np.abs(heat - colors).max(2)[~white] <= 3).mean() > 0.99
    assert white.any()


def test_other_runs_are_refused_by_name(runs, tmp_path, capsys):
    assert figure("errors", runs / "semantic", "--out", tmp_path / "f.png") == 2
    told = capsys.readouterr().err
    assert "semantic is a run of Baseline" in told
    assert "method=error_prediction or method=detail" in told
    assert figure("errors", runs / "errors", runs / "detail", "--out", tmp_path / "f.png") == 2
    assert "hardpix figure errors: draws one run, and 2 are named" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_thresholds_of_real_records(runs, tmp_path):
    assert figure("thresholds", runs / "detail", "--out", tmp_path / "t.png") == 0
    found = numbers(tmp_path / "t.csv")
    assert {r["score"] for r in found} >= {"error_iou", "fused_miou", "semantic_miou", "detail_miou"}
    assert {float(r["t"]) for r in found if r["score"] == "fused_miou"} == {k / 10 for k in range(1, 10)}


@pytest.mark.parametrize("name", ["errors", "detail"])
def test_maps_of_panels_have_the_errors_where_the_truth_is_known(runs, name):
    _, data, method = loaded(runs / name, "last", [])
    batch, f = data.evaluation_batch("test", 1), by_hand(method, data, 1)
    method.rho = half(f["sure"])
    with torch.inference_mode():
        levels = method.maps(batch)["errors"][0].numpy()
        assert "errors" not in method.maps({"image": batch["image"]})
    assert (runs / name / "panels").is_dir()
    wrong = 0
    for y, x in np.ndindex(levels.shape):
        k = kind(f, y, x, 0.5, method.rho)
        wrong += not np.isnan(levels[y, x]) if k is None else levels[y, x] != int(k[0]) + int(k[1])
    assert wrong <= 2  # float32 at an edge
    assert set(np.unique(levels[np.isfinite(levels)])) == {0, 1, 2}
