"""What is declared of labels and images is held against the files before anything is trained."""

import re
import shlex

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from hardpix import record
from hardpix.cli import main
from hardpix.data import Folder, Listed
from hardpix.data.check import check
from hardpix.data.check_report import judge
from hardpix.data.labels import LabelCode
from hardpix.evaluate import evaluate
from hardpix.train import provenance
from hardpix.train.build import build
from hardpix.train.rundir import read_config
from hardpix.train.train import train
from hardpix.types import DataError

SPLITS = ("train", "val", "test")
H, W = 32, 48


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)


def folder(root, values, *, image=lambda rng: rng.integers(0, 256, (H, W, 3), np.uint8), frames=2):
    """Frames whose masks hold these values in turn, by split; ``values``: for all splits, or of each."""
    rng = np.random.default_rng(0)
    for split in SPLITS:
        held = np.array(values[split] if isinstance(values, dict) else values, np.uint8)
        for number in range(frames):
            save(root / split / f"images/{number}.png", image(rng))
            save(root / split / f"labels/{number}.png", np.resize(held, (H, W)))
    return root


def verdict(source):
    counts = {}
    for split in SPLITS:
        labels = [f["label"].numpy() for f in map(source.frames(split, frozenset({"label"})).load, range(2))]
        values = np.stack(labels).ravel()
        counts[split] = np.bincount(
            np.minimum(values, source.info.num_classes), minlength=len(source.info.classes) + 1
        )
    return judge(source, counts)


def own(root, classes=("background", "crack"), **options):
    return Folder(str(root), classes=list(classes), **options)


def applied(said):
    parser = OverridesParser.create()
    given = [parser.parse_override(word) for word in shlex.split(said)]
    return {o.key_or_group.removeprefix("data.source."): o.value() for o in given}


def test_masks_of_0_and_255_are_refused_with_the_override_that_reads_them(tmp_path):
    root = folder(tmp_path, [0, 0, 0, 255])
    refusal, lines = verdict(own(root))
    assert lines == ()
    assert refusal.startswith(
        "labels of folder: crack never occurs in train, val, test; background alone does (25 % of train"
    )
    said = re.search("if 255 marks crack: ('data.*?254)", refusal)[1]
    assert said == "'data.source.label_map={0:0,255:1}' data.source.ignore_index=254"
    assert verdict(own(root, **applied(said))) == ("", ())
    alone = re.search("no other class: ('.*')", refusal)[1]
    assert verdict(own(root, **applied(alone))).refusal == ""


def test_a_colour_that_is_ignored_may_be_the_class_that_never_occurs(tmp_path):
    for split in SPLITS:
        for number in range(2):
            mask = np.zeros((H, W, 3), np.uint8)
            mask[4:] = (200, 100, 0)
            save(tmp_path / split / f"images/{number}.png", mask)
            save(tmp_path / split / f"labels/{number}.png", mask)
    options = {"label_format": "colour", "palette": [[0, 0, 0], [9, 9, 9]], "ignore_colours": [[200, 100, 0]]}
    refusal, _ = verdict(own(tmp_path, **options))
    said = re.search(r"if \(200, 100, 0\) marks crack: (.*?null)", refusal)[1]
    assert verdict(own(tmp_path, **options | applied(said))) == ("", ())


def test_a_class_that_a_small_set_lacks_is_told_and_not_refused(tmp_path):
    root = folder(tmp_path, {"train": [0, 1, 1], "val": [0, 0], "test": [0, 2, 255, 255, 255]})
    refusal, lines = verdict(own(root, ["a", "b", "c", "d"]))
    assert refusal == ""
    assert lines == (
        "labels of folder: d never occurs in train, val, test; if 255 marks d: "
        "'data.source.label_map={0:0,1:1,2:2,255:3}' data.source.ignore_index=254",
        "labels of folder: 60 % of test is ignored (255 in the files)",
        "labels of folder: val holds a alone: a score of it tells little",
        "labels of folder: c: not in train, so that it cannot be learned",
    )


