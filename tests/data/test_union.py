"""The split ``trainval``: both splits as one, for every data set that has both, and refused where val is test."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix.cli import main
from hardpix.data import (
    ADE20K,
    CIFAR100,
    HN,
    ISAID,
    SUNRGBD,
    CamVid,
    Cityscapes,
    Coco,
    DataModule,
    Folder,
    Listed,
    NYUv2,
    NYUv2Raw,
    Packed,
    SyntheticRooms,
    TestTransform,
    TotalText,
    TrainTransform,
    fingerprint,
    pack,
    stamp,
)
from hardpix.data.sampling import LabeledSplit
from hardpix.data.source import without_depth
from hardpix.data.statistics import class_counts, stored
from hardpix.data.union import split_frames
from hardpix.types import ConfigError, DataError

BOTH = frozenset({"image", "label"})
DEPTH = BOTH | {"depth", "depth_valid"}


def folder(root, names=None, *, depth=False):
    """``{split}/images``, ``labels`` and ``depths``: every picture of another grey, labels of two classes."""
    names = names or {"train": ["a", "b", "c"], "val": ["d", "e"], "test": ["f"]}
    grey = 0
    for split, frames in names.items():
        for kind in ("images", "labels", "depths"):
            (root / split / kind).mkdir(parents=True)
        for name in frames:
            grey += 10
            Image.new("RGB", (8, 6), (grey, 0, 0)).save(root / split / "images" / f"{name}.png")
            label = np.zeros((6, 8), np.uint8)
            label[: len(frames)] = 1
            Image.fromarray(label).save(root / split / "labels" / f"{name}.png")
            Image.fromarray(np.full((6, 8), grey, np.uint16)).save(root / split / "depths" / f"{name}.png")
    more = (
        {"depths": "{split}/depths", "depth_scale": 10, "depth_max": 10, "depth_missing": "ignore"}
        if depth
        else {}
    )
    return Folder(str(root), classes=["no", "yes"], **more)


def module(source, **changes):
    settings = {"batch_size": 2, "eval_batch_size": 1, "num_workers": 0, "seed": 0, "pin_memory": False,
                "drop_last": True, "train_split": "trainval"}  # fmt: skip
    train = TrainTransform(crop=(6, 8), base_size=None, ratio=(1, 1), ratio_step=None, rotate=None,
                           cat_max_ratio=None, hflip=0, scale_with_zoom=False, photometric=None)  # fmt: skip
    transforms = {"train_transform": train, "test_transform": TestTransform(resize=None)}
    return DataModule(source, **transforms, **settings | changes)


def nyuv2(root, **settings):
    return NYUv2(root, void_40_in_train="ignore", **settings)


def names_of(frames):
    return [frames.name(index) for index in range(len(frames))]


def test_trainval_is_train_and_then_val(tmp_path):
    source = folder(tmp_path, depth=True)
    (tmp_path / "val/depths/d.png").unlink()
    parts = [source.frames(split, DEPTH) for split in ("train", "val")]
    union = split_frames(source, "trainval", DEPTH)
    assert names_of(union) == ["a", "b", "c", "d", "e"]
    alone = [frames.load(index) for frames in parts for index in range(len(frames))]
    for index, expected in enumerate(alone):
        found = union.load(index)
        assert found.keys() == expected.keys()
        assert found["name"] == union.name(index)
        assert all(torch.equal(found[key], expected[key]) for key in DEPTH)
        assert torch.equal(union.label(index), expected["label"])
        assert union.intrinsics(index) is None
    assert list(stored(union)) == [*stored(parts[0]), *stored(parts[1])]
    assert list(without_depth(union)) == [3]
    pixels = [class_counts(frames, source.info).pixels for frames in parts]
    assert torch.equal(class_counts(union, source.info).pixels, pixels[0] + pixels[1])
    for known in (fingerprint, stamp):
        assert len({known(frames) for frames in (*parts, union)}) == 3
    with pytest.raises(IndexError):
        union.load(5)


def test_equal_names_get_their_split_before_them(tmp_path):
    union = split_frames(folder(tmp_path, {"train": ["1", "2"], "val": ["2"]}), "trainval", BOTH)
    assert names_of(union) == ["train__1", "train__2", "val__2"]
    assert union.load(2)["name"] == "val__2"


def test_any_splits_are_joined_by_a_plus(tmp_path):
    source = folder(tmp_path, {"train2017": ["a"], "val2017": ["b"], "test": ["c"]})
    assert names_of(split_frames(source, "train2017+val2017", BOTH)) == ["a", "b"]
    assert names_of(split_frames(source, "test", BOTH)) == ["c"]
    with pytest.raises(DataError, match=r"train/images: no such folder"):
        split_frames(source, "trainval", BOTH)


def test_a_split_of_that_name_comes_first(tmp_path):
    source = folder(tmp_path / "a", {"train": ["a"], "val": ["b"], "trainval": ["x", "y"]})
    assert names_of(split_frames(source, "trainval", BOTH)) == ["x", "y"]
    rows = ["image,label,split", *(f"{s}/images/{n}.png,{s}/labels/{n}.png,{s}" for s, n in
            (("train", "a"), ("val", "b"), ("trainval", "x")))]  # fmt: skip
    (tmp_path / "a/list.csv").write_text("\n".join(rows) + "\n")
    listed = Listed(str(tmp_path / "a/list.csv"), classes=["no", "yes"])
    assert [Listed.has_split(listed, s) for s in ("train", "trainval", "test")] == [True, True, False]
    assert names_of(split_frames(listed, "trainval", BOTH)) == ["trainval__images__x"]
    (tmp_path / "a/list.csv").write_text("\n".join(rows[:-1]) + "\n")
    assert len(split_frames(listed, "trainval", BOTH)) == 2
    packed = Packed(str(pack(source, tmp_path / "p", size=None, splits=("trainval", "train", "val"))))
    assert len(split_frames(packed, "trainval", BOTH)) == 2
    packed = Packed(str(pack(source, tmp_path / "q", size=None, splits=("train", "val"))))
    assert names_of(split_frames(packed, "trainval", BOTH)) == ["a", "b"]
    packed = Packed(str(pack(folder(tmp_path / "b"), tmp_path / "r", size=None, splits=("trainval",))))
    assert names_of(packed.frames("trainval", BOTH)) == ["a", "b", "c", "d", "e"]


def test_coco_has_it_too(tmp_path):
    (tmp_path / "annotations").mkdir()
    for number, split in enumerate(("train", "val")):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 6)).save(tmp_path / split / f"{split}.png")
        content = {
            "images": [{"id": 1, "file_name": f"{split}.png", "height": 6, "width": 8}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 4,
                             "segmentation": [[0, 0, 2 + number, 0, 2, 2, 0, 2]]}],
            "categories": [{"id": 1, "name": "cat"}],
        }  # fmt: skip
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    union = split_frames(Coco(str(tmp_path)), "trainval", BOTH)
    assert names_of(union) == ["train", "val"]
    assert union.label(1).shape == (6, 8)


def test_which_data_sets_have_it(tmp_path):
    """Where val is the test split a union of it with train would train on test."""
    root = str(tmp_path)
    for source in (Cityscapes(root), CamVid(root), ISAID(root), nyuv2(root, val_fraction=0.1)):
        assert source.parts("trainval") == ("train", "val")
        assert source.parts("val") == ("val",)
    for source in (nyuv2(root), SUNRGBD(root), CIFAR100(root), TotalText(root)):
        with pytest.raises(ConfigError, match=rf"split trainval: {source.info.name} has no validation split"):
            source.parts("trainval")
    with pytest.raises(ConfigError, match=r"nyuv2_raw has no split 'trainval'; there are train"):
        NYUv2Raw(root).parts("trainval")
    assert HN.parts is Folder.parts


def test_labels_mean_in_each_part_what_they_mean_there(tmp_path):
    """NYUv2's folder release merged void into 40 in train alone; here both parts are of train."""
    for name in ("0001", "0002", "0003", "0004"):
        for kind in ("rgb", "labels_40", "depth"):
            (tmp_path / "train" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / f"train/rgb/{name}.png")
        Image.new("L", (8, 6), 40).save(tmp_path / f"train/labels_40/{name}.png")
        Image.new("L", (8, 6), 9).save(tmp_path / f"train/depth/{name}.png")
    source = nyuv2(str(tmp_path), val_fraction=0.25)
    union = split_frames(source, "trainval", BOTH)
    assert sorted(names_of(union)) == ["0001", "0002", "0003", "0004"]
    assert all(int(union.label(index).min()) == 255 for index in range(4))


