"""What a run records of its cost: operations counted while they run, parameters, and NaN where that cannot be."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from hardpix import record
from hardpix.cli import main
from hardpix.methods import Detail
from hardpix.models import DetailBranch, ErrorBranch, Segmenter
from hardpix.train import cost
from hardpix.train.build import build
from hardpix.train.cost import Cost, Tally, flop_registry
from hardpix.train.train import train

COSTS = (
    "step_seconds",
    "peak_memory_mb",
    "parameters_train",
    "parameters_inference",
    "gflops_train",
    "gflops_inference",
)


def network():
    """A convolution 3 -> 4 of 3x3, normalised, and a linear layer 4 -> 5; its counts by hand."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


CONVOLUTION, LINEAR = (
    2 * 4 * 3 * 9 * 6 * 7,
    2 * 4 * 5,
)  # of a 6x7 picture; a multiplication and an addition are two


def test_operations_forward_and_backward_are_those_counted_by_hand():
    net, image = network(), torch.randn(2, 3, 6, 7)
    forward, both = Tally(), Tally()
    with forward:
        net(image)
    assert forward.flops == 2 * (CONVOLUTION + LINEAR)
    assert forward.parameters == 4 * 3 * 9 + 8 + 25
    with both:
        net(image).sum().backward()
    # Backward: weights of both, the input of the linear layer alone, since the picture needs no gradient.
    assert both.flops == 2 * (2 * CONVOLUTION + 3 * LINEAR)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_gradient_of_a_grouped_convolution_takes_what_the_forward_pass_takes(groups, transposed):
    layer = (nn.ConvTranspose2d if transposed else nn.Conv2d)(8, 8, 3, stride=2, groups=groups)
    image = torch.randn(2, 8, 7, 9, requires_grad=True)
    forward, both = Tally(), Tally()
    with forward:
        out = layer(image)
    places = math.prod(image.shape[-2:] if transposed else out.shape[-2:])
    assert forward.flops == 2 * 2 * 8 * (8 // groups) * 9 * places
    with both:
        layer(image).sum().backward()
    assert both.flops == 3 * forward.flops


def test_inference_mode_counts_alike_and_results_stay_as_they_are_bit_for_bit():
    net, image = network().eval(), torch.randn(2, 3, 6, 7)
    with torch.inference_mode():
        plain = net(image)
        with Tally() as tally:
            counted = net(image)
    assert torch.equal(plain, counted)
    assert tally.flops == 2 * (CONVOLUTION + LINEAR)


def test_only_what_is_read_counts_as_a_parameter():
    net = network()
    with Tally() as tally, torch.no_grad():
        net[0](torch.randn(1, 3, 6, 7))
        net[0](torch.randn(1, 3, 6, 7))
    assert tally.parameters == 4 * 3 * 9


def test_attention_is_counted():
    q = torch.randn(1, 2, 5, 8)
    with Tally() as tally:
        nn.functional.scaled_dot_product_attention(q, q, q)
    assert tally.flops == 2 * 2 * (2 * 5 * 5 * 8)


def test_a_formula_that_fails_disturbs_nothing(monkeypatch):
    def broken(*_, **__):
        raise ValueError("odd shape")

    monkeypatch.setitem(flop_registry, torch.ops.aten.convolution, broken)
    with Tally() as tally:
        out = network()(torch.randn(2, 3, 6, 7))
    assert out.shape == (2, 5)
    assert math.isnan(tally.flops)
    assert tally.problem == "ValueError: odd shape"


@pytest.fixture
def costs(tiny):
    """The costs of a run, and how many numbers the parts of its method have."""

    def run(*overrides):
        cfg = tiny(
            *overrides, "panels=0", "trainer.limit_val_batches=1", f"run={len(overrides)}-{hash(overrides)}"
        )
        _, method = build(cfg)
        parts = {name: sum(p.numel() for p in part.parameters()) for name, part in method.named_modules()}
        return {
            key.removeprefix("cost/"): v for key, v in train(cfg, []).metrics.items() if "cost/" in key
        }, parts

    return run


@pytest.mark.slow
def test_hl_costs_its_second_head_in_training_alone(costs):
    plain, _ = costs("method=baseline")
    hl, parts = costs("method=hl_released")
    assert set(hl) == set(COSTS)
    assert hl["parameters_train"] == plain["parameters_train"] + parts["hardness"]
    assert (
        hl["parameters_inference"]
        == plain["parameters_inference"]
        == parts["model.backbone"] + parts["model.head"]
    )
    assert hl["gflops_inference"] == plain["gflops_inference"]
    # G on 1x2 features of stride 32 and 64 channels: no gradient leaves its first layers, two convolutions and a third
    # on the joined maps, and a classifier.
    pixels, wide = 1 * 2, parts["hardness"]
    share = (hl["gflops_train"] - plain["gflops_train"]) * 1e9
    assert 0 < share <= 3 * 2 * pixels * wide
    assert 1 < plain["gflops_train"] / plain["gflops_inference"] < 3.2  # forward and backward at one size


@pytest.mark.slow
def test_windows_of_the_test_count(costs):
    whole, _ = costs("inference=whole")
    slide, _ = costs("inference=slide", "inference.crop=[32,32]", "inference.stride=[16,16]")
    assert slide["gflops_inference"] == pytest.approx(whole["gflops_inference"] * 2 * 32 / 48, rel=0.05)
    assert slide["gflops_train"] == whole["gflops_train"]


def test_a_compiled_network_is_not_counted_and_that_is_told(tiny, monkeypatch, capsys):
    def as_compiled(method, mode):
        method.model.backbone._compiled_call_impl = method.model.backbone._call_impl

    monkeypatch.setattr("hardpix.train.train.compile_model", as_compiled)
    metrics = train(tiny("method=baseline", "panels=0"), []).metrics
    assert all(math.isnan(metrics[f"cost/{name}"]) for name in ("gflops_train", "gflops_inference"))
    assert metrics["cost/parameters_train"] > 0
    said = capsys.readouterr().out
    assert "cost/gflops_train: not counted, torch.compile hides its operations" in said
    assert "cost/gflops_inference: not counted" in said


def test_a_step_that_breaks_off_leaves_no_counting_behind(tiny, monkeypatch):
    def boom(self, batch):
        raise RuntimeError("boom")

    monkeypatch.setattr("hardpix.methods.Baseline.losses", boom)
    with pytest.raises(RuntimeError, match="boom"):
        train(tiny("method=baseline", "panels=0"), [])
    assert _get_current_dispatch_mode() is None


def test_before_a_run_all_is_nan():
    cost = Cost()
    cost.device = torch.device("cpu")
    assert set(cost.result()) == {f"cost/{name}" for name in COSTS}
    assert all(math.isnan(value) for value in cost.result().values())


def test_a_step_of_several_batches_is_timed_as_one(tiny):
    """Sixteen batches in twos: the first steps settle, the other six are timed."""
    cost = Cost()
    settings = (
        "data.source.train_frames=16",
        "data.batch_size=2",
        "trainer.max_steps=8",
        "trainer.val_every_epochs=9",
    )
    train(tiny("method=baseline", "trainer.accumulate=2", "panels=0", *settings), [], [cost])
    assert len(cost.blocks) == 6


@pytest.mark.parametrize(
    ("blocks", "median", "spread"),
    [
        ([2.0] * 9, 2.0, 0.0),
        ([1.0, 1.0, 4.0, 4.0, 4.0], 4.0, 0.75),
        ([1.0] * 9 + [100.0], 1.0, 0.0),
        ([1, 2, 3], 2, None),
    ],
)
def test_how_much_the_median_of_the_steps_tells(blocks, median, spread):
    cost = Cost()
    cost.device, cost.blocks = torch.device("cpu"), blocks
    found = cost.result()
    assert found["cost/step_seconds"] == median
    assert found.get("run/step_spread") == spread


# Running times of branches: which calls are counted, and what an evaluation records.


NAMES = {"time/semantic", "time/error_prediction", "time/detail", "time/total"}


@pytest.fixture
def clock(monkeypatch):
    """A clock that parts of the network advance by whole seconds, and nothing else."""
    now = [0.0]

    def slowed(run, cost):
        def slow(*given, **more):
            now[0] += cost
            return run(*given, **more)

        return slow

    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    for kind, name, seconds in (
        (Segmenter, "forward", 8), (ErrorBranch, "forward", 4), (DetailBranch, "forward", 2), (Detail, "decide", 1),
    ):  # fmt: skip
        monkeypatch.setattr(kind, name, slowed(getattr(kind, name), seconds))
    return now


def score(run, out, *overrides):
    assert main(["evaluate", str(run), "--out", str(out), *overrides]) == 0
    return {k: v for k, v in record.read(out).metrics.items() if k.startswith(("time/", "tiles/"))}


def test_seconds_per_image_after_the_first_batches(cascade, tmp_path, clock):
    """Eight frames one by one, of which two are not counted; then in pairs, twice as fast an image."""
    one = ("data.eval_batch_size=1",)
    found = score(cascade("detail"), tmp_path / "one", "--split", "train", *one)
    assert found == {"time/semantic": 8, "time/error_prediction": 4, "time/detail": 2, "time/total": 15}
    pairs = score(cascade("detail"), tmp_path / "two", "--split", "train", "data.eval_batch_size=2")
    assert pairs == {k: v / 2 for k, v in found.items()}
    slide = ("inference=slide", "inference.crop=[32,32]", "inference.stride=[16,16]", "inference.batch=1")
    windows = score(cascade("detail"), tmp_path / "slide", "--split", "train", *one, *slide)
    assert windows == {"time/semantic": 16, "time/error_prediction": 8, "time/detail": 4, "time/total": 29}


def test_a_branch_on_tiles_is_timed_too(cascade, tmp_path, clock):
    given = ("--split", "train", "data.eval_batch_size=1", "method.statistics=tracked", "method.tile=16")
    found = score(cascade("detail"), tmp_path / "a", *given)
    assert found.pop("tiles/run_share") <= 1
    assert found["time/detail"] == 2
    assert found["time/total"] == 15


def test_two_batches_are_too_few_and_methods_without_branches_are_left_alone(cascade, tmp_path):
    found = score(cascade("detail"), tmp_path / "a", "data.eval_batch_size=2")
    assert set(found) == NAMES
    assert all(v != v for v in found.values())
    assert score(cascade("semantic"), tmp_path / "b", "data.eval_batch_size=1") == {}


def test_times_of_the_clock_and_of_a_run(cascade, tmp_path):
    found = score(cascade("error_prediction"), tmp_path / "a", "--split", "train", "data.eval_batch_size=1")
    assert set(found) == NAMES - {"time/detail"}
    assert 0 < found["time/error_prediction"] < found["time/total"]
    assert found["time/semantic"] + found["time/error_prediction"] <= found["time/total"] < 60
    assert set(record.read(cascade("detail")).metrics) >= NAMES  # of its final test


def test_nothing_stays_on_the_method(cascade):
    import pytorch_lightning as pl

    from hardpix.evaluate import loaded

    _, data, method = loaded(cascade("detail"), "last", ["data.eval_batch_size=1"])
    before = set(vars(method))
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
                         callbacks=[cost.BranchTime()], enable_checkpointing=False)  # fmt: skip
    trainer.test(method, data.evaluation_loader("test"), verbose=False)
    assert set(vars(method)) - before <= {"confusion", "_hparams"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in method.modules())
