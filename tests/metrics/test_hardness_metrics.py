"""Scores by hardness and rankings of errors, against sorting and comparing every pixel."""

import math

import numpy as np
import pytest
import torch

from hardpix.metrics import ErrorRanking, HardnessGroups
from hardpix.metrics.hardness import rank_correlation_of_counts, rank_edges
from hardpix.ops.hardness import rank_correlation

CLASSES = 4


def frames(seed, sizes=((9, 14), (13, 11), (20, 7)), bounded=True):
    """Hardness (NaN on void), prediction and label of frames of different sizes; wrong where it is hard."""
    rng = np.random.default_rng(seed)
    found = []
    for size in sizes:
        hardness = rng.random(size) if bounded else rng.exponential(2, size)
        hardness = hardness.astype(np.float32)
        label = rng.integers(0, CLASSES, size)
        wrong = rng.random(size) < (hardness if bounded else 1 - np.exp(-hardness))
        pred = np.where(wrong, (label + rng.integers(1, CLASSES, size)) % CLASSES, label)
        void = rng.random(size) < 0.2
        label[void], hardness[void] = 255, np.nan
        pred[void] = 0
        found.append((hardness, pred, label))
    return found


def grouped(found, bounded=True, count=8192):
    sample = torch.cat([torch.tensor(f[0]).flatten() for f in found])
    return fed(HardnessGroups(CLASSES, rank_edges(sample, bounded, count)), found)


def fed(metric, found):
    for frame in found:
        metric.update(*(torch.tensor(x)[None] for x in frame))
    return metric.compute()


def pooled(found):
    flat = [np.concatenate([f[i].ravel() for f in found]) for i in range(3)]
    return [x[np.isfinite(flat[0])] for x in flat]


def scores(pred, label):
    ious = []
    for c in range(CLASSES):
        union = ((pred == c) | (label == c)).sum()
        if union:
            ious.append(((pred == c) & (label == c)).sum() / union)
    return np.mean(ious), (pred == label).mean()


