import pytest
import torch
from torch.nn import Parameter

from hardpix.optim import SGD, Adam, AdamW
from hardpix.types import ConfigError


def groups():
    frozen = Parameter(torch.ones(2, 2), requires_grad=False)
    return {
        "backbone": [Parameter(torch.ones(3, 3)), Parameter(torch.ones(3)), frozen],
        "head": [Parameter(torch.ones(2, 3))],
    }


MOMENTS = {"betas": (0.9, 0.999), "eps": 1e-8}


def by_name(optimizer):
    return {g["name"]: g for g in optimizer.param_groups}


def test_rates_and_decay_by_group_name():
    options = {"backbone": {"lr_mult": 0.1}, "head": {"weight_decay": 0.0}}
    found = by_name(SGD(lr=0.5, momentum=0.9, weight_decay=0.01, group_options=options)(groups()))
    assert found["backbone"]["lr"] == pytest.approx(0.05)
    assert found["backbone"]["weight_decay"] == 0.01
    assert found["head"]["lr"] == 0.5
    assert found["head"]["weight_decay"] == 0.0
    assert found["head"]["momentum"] == 0.9
    assert len(found["backbone"]["params"]) == 2  # the frozen one is left out


def test_one_dimensional_parameters_can_be_spared():
    found = by_name(AdamW(lr=1e-3, weight_decay=0.1, decay_one_dimensional=False, **MOMENTS)(groups()))
    assert [p.ndim for p in found["backbone_1d"]["params"]] == [1]
    assert found["backbone_1d"]["weight_decay"] == 0.0
    assert [p.ndim for p in found["backbone"]["params"]] == [2]
    assert "head_1d" not in found


def test_adam_decay_is_l2_and_adamw_decay_is_decoupled():
    for factory, expected in ((Adam, 1 - 0.1), (AdamW, 1 - 0.1 * 0.5)):
        weight = Parameter(torch.ones(1, 1))
        optimizer = factory(lr=0.1, weight_decay=0.5, **MOMENTS)({"head": [weight]})
        weight.grad = torch.zeros_like(weight)
        optimizer.step()  # L2: the gradient is 0.5 w, and Adam's first step is lr * sign
        assert weight.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"bakbone": {"lr_mult": 2}}, "bakbone"), ({"head": {"lr": 2}}, "lr_mult")],
)
def test_unknown_groups_and_keys_are_named(options, said):
    with pytest.raises(ConfigError, match=said):
        SGD(lr=0.1, momentum=0, weight_decay=0, group_options=options)(groups())


def test_ranges():
    with pytest.raises(ConfigError, match="SGD: lr=0: must be above 0"):
        SGD(lr=0, momentum=0, weight_decay=0)(groups())
    with pytest.raises(ConfigError, match="Adam: weight_decay=-1: must be at least 0"):
        Adam(lr=1, weight_decay=-1, **MOMENTS)(groups())
