"""Errors, the losses of the two branches, fusion and acceptance: loops from the equations, exact zeros, ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hardpix.ops.errors import (
    Errors,
    accept,
    error_prediction_loss,
    fuse_probabilities,
    max_probability,
    selected_loss,
    semantic_errors,
)
from hardpix.types import ConfigError

VOID = 255
RHO = 0.6
PAPER = {"w1": 1.0, "w2": 1.5, "w3": "share", "w3_min": 0.0}


def batch(seed=0, size=(4, 5, 6), classes=3):
    """Logits, labels with void and error logits; image 1 is void alone."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size[0], classes, *size[1:], generator=g)
    label = torch.randint(0, classes, size, generator=g)
    label[torch.rand(size, generator=g) < 0.25] = VOID
    label[1] = VOID
    return logits, label, 3 * torch.randn(size, generator=g)


def softmax(logits):
    z = np.exp(logits - logits.max())
    return z / z.sum()


def pixels(label):
    return [i for i in np.ndindex(*label.shape) if label[i] != VOID]


def naive_errors(logits, label, rho):
    logits, label = logits.double().numpy(), label.numpy()
    error, hard = np.zeros(label.shape, bool), np.zeros(label.shape, bool)
    for b, y, x in pixels(label):
        p = softmax(logits[b, :, y, x])
        error[b, y, x] = p.argmax() != label[b, y, x]
        hard[b, y, x] = error[b, y, x] and p.max() > rho
    return error, hard


def naive_prediction_loss(x, errors, w1, w2, w3, w3_min):
    valid, error, hard = (m.numpy() for m in errors)
    losses = []
    for b in range(len(x)):
        n, wrong = valid[b].sum(), error[b].sum()
        if n == 0:
            continue
        if w3 == "share":
            weight = wrong / n
        elif w3 == "ratio":
            weight = wrong / (n - wrong) if n > wrong else 0
        else:
            weight = w3
        weight, total = max(weight, w3_min), 0.0
        for place in np.argwhere(valid[b]):
            i = (b, *place)
            p = 1 / (1 + math.exp(-float(x[i])))
            if hard[i]:
                total += w2 * math.log(p)
            elif error[i]:
                total += w1 * math.log(p)
            else:
                total += weight * math.log(1 - p)
        losses.append(-total / n)
    return np.mean(losses) if losses else 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_errors_equal_the_loop(dtype):
    logits, label, _ = batch()
    logits = logits.to(dtype)
    found = semantic_errors(logits.requires_grad_(), label, VOID, RHO)
    error, hard = naive_errors(logits.detach(), label, RHO)
    np.testing.assert_array_equal(found.valid.numpy(), label.numpy() != VOID)
    np.testing.assert_array_equal(found.error.numpy(), error)
    np.testing.assert_array_equal(found.hard.numpy(), hard)
    assert {m.dtype for m in found} == {torch.bool}
    assert 0 < hard.sum() < error.sum()


def test_a_tie_predicts_the_first_class():
    logits = torch.zeros(1, 3, 1, 3)
    label = torch.tensor([[[0, 1, 2]]])
    assert semantic_errors(logits, label, VOID, 0.9).error.tolist() == [[[False, True, True]]]
    g = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 3, (2, 5, 40, 50), generator=g).float()  # every second pixel ties
    label = coarse.argmax(1)
    assert not semantic_errors(coarse, label, VOID, 0.9).error.any()
    assert semantic_errors(coarse, (label + 1) % 5, VOID, 0.9).error.all()


def test_a_probability_of_exactly_rho_is_easy_and_is_accepted():
    logits = torch.zeros(1, 2, 1, 3)  # probabilities 0.5, and a hair more
    logits[0, 0, 0, 1] = 1e-4
    label = torch.tensor([[[1, 1, VOID]]])
    assert max_probability(logits)[0, 0, 0] == 0.5
    found = semantic_errors(logits, label, VOID, 0.5)
    assert found.error.tolist() == [[[True, True, False]]]
    assert found.hard.tolist() == [[[False, True, False]]]
    undecided = torch.tensor([[[True, True, False]]])
    assert accept(logits, undecided, 0.5).tolist() == [[[True, True, False]]]
    assert accept(logits, undecided, 0.50001).tolist() == [[[False, True, False]]]


