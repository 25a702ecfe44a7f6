"""OHEM against a sort: its definition is a sort, its implementation is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hardpix.losses import OHEM
from hardpix.losses.mining import confident_from

VOID = 255


def sorted_keep(prob: np.ndarray, valid: np.ndarray, thresh: float, least: int) -> np.ndarray:
    """mmsegmentation's OHEMPixelSampler, written out with a sort."""
    if not valid.any():
        return valid
    ascending = np.sort(prob[valid])
    theta = max(ascending[min(least, len(ascending) - 1)], np.float32(thresh))
    return valid & (prob < theta)


def logits_of(prob: list[float]) -> torch.Tensor:
    p = torch.tensor(prob, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()])[None, :, None].float()


@pytest.mark.parametrize(
    ("prob", "kept"),
    [
        ([0.1, 0.3, 0.5, 0.9], [1, 1, 1, 0]),
        ([0.75, 0.8, 0.9, 0.95], [1, 1, 0, 0]),
        ([0.8, 0.9], [1, 0]),
    ],
)
@pytest.mark.parametrize("reduction", ["all", "valid", "kept"])
def test_three_cases_by_hand(prob, kept, reduction):
    logits = logits_of([*prob, 0.01]).requires_grad_()
    label = torch.zeros(1, 1, len(prob) + 1, dtype=torch.long)
    label[..., -1] = VOID
    value = OHEM(ignore_index=VOID, thresh=0.7, min_kept=2, reduction=reduction)(logits, label)
    total = -sum(np.log(p) for p, k in zip(prob, kept, strict=True) if k)
    pixels = {"all": len(prob) + 1, "valid": len(prob), "kept": sum(kept)}[reduction]
    assert value.item() == pytest.approx(total / pixels, rel=1e-5)
    value.backward()
    assert (logits.grad.abs().sum((0, 1, 2)) > 0).tolist() == [*map(bool, kept), False]


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_sort_whatever_the_ties(seed):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 4)), int(rng.integers(1, 12)), int(rng.integers(1, 12)))
    if seed % 10 == 0:
        shape = (2, 80, 90)  # large enough for the sampled bracket of the selection
    prob = rng.uniform(1e-3, 1, shape)
    if seed % 3:  # tie-heavy, often in 0.7 itself
        prob = rng.choice([0.1, 0.5, 0.7, 0.8, 0.95, 1.0], shape)
    error = torch.from_numpy(-np.log(prob)).float()
    valid = torch.from_numpy(rng.random(shape) < rng.choice([0.0, 0.3, 1.0]))
    error[~valid] = 0
    min_kept = int(rng.choice([0, 1, 7, shape[1] * shape[2] // 2, 10_000]))
    thresh = float(rng.choice([0.05, 0.7, 1.0]))
    loss = OHEM(ignore_index=VOID, thresh=thresh, min_kept=min_kept, reduction="kept")
    want = sorted_keep(torch.exp(-error).numpy(), valid.numpy(), thresh, min_kept * shape[0])
    np.testing.assert_array_equal(loss.keep(error, valid).numpy(), want)


@pytest.mark.parametrize(
    ("prob", "least", "theta"),
    [
        ([0.25, 0.5, 0.75, 1.0], 2, 0.75),  # one below 0.5, and not two: the threshold rises
        ([0.25, 0.5, 0.75, 1.0], 1, 0.5),
        ([0.25, 0.5, 0.5, 0.75], 1, 0.5),
        ([0.25, 0.5, 0.5, 0.75], 2, 0.5),
        ([0.125, 0.25, 0.5, 0.75], 2, 0.5),
        ([0.25, 0.5], 2, 0.5),
        ([0.25, 0.375], 2, 0.5),
        ([0.25, 0.5], 0, 0.5),
    ],
)
def test_a_probability_of_exactly_the_threshold_is_not_below_it(prob, least, theta):
    """Values that a float holds exactly, in every order, with void among them."""
    for turn in range(len(prob)):
        given = torch.tensor([*prob[turn:], torch.inf, *prob[:turn]])
        found = confident_from(given, len(prob), thresh=0.5, least=least)
        assert found == theta


@pytest.mark.parametrize("min_kept", [0, 1, 2])
def test_a_perfect_pixel_is_never_kept(min_kept):
    """Its probability is exactly 1, which is the largest threshold there is."""
    loss = OHEM(ignore_index=VOID, thresh=1.0, min_kept=min_kept, reduction="kept")
    error = torch.tensor([[[0.0, 2.0, 0.0, 1.0]], [[0.0, 0.0, 0.0, 0.0]]])
    assert loss.keep(error, torch.ones(2, 1, 4, dtype=torch.bool)).nonzero().tolist() == [
        [0, 0, 1],
        [0, 0, 3],
    ]


@pytest.mark.parametrize("least", [1, 40, 399])
def test_the_threshold_itself_is_left_out(least):
    """Of distinct probabilities above ``thresh`` exactly as many are kept as are asked for."""
    error = torch.linspace(0.01, 4, 800, dtype=torch.float64).float()[torch.randperm(800)].view(2, 20, 20)
    loss = OHEM(ignore_index=VOID, thresh=1e-6, min_kept=least, reduction="kept")
    kept = loss.keep(error, torch.ones_like(error, dtype=torch.bool))
    assert int(kept.sum()) == 2 * least
    assert error[kept].min() > error[~kept].max()


@pytest.mark.parametrize("seed", range(20))
def test_without_threshold_exactly_the_hardest_are_kept(seed):
    rng = np.random.default_rng(seed)
    error = torch.from_numpy(rng.choice([0.0, 0.5, 1.0, 2.0], (2, 9, 11))).float()
    valid = torch.from_numpy(rng.random(error.shape) < 0.7)
    error[~valid] = 0
    least = int(rng.integers(0, 120))
    kept = OHEM(ignore_index=VOID, thresh=None, min_kept=least, reduction="kept").keep(error, valid)
    count = min(2 * least, int(valid.sum()))
    want = torch.zeros_like(valid)
    order = np.lexsort((np.arange(error.numel()), -error.flatten().numpy(), ~valid.flatten().numpy()))
    want.view(-1)[torch.from_numpy(order[:count])] = True
    assert torch.equal(kept, want)


@pytest.mark.parametrize(("reduction", "normalizer"), [("all", "all"), ("valid", "valid"), ("kept", "valid")])
def test_cross_entropy_beside_it_divides_by_as_many_pixels(reduction, normalizer):
    loss = OHEM(ignore_index=VOID, thresh=0.7, min_kept=0, reduction=reduction)
    assert loss.normalizer == normalizer
