"""Scores of predicted errors and of fusion against loops over thresholds and pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hardpix.metrics import ErrorMetrics, FusionMetrics, SegmentationMetrics, scores
from hardpix.metrics.errors import GRID, auroc, average_precision
from hardpix.ops.errors import fuse_probabilities, semantic_errors
from hardpix.types import ConfigError

VOID, C, RHO = 255, 4, 0.7
THRESHOLDS = [0, 0.1, 0.5, 0.7, 0.95, 1]


def batch(seed, size=(2, 9, 11), skill=2.0):
    """Logits of two branches, error probabilities that lie on thresholds now and then, and labels."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, C, size, generator=g)
    one_hot = torch.nn.functional.one_hot(label, C).movedim(-1, 1)
    semantic, detail = (
        skill * one_hot + 1.5 * torch.randn(size[0], C, *size[1:], generator=g) for _ in range(2)
    )
    wrong = (semantic.argmax(1) != label).float()
    probability = torch.sigmoid(3 * torch.randn(size, generator=g) + 2 * wrong - 1)
    on = torch.rand(size, generator=g) < 0.3
    probability[on] = torch.tensor(THRESHOLDS)[torch.randint(0, 6, (int(on.sum()),), generator=g)]
    label[torch.rand(size, generator=g) < 0.2] = VOID
    return semantic, detail, probability, label


def naive_error_scores(batches, t):
    """Pixel by pixel."""
    table = dict.fromkeys(("both", "either", "hard", "found", "errors", "valid"), 0)
    for semantic, _, probability, label in batches:
        prob = semantic.double().softmax(1)
        for b, y, x in np.ndindex(*label.shape):
            truth = int(label[b, y, x])
            if truth == VOID:
                continue
            p = prob[b, :, y, x].numpy()
            error = p.argmax() != truth
            hard = error and p.max() > RHO
            said = bool(probability[b, y, x] > t)
            table["both"] += error and said
            table["either"] += error or said
            table["hard"] += hard
            table["found"] += hard and said
            table["errors"] += error
            table["valid"] += 1
    return table


@pytest.fixture(scope="module")
def batches():
    return [batch(seed) for seed in range(3)]


def errors_of(batches, thresholds=THRESHOLDS):
    metric = ErrorMetrics(thresholds, RHO, VOID)
    for semantic, _, probability, label in batches:
        metric.update(probability, semantic, label)
    return metric


def fusion_of(batches, thresholds=THRESHOLDS):
    metric = FusionMetrics(C, VOID, thresholds)
    for semantic, detail, probability, label in batches:
        metric.update(semantic, detail, probability, label)
    return metric


def test_error_scores_equal_the_loop(batches):
    got = errors_of(batches).compute()
    for t in THRESHOLDS:
        want = naive_error_scores(batches, t)
        assert got[f"error_iou@{t:g}"].item() == want["both"] / want["either"]
        assert got[f"hard_recall@{t:g}"].item() == want["found"] / want["hard"]
    assert got["hard_error_ratio"].item() == want["hard"] / want["errors"]
    assert got["error_rate"].item() == want["errors"] / want["valid"]
    assert 0.05 < got["error_iou@0.5"] < 0.95
    assert got["error_iou@1"] == got["hard_recall@1"] == 0  # nothing exceeds 1
    assert want["hard"] < want["errors"]


def ranked(batches):
    """Error probabilities of the valid pixels, and which of them are errors."""
    probabilities, truths = [], []
    for semantic, _, probability, label in batches:
        valid = label != VOID
        probabilities.append(probability[valid])
        truths.append((semantic.argmax(1) != label)[valid])
    return torch.cat(probabilities), torch.cat(truths)


def test_areas_equal_those_of_the_sorted_pixels(batches):
    """Of all pairs, and of the precision at every distinct probability: the histogram is that fine."""
    got = errors_of(batches).compute()
    score, error = (a.numpy() for a in ranked(batches))
    above = score[error][:, None] - score[~error][None]
    assert got["error_auroc"].item() == pytest.approx(((above > 0) + (above == 0) / 2).mean(), abs=2e-3)
    area, before = 0.0, 0
    for s in np.unique(score)[::-1]:
        found = (error & (score >= s)).sum()
        area += (found - before) / error.sum() * found / (score >= s).sum()
        before = found
    assert got["error_ap"].item() == pytest.approx(area, abs=5e-3)
    assert 0.6 < got["error_auroc"] < 0.95