def test_one_class_is_told_with_the_override_that_gives_it_a_background(tmp_path):
    root = folder(tmp_path, [0, 255])
    refusal, lines = verdict(own(root, ["crack"]))
    assert refusal == ""
    said = re.search("if 255 marks background: (.*)", lines[0])[1]
    again = applied(said)
    assert again["classes"] == ["background", "crack"]
    source = own(root, **again)
    assert verdict(source) == ("", ())
    assert source.frames("train", frozenset({"label"})).load(0)["label"][0, :2].tolist() == [1, 0]


def test_much_void_is_told_with_the_override_that_makes_it_a_class(tmp_path):
    root = folder(tmp_path, [0, 1, 255, 255, 255])
    refusal, (line,) = verdict(own(root, ["background", "b"]))
    assert refusal == ""
    said = re.search(r"60 % of test is ignored \(255 in the files\); if 255 marks foreground: (.*)", line)[1]
    again = applied(said)
    assert again["classes"] == ["foreground", "background", "b"]
    source = own(root, **again)
    assert verdict(source) == ("", ())
    assert source.frames("train", frozenset({"label"})).load(0)["label"][0, :4].tolist() == [1, 2, 0, 0]


def test_labels_without_any_class_are_refused(tmp_path):
    everywhere = own(folder(tmp_path / "a", [255]))
    assert "no pixel of train, val, test has a class; if 255 marks background" in verdict(everywhere).refusal
    for split, said in (("train", "nothing is learned"), ("test", "no score")):
        values = {key: [0, 1] for key in SPLITS} | {split: [255]}
        refusal, lines = verdict(own(folder(tmp_path / split, values)))
        assert refusal == ""
        assert lines[-1] == f"labels of folder: no pixel of {split} has a class: {said}"


def test_a_list_and_a_check_of_the_data_tell_the_same(tmp_path):
    root = folder(tmp_path, [0, 255])
    rows = [f"{s}/images/{n}.png,{s}/labels/{n}.png,{s},{s}{n}" for s in SPLITS for n in range(2)]
    (root / "list.csv").write_text("\n".join(["image,label,split,name", *rows]))
    listed = Listed(str(root / "list.csv"), classes=["background", "crack"])
    assert "'data.source.label_map={0:0,255:1}' data.source.ignore_index=254" in verdict(listed).refusal
    (found,) = [f for f in check(own(root), SPLITS).findings if f.code == "class-single"]
    assert found.level == "error"
    assert "'data.source.label_map={0:0,255:1}' data.source.ignore_index=254" in found.todo


def given(tiny, root, *overrides):
    return tiny("data=folder", f"data.source.root={root}", "data.source.classes=[a,b]", "data.batch_size=2", "panels=0",
                *overrides)  # fmt: skip


def test_a_run_on_a_single_class_is_refused_before_anything_is_written(tiny, tmp_path):
    cfg = given(tiny, folder(tmp_path / "d", [0, 255]), "run=x")
    with pytest.raises(DataError, match=re.escape("data.source.label_map={0:0,255:1}")):
        train(cfg, [])
    assert not (tmp_path / "runs").exists()


def test_labels_are_counted_once(tiny, tmp_path, monkeypatch):
    cfg = given(tiny, folder(tmp_path / "d", [0, 0, 0, 255]), "data.source.classes=[a,b,c]")
    cfg.data.source.label_map = {255: 2}
    cfg.data.source.ignore_index = 254
    data, _ = build(cfg)
    first = provenance.label_verdict(data)
    assert "b never occurs" in first.lines[0]
    monkeypatch.setattr(LabelCode, "decode", None)
    assert provenance.label_verdict(data) == first


