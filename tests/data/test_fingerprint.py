"""Which changes of a data set are seen: every one in frames, names and sizes, and none in times or place."""

import os
import shutil
import time
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from hardpix.data import Folder, Packed, SyntheticRooms, changed_since, edited, fingerprint, pack, stamp
from hardpix.data.sampling import Chosen

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


def longer(kind):
    def change(root):
        path = root / "train" / kind / "2.png"
        path.write_bytes(path.read_bytes() + b"\0")

    return change


CHANGES = {
    "add": lambda root: add(root, "train", 7),
    "remove": removed,
    "rename": renamed,
    "image": longer("images"),
    "label": longer("labels"),
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


def frames_of(root):
    return folder(root).frames("train", BOTH)


def rewrite(path):
    """Other bytes, as many."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(bytes(content))


def replaced(path):
    """The same by another file under its name, as editors do it."""
    other = path.with_name("new")
    other.write_bytes(path.read_bytes())
    rewrite(other)
    other.replace(path)


def set_back(path):
    rewrite(path)
    os.utime(path, (5, 5))


@pytest.mark.parametrize("change", [rewrite, replaced, set_back, os.utime])
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_an_edit_of_equal_size_is_seen_by_its_time(root, change, kind):
    for path in root.rglob("*.png"):
        os.utime(path, (1000, 1000))
    before, other = stamp(frames_of(root)), stamp(folder(root).frames("val", BOTH))
    same = of(root)
    assert not edited(frames_of(root), before, 2000)
    change(root / "train" / kind / "2.png")
    assert of(root) == same
    assert edited(frames_of(root), before, 2000)
    assert not edited(folder(root).frames("val", BOTH), other, 2000)


def copies(root, tmp_path, began):
    """With the times of the original, with those of copying, and one of which a file was edited afterwards."""
    shutil.copytree(root, tmp_path / "kept")
    shutil.copytree(root, tmp_path / "fresh", copy_function=shutil.copyfile)
    for path in (tmp_path / "fresh").rglob("*.png"):
        os.utime(path, (began + 10, began + 10))
    shutil.copytree(root, tmp_path / "mixed")
    rewrite(tmp_path / "mixed/train/labels/1.png")
    shutil.copytree(root, tmp_path / "seconds")  # an archive may keep whole seconds
    for path in (tmp_path / "seconds").rglob("*.png"):
        os.utime(path, (int(path.stat().st_mtime), int(path.stat().st_mtime)))
    return {name: frames_of(tmp_path / name) for name in ("kept", "fresh", "mixed", "seconds")}


def test_a_copy_is_the_same_and_one_that_was_edited_is_not(root, tmp_path):
    for path in root.rglob("*.png"):
        os.utime(path, (1000.25, 1000.25))
    before = stamp(frames_of(root))
    found = {name: edited(frames, before, 2000) for name, frames in copies(root, tmp_path, 2000).items()}
    assert found == {"kept": False, "fresh": False, "mixed": True, "seconds": False}
    root.rename(tmp_path / "moved")
    assert stamp(frames_of(tmp_path / "moved")) == before


def test_what_is_rendered_has_no_stamp(tmp_path):
    rooms = SyntheticRooms(height=16, width=24, train_frames=2, val_frames=1, test_frames=1, seed=0, difficulty=0.5,
                           cache_dir=tmp_path)  # fmt: skip
    frames = rooms.frames("train", BOTH)
    assert stamp(frames) == stamp(Chosen(frames, [1])) == ""
    name, size = frames.path.name, frames.path.stat().st_size
    told = f"train_00000\ntrain_00001\n{name} {size}\n"
    assert fingerprint(frames) == sha256(told.encode()).hexdigest()[:16]


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
    longer("labels")(root)
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