def test_a_labelled_share_of_the_union(tmp_path):
    source = folder(tmp_path)
    half = LabeledSplit(source, "trainval", 0.6, 0)
    chosen = names_of(half.frames(BOTH))
    assert len(chosen) == 3
    assert half.numbers() == {"train": 3, "unlabeled": 2}
    assert sorted(chosen + names_of(half.without_labels())) == ["a", "b", "c", "d", "e"]
    (tmp_path / "list.txt").write_text("e\na\n")
    listed = LabeledSplit(source, "trainval", str(tmp_path / "list.txt"), 0)
    for name in "bc":
        (tmp_path / f"train/labels/{name}.png").unlink()  # files of the others need not be there
    assert names_of(listed.frames(BOTH)) == ["a", "e"]
    only = LabeledSplit(source, "trainval", str(tmp_path / "list.txt"), 0)
    (tmp_path / "list.txt").write_text("d\n")
    assert names_of(only.frames(BOTH)) == ["d"]


def test_training_on_it_says_what_its_scores_are(tmp_path):
    data = module(folder(tmp_path))
    data.use(frozenset())
    seen = {name for batch in data.train_dataloader() for name in batch["name"]}
    assert len(seen) == 4  # of five, two a batch
    assert len(data.full_split("train")) == 5
    (remark,) = (line for line in data.remarks() if "trainval" in line)
    assert remark == ("data.train_split=trainval: the frames of val are trained on, so scores on the split val are "
                    "those of training frames")  # fmt: skip
    assert not any(
        "trained on" in line for line in module(folder(tmp_path / "b"), val_split="test").remarks()
    )
    assert not any(
        "trained on" in line for line in module(folder(tmp_path / "c"), train_split="train").remarks()
    )


