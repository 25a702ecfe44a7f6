"""Batches: what a method sees, and that nothing but seed, epoch and index decides it."""

import gc
import multiprocessing
import os

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn

from hardpix.data import DataModule, Photometric, TestTransform, TrainTransform
from hardpix.data.files import FileFrames, FrameFiles
from hardpix.data.labels import LabelCode
from hardpix.data.statistics import class_counts
from hardpix.types import ConfigError, DataError, DatasetInfo

INFO = DatasetInfo(
    name="tiny",
    classes=("a", "b", "c"),
    palette=((1, 1, 1), (2, 2, 2), (3, 3, 3)),
    depth_max=5.0,
    provides=frozenset({"image", "label", "depth", "hardness"}),
)
SIZES = {"train": 11, "val": 5, "test": 4}


class TinyFrames:
    def __init__(self, split, broken=()):
        self.split, self.broken = split, broken

    def __len__(self):
        return SIZES[self.split]

    def name(self, index):
        return f"{self.split}{index}"

    def load(self, index):
        if index in self.broken:
            raise DataError(f"/somewhere/{self.name(index)}.png: no such file; the split needs it")
        rng = np.random.default_rng([index, len(self.split)])
        label = rng.integers(0, 3, (12, 16), dtype=np.uint8)
        label[0] = 255
        return {
            "image": torch.from_numpy(rng.integers(0, 256, (3, 12, 16), dtype=np.uint8)),
            "label": torch.from_numpy(label),
            "depth": torch.from_numpy(label.astype(np.float32)),
            "depth_valid": torch.from_numpy(label < 2),
            "hardness": torch.from_numpy(label.astype(np.float32) / 255),
            "name": self.name(index),
        }


class TinySource:
    info = INFO

    def __init__(self, broken=()):
        self.broken = broken

    def frames(self, split, keys):
        return TinyFrames(split, self.broken)


def module(source=None, **changes):
    photometric = Photometric(brightness=32, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18, p=0.5)
    settings = {
        "train_transform": TrainTransform(
            crop=(10, 14), base_size=None, ratio=(0.5, 2.0), cat_max_ratio=0.75, hflip=0.5,
            photometric=photometric, scale_with_zoom=False,
        ),
        "test_transform": TestTransform(resize=None),
        "batch_size": 3, "eval_batch_size": 2, "num_workers": 0, "seed": 5, "pin_memory": True, "drop_last": True,
    }  # fmt: skip
    return DataModule(source or TinySource(), **{**settings, **changes})


def epoch(data, number):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a["name"] == b["name"]
        for key in a:
            if key != "name":
                assert torch.equal(a[key], b[key]), key


def test_a_method_sees_the_contract():
    data = module()
    data.use(frozenset({"image", "label", "depth", "hardness"}))
    batch = epoch(data, 0)[0]
    assert batch["image"].shape == (3, 3, 10, 14)
    assert batch["image"].dtype == torch.float32
    assert batch["label"].dtype == torch.int64
    assert set(batch["label"].unique().tolist()) <= {0, 1, 2, 255}
    assert batch["depth"].dtype == batch["hardness"].dtype == torch.float32
    assert batch["depth_valid"].dtype == torch.bool
    assert len(batch["name"]) == 3
    assert "extent" not in batch


def test_only_used_keys_are_loaded():
    assert set(epoch(module(), 0)[0]) == {"image", "label", "name"}


def test_a_missing_key_and_the_data_set_are_named():
    with pytest.raises(DataError, match=r"needs normal, which data set tiny does not have"):
        module().use(frozenset({"image", "normal"}))