def test_training_labels_that_are_skipped_are_no_obstacle_and_others_are(tiny, tmp_path):
    root = folder(tmp_path / "d", [0, 1])
    (root / "train/labels/1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"train/labels/1\.png"):
        provenance.checked_data_record(build(given(tiny, root))[0])
    data, _ = build(given(tiny, root, "data.on_error=skip"))
    provenance.checked_data_record(data)
    (root / "test/labels/1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"test/labels/1\.png"):
        provenance.checked_data_record(data)


def twelve_bits(rng):
    return rng.integers(0, 4096, (H, W), np.uint16)


@pytest.mark.parametrize("split", SPLITS)
def test_an_image_of_12_bits_in_any_split_is_refused_before_anything_is_written(tiny, tmp_path, split):
    root = folder(tmp_path / "d", [0, 1])
    save(root / split / "images/1.png", twelve_bits(np.random.default_rng(0)))
    with pytest.raises(DataError, match=rf"{split}/images/1\.png: .*data\.source\.image_range=\[0,4095\]"):
        train(given(tiny, root, "run=x"), [])
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_an_image_range_holds_in_training_evaluation_and_prediction(tiny, tmp_path):
    deep = folder(tmp_path / "deep", [0, 1], image=twelve_bits)
    flat = tmp_path / "flat"
    for path in sorted(deep.rglob("*.png")):
        pixels = np.array(Image.open(path))
        if pixels.dtype == np.uint16:
            pixels = np.rint(pixels / 4095 * 255).astype(np.uint8)
        save(flat / path.relative_to(deep), pixels)
    scores = {}
    for name, root, more in (("deep", deep, ["data.source.image_range=[0,4095]"]), ("flat", flat, [])):
        run = tmp_path / "runs/default" / name
        trained = train(given(tiny, root, f"run={name}", *more), []).metrics
        tested = evaluate(run, read_config(run), split="test", weights="last", out=tmp_path / f"{name}_out")
        assert (
            main(["predict", str(run), str(root / "test/images"), "--out", str(tmp_path / f"{name}_p")]) == 0
        )
        labels = [np.array(Image.open(p)) for p in sorted((tmp_path / f"{name}_p/label").iterdir())]
        scores[name] = trained["test/miou"], tested["test/miou"], np.stack(labels)
    for one, other in zip(scores["deep"], scores["flat"], strict=True):
        np.testing.assert_array_equal(one, other)
    words = [
        "predict",
        str(tmp_path / "runs/default/deep"),
        "--out",
        str(tmp_path / "p2"),
        str(flat / "test/images"),
    ]
    assert main(words) == 1
    assert main([*words, "data.source.image_range=null"]) == 0


@pytest.mark.parametrize("more", [(), pytest.param(("method=hardness",), marks=pytest.mark.slow)])
def test_one_class_and_void_train_test_and_predict(tiny, tmp_path, capsys, more):
    root = folder(tmp_path / "d", [0, 0, 255])
    run = tmp_path / "runs/default/x"
    done = train(given(tiny, root, "run=x", "data.source.classes=[crack]", *more), [])
    assert done.status == "done"
    assert done.metrics["test/miou"] == done.metrics["val/miou"] == 1.0
    assert "crack is the only class, so that every score is 100 %" in capsys.readouterr().out
    confusion = np.load(run / "confusion.npy")
    assert confusion.shape == (1, 1)
    assert (run / "per_class.csv").read_text().splitlines()[1] == f"crack,1.0,1.0,{confusion.sum()}"
    assert "0:" in (run / "per_image.csv").read_text()
    assert main(["predict", str(run), str(root / "test/images"), "--out", str(tmp_path / "p")]) == 0
    assert main(["table", str(run)]) == 0
    assert "100.00" in capsys.readouterr().out
    assert record.read(run).status == "done"


@pytest.mark.slow
def test_figures_of_one_class(tiny, tmp_path):
    root = folder(tmp_path / "d", [0, 0, 255])
    train(
        given(
            tiny, root, "run=h", "data.source.classes=[crack]", "method=hardness", "callbacks.snapshots=[1,2]"
        ),
        [],
    )
    for kind in ("deciles", "ranking", "evolution", "panels"):
        words = ["figure", kind, str(tmp_path / "runs/default/h"), "--out", str(tmp_path / f"{kind}.png")]
        assert main(words) == 0, kind