def test_areas_by_hand():
    negative, positive = torch.tensor([3, 1, 0, 0]), torch.tensor([0, 1, 0, 2])
    assert auroc(negative, positive).item() == pytest.approx((3 + 0.5 + 2 * 4) / 12)
    assert average_precision(negative, positive).item() == pytest.approx(2 / 3 * 1 + 1 / 3 * 3 / 4)
    none = torch.zeros(4, dtype=torch.int64)
    assert auroc(none, positive).isnan()
    assert auroc(negative, none).isnan()
    assert average_precision(negative, none).isnan()
    assert average_precision(none, positive).item() == pytest.approx(1)


def test_the_grid_is_fine_at_both_ends():
    assert len(GRID) == 1025
    assert GRID[0] < 2e-7
    assert 1 - GRID[-1] < 2e-7
    assert (GRID.diff() >= 0).all()
    assert GRID[512] == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_as_its_float32_values(batches, dtype):
    half = [(s.to(dtype), d.to(dtype), p.to(dtype), label) for s, d, p, label in batches]
    same = [(s.float(), d.float(), p.float(), label) for s, d, p, label in half]
    assert torch.equal(errors_of(half).counts, errors_of(same).counts)
    assert torch.equal(fusion_of(half).semantic, fusion_of(same).semantic)


def test_without_an_error_what_is_undefined_is_nan():
    label = torch.randint(0, C, (1, 4, 5))
    logits = 9.0 * torch.nn.functional.one_hot(label, C).movedim(-1, 1)
    got = errors_of([(logits, logits, torch.full((1, 4, 5), 0.3), label)], [0.2, 0.5]).compute()
    assert got["error_rate"] == 0
    assert got["error_iou@0.2"] == 0  # false alarms alone
    undefined = {k for k, v in got.items() if v.isnan()}
    assert undefined == {
        "hard_error_ratio", "error_iou@0.5", "hard_recall@0.2", "hard_recall@0.5", "error_auroc", "error_ap",
    }  # fmt: skip


def test_without_a_valid_pixel_everything_is_nan():
    void = torch.full((1, 3, 3), VOID)
    given = [(torch.randn(1, C, 3, 3), torch.randn(1, C, 3, 3), torch.rand(1, 3, 3), void)]
    assert errors_of(given).counts.sum() == 0
    assert all(value.isnan() for value in errors_of(given).compute().values())
    assert all(value.isnan() for value in fusion_of(given).compute().values())


def test_errors_alone():
    label = torch.zeros(1, 2, 2, dtype=torch.long)
    logits = torch.zeros(1, C, 2, 2)
    logits[:, 1] = torch.tensor([[5.0, 5.0], [0.1, 0.1]])  # two hard errors, two easy ones
    got = errors_of([(logits, logits, torch.tensor([[[0.9, 0.2], [0.9, 0.9]]]), label)], [0.5]).compute()
    assert got["error_iou@0.5"] == 0.75
    assert got["hard_recall@0.5"] == 0.5
    assert got["hard_error_ratio"] == 0.5
    assert got["error_rate"] == 1
    assert got["error_auroc"].isnan()


def loop_over_thresholds(batches, t):
    """The confusion matrix of fused probabilities, as inference makes them, and the changes, pixel by pixel."""
    metric, changes, valid = (
        SegmentationMetrics(C, VOID),
        dict.fromkeys(("repaired", "spoiled", "exchanged"), 0),
        0,
    )
    for semantic, detail, probability, label in batches:
        before = semantic.argmax(1)
        after = fuse_probabilities(semantic.softmax(1), detail.softmax(1), probability, t).argmax(1)
        metric.update(after, label)
        for i in np.ndindex(*label.shape):
            if label[i] == VOID:
                continue
            valid += 1
            right = bool(before[i] == label[i]), bool(after[i] == label[i])
            if before[i] != after[i]:
                changes[{(False, True): "repaired", (True, False): "spoiled"}.get(right, "exchanged")] += 1
    return metric.confusion, {k: v / valid for k, v in changes.items()}


def test_fusion_equals_a_loop_over_thresholds(batches):
    metric = fusion_of(batches)
    got = metric.compute()
    assert metric.semantic.shape == metric.detail.shape == (len(THRESHOLDS) + 1, C, C)
    assert metric.semantic.dtype == metric.changes.dtype == torch.int64
    different = set()
    for n, t in enumerate(THRESHOLDS, 1):
        confusion, changes = loop_over_thresholds(batches, t)
        assert torch.equal(metric.semantic[:n].sum(0) + metric.detail[n:].sum(0), confusion)
        assert got[f"fused_miou@{t:g}"].item() == scores(confusion)["miou"].item()
        assert {name: got[f"{name}@{t:g}"].item() for name in changes} == changes
        different.add(got[f"fused_miou@{t:g}"].item())
    assert len(different) > 3
    assert min(got[f"{name}@0.5"] for name in ("repaired", "spoiled", "exchanged")) > 0