def test_images_are_normalised_and_padding_is_exactly_zero():
    transform = TrainTransform(
        crop=(20, 20), base_size=None, ratio=(1.0, 1.0), cat_max_ratio=None, hflip=0.0, photometric=None,
        scale_with_zoom=False,
    )  # fmt: skip
    data = module(train_transform=transform, batch_size=11)
    batch = epoch(data, 0)[0]
    assert (batch["image"][:, :, 12:] == 0).all()
    assert (batch["image"][..., 16:] == 0).all()
    assert (batch["label"][:, 12:] == 255).all()
    for image, name in zip(batch["image"], batch["name"], strict=True):
        raw = TinyFrames("train").load(int(name.removeprefix("train")))["image"].numpy().astype(float)
        want = (raw - np.array(INFO.mean)[:, None, None]) / np.array(INFO.std)[:, None, None]
        np.testing.assert_allclose(image[:, :12, :16].numpy(), want, atol=1e-5)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers):
    same(epoch(module(), 3), epoch(module(num_workers=workers), 3))


def test_global_random_state_is_neither_used_nor_moved():
    torch.manual_seed(0)
    first = epoch(module(), 1)
    before = torch.get_rng_state()
    second = epoch(module(), 1)
    assert torch.equal(before, torch.get_rng_state())
    same(first, second)


def test_epochs_and_seeds_differ():
    one, two, other = epoch(module(), 0), epoch(module(), 1), epoch(module(seed=6), 0)
    assert not torch.equal(one[0]["image"], two[0]["image"])
    assert not torch.equal(one[0]["image"], other[0]["image"])


def test_persistent_workers_follow_the_epoch():
    data = module(num_workers=2)
    loader = data.train_dataloader()
    for number in range(2):
        loader.sampler.set_epoch(number)
        same([data.on_after_batch_transfer(b, 0) for b in loader], epoch(module(), number))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_arrives_as_its_own_sentence(workers):
    data = module(TinySource(broken=(4,)), num_workers=workers)
    with pytest.raises(
        DataError, match=r"^/somewhere/train4\.png: no such file; the split needs it \(frame 4 of 11\)$"
    ):
        epoch(data, 0)


def test_workers_end_with_the_fault_and_not_with_the_garbage_collector():
    """Left to the collector, each worker holds up whatever runs then for 5 seconds."""
    before = set(multiprocessing.active_children())
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(DataError):
            epoch(module(TinySource(broken=(4,)), num_workers=2), 0)
        assert set(multiprocessing.active_children()) <= before
    finally:
        gc.enable()


def test_evaluation_serves_every_frame_once_in_order():
    data = module()
    names = [name for batch in data.test_dataloader() for name in batch["name"]]
    assert names == [f"test{i}" for i in range(4)]
    assert [name for batch in data.val_dataloader() for name in batch["name"]] == [
        f"val{i}" for i in range(5)
    ]


def test_an_evaluation_loader_stands_alone():
    data = module()
    plain = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    same(list(data.evaluation_loader("val")), plain)
    assert torch.equal(data.evaluation_batch("val", 3)["image"][0], plain[1]["image"][1])
    with pytest.raises(DataError, match="split 'tset' is unknown"):
        data.evaluation_loader("tset")


def test_frames_of_different_size_do_not_share_an_evaluation_batch(monkeypatch):
    original = TinyFrames.load

    def load(self, index):
        sample = original(self, index)
        return {k: v if k == "name" else v[..., : 16 - index] for k, v in sample.items()}

    monkeypatch.setattr(TinyFrames, "load", load)
    with pytest.raises(DataError, match=r"val0 and val1 differ in size .*data\.eval_batch_size=1"):
        list(module().val_dataloader())
    assert len(list(module(eval_batch_size=1).val_dataloader())) == 5


def test_too_few_frames_for_a_batch():
    with pytest.raises(DataError, match=r"has 11 frames .*lower data\.batch_size"):
        module(batch_size=12).train_dataloader()
    assert len(module(batch_size=12, drop_last=False).train_dataloader()) == 1


# Class counts


