"""Frames whose depth file is missing: named, or without a reading, counted, and trained on by their labels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix.cli import main
from hardpix.data import Folder, Listed, NYUv2, NYUv2Raw, Packed, RGBDFolder, pack
from hardpix.data.hn_labels import Choice, HNSettings, make_labels
from hardpix.data.sets.hn import read_listing
from hardpix.train import provenance, rundir
from hardpix.train.build import build
from hardpix.train.train import start_remarks
from hardpix.types import ConfigError, DataError

KEYS = frozenset({"image", "label", "depth", "depth_valid"})
HEIGHT, WIDTH = 32, 48
DEEP = 2000  # millimetres in every file
CLASSES = ("a", "b", "c")


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write(path, index):
    """Image, label and depth of a frame: ``path(kind)`` says where; depth 0, no reading, in the first row."""
    dice = np.random.default_rng(index)
    depth = np.full((HEIGHT, WIDTH), DEEP, np.uint16)
    depth[0] = 0
    save(path("image"), dice.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    if label := path("label"):
        save(label, np.kron(dice.integers(1, 3, (4, 6), np.uint8), np.ones((8, 8), np.uint8)))
    save(path("depth"), depth)


def folder(root):
    for split, count in {"train": 4, "val": 2, "test": 2}.items():
        for index in range(count):
            write(lambda kind: root / split / f"{kind}s" / f"{index}.png", index)  # noqa: B023
    return root


FOLDER = {"classes": CLASSES, "depths": "{split}/depths", "depth_scale": 1000.0, "depth_max": 4.0}


def _folder(root):
    folder(root)
    return lambda **o: Folder(str(root), **FOLDER, **o)


def _listed(root):
    folder(root)
    rows = [{kind: f"train/{kind}s/{i}.png" for kind in ("image", "label", "depth")} for i in range(4)]
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return lambda **o: Listed(str(root / "{split}.jsonl"), classes=CLASSES, depth_scale=1000.0, **o)


def _nyuv2(root):
    kinds = {"image": "rgb", "label": "labels_40", "depth": "depth_16bit"}
    for split, number in [*(("train", n) for n in range(1, 5)), ("test", 5)]:
        write(lambda kind: root / split / kinds[kind] / f"{number:04d}.png", number)  # noqa: B023
    return lambda **o: NYUv2(str(root), void_40_in_train="class", **o)


def _nyuv2_raw(root):
    for name in "abcd":
        write(lambda kind: None if kind == "label" else root / f"{kind}s" / f"{name}.png", ord(name))  # noqa: B023
        (root / f"images/{name}.png").rename(root / f"images/{name}.jpg")
    (root / "frames.jsonl").write_text("".join(json.dumps({"name": name}) + "\n" for name in "abcd"))
    return lambda **o: NYUv2Raw(str(root), **o)


def _open3d(root):
    kinds = {"image": "color", "depth": "depth"}
    for name in "abcd":
        write(lambda kind: root / kinds[kind] / f"{name}.png" if kind in kinds else None, ord(name))  # noqa: B023
    return lambda **o: RGBDFolder(str(root), layout="open3d", **o)


# what makes the files, and the depth file of the third frame
SOURCES = {
    "folder": (_folder, "train/depths/2.png"),
    "listed": (_listed, "train/depths/2.png"),
    "nyuv2": (_nyuv2, "train/depth_16bit/0003.png"),
    "nyuv2_raw": (_nyuv2_raw, "depths/c.png"),
    "rgbd": (_open3d, "depth/c.png"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_of_depth_files_names_it_or_goes_on_without(tmp_path, name):
    make, lost = SOURCES[name]
    source = make(tmp_path)
    keys = KEYS & source().info.provides
    whole = [source().frames("train", keys).load(index) for index in range(4)]
    (tmp_path / lost).unlink()
    named = "train/depth/0003.png" if name == "nyuv2" else lost  # of two places the second
    with pytest.raises(
        DataError, match=rf"/{named}: no such file; .*, or data\.source\.depth_missing=ignore goes on"
    ):
        source().frames("train", keys)
    frames = source(depth_missing="ignore").frames("train", keys)
    assert sorted(frames.without_depth()) == [2]
    for index, before in enumerate(whole):
        found = frames.load(index)
        assert found.keys() == before.keys()
        for key in ("image", "label"):
            assert key not in found or torch.equal(found[key], before[key])
        assert found["depth"].dtype == torch.float32
        assert found["depth_valid"].dtype == torch.bool
        assert found["depth"].shape == found["depth_valid"].shape == (HEIGHT, WIDTH)
        assert torch.isfinite(found["depth"]).all()
        if index == 2:
            assert not found["depth_valid"].any()
        else:
            assert found["depth_valid"].sum() == (HEIGHT - 1) * WIDTH
            assert torch.equal(found["depth"], before["depth"])


def test_an_image_or_label_that_is_missing_stays_an_error_with_its_own_advice(tmp_path):
    folder(tmp_path)
    for kind in ("labels", "depths"):
        (tmp_path / f"train/{kind}/1.png").unlink()
    with pytest.raises(DataError, match=r"labels/1\.png: no such file \(and 1 more\).*needs it$"):
        Folder(str(tmp_path), **FOLDER).frames("train", KEYS)
    with pytest.raises(DataError, match=r"labels/1\.png: no such file; every frame of the split needs it$"):
        Folder(str(tmp_path), **FOLDER, depth_missing="ignore").frames("train", KEYS)


def test_what_asks_for_no_depth_lacks_none(tmp_path):
    folder(tmp_path)
    (tmp_path / "train/depths/1.png").unlink()
    frames = Folder(str(tmp_path), **FOLDER, depth_missing="ignore").frames(
        "train", KEYS - {"depth", "depth_valid"}
    )
    assert "depth" not in frames.load(1)
    assert not frames.without_depth()


def test_a_row_of_a_list_may_then_leave_its_depth_empty(tmp_path):
    source = _listed(tmp_path)
    rows = (tmp_path / "train.jsonl").read_text().replace("train/depths/3.png", "")
    (tmp_path / "train.jsonl").write_text(rows)
    with pytest.raises(DataError, match=r"line 4: no depth; .*data\.source\.depth_missing=ignore"):
        source().frames("train", KEYS)
    frames = source(depth_missing="ignore").frames("train", KEYS)
    assert sorted(frames.without_depth()) == [3]
    assert not frames.load(3)["depth_valid"].any()


def test_a_border_is_cut_off_it_as_off_any_other(tmp_path):
    source = _nyuv2(tmp_path)
    (tmp_path / "train/depth_16bit/0002.png").unlink()
    found = source(depth_missing="ignore", border_crop=[2, 30, 5, 45]).frames("train", KEYS).load(1)
    assert found["depth"].shape == found["depth_valid"].shape == found["label"].shape == (28, 40)


@pytest.mark.parametrize("make", [lambda **o: Folder("x", **FOLDER, **o), lambda **o: NYUv2Raw("x", **o)])
def test_another_word_is_refused(make):
    with pytest.raises(ConfigError, match=r"data\.source\.depth_missing=skip: must be error or ignore"):
        make(depth_missing="skip")


def test_packed_it_has_no_reading_either(tmp_path):
    folder(tmp_path / "set")
    (tmp_path / "set/train/depths/1.png").unlink()
    source = Folder(str(tmp_path / "set"), **FOLDER, depth_missing="ignore")
    frames = Packed(str(pack(source, tmp_path / "packed", size=None, splits=["train"]))).frames("train", KEYS)
    assert [int(frames.load(i)["depth_valid"].sum()) for i in range(4)] == [1488, 0, 1488, 1488]


# Training


@pytest.fixture
def lwm(tiny, tmp_path):
    """``lwm("method=lwm", ...)``: a configuration on four frames, of which those numbered lack their depth."""

    def make(*overrides, lost=(1,)):
        if not (tmp_path / "set").is_dir():
            folder(tmp_path / "set")
        for index in lost:
            (tmp_path / f"set/train/depths/{index}.png").unlink(missing_ok=True)
        method = () if any(o.startswith("method=") for o in overrides) else ("method=lwm",)
        return tiny(*method, "data=folder", f"data.source.root='{tmp_path}/set'", "data.source.classes=[a,b,c]",
                    "data.source.depths='{split}/depths'", "data.source.depth_scale=1000",
                    "data.source.depth_max=4", "data.source.depth_missing=ignore", "scheduler=constant",
                    "panels=0", "head.dropout=0", "model.aux_dropout=0", *overrides)  # fmt: skip

    return make


def one_batch(data):
    """All four training frames in the order of their names."""
    batch = next(iter(data.train_dataloader()))
    batch = data.on_after_batch_transfer(batch, 0)
    order = sorted(range(4), key=lambda place: batch["name"][place])
    return {key: [value[i] for i in order] if key == "name" else value[order] for key, value in batch.items()}


@pytest.mark.parametrize("fusion", ["sum", "product", "max", "dpe", "dse"])
def test_the_frame_trains_on_its_label_and_not_on_depth(lwm, fusion):
    """The depth loss is that of the other frames; with DSE, one region of a cell, the label is weighted as ever."""
    torch.manual_seed(0)
    data, method = build(lwm(f"method.hardness={fusion}", "data.train_transform.scale_with_zoom=true"))
    batch = one_batch(data)
    assert batch["name"] == ["0", "1", "2", "3"]
    assert batch["depth_valid"].flatten(1).any(1).tolist() == [True, False, True, True]
    method.eval()
    batch["image"].requires_grad_()
    losses = method.losses(batch)
    assert all(torch.isfinite(x) for x in losses.values())
    log_depth = method.dense(batch["image"])[:, -1].detach().double().numpy()
    valid, depth = batch["depth_valid"].numpy(), batch["depth"].double().numpy()
    gap = log_depth - np.log(1 + 255 * np.clip(depth / 4, 0, 1))
    expected = sum((gap[i][valid[i]] ** 2).sum() for i in (0, 2, 3)) / valid[[0, 2, 3]].sum()
    assert float(losses["depth"].detach()) == pytest.approx(expected, rel=1e-4)
    (by_depth,) = torch.autograd.grad(losses["depth"], batch["image"], retain_graph=True)
    assert [bool(x.any()) for x in by_depth] == [True, False, True, True]
    (by_label,) = torch.autograd.grad(losses["segmentation"], batch["image"], retain_graph=True)
    assert by_label[1].any()
    (by_weight,) = torch.autograd.grad(losses["hard"], batch["image"], retain_graph=True)
    assert torch.isfinite(by_weight).all()
    assert bool(by_weight[1].any()) == (fusion in ("sum", "max", "dse"))  # R = 0 there, Z stands
    # what stands in the place of the reading has no say in anything
    batch["depth"][1] = 3.5
    for name, loss in method.losses(batch).items():
        assert torch.equal(loss, losses[name]), name


def test_weights_of_a_frame_without_depth_are_its_region_error_alone(lwm):
    torch.manual_seed(0)
    data, method = build(lwm("method.curriculum=false"))
    batch = one_batch(data)
    method.eval()
    maps = method.maps(batch)
    assert all(torch.isfinite(x).all() for x in maps.values())
    assert not maps["dpe"][1].any()
    assert maps["dpe"][0].any()
    assert torch.equal(maps["hardness"][1], maps["dse"][1])
    wrong = (method.predict_logits(batch["image"]).argmax(1) != batch["label"])[1].numpy()
    counted = (batch["label"][1] != 255).numpy()
    cell = (
        slice(0, HEIGHT // 8),
        slice(0, WIDTH // 8),
    )  # one bin of depth: all of the cell's labelled pixels
    share = (wrong & counted)[cell].sum() / max(counted[cell].sum(), 1)
    np.testing.assert_allclose(maps["dse"][1][cell].numpy(), share * counted[cell], atol=1e-6)


def test_they_are_counted_and_named_at_the_start(lwm):
    data, method = build(lwm(lost=(1, 3)))
    assert provenance.skip_counts(data) == {"run/frames_without_depth": 2.0}
    (line,) = [line for line in start_remarks(data, method) if "depth_missing" in line]
    assert line == (
        "depth_missing=ignore: 2 of 4 train frames have no depth file and take no part in what uses depth: 1, 3"
    )
    assert provenance.data_record(data)["frames"]["folder/train"] == 4
    baseline, method = build(lwm("method=baseline"))
    assert provenance.skip_counts(baseline) == {}
    assert not [line for line in start_remarks(baseline, method) if "depth_missing" in line]


def test_of_a_labelled_share_only_its_own_are_counted(lwm, tmp_path):
    (tmp_path / "list").write_text("0\n3\n")
    data, _ = build(lwm(f"data.labeled='{tmp_path}/list'", "data.batch_size=2", lost=(1, 3)))
    assert provenance.skip_counts(data) == {"run/frames_without_depth": 1.0}
    assert provenance.depth_remarks(data)[0].endswith("1 of 2 train frames have no depth file and take no part in "
                                                      "what uses depth: 3")  # fmt: skip


def test_a_share_of_a_source_that_lists_its_own_frames(tiny, tmp_path):
    """There the frames are chosen after all were opened."""
    _nyuv2(tmp_path / "set")
    (tmp_path / "list").write_text("0002\n0004\n")
    (tmp_path / "set/train/depth_16bit/0004.png").unlink()
    (tmp_path / "set/train/depth_16bit/0001.png").unlink()
    data, _ = build(tiny("method=lwm", "data=nyuv2", f"data.source.root='{tmp_path}/set'", "data.batch_size=2",
                         "data.source.depth_missing=ignore", f"data.labeled='{tmp_path}/list'",
                         "data.train_transform.crop=[32,48]"))  # fmt: skip
    assert provenance.skip_counts(data) == {"run/frames_without_depth": 1.0}
    frames = data.evaluation_dataset("train").frames
    assert [frames.name(index) for index in frames.without_depth()] == ["0004"]


def test_no_depth_at_all_is_one_error_where_depth_is_needed(lwm):
    with pytest.raises(
        DataError, match=r"^none of the 4 frames of split train has a depth file \(0 is the first\)"
    ):
        build(lwm(lost=range(4)))
    plain, _ = build(lwm("method=baseline", lost=range(4)))
    plain.train_dataloader()


def test_a_test_split_without_depth_is_scored(lwm, tmp_path):
    """Depth is for training: prediction reads none, and errors of depth are left out."""
    cfg = lwm(lost=())
    for index in range(2):
        (tmp_path / f"set/test/depths/{index}.png").unlink()
    data, method = build(cfg)
    method.eval()
    for batch in data.evaluation_loader("test"):
        assert not batch["depth_valid"].any()
        method._score(batch, "test")
    assert method.extra_metrics["test"]["depth"].compute() == {}
    assert provenance.depth_remarks(data)[0].startswith("depth_missing=ignore: 2 of 2 test frames")
    assert provenance.skip_counts(data) == {}


def test_a_run_may_go_on_with_the_other_policy(tmp_path, lwm):
    cfg = lwm(lost=())
    rundir.write_config(tmp_path, cfg)
    cfg.data.source.depth_missing = "error"
    assert rundir.differences(tmp_path, cfg, rundir.FREE_ON_RESUME) == []
    assert rundir.differences(tmp_path, cfg, rundir.NO_FACTOR) != []


@pytest.mark.slow
def test_a_run_trains_counts_and_is_told_of(lwm, tmp_path, capsys):
    from hardpix.train.train import train

    done = train(lwm("run=a", "trainer.max_steps=2"))
    assert done.status == "done"
    assert done.metrics["run/frames_without_depth"] == 1
    assert all(np.isfinite(v) for k, v in done.metrics.items() if k.startswith("test/"))
    assert "1 of 4 train frames have no depth file" in capsys.readouterr().out
    train(lwm("run=b", "seed=1", "trainer.max_steps=2"))
    assert main(["table", str(tmp_path / "runs"), "--rows", "method"]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "had no depth file for 1 training frames" in said


# Labels of height and normal


def hn(source, out):
    settings = HNSettings(
        tuple(0.25 * i for i in range(10)), normals=2, up="gravity", radius=1, gravity_radius=3
    )
    return make_labels(source, {"name": "x"}, ["train"], out, settings, Choice(), workers=1,
                       bar=lambda *_: None, say=print)  # fmt: skip


def test_labels_of_height_are_not_made_of_it(tmp_path):
    make = _open3d(tmp_path / "set")
    hn(make(intrinsics=[40, 40, 24, 16]), tmp_path / "whole")
    (tmp_path / "set/depth/c.png").unlink()
    with pytest.raises(DataError, match=r"depth/c\.png: no such file"):
        hn(make(intrinsics=[40, 40, 24, 16]), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    tallies, faults = hn(make(intrinsics=[40, 40, 24, 16], depth_missing="ignore"), tmp_path / "out")
    assert faults == []
    before, after = (
        {e["name"]: e for e in read_listing(tmp_path / out / "train/frames.jsonl")}
        for out in ("whole", "out")
    )
    assert after.pop("c")["rejected"].startswith("fewer than 1% of the pixels have depth")
    assert tallies["train"].frames == 4
    del before["c"]
    assert after == before
    for path in (tmp_path / "set/depth").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"^none of the 4 frames of split train has a depth file"):
        hn(make(intrinsics=[40, 40, 24, 16], depth_missing="ignore"), tmp_path / "none")
    assert not (tmp_path / "none").exists()
