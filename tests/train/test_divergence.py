"""A loss or a gradient that is no number: the step at which a run stops, what it says and what it keeps."""

import csv
import json
import math

import pytest
import torch

from hardpix import record
from hardpix.methods import Baseline
from hardpix.train.train import train
from hardpix.types import ConfigError, Diverged

FIXED = ("scheduler=constant", "callbacks.checkpoint_every_steps=1", "trainer.max_steps=5")


def state(run_dir):
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)


@pytest.fixture
def spoil(monkeypatch):
    """``spoil({2}, "loss")``: at those steps the images, the loss, or the gradient alone are no numbers.

    Returns the names of the images that each step saw.
    """
    seen = {}
    inner = Baseline.losses

    def at(steps, what):
        def losses(self, batch):
            seen[self.global_step] = list(batch["name"])
            if self.global_step in steps and what == "images":
                batch = batch | {"image": batch["image"] * float("nan")}
            found = inner(self, batch)
            if self.global_step in steps and what != "images":
                key = next(iter(found))
                if what == "loss":
                    found[key] = found[key] * float("nan")
                else:
                    found[key].register_hook(lambda gradient: gradient * float("inf"))
            return found

        monkeypatch.setattr(Baseline, "losses", losses)
        return seen

    return at


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_it_stops_at_that_step_and_names_the_images(tiny, tmp_path, spoil, what):
    seen = spoil({2}, what)
    with pytest.raises(Diverged, match=r"at step 2: .* finite on "):
        train(tiny("run=a", *FIXED), [])
    run_dir = tmp_path / "runs/default/a"
    found = record.read(run_dir)
    assert found.status == "failed"
    assert "diverged at step 2" in found.error
    told = json.loads((run_dir / "diverged.json").read_text())
    assert (told["step"], told["epoch"], told["images"]) == (2, 1, seen[2])
    assert told["gradients"]
    assert told["seed"] == found.seed
    assert next(iter(told["losses"])) == "loss"
    assert (told["losses"]["loss"] == "nan") == (what == "loss")
    kept = state(run_dir)
    assert kept["global_step"] == 2
    assert all(torch.isfinite(x).all() for x in kept["state_dict"].values())


def test_all_images_of_an_accumulated_step_are_named(tiny, tmp_path, spoil):
    spoil({1}, "loss")
    with pytest.raises(Diverged):
        train(tiny("run=a", *FIXED, "trainer.accumulate=2", "data.batch_size=2"), [])
    assert len(json.loads((tmp_path / "runs/default/a/diverged.json").read_text())["images"]) == 4


@pytest.mark.parametrize("what", ["images", "loss", "gradient"])
def test_a_skipped_step_leaves_weights_and_momentum(tiny, tmp_path, spoil, what):
    spoil({4}, what)
    train(tiny("run=skip", *FIXED, "trainer.nan=skip", "trainer.max_skip=1"), [])
    spoil(set(), what)
    train(tiny("run=short", *FIXED[:2], "trainer.max_steps=4"), [])
    skipped, short = (state(tmp_path / f"runs/default/{name}") for name in ("skip", "short"))
    assert (skipped["global_step"], short["global_step"]) == (5, 4)
    weights = short["state_dict"]
    assert any(k.endswith("running_mean") for k in weights)
    assert all(torch.equal(skipped["state_dict"][k], weights[k]) for k in weights)
    assert record.read(tmp_path / "runs/default/skip").metrics["run/skipped_steps"] == 1
    assert "run/skipped_steps" not in record.read(tmp_path / "runs/default/short").metrics
    moments = [s["optimizer_states"][0]["state"] for s in (skipped, short)]
    assert all(
        torch.equal(moments[0][i]["momentum_buffer"], moments[1][i]["momentum_buffer"]) for i in moments[1]
    )


def test_a_skipped_step_is_in_no_mean_and_takes_its_whole_window_with_it(tiny, tmp_path, spoil):
    """Steps of two batches: the first one's statistics go as well, and the epoch's mean is that of the others."""
    spoil({2}, "images")
    settings = ("trainer.accumulate=2", "data.batch_size=2", "trainer.max_epochs=2", "trainer.max_steps=null")
    train(tiny("run=a", *FIXED[:2], *settings, "trainer.nan=skip", "trainer.max_skip=1"), [])
    assert all(torch.isfinite(x).all() for x in state(tmp_path / "runs/default/a")["state_dict"].values())
    rows = list(csv.DictReader((tmp_path / "runs/default/a/metrics.csv").open()))
    means = [float(r["train/loss_epoch"]) for r in rows if r["train/loss_epoch"]]
    assert len(means) == 2
    assert all(map(math.isfinite, means))


