"""What the batches of an epoch are: steps of several, the last one of a step or an epoch that is smaller."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from hardpix import record
from hardpix.methods import Baseline
from hardpix.train.build import build, check_batches, single_problem
from hardpix.train.train import train
from hardpix.types import ConfigError


@pytest.fixture
def gradients(monkeypatch):
    """``{step: (images, gradient norm)}``, each step's gradient held against that of the mean of its batches."""
    seen, kept = {}, []
    inner = Baseline.losses

    def losses(self, batch):
        found = inner(self, batch)
        total = torch.stack(list(found.values())).sum()
        kept.append(
            torch.autograd.grad(total, [p for p in self.parameters() if p.requires_grad], retain_graph=True)
        )
        return found

    def before_step(self, optimizer):
        wanted = [torch.stack(each).mean(0) for each in zip(*kept, strict=True)]
        given = [p.grad for p in self.parameters() if p.requires_grad]
        alike = all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(wanted, given, strict=True))
        seen[self.global_step] = (len(kept), alike)
        kept.clear()

    monkeypatch.setattr(Baseline, "losses", losses)
    monkeypatch.setattr(Baseline, "on_before_optimizer_step", before_step)
    return seen


BATCHES = ("run=a", "data.source.train_frames=10", "data.batch_size=2", "trainer.max_steps=4", "panels=0")


def test_the_last_step_of_an_epoch_is_the_mean_of_the_batches_that_it_has(tiny, tmp_path, gradients, capsys):
    """Five batches in threes: steps of 3, 2, 3, 2, of which the loss was divided by 3."""
    done = train(tiny(*BATCHES, "trainer.accumulate=3"), [])
    assert gradients == {0: (3, True), 1: (2, True), 2: (3, True), 3: (2, True)}
    assert done.metrics["run/batches_per_step"] == 2.5
    assert record.read(tmp_path / "runs/default/a").metrics["run/batches_per_step"] == 2.5
    assert "trainer.accumulate=3: the last step of each epoch (5 batches) has 2" in capsys.readouterr().out
    rows = (tmp_path / "runs/default/a/metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/loss")
    assert sum(bool(row.split(",")[column]) for row in rows[1:]) == 4  # the smaller steps are logged too


def test_steps_of_equal_batches_say_nothing(tiny, gradients, capsys):
    done = train(tiny(*BATCHES, "trainer.accumulate=5", "trainer.max_steps=2"), [])
    assert gradients == {0: (5, True), 1: (5, True)}
    assert done.metrics["run/batches_per_step"] == 5
    assert "accumulate" not in capsys.readouterr().out.split("test split")[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["trainer.accumulate=6"],
            r"trainer\.accumulate=6: an epoch has 5 batches.*set trainer\.accumulate=5",
        ),
        (["trainer.accumulate=2", "trainer.limit_train_batches=1"], r"an epoch has 1 batch,"),
        (["trainer.accumulate=2", "trainer.limit_train_batches=0.2"], r"an epoch has 1 batch,"),
        (
            ["trainer.accumulate=2", "trainer.val_every_steps=1", "trainer.val_every_epochs=null"],
            r"trainer\.val_every_steps=1.*trainer\.val_every_epochs=1",
        ),
    ],
)
def test_a_step_beyond_an_epoch_is_refused(tiny, tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        train(tiny(*BATCHES, *settings), [])
    assert not (tmp_path / "runs").exists()


FIVE = ("data.source.train_frames=5", "data.batch_size=2", "data.drop_last=false", "trainer.max_steps=3")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["head=psp"],
            r"data\.drop_last=false: 5 frames leave one over .*data\.batch_size=2.*data\.drop_last=true",
        ),
        (["head=psp", "data.batch_size=4"], r"data\.drop_last=false: .*data\.batch_size=4"),
        (
            ["head=psp", "data.batch_size=1"],
            r"data\.batch_size=1: batch norm .*set data\.batch_size=2 or more",
        ),
        (["data.train_transform.crop=[32,32]"], r"data\.drop_last=false: .*no larger than the stride"),
        (["head=psp", "method=hardness"], r"data\.drop_last=false: "),
    ],
)
def test_a_batch_of_one_that_cannot_train_is_refused_before_anything_is_written(
    tiny, tmp_path, settings, said
):
    with pytest.raises(ConfigError, match=said):
        train(tiny("run=a", *FIVE, *settings), [])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "settings",
    [
        ["head=fcn"],  # no norm sees a 1x1 map
        ["head=psp", "data.drop_last=true"],
        ["head=psp", "trainer.max_steps=2"],  # the run ends before the last batch
        ["head=psp", "trainer.limit_train_batches=2", "trainer.max_steps=3"],
        ["head=psp", "data.source.train_frames=6"],
    ],
)
def test_what_can_train_is_not_refused(tiny, settings):
    assert train(tiny("run=a", *FIVE, *settings, "panels=0"), []).status == "done"


@pytest.mark.parametrize(
    ("frames", "synchronised", "refused"), [(7, False, True), (7, True, False), (5, False, False)]
)
def test_the_share_of_each_process_is_what_counts(tiny, frames, synchronised, refused):
    """Of seven frames two processes have three each; norms over both processes see two images."""
    cfg = tiny("head=psp", *FIVE, f"data.source.train_frames={frames}", "trainer.max_steps=9")
    data, method = build(cfg)
    one = SimpleNamespace(
        world_size=2, global_rank=0, limit_train_batches=1.0, accumulate_grad_batches=1, fast_dev_run=False
    )
    check = partial(check_batches, cfg, data, method, one, synchronised=synchronised)
    if refused:
        with pytest.raises(ConfigError, match="3 frames in each process leave one over"):
            check()
    else:
        assert check().remarks == ()


def test_a_batch_of_one_is_tried_without_a_trace(tiny):
    data, method = build(tiny("head=psp", "loss=balanced"))
    batch = next(data.training_frames(0, 1))
    before = {k: x.clone() for k, x in method.state_dict().items()}
    random = torch.get_rng_state()
    assert single_problem(method, batch)
    assert all(torch.equal(x, before[k]) for k, x in method.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
