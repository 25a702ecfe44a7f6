"""The packed form: the same pixels without decoding, and no half-written or damaged file passes."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

from hardpix.data import DataModule, Packed, TestTransform, TrainTransform, pack
from hardpix.data.augment import Window, image_window, label_window
from hardpix.data.source import Source
from hardpix.types import ConfigError, DataError, DatasetInfo

KEYS = frozenset({"image", "label", "depth", "depth_valid"})


class Mixed(Source):
    """Frames of different sizes, with depth."""

    def __init__(self, classes=3, void=255):
        self.info = DatasetInfo(
            name="mixed",
            classes=tuple(f"c{i}" for i in range(classes)),
            palette=tuple((i % 256, 1, 2) for i in range(classes)),
            ignore_index=void,
            depth_max=7.5,
            provides=KEYS,
        )

    def frames(self, split, keys):
        return self

    def __len__(self):
        return 3

    def name(self, index):
        return f"frame{index}"

    def load(self, index):
        rng = np.random.default_rng(index)
        size = (6 + index, 9 - index)
        label = rng.integers(0, self.info.num_classes, size)
        label[0, 0] = self.info.ignore_index
        depth = rng.uniform(0.5, 7, size).astype(np.float32)
        valid = rng.random(size) < 0.8
        return {
            "image": torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8)),
            "label": torch.from_numpy(label.astype(np.uint8 if self.info.ignore_index == 255 else np.int64)),
            "depth": torch.from_numpy(depth),
            "depth_valid": torch.from_numpy(valid),
            "name": self.name(index),
        }


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARDPIX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def packed(tmp_path):
    return pack(Mixed(), tmp_path / "out", size=None, splits=("train", "val"))


def test_what_became_of_label_values_is_kept(tmp_path):
    class Told(Mixed):
        image_range = (0, 4095)

        def remarks(self):
            return ("labels of mixed: 7 -> c0",)

        def submission_values(self):
            return {0: 7, 1: 11, 2: 8}

    source = Packed(pack(Told(), tmp_path / "told", size=None, splits=("train",)))
    assert source.remarks() == ("labels of mixed: 7 -> c0",)
    assert source.submission_values() == {0: 7, 1: 11, 2: 8}
    assert source.image_range == (0, 4095)
    plain = Packed(pack(Mixed(), tmp_path / "plain", size=None, splits=("train",)))
    assert (plain.remarks(), plain.submission_values()) == ((), None)
    manifest = json.loads((tmp_path / "plain" / "manifest.json").read_text())
    del (
        manifest["remarks"],
        manifest["submission_values"],
        manifest["image_range"],
    )  # as an earlier version wrote it
    (tmp_path / "plain" / "manifest.json").write_text(json.dumps(manifest))
    old = Packed(tmp_path / "plain")
    assert (old.remarks(), old.submission_values(), old.image_range) == ((), None, None)


def test_the_pixels_are_the_sources(packed):
    frames = Packed(packed).frames("train", KEYS)
    assert len(frames) == 3
    for index in range(3):
        want, got = Mixed().load(index), frames.load(index)
        assert got["name"] == want["name"]
        for key in ("image", "label", "depth_valid"):
            assert got[key].dtype == want[key].dtype
            assert torch.equal(got[key], want[key]), key
        valid = want["depth_valid"]
        assert (got["depth"] - want["depth"])[valid].abs().max() <= 0.000501
        assert (got["depth"][~valid] == 0).all()


def test_the_facts_are_the_sources(packed):
    assert Packed(packed).info == Mixed().info


def test_frames_are_resized_once(tmp_path):
    out = pack(Mixed(), tmp_path / "out", size=(12, 10), splits=("train",))
    frames = Packed(out).frames("train", KEYS)
    for index in range(3):
        source, got = Mixed().load(index), frames.load(index)
        window = Window((12, 10), 0, 0, 12, 10)
        assert torch.equal(got["image"], image_window(source["image"], window))
        np.testing.assert_array_equal(got["label"].numpy(), label_window(source["label"].numpy(), window))


def test_more_than_255_classes_take_16_bits(tmp_path):
    source = Mixed(classes=300, void=65535)
    out = pack(source, tmp_path / "out", size=None, splits=("train",))
    label = Packed(out).frames("train", KEYS).load(2)["label"]
    assert label.dtype == torch.int64
    assert torch.equal(label, source.load(2)["label"])


def test_depth_saturates_and_a_reading_never_becomes_invalid(tmp_path, monkeypatch):
    original = Mixed.load

    def load(self, index):
        sample = original(self, index)
        sample["depth"][0, :3] = torch.tensor([0.0001, 80.0, float("nan")])
        sample["depth_valid"][0, :3] = torch.tensor([True, True, False])
        return sample

    monkeypatch.setattr(Mixed, "load", load)
    frame = (
        Packed(pack(Mixed(), tmp_path / "out", size=None, splits=("train",))).frames("train", KEYS).load(0)
    )
    torch.testing.assert_close(frame["depth"][0, :3], torch.tensor([0.001, 65.535, 0.0]))
    assert frame["depth_valid"][0, :3].tolist() == [True, True, False]


def test_writing_to_a_sample_changes_no_file(packed):
    frames = Packed(packed).frames("train", KEYS)
    before = (packed / "train" / "image.bin").read_bytes()
    frames.load(0)["image"].fill_(0)
    assert (packed / "train" / "image.bin").read_bytes() == before


def test_only_used_files_are_opened(packed):
    (packed / "train" / "depth.bin").unlink()
    assert "depth" not in Packed(packed).frames("train", frozenset({"image", "label"})).load(0)
    with pytest.raises(DataError, match=r"depth\.bin: no such file"):
        Packed(packed).frames("train", KEYS)


def test_frames_travel_to_workers_without_their_pixels(packed):
    frames = Packed(packed).frames("train", KEYS)
    want = frames.load(1)["image"]
    stored = pickle.dumps(frames)
    assert len(stored) < 2000
    assert torch.equal(pickle.loads(stored).load(1)["image"], want)


def test_a_damaged_file_is_refused(packed):
    Packed(packed).frames("train", KEYS)  # the hash is known to be good now
    path = packed / "train" / "label.bin"
    stat = path.stat()
    damaged = bytearray(path.read_bytes())
    damaged[5] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"label\.bin: its SHA-256 is not the one in manifest\.json"):
        Packed(packed).frames("train", KEYS)
    # With its old size and time the damage can only be found by looking.
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    Packed(packed).frames("train", KEYS)
    with pytest.raises(DataError, match="SHA-256"):
        Packed(packed, verify=True).frames("train", KEYS)


def test_a_cut_file_is_refused(packed):
    path = packed / "train" / "image.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="SHA-256"):
        Packed(packed).frames("train", KEYS)


def test_an_unfinished_packing_is_refused(tmp_path):
    class Stopped(Mixed):
        def load(self, index):
            if index == 2:
                raise DataError("/a/b.png: no such file; the split needs it")
            return super().load(index)

    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"/a/b\.png"):
        pack(Stopped(), out, size=None, splits=("train",))
    assert not (out / "manifest.json").exists()
    with pytest.raises(DataError, match="packing did not finish"):
        Packed(out)
    pack(Mixed(), out, size=None, splits=("train",))  # may be repeated in place
    assert len(Packed(out).frames("train", KEYS)) == 3


def test_other_faults(packed, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        Packed(tmp_path / "no")
    with pytest.raises(DataError, match=r"split test was not packed; it has train, val"):
        Packed(packed).frames("test", KEYS)
    with pytest.raises(DataError, match="a packed data set already"):
        pack(Mixed(), packed, size=None, splits=("train",))
    manifest = json.loads((packed / "manifest.json").read_text())
    (packed / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(ConfigError, match="schema 99"):
        Packed(packed)
    (packed / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not readable as JSON"):
        Packed(packed)


def test_progress_counts_frames(tmp_path):
    told = []
    pack(Mixed(), tmp_path / "out", size=None, splits=("val",), progress=lambda *facts: told.append(facts))
    assert told == [("val", 1, 3), ("val", 2, 3), ("val", 3, 3)]


def test_it_trains_like_its_source(packed):
    """The same draws from both: labels equal, pictures equal."""
    transform = TrainTransform(
        crop=(5, 6), base_size=None, ratio=(0.5, 2.0), cat_max_ratio=0.75, hflip=0.5, photometric=None,
        scale_with_zoom=False,
    )  # fmt: skip
    batches = []
    for source in (Mixed(), Packed(packed)):
        data = DataModule(
            source, train_transform=transform, test_transform=TestTransform(resize=None), batch_size=3,
            eval_batch_size=1, num_workers=2, seed=0, pin_memory=False, drop_last=True,
        )  # fmt: skip
        batches.append(next(iter(data.train_dataloader())))
    assert torch.equal(batches[0]["image"], batches[1]["image"])
    assert torch.equal(batches[0]["label"], batches[1]["label"])


def test_classes_are_counted_without_decoding(packed):
    data = DataModule(
        Packed(packed), train_transform=TestTransform(resize=None), test_transform=TestTransform(resize=None),
        batch_size=1, eval_batch_size=1, num_workers=0, seed=0, pin_memory=False, drop_last=True,
    )  # fmt: skip
    want = sum(torch.bincount(Mixed().load(i)["label"].flatten(), minlength=256)[:3] for i in range(3))
    assert torch.equal(data.class_counts().pixels, want)


def test_a_size_must_be_positive_and_is_judged_first(tmp_path):
    with pytest.raises(ConfigError, match=r"size=\[0, 5\]: must be two positive ints"):
        pack(Mixed(), tmp_path / "out", size=(0, 5), splits=("val",))
    assert not (tmp_path / "out").exists()
