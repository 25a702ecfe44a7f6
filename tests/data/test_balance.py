"""Frames with rare classes repeat: how often, in what order, and the same after a restart."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from hardpix.data import DataModule, Photometric, TestTransform, TrainTransform, statistics
from hardpix.data.sampling import TrainSampler, generator, systematic
from hardpix.data.statistics import class_counts, frame_counts, repeat_factors
from hardpix.losses import BalancedCrossEntropy
from hardpix.losses.pixelwise import class_weights
from hardpix.types import ConfigError, DatasetInfo

INFO = DatasetInfo(name="tiny", classes=("sky", "road", "lamp"), palette=((1, 1, 1), (2, 2, 2), (3, 3, 3)))
FRAMES = 12
LAMPS = (2, 7)  # the frames with the rare class


class TinyFrames:
    def __init__(self, split):
        self.split, self.asked = split, []

    def __len__(self):
        return FRAMES if self.split == "train" else 2

    def name(self, index):
        return f"{self.split}{index}"

    def label(self, index):
        self.asked.append(index)
        label = torch.zeros(12, 16, dtype=torch.uint8)
        label[:, 1 + index % 5 :] = 1
        label[3:5] = 255
        if index in LAMPS:
            label[6, :4] = 2
        return label

    def load(self, index):
        rng = np.random.default_rng(index)
        image = torch.from_numpy(rng.integers(0, 256, (3, 12, 16), dtype=np.uint8))
        return {"image": image, "label": self.label(index), "name": self.name(index)}


class Counted(TinyFrames):
    def fingerprint(self):
        return f"tiny-{self.split}"


class TinySource:
    info = INFO

    def frames(self, split, keys):
        return TinyFrames(split)

    def remarks(self):
        return ("labels of tiny: 7 -> lamp",)


def module(**changes):
    settings = {
        "train_transform": TrainTransform(
            crop=(10, 14), base_size=None, ratio=(0.5, 2.0), cat_max_ratio=None, hflip=0.5,
            photometric=Photometric(brightness=32, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18, p=0.5),
            scale_with_zoom=False,
        ),
        "test_transform": TestTransform(resize=None),
        "batch_size": 3, "eval_batch_size": 2, "num_workers": 0, "seed": 5, "pin_memory": False, "drop_last": True,
    }  # fmt: skip
    return DataModule(TinySource(), **{**settings, **changes})


# Repeat factors


def test_repeat_factors_by_a_slow_loop():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (40, 6)) * (rng.random((40, 6)) < [0.9, 0.5, 0.2, 0.1, 0.03, 0.0])
    counts[3] = 0
    found = repeat_factors(counts, 0.3)
    for image in range(40):
        wanted = 1.0
        for c in range(6):
            holding = sum(1 for other in range(40) if counts[other][c] > 0)
            if counts[image][c] > 0:
                wanted = max(wanted, math.sqrt(0.3 / (holding / 40)))
        assert found[image] == pytest.approx(wanted)
    assert found[3] == 1
    assert found.max() > 1.5


def test_a_class_at_the_threshold_does_not_repeat():
    counts = np.array([[1, 0], [1, 1], [1, 0], [1, 0]])
    assert repeat_factors(counts, 0.25).tolist() == [1, 1, 1, 1]
    assert repeat_factors(counts, 1.0).tolist() == [1, 2, 1, 1]


# Draws

REPEATS = np.array([1.0, 2.3, 1.0, 1.0, 3.6, 1.0, 1.2])


def drawn(epoch, **sampler):
    made = TrainSampler(len(REPEATS), seed=3, repeats=REPEATS, **sampler)
    made.set_epoch(epoch)
    return list(made)


def test_an_epoch_is_as_long_as_the_factors_sum_to():
    sampler = TrainSampler(7, seed=3, repeats=REPEATS)
    assert len(sampler) == round(REPEATS.sum()) == 11
    assert all(len(drawn(epoch)) == 11 for epoch in range(5))


def test_each_frame_comes_up_as_often_as_its_share_rounded_up_or_down_and_on_average_exactly():
    shares = REPEATS * 11 / REPEATS.sum()
    totals = np.zeros(7)
    for epoch in range(300):
        seen = np.bincount([draw[1] for draw in drawn(epoch)], minlength=7)
        assert ((seen == np.floor(shares)) | (seen == np.ceil(shares))).all()
        totals += seen
    np.testing.assert_allclose(totals / 300, shares, atol=0.08)


def test_repeats_of_a_frame_are_numbered_and_the_first_is_drawn_as_if_alone():
    for epoch in range(4):
        draws = drawn(epoch)
        for index in range(7):
            mine = sorted(draw[2:] for draw in draws if draw[1] == index)
            assert mine == [(), *((n,) for n in range(1, len(mine)))][: len(mine)]
        assert {draw[0] for draw in draws} == {epoch}


def test_the_order_is_shuffled_and_a_function_of_seed_and_epoch():
    first = drawn(0)
    assert first == drawn(0) != drawn(1)
    assert [draw[1] for draw in first] != sorted(draw[1] for draw in first)
    other = TrainSampler(7, seed=4, repeats=REPEATS)
    assert list(other) != first


def test_two_processes_share_the_draws_equally():
    whole = drawn(2)
    shares = [drawn(2, rank=rank, world_size=2) for rank in range(2)]
    assert [len(share) for share in shares] == [5, 5]
    assert [draw for pair in zip(*shares, strict=True) for draw in pair] == whole[:10]
    assert len(set(whole)) == len(whole)


def test_without_factors_nothing_changes():
    order = torch.randperm(9, generator=generator(6, 2)).tolist()
    sampler = TrainSampler(9, seed=6)
    sampler.set_epoch(2)
    assert list(sampler) == [(2, index) for index in order]


def test_systematic_draws_by_hand():
    shares = np.array([1.0, 2.0, 1.0])
    for seed in range(20):
        assert systematic(shares, 4, generator(seed)).tolist() == [0, 1, 1, 2]
    offsets = {
        seed: torch.rand((), generator=generator(seed), dtype=torch.float64).item() for seed in range(20)
    }
    for seed, offset in offsets.items():
        # The comb's teeth at offset + 0, 1 over [0, 0.5, 2]: the first frame is hit where the offset is below 0.5.
        wanted = [0, 1] if offset < 0.5 else [1, 1]
        assert systematic(np.array([0.5, 1.5]), 2, generator(seed)).tolist() == wanted
    assert len({offset < 0.5 for offset in offsets.values()}) == 2


# Loading


def epoch(data, number):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def test_frames_with_the_rare_class_repeat_and_each_repeat_is_augmented_anew():
    data = module(repeat_rare=1.0, batch_size=1)
    factor = math.sqrt(1 / (2 / 12))
    batches = epoch(data, 0)
    assert len(batches) == round(10 + 2 * factor)
    names = [batch["name"][0] for batch in batches]
    for index in range(FRAMES):
        assert names.count(f"train{index}") in ((2, 3) if index in LAMPS else (1, 2))
    again = [batch for batch in batches if batch["name"] == ["train7"]]
    assert not torch.equal(again[0]["image"], again[1]["image"])


def test_the_first_showing_of_a_frame_is_that_of_an_epoch_without_repeats():
    plain = {batch["name"][0]: batch["image"] for batch in epoch(module(batch_size=1), 1)}
    repeated = epoch(module(repeat_rare=1.0, batch_size=1), 1)
    for name, image in plain.items():
        assert any(torch.equal(image, b["image"]) for b in repeated if b["name"] == [name])


def test_workers_change_nothing():
    one, other = epoch(module(repeat_rare=0.5), 1), epoch(module(repeat_rare=0.5, num_workers=2), 1)
    assert [b["name"] for b in one] == [b["name"] for b in other]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(one, other, strict=True))


def test_the_remarks_say_how_much_repeats():
    assert module().remarks() == ("labels of tiny: 7 -> lamp",)
    said = module(repeat_rare=1.0).remarks()
    assert said[1] == (
        "repeat_rare 1.0: an epoch shows 12 frames 15 times, 2 of them more than once, up to 2.4 times"
    )


@pytest.mark.parametrize("threshold", [0, -0.1, 1.5])
def test_a_threshold_that_is_no_share_is_refused(threshold):
    with pytest.raises(ConfigError, match=f"repeat_rare={threshold}: must be above 0 and at most 1"):
        module(repeat_rare=threshold)


class Recorder(pl.LightningModule):
    def __init__(self, stop_after=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen, self.stop_after = [], stop_after

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, tuple(batch["name"]), batch["image"].double().sum().item()))
        return self.weight * batch["image"].sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.global_step == self.stop_after:
            self.trainer.save_checkpoint(f"{self.trainer.default_root_dir}/stop.ckpt")

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.0)


def fit(tmp_path, model, checkpoint=None):
    trainer = pl.Trainer(
        max_epochs=2, default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=module(repeat_rare=1.0), ckpt_path=checkpoint)
    return model


@pytest.mark.parametrize("stop", [2, 4, 5, 7])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(tmp_path, stop):
    whole = fit(tmp_path, Recorder(stop_after=stop)).seen
    assert len(whole) == 2 * (15 // 3)
    assert fit(tmp_path, Recorder(), checkpoint=tmp_path / "stop.ckpt").seen == whole[stop:]


# Counts and weights


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARDPIX_CACHE", str(tmp_path))
    return tmp_path


def test_counts_per_frame_are_made_once_and_serve_factors_and_weights(cache):
    frames = Counted("train")
    counts = frame_counts(frames, INFO)
    assert counts.shape == (FRAMES, 3)
    assert sorted(frames.asked) == list(range(FRAMES))
    for index in range(FRAMES):
        label = frames.label(index)
        assert counts[index].tolist() == [int((label == c).sum()) for c in range(3)]
    frames.asked.clear()
    class_counts(frames, INFO)
    frame_counts(frames, INFO)
    assert frames.asked == []
    assert [p.name for p in (cache / "class_counts").iterdir()] == ["tiny-train.npy"]


def test_a_damaged_cache_file_and_one_of_other_classes_are_counted_anew(cache):
    first = frame_counts(Counted("train"), INFO)
    path = cache / "class_counts" / "tiny-train.npy"
    path.write_bytes(path.read_bytes()[:50])
    np.testing.assert_array_equal(frame_counts(Counted("train"), INFO), first)
    np.save(path, np.zeros((FRAMES, 2), np.int32))
    np.testing.assert_array_equal(frame_counts(Counted("train"), INFO), first)


def test_a_long_count_says_how_far_it_is(cache, monkeypatch, capsys):
    monkeypatch.setattr(statistics, "PROGRESS_SECONDS", -1.0)
    frame_counts(Counted("train"), INFO)
    assert "counting the classes of tiny, once: 12 of 12 frames" in capsys.readouterr().err


def test_weights_are_said_and_are_those_of_the_training_split():
    data = module()
    loss = BalancedCrossEntropy(
        ignore_index=255, num_classes=INFO.num_classes, class_counts=data.class_counts, normalizer="valid",
        weighting="median", weights=None, weight_normalized=False,
    )  # fmt: skip
    (line,) = loss.remarks(INFO.classes)
    weights = class_weights(class_counts(TinyFrames("train"), INFO), "median")
    listed = ", ".join(f"{name} {w:.4g}" for name, w in zip(INFO.classes, weights.tolist(), strict=True))
    assert line == f"class weights (median): {listed}"
    assert weights[2] > 5 * weights[0]
    assert torch.equal(loss.weight, weights)