def test_skipping_is_bounded(tiny, spoil):
    spoil({1, 3}, "loss")
    with pytest.raises(Diverged, match="at step 3"):
        train(tiny("run=a", *FIXED, "trainer.nan=skip", "trainer.max_skip=1"), [])


def test_a_resumed_run_has_no_more_skips_than_one(tiny, spoil):
    spoil({1, 3}, "loss")
    settings = ("run=a", *FIXED, "trainer.nan=skip", "trainer.max_skip=1")
    for _ in range(2):
        with pytest.raises(Diverged, match="at step 3"):
            train(tiny(*settings), [])


@pytest.mark.parametrize(("setting", "said"), [("nan=maybe", "stop or skip"), ("max_skip=-1", "at least 0")])
def test_wrong_settings_are_told(tiny, setting, said):
    with pytest.raises(ConfigError, match=said):
        train(tiny("run=a", f"trainer.{setting}"), [])


@pytest.fixture
def half(monkeypatch):
    """float16 and its loss scaler on the CPU, which Lightning offers on a GPU alone."""
    from pytorch_lightning.plugins.precision import MixedPrecision
    from pytorch_lightning.trainer.connectors.accelerator_connector import _AcceleratorConnector

    monkeypatch.setattr("hardpix.train.build.check_device", lambda *_: None)
    monkeypatch.setattr(
        _AcceleratorConnector, "_check_and_init_precision", lambda self: MixedPrecision("16-mixed", "cpu")
    )
    return ("trainer.precision=16-mixed", "trainer.val_every_epochs=99", "panels=0", *FIXED[:2])


def test_a_scaler_that_skips_every_step_ends_the_run(tiny, tmp_path, spoil, half):
    """2 ** 16 is below 1 after 17 skipped steps; with fewer, a run that made none of its steps is not done."""
    spoil(set(range(40)), "gradient")
    with pytest.raises(Diverged, match=r"at step 17: .* scale fell below 1, .* 17 .* skipped"):
        train(tiny("run=long", *half, "trainer.max_steps=40"), [])
    run_dir = tmp_path / "runs/default/long"
    found = record.read(run_dir)
    assert found.status == "failed"
    assert "trainer.precision=bf16-mixed" in found.error
    written = json.loads((run_dir / "diverged.json").read_text())
    assert written["gradients"]
    assert written["images"]
    assert state(run_dir)["global_step"] == 16
    with pytest.raises(Diverged, match="all 4 steps were skipped"):
        train(tiny("run=short", *half, "trainer.max_steps=4"), [])
    assert record.read(tmp_path / "runs/default/short").status == "failed"


def test_steps_that_the_scaler_skips_are_counted_over_all_legs(tiny, tmp_path, spoil, half, monkeypatch):
    """Steps of two batches; the count goes on where the run does."""
    settings = ("run=a", *half, "trainer.accumulate=2", "data.batch_size=2", "trainer.max_steps=5")
    spoil({1, 4}, "gradient")
    inner = Baseline.training_step

    def dies(self, batch, batch_idx):
        if self.global_step == 3:
            raise RuntimeError("power cut")
        return inner(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Baseline, "training_step", dies)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny(*settings), [])
    done = train(tiny(*settings), [])
    assert (done.metrics["run/skipped_steps"], done.metrics["run/steps"]) == (2, 5)
    assert state(tmp_path / "runs/default/a")["MixedPrecision"]["scale"] == 2.0**14


def test_a_step_left_out_for_its_loss_is_counted_once_in_float16(tiny, spoil, half):
    spoil({2}, "loss")
    done = train(tiny("run=a", *half, "trainer.max_steps=5", "trainer.nan=skip", "trainer.max_skip=1"), [])
    assert done.metrics["run/skipped_steps"] == 1


def test_a_run_whose_steps_were_all_left_out_is_not_done(tiny, spoil):
    spoil(set(range(9)), "loss")
    with pytest.raises(Diverged, match="all 5 steps were skipped"):
        train(tiny("run=a", *FIXED, "trainer.nan=skip", "trainer.max_skip=9"), [])