@pytest.mark.parametrize("count", [8192, 2])
@pytest.mark.parametrize("bounded", [True, False])
def test_groups_equal_a_full_sort(bounded, count):
    """With an interval for every pixel exactly, with those of the grid alone as far as is said."""
    found = frames(0, bounded=bounded)
    hardness, pred, label = pooled(found)
    assert len(np.unique(hardness)) == len(hardness)
    keep = len(hardness) // 10 * 10  # a whole number of pixels in each group
    for frame in found:
        frame[0][~np.isin(frame[0], np.sort(hardness)[-keep:])] = np.nan
    hardness, pred, label = pooled(found)
    order = np.argsort(-hardness)
    made = grouped(found, bounded, count)
    assert len(made) == 10
    for i, group in enumerate(made):
        members = order[i * keep // 10 : (i + 1) * keep // 10]
        miou, acc = scores(pred[members], label[members])
        assert group.pixels == keep / 10
        assert abs(group.pixel_acc - acc) <= group.tied + 1e-9
        if group.tied == 0:
            assert (group.miou, group.pixel_acc) == pytest.approx((miou, acc), abs=1e-12)
        assert group.low <= hardness[members].min()
        assert group.high >= hardness[members].max()
    assert max(group.tied for group in made) == 0 if count > keep else 0 < made[5].tied < 0.2
    assert made[0].pixel_acc < 0.4 < 0.7 < made[9].pixel_acc  # the hardest come first


def test_groups_of_ties_are_shared_out_in_proportion_whatever_the_order():
    label = torch.zeros(1, 2, 10, dtype=torch.int64)
    pred = torch.zeros(1, 2, 10, dtype=torch.int64)
    hardness = torch.full((1, 2, 10), 0.5)
    hardness[0, 0, :3] = 0.9  # three of twenty: half again as many as a group
    pred[0, 0, :3] = 1
    pred[0, 1, :5] = 1  # five of seventeen ties are wrong
    metric = HardnessGroups(2, rank_edges(hardness, True, 100))
    metric.update(hardness, pred, label)
    made = metric.compute()
    assert [g.pixels for g in made] == [2] * 10
    assert made[0].pixel_acc == 0
    assert made[0].tied == 1  # two of three, and which is not known
    assert made[1].pixel_acc == pytest.approx((12 / 17) / 2)
    assert [g.pixel_acc for g in made[2:]] == pytest.approx([12 / 17] * 8)
    turned = HardnessGroups(2, metric.edges)
    turned.update(hardness.flip(2), pred.flip(2), label.flip(2))
    assert turned.compute() == made


def test_groups_do_not_depend_on_how_frames_are_divided_and_void_is_never_counted():
    found = frames(1)
    edges = rank_edges(torch.tensor(found[0][0]), True, 50)

    def scored(given):
        return fed(HardnessGroups(CLASSES, edges), given)

    whole = scored(found)
    assert scored([(h, np.where(label == 255, 3, p), label) for h, p, label in found[::-1]]) == whole
    assert scored([(np.where(np.isnan(h), np.float32(0.99), h), p, label) for h, p, label in found]) == whole
    assert scored([(h, p, np.where(label == 255, 1, label)) for h, p, label in found]) == whole
    assert sum(g.pixels for g in whole) == pytest.approx(len(pooled(found)[0]))
    nothing = scored([(np.full((2, 2), np.nan), *np.zeros((2, 2, 2), int))])
    assert math.isnan(nothing[0].miou)


def test_a_class_of_less_than_half_a_pixel_is_not_there():
    """One pixel of class 1 among a hundred ties: a tenth of it in every group."""
    label = torch.zeros(1, 10, 10, dtype=torch.int64)
    label[0, 0, 0] = 1
    metric = HardnessGroups(3, rank_edges(torch.tensor([0.5]), True, 8))
    metric.update(torch.full((1, 10, 10), 0.5), torch.zeros_like(label), label)
    assert [g.miou for g in metric.compute()] == pytest.approx([0.99] * 10)


def test_intervals_follow_the_values_however_narrow_their_range():
    narrow = 0.5 + 1e-4 * torch.rand(3000, generator=torch.Generator().manual_seed(0))
    edges = rank_edges(torch.cat([narrow, torch.tensor([torch.nan])]), True, 1000)
    assert ((edges > 0.49) & (edges < 0.51)).sum() > 900
    counts = np.histogram(narrow.numpy(), np.concatenate([[-1], edges.numpy(), [2]]))[0]
    assert counts.max() <= 8
    assert edges.isfinite().all()
    assert (edges.diff() > 0).all()
    loss = rank_edges(torch.empty(0), False, 10)
    assert loss[-1] == pytest.approx(16, abs=1e-5)
    odds = loss.double().expm1()  # (1 - p) / p of p = exp(-loss)
    assert (odds[1:] / odds[:-1]).max() < 1.033
    tied = rank_edges(torch.ones(50), True, 10)
    assert tied[-1] == 1


def mann_whitney(values, wrong):
    gaps = values[wrong][:, None] - values[~wrong][None]
    return ((gaps > 0).sum() + 0.5 * (gaps == 0).sum()) / gaps.size


def precision_loop(values, wrong):
    """Over the distinct values from the highest: what recall each adds, times the precision there."""
    total = 0.0
    for v in np.unique(values)[::-1]:
        total += (wrong & (values == v)).sum() / wrong.sum() * wrong[values >= v].mean()
    return total


@pytest.mark.parametrize("bounded", [True, False])
def test_ranking_equals_comparing_every_pair(bounded):
    found = frames(2, bounded=bounded)
    rng = np.random.default_rng(3)
    cuts = rank_edges(torch.cat([torch.tensor(f[0]).flatten() for f in found[:1]]), bounded, 400)
    metric, truths, edges = ErrorRanking(cuts), [], cuts.numpy()
    for hardness, pred, label in found:
        hardness[hardness > np.nanmedian(hardness)] = np.nanmax(hardness)  # many ties
        truth = (
            np.round(255 * np.clip(np.nan_to_num(hardness) / 2 + rng.random(hardness.shape) / 2, 0, 1)) / 255
        )
        truths.append(truth)
        metric.update(*(torch.tensor(x)[None] for x in (hardness, pred != label, truth)))
    made = metric.compute()
    hardness, pred, label = pooled(found)
    wrong = pred != label
    binned = np.searchsorted(edges, hardness)  # pixels of one interval tie
    assert made["pixels"] == len(hardness)
    assert made["error_rate"] == pytest.approx(wrong.mean())
    assert made["auroc"] == pytest.approx(mann_whitney(binned, wrong), abs=1e-12)
    assert made["auroc"] == pytest.approx(mann_whitney(hardness, wrong), abs=2e-3)
    assert made["auroc"] > 0.55
    assert made["ap"] == pytest.approx(precision_loop(binned, wrong), abs=1e-12)
    truth = np.concatenate([t[np.isfinite(f[0])] for t, f in zip(truths, found, strict=True)])
    expected = rank_correlation(torch.tensor(binned), torch.tensor(truth))
    assert made["spearman"] == pytest.approx(expected, abs=1e-12)
    assert made["spearman"] > 0.3


def test_ranking_counts_no_void_and_knows_no_truth_unless_given():
    hardness = torch.tensor([[[0.1, 0.2, 0.8, torch.nan]]])
    wrong = torch.tensor([[[False, False, True, True]]])
    metric = ErrorRanking(rank_edges(hardness, True, 10))
    metric.update(hardness, wrong)
    made = metric.compute()
    assert (made["pixels"], made["auroc"], made["ap"]) == (3, 1, 1)
    assert made["error_rate"] == pytest.approx(1 / 3)
    assert math.isnan(made["spearman"])
    nothing = ErrorRanking(metric.edges)
    nothing.update(hardness[..., 3:], wrong[..., 3:])
    assert math.isnan(nothing.compute()["error_rate"])


def test_rank_correlation_of_counts_equals_that_of_values():
    rng = np.random.default_rng(4)
    table = rng.integers(0, 4, (5, 7))
    a, b = (np.repeat(np.indices(table.shape)[i].ravel(), table.ravel()) for i in (0, 1))
    expected = rank_correlation(torch.tensor(a), torch.tensor(b))
    assert rank_correlation_of_counts(torch.tensor(table)) == pytest.approx(expected, abs=1e-12)