def test_a_thousand_pixels_by_hand():
    """1000 valid pixels, 40 errors of which 10 are hard, P = 1/2 everywhere."""
    valid = torch.ones(1, 25, 48, dtype=torch.bool)
    valid.view(-1)[1000:] = False
    error, hard = torch.zeros_like(valid), torch.zeros_like(valid)
    error.view(-1)[:40] = True
    hard.view(-1)[:10] = True
    errors, x = Errors(valid, error, hard), torch.zeros(1, 1, 25, 48)
    assert error_prediction_loss(x, errors, **PAPER).item() == pytest.approx(0.057808, abs=1e-6)
    fixed = error_prediction_loss(x, errors, **PAPER | {"w3": 0.04}).item()
    assert fixed == pytest.approx(0.057808, abs=1e-6)
    ratio = error_prediction_loss(x, errors, **PAPER | {"w3": "ratio"}).item()
    assert ratio == pytest.approx(math.log(2) * (45 + 40) / 1000, abs=1e-6)


@pytest.mark.parametrize("w3", ["share", "ratio", 0.04, 0, 2])
@pytest.mark.parametrize("w3_min", [0.0, 0.5])
@pytest.mark.parametrize("channel", [False, True])
def test_the_error_loss_equals_the_loop(w3, w3_min, channel):
    logits, label, x = batch(1)
    errors = semantic_errors(logits, label, VOID, RHO)
    given = {"w1": 0.7, "w2": 1.9, "w3": w3, "w3_min": w3_min}
    loss = error_prediction_loss(x[:, None] if channel else x, errors, **given)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(naive_prediction_loss(x, errors, **given), rel=1e-5)


def test_each_image_has_its_own_share_and_weighs_the_same():
    logits, label, x = batch(2)
    errors = semantic_errors(logits, label, VOID, RHO)
    each = [
        error_prediction_loss(x[b : b + 1], Errors(*(m[b : b + 1] for m in errors)), **PAPER)
        for b in range(4)
        if errors.valid[b].any()
    ]
    assert len(each) == 3
    assert error_prediction_loss(x, errors, **PAPER).item() == pytest.approx(torch.stack(each).mean().item())


def perfect(size=(2, 4, 5)):
    valid = torch.ones(size, dtype=torch.bool)
    valid[:, 0] = False
    return Errors(valid, torch.zeros_like(valid), torch.zeros_like(valid))


def test_an_image_without_error_costs_nothing_unless_w3_has_a_floor():
    errors = perfect()
    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for w3 in ("share", "ratio"):
        x.grad = None
        loss = error_prediction_loss(x, errors, **PAPER | {"w3": w3})
        loss.backward()
        assert loss.item() == 0
        assert (x.grad == 0).all()
    x.grad = None
    loss = error_prediction_loss(x, errors, **PAPER | {"w3_min": 0.01})
    loss.backward()
    want = 0.01 * torch.nn.functional.softplus(x.detach())[errors.valid].mean()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert (x.grad[errors.valid] > 0).all()
    assert (x.grad[~errors.valid] == 0).all()


def test_an_image_of_errors_alone():
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    errors, x = Errors(valid, valid, torch.tensor([[[True, False], [False, False]]])), torch.zeros(1, 2, 2)
    for w3 in ("share", "ratio", 0.04):
        loss = error_prediction_loss(x, errors, **PAPER | {"w3": w3})
        assert loss.item() == pytest.approx(math.log(2) * 4.5 / 4)


def test_gradients_pull_errors_up_and_the_rest_down_and_leave_void_alone():
    logits, label, x = batch(3)
    errors = semantic_errors(logits.requires_grad_(), label, VOID, RHO)
    x.requires_grad_()
    error_prediction_loss(x, errors, **PAPER).backward()
    assert logits.grad is None
    assert (x.grad[errors.error] < 0).all()
    assert (x.grad[errors.valid & ~errors.error] > 0).all()
    assert (x.grad[~errors.valid] == 0).all()


def test_void_alone_costs_zero_with_a_graph():
    valid = torch.zeros(2, 3, 3, dtype=torch.bool)
    x = torch.randn(2, 1, 3, 3, requires_grad=True)
    loss = error_prediction_loss(x, Errors(valid, valid, valid), **PAPER | {"w3_min": 0.3})
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all()


