"""Scores of each image against a loop over pixels, and the order of the split."""

import math

import numpy as np
import pytest
import torch

from hardpix.metrics import ImageScores, SegmentationMetrics
from hardpix.metrics.segmentation import merged
from hardpix.ops.confusion import confusion_counts, image_confusions

C, VOID = 5, 255


def naive(pred, label):
    """Labelled pixels, accuracy, and mIoU over the classes of the labels, of one image."""
    valid = label != VOID
    present = sorted(set(label[valid].tolist()))
    if not present:
        return 0, math.nan, math.nan
    ious = []
    for c in present:
        both = int((valid & (label == c) & (pred == c)).sum())
        either = int((valid & ((label == c) | (pred == c))).sum())
        ious.append(both / either)
    return int(valid.sum()), float((pred == label)[valid].mean()), sum(ious) / len(ious)


def batches(sizes=(3, 1, 2)):
    g = torch.Generator().manual_seed(0)
    for b in sizes:
        label = torch.randint(0, C - 2, (b, 6, 8), generator=g)  # two classes are only ever predicted
        label[torch.rand(label.shape, generator=g) < 0.2] = VOID
        pred = torch.where(
            torch.rand(label.shape, generator=g) < 0.6, label % C, torch.randint(0, C, label.shape)
        )
        yield pred, label


def test_scores_equal_the_loop_in_the_order_of_the_split():
    metric, images, wanted = SegmentationMetrics(C, VOID), ImageScores(), []
    for n, (pred, label) in enumerate(batches()):
        if n == 1:
            label.fill_(VOID)
        metric.update(pred, label)
        images.update([f"b{n}/{i}" for i in range(len(pred))], metric.latest)
        wanted += [
            (f"b{n}/{i}", *naive(p, t))
            for i, (p, t) in enumerate(zip(pred.numpy(), label.numpy(), strict=True))
        ]
    found = images.compute()
    assert [(s.name, s.pixels) for s in found] == [w[:2] for w in wanted]
    np.testing.assert_allclose([s[2:4] for s in found], [w[2:] for w in wanted], rtol=1e-6)
    assert math.isnan(found[3].miou)
    assert math.isnan(found[3].pixel_acc)
    assert images.compute() == []  # nothing is left for the next split


def test_counts_of_images_add_up_to_those_of_the_split_and_name_only_what_is_there():
    metric, images, pairs = SegmentationMetrics(C, VOID), ImageScores(), []
    for pred, label in batches():
        metric.update(pred, label)
        images.update(["x"] * len(pred), metric.latest)
        pairs += zip(pred.numpy(), label.numpy(), strict=True)
    total = np.zeros((C, 3), dtype=int)
    for score, (pred, label) in zip(images.compute(), pairs, strict=True):
        valid = label != VOID
        wanted = [
            (c, int((valid & (pred == c) & (label == c)).sum()), int((label == c).sum()), int((pred == c)[valid].sum()))
            for c in range(C)
        ]  # fmt: skip
        assert score.counts == tuple(row for row in wanted if row[2] or row[3])
        for c, *three in score.counts:
            total[c] += three
    whole = metric.confusion.numpy()
    np.testing.assert_array_equal(total, np.stack([np.diag(whole), whole.sum(1), whole.sum(0)], 1))


def test_a_class_that_is_predicted_only_has_no_term_and_a_missed_one_has_zero():
    label = torch.tensor([[[0, 0, 0, 1]]])
    images = ImageScores()
    for pred in ([0, 0, 2, 1], [0, 0, 0, 0]):
        images.update(["x"], image_confusions(torch.tensor([[pred]]), label, C, VOID)[0])
    stray, missed = images.compute()
    assert stray.miou == pytest.approx((2 / 3 + 1) / 2)
    assert missed.miou == pytest.approx((3 / 4 + 0) / 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_image_confusions_add_up_on_every_device(dtype, monkeypatch):
    """The way of accelerators, taken here on the CPU, gives what the way of the CPU gives."""
    for pred, label in batches():
        label[0, 0, 0] = C + 1  # invalid
        whole, bad = confusion_counts(pred, label, C, VOID)
        each, also_bad = image_confusions(pred.to(dtype), label.to(dtype), C, VOID)
        assert torch.equal(each.sum(0), whole)
        assert bad == also_bad == 1

        class Elsewhere(torch.Tensor):
            device = type("Device", (), {"type": "elsewhere"})()

        def arange(n, device, real=torch.arange):
            return real(n)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "arange", arange)
            apart, bad_apart = image_confusions(
                pred.to(dtype), label.to(dtype).as_subclass(Elsewhere), C, VOID
            )
        assert torch.equal(torch.Tensor(apart.float()), each.float())
        assert bad_apart == 1


def test_shares_of_processes_alternate():
    assert merged([["a", "d"], ["b", "e"], ["c"]]) == ["a", "b", "c", "d", "e"]
    assert merged([["a"], []]) == ["a"]
