"""Labels of height and normal as a data set: what is written, what goes on after a kill, and what trains on it."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix.data import HN, NYUv2, RGBDFolder, SyntheticRooms, hn_labels
from hardpix.data.hn_labels import Choice, HNSettings, file_stems, make_labels
from hardpix.data.sets.hn import hn_class_names, hn_palette, read_listing
from hardpix.data.synthetic.rooms import render
from hardpix.ops.quantize import hn_label
from hardpix.types import ConfigError, DataError

EDGES = tuple(0.25 * place for place in range(10))
SMALL = HNSettings(EDGES, normals=2, up="gravity", radius=1, gravity_radius=3)  # for pictures of 48 x 64
DEPTH = frozenset({"image", "depth", "depth_valid"})
LABELLED, EMPTY = ("frame-000001", "frame-000002", "frame-000003", "frame-000005"), "frame-000009"


def direct(depth, valid, camera, settings=SMALL):
    return hn_label(
        depth,
        valid,
        np.asarray(camera, np.float64),
        radius=settings.radius,
        gravity_radius=settings.gravity_radius,
        up_method=settings.up,
        height_edges=settings.height_edges,
        normals=settings.normals,
    )


def made(source, out, settings=SMALL, *, splits=("train",), choice=None, workers=1, identity=None, said=None):
    """Labels of ``source`` below ``out``: the tallies and the faults."""
    return make_labels(
        source,
        {"name": source.info.name} if identity is None else identity,
        splits,
        out,
        settings,
        choice or Choice(),
        workers=workers,
        bar=lambda *_: None,
        say=print if said is None else said.append,
    )


def tree(folder):
    """Digests of all files below a folder, by path; the version of the program that wrote them is left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Four rooms and a frame without a reading, in the layout of 7-Scenes; names with a scene."""
    scene = tmp_path_factory.mktemp("rooms") / "kitchen"
    scene.mkdir()
    for number in (1, 2, 3, 5, 9):
        frame = render(0, "train", number, height=48, width=64, difficulty=0.5)
        stem = scene / f"frame-{number:06d}"
        Image.fromarray(frame.rgb).save(stem.with_suffix(".color.png"))
        millimetres = np.round(frame.exact_depth * 1000 * (number != 9)).astype(np.uint16)
        Image.fromarray(millimetres).save(stem.with_suffix(".depth.png"))
    np.savetxt(scene / "camera-intrinsics.txt", frame.K)
    return scene.parent


@pytest.fixture
def own_rooms(rooms, tmp_path):
    """A copy of the rooms that a test may change."""
    shutil.copytree(rooms, tmp_path / "rooms")
    return tmp_path / "rooms"


def scenes(root, **options):
    return RGBDFolder(str(root), layout="7scenes", **options)


@pytest.fixture
def finished(rooms, tmp_path):
    made(scenes(rooms), tmp_path / "finished")
    return tmp_path / "finished"


# What is written


def test_synthetic_rooms_end_to_end(tmp_path):
    source = SyntheticRooms(
        height=48, width=64, train_frames=6, val_frames=3, test_frames=1, seed=0, difficulty=0.5
    )
    tallies, faults = made(source, tmp_path, splits=("train", "val"))
    assert faults == []
    written = HN(str(tmp_path), val_fraction=None)
    assert written.info.classes == hn_class_names(EDGES, 2)
    assert written.info.palette == hn_palette(10, 2)
    for split, count in (("train", 6), ("val", 3)):
        frames, result = source.frames(split, DEPTH), written.frames(split, frozenset({"image", "label"}))
        places = {result.name(place): place for place in range(len(result))}
        rejected = 0
        for index in range(count):
            sample = frames.load(index)
            camera = render(0, split, index, height=48, width=64, difficulty=0.5).K
            right = direct(sample["depth"].numpy(), sample["depth_valid"].numpy(), camera)
            rejected += right.rejected is not None
            assert (sample["name"] in places) == (right.rejected is None)
            if right.rejected is None:
                found = result.load(places[sample["name"]])
                assert found["label"].numpy().tolist() == right.label.tolist()
                assert torch.equal(found["image"], sample["image"])
                assert set(found) == {"image", "label", "name"}
        assert tallies[split].labelled == count - rejected == len(result) > 0
        assert tallies[split].rejected.total() == rejected


def test_the_listing_tells_of_every_frame(rooms, finished):
    source = scenes(rooms).frames("train", DEPTH)
    entries = read_listing(finished / "train" / "frames.jsonl")
    assert [entry["name"] for entry in entries] == [f"kitchen__{name}" for name in (*LABELLED, EMPTY)]
    for index, entry in enumerate(entries[:-1]):
        sample = source.load(index)
        right = direct(sample["depth"].numpy(), sample["depth_valid"].numpy(), source.intrinsics(index))
        np.testing.assert_allclose(entry["up"], right.up, atol=1e-6)
        assert entry["floor"] == pytest.approx(right.floor, abs=1e-4)
        assert right.floor < -0.5
        assert entry["valid_share"] == pytest.approx(right.valid_share, abs=1e-4)
        assert (entry["rejected"], entry["size"]) == (None, [48, 64])
        assert entry["image"] == f"{entry['name']}.png"
    assert entries[-1]["rejected"] == "fewer than 1% of the pixels have depth"
    assert (entries[-1]["up"], entries[-1]["floor"], entries[-1]["image"]) == (None, None, None)


def test_rejected_frames_are_counted_and_left_out(finished):
    facts = json.loads((finished / "hn.json").read_text())
    assert facts["splits"] == {
        "train": {
            "status": "done",
            "frames": 5,
            "labelled": 4,
            "rejected": {"fewer than 1% of the pixels have depth": 1},
            "failed": 0,
        }
    }
    for folder in ("images", "labels"):
        assert sorted(path.stem for path in (finished / "train" / folder).iterdir()) == [
            f"kitchen__{name}" for name in LABELLED
        ]
    source = HN(str(finished), val_fraction=0.25)
    assert "hn: 1 of 5 train frames were rejected and are left out" in source.remarks()
    assert len(source.frames("train", frozenset({"label"}))) == 3


def test_unchanged_images_are_the_data_sets_own_files(rooms, finished):
    name = LABELLED[0]
    mine = finished / "train" / "images" / f"kitchen__{name}.png"
    theirs = rooms / "kitchen" / f"{name}.color.png"
    assert mine.read_bytes() == theirs.read_bytes()
    assert mine.stat().st_ino == theirs.stat().st_ino


def test_images_are_copied_where_links_are_impossible(own_rooms, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    made(scenes(own_rooms), tmp_path / "out")
    mine = tmp_path / "out" / "train" / "images" / f"kitchen__{LABELLED[0]}.png"
    assert mine.read_bytes() == (own_rooms / "kitchen" / f"{LABELLED[0]}.color.png").read_bytes()


def test_other_formats_become_png(own_rooms, tmp_path):
    path = own_rooms / "kitchen" / f"{LABELLED[0]}.color.png"
    Image.open(path).save(path.with_suffix(".tif"))
    right = pixels(path)
    path.unlink()
    made(scenes(own_rooms), tmp_path / "out")
    np.testing.assert_array_equal(
        pixels(tmp_path / "out" / "train" / "images" / f"kitchen__{LABELLED[0]}.png"), right
    )


def test_what_lies_outside_a_crop_has_no_say(own_rooms, tmp_path):
    """Nothing but the part is labelled, with the camera of the part."""
    path = own_rooms / "kitchen" / f"{LABELLED[0]}.depth.png"
    depth = pixels(path).copy()
    depth[44:, :6] = 60000  # a false floor far below
    Image.fromarray(depth).save(path)
    settings = HNSettings(EDGES, 2, "gravity", radius=1, gravity_radius=3, crop=(3, 7, 40, 50))
    made(scenes(own_rooms), tmp_path / "out", settings)
    frames = scenes(own_rooms).frames("train", DEPTH)
    camera = np.loadtxt(own_rooms / "kitchen" / "camera-intrinsics.txt") - [[0, 0, 7], [0, 0, 3], [0, 0, 0]]
    entries = read_listing(tmp_path / "out" / "train" / "frames.jsonl")
    for index, name in enumerate(LABELLED):
        sample = frames.load(index)
        right = direct(sample["depth"][3:43, 7:57].numpy(), sample["depth_valid"][3:43, 7:57].numpy(), camera)
        assert (entries[index]["size"], entries[index]["rejected"]) == ([40, 50], right.rejected)
        np.testing.assert_allclose(entries[index]["up"], right.up, atol=1e-6)
        if right.rejected is None:
            found = [
                pixels(tmp_path / "out" / "train" / k / f"kitchen__{name}.png") for k in ("labels", "images")
            ]
            np.testing.assert_array_equal(found[0], right.label)
            np.testing.assert_array_equal(found[1].transpose(2, 0, 1), sample["image"][:, 3:43, 7:57])
    assert sum(entry["rejected"] is None for entry in entries) >= 2


def test_colour_takes_the_size_of_the_depth(own_rooms, tmp_path):
    """Larger by two: the mean of four pixels, nearly, stands where they stood."""
    path = own_rooms / "kitchen" / f"{LABELLED[1]}.color.png"
    small = pixels(path)
    Image.fromarray(small.repeat(2, 0).repeat(2, 1)).save(path)
    other = own_rooms / "kitchen" / f"{LABELLED[2]}.color.png"
    ramp = np.tile(np.arange(32, dtype=np.uint8)[None, :, None] * 8, (24, 1, 3))
    Image.fromarray(ramp).save(other)
    made(scenes(own_rooms), tmp_path / "out")
    images, labels = tmp_path / "out" / "train" / "images", tmp_path / "out" / "train" / "labels"
    found = pixels(images / f"kitchen__{LABELLED[1]}.png").astype(int)
    assert found.shape == (48, 64, 3)
    assert np.abs(found - small).mean() < 12
    enlarged = pixels(images / f"kitchen__{LABELLED[2]}.png").astype(int)
    assert enlarged.shape == (48, 64, 3)
    # Pixel i of 64 lies at i / 2 - 1/4 of 32: between two of the ramp, not on one.
    assert enlarged[0, 1:5, 0].tolist() == [2, 6, 10, 14]
    sample = scenes(own_rooms).frames("train", DEPTH)
    right = direct(*sample.depth(2), sample.intrinsics(2))
    np.testing.assert_array_equal(pixels(labels / f"kitchen__{LABELLED[2]}.png"), right.label)


def test_other_bins_and_one_normal(rooms, tmp_path):
    settings = HNSettings((0.0, 0.5, 1.5), normals=1, up="manhattan", radius=2, gravity_radius=4)
    made(scenes(rooms), tmp_path, settings)
    info = HN(str(tmp_path), val_fraction=0.25).info
    assert info.classes == ("0.00-0.50 m", "0.50-1.50 m", "1.50 m and more")
    frames = scenes(rooms).frames("train", DEPTH)
    sample = frames.load(1)
    right = direct(sample["depth"].numpy(), sample["depth_valid"].numpy(), frames.intrinsics(1), settings)
    np.testing.assert_array_equal(
        pixels(tmp_path / "train" / "labels" / f"kitchen__{LABELLED[1]}.png"), right.label
    )


def test_a_given_camera_replaces_the_data_sets(rooms, finished, tmp_path):
    camera = np.loadtxt(rooms / "kitchen" / "camera-intrinsics.txt")
    same = tuple(float(v) for v in camera[[0, 1, 0, 1], [0, 1, 2, 2]])
    for name, given, equal in (("same", same, True), ("other", (same[0] * 2, *same[1:]), False)):
        settings = HNSettings(EDGES, 2, "gravity", 1, 3, camera=given)
        made(scenes(rooms), tmp_path / name, settings)
        entries = [read_listing(folder / "train" / "frames.jsonl") for folder in (finished, tmp_path / name)]
        assert (entries[0] == entries[1]) is equal


def test_chosen_frames_are_evenly_spaced():
    assert Choice(every=3).indices(10) == [0, 3, 6, 9]
    assert Choice(every=3, limit=2).indices(10) == [0, 6]
    assert Choice(limit=20).indices(3) == [0, 1, 2]
    with pytest.raises(ConfigError, match="every is 0"):
        Choice(every=0)


def test_names_with_slashes_stay_apart():
    assert file_stems(["a/1", "b/1", ".c"], "train") == ["a__1", "b__1", "_.c"]
    with pytest.raises(DataError, match=r"'a/1' and 'a__1' would both be written as a__1"):
        file_stems(["a/1", "a__1"], "train")


# Refusals


def test_what_cannot_be_labelled_is_refused(rooms, own_rooms, tmp_path):
    out = tmp_path / "out"
    (own_rooms / "kitchen" / "camera-intrinsics.txt").unlink()
    with pytest.raises(
        ConfigError, match=r"data set rgbd does not tell its camera; give it as --camera FX FY"
    ):
        made(scenes(own_rooms), out)
    beyond = HNSettings(EDGES, 2, "gravity", 1, 3, crop=(0, 0, 49, 64))
    with pytest.raises(ConfigError, match=r"leaves the 64x48 pixels; --crop must lie inside"):
        made(scenes(rooms), out, beyond)
    assert not out.exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"up": "sideways"}, "up is 'sideways'"),
        ({"radius": 0}, "radius and gravity_radius are 0 and 3"),
        ({"normals": 3}, "normals is 3"),
        ({"height_edges": (0.0, 0.0)}, "height_edges"),
        ({"crop": (0, -1, 4, 4)}, "crop is"),
        ({"crop": (0, 0, 0, 4)}, "crop is"),
        ({"camera": (0.0, 1.0, 1.0, 1.0)}, "camera is"),
        ({"camera": (1.0, 1.0, float("nan"), 1.0)}, "camera is"),
    ],
)
def test_settings_that_cannot_be(wrong, said):
    given = {"height_edges": EDGES, "normals": 2, "up": "gravity", "radius": 1, "gravity_radius": 3}
    with pytest.raises(ConfigError, match=said):
        HNSettings(**(given | wrong))


def test_other_settings_are_refused_by_key(rooms, finished):
    before = tree(finished)
    for settings, key in (
        (HNSettings(EDGES, 2, "gravity", 2, 3), "--radius 1, not 2"),
        (HNSettings(EDGES[:5], 2, "gravity", 1, 3), "--height-edges "),
        (HNSettings(EDGES, 2, "gravity", 1, 3, crop=(0, 0, 8, 8)), r"--crop None, not \[0, 0, 8, 8\]"),
    ):
        with pytest.raises(ConfigError, match=key):
            made(scenes(rooms), finished, settings)
    with pytest.raises(ConfigError, match="--every 1, not 2"):
        made(scenes(rooms), finished, choice=Choice(every=2))
    with pytest.raises(ConfigError, match=r"data\.source\.name=rgbd, not other"):
        made(scenes(rooms), finished, identity={"name": "other"})
    assert tree(finished) == before


def test_a_folder_with_other_files_is_refused(rooms, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        made(scenes(rooms), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# Faults and interruptions


def test_a_broken_frame_costs_only_itself(own_rooms, finished, tmp_path):
    out = tmp_path / "out"
    path = own_rooms / "kitchen" / f"{LABELLED[1]}.depth.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    tallies, faults = made(scenes(own_rooms), out)
    assert len(faults) == 1
    assert str(path) in faults[0]
    assert "not a readable" in faults[0]
    assert (out / "hn.log").read_text() == faults[0] + "\n"
    assert (tallies["train"].labelled, tallies["train"].failed) == (3, 1)
    assert len(HN(str(out), val_fraction=0.25).files("train")) == 2
    path.write_bytes(whole)  # mended, the same command makes what is missing
    tallies, faults = made(scenes(own_rooms), out)
    assert faults == []
    assert tallies["train"].made == 1
    for part in ("train/frames.jsonl", *(f"train/labels/kitchen__{name}.png" for name in LABELLED)):
        assert (out / part).read_bytes() == (finished / part).read_bytes()
    assert not (out / "hn.log").exists()


def test_whatever_a_frame_raises_is_its_own_fault(rooms, tmp_path, monkeypatch):
    calls = []

    def fail_once(*arguments, **settings):
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError("odd")
        return hn_label(*arguments, **settings)

    monkeypatch.setattr(hn_labels, "hn_label", fail_once)
    tallies, faults = made(scenes(rooms), tmp_path)
    assert faults == [f"kitchen__{LABELLED[1]}: ZeroDivisionError: odd"]
    assert tallies["train"].labelled == 3


def test_a_full_disk_stops_the_work(rooms, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        made(scenes(rooms), tmp_path)
    assert not list(tmp_path.rglob("*.partial*"))


def killed_at(step, rooms, out):
    """Make labels in a process of its own that dies, without a word, before its ``step``-th change of a file."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0

    def counted(function):
        def wrapped(*arguments):
            nonlocal count
            count += 1
            if count == step:
                os._exit(9)
            return function(*arguments)

        return wrapped

    try:
        os.replace, os.link = counted(os.replace), counted(os.link)
        hn_labels.line_of = counted(hn_labels.line_of)
        made(scenes(rooms), out)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_killed_anywhere_the_same_command_finishes(rooms, finished, tmp_path):
    right = tree(finished)
    step, status = 0, 9
    while status == 9:
        step += 1
        out = tmp_path / f"killed_{step}"
        status = killed_at(step, rooms, out)
        for path in out.rglob("*.png"):
            assert path.name.startswith(".") or pixels(path).shape[:2] == (48, 64)
        if status == 9 and (out / "hn.json").is_file():
            source = HN(str(out), val_fraction=0.25)
            with pytest.raises(DataError, match=r"not all of its labels are made|no split train was made"):
                source.files("train")
        made(scenes(rooms), out)
        assert tree(out) == right, f"killed before step {step}"
    assert status == 0
    assert step > 4 * 3


