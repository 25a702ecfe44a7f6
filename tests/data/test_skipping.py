"""Training frames that cannot be read: who takes their place, what is told, and when it is too many."""

import numpy as np
import pytest
import torch

from hardpix.data.loading import Skips
from hardpix.types import ConfigError, DataError
from tests.data.test_datamodule import TinyFrames, TinySource, epoch, module, same


def skipping(broken=(), **changes):
    return module(TinySource(broken=broken), on_error="skip", **({"max_skip": 10} | changes))


def test_the_next_readable_frame_takes_the_place_under_the_same_random_numbers(capsys):
    """Frame 4 -> 5, frames 9, 10 -> 0: a function of seed, epoch and index alone."""
    plain, found = module(drop_last=False), skipping((4, 9, 10), drop_last=False)
    dataset = found._training_dataset()
    for epoch_number in (0, 3):
        for index, other in ((4, 5), (9, 0), (10, 0), (3, 3)):
            draw = (epoch_number, index)
            want = plain._training_dataset().at(other, draw)
            got = dataset[draw]
            assert got.name == f"train{other}"
            assert torch.equal(got.tensors["image"], want.tensors["image"])
            assert torch.equal(got.tensors["label"], want.tensors["label"])
    names = [name for batch in epoch(found, 0) for name in batch["name"]]
    assert len(names) == 11
    assert sorted(names) == sorted(
        ["train0"] * 3 + ["train5"] * 2 + [f"train{i}" for i in (1, 2, 3, 6, 7, 8)]
    )
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped")]
    assert len(told) == 3
    assert any("/somewhere/train4.png: no such file" in line and "frame 4 of 11" in line for line in told)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_nothing(workers):
    one, other = skipping((2, 4, 9)), skipping((2, 4, 9), num_workers=workers)
    for number in range(2):
        same(epoch(one, number), epoch(other, number))
    assert one.skips.found == other.skips.found
    assert set(one.skips.found) <= {"train2", "train4", "train9"}


def test_each_frame_is_told_and_counted_once(capsys):
    data = skipping((4,))
    for number in range(4):
        epoch(data, number)
    assert list(data.skips.found) == ["train4"]
    assert capsys.readouterr().out.count("skipped (1 of at most 10)") == 1


def test_one_more_than_max_skip_ends_it_and_names_all():
    data = skipping((1, 4, 7), max_skip=3, drop_last=False)
    epoch(data, 0)
    assert len(data.skips.found) == 3
    with pytest.raises(
        DataError, match=r"^3 training frames cannot be read, and data\.max_skip=2 "
    ) as caught:
        epoch(skipping((1, 4, 7), max_skip=2, drop_last=False), 0)
    assert all(f"train{i}.png" in str(caught.value) for i in (1, 4, 7))


def test_nothing_readable_is_an_end_and_no_loop():
    with pytest.raises(DataError, match=r"^4 training frames cannot be read, and data\.max_skip=3"):
        epoch(skipping(range(11), max_skip=3), 0)
    with pytest.raises(DataError, match=r"^11 training frames cannot be read"):
        epoch(skipping(range(11), max_skip=500), 0)


def test_stop_is_the_default_and_counts_nothing():
    data = module(TinySource(broken=(4,)))
    with pytest.raises(DataError, match=r"train4\.png: no such file.*frame 4 of 11"):
        epoch(data, 0)
    assert data.skips.allowed == 0


@pytest.mark.parametrize("load", ["val_dataloader", "test_dataloader"])
def test_an_evaluation_never_skips(load):
    """A score without a frame would be another score."""
    with pytest.raises(DataError, match=r"(val|test)2\.png: no such file"):
        list(getattr(skipping((2,)), load)())


def test_a_checkpoint_knows_what_was_skipped():
    data = skipping((4,), max_skip=1, drop_last=False)
    assert data.state_dict() == {}
    epoch(data, 0)
    resumed = skipping((4, 5), max_skip=1, drop_last=False)
    resumed.load_state_dict(data.state_dict())
    with pytest.raises(DataError, match=r"^2 training frames cannot be read"):
        epoch(resumed, 1)


def test_unlabelled_images_are_skipped_too():
    data = skipping((2,), labeled=0.4, batch_size=1, unlabeled_batch_size=2, drop_last=False)
    data.use(frozenset({"image", "label", "unlabeled"}))
    batches = epoch(data, 0)
    assert list(data.skips.found) == ["train2"]
    assert all("skipped" not in batch for batch in batches)
    assert sum(len(batch["unlabeled"]) for batch in batches) == 7


def test_what_a_method_sees_does_not_tell_of_it():
    data = skipping((0, 4))
    assert all("skipped" not in batch for batch in epoch(data, 0))
    assert all("skipped" not in batch for batch in data.training_frames(0, 11))


@pytest.mark.parametrize(("changes", "told"), [
    ({"on_error": "ignore"}, "on_error=ignore: must be stop or skip"),
    ({"on_error": "skip", "max_skip": -1}, "max_skip=-1: must be at least 0"),
])  # fmt: skip
def test_settings_out_of_range(changes, told):
    with pytest.raises(ConfigError, match=told):
        module(**changes)


def test_a_long_list_is_cut():
    skips = Skips("skip", 30)
    with pytest.raises(DataError, match=r"; and 11 more; repair them"):
        skips.take({"skipped": {f"f{i}": f"file {i}" for i in range(31)}})


def test_a_frame_that_its_check_refuses_is_skipped_like_one_that_cannot_be_read(monkeypatch):
    inner = TinyFrames.load

    def load(self, index):
        found = inner(self, index)
        if index == 6:
            found["label"] = torch.from_numpy(np.full((12, 16), 9, np.uint8))
        return found

    monkeypatch.setattr(TinyFrames, "load", load)
    with pytest.raises(DataError, match=r"train6: label 9 \(192 pixels\) is no class of tiny"):
        epoch(module(drop_last=False), 0)
    data = skipping(drop_last=False)
    epoch(data, 0)
    assert list(data.skips.found) == ["train6"]