def test_the_branches_alone(batches):
    got = fusion_of(batches).compute()
    for place, name in enumerate(("semantic", "detail")):
        metric = SegmentationMetrics(C, VOID)
        for given in batches:
            metric.update(given[place].argmax(1), given[3])
        assert got[f"{name}_miou"] == metric.compute()["miou"]
    assert got["semantic_miou"] != got["detail_miou"]
    assert got["fused_miou@1"] == got["semantic_miou"]  # no probability exceeds 1
    everywhere = [(s, d, p.clamp_min(0.2), label) for s, d, p, label in batches]
    assert fusion_of(everywhere, [0]).compute()["fused_miou@0"] == got["detail_miou"]


def test_scores_do_not_depend_on_the_batches_or_the_processes(batches):
    single = [tuple(x[i : i + 1] for x in given) for given in batches for i in range(2)]
    for make, states in ((errors_of, ("counts",)), (fusion_of, ("semantic", "detail", "changes"))):
        whole, halves = make(batches), (make(single[:2]), make(single[2:]))
        for state in states:
            assert torch.equal(sum(getattr(half, state) for half in halves), getattr(whole, state))
        assert {whole._reductions[state].__name__ for state in states} == {"dim_zero_sum"}
        whole.reset()
        assert all(getattr(whole, state).sum() == 0 for state in states)


def test_the_order_of_thresholds_is_theirs_and_names_are_short(batches):
    names = [k for k in errors_of(batches, [0.9, 0.25, 0.1]).compute() if k.startswith("error_iou")]
    assert names == ["error_iou@0.1", "error_iou@0.25", "error_iou@0.9"]
    backwards = fusion_of(batches, THRESHOLDS[::-1]).compute()
    assert backwards == fusion_of(batches).compute()
    assert set(fusion_of(batches, []).compute()) == {"semantic_miou", "detail_miou"}


@pytest.mark.parametrize("thresholds", [[1.1], [-0.1], [0.5, 0.5], [float("nan")], [0.5, 0.50000001]])
def test_thresholds_out_of_range_are_named(thresholds):
    for make in (lambda: ErrorMetrics(thresholds, RHO, VOID), lambda: FusionMetrics(C, VOID, thresholds)):
        with pytest.raises(ConfigError, match=r"thresholds is .* but must be distinct numbers from 0 to 1"):
            make()


def test_the_prediction_of_a_tie_is_the_first_class():
    g = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 3, (1, C, 30, 30), generator=g).float()
    label = coarse.argmax(1)
    got = fusion_of([(coarse, coarse, torch.rand(1, 30, 30, generator=g), label)]).compute()
    assert got["semantic_miou"] == got["detail_miou"] == got["fused_miou@0.5"] == 1


def test_labels_that_are_no_class_are_left_out_of_the_fusion():
    label = torch.tensor([[[0, C, 254, -1, VOID]]])
    logits = torch.zeros(1, C, 1, 5)
    metric = fusion_of([(logits, logits, torch.zeros(1, 1, 5), label)])
    assert metric.semantic.sum() == metric.detail.sum() == 1


def test_a_class_may_be_the_void():
    label = torch.tensor([[[0, 0, 1, 2]]])
    logits = torch.zeros(1, C, 1, 4)
    probability = torch.zeros(1, 1, 4)
    fusion, errors = FusionMetrics(C, 0, [0.5]), ErrorMetrics([0.5], RHO, 0)
    fusion.update(logits, logits, probability, label)
    errors.update(probability, logits, label)
    assert fusion.semantic.sum() == fusion.detail.sum() == errors.counts.sum() == 2


def test_the_errors_are_those_of_the_training_loss(batches):
    metric = errors_of(batches)
    found = [semantic_errors(given[0], given[3], VOID, RHO) for given in batches]
    assert metric.counts[:, 2].sum() == sum(e.hard.sum() for e in found)
    assert metric.counts[:, 1].sum() == sum((e.error & ~e.hard).sum() for e in found)
    assert metric.counts.sum() == sum(e.valid.sum() for e in found)
