"""NYUv2 from its official MATLAB files: axes, numbering, class mapping, faults, processes."""

import multiprocessing
import os
import pickle
import sys

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from hardpix.data import NYUv2, Packed, pack
from hardpix.data.statistics import class_counts
from hardpix.types import ConfigError, DataError

ALL = frozenset({"image", "label", "depth", "depth_valid"})
BOTH = frozenset({"image", "label"})
LABELED = "nyu_depth_v2_labeled.mat"
COUNT = 4
MAPPING = np.arange(894) % 40 + 1  # raw 1 -> 1, raw 41 -> 1, raw 894 -> 14
Y, X = np.mgrid[:480, :640]


def image(frame):
    """No two axes alike, in no frame alike: [480, 640, 3]."""
    return np.stack([X % 251, Y % 241, np.full_like(X, frame)], -1).astype(np.uint8)


def labels(frame):
    return ((X * 3 + Y + frame) % 895).astype(np.uint16)


def depth(frame):
    return (1 + frame + X / 640 + Y / 100).astype(np.float32)


def write_labeled(path, count, frames):
    """An official file of ``count`` frames; only ``frames`` {from 0: (image, labels, depth)} are stored."""
    with h5py.File(path, "w") as file:
        made = [
            file.create_dataset("images", (count, 3, 640, 480), "u1", chunks=(1, 3, 640, 480), compression=1),
            file.create_dataset("labels", (count, 640, 480), "u2", chunks=(1, 640, 480), compression=1),
            file.create_dataset("depths", (count, 640, 480), "f4", chunks=(1, 640, 480), compression=1),
        ]
        for i, (picture, raw, metres) in frames.items():
            for dataset, array in zip(made, (picture, raw, metres), strict=True):
                dataset[i] = array.T  # [H, W, 3] -> [3, W, H]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("nyu") / LABELED
    write_labeled(path, COUNT, {i: (image(i), labels(i), depth(i)) for i in range(COUNT)})
    return path


@pytest.fixture
def root(tmp_path, written):
    (tmp_path / LABELED).write_bytes(written.read_bytes())
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.uint16([[2], [4]]), "testNdxs": np.uint16([[1], [3]])})
    savemat(tmp_path / "classMapping40.mat", {"mapClass": MAPPING[None].astype(np.uint8)})
    return tmp_path


def source(root, **changes):
    return NYUv2(root, **({"void_40_in_train": "ignore"} | changes))


def expected_label(frame):
    raw = labels(frame).astype(int)
    return np.where(raw == 0, 255, (raw - 1) % 40)


def names(frames):
    return [frames.name(i) for i in range(len(frames))]


def test_rows_are_rows_and_the_first_frame_is_number_1(root):
    for split, numbers in {"train": [2, 4], "test": [1, 3], "val": [1, 3]}.items():
        frames = source(root).frames(split, ALL)
        assert names(frames) == [f"{n:04d}" for n in numbers]
        for index, number in enumerate(numbers):
            frame = frames.load(index)
            np.testing.assert_array_equal(frame["image"].numpy(), image(number - 1).transpose(2, 0, 1))
            np.testing.assert_array_equal(frame["label"].numpy(), expected_label(number - 1))
            np.testing.assert_array_equal(frame["depth"].numpy(), depth(number - 1))
            assert frame["depth_valid"].all()
            assert (frame["image"].dtype, frame["label"].dtype) == (torch.uint8, torch.uint8)


def test_class_40_of_train_is_a_class_whatever_the_folder_rule(root):
    for rule in ("ignore", "class"):
        label = source(root, void_40_in_train=rule).frames("train", BOTH).load(0)["label"]
        assert (label == 39).sum() == (expected_label(1) == 39).sum() > 0


def test_depth_without_a_reading_is_invalid(root):
    with h5py.File(root / LABELED, "a") as file:
        file["depths"][0, 5:8, 7] = 0, np.nan, np.inf  # x 5 to 7, y 7
    valid = source(root).frames("test", ALL).load(0)["depth_valid"]
    assert (~valid).nonzero().tolist() == [[7, 5], [7, 6], [7, 7]]