def test_class_counts_by_a_slow_loop():
    counts = module().class_counts()
    pixels, image_pixels = np.zeros(3, int), np.zeros(3, int)
    for index in range(11):
        label = TinyFrames("train").load(index)["label"].numpy()
        for c in range(3):
            pixels[c] += (label == c).sum()
            image_pixels[c] += (label == c).any() * (label != 255).sum()
    assert counts.pixels.tolist() == pixels.tolist()
    assert counts.image_pixels.tolist() == image_pixels.tolist()


def test_class_counts_are_kept_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("HARDPIX_CACHE", str(tmp_path))

    class Countable(TinyFrames):
        reads = 0
        version = "1"

        def label(self, index):
            Countable.reads += 1
            return self.load(index)["label"]

        def fingerprint(self):
            return self.version

    frames = Countable("train")
    first = class_counts(frames, INFO)
    again = class_counts(frames, INFO)
    assert Countable.reads == 11
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.image_pixels, again.image_pixels)
    frames.version = "2"
    class_counts(frames, INFO)
    assert Countable.reads == 22


# Under Lightning


class Recorder(pl.LightningModule):
    """Notes which frames, and which pixels of them, each step got."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen, self.evaluated, self.stop_after = [], [], stop_after

    def training_step(self, batch, batch_idx):
        assert batch["image"].dtype == torch.float32
        self.seen.append((self.current_epoch, tuple(batch["name"]), round(float(batch["image"].sum()), 3)))
        return self.weight * batch["image"].sum()

    def validation_step(self, batch, batch_idx):
        self.evaluated += batch["name"]

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.stop_after is not None and self.global_step == self.stop_after:
            self.trainer.save_checkpoint(os.path.join(self.trainer.default_root_dir, "stop.ckpt"))

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.0)


def fit(tmp_path, model, checkpoint=None, workers=0):
    trainer = pl.Trainer(
        max_epochs=3, default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=module(num_workers=workers), ckpt_path=checkpoint)
    return model


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(tmp_path, stop):
    whole = fit(tmp_path, Recorder(stop_after=stop))
    assert {number for number, *_ in whole.seen} == {0, 1, 2}
    assert len(whole.seen) == 9
    assert whole.evaluated[:5] == [f"val{i}" for i in range(5)]
    resumed = fit(tmp_path, Recorder(), checkpoint=tmp_path / "stop.ckpt")
    assert resumed.seen == whole.seen[stop:]


def test_lightning_tells_the_sampler_the_epoch(tmp_path):
    seen = fit(tmp_path, Recorder()).seen
    data = module()
    for number in range(3):
        want = [tuple(batch["name"]) for batch in epoch(data, number)]
        assert [names for e, names, _ in seen if e == number] == want


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("eval_batch_size", 0), ("num_workers", -1)])
def test_sizes_out_of_range_are_named(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value}: must be at least {value + 1}"):
        module(**{name: value})


def test_the_fingerprint_follows_label_files_and_what_their_numbers_mean(tmp_path):
    """Equal in size, other in content: then the time differs, and the counts are made anew."""
    image, label = tmp_path / "a.png", tmp_path / "a_label.png"
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(image)

    def written(value, seconds):
        Image.fromarray(np.full((6, 8), value, np.uint8)).save(label, format="BMP")
        os.utime(label, ns=(seconds * 10**9, seconds * 10**9))
        return label.stat().st_size

    def frames(mapping):
        keys = frozenset({"image", "label"})
        return FileFrames([FrameFiles("a", image, label)], keys, label_reader=LabelCode(mapping, 255))

    mapping = {0: 0, 1: 1, 2: 2}
    sizes = [written(1, 1000)]
    before, other = frames(mapping).fingerprint(), frames({0: 0, 1: 2, 2: 1}).fingerprint()
    assert frames(mapping).fingerprint() == before != other
    sizes.append(written(2, 1001))
    assert sizes[0] == sizes[1]
    assert frames(mapping).fingerprint() != before