def test_a_line_cut_off_and_a_lost_file_are_made_again(rooms, finished):
    right = tree(finished)
    listing = finished / "train" / "frames.jsonl"
    listing.write_text(listing.read_text()[:-30])
    (finished / "train" / "labels" / f"kitchen__{LABELLED[0]}.png").unlink()
    (finished / "train" / "labels" / f"kitchen__{LABELLED[1]}.png").write_bytes(b"")
    (finished / "train" / "images" / ".x.7.partial.png").write_bytes(b"half")
    tallies, _ = made(scenes(rooms), finished)
    assert tallies["train"].made == 3
    assert tree(finished) == right


def test_finished_work_is_not_done_again(rooms, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.png")}
    tallies, _ = made(scenes(rooms), finished)
    assert (tallies["train"].made, tallies["train"].labelled) == (0, 4)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.png")} == before


def test_a_split_can_be_added(rooms, finished, tmp_path):
    said = []
    tallies, _ = made(scenes(rooms), finished, splits=["val"], said=said)
    assert list(tallies) == ["val"]
    assert said == []
    assert list(json.loads((finished / "hn.json").read_text())["splits"]) == ["train", "val"]
    made(scenes(rooms), tmp_path / "both", splits=["train", "val", "train"], said=said)
    assert said == ["val: these are the frames of train, left out"]


@pytest.mark.slow
def test_processes_write_what_one_writes(rooms, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(hn_labels, "FRAMES_WITHOUT_POOL", 1)
    before = dict(os.environ)
    tallies, _ = made(scenes(rooms), tmp_path / "two", workers=2)
    assert tree(tmp_path / "two") == tree(finished)
    assert tallies["train"].made == 5
    assert dict(os.environ) == before


# The data set made of it


def test_labels_of_other_bins_than_said_are_refused(finished):
    HN(str(finished), val_fraction=0.5, heights=10, normals=2)
    with pytest.raises(ConfigError, match=r"data.source.heights=5: the labels in .* were made with 10"):
        HN(str(finished), val_fraction=0.5, heights=5, normals=2)
    with pytest.raises(ConfigError, match=r"data.source.normals=1: .* were made with 2"):
        HN(str(finished), val_fraction=0.5, heights=10, normals=1)


def test_val_is_held_out_by_name(finished):
    source = HN(str(finished), val_fraction=0.5)
    train, val, test = ([f.name for f in source.files(split)] for split in ("train", "val", "test"))
    assert sorted(train + val) == [f"kitchen__{name}" for name in LABELLED]
    assert len(val) == 2
    assert test == val
    assert train == sorted(train)  # the order of the listing
    assert val == [f.name for f in HN(str(finished), val_fraction=0.5).files("val")]
    assert source.remarks()[1:] == (
        "hn: val is held out of train, it was not made (val_fraction=0.5)",
        "hn: test is val, it was not made",
    )
    with pytest.raises(DataError, match=r"no split val was made; set data.source.val_fraction=0.05"):
        HN(str(finished), val_fraction=None).files("val")
    with pytest.raises(ConfigError, match="val_fraction=1"):
        HN(str(finished), val_fraction=1)


def test_a_split_that_was_made_is_not_held_out(rooms, finished):
    made(scenes(rooms), finished, splits=["val"])
    source = HN(str(finished), val_fraction=0.5)
    assert len(source.files("train")) == len(source.files("val")) == len(source.files("test")) == 4
    assert source.strays("train") == []


def test_other_splits_and_unfinished_ones_are_refused(finished):
    with pytest.raises(DataError, match="no split extra was made; there are: train"):
        HN(str(finished), val_fraction=0.5).files("extra")
    facts = json.loads((finished / "hn.json").read_text())
    facts["splits"]["train"]["status"] = "running"
    (finished / "hn.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="not all of its labels are made"):
        HN(str(finished), val_fraction=0.5).files("train")


def test_a_listing_that_lost_lines_is_told(finished):
    listing = finished / "train" / "frames.jsonl"
    listing.write_text("".join(listing.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(DataError, match=r"tells of 3 labelled frames, but hn.json of 4"):
        HN(str(finished), val_fraction=0.5).files("train")


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.update(classes=[]),
        lambda facts: facts.update(classes=["a", "a"], palette=[[0, 0, 0]] * 2),
        lambda facts: facts.pop("palette"),
        lambda facts: facts.update(palette=[[0, 0, 256]] * 20),
        lambda facts: facts.update(classes=[f"{n}" for n in range(256)], palette=[[0, 0, 0]] * 256),
        lambda facts: facts.update(splits=[]),
        lambda facts: facts.update(schema=2),
        lambda facts: facts["splits"].update(train={}),
        lambda facts: facts["splits"]["train"].update(labelled="4"),
        lambda facts: facts["splits"]["train"].update(rejected={"x": -1}),
    ],
)
def test_a_damaged_description_is_refused(finished, change):
    facts = json.loads((finished / "hn.json").read_text())
    change(facts)
    (finished / "hn.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"hn\.json"):
        HN(str(finished), val_fraction=0.5)


def test_no_description_and_no_json_are_refused(tmp_path, finished):
    with pytest.raises(DataError, match="no such folder"):
        HN(str(tmp_path / "none"), val_fraction=0.5)
    with pytest.raises(DataError, match="hardpix data hn-labels writes it"):
        HN(str(tmp_path), val_fraction=0.5)
    (finished / "hn.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        HN(str(finished), val_fraction=0.5)


def test_a_listing_leads_nowhere_else(tmp_path):
    good = {"name": "a", "rejected": None, "image": "a.png"}
    bad = [
        {"name": "../a"},
        {"image": "/etc/x.png"},
        {"image": "..\\a.png"},
        {"image": None},
        {"rejected": 1},
    ]
    lines = [json.dumps(good | wrong) for wrong in bad] + [json.dumps(good), "[1]", "{", "", json.dumps({})]
    (tmp_path / "frames.jsonl").write_text("\n".join(lines))
    assert read_listing(tmp_path / "frames.jsonl") == [good]
    assert read_listing(tmp_path / "none.jsonl") == []


# Real frames


@pytest.mark.real
def test_nyuv2_frames(real_data, tmp_path):
    settings = HNSettings(EDGES, 2, "gravity", 3, 10, crop=(45, 40, 424, 560))
    source = NYUv2(str(real_data / "nyudv2"), void_40_in_train="ignore")
    tallies, faults = made(source, tmp_path, settings, choice=Choice(limit=8))
    assert faults == []
    assert tallies["train"].labelled + tallies["train"].rejected.total() == 8
    frames = source.frames("train", DEPTH)
    names = {frames.name(index): index for index in range(len(frames))}
    camera = frames.intrinsics(0) - [[0, 0, 40], [0, 0, 45], [0, 0, 0]]
    for entry in read_listing(tmp_path / "train" / "frames.jsonl"):
        sample = frames.load(names[entry["name"]])
        image, depth, valid = (
            sample[key][..., 45:469, 40:600].numpy() for key in ("image", "depth", "depth_valid")
        )
        right = direct(depth, valid, camera, settings)
        assert (entry["rejected"], entry["size"]) == (right.rejected, [424, 560])
        if right.rejected is None:
            found = pixels(tmp_path / "train" / "labels" / f"{entry['name']}.png")
            np.testing.assert_array_equal(found, right.label)
            found = pixels(tmp_path / "train" / "images" / entry["image"])
            np.testing.assert_array_equal(found.transpose(2, 0, 1), image)


@pytest.mark.real
def test_7scenes_floors_lie_low_and_flat(real_data, tmp_path):
    """Frames of a video that shows a floor: below in the picture lies more of the first bin than above."""
    settings = HNSettings(EDGES, 2, "gravity", 3, 10)
    tallies, _ = made(scenes(real_data / "7scenes"), tmp_path, settings, choice=Choice(limit=6))
    assert tallies["train"].labelled >= 2
    labels = [pixels(path) for path in sorted((tmp_path / "train" / "labels").iterdir())]
    upper = sum((label[:120] == 0).sum() for label in labels)
    lower = sum((label[-120:] == 0).sum() for label in labels)
    assert lower > 10 * upper
