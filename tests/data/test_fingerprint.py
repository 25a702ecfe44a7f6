"""Which changes of a data set are seen: every one in frames, names and sizes, and none in times or place."""

import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from hardpix.data import Folder, Packed, SyntheticRooms, changed_since, fingerprint, pack
from hardpix.data.subset import Chosen

BOTH = frozenset({"image", "label"})


def make(root, count=4):
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            add(root, split, index)
    return root


def add(root, split, index, seed=0):
    dice = np.random.default_rng([index, seed])
    Image.fromarray(dice.integers(0, 256, (12, 16, 3), np.uint8)).save(
        root / split / "images" / f"{index}.png"
    )
    Image.fromarray(dice.integers(0, 3, (12, 16), np.uint8)).save(root / split / "labels" / f"{index}.png")


def folder(root, **changes):
    return Folder(root=str(root), classes=["a", "b", "c"], **changes)


def of(root, split="train", keys=BOTH):
    return fingerprint(folder(root).frames(split, keys))


@pytest.fixture
def root(tmp_path):
    return make(tmp_path / "set")


def touch(root):
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))


def renamed(root):
    for kind in ("images", "labels"):
        (root / "train" / kind / "3.png").rename(root / "train" / kind / "9.png")


def removed(root):
    for kind in ("images", "labels"):
        (root / "train" / kind / "0.png").unlink()


def edited(kind):
    def change(root):
        path = root / "train" / kind / "2.png"
        path.write_bytes(path.read_bytes() + b"\0")

    return change


CHANGES = {
    "add": lambda root: add(root, "train", 7),
    "remove": removed,
    "rename": renamed,
    "image": edited("images"),
    "label": edited("labels"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_in_its_split_alone(root, name):
    before, other = of(root), of(root, "val")
    CHANGES[name](root)
    assert of(root) != before
    assert of(root, "val") == other


def test_times_place_and_what_is_loaded_do_not_count(root, tmp_path):
    before = of(root)
    touch(root)
    assert of(root) == before
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(root, copy)
    assert of(copy) == before
    assert of(root, keys=frozenset({"image"})) == before


def test_two_frames_that_change_places_are_seen(root):
    frames = folder(root).frames("train", BOTH)
    assert fingerprint(Chosen(frames, [0, 1, 2, 3])) == fingerprint(frames)
    assert fingerprint(Chosen(frames, [1, 0, 2, 3])) != fingerprint(frames)
    assert fingerprint(Chosen(frames, [0, 1, 2])) != fingerprint(frames)


def test_changed_files_are_named(root):
    now = time.time()
    for path in root.rglob("*.png"):
        assert path.stat().st_ctime <= now + 1
    frames = folder(root).frames("train", BOTH)
    assert changed_since(frames, now + 100) == []
    edited("labels")(root)
    assert len(changed_since(frames, 0)) == 3
    assert changed_since(frames, 0)[0] == root / "train/labels/2.png"


def test_a_packed_set_follows_its_contents(root, tmp_path):
    def packed(name):
        pack(folder(root), tmp_path / name, size=None, splits=("train",))
        return fingerprint(Packed(root=str(tmp_path / name)).frames("train", BOTH))

    before = packed("a")
    touch(root)
    assert packed("b") == before
    add(root, "train", 2, seed=1)  # equal in size once packed
    assert packed("c") != before


def test_synthetic_rooms_follow_their_settings(tmp_path):
    def rooms(**changes):
        settings = {"height": 16, "width": 24, "train_frames": 2, "val_frames": 1, "test_frames": 1, "seed": 0,
                    "difficulty": 0.5}  # fmt: skip
        made = SyntheticRooms(**{**settings, **changes}, cache_dir=tmp_path)
        return fingerprint(made.frames("train", BOTH))

    assert rooms() == rooms()
    assert (
        len({rooms(), rooms(seed=1), rooms(difficulty=0.4), rooms(train_frames=3), rooms(kinect=True)}) == 5
    )
