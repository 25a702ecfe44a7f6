"""Hardness maps in one form, against NumPy loops."""

import math

import numpy as np
import pytest
import torch

from hardpix.ops.hardness import HardMap, hard_map, logit_map, rank_correlation


def test_a_known_range_becomes_zero_to_one_and_void_is_nan():
    z = torch.tensor([[[0.1, 0.6, 1.1, 0.35]]])
    valid = torch.tensor([[[True, True, True, False]]])
    made = hard_map(z, valid, HardMap("Z", 0.1, 1.1))
    assert made.dtype == torch.float32
    assert made[0, 0, :3].tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)
    assert made[0, 0, 3].isnan()
    sums = hard_map(
        torch.tensor([[[0.5, 2.0]]]).half(), torch.ones(1, 1, 2, dtype=bool), HardMap("M", high=2)
    )
    assert sums.tolist() == [[[0.25, 1.0]]]


def test_rounding_beyond_the_range_is_clamped_and_a_loss_has_no_upper_end():
    valid = torch.ones(1, 1, 3, dtype=bool)
    values = torch.tensor([[[-1e-8, 1.0000001, 7.0]]])
    assert hard_map(values, valid, HardMap("p")).tolist() == [[[0, 1, 1]]]
    assert hard_map(values, valid, HardMap("loss", high=math.inf))[0, 0, 2] == 7


def test_maps_of_logits_equal_a_loop():
    rng = np.random.default_rng(0)
    logits, label = rng.normal(0, 3, (2, 4, 3, 5)), rng.integers(0, 4, (2, 3, 5))
    label[0, 1, 2] = 255
    given = torch.tensor(logits, dtype=torch.float32), torch.tensor(label), 255
    found = {name: logit_map(name, *given) for name in ("loss", "entropy", "uncertainty")}
    for b, y, x in np.ndindex(2, 3, 5):
        p = np.exp(logits[b, :, y, x])
        p /= p.sum()
        expected = {
            "loss": 0.0 if label[b, y, x] == 255 else -math.log(p[label[b, y, x]]),
            "entropy": -sum(q * math.log(q) for q in p) / math.log(4),
            "uncertainty": 1 - p.max(),
        }
        for name, value in expected.items():
            assert float(found[name][b, y, x]) == pytest.approx(value, abs=1e-5), name


def test_maps_of_logits_at_their_ends():
    sure = torch.tensor([0.0, -40.0, -math.inf]).view(1, 3, 1, 1)
    label = torch.zeros(1, 1, 1, dtype=torch.int64)
    assert logit_map("uncertainty", sure, label, 255).item() == pytest.approx(math.exp(-40), rel=1e-5)
    assert logit_map("entropy", sure, label, 255).item() == pytest.approx(0, abs=1e-6)
    even = torch.zeros(1, 3, 1, 1).half()
    assert logit_map("entropy", even, label, 255).item() == pytest.approx(1)
    assert logit_map("uncertainty", even, label, 255).item() == pytest.approx(2 / 3)


def test_rank_correlation_shares_the_ranks_of_ties():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 6, 80), rng.integers(0, 6, 80)
    b[:40] = a[:40]

    def ranks(values):
        return np.array([np.mean(np.flatnonzero(np.sort(values) == v)) for v in values])

    expected = np.corrcoef(ranks(a), ranks(b))[0, 1]
    assert rank_correlation(torch.tensor(a), torch.tensor(b).float()) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([9.0, 4, 1])) == pytest.approx(-1)
    assert math.isnan(rank_correlation(torch.tensor([1.0, 2]), torch.tensor([5.0, 5])))