def test_border_is_cut_off_everything(root):
    frames = source(root, border_crop=[45, 470, 41, 601]).frames("train", ALL)
    frame = frames.load(1)
    np.testing.assert_array_equal(frame["label"].numpy(), expected_label(3)[45:470, 41:601])
    np.testing.assert_array_equal(frame["depth"].numpy(), depth(3)[45:470, 41:601])
    assert frame["image"].shape == (3, 425, 560)
    assert torch.equal(frames.label(1), frame["label"])


def test_only_what_is_used_is_read(root):
    with h5py.File(root / LABELED, "a") as file:
        del file["depths"]
    assert set(source(root).frames("train", BOTH).load(0)) == {"image", "label", "name"}
    with pytest.raises(DataError, match=r"labeled\.mat: dataset depths is missing; .*\(frames, 640, 480\)"):
        source(root).frames("train", ALL)


def test_held_out_frames_are_training_frames(root):
    held = source(root, val_fraction=0.5)
    train, val = names(held.frames("train", BOTH)), names(held.frames("val", BOTH))
    assert sorted(train + val) == ["0002", "0004"]
    assert len(val) == 1
    assert names(held.frames("test", BOTH)) == ["0001", "0003"]


def test_class_counts_follow_the_file_and_the_mapping(root):
    def pixels():
        frames = source(root).frames("train", frozenset({"label"}))
        return class_counts(frames, source(root).info).pixels.numpy()

    both = np.concatenate([expected_label(1).ravel(), expected_label(3).ravel()])
    np.testing.assert_array_equal(pixels(), np.bincount(both, minlength=256)[:40])
    savemat(root / "classMapping40.mat", {"mapClass": np.full((1, 894), 7, np.uint8)})
    assert pixels()[6] == (both < 40).sum()
    with h5py.File(root / LABELED, "a") as file:
        file["labels"][1] = 0
    assert pixels()[6] == (expected_label(3) < 40).sum()


def test_packs_to_the_same_frames(root):
    whole = source(root)
    packed = Packed(pack(whole, root / "packed", size=None, splits=["test"])).frames("test", ALL)
    frames = whole.frames("test", ALL)
    for i in range(2):
        assert torch.equal(packed.load(i)["label"], frames.load(i)["label"])
        assert torch.equal(packed.load(i)["image"], frames.load(i)["image"])


def _send_sums(frames, queue):
    torch.set_num_threads(1)  # as a loader worker does: a forked child has no thread pool to wait for
    sums = [int(frames.load(i)["image"].sum()) for i in range(2)]
    queue.put((sums, frames._opened[0] == os.getpid()))


def test_an_open_file_survives_pickle_and_is_opened_anew_after_a_fork(root):
    frames = source(root).frames("train", BOTH)
    sums = [int(frames.load(i)["image"].sum()) for i in range(2)]  # the file is open from here on
    assert [int(pickle.loads(pickle.dumps(frames)).load(i)["image"].sum()) for i in range(2)] == sums
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_send_sums, args=(frames, queue))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert queue.get() == (sums, True)
    assert int(frames.load(0)["image"].sum()) == sums[0]


