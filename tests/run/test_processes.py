"""Runs of several processes: what their record says, how they resume, and that their scores are those of one."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning import seed_everything

from hardpix.run.build import build
from hardpix.run.config import compose, validate
from hardpix.run.ema import EMA
from hardpix.types import ConfigError


@pytest.mark.parametrize(
    "strategy", ["fsdp", "fsdp_cpu_offload", "deepspeed_stage_2", "ddp_spawn", "model_parallel"]
)
def test_a_strategy_that_is_not_supported_is_refused_before_anything_is_built(strategy):
    with pytest.raises(ConfigError) as raised:
        validate(compose([f"trainer.strategy={strategy}"]))
    assert str(raised.value).splitlines() == [
        f"trainer.strategy={strategy}: must be auto or ddp or ddp_find_unused_parameters_true"
    ]


def test_one_process_unless_more_are_asked_for():
    assert compose([]).trainer.devices == 1


def test_the_average_of_the_weights_lives_where_the_network_will(tiny):
    """Callbacks are set up before the strategy moves the network; ``meta`` stands for another device."""
    _, method = build(tiny())
    average = EMA(decay=0.9)
    average.setup(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta"))), method, "fit")
    assert {p.device.type for p in average._average_model.parameters()} == {"meta"}
    assert {p.device.type for p in method.parameters()} == {"cpu"}


def drawn():
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


def test_every_generator_goes_on_where_it_was(tiny, tmp_path):
    _, method = build(tiny())
    method._log_every = 1
    method._trainer = SimpleNamespace(log_every_n_steps=1, global_rank=0)
    checkpoint = {}
    method.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "c.ckpt")
    expected = drawn()
    drawn()
    method.on_load_checkpoint(torch.load(tmp_path / "c.ckpt", weights_only=True))
    method.on_train_start()
    assert drawn() == expected


def test_each_process_goes_on_with_its_own_generators(tiny, monkeypatch):
    """Two processes in one: what each draws next is its own, whoever has written the checkpoint."""
    _, method = build(tiny())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    states, expected = [], []
    for seed in (3, 4):
        seed_everything(seed, verbose=False)
        monkeypatch.setattr(torch.distributed, "all_gather_object", lambda found, own: states.append(own))
        method.on_save_checkpoint({})
        expected.append(drawn())

    def gather(found, own):
        found[:] = states

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    checkpoint = {}
    method.on_save_checkpoint(checkpoint)
    for rank in (0, 1):
        method._trainer = SimpleNamespace(log_every_n_steps=1, global_rank=rank)
        method.on_load_checkpoint(checkpoint)
        method.on_train_start()
        assert drawn() == expected[rank]


def test_a_checkpoint_of_one_generator_alone_is_still_read(tiny):
    _, method = build(tiny())
    state = torch.get_rng_state()
    expected = float(torch.rand(()))
    method._trainer = SimpleNamespace(log_every_n_steps=1, global_rank=0)
    method.on_load_checkpoint({"rng": {"cpu": state, "cuda": []}})
    method.on_train_start()
    assert float(torch.rand(())) == expected
