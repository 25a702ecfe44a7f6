"""RGB-D folders without labels: three layouts, their units and cameras."""

import json

import numpy as np
import pytest
from PIL import Image

from hardpix.data import RGBDFolder
from hardpix.data.sets.rgbd import associate
from hardpix.types import ConfigError, DataError

DEPTH = frozenset({"image", "depth", "depth_valid"})
RAW = np.array([[0, 1000, 5000, 65535]] * 3, np.uint16)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)


def pair(image, depth, value=50):
    save(image, np.full((3, 4, 3), value, np.uint8))
    save(depth, RAW)


def names(frames):
    return [frames.name(i) for i in range(len(frames))]


@pytest.fixture
def tum(tmp_path):
    """Depth comes later than the picture by 10 ms, and there is one of each without a partner."""
    for stamp in ("1.000", "1.030", "1.500"):
        save(tmp_path / "rgb" / f"{stamp}.png", np.full((3, 4, 3), int(float(stamp) * 100), np.uint8))
    for stamp in ("1.010", "1.040", "1.700"):
        save(tmp_path / "depth" / f"{stamp}.png", RAW + np.uint16(float(stamp) * 1000))
    for kind, stamps in {"rgb": ("1.000", "1.030", "1.500"), "depth": ("1.010", "1.040", "1.700")}.items():
        lines = ["# timestamp filename", *(f"{s} {kind}/{s}.png" for s in stamps)]
        (tmp_path / f"{kind}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_7scenes(tmp_path):
    for scene in ("chess", "office"):
        for number in (0, 20):
            stem = tmp_path / scene / "seq-01" / f"frame-{number:06d}"
            pair(stem.with_name(f"{stem.name}.color.png"), stem.with_name(f"{stem.name}.depth.png"))
    matrix = "5.85e+02 0 3.2e+02\n0 5.86e+02 2.4e+02\n0 0 1\n"
    (tmp_path / "chess" / "seq-01" / "camera-intrinsics.txt").write_text(matrix)
    frames = RGBDFolder(tmp_path, layout="7scenes").frames("test", DEPTH)
    assert names(frames) == [f"{s}__seq-01__frame-{n:06d}" for s in ("chess", "office") for n in (0, 20)]
    frame = frames.load(0)
    np.testing.assert_allclose(frame["depth"][0, 1:3], [1, 5])
    assert frame["depth_valid"][0].tolist() == [False, True, True, False]
    np.testing.assert_array_equal(frames.intrinsics(0), [[585, 0, 320], [0, 586, 240], [0, 0, 1]])
    assert frames.intrinsics(2) is None
    given = RGBDFolder(tmp_path, layout="7scenes", intrinsics=[1, 2, 3, 4]).frames("test", DEPTH)
    np.testing.assert_array_equal(given.intrinsics(0), [[1, 0, 3], [0, 2, 4], [0, 0, 1]])


def test_tum_pairs_in_time_and_counts_5000_to_the_metre(tum):
    frames = RGBDFolder(tum, layout="tum", intrinsics=[525, 525, 319.5, 239.5]).frames("train", DEPTH)
    assert names(frames) == ["1.000", "1.030"]
    for index, millis in ((0, 1010), (1, 1040)):
        np.testing.assert_allclose(
            frames.load(index)["depth"][0, 1:3], (np.array([1000, 5000]) + millis) / 5000
        )
        assert (frames.load(index)["image"] == (100, 103)[index]).all()
    assert frames.intrinsics(0)[0, 2] == 319.5


def test_the_nearest_pairs_come_first_and_each_is_used_once():
    # The second picture is nearer to the only depth between them; the first goes without.
    assert associate([0.0, 0.01], [0.008]) == [(1, 0)]
    assert associate([0.0, 0.01], [0.011, 0.008]) == [(0, 1), (1, 0)]
    assert associate([1.0], [1.02, 0.979]) == []
    assert associate([1.0, 2.0], [2.0, 1.0]) == [(0, 1), (1, 0)]
    assert associate([1.0], []) == []


def test_open3d_writes_its_matrix_column_after_column(tmp_path):
    pair(tmp_path / "color" / "00000.jpg", tmp_path / "depth" / "00000.png")
    camera = tmp_path / "camera_primesense.json"
    camera.write_text(json.dumps({"intrinsic_matrix": [525, 0, 0, 0, 526, 0, 319.5, 239.5, 1]}))
    frames = RGBDFolder(tmp_path, layout="open3d").frames("val", DEPTH)
    np.testing.assert_array_equal(frames.intrinsics(0), [[525, 0, 319.5], [0, 526, 239.5], [0, 0, 1]])
    np.testing.assert_allclose(frames.load(0)["depth"][0, 1:3], [1, 5])
    camera.write_text(json.dumps({"intrinsic_matrix": [525, 0, 319.5, 0, 526, 239.5, 0, 0, 1]}))
    with pytest.raises(DataError, match="column after column"):
        RGBDFolder(tmp_path, layout="open3d")
    camera.write_text("{}")
    with pytest.raises(DataError, match=r"camera_primesense\.json: no camera of Open3D"):
        RGBDFolder(tmp_path, layout="open3d")


def test_there_are_no_labels(tum):
    source = RGBDFolder(tum, layout="tum")
    assert source.info.provides == DEPTH
    assert source.info.num_classes == 0
    with pytest.raises(DataError, match="no label belongs to it"):
        source.frames("train", DEPTH | {"label"})


def test_faults(tum):
    with pytest.raises(ConfigError, match="layout=scannet: must be 7scenes or tum or open3d"):
        RGBDFolder(tum, layout="scannet")
    with pytest.raises(DataError, match=r"is data\.source\.layout=7scenes right"):
        RGBDFolder(tum, layout="7scenes").files("train")
    with pytest.raises(ConfigError, match=r"intrinsics is \[1, 2\]; it must be \[fx, fy, cx, cy\]"):
        RGBDFolder(tum, layout="tum", intrinsics=[1, 2])
    save(tum / "depth" / "1.010.png", RAW.astype(np.uint8))
    with pytest.raises(DataError, match=r"1\.010\.png: 8 bits; depth of layout tum has 16"):
        RGBDFolder(tum, layout="tum").frames("train", DEPTH).load(0)
    (tum / "depth" / "1.040.png").unlink()
    with pytest.raises(DataError, match=r"1\.040\.png: no such file"):
        RGBDFolder(tum, layout="tum").frames("train", DEPTH)
    (tum / "depth.txt").write_text("1.7 depth/1.700.png\n")
    with pytest.raises(DataError, match="has a depth within"):
        RGBDFolder(tum, layout="tum").files("train")
    (tum / "depth.txt").write_text("depth/1.700.png\n")
    with pytest.raises(DataError, match=r"depth\.txt: the line 'depth/1\.700\.png' must hold a time stamp"):
        RGBDFolder(tum, layout="tum").files("train")
    (tum / "rgb.txt").unlink()
    with pytest.raises(DataError, match=r"rgb\.txt: no such file"):
        RGBDFolder(tum, layout="tum").files("train")


@pytest.mark.real
def test_real_frames(real_data):
    scenes = RGBDFolder(real_data / "7scenes", layout="7scenes").frames("test", DEPTH)
    assert len(scenes) == 40
    assert scenes.name(0) == "redkitchen__frame-000000"
    np.testing.assert_array_equal(scenes.intrinsics(0), [[585, 0, 320], [0, 585, 240], [0, 0, 1]])
    frames = RGBDFolder(real_data / "open3d_rgbd", layout="open3d").frames("test", DEPTH)
    assert names(frames) == [f"{i:05d}" for i in range(5)]
    assert frames.intrinsics(0)[:2].tolist() == [[525, 0, 319.5], [0, 525, 239.5]]
    for opened in (scenes, frames):
        frame = opened.load(0)
        assert frame["image"].shape == (3, 480, 640)
        assert 1.5 < frame["depth"][frame["depth_valid"]].median() < 2.5
        assert 0.8 < frame["depth_valid"].float().mean() < 0.95


@pytest.mark.real
def test_a_real_pair_of_tum(real_data, tmp_path):
    formats = real_data / "open3d_rgbd" / "other_formats"
    for kind, name in (("rgb", "TUM_color.png"), ("depth", "TUM_depth.png")):
        (tmp_path / name).write_bytes((formats / name).read_bytes())
        (tmp_path / f"{kind}.txt").write_text(f"1305031102.1753 {name}\n")
    frame = RGBDFolder(tmp_path, layout="tum").frames("test", DEPTH).load(0)
    assert 2 < frame["depth"][frame["depth_valid"]].median() < 3
