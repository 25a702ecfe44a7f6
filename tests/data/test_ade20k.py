"""ADE20K: layout, label values, classes and colours as published, and what its recipe places."""

import csv

import numpy as np
import pytest
from PIL import Image

from hardpix.data import ADE20K
from hardpix.data.prepare import find_recipe
from hardpix.data.prepare.recipe import Work
from hardpix.types import DataError

BOTH = frozenset({"image", "label"})


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)


def frame(root, split, name, value=0, label=None):
    save(root / "images" / split / f"{name}.jpg", np.full((4, 6, 3), value))
    if label is not None:
        save(root / "annotations" / split / f"{name}.png", label)


LABEL = np.array([[0, 1, 2, 75, 149, 150]] * 4)


@pytest.fixture
def ade(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    frame(root, "training", "ADE_train_00000002", 2, np.full((4, 6), 7))
    frame(root, "training", "ADE_train_00000001", 1, LABEL)
    frame(root, "validation", "ADE_val_00000001", 3, np.full((4, 6), 150))
    return root


def test_zero_is_void_and_classes_count_from_one(ade):
    frames = ADE20K(ade).frames("train", BOTH)
    assert [frames.name(i) for i in range(len(frames))] == ["ADE_train_00000001", "ADE_train_00000002"]
    assert frames.load(0)["label"][0].tolist() == [255, 0, 1, 74, 148, 149]
    assert frames.load(0)["image"].unique().tolist() == [1]


def test_val_and_test_are_the_validation_frames(ade):
    for split in ("val", "test"):
        frames = ADE20K(ade).frames(split, BOTH)
        assert [frames.name(i) for i in range(len(frames))] == ["ADE_val_00000001"]
        assert frames.load(0)["label"].unique().tolist() == [149]


def test_a_value_above_150_is_refused(ade):
    save(ade / "annotations/validation/ADE_val_00000001.png", np.full((4, 6), 151))
    with pytest.raises(DataError, match=r"ADE_val_00000001\.png: value 151 .* allowed are 0\.\.150"):
        ADE20K(ade).frames("val", BOTH).load(0)


def test_missing_files_are_named_before_training(ade):
    (ade / "annotations/training/ADE_train_00000002.png").unlink()
    with pytest.raises(DataError, match=r"annotations/training/ADE_train_00000002\.png: no such file"):
        ADE20K(ade).frames("train", BOTH)
    with pytest.raises(DataError, match="must be the folder ADEChallengeData2016"):
        ADE20K(ade.parent).frames("train", BOTH)


def test_the_test_server_takes_numbers_from_one():
    values = ADE20K("nowhere").submission_values()
    assert (values[0], values[149], len(values)) == (1, 150, 150)


def test_the_recipe_places_whole_frames_and_names_the_others(ade, tmp_path):
    frame(ade, "training", "ADE_train_00000003")
    save(ade / "annotations/validation/ADE_val_00000009.png", LABEL)
    recipe = find_recipe("ade20k")()
    out = tmp_path / "out"
    for _ in range(2):  # again, after an interruption
        work = Work([tmp_path / "nothing", ade.parent], out)
        recipe.convert(work)
        assert [fault.split("/")[-1] for fault in work.faults] == [
            "ADE_train_00000003.jpg: no annotation belongs to it",
            "ADE_val_00000009.png: no image belongs to it",
        ]
    assert len(ADE20K(out).frames("train", BOTH)) == 2
    assert ADE20K(out).frames("val", BOTH).load(0)["image"].unique().tolist() == [3]


def test_the_recipe_wants_what_is_read():
    wanted = find_recipe("ade20k")().wanted
    base = "ADEChallengeData2016"
    assert wanted(f"{base}/images/training/ADE_train_00000001.jpg")
    assert wanted(f"{base}/annotations/validation/ADE_val_00000001.png")
    assert not wanted(f"{base}/objectInfo150.txt")
    assert not wanted(f"{base}/annotations/validation/notes.txt")
    assert not wanted("training/a.jpg")


@pytest.mark.real
def test_classes_and_colours_are_the_published_ones(real_data):
    loadmat = pytest.importorskip("scipy.io").loadmat
    root = real_data / "ADEChallengeData2016"
    with (root / "objectInfo150.txt").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    info = ADE20K.info
    assert list(info.classes) == [row["Name"].split(",")[0].strip() for row in rows]
    np.testing.assert_array_equal(info.palette, loadmat(root / "color150.mat")["colors"])


@pytest.mark.real
def test_real_frames(real_data):
    frames = ADE20K(real_data / "ADEChallengeData2016").frames("val", BOTH)
    first = frames.load(0)
    seen = {ADE20K.info.classes[i] for i in first["label"].unique().tolist() if i != 255}
    assert seen == {"wall", "building", "sky", "tree", "road", "grass", "plant"}
    assert first["image"].shape == (3, 512, 683)
    # The sky is above the road.
    rows = {
        name: (first["label"] == i).nonzero()[:, 0].float().mean() for i, name in ((2, "sky"), (6, "road"))
    }
    assert rows["sky"] < rows["road"]
