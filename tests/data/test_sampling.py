"""Who sees which frame, and when."""

import pytest
import torch

from hardpix.data import TrainTransform
from hardpix.data.loading import SplitDataset
from hardpix.data.sampling import EvalSampler, TrainSampler, generator
from hardpix.types import DatasetInfo


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("frames", [1, 7, 20])
def test_evaluation_shares_cover_each_frame_once(frames, world_size):
    shares = [list(EvalSampler(frames, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(index for share in shares for _, index in share) == list(range(frames))
    assert [len(EvalSampler(frames, rank=r, world_size=world_size)) for r in range(world_size)] == [
        *map(len, shares)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
def test_training_shares_are_equal_and_disjoint(world_size):
    shares = [list(TrainSampler(23, seed=0, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {len(share) for share in shares} == {23 // world_size}
    dealt = [index for share in shares for _, index in share]
    assert len(set(dealt)) == len(dealt)


def test_the_order_depends_on_seed_and_epoch_alone():
    sampler = TrainSampler(50, seed=4)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert [i for _, i in first] != [i for _, i in second]
    assert {epoch for epoch, _ in second} == {1}
    torch.rand(3)
    again = TrainSampler(50, seed=4)
    assert list(again) == first
    assert list(TrainSampler(50, seed=5)) != first


def test_processes_together_draw_what_one_process_draws():
    whole = list(TrainSampler(24, seed=2))
    shares = [list(TrainSampler(24, seed=2, rank=rank, world_size=3)) for rank in range(3)]
    assert [draw for draws in zip(*shares, strict=True) for draw in draws] == whole


def test_generators_differ_in_every_part_of_their_key():
    draws = {key: torch.rand((), generator=generator(*key)).item() for key in
             [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 11, 0), (0, 1, 10), (0, 11, 10)]}  # fmt: skip
    assert len(set(draws.values())) == len(draws)
    assert torch.rand((), generator=generator(0, 1, 10)).item() == draws[0, 1, 10]


def test_identical_frames_of_one_epoch_are_augmented_differently():
    noise = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=generator(0))

    class Copies:
        def __len__(self):
            return 2

        def load(self, index):
            return {"image": noise, "label": noise[0] % 5, "name": "same"}

    transform = TrainTransform(
        crop=(8, 8), base_size=None, ratio=(0.5, 2.0), cat_max_ratio=None, hflip=0.5, photometric=None,
        scale_with_zoom=False,
    )  # fmt: skip
    info = DatasetInfo("copies", tuple("abcde"), ((0, 0, 0),) * 5)
    dataset = SplitDataset(Copies(), transform, keys=frozenset({"image", "label"}), info=info, seed=3)
    first, second, again = dataset[0, 0], dataset[0, 1], dataset[0, 0]
    assert not torch.equal(first.tensors["image"], second.tensors["image"])
    assert torch.equal(first.tensors["image"], again.tensors["image"])
