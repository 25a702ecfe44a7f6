from itertools import pairwise

import pytest
import torch
from torch.nn import Parameter

from hardpix.optim import SGD, Constant, Plateau, Poly
from hardpix.types import ConfigError

NO_WARMUP = {"warmup_steps": 0, "warmup_ratio": 1e-6}


def optimizer(lr=0.01, options=None):
    groups = {"backbone": [Parameter(torch.ones(1, 1))], "head": [Parameter(torch.ones(1, 1))]}
    return SGD(lr=lr, momentum=0.0, weight_decay=0.0, group_options=options)(groups)


def rates(schedule, steps, count, lr=0.01, options=None):
    """Rates of both groups in force at steps 0..count-1."""
    opt = optimizer(lr, options)
    found = schedule(opt, steps)
    history = []
    for _ in range(count):
        history.append([g["lr"] for g in opt.param_groups])
        opt.step()
        found[0]["scheduler"].step()
    return history


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.01), (50, 0.009989), (19800, 0.005453), (40000, 0.0001)]
)
def test_poly_published_values(step, expected):
    opt = optimizer()
    lambdas = Poly(power=0.9, min_lr=1e-4, **NO_WARMUP)(opt, 40000)[0]["scheduler"].lr_lambdas
    assert 0.01 * lambdas[0](step) == pytest.approx(expected, abs=5e-7)


def test_poly_floor_holds_for_every_group_and_beyond_the_end():
    history = rates(Poly(power=0.9, min_lr=1e-4, **NO_WARMUP), 10, 14, options={"backbone": {"lr_mult": 0.1}})
    assert history[0] == pytest.approx([0.001, 0.01])
    assert history[10] == pytest.approx([1e-4, 1e-4])
    assert history[13] == pytest.approx([1e-4, 1e-4])
    assert all(a[1] > b[1] for a, b in pairwise(history[:11]))


def test_warmup_is_linear_and_multiplies_the_decay():
    history = rates(Constant(warmup_steps=4, warmup_ratio=0.2), 100, 6, lr=1.0)
    assert [h[0] for h in history] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    plain = rates(Poly(power=1.0, min_lr=0.0, **NO_WARMUP), 10, 5, lr=1.0)
    warm = rates(Poly(power=1.0, min_lr=0.0, warmup_steps=2, warmup_ratio=0.0), 10, 5, lr=1.0)
    assert warm[1][0] == pytest.approx(plain[1][0] * 0.5)
    assert warm[3] == pytest.approx(plain[3])


def plateau(losses, opt, **options):
    settings = {"factor": 0.1, "patience": 1, "threshold": 1e-3, "max_drops": 2} | NO_WARMUP | options
    step, epoch = Plateau(**settings)(opt, 100)
    for loss in losses:
        opt.step()
        step["scheduler"].step()
        epoch["scheduler"].step(loss)
    step["scheduler"].step()
    return [g["lr"] for g in opt.param_groups], (step, epoch)


def test_plateau_drops_by_its_factor_and_at_most_so_often():
    lr, _ = plateau([1.0, 1.0, 1.0], optimizer(1.0, {"backbone": {"lr_mult": 0.5}}))
    assert lr == pytest.approx([0.05, 0.1])  # both groups
    lr, _ = plateau([1.0] * 20, optimizer(1.0))
    assert lr == pytest.approx([0.01, 0.01])  # two drops, not nine
    lr, _ = plateau([1.0 / (i + 1) for i in range(20)], optimizer(1.0))
    assert lr == pytest.approx([1.0, 1.0])


def test_plateau_survives_a_restart():
    _, (step, epoch) = plateau([1.0, 1.0, 1.0], optimizer(1.0))
    other = optimizer(1.0)
    new_step, new_epoch = Plateau(factor=0.1, patience=1, threshold=1e-3, max_drops=2, **NO_WARMUP)(
        other, 100
    )
    new_step["scheduler"].load_state_dict(step["scheduler"].state_dict())
    new_epoch["scheduler"].load_state_dict(epoch["scheduler"].state_dict())
    new_step["scheduler"].step()
    assert other.param_groups[0]["lr"] == pytest.approx(0.1)
    assert epoch["monitor"] == "train/watched_epoch"
    assert epoch["interval"] == "epoch"


def test_ranges():
    with pytest.raises(ConfigError, match="power"):
        Poly(power=0, min_lr=0, **NO_WARMUP)
    with pytest.raises(ConfigError, match="warmup_ratio"):
        Constant(warmup_steps=3, warmup_ratio=2)
    with pytest.raises(ConfigError, match="factor"):
        Plateau(factor=1, patience=1, threshold=0, max_drops=1, **NO_WARMUP)
