"""Frames that a list names."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix.data import Listed
from hardpix.types import ConfigError, DataError

BOTH = frozenset({"image", "label"})
DEPTH = BOTH | {"depth", "depth_valid"}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)


@pytest.fixture
def tree(tmp_path):
    """Four frames; frame n has image value 10 n, label n and depth 100 n."""
    for n in range(4):
        save(tmp_path / f"pics/{n}/rgb.png", np.full((4, 6, 3), 10 * n, np.uint8))
        save(tmp_path / f"masks/{n}.png", np.full((4, 6), n, np.uint8))
        save(tmp_path / f"depth/{n}.png", np.full((4, 6), 100 * n, np.uint16))
    return tmp_path


def rows(*numbers, split=None, depth=False):
    made = []
    for n in numbers:
        row = {"image": f"pics/{n}/rgb.png", "label": f"masks/{n}.png"}
        made.append(
            row | ({"split": split} if split else {}) | ({"depth": f"depth/{n}.png"} if depth else {})
        )
    return made


def write(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(entries))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, entries)) + "\n\n")
    else:
        columns = list(entries[0])
        lines = [",".join(columns), *(",".join(entry[c] for c in columns) for entry in entries)]
        path.write_text("\n".join(lines) + "\n")
    return str(path)


CLASSES = ["a", "b", "c", "d"]


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_one_list_with_a_column_of_splits(tree, ending):
    listing = write(tree / f"all.{ending}", [*rows(2, 0, split="train"), *rows(3, split="val")])
    frames = Listed(listing, classes=CLASSES).frames("train", BOTH)
    assert [frames.name(i) for i in range(len(frames))] == ["pics__2__rgb", "pics__0__rgb"]
    assert frames.load(0)["image"].unique().tolist() == [20]
    assert frames.load(0)["label"].unique().tolist() == [2]
    assert frames.load(1)["label"].unique().tolist() == [0]
    assert Listed(listing, classes=CLASSES).frames("val", BOTH).name(0) == "pics__3__rgb"


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_a_list_per_split_and_a_root_of_its_own(tree, ending):
    write(tree / f"lists/train.{ending}", rows(1))
    write(tree / f"lists/val.{ending}", rows(2, 3, split="val"))
    source = Listed(f"{tree}/lists/{{split}}.{ending}", classes=CLASSES, root=str(tree))
    assert source.frames("train", BOTH).load(0)["label"].unique().tolist() == [1]
    assert len(source.frames("val", BOTH)) == 2
    with pytest.raises(DataError, match=r"lists/pics/1/rgb\.png: no such file"):
        Listed(f"{tree}/lists/{{split}}.{ending}", classes=CLASSES).frames("train", BOTH)


def test_names_absolute_paths_and_depth(tree):
    entry = {
        "image": f"{tree}/pics/1/rgb.png",
        "label": "../masks/2.png",
        "depth": "../depth/3.png",
        "name": "one",
    }
    listing = write(tree / "lists/train.csv", [entry])
    source = Listed(listing.replace("train", "{split}"), classes=CLASSES, depth_scale=1000)
    assert source.info.provides == DEPTH
    frames = source.frames("train", DEPTH)
    sample = frames.load(0)
    assert sample["name"] == frames.name(0) == "one"
    assert sample["image"].unique().tolist() == [10]
    assert sample["label"].unique().tolist() == [2]
    torch.testing.assert_close(sample["depth"], torch.full((4, 6), 0.3))
    assert sample["depth_valid"].all()


def test_values_are_mapped_and_said(tree):
    listing = write(tree / "all.csv", rows(1, 3, split="train"))
    source = Listed(listing, classes=["x", "y"], label_map={3: 0, 1: 1, 0: 255})
    frames = source.frames("train", BOTH)
    assert [frames.load(i)["label"].unique().item() for i in (0, 1)] == [1, 0]
    assert source.remarks() == ("labels of listed: 3 -> x, 1 -> y, 2 values -> ignored (0, 255)",)
    assert source.strays("train") == []


def test_a_frame_without_a_label_can_be_predicted_on(tree):
    listing = write(tree / "all.csv", [{"image": "pics/1/rgb.png", "label": "", "split": "test"}])
    source = Listed(listing, classes=CLASSES)
    assert "label" not in source.frames("test", frozenset({"image"})).load(0)
    with pytest.raises(DataError, match="no label belongs to it"):
        source.frames("test", BOTH)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.csv", "image,mask,split\na.png,b.png,train\n", r"line 1: .*column label once; .*: image, mask, split"),
        ("l.csv", "image,label\na.png,b.png\n", r"l\.csv: line 2: no split; one list for all splits"),
        ("l.csv", "image,label,split\na.png,b.png,tain\n", r"no frame of split 'train' in it; its splits are tain"),
        ("l.csv", "image,label,split\na.png,b.png,train\na.png,c.png,train\n",
         r"l\.csv: line 3: the frame name 'a' is there already \(.*l\.csv: line 2\)"),
        ("l.csv", "image,label,split,name\na.png,b.png,train,../x\n", r"line 2: the name '\.\./x' must be usable"),
        ("l.csv", "image,label,split\n,b.png,train\n", r"l\.csv: line 2: no image"),
        ("l.csv", "image,label,split\na.gif,b.png,train\n", r"l\.csv: line 2: image 'a\.gif' is none of"),
        ("l.csv", "image,label,split\na.png,b.jpg,train\n", r"b\.jpg: JPEG changes numbers"),
        ("l.csv", "image,label,split\na.png,b.png\n", r"l\.csv: line 2: 2 values for 3 columns"),
        ("l.csv", "", r"l\.csv: line 1: the header"),
        ("l.csv", "image,label,split\n", r"l\.csv: no frame of split 'train' in it$"),
        ("l.json", '[{"image": "a.png",\n', r"l\.json: line 2: not valid JSON"),
        ("l.json", '{"image": "a.png"}', r"l\.json: must hold a list"),
        ("l.json", '[{"image": "a.png", "split": "train"}]', r"l\.json: entry 0: the key label is missing"),
        ("l.json", '[{"image": 3, "label": "b", "split": "train"}]', r"l\.json: entry 0: image must be a text"),
        ("l.json", '["a.png"]', r"l\.json: entry 0: must be an object"),
        ("l.jsonl", '{"image": "a.png", "label": "b.png", "split": "train"}\n{', r"l\.jsonl: line 2: not valid JSON"),
    ],
)  # fmt: skip
def test_faults_name_file_and_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        Listed(str(tmp_path / name), classes=CLASSES).frames("train", BOTH)


def test_a_row_of_another_split_in_the_list_of_one(tree):
    write(tree / "train.csv", rows(1, split="val"))
    with pytest.raises(DataError, match=r"train\.csv: line 2: the split 'val' stands in the list of 'train'"):
        Listed(f"{tree}/{{split}}.csv", classes=CLASSES).frames("train", BOTH)


def test_depth_must_be_in_every_row(tree):
    listing = write(tree / "all.json", [*rows(1, split="train", depth=True), *rows(2, split="train")])
    with pytest.raises(DataError, match=r"entry 1: the key depth is missing"):
        Listed(listing, classes=CLASSES, depth_scale=1000).frames("train", DEPTH)
    listing = write(tree / "all.csv", [{**rows(1, split="train")[0], "depth": ""}])
    with pytest.raises(DataError, match=r"all\.csv: line 2: no depth"):
        Listed(listing, classes=CLASSES, depth_scale=1000).frames("train", DEPTH)


def test_options_that_cannot_be(tree):
    with pytest.raises(ConfigError, match="depth_scale=0: must be above 0"):
        Listed("x.csv", classes=CLASSES, depth_scale=0)
    (tree / "l.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"must end in \.csv, \.json or \.jsonl"):
        Listed(str(tree / "l.txt"), classes=CLASSES).frames("train", BOTH)
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        Listed(str(tree / "none.csv"), classes=CLASSES).frames("train", BOTH)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_lists_as_spreadsheets_write_them(tree, mark, encoding, slash):
    written = [[value.replace("/", slash) for value in row.values()] for row in rows(2, 0, split="train")]
    for ending in ("csv", "tsv"):
        path = tree / f"l.{ending}"
        lines = [["image", '"label"', "split"], *written]
        path.write_text("".join(mark.join(line) + "\r\n" for line in lines), encoding=encoding, newline="")
        frames = Listed(str(path), classes=CLASSES).frames("train", BOTH)
        assert [int(frames.load(i)["label"][0, 0]) for i in range(2)] == [2, 0]
        assert [frames.name(i) for i in range(2)] == ["pics__2__rgb", "pics__0__rgb"]
    (tree / "l.csv").write_bytes(b"\xff\xfea")
    with pytest.raises(DataError, match="not a UTF-16 text"):
        Listed(str(tree / "l.csv"), classes=CLASSES).frames("train", BOTH)
