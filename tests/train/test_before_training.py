"""Faults of a split that its files' names, lists and headers show are told before training, with what to set."""

import json

import numpy as np
import pytest
from PIL import Image

from hardpix.data import Coco, Folder, HuggingFace, Listed
from hardpix.data.listing import part_of
from hardpix.train.build import build
from hardpix.train.train import start_remarks
from hardpix.types import ConfigError, DataError

BOTH = frozenset({"image", "label"})
HEIGHT, WIDTH = 48, 64


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def own(tmp_path):
    """Six frames of train, two of val and of test."""
    dice = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for n in range(count):
            save(tmp_path / f"d/{split}/images/{n}.png", dice.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
            save(tmp_path / f"d/{split}/labels/{n}.png", dice.integers(0, 2, (HEIGHT, WIDTH), np.uint8))
    return tmp_path / "d"


def configured(tiny, root, *more):
    return tiny("data=folder", f"data.source.root={root}", "data.source.classes=[a,b]", *more)


def drop(folder):
    for path in folder.rglob("*.png"):
        path.unlink()
    for path in (*folder.iterdir(), folder):
        path.rmdir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda d: save(d / "labels/1.png", np.zeros((8, 8), np.uint8)),
            r"labels/1\.png measures 8x8 pixels but",
        ),
        (lambda d: (d / "images/1.png").write_bytes(b""), r"images/1\.png: not a readable"),
        (lambda d: (d / "labels/1.png").write_bytes(b"x"), r"labels/1\.png: not a readable"),
        (lambda d: (d / "labels/1.png").unlink(), r"labels/1\.png: no such file"),
        (lambda d: save(d / "images/1.jpg", np.zeros((8, 8, 3), np.uint8)), "both would share one label"),
        (lambda d: (d / "images/2.bmp").write_bytes(b""), r"1 \.bmp, such as 2\.bmp"),
    ],
)
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_files_of_every_split_are_judged_before_training(split, spoil, said, own, tiny):
    spoil(own / split)
    with pytest.raises(DataError, match=said):
        build(configured(tiny, own))


def test_a_missing_split_names_the_settings_that_do_without(own, tiny):
    drop(own / "test")
    with pytest.raises(DataError) as error:
        build(configured(tiny, own))
    assert f"{own}/test/images: no such folder" in str(error.value)
    for setting in ("data.test_split=val", "data.source.test_fraction=0.2"):
        assert setting in str(error.value)
        data, _ = build(configured(tiny, own, setting))
        assert len(data.evaluation_dataset("test").frames) == (2 if "split" in setting else 1)
    drop(own / "val")
    with pytest.raises(DataError, match=r"data\.val_split=train.*data\.source\.val_fraction=0\.2"):
        build(configured(tiny, own, "data.source.test_fraction=0.2"))
    data, method = build(
        configured(tiny, own, "data.source.test_fraction=0.2", "data.source.val_fraction=0.3")
    )
    names = [
        {frames.name(i) for i in range(len(frames))}
        for frames in (data.evaluation_dataset(role).frames for role in ("train", "val", "test"))
    ]
    assert [len(n) for n in names] == [3, 2, 1]
    assert set.union(*names) == set("012345")
    said = start_remarks(data, method)
    assert any("test is held out of train (test_fraction=0.2)" in line for line in said)
    assert not any("not read" in line for line in said)


def test_shares_are_held_out_by_name(own, tmp_path):
    names = [f"{n:03d}" for n in range(100)]
    test = part_of(names, "test", {"test": 0.1, "val": 0.2})
    assert len(test) == 10
    assert {names[i] for i in test} == {names[::-1][i] for i in part_of(names[::-1], "test", {"test": 0.1})}
    with pytest.raises(ConfigError, match=r"there is a split val; data\.source\.val_fraction=null takes it"):
        Folder(str(own), classes=["a", "b"], val_fraction=0.2).frames("train", BOTH)
    with pytest.raises(ConfigError, match="must leave a share of train"):
        Folder(str(own), classes=["a", "b"], val_fraction=0.5, test_fraction=0.5)
    with pytest.raises(DataError, match="1 frames of train are too few to hold out val"):
        part_of(["a"], "train", {"val": 0.5})
    rows = "".join(f"train/images/{n}.png,train/labels/{n}.png,train\n" for n in range(6))
    (own / "l.csv").write_text(f"image,label,split\n{rows}")
    lists = Listed(str(own / "l.csv"), classes=["a", "b"], test_fraction=0.2)
    assert [len(lists.frames(split, BOTH)) for split in ("train", "test")] == [5, 1]
    (own / "l.csv").write_text(f"image,label,split\n{rows}{rows.splitlines()[0][:-5]}test\n")
    with pytest.raises(ConfigError, match=r"has frames of split test; data\.source\.test_fraction=null"):
        lists.frames("train", BOTH)


