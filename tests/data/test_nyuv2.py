"""NYUv2: 13 classes, its camera, and the folder that is prepared from the official files."""

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from hardpix.data import NYUv2, camera
from hardpix.data.prepare import find_recipe
from hardpix.data.prepare.nyuv2 import NYUv2Recipe, to_millimetres
from hardpix.data.prepare.recipe import Work
from hardpix.data.sets.nyuv2 import CLASSES, CLASSES_13, PALETTE_13, TO_13
from hardpix.types import ConfigError, DataError

ALL = frozenset({"image", "label", "depth", "depth_valid"})
BOTH = frozenset({"image", "label"})
Y, X = np.mgrid[:480, :640]
MAPPING = np.arange(894) % 40 + 1


def labels(frame):
    return ((X + 3 * Y + frame) % 895).astype(np.uint16)


def depths(frame):
    return (1 + frame + X / 640 + Y / 100).astype(np.float32)


def raw_depths(frame):
    return np.where((X + Y) % 7 == 0, 0, depths(frame) + 0.25).astype(np.float32)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Four frames; the mapping lies elsewhere than the labelled file."""
    root = tmp_path_factory.mktemp("official")
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        stacks = {
            "images": [
                np.stack([X % 251, Y % 241, np.full_like(X, f)], -1).astype(np.uint8) for f in range(4)
            ],
            "labels": [labels(f) for f in range(4)],
            "depths": [depths(f) for f in range(4)],
            "rawDepths": [raw_depths(f) for f in range(4)],
        }
        for key, frames in stacks.items():
            file[key] = np.stack([frame.T for frame in frames])
    splits = {"trainNdxs": np.uint16([[2], [4]]), "testNdxs": np.uint16([[1], [3]])}
    savemat(root / "splits.mat", splits)
    savemat(root / "classMapping40.mat", {"mapClass": MAPPING[None].astype(np.uint8)})
    return root


@pytest.fixture(scope="module")
def prepared(official, tmp_path_factory):
    given = tmp_path_factory.mktemp("given")
    for folder, name in {
        "a": "nyu_depth_v2_labeled.mat",
        "b/c": "splits.mat",
        "d": "classMapping40.mat",
    }.items():
        (given / folder).mkdir(parents=True)
        (given / folder / name).symlink_to(official / name)
    out = tmp_path_factory.mktemp("prepared")
    work = Work([given], out)
    find_recipe("nyuv2")().convert(work)
    assert work.faults == []
    return out


def names(frames):
    return [frames.name(i) for i in range(len(frames))]


# 13 classes


def test_groups_are_those_of_the_published_mapping(real_data):
    stored = loadmat(real_data / "nyudv2" / "class13Mapping.mat")["classMapping13"][0, 0]
    assert [index + 1 for index in TO_13] == stored["labels13"].ravel().tolist()
    assert list(CLASSES_13) == [name.item() for name in stored["classNames"].ravel()]
    lines = (real_data / "nyudv2" / "classes13.txt").read_text().splitlines()[1:]
    assert [f"{i} {name}" for i, name in enumerate(CLASSES_13, 1)] == lines
    table = (real_data / "nyudv2" / "classes40.txt").read_text().splitlines()[1:]
    assert [line.split(maxsplit=1)[1] for line in table] == list(CLASSES)


def test_every_class_has_one_group_and_every_group_a_colour():
    assert len(TO_13) == 40
    assert set(TO_13) == set(range(13))
    assert len(set(PALETTE_13)) == len(PALETTE_13) == 13
    assert CLASSES_13[TO_13[CLASSES.index("desk")]] == "table"
    assert CLASSES_13[TO_13[CLASSES.index("door")]] == "wall"


@pytest.mark.parametrize("layout", ["official", "prepared"])
def test_13_classes_are_the_40_grouped(layout, request):
    root = request.getfixturevalue(layout)
    fine, coarse = (NYUv2(root, classes=n, void_40_in_train="ignore") for n in (40, 13))
    assert (fine.info.num_classes, coarse.info.num_classes) == (40, 13)
    assert len(coarse.info.palette) == 13
    table = np.full(256, 255)
    table[:40] = TO_13
    for split in ("train", "test"):
        a, b = fine.frames(split, BOTH).load(1), coarse.frames(split, BOTH).load(1)
        np.testing.assert_array_equal(b["label"].numpy(), table[a["label"].numpy()])
        assert set(b["label"].unique().tolist()) == {*range(13), 255}


def test_predictions_are_numbered_as_the_label_files():
    assert NYUv2("x", void_40_in_train="ignore").submission_values() == {i: i + 1 for i in range(40)}
    assert NYUv2("x", classes=13, void_40_in_train="ignore").submission_values()[12] == 13
    with pytest.raises(ConfigError, match="classes is 37; it must be 40 or 13"):
        NYUv2("x", classes=37, void_40_in_train="ignore")


# The camera


@pytest.mark.parametrize("layout", ["official", "prepared"])
def test_camera_counts_pixels_from_0_and_moves_with_the_crop(layout, request):
    root = request.getfixturevalue(layout)
    whole = NYUv2(root, void_40_in_train="ignore").frames("train", BOTH).intrinsics(1)
    expected = [[518.857901, 0, 324.582449], [0, 519.469611, 252.736166], [0, 0, 1]]
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    cut = NYUv2(root, void_40_in_train="ignore", border_crop=[45, 470, 41, 601]).frames("train", BOTH)
    np.testing.assert_allclose(whole - cut.intrinsics(0), [[0, 0, 41], [0, 0, 45], [0, 0, 0]], atol=1e-9)


@pytest.mark.real
def test_camera_is_the_published_one_less_a_pixel(real_data):
    published = np.loadtxt(real_data / "nyudv2" / "intrinsics_rgb.txt")
    published[:2, 2] -= 1
    np.testing.assert_allclose(camera.COLOUR.matrix(), published, atol=1e-6)


# What a run's start says


def test_remarks_say_what_is_mapped_and_what_val_is(tmp_path, official, prepared):
    def said(root, **changes):
        return " | ".join(NYUv2(root, **({"void_40_in_train": "ignore"} | changes)).remarks())

    assert "void_40_in_train=ignore" in said(tmp_path)
    assert "val is the test split" in said(tmp_path)
    assert "void_40" not in said(tmp_path, void_40_in_train="class")
    assert "val is" not in said(tmp_path, val_fraction=0.1)
    for root in (official, prepared):
        assert "void_40" not in said(root)


# The prepared folder


@pytest.mark.parametrize("rule", ["ignore", "class"])
def test_prepared_frames_are_the_official_ones(official, prepared, rule):
    for split in ("train", "val", "test"):
        there, here = (NYUv2(root, void_40_in_train=rule).frames(split, ALL) for root in (official, prepared))
        assert names(here) == names(there)
        for index in range(2):
            a, b = there.load(index), here.load(index)
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["label"], b["label"])
            assert (b["label"] == 39).any()
            assert (a["depth"] - b["depth"]).abs().max() <= 0.000501
            assert torch.equal(a["depth_valid"], b["depth_valid"])


def test_prepared_labels_are_the_published_numbers(prepared):
    stored = np.asarray(Image.open(prepared / "train" / "labels_40" / "0004.png"))
    raw = labels(3).astype(int)
    np.testing.assert_array_equal(stored, np.where(raw == 0, 0, (raw - 1) % 40 + 1))


def test_raw_depth_is_the_sensors(official, prepared, tmp_path):
    stored = np.asarray(Image.open(prepared / "test" / "depth_raw" / "0003.png"))
    assert stored.dtype == np.uint16
    np.testing.assert_allclose(stored / 1000, raw_depths(2), atol=0.000501)
    assert ((stored == 0) == (raw_depths(2) == 0)).all()
    NYUv2Recipe(raw_depth=False).convert(Work([official], tmp_path))
    assert not (tmp_path / "test" / "depth_raw").exists()


def test_an_interrupted_preparation_goes_on(official, tmp_path):
    NYUv2Recipe().convert(Work([official], tmp_path))
    kept, lost = tmp_path / "train" / "rgb" / "0002.png", tmp_path / "train" / "depth_raw" / "0004.png"
    before, whole = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    NYUv2Recipe().convert(Work([official], tmp_path))
    assert lost.read_bytes() == whole
    assert kept.stat().st_mtime_ns == before


def test_labels_without_the_marker_are_the_merged_release(prepared, tmp_path):
    """A release's own folder has no marker: there 40 is void in train."""
    (tmp_path / "train").mkdir()
    for kind in ("rgb", "depth"):
        (tmp_path / "train" / kind).symlink_to(prepared / "train" / kind)
    (tmp_path / "train" / "labels_40").mkdir()
    for path in (prepared / "train" / "labels_40").glob("*.png"):
        (tmp_path / "train" / "labels_40" / path.name).symlink_to(path)
    label = NYUv2(tmp_path, void_40_in_train="ignore").frames("train", BOTH).load(0)["label"]
    assert (label != 39).all()


def test_a_missing_file_says_where_it_comes_from(official, tmp_path):
    (tmp_path / "splits.mat").symlink_to(official / "splits.mat")
    with pytest.raises(DataError, match=r"no nyu_depth_v2_labeled\.mat; it comes from"):
        NYUv2Recipe().convert(Work([tmp_path], tmp_path / "out"))


def test_depth_that_16_bits_cannot_hold_is_no_reading():
    metres = np.array([0, 0.0004, 0.0006, 1.2344, 1.2346, 65.535, 65.6, np.nan, np.inf, -1], np.float32)
    assert to_millimetres(metres).tolist() == [0, 0, 1, 1234, 1235, 65535, 0, 0, 0, 0]


def test_a_misspelt_split_is_not_the_test_frames(official, prepared):
    for root in (official, prepared):
        with pytest.raises(ConfigError, match="nyuv2 has no split 'trian'; there are train, val, test"):
            NYUv2(str(root), void_40_in_train="ignore").frames("trian", BOTH)