def test_sure_logits_neither_overflow_nor_spread():
    """Probabilities that float32 rounds to 0 and 1; infinite logits on void and where they are right."""
    valid = torch.tensor([[[True, True, True, False, False]]])
    error = torch.tensor([[[True, False, True, False, False]]])
    x = torch.tensor([[[-200.0, 300.0, torch.inf, torch.inf, -torch.inf]]], requires_grad=True)
    loss = error_prediction_loss(x, Errors(valid, error, torch.zeros_like(valid)), **PAPER | {"w3": 1.0})
    loss.backward()
    assert loss.item() == pytest.approx(500 / 3)
    assert x.grad[0, 0].tolist() == pytest.approx([-1 / 3, 1 / 3, 0, 0, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    """Sums of 300 x 300 pixels leave float16's range; 1 / 90000 is below its normal numbers."""
    g = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(1, 1, 300, 300, generator=g) + 8).to(dtype)
    valid = torch.ones(1, 300, 300, dtype=torch.bool)
    error = torch.rand(1, 300, 300, generator=g) < 0.1
    errors = Errors(valid, error, error & (torch.rand(1, 300, 300, generator=g) < 0.5))
    with torch.autocast("cpu", dtype=dtype):
        loss = error_prediction_loss(x, errors, **PAPER)
    assert loss.dtype == torch.float32
    same = error_prediction_loss(x.float(), errors, **PAPER)
    assert loss.item() == pytest.approx(same.item(), rel=1e-6)
    logits = 4 * torch.randn(1, 3, 300, 300, generator=g).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        loss = selected_loss(logits, error.long(), valid, VOID)
        sure = accept(logits, valid, 0.95)
    assert loss.dtype == torch.float32
    assert loss.item() == selected_loss(logits.float(), error.long(), valid, VOID).item()
    assert torch.equal(sure, accept(logits.float(), valid, 0.95))


def test_an_unknown_w3_is_named():
    with pytest.raises(ConfigError, match="w3 is 'mean', but must be 'share', 'ratio' or a number"):
        error_prediction_loss(torch.zeros(2, 4, 5), perfect(), **PAPER | {"w3": "mean"})


def test_the_selected_loss_equals_the_loop():
    logits, label, x = batch(4)
    selected = x > 0.5
    terms = [
        -math.log(softmax(logits[b, :, r, c].double().numpy())[label[b, r, c]])
        for b, r, c in pixels(label.numpy())
        if selected[b, r, c]
    ]
    assert len(terms) < selected.sum()  # some of the selection is void
    before = label.clone()
    loss = selected_loss(logits.requires_grad_(), label, selected, VOID)
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)
    loss.backward()
    counted = selected & (label != VOID)
    assert (logits.grad.movedim(1, -1)[~counted] == 0).all()
    assert (logits.grad.movedim(1, -1)[counted] != 0).all()
    assert torch.equal(label, before)


@pytest.mark.parametrize("case", ["nothing selected", "void selected", "all void"])
def test_an_empty_selection_costs_zero_with_a_graph(case):
    logits, label, _ = batch(5)
    label = torch.full_like(label, VOID) if case == "all void" else label
    selected = {"nothing selected": torch.zeros_like(label, dtype=torch.bool), "void selected": label == VOID}
    loss = selected_loss(logits.requires_grad_(), label, selected.get(case, label == VOID), VOID)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_one_selected_pixel_is_divided_by_one():
    logits, label = torch.zeros(2, 4, 3, 3), torch.zeros(2, 3, 3, dtype=torch.long)
    selected = torch.zeros(2, 3, 3, dtype=torch.bool)
    selected[1, 2, 0] = True
    assert selected_loss(logits, label, selected, VOID).item() == pytest.approx(math.log(4))


def test_fusion_takes_each_pixel_from_one_branch():
    g = torch.Generator().manual_seed(6)
    semantic, detail = (torch.randn(2, 3, 4, 5, generator=g).softmax(1) for _ in range(2))
    p = torch.rand(2, 4, 5, generator=g)
    fused = fuse_probabilities(semantic, detail, p, 0.7)
    for b, y, x in np.ndindex(2, 4, 5):
        source = detail if p[b, y, x] > 0.7 else semantic
        assert torch.equal(fused[b, :, y, x], source[b, :, y, x])
    e = (p > 0.7).float()[:, None]
    assert torch.equal(fused, e * detail + (1 - e) * semantic)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_thresholds_are_strict_and_float32(dtype):
    p = torch.tensor([[[0.0, 1e-7, 0.7, 1.0]]]).to(dtype)
    p[p.float() == 0.7] = torch.tensor(0.7, dtype=dtype)
    semantic, detail = torch.zeros(1, 2, 1, 4), torch.ones(1, 2, 1, 4)

    def chosen(t):
        return fuse_probabilities(semantic, detail, p, t)[0, 0, 0].tolist()

    assert chosen(0)[0] == 0
    assert chosen(0)[2:] == [1, 1]
    assert chosen(1) == [0, 0, 0, 0]
    # As float32 sees it: 0.7 in bfloat16 is 0.69921875, in float16 0.7001953125.
    assert chosen(0.7) == [0, 0, float(dtype == torch.float16), 1]


def test_a_cascade_accepts_what_is_undecided_and_sure():
    logits, _, x = batch(7)
    undecided = x > 0
    taken = accept(logits.requires_grad_(), undecided, 0.8)
    assert not taken.requires_grad
    for b, r, c in np.ndindex(*taken.shape):
        p = softmax(logits.detach()[b, :, r, c].double().numpy()).max()
        assert taken[b, r, c] == (undecided[b, r, c] and p >= 0.8)
    assert 0 < taken.sum() < undecided.sum()
