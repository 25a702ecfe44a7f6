"""Loss max-pooling against its closed form, written as a loop, and against its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hardpix.losses import CrossEntropy, LossMaxPooling
from hardpix.ops.hardness import max_pooling_weight

ERRORS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 0.05, 0.0)


def naive_weight(errors: np.ndarray, ratio: float, p: float) -> np.ndarray:
    """Smallest k with alpha_k >= the next loss, after a descending sort."""
    n, q = len(errors), p / (p - 1)
    gamma, m = n ** (-1 / q), ratio * n
    tau = gamma * m ** (-1 / p)
    order = np.argsort(-errors, kind="stable")
    top = errors[order].astype(np.float64)
    for k in range(n + 1):
        rest = top[k:]
        if len(rest) == 0 or m - k <= 0:
            alpha = 0.0
            break
        alpha = ((rest**q).sum() / (m - k)) ** (1 / q)
        if alpha >= rest[0]:
            break
    weight = np.zeros(n)
    weight[order[:k]] = tau
    for i in order[k:]:
        weight[i] = tau * (errors[i] / alpha) ** (q - 1) if alpha > 0 else 0.0
    return weight


@pytest.mark.parametrize(
    ("ratio", "p", "weight", "value", "saturated"),
    [
        (0.3, 1.7, (0.006727, 0.018108, 0.048744, 0.131209, 0.253797, 0.253797, 0.002499, 0), 1.347108, 2),
        (0.5, 2.0, (0.038348, 0.076696, 0.153393, 0.176777, 0.176777, 0.176777, 0.019174, 0), 1.071440, 3),
        (0.25, 1.3, None, 1.749769, 1),
    ],
)
def test_published_vectors(ratio, p, weight, value, saturated):
    errors = torch.tensor(ERRORS)
    got = max_pooling_weight(errors, len(errors), ratio=ratio, p=p)
    if weight is not None:
        assert got.tolist() == pytest.approx(weight, abs=1e-6)
    assert (got * errors).sum().item() == pytest.approx(value, abs=2e-6)
    assert (got == got.max()).sum() == saturated
    q = p / (p - 1)
    assert got.max().item() == pytest.approx(8 ** (-1 / q) * (8 * ratio) ** (-1 / p), rel=1e-5)
    assert got.pow(p).sum().pow(1 / p).item() <= 8 ** (-1 / q) * (1 + 1e-5)


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_loop(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 400))
    errors = rng.exponential(size=n).astype(np.float32) ** rng.choice([0.3, 1, 4])
    if seed % 3 == 0:
        errors = rng.choice(np.array([0, 0.5, 1, 3], np.float32), n)
    errors *= rng.choice(np.array([1e-6, 1, 1e4], np.float32))
    ratio, p = float(rng.choice([0.05, 0.3, 0.7, 1.0])), float(rng.choice([1.02, 1.1, 1.3, 1.7, 3.0, 20.0]))
    padded = torch.from_numpy(np.concatenate([errors, np.zeros(7, np.float32)]))  # void pixels
    got = max_pooling_weight(padded, n, ratio=ratio, p=p).double().numpy()
    want = naive_weight(errors.astype(np.float64), ratio, p)
    assert (got[n:] == 0).all()
    np.testing.assert_allclose(got[:n], want, rtol=2e-4, atol=1e-6 * want.max())
    np.testing.assert_allclose(got[:n] @ errors, want @ errors, rtol=2e-5)


def pooled(errors: torch.Tensor, ratio: float, p: float) -> float:
    return (max_pooling_weight(errors, len(errors), ratio=ratio, p=p) * errors).sum().item()


def test_limits():
    errors = torch.rand(200, generator=torch.Generator().manual_seed(0))
    assert pooled(errors, 0.25, 1.01) == pytest.approx(errors.sort().values[-50:].mean().item(), rel=2e-2)
    assert pooled(errors, 0.25, 1e5) == pytest.approx(errors.mean().item(), rel=1e-3)
    assert pooled(torch.full((50,), 0.3), 0.3, 1.7) == pytest.approx(0.3, rel=1e-6)
    assert pooled(torch.zeros(50), 0.3, 1.7) == 0
    assert pooled(errors, 0.3, 1.7) >= errors.mean().item()


@pytest.mark.parametrize("scope", ["batch", "image"])
def test_scope_pools_images_together_or_apart(scope):
    g = torch.Generator().manual_seed(0)
    logits, label = torch.randn(3, 4, 5, 6, generator=g), torch.randint(0, 4, (3, 5, 6), generator=g)
    label[0, :4], label[2] = 255, 255  # very unequal numbers of valid pixels
    value = LossMaxPooling(ignore_index=255, ratio=0.3, p=1.7, scope=scope)(logits, label)
    errors = torch.nn.functional.cross_entropy(logits, label, ignore_index=255, reduction="none").numpy()
    valid = label.numpy() != 255
    groups = [errors[valid]] if scope == "batch" else [errors[0][valid[0]], errors[1][valid[1]]]
    want = np.mean([naive_weight(e.astype(np.float64), 0.3, 1.7) @ e for e in groups])
    assert value.item() == pytest.approx(want, rel=1e-5)
    assert value > CrossEntropy(ignore_index=255, normalizer="valid")(logits, label) or scope == "image"


def test_gradient_is_the_weight():
    errors = torch.tensor(ERRORS, dtype=torch.float64)
    # A perturbation of the losses moves the maximum by w: the envelope theorem, by central differences.
    for i in range(7):
        step = torch.zeros_like(errors)
        step[i] = 1e-3
        slope = (pooled(errors + step, 0.3, 1.7) - pooled(errors - step, 0.3, 1.7)) / 2e-3
        want = naive_weight(np.array(ERRORS), 0.3, 1.7)[i]
        assert slope == pytest.approx(want, rel=1e-2, abs=1e-4)
