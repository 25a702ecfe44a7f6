"""NYUv2, CamVid and a user's folder: their layouts and quirks, on tiny fake trees and on real frames."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix.data import CamVid, Folder, NYUv2
from hardpix.types import ConfigError, DataError

REAL = Path(os.environ.get("HARDPIX_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
real = [
    pytest.mark.real,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"no real frames in {REAL}; set HARDPIX_REAL_DATA"),
]

ALL = frozenset({"image", "label", "depth", "depth_valid"})
BOTH = frozenset({"image", "label"})


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)
    return path


def picture(height=6, width=8, value=90):
    return np.full((height, width, 3), value, dtype=np.uint8)


# CamVid


@pytest.fixture
def camvid(tmp_path):
    for split, names in {"train": ["a", "b"], "val": ["c"], "test": ["d"]}.items():
        for value, name in enumerate(names):
            save(tmp_path / split / f"{name}.png", picture(value=value))
            label = np.arange(48, dtype=np.uint8).reshape(6, 8) % 12
            save(tmp_path / f"{split}annot" / f"{name}.png", label)
        lines = [f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png" for n in names]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines) + "\n\n")
    return tmp_path


def test_camvid_strips_the_list_prefix_and_ignores_11(camvid):
    frames = CamVid(camvid).frames("train", BOTH)
    assert [frames.name(i) for i in range(len(frames))] == ["a", "b"]
    raw = np.arange(48).reshape(6, 8) % 12
    label = frames.load(1)["label"]
    assert label.dtype == torch.uint8
    np.testing.assert_array_equal(label.numpy(), np.where(raw == 11, 255, raw))
    assert set(frames.load(1)["image"].unique().tolist()) == {1}


def test_camvid_lists_only_what_the_list_names(camvid):
    save(camvid / "train" / "z.png", picture())
    assert len(CamVid(camvid).frames("train", BOTH)) == 2
    (camvid / "train.txt").unlink()
    with pytest.raises(DataError, match=r"trainannot/z\.png: no such file"):
        CamVid(camvid).frames("train", BOTH)
    save(camvid / "trainannot" / "z.png", np.zeros((6, 8), np.uint8))
    assert len(CamVid(camvid).frames("train", BOTH)) == 3


def test_a_listed_file_that_is_missing_is_named_before_training(camvid):
    (camvid / "valannot" / "c.png").unlink()
    with pytest.raises(DataError, match=r"valannot/c\.png: no such file"):
        CamVid(camvid).frames("val", BOTH)


def test_a_missing_root_says_which_key(tmp_path):
    for source in (CamVid(tmp_path / "no"), NYUv2(tmp_path / "no", void_40_in_train="ignore")):
        with pytest.raises(DataError, match=r"no such folder; data\.source\.root"):
            source.frames("train", BOTH)


def test_empty_and_broken_lists(camvid):
    (camvid / "train.txt").write_text("\n")
    with pytest.raises(DataError, match="the list is empty"):
        CamVid(camvid).frames("train", BOTH)
    (camvid / "train.txt").write_text("only_one_column.png\n")
    with pytest.raises(DataError, match="an image path and a label path"):
        CamVid(camvid).frames("train", BOTH)


def test_a_label_value_outside_the_classes(camvid):
    label = np.zeros((6, 8), dtype=np.uint8)
    label[2, 3:5] = 12
    save(camvid / "trainannot" / "a.png", label)
    with pytest.raises(
        DataError, match=r"trainannot/a\.png: value 12 \(2 pixels\) is no class; allowed are 0\.\.11"
    ):
        CamVid(camvid).frames("train", BOTH).load(0)


def test_image_and_label_of_different_size(camvid):
    save(camvid / "trainannot" / "a.png", np.zeros((8, 6), dtype=np.uint8))
    with pytest.raises(DataError, match=r"trainannot/a\.png measures 6x8 .*train/a\.png 8x6"):
        CamVid(camvid).frames("train", BOTH).load(0)


# NYUv2


@pytest.fixture
def nyuv2(tmp_path):
    label = np.array([[1, 40, 2, 39]] * 6, dtype=np.uint8)
    depth = np.array([[0, 1, 100, 255]] * 6, dtype=np.uint8)
    for split, names in {"train": ["0003", "0004"], "test": ["0001"]}.items():
        for name in names:
            base = tmp_path / split
            save(base / "rgb" / f"{name}.jpg", picture(6, 4))
            save(base / "labels_40" / f"{name}.png", label)
            save(base / "depth" / f"{name}.png", depth)
        (tmp_path / f"{split}.txt").write_text("\n".join(names) + "\n")
    deep = np.array([[0, 1, 1234, 9999]] * 6, dtype=np.uint16)
    save(tmp_path / "train" / "depth_16bit" / "0004.png", deep)
    void = label.copy()
    void[0] = 0
    save(tmp_path / "test" / "labels_40" / "0001.png", void)
    return tmp_path


def test_nyuv2_depth_in_metres(nyuv2):
    frames = NYUv2(nyuv2, void_40_in_train="ignore").frames("train", ALL)
    shallow, deep = frames.load(0), frames.load(1)
    np.testing.assert_allclose(shallow["depth"][0, 1:], [1.5 / 25.5, 100.5 / 25.5, 255.5 / 25.5], rtol=1e-6)
    assert shallow["depth_valid"][0].tolist() == [False, True, True, True]
    np.testing.assert_allclose(deep["depth"][0, 1:], [0.001, 1.234, 9.999], rtol=1e-6)
    assert deep["depth_valid"][0].tolist() == [False, True, True, True]
    assert shallow["depth"].dtype == torch.float32


def test_nyuv2_class_40_of_train_is_void_unless_kept(nyuv2):
    ignored = NYUv2(nyuv2, void_40_in_train="ignore").frames("train", BOTH).load(0)["label"]
    kept = NYUv2(nyuv2, void_40_in_train="class").frames("train", BOTH).load(0)["label"]
    assert ignored[0].tolist() == [0, 255, 1, 38]
    assert kept[0].tolist() == [0, 39, 1, 38]


def test_nyuv2_test_labels_keep_class_40_and_void(nyuv2):
    for rule in ("ignore", "class"):
        label = NYUv2(nyuv2, void_40_in_train=rule).frames("test", BOTH).load(0)["label"]
        assert label[0].tolist() == [255] * 4
        assert label[1].tolist() == [0, 39, 1, 38]


def test_nyuv2_validates_on_test_or_on_a_share_of_train(nyuv2):
    names = lambda frames: [frames.name(i) for i in range(len(frames))]  # noqa: E731
    plain = NYUv2(nyuv2, void_40_in_train="ignore")
    assert names(plain.frames("val", BOTH)) == ["0001"]
    held = NYUv2(nyuv2, void_40_in_train="ignore", val_fraction=0.5)
    train, val = names(held.frames("train", BOTH)), names(held.frames("val", BOTH))
    assert sorted(train + val) == ["0003", "0004"]
    assert len(val) == 1
    assert names(held.frames("test", BOTH)) == ["0001"]
    # What is held out of train has train's labels: 40 is void there too.
    assert held.frames("val", BOTH).load(0)["label"][0, 1] == 255


def test_nyuv2_border_is_cut_off_everything(nyuv2):
    frame = NYUv2(nyuv2, void_40_in_train="class", border_crop=[1, 5, 1, 3]).frames("train", ALL).load(0)
    assert frame["image"].shape == (3, 4, 2)
    assert frame["label"].tolist() == [[39, 1]] * 4
    assert frame["depth"].shape == frame["depth_valid"].shape == (4, 2)
    with pytest.raises(DataError, match="does not lie inside"):
        NYUv2(nyuv2, void_40_in_train="class", border_crop=[45, 470, 41, 601]).frames("train", ALL).load(0)


def test_nyuv2_decodes_only_what_is_used(nyuv2):
    for path in (nyuv2 / "train" / "depth").iterdir():
        path.write_text("broken")
    frames = NYUv2(nyuv2, void_40_in_train="ignore").frames("train", BOTH)
    assert "depth" not in frames.load(0)
    with pytest.raises(DataError, match=r"depth/0003\.png"):
        NYUv2(nyuv2, void_40_in_train="ignore").frames("train", ALL).load(0)


def test_nyuv2_reads_a_tree_without_lists_and_with_png(nyuv2):
    (nyuv2 / "train.txt").unlink()
    (nyuv2 / "train" / "rgb" / "0003.jpg").unlink()
    save(nyuv2 / "train" / "rgb" / "0003.png", picture(6, 4, value=7))
    frames = NYUv2(nyuv2, void_40_in_train="ignore").frames("train", BOTH)
    assert [frames.name(i) for i in range(2)] == ["0003", "0004"]
    assert (frames.load(0)["image"] == 7).all()


def test_nyuv2_switches_are_checked():
    with pytest.raises(ConfigError, match="void_40_in_train"):
        NYUv2("x", void_40_in_train="void")
    with pytest.raises(ConfigError, match="border_crop"):
        NYUv2("x", void_40_in_train="class", border_crop=[1, 2])
    with pytest.raises(ConfigError, match="val_fraction"):
        NYUv2("x", void_40_in_train="class", val_fraction=1.5)


# A user's own folder


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        for name in ("x", "sub/y"):
            save(tmp_path / split / "images" / f"{name}.jpg", picture())
            save(
                tmp_path / split / "labels" / f"{name}_mask.png",
                np.array([[0, 1, 2, 9]] * 6, np.uint8).repeat(2, 1),
            )
            save(tmp_path / split / "depths" / f"{name}.png", np.full((6, 8), 2500, np.uint16))
    return tmp_path


def test_folder_pairs_by_name(folder):
    source = Folder(folder, classes=["a", "b", "c"], ignore_index=9, label_suffix="_mask")
    frames = source.frames("train", BOTH)
    assert [frames.name(i) for i in range(2)] == ["sub__y", "x"]
    assert frames.load(0)["label"][0].tolist() == [0, 0, 1, 1, 2, 2, 255, 255]
    assert source.info.provides == BOTH
    assert source.info.num_classes == 3
    assert len(source.info.palette) == 3


def test_folder_leaves_hidden_files_out_and_follows_links(folder):
    train = folder / "train" / "images"
    (train / "._x.jpg").write_bytes(b"of macOS")
    save(train / ".ipynb_checkpoints" / "x.jpg", picture())
    (train / "Thumbs.db").write_bytes(b"of Windows")
    (train / "sub" / "loop").symlink_to(train)
    for kind in ("images", "labels"):
        (folder / "train" / kind / "linked").symlink_to(folder / "val" / kind / "sub")
    frames = Folder(folder, classes=["a", "b", "c"], ignore_index=9, label_suffix="_mask").frames(
        "train", BOTH
    )
    assert [frames.name(i) for i in range(len(frames))] == ["linked__y", "sub__y", "x"]
    (train / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"folder\.png: is a folder, not an image"):
        Folder(folder, classes=["a", "b", "c"], ignore_index=9, label_suffix="_mask").frames("train", BOTH)
    (train / "folder.png").rmdir()
    (train / "x.jpg").unlink()
    (train / "x.jpg").symlink_to(train / "gone.jpg")  # a link that leads nowhere is a missing frame, not none
    with pytest.raises(DataError, match=r"x\.jpg: no such file"):
        Folder(folder, classes=["a", "b", "c"], ignore_index=9, label_suffix="_mask").frames("train", BOTH)


def test_folder_maps_values(folder):
    source = Folder(
        folder,
        classes=["a", "b"],
        ignore_index=255,
        label_suffix="_mask",
        label_map={0: 255, 1: 0, 2: 1, 9: 1},
    )
    assert source.frames("train", BOTH).load(0)["label"][0].tolist() == [255, 255, 0, 0, 1, 1, 1, 1]
    with pytest.raises(DataError, match=r"value 9 .*allowed are 0\.\.2, 255"):
        Folder(folder, classes=["a", "b"], label_suffix="_mask", label_map={0: 255, 1: 0, 2: 1}).frames(
            "train", BOTH
        ).load(0)


def test_folder_depth_has_a_scale(folder):
    source = Folder(folder, classes=["a", "b", "c"], ignore_index=9, label_suffix="_mask", depths="{split}/depths",
                    depth_scale=1000, depth_max=8.0)  # fmt: skip
    frame = source.frames("val", ALL).load(0)
    assert (frame["depth"] == 2.5).all()
    assert frame["depth_valid"].all()
    assert source.info.provides == ALL
    assert source.info.depth_max == 8.0


def test_folder_takes_braces_of_a_path_as_they_are(folder):
    (folder / "{x} train").symlink_to(folder / "train")
    options = {"classes": ["a", "b", "c"], "ignore_index": 9, "label_suffix": "_mask"}
    source = Folder(folder, images="{x} {split}/images", labels="{x} {split}/labels", **options)
    assert len(source.frames("train", BOTH)) == 2


def test_folder_faults(folder):
    with pytest.raises(DataError, match=r"test/images: no such folder"):
        Folder(folder, classes=["a"]).frames("test", BOTH)
    with pytest.raises(DataError, match=r"labels/.*\.png: no such file"):
        Folder(folder, classes=["a"]).frames("train", BOTH)
    with pytest.raises(ConfigError, match="ignore_index 0"):
        Folder(folder, classes=["a"], ignore_index=0)
    with pytest.raises(ConfigError, match="label_map leads to 4"):
        Folder(folder, classes=["a"], label_map={1: 4})
    with pytest.raises(ConfigError, match="depth_scale"):
        Folder(folder, classes=["a"], depths="{split}/depths")
    save(folder / "train" / "labels" / "x.jpg", np.zeros((6, 8), np.uint8))
    (folder / "train" / "images" / "sub" / "y.jpg").unlink()
    with pytest.raises(DataError, match="must be PNG or TIFF"):
        Folder(folder, classes=["a"]).frames("train", BOTH)


def test_more_than_255_classes(tmp_path):
    save(tmp_path / "train" / "images" / "a.png", picture(1, 4))
    save(tmp_path / "train" / "labels" / "a.png", np.array([[0, 255, 299, 1000]], np.uint16))
    source = Folder(tmp_path, classes=[str(i) for i in range(300)], ignore_index=1000)
    label = source.frames("train", BOTH).load(0)["label"]
    assert label.dtype == torch.int64
    assert label[0].tolist() == [0, 255, 299, source.info.ignore_index]


# Real frames


class TestReal:
    pytestmark = real

    def test_nyuv2(self):
        source = NYUv2(REAL / "nyudv2", void_40_in_train="ignore")
        train, test = source.frames("train", ALL), source.frames("test", ALL)
        assert (len(train), len(test)) == (795, 458)
        frame = train.load(0)
        assert frame["image"].shape == (3, 480, 640)
        assert 0.5 < frame["depth"].median() < 6
        assert frame["depth_valid"].all()
        assert (frame["label"] != 39).all()
        assert frame["image"][:, :4].float().mean() > 240
        border = test.load(0)["label"]
        assert (border[:6] == 255).all()
        assert (border[:, :6] == 255).all()

    def test_nyuv2_depth_of_both_precisions_agrees(self):
        root = REAL / "nyudv2"
        source = NYUv2(root, void_40_in_train="ignore")
        frames = source.frames("train", ALL)
        index = [frames.name(i) for i in range(len(frames))].index("0003")
        deep = frames.load(index)["depth"]
        shallow = (np.asarray(Image.open(root / "train" / "depth" / "0003.png")) + 0.5) / 25.5
        assert np.abs(deep.numpy() - shallow).max() < 0.03

    def test_nyuv2_border_crop_leaves_no_white(self):
        source = NYUv2(REAL / "nyudv2", void_40_in_train="ignore", border_crop=[45, 470, 41, 601])
        frame = source.frames("test", BOTH).load(0)
        assert frame["image"].shape == (3, 425, 560)
        assert frame["image"][:, :2].float().mean() < 240

    def test_camvid(self):
        frames = CamVid(REAL / "CamVid").frames("train", BOTH)
        assert len(frames) == 105
        label = frames.load(0)["label"]
        assert label.shape == (360, 480)
        assert set(label.unique().tolist()) <= {*range(11), 255}
        # Sky is above and road below in every frame of the drive.
        assert (label[:20] == 0).float().mean() > (label[-20:] == 0).float().mean()
        assert (label[-60:] == 3).float().mean() > 0.3


def test_a_list_of_another_data_set_is_named(nyuv2):
    (nyuv2 / "train.txt").write_text("/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png\n")
    with pytest.raises(DataError, match=r"train\.txt: '/SegNet.*' is no frame number of NYUv2"):
        NYUv2(nyuv2, void_40_in_train="ignore").frames("train", BOTH)