def test_a_test_split_of_the_same_files_gets_the_remark_too(tmp_path):
    """ADE20K's test is its validation split under another name."""
    for part in ("training", "validation"):
        for kind, suffix in (("images", "jpg"), ("annotations", "png")):
            (tmp_path / kind / part).mkdir(parents=True)
            Image.new("RGB" if kind == "images" else "L", (8, 6)).save(
                tmp_path / kind / part / f"{part}.{suffix}"
            )
    lines = module(ADE20K(str(tmp_path))).remarks()
    assert [line.split()[-6] for line in lines if "trained on" in line] == ["val", "test"]


def test_synthetic_rooms_have_it():
    rooms = SyntheticRooms(
        height=24, width=32, train_frames=3, val_frames=2, test_frames=1, seed=0, difficulty=0.5
    )
    union = split_frames(rooms, "trainval", DEPTH)
    assert names_of(union) == [f"train_{i:05d}" for i in range(3)] + [f"val_{i:05d}" for i in range(2)]
    assert torch.equal(union.load(4)["depth"], rooms.frames("val", DEPTH).load(1)["depth"])


def test_a_look_over_the_data_takes_its_parts(tmp_path, capsys):
    """A frame of val that is also in test is a leak where val is trained on."""
    folder(tmp_path / "d", {"train": ["a"], "val": ["b"], "test": ["c"]})
    (tmp_path / "d/val/images/b.png").replace(tmp_path / "x.png")
    for target in ("val/images/b.png", "test/images/c.png"):
        (tmp_path / "d" / target).write_bytes((tmp_path / "x.png").read_bytes())
    line = ["data", "check", "data=folder", f"data.source.root={tmp_path / 'd'}", "data.source.classes=[no,yes]",
            "--out", str(tmp_path / "out"), "--workers", "1"]  # fmt: skip
    main([*line, "data.train_split=trainval"])
    found = json.loads((tmp_path / "out/check.json").read_text())
    assert set(found["splits"]) == {"train", "val", "test"}
    assert "leak" in {one["code"] for one in found["findings"]}
    main(line)
    found = json.loads((tmp_path / "out/check.json").read_text())
    assert "leak" not in {one["code"] for one in found["findings"]}
