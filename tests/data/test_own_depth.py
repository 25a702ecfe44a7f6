"""Depth of own data: which numbers are no reading, and how they are stored."""

import numpy as np
import pytest
from PIL import Image

from hardpix.data import Folder, Listed, RGBDFolder
from hardpix.types import ConfigError, DataError

KEYS = frozenset({"image", "label", "depth", "depth_valid"})
COUNTS = np.array([[0, 1, 1500, 4095, 65535, 60000]], np.uint16)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


def folder(root, depth, ending="png", **more):
    height, width = depth.shape[:2]
    save(root / "train/images/1.png", np.zeros((height, width, 3), np.uint8))
    save(root / "train/labels/1.png", np.zeros((height, width), np.uint8))
    save(root / f"train/depths/1.{ending}", depth)
    given = {"classes": ["a", "b"], "depths": "{split}/depths", "depth_scale": 1000.0}
    return Folder(str(root), **(given | more))


def read(source, keys=KEYS):
    sample = source.frames("train", keys).load(0)
    return sample["depth"].numpy()[0], sample["depth_valid"].numpy()[0]


def test_what_cameras_write_is_no_reading(tmp_path):
    metres, valid = read(folder(tmp_path, COUNTS))
    assert valid.tolist() == [False, True, True, True, False, True]
    np.testing.assert_allclose(metres[valid], [0.001, 1.5, 4.095, 60.0])
    assert read(folder(tmp_path, COUNTS.astype(np.uint8)))[1].tolist() == [
        False,
        True,
        True,
        True,
        True,
        True,
    ]


def test_the_values_are_a_setting(tmp_path):
    source = folder(tmp_path, COUNTS, depth_missing_values=[4095, 1])
    assert read(source)[1].tolist() == [False, False, True, False, True, True]
    assert read(folder(tmp_path, COUNTS, depth_missing_values=[]))[1].tolist() == [False] + [True] * 5
    (tmp_path / "l.csv").write_text(
        "image,label,depth,split\ntrain/images/1.png,train/labels/1.png,train/depths/1.png,train\n"
    )
    of_list = {"classes": ["a", "b"], "depth_scale": 1000.0}
    assert read(Listed(str(tmp_path / "l.csv"), **of_list))[1].tolist() == [
        False,
        True,
        True,
        True,
        False,
        True,
    ]
    source = Listed(str(tmp_path / "l.csv"), depth_missing_values=[60000], **of_list)
    assert read(source)[1].tolist() == [False, True, True, True, True, False]
    save(tmp_path / "cam/color/1.png", np.zeros((1, 6, 3), np.uint8))
    save(tmp_path / "cam/depth/1.png", COUNTS)
    camera = KEYS - {"label"}
    layout = {"layout": "open3d"}
    assert read(RGBDFolder(str(tmp_path / "cam"), **layout), camera)[1].tolist() == [
        False,
        True,
        True,
        True,
        False,
        True,
    ]
    source = RGBDFolder(str(tmp_path / "cam"), depth_missing_values=[4095], **layout)
    assert read(source, camera)[1].tolist() == [False, True, True, False, True, True]


@pytest.mark.parametrize("values", [["x"], [True], [float("nan")], "0"])
def test_values_that_are_no_numbers_are_refused(values, tmp_path):
    with pytest.raises(ConfigError, match="depth_missing_values="):
        folder(tmp_path, COUNTS, depth_missing_values=values)


@pytest.mark.parametrize("ending", ["tif", "npy"])
def test_floating_point_depth(ending, tmp_path):
    metres = np.array([[np.nan, np.inf, -1.0, 0.0, 1.25, 9999.0]], np.float32)
    source = folder(tmp_path, metres, ending, depth_scale=1.0, depth_missing_values=[9999])
    found, valid = read(source)
    assert valid.tolist() == [False] * 4 + [True, False]
    assert found[4] == 1.25
    assert source.strays("train") == []


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 6, 3)), r"holds float64 of shape \(4, 6, 3\)"),
        (np.zeros((4, 6), bool), "holds bool of shape"),
        (np.array([[{}]], object), "not readable as an array of NumPy"),
    ],
)
def test_arrays_that_are_no_depth_are_refused(array, said, tmp_path):
    source = folder(tmp_path, np.zeros((4, 6)), "npy")
    np.save(tmp_path / "train/depths/1.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=said):
        read(source)
    (tmp_path / "train/depths/1.npy").write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(DataError, match="not readable as an array of NumPy"):
        read(source)


def test_depth_of_other_sources_stays_in_its_coding(tmp_path):
    save(tmp_path / "color/1.png", np.zeros((1, 6, 3), np.uint8))
    save(tmp_path / "depth/1.png", COUNTS)
    Image.fromarray(np.ones((1, 6), np.float32)).save(tmp_path / "depth/1.png", "TIFF")
    with pytest.raises(DataError, match="must be a grey image of 8 or 16 bits"):
        read(RGBDFolder(str(tmp_path), layout="open3d"), KEYS - {"label"})
