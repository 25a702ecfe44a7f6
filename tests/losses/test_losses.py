"""What every loss owes: scalar, exact zeros on void, float32 inside autocast, and its own equation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hardpix.losses import OHEM, BalancedCrossEntropy, CrossEntropy, Focal, LossMaxPooling, LossRankMining
from hardpix.losses.pixelwise import class_weights
from hardpix.types import ClassCounts, ConfigError

VOID, C = 255, 5
COUNTS = ClassCounts(torch.tensor([100, 50, 25, 0, 5]), torch.tensor([200, 100, 100, 0, 100]))


def balanced(**changes):
    given = {
        "num_classes": C,
        "class_counts": lambda: COUNTS,
        "normalizer": "valid",
        "weighting": "median",
        "weights": None,
        "weight_normalized": False,
    }
    return BalancedCrossEntropy(ignore_index=VOID, **(given | changes))


LOSSES = {
    "ce": CrossEntropy(ignore_index=VOID, normalizer="valid"),
    "ce_all": CrossEntropy(ignore_index=VOID, normalizer="all"),
    "median": balanced(),
    "weight_normalized": balanced(weight_normalized=True, weighting="enet"),
    "fixed": balanced(weighting="fixed", weights=[0.5, 1, 2, 3, 4], normalizer="all"),
    "ohem": OHEM(ignore_index=VOID, thresh=0.7, min_kept=3, reduction="kept"),
    "ohem_all": OHEM(ignore_index=VOID, thresh=0.05, min_kept=30, reduction="all"),
    "ohem_top": OHEM(ignore_index=VOID, thresh=None, min_kept=10, reduction="valid"),
    "focal": Focal(ignore_index=VOID, gamma=2.0, normalizer="valid"),
    "focal_root": Focal(ignore_index=VOID, gamma=0.5, normalizer="all"),
    "lmp": LossMaxPooling(ignore_index=VOID, ratio=0.3, p=1.7, scope="batch"),
    "lmp_image": LossMaxPooling(ignore_index=VOID, ratio=1.0, p=1.3, scope="image"),
    "rank": LossRankMining(ignore_index=VOID, fraction=0.2),
}


@pytest.fixture(params=LOSSES, ids=str)
def loss(request):
    return LOSSES[request.param]


def make(seed: int = 0, void: float = 0.3):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, C, 7, 9, generator=g)
    label = torch.randint(0, C, (3, 7, 9), generator=g)
    label[torch.rand(label.shape, generator=g) < void] = VOID
    label[1] = VOID  # an image without a valid pixel
    return logits, label


def naive_error(logits: torch.Tensor, label: torch.Tensor) -> np.ndarray:
    """Cross-entropy of each pixel from the definition, in float64; NaN on void."""
    z, y = logits.double().numpy(), label.numpy()
    out = np.full(y.shape, np.nan)
    for b, i, j in np.argwhere(y != VOID):
        v = z[b, :, i, j]
        out[b, i, j] = np.log(np.exp(v - v.max()).sum()) + v.max() - v[y[b, i, j]]
    return out


def test_void_has_no_gradient_and_no_say(loss):
    logits, label = make()
    logits.requires_grad_()
    value = loss(logits, label)
    value.backward()
    void = (label == VOID)[:, None].expand_as(logits)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert (logits.grad[void] == 0).all()
    assert logits.grad[~void].abs().sum() > 0
    other = torch.where(void, torch.randn_like(logits), logits)
    assert loss(other, label) == value


def test_only_void_costs_exactly_zero(loss):
    logits = torch.randn(2, C, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((2, 4, 4), VOID))
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_computed_in_float32(loss, dtype):
    logits, label = make()
    half = (20 * logits).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, label)
    assert value.dtype == torch.float32
    assert value == loss(half.float(), label)


def test_perfect_prediction_is_finite(loss):
    _, label = make()
    logits = (200 * F.one_hot(label.clamp(max=C - 1), C)).movedim(-1, 1).float().requires_grad_()
    value = loss(logits, label)
    value.backward()
    assert value == 0
    assert logits.grad.isfinite().all()


def test_a_diverged_network_shows(loss):
    logits, label = make()
    assert loss(logits * torch.nan, label).isnan()


def test_cross_entropy_denominators():
    logits, label = make()
    error = naive_error(logits, label)
    assert LOSSES["ce"](logits, label).item() == pytest.approx(np.nanmean(error), rel=1e-6)
    assert LOSSES["ce_all"](logits, label).item() == pytest.approx(np.nansum(error) / error.size, rel=1e-6)


def test_focal_is_the_modulated_cross_entropy():
    logits, label = make()
    error = naive_error(logits, label)
    want = (1 - np.exp(-error)) ** 2 * error
    assert LOSSES["focal"](logits, label).item() == pytest.approx(np.nanmean(want), rel=1e-5)
    plain = Focal(ignore_index=VOID, gamma=0.0, normalizer="valid")
    assert plain(logits, label) == LOSSES["ce"](logits, label)


def test_focal_gradient_flows_through_the_factor():
    logits = torch.tensor([0.3, -0.2]).view(1, 2, 1, 1).requires_grad_()
    LOSSES["focal"](logits, torch.zeros(1, 1, 1, dtype=torch.long)).backward()
    p = math.exp(0.3) / (math.exp(0.3) + math.exp(-0.2))
    # d/dz_0 of (1-p)^2 (-log p), with dp/dz_0 = p (1-p)
    want = (2 * (1 - p) * math.log(p) - (1 - p) ** 2 / p) * p * (1 - p)
    assert logits.grad[0, 0].item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("normalizer", ["valid", "all"])
def test_the_gradient_of_focal_is_that_of_its_definition(gamma, normalizer):
    """In double precision, of every pixel: a factor without gradient would give another one."""
    logits, label = make()
    z, valid = logits.double().requires_grad_(), label != VOID
    p = z.softmax(1).gather(1, label.clamp(max=C - 1)[:, None])[:, 0]
    factor = (1 - p) ** gamma
    count = int(valid.sum()) if normalizer == "valid" else label.numel()
    (want,) = torch.autograd.grad((factor * -p.log())[valid].sum() / count, z, retain_graph=True)
    (without,) = torch.autograd.grad((factor.detach() * -p.log())[valid].sum() / count, z)
    logits.requires_grad_()
    loss = Focal(ignore_index=VOID, gamma=gamma, normalizer=normalizer)
    (found,) = torch.autograd.grad(loss(logits, label), logits)
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-7)
    assert (want - without).abs().max() > 100 * (want - found).abs().max()


def test_balanced_numerator_only_and_weighted_mean():
    logits, label = make()
    error, w = naive_error(logits, label), np.array([0.5, 1, 2, 3, 4])
    pixel_weight = np.where(label.numpy() == VOID, np.nan, w[np.minimum(label.numpy(), C - 1)])
    total = np.nansum(error * pixel_weight)
    fixed = {"weighting": "fixed", "weights": w.tolist()}
    assert balanced(**fixed)(logits, label).item() == pytest.approx(
        total / np.isfinite(error).sum(), rel=1e-6
    )
    assert LOSSES["fixed"](logits, label).item() == pytest.approx(total / error.size, rel=1e-6)
    normalized = balanced(**fixed, weight_normalized=True)(logits, label)
    assert normalized.item() == pytest.approx(total / np.nansum(pixel_weight), rel=1e-6)
    want = F.cross_entropy(logits, label, torch.tensor(w).float(), ignore_index=VOID)
    assert normalized.item() == pytest.approx(want.item(), rel=1e-6)


def test_class_weights_of_hand_counts():
    # 180 pixels; f = 100/180, 50/180, 25/180, -, 5/180; 1/f = 1.8, 3.6, 7.2, 36, their mean 12.15
    inverse = class_weights(COUNTS, "inverse")
    assert inverse.tolist() == pytest.approx([1.8 / 12.15, 3.6 / 12.15, 7.2 / 12.15, 0, 36 / 12.15])
    # f = 0.5, 0.5, 0.25, -, 0.05; median 0.375
    assert class_weights(COUNTS, "median").tolist() == pytest.approx([0.75, 0.75, 1.5, 0, 7.5])
    enet = class_weights(COUNTS, "enet")
    assert enet[0].item() == pytest.approx(1 / math.log(1.02 + 100 / 180))
    assert enet[3] == 0


def test_class_counts_are_read_once_and_only_when_needed():
    calls = []

    def counts():
        calls.append(1)
        return COUNTS

    logits, label = make()
    balanced(class_counts=counts, weighting="fixed", weights=[1.0] * C)(logits, label)
    computed = balanced(class_counts=counts)
    assert not calls
    assert computed(logits, label) == computed(logits, label)
    assert len(calls) == 1
    assert not computed.state_dict()


def test_loss_rank_mining_of_hand_values():
    """Two images, k = ceil(0.2 n) of each: 3 of 11 and 1 of 1, then the mean over images."""
    logits, label = make(1, 0.0)
    label[2] = VOID
    label[0].view(-1)[11:] = VOID
    label[2, 3, 3] = 1
    error = naive_error(logits, label)
    want = (np.sort(error[0][np.isfinite(error[0])])[-3:].mean() + error[2, 3, 3]) / 2
    assert LOSSES["rank"](logits, label).item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(
    ("pixels", "fraction", "count"), [(30, 0.1, 3), (5, 0.2, 1), (6, 0.2, 2), (1, 0.2, 1)]
)
def test_loss_rank_mining_count(pixels, fraction, count):
    logits = torch.randn(1, 3, 1, pixels, requires_grad=True)
    LossRankMining(ignore_index=VOID, fraction=fraction)(
        logits, torch.zeros(1, 1, pixels, dtype=torch.long)
    ).backward()
    assert (logits.grad.abs().sum(1) > 0).sum() == count


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: CrossEntropy(ignore_index=VOID, normalizer="mean"), "normalizer=mean: must"),
        (lambda: balanced(weighting="fixed"), "loss.weights must list"),
        (lambda: balanced(weights=[1.0]), "loss.weights must list"),
        (lambda: balanced(weighting="fixed", weights=[1.0, -1.0]), "weights=\\[1.0, -1.0\\]: must"),
        (lambda: balanced(normalizer="all", weight_normalized=True), "loss.normalizer must be valid"),
        (lambda: OHEM(ignore_index=VOID, thresh=0.0, min_kept=1, reduction="all"), "thresh=0.0: must"),
        (lambda: OHEM(ignore_index=VOID, thresh=0.7, min_kept=-1, reduction="all"), "min_kept=-1: must"),
        (lambda: OHEM(ignore_index=VOID, thresh=0.7, min_kept=1, reduction="sum"), "reduction=sum: must"),
        (lambda: Focal(ignore_index=VOID, gamma=-1.0, normalizer="all"), "gamma=-1.0: must"),
        (lambda: LossMaxPooling(ignore_index=VOID, ratio=0.3, p=1.0, scope="batch"), "p=1.0: must"),
        (lambda: LossMaxPooling(ignore_index=VOID, ratio=0.0, p=1.7, scope="batch"), "ratio=0.0: must"),
        (lambda: LossMaxPooling(ignore_index=VOID, ratio=0.3, p=1.7, scope="all"), "scope=all: must"),
        (lambda: LossRankMining(ignore_index=VOID, fraction=1.5), "fraction=1.5: must"),
    ],
)
def test_values_out_of_range_are_refused_by_key(build, sentence):
    with pytest.raises(ConfigError, match=sentence) as raised:
        build()
    assert "must" in str(raised.value)


def test_a_list_of_weights_of_another_data_set_is_refused():
    logits, label = make()
    with pytest.raises(ConfigError, match="has 2 numbers, but must have one per class, 5"):
        balanced(weighting="fixed", weights=[1.0, 2.0])(logits, label)


@pytest.mark.parametrize(("pixels", "fraction"), [(1, 1e-9), (3, 1e-8)])
def test_loss_rank_mining_keeps_a_pixel_however_small_the_fraction(pixels, fraction):
    logits, label = torch.randn(1, 3, 1, pixels), torch.zeros(1, 1, pixels, dtype=torch.long)
    value = LossRankMining(ignore_index=VOID, fraction=fraction)(logits, label)
    assert value.item() == pytest.approx(naive_error(logits, label).max(), rel=1e-6)


def test_loss_rank_mining_rounds_before_it_counts():
    """0.1 * 30 is 3.0000000000000004, yet 3 pixels; 0.07 * 100 is 7.000000000000001, yet 7."""
    mining = {f: LossRankMining(ignore_index=VOID, fraction=f) for f in (0.1, 0.07)}
    for pixels, fraction, count in [(30, 0.1, 3), (31, 0.1, 4), (100, 0.07, 7), (101, 0.07, 8)]:
        logits, label = 3 * torch.randn(1, C, 1, pixels), torch.zeros(1, 1, pixels, dtype=torch.long)
        want = np.sort(naive_error(logits, label).ravel())[-count:].mean()
        assert mining[fraction](logits, label).item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(("right", "wrong"), [(200.0, 0.0), (200.0, -200.0), (0.0, 0.0)])
def test_a_focal_root_is_finite_at_the_ends_of_its_range(right, wrong):
    """Below gamma 1 the factor's own gradient is infinite at p = 1; at p = 0 nothing may overflow either."""
    logits = torch.full((1, 3, 1, 4), wrong)
    logits[:, 0, :, :2] = right  # two sure and right,
    logits[:, 1, :, 2:] = right  # two sure and wrong
    logits.requires_grad_()
    label = torch.tensor([[[0, VOID, 0, VOID]]])
    value = Focal(ignore_index=VOID, gamma=0.5, normalizer="valid")(logits, label)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    assert not logits.grad[..., 0].any() or right == wrong
    assert not logits.grad[..., [1, 3]].any()
