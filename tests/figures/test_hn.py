"""``hardpix figure hn-heights``, ``hn-labels``, ``hn-cloud`` and ``stitch``: their numbers, and what they refuse."""

import csv
import math
import struct

import numpy as np
import pytest
from PIL import Image

from hardpix.cli import main
from hardpix.cli.prepare import GRAVITY_RADIUS, RADIUS
from hardpix.config.compose import compose
from hardpix.data import SyntheticRooms
from hardpix.data.sets.hn import hn_palette
from hardpix.draw.pictures import GAP, MARGIN, SPACE, VOID
from hardpix.ops.quantize import hn_label

pytestmark = pytest.mark.slow  # trains runs

ROOMS = ("data=synthetic", "data.source.train_frames=5", "data.source.height=48", "data.source.width=64")
EDGES = [0.25 * k for k in range(10)]


def figure(*words):
    return main(["figure", *map(str, words)])


def numbers(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def rooms():
    """(sample, label of height and normal) of every frame, computed here."""
    given = {k: v for k, v in compose(list(ROOMS)).data.source.items() if k != "_target_"}
    source = SyntheticRooms(**given)
    frames = source.frames("train", frozenset({"image", "label", "depth", "depth_valid"}))
    found = []
    for i in range(len(frames)):
        sample = frames.load(i)
        depth, valid = sample["depth"].numpy(), sample["depth_valid"].numpy()
        settings = {
            "radius": RADIUS,
            "gravity_radius": GRAVITY_RADIUS,
            "up_method": "gravity",
            "height_edges": EDGES,
        }
        found.append((sample, hn_label(depth, valid, frames.intrinsics(i), normals=2, **settings)))
    return source.info, found


def test_heights_are_counted_pixels(rooms, tmp_path):
    info, frames = rooms
    assert figure("hn-heights", *ROOMS, "--out", tmp_path / "h.png") == 0
    counts = {(name, k): 0 for name in info.classes for k in range(10)}
    for sample, made in frames:
        label = sample["label"].numpy()
        for y, x in np.ndindex(label.shape):
            if label[y, x] != 255 and made.label[y, x] != 255:
                counts[info.classes[label[y, x]], int(made.label[y, x]) % 10] += 1
    assert sum(counts.values()) > 1000
    found = numbers(tmp_path / "h.csv")
    assert {(r["class"], round(float(r["low"]) * 4)): int(r["pixels"]) for r in found} == counts
    for r in found:
        total = sum(counts[r["class"], k] for k in range(10))
        share = int(r["pixels"]) / total if total else math.nan
        assert float(r["share"]) == pytest.approx(share, nan_ok=True)
    assert float(found[9]["high"]) == math.inf


def test_labels_of_chosen_views(rooms, tmp_path):
    names = [sample["name"] for sample, _ in rooms[1]]
    words = (
        "hn-labels",
        *ROOMS,
        "--frames",
        ",".join(names[3::-1]),
        "--tile",
        64,
        "--out",
        tmp_path / "v.png",
    )
    assert figure(*words) == 0
    rows, picture = numbers(tmp_path / "v.csv"), np.asarray(Image.open(tmp_path / "v.png"))
    assert [r["frame"] for r in rows] == names[3::-1]
    palette = hn_palette(10, 2)
    for place, (row, (sample, made)) in enumerate(zip(rows, rooms[1][3::-1], strict=True)):
        assert float(row["labelled_share"]) == pytest.approx((made.label != 255).mean())
        assert float(row["camera_height"]) == pytest.approx(-made.floor)
        assert row["rejected"] == (made.rejected or "")
        assert [int(v) for v in list(row.values())[7:]] == [int((made.label == k).sum()) for k in range(20)]
        top = MARGIN + 24 + GAP + 20 + (place // 3) * (20 + 48 + GAP)
        left = MARGIN + (place % 3) * (2 * 64 + GAP + SPACE)
        assert (picture[top : top + 48, left : left + 64] == sample["image"].permute(1, 2, 0).numpy()).all()
        shown = picture[top : top + 48, left + 64 + GAP : left + 128 + GAP]
        for k in np.unique(made.label[made.label != 255]):
            assert (shown[made.label == k] == palette[k]).all()


def test_classes_next_to_heights(rooms, tmp_path):
    info, frames = rooms
    name = frames[2][0]["name"]
    words = ("--semantics", "--normals", 1, "--frames", name, "--tile", 64, "--out", tmp_path / "v.png")
    assert figure("hn-labels", *ROOMS, *words) == 0
    picture, (row,) = np.asarray(Image.open(tmp_path / "v.png")), numbers(tmp_path / "v.csv")
    sample, made = frames[2]
    assert [int(v) for v in list(row.values())[7:]] == [
        int((made.label % 10 == k)[made.label != 255].sum()) for k in range(10)
    ]
    top, left, truth = MARGIN + 24 + GAP + 20, MARGIN + 2 * (64 + GAP), sample["label"].numpy()
    shown = picture[top : top + 48, left : left + 64]
    for k in np.unique(truth[truth != 255]):
        assert (shown[truth == k] == info.palette[k]).all()


def read_ply(path):
    """Places and colours of a binary PLY, by the letter of its header."""
    header, _, content = path.read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert [line.split()[1:] for line in lines[3:]] == [
        ["float", "x"], ["float", "y"], ["float", "z"], ["uchar", "red"], ["uchar", "green"], ["uchar", "blue"]
    ]  # fmt: skip
    count = int(lines[2].removeprefix("element vertex "))
    assert len(content) == 15 * count
    return [struct.unpack_from("<fff3B", content, 15 * i) for i in range(count)]


@pytest.mark.parametrize("color", ["labels", "image"])
def test_a_cloud_is_each_pixel_in_space(rooms, tmp_path, color):
    sample, made = rooms[1][1]
    words = ("--image", sample["name"], "--color", color, "--normals", 2, "--tile", 200)
    assert figure("hn-cloud", *ROOMS, *words, "--out", tmp_path / "c.png") == 0
    given = compose(list(ROOMS)).data.source
    source = SyntheticRooms(**{k: v for k, v in given.items() if k != "_target_"})
    frames = source.frames("train", frozenset({"image", "depth", "depth_valid"}))
    (fx, _, cx), (_, fy, cy), _ = frames.intrinsics(1)
    depth, valid, palette = sample["depth"].numpy(), sample["depth_valid"].numpy(), [*hn_palette(10, 2), VOID]
    expected = []
    for v, u in np.ndindex(depth.shape):
        if not valid[v, u]:
            continue
        z = float(depth[v, u])
        point = np.array([(u - cx) * z / fx, (v - cy) * z / fy, z])
        ahead = np.array([0, 0, 1]) - made.up[2] * made.up
        ahead /= np.linalg.norm(ahead)
        place = (np.cross(ahead, made.up) @ point, ahead @ point, made.up @ point - made.floor)
        of_label = palette[min(made.label[v, u], 20)]
        expected.append((*place, *(of_label if color == "labels" else sample["image"][:, v, u].tolist())))
    found = read_ply(tmp_path / "c.ply")
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=1e-4)
    assert min(np.array(found)[:, 2]) > -0.1  # metres: no point is far below the floor
    assert Image.open(tmp_path / "c.png").width == 3 * 200 + 2 * GAP + 2 * MARGIN
    (row,) = numbers(tmp_path / "c.csv")
    assert [int(v) for v in list(row.values())[7:]] == [int((made.label == k).sum()) for k in range(20)]


def test_labels_that_were_made_before_are_read(tmp_path, capsys):
    made = tmp_path / "made"
    assert main(["data", "hn-labels", *ROOMS, "--out", str(made), "--splits", "train", "--workers", "1"]) == 0
    words = ("hn-labels", "data=hn", f"data.source.root={made}", "data.source.val_fraction=null")
    assert figure("hn-cloud", *words[1:], "--out", tmp_path / "c.png") == 2
    assert "hn has no depth" in capsys.readouterr().err
    assert figure(*words, "--count", 1, "--tile", 64, "--out", tmp_path / "v.png") == 0
    (row,) = numbers(tmp_path / "v.csv")
    label = np.asarray(Image.open(made / "train/labels" / f"{row['frame']}.png"))
    assert [int(v) for v in list(row.values())[7:]] == [int((label == k).sum()) for k in range(20)]


def test_data_that_cannot_be_drawn_are_refused(tmp_path, capsys):
    def refused(*words):
        assert figure(*words, "--out", tmp_path / "no" / "f.png") == 2
        assert not (tmp_path / "no").exists()
        return capsys.readouterr().err

    assert "name the data set" in refused("hn-heights", "data.source.seed=1")
    images = tmp_path / "own/train/images"
    images.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(images / "a.png")
    own = ("data=folder", f"data.source.root={tmp_path}/own", "data.source.classes=[a,b]")
    assert "no depth" in refused("hn-heights", *own)
    assert "no depth" in refused("hn-labels", *own)
    assert "no depth" in refused("hn-cloud", *own)
    assert "has 5 frames, 0 to 4" in refused("hn-cloud", *ROOMS, "--image", "5")
    assert "--count 0" in refused("hn-labels", *ROOMS, "--count", "0")
    assert "did you mean train_00001" in refused("hn-labels", *ROOMS, "--frames", "train_0001")
    assert "does not exist" in refused("stitch", tmp_path)