def test_a_list_without_a_split_names_the_settings(own, tiny):
    rows = "".join(
        f"train/images/{n}.png,train/labels/{n}.png,{'val' if n > 4 else 'train'}\n" for n in range(6)
    )
    (own / "l.csv").write_text(f"image,label,split\n{rows}")
    with pytest.raises(
        DataError, match=r"no frame of split 'test'.*data\.test_split=val.*test_fraction=0\.2"
    ):
        build(tiny("data=listed", f"data.source.listing={own}/l.csv", "data.source.classes=[a,b]"))


def coco(root, split, *annotations, categories=({"id": 1, "name": "crack"},), size=(HEIGHT, WIDTH)):
    save(root / split / "1.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    content = {
        "images": [{"id": 7, "file_name": "1.png", "height": size[0], "width": size[1]}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": 1, **given} for i, given in enumerate(annotations, 1)
        ],
        "categories": list(categories),
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))


DISC = {"segmentation": [[4, 4, 20, 4, 20, 20, 4, 20]]}
IMPERFECT = {
    "empty": ({"segmentation": []}, "without an area"),
    "point": ({"segmentation": [[48.0, 36.0]]}, "without an area"),
    "line": ({"segmentation": [[10.0, 10.0, 12.0, 12.0]]}, "without an area"),
    "runs": ({"segmentation": {"size": [3, 3], "counts": [9]}}, "without an area"),
    "box": ({"bbox": [5, 5, 9, 9]}, "without a mask"),
    "image": (DISC | {"image_id": 9}, "of no image"),
    "category": (DISC | {"category_id": 9}, "of no category"),
}


@pytest.mark.parametrize("name", IMPERFECT)
def test_annotations_are_judged_before_training_and_can_be_left_out(name, tmp_path, tiny):
    wrong, kind = IMPERFECT[name]
    for split in ("train", "val", "test"):
        coco(tmp_path, split, DISC, *([wrong] if split == "test" else []))
    given = ["data=coco", f"data.source.root={tmp_path}", "data.batch_size=1"]
    with pytest.raises(DataError, match=r"instances_test.*annotation 2.*data\.source\.imperfect=ignore"):
        build(tiny(*given))
    data, method = build(tiny(*given, "data.source.imperfect=ignore"))
    assert any(
        line.startswith("test: 1 annotations of") and f"(1 {kind})" in line
        for line in start_remarks(data, method)
    )
    assert data.evaluation_dataset("test").frames.load(0)["label"].unique().tolist() == [0, 1]


def test_an_image_of_another_size_than_its_annotations_is_told_before_training(tmp_path, tiny):
    for split in ("train", "val", "test"):
        coco(tmp_path, split, DISC, size=(HEIGHT + (split == "test"), WIDTH))
    with pytest.raises(DataError, match=r"image 1\.png measures 64x49 pixels but"):
        build(tiny("data=coco", f"data.source.root={tmp_path}", "data.batch_size=1"))


def test_categories_of_one_name_are_told_apart_by_their_ids(tmp_path):
    root = ({"id": 0, "name": "crack"}, {"id": 1, "name": "crack"}, {"id": 2, "name": "oil"})
    coco(tmp_path, "train", DISC, categories=root)
    wanted = r"'crack' is the name of the categories 0 and 1; data\.source\.label_map=\{1:1,2:2\}"
    with pytest.raises(ConfigError, match=wanted):
        Coco(str(tmp_path))
    source = Coco(str(tmp_path), label_map={1: 1, 2: 2})
    assert source.info.classes == ("background", "crack", "oil")
    assert source.frames("train", BOTH).load(0)["label"].unique().tolist() == [0, 1]
    with pytest.raises(ConfigError, match=r"data\.source\.label_map=\{1:1\}"):
        Coco(str(tmp_path), classes=["crack"])
    assert Coco(str(tmp_path), classes=["crack"], label_map={1: 1}).info.classes == ("background", "crack")


def test_rows_without_an_image_and_splits_of_other_names_are_told(tmp_path):
    datasets = pytest.importorskip("datasets")
    picture = Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    mask = Image.fromarray(np.zeros((4, 6), np.uint8))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    rows = {"image": [picture, picture], "label": [mask, None]}
    made = {"train": datasets.Dataset.from_dict({k: v[:1] for k, v in rows.items()}, features=features)}
    made["validation"] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "d"))
    source = HuggingFace(str(tmp_path / "d"), classes=["a", "b"])
    assert len(source.frames("train", BOTH)) == 1
    with pytest.raises(DataError, match="row 1, column label: there is no image in it"):
        source.frames("validation", BOTH).check()
    with pytest.raises(DataError, match=r"no split 'val'.*its splits are: train, validation"):
        source.frames("val", BOTH)