@pytest.mark.parametrize("name", ["splits.mat", "classMapping40.mat"])
def test_a_missing_or_broken_companion_is_named(root, name):
    (root / name).write_bytes(b"not a MATLAB file" * 20)
    with pytest.raises(DataError, match=rf"{name}: not readable as a MATLAB v5 file"):
        source(root).frames("train", BOTH)
    savemat(root / name, {"other": [1]})
    with pytest.raises(DataError, match=rf"{name}: variable \w+ is missing"):
        source(root).frames("train", BOTH)
    (root / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: no such file; next to {LABELED} must lie"):
        source(root).frames("train", BOTH)


def test_neither_layout_says_what_would_be_right(root):
    (root / LABELED).unlink()
    with pytest.raises(DataError, match=rf"train/rgb: no such folder; .* official {LABELED}"):
        source(root).frames("train", BOTH)


def test_a_labelled_file_that_is_cut_short(root):
    (root / LABELED).write_bytes((root / LABELED).read_bytes()[:5000])
    with pytest.raises(DataError, match=r"labeled\.mat: not readable as a MATLAB v7\.3"):
        source(root).frames("train", BOTH)


def test_a_frame_that_is_damaged_is_named(root):
    with h5py.File(root / LABELED) as file:
        chunk = file["images"].id.get_chunk_info(3)
    data = bytearray((root / LABELED).read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    (root / LABELED).write_bytes(data)
    frames = source(root).frames("train", BOTH)
    frames.load(0)
    with pytest.raises(DataError, match=r"labeled\.mat: images of frame 0004 cannot be read"):
        frames.load(1)


@pytest.mark.parametrize("key", ["images", "labels", "depths"])
def test_arrays_with_y_before_x_are_refused(root, key):
    with h5py.File(root / LABELED, "a") as file:
        turned = np.swapaxes(file[key][:], -1, -2)
        del file[key]
        file[key] = turned
    with pytest.raises(
        DataError, match=rf"dataset {key} has shape \(4, .*480, 640\); it must .*640, 480\), x"
    ):
        source(root).frames("train", ALL)


def test_splits_that_do_not_fit(root):
    savemat(root / "splits.mat", {"trainNdxs": [5], "testNdxs": [0, 1]})
    with pytest.raises(DataError, match=r"images holds 4 frames, but splits\.mat names frame 5"):
        source(root).frames("train", BOTH)
    with pytest.raises(DataError, match=r"splits\.mat: testNdxs must hold frame numbers from 1"):
        source(root).frames("test", BOTH)


def test_a_mapping_that_does_not_fit(root):
    for wrong in (MAPPING[:893], np.where(MAPPING == 40, 41, MAPPING), MAPPING - 1):
        savemat(root / "classMapping40.mat", {"mapClass": wrong})
        with pytest.raises(DataError, match=r"classMapping40\.mat: mapClass .* 894, each from 1 to 40"):
            source(root).frames("train", BOTH)


def test_a_raw_label_above_894(root):
    with h5py.File(root / LABELED, "a") as file:
        file["labels"][3, 10, 20:23] = 895
    frames = source(root).frames("train", BOTH)
    frames.load(0)
    with pytest.raises(
        DataError, match=r"labels of frame 0004: value 895 \(3 pixels\) is no class; allowed are 0\.\.894"
    ):
        frames.load(1)


@pytest.mark.parametrize("module", ["h5py", "scipy.io"])
def test_without_the_extra_it_says_what_to_install(root, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'hardpix\[mat\]'"):
        source(root).frames("train", BOTH)


@pytest.mark.real
def test_official_lists_and_mapping_give_the_folder_layout(real_data, tmp_path):
    """A real test frame, put into an official file of 1449 frames by the inverse mapping, reads as from the folder."""
    folder = real_data / "nyudv2"
    for name in ("splits.mat", "classMapping40.mat"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    mapping = loadmat(folder / "classMapping40.mat")["mapClass"].ravel()
    raw_of = np.concatenate([[0], [np.flatnonzero(mapping == c)[-1] + 1 for c in range(1, 41)]])
    there = NYUv2(folder, void_40_in_train="ignore").frames("test", ALL)
    name = there.name(5)
    wanted = there.load(5)
    stored = np.asarray(Image.open(folder / "test" / "labels_40" / f"{name}.png"))
    picture = wanted["image"].permute(1, 2, 0).numpy()
    write_labeled(
        tmp_path / LABELED, 1449, {int(name) - 1: (picture, raw_of[stored], wanted["depth"].numpy())}
    )

    here, train = source(tmp_path).frames("test", ALL), source(tmp_path).frames("train", ALL)
    assert (len(train), len(here)) == (795, 654)
    assert names(train) == (folder / "train.txt").read_text().split()
    assert names(here) == (folder / "test_official.txt").read_text().split()
    frame = here.load(names(here).index(name))
    for key in ALL:
        assert torch.equal(frame[key], wanted[key]), key
