"""Hardness weights: the equations' numbers, invariants and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hardpix.losses import CrossEntropy
from hardpix.ops.hardness import hardness_weight, weighted_loss
from hardpix.ops.pixel import pixel_cross_entropy
from hardpix.types import ConfigError

DEFAULT = {"normalize_over": "image", "void_in_normalizer": False}
RELEASED = {"normalize_over": "batch", "void_in_normalizer": True}
MODES = [DEFAULT, RELEASED, {"normalize_over": "batch", "void_in_normalizer": False}]


def naive(d, error, valid, c, normalize_over, void_in_normalizer):
    """Weights and weighted sum, pixel by pixel, in float64."""
    z = 1 / (1 + np.exp(-d.astype(np.float64))) + c
    counted = np.ones_like(valid) if void_in_normalizer else valid
    groups = range(len(d)) if normalize_over == "image" else [slice(None)]
    h, losses = np.zeros_like(z), []
    for g in groups:
        if counted[g].any():
            h[g] = np.where(counted[g], z[g] / z[g][counted[g]].sum(), 0)
        if valid[g].any() or normalize_over == "batch":
            losses.append((h[g] * error[g]).sum())
    return h, (np.mean(losses) if losses else 0.0)


@pytest.mark.parametrize(
    ("mode", "h", "value", "gradient"),
    [
        (
            DEFAULT,
            (0.333333, 0.544887, 0.121779, 0),
            0.631381,
            (-5.1197e-4, 3.0995e-4, -7.9831e-4, 0),
        ),
        (
            RELEASED,
            (0.228045, 0.372777, 0.083314, 0.315865),
            0.431950,
            (-5.3975e-4, 1.3247e-4, -6.2574e-4, 3.2278e-4),
        ),
    ],
)
def test_four_pixels_by_hand(mode, h, value, gradient):
    d = torch.tensor([0.0, 2, -2, 1]).view(1, 1, 2, 2).requires_grad_()
    error = torch.tensor([1, 0.1, 2, 0]).view(1, 2, 2)
    valid = error > 0
    weight = hardness_weight(d, valid, c=0.1, **mode)
    loss = weighted_loss(weight, error, valid, mode["normalize_over"])
    assert weight.flatten().tolist() == pytest.approx(h, abs=1e-6)
    assert loss.item() == pytest.approx(value, abs=1e-6)
    (-0.01 * loss).backward()
    assert d.grad.flatten().tolist() == pytest.approx(gradient, rel=1e-4, abs=1e-10)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("shape", [(3, 1, 5, 4), (3, 5, 4)])
def test_equals_the_loop(mode, shape):
    g = torch.Generator().manual_seed(0)
    d, error = 3 * torch.randn(shape, generator=g), torch.rand(3, 5, 4, generator=g)
    valid = torch.rand(3, 5, 4, generator=g) < 0.6
    valid[1] = False
    error = error * valid
    weight = hardness_weight(d, valid, c=0.2, **mode)
    loss = weighted_loss(weight, error, valid, mode["normalize_over"])
    h, value = naive(d.view(3, 5, 4).numpy(), error.numpy(), valid.numpy(), 0.2, **mode)
    np.testing.assert_allclose(weight.numpy(), h, rtol=1e-5)
    assert loss.item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_no_valid_pixel_is_zero_not_nan(mode):
    d = torch.randn(2, 1, 3, 3, requires_grad=True)
    valid, error = torch.zeros(2, 3, 3, dtype=torch.bool), torch.zeros(2, 3, 3)
    loss = weighted_loss(hardness_weight(d, valid, c=0.1, **mode), error, valid, mode["normalize_over"])
    loss.backward()
    assert loss == 0
    assert (d.grad == 0).all()


def scene(c: float = 0.1, mode=DEFAULT):
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 6, 5, generator=g).requires_grad_()
    label = torch.randint(0, 4, (2, 6, 5), generator=g)
    label[:, :2] = 255
    d = (2 * torch.randn(2, 1, 6, 5, generator=g)).requires_grad_()
    valid = label != 255
    return logits, d, valid, pixel_cross_entropy(logits, label, 255), label


@pytest.mark.parametrize("mode", MODES[::2], ids=str)
def test_constant_map_is_plain_cross_entropy(mode):
    _, d, valid, error, _ = scene()
    weight = hardness_weight(torch.full_like(d, 1.3), valid, c=0.1, **mode)
    loss = weighted_loss(weight, error, valid, mode["normalize_over"])
    assert loss.item() == pytest.approx(error.sum().item() / valid.sum().item(), rel=1e-6)


def test_each_player_sees_the_other_as_a_constant():
    logits, d, valid, error, _ = scene()
    weight = hardness_weight(d, valid, c=0.1, **DEFAULT)
    segmentation = weighted_loss(weight.detach(), error, valid, "image")
    hardness = -weighted_loss(weight, error.detach(), valid, "image")
    assert hardness == -segmentation
    assert torch.autograd.grad(segmentation, d, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(hardness, logits, retain_graph=True, allow_unused=True)[0] is None
    # d(L_h)/dD_j = -sigmoid'(D_j) / sum Z * (CE_j - L_s), of each image, averaged over two images
    gradient = torch.autograd.grad(hardness, d)[0][:, 0]
    s = torch.sigmoid(d[:, 0])
    total = ((s + 0.1) * valid).sum((1, 2), keepdim=True)
    mean = (weight * error).sum((1, 2), keepdim=True)
    want = -s * (1 - s) / total * (error - mean) * valid / 2
    torch.testing.assert_close(gradient, want)
    assert (gradient[~valid] == 0).all()


def test_constant_error_and_constant_shift():
    _, d, valid, error, _ = scene()
    weight = hardness_weight(d, valid, c=0.1, **DEFAULT)
    flat = weighted_loss(weight, torch.full_like(error, 0.7), valid, "image")
    assert torch.autograd.grad(flat, d, retain_graph=True)[0].abs().max() < 1e-8
    shifted = weighted_loss(weight, (error + 3).detach(), valid, "image")
    plain = weighted_loss(weight, error.detach(), valid, "image")
    a, b = (torch.autograd.grad(x, d, retain_graph=True)[0] for x in (shifted, plain))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("c", "most"), [(0.1, 11), (0.01, 101), (0.5, 3)])
def test_contrast_is_bounded(c, most):
    d = torch.tensor([-60.0, 60.0]).view(1, 1, 1, 2)
    weight = hardness_weight(d, torch.ones(1, 1, 2, dtype=torch.bool), c=c, **DEFAULT)
    assert (weight.max() / weight.min()).item() == pytest.approx(most, rel=1e-5)


@pytest.mark.parametrize("mode", [DEFAULT, RELEASED], ids=str)
def test_float16_under_autocast_keeps_the_sum(mode):
    """769² pixels: the sum is 3.5e5 and a weight 1e-6, both outside float16."""
    d = torch.randn(1, 1, 769, 769, generator=torch.Generator().manual_seed(0)).half()
    valid = torch.ones(1, 769, 769, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.float16):
        weight = hardness_weight(d, valid, c=0.1, **mode)
        loss = weighted_loss(weight, torch.ones(1, 769, 769).half(), valid, mode["normalize_over"])
    assert weight.dtype == loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1, rel=1e-5)


def test_mode_is_spelt():
    with pytest.raises(ConfigError, match="must be 'image' or 'batch'"):
        weighted_loss(torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.ones(1, 1, 1).bool(), "images")


def test_unit_weights_equal_cross_entropy():
    logits, _, valid, error, label = scene()
    weight = valid.float() / valid.sum((1, 2), keepdim=True)
    loss = weighted_loss(weight, error, valid, "image")
    assert loss.item() == pytest.approx(
        CrossEntropy(ignore_index=255, normalizer="valid")(logits, label).item(), rel=1e-6
    )
