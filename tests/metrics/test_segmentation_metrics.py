"""The streaming confusion matrix against a loop over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hardpix.metrics import SegmentationMetrics, scores


def naive_counts(pred, label, classes, ignore):
    matrix, invalid = np.zeros((classes, classes), np.int64), 0
    for p, t in zip(pred.flatten().tolist(), label.flatten().tolist(), strict=True):
        if t == ignore:
            continue
        if 0 <= t < classes:
            matrix[t, p] += 1
        else:
            invalid += 1
    return matrix, invalid


@pytest.mark.parametrize("classes", [2, 19, 40, 127, 128, 150, 181, 200, 255])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("size", [(2, 9, 7), (1, 16, 16)])
def test_counts_equal_the_loop(classes, dtype, size):
    g = torch.Generator().manual_seed(classes)
    metric, total, wrong = SegmentationMetrics(classes, 255), np.zeros((classes, classes), np.int64), 0
    for _ in range(3):
        pred = torch.randint(0, classes, size, generator=g).to(dtype)
        label = torch.randint(0, classes, size, generator=g)
        label[torch.rand(size, generator=g) < 0.2] = 255
        label[0, 0, 0] = min(classes + 1, 255)
        label[0, 0, 1] = 254 if classes < 255 else 253
        metric.update(pred, label.to(dtype))
        matrix, invalid = naive_counts(pred, label, classes, 255)
        total, wrong = total + matrix, wrong + invalid
    np.testing.assert_array_equal(metric.confusion.numpy(), total)
    assert metric.invalid == wrong
    assert metric.confusion.dtype == metric.invalid.dtype == torch.int64


@pytest.mark.parametrize("ignore", [255, -1, 0, 4, 1000])
def test_any_ignore_value_and_wild_labels(ignore):
    label = torch.tensor([[[0, 1, 2, 3, 4, -1, -256, 255, 256, 511, 1000, ignore]]])
    pred = torch.tensor([[[0, 1, 1, 2, 3, 0, 0, 0, 0, 0, 0, 3]]])
    metric = SegmentationMetrics(4, ignore)
    metric.update(pred, label)
    matrix, invalid = naive_counts(pred, label, 4, ignore)
    np.testing.assert_array_equal(metric.confusion.numpy(), matrix)
    assert metric.invalid == invalid


def test_inputs_are_left_as_they_were():
    pred = torch.randint(0, 3, (1, 4, 4), dtype=torch.uint8)
    label = torch.randint(0, 3, (1, 4, 4), dtype=torch.uint8)
    before = pred.clone(), label.clone()
    SegmentationMetrics(3, 255).update(pred, label)
    assert torch.equal(pred, before[0])
    assert torch.equal(label, before[1])


def test_scores_of_a_hand_matrix():
    # rows truth: class 2 never occurs but is predicted once, class 3 neither; class 0 is mistaken for 1 twice
    got = scores(torch.tensor([[6, 2, 0, 0], [0, 3, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert got["iou"][:3].tolist() == pytest.approx([6 / 8, 3 / 6, 0])
    assert got["iou"][3].isnan()
    assert got["acc"][:2].tolist() == pytest.approx([6 / 8, 3 / 4])
    assert got["acc"][2:].isnan().all()
    assert got["miou"].item() == pytest.approx((0.75 + 0.5 + 0) / 3)
    assert got["pixel_acc"].item() == pytest.approx(9 / 12)
    assert got["mean_acc"].item() == pytest.approx(0.75)
    assert scores(torch.tensor([[8, 0], [1, 3]]))["fg_iou"].item() == pytest.approx(0.75)
    assert scores(torch.zeros(2, 2, dtype=torch.int64))["miou"].isnan()


def test_split_score_does_not_depend_on_the_batches():
    g = torch.Generator().manual_seed(0)
    pred, label = (torch.randint(0, 3, (6, 5, 5), generator=g) for _ in range(2))
    label[0] = 0  # very unequal images
    whole, parts = SegmentationMetrics(3, 255), SegmentationMetrics(3, 255)
    whole.update(pred, label)
    for p, t in zip(pred.split(1), label.split(1), strict=True):
        parts.update(p, t)
    assert whole.compute()["miou"] == parts.compute()["miou"]
    parts.reset()
    assert parts.confusion.sum() == 0
