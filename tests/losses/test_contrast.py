"""U2PL's contrastive loss: who is an anchor, what is a negative, and what stays in the bank."""

import math

import numpy as np
import pytest
import torch

from hardpix.losses import BankContrast, ContrastSettings
from hardpix.losses.contrast import Pixels, info_nce, negative_of, pixels_of

NUMBERS = {
    "channels": 4, "dropout": 0.0, "anchors": 6, "negatives": 5, "temperature": 0.5, "confidence": 0.3,
    "low_rank": 1, "high_rank": 3, "bank": 4, "bank_first": 7,
}  # fmt: skip


def settings(**changes):
    return ContrastSettings(**(NUMBERS | changes))


def pixels(count=40, classes=4, seed=0, **changes):
    torch.manual_seed(seed)
    values = {
        "student": torch.randn(count, 4, requires_grad=True), "teacher": torch.randn(count, 4),
        "probability": torch.rand(count, classes).softmax(1), "label": torch.randint(0, classes, (count,)),
        "labeled": torch.arange(count) < count // 2, "reliable": torch.rand(count) < 0.5,
        "unreliable": torch.rand(count) < 0.5,
    }  # fmt: skip
    return Pixels(**(values | changes))


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


@pytest.mark.parametrize(("low", "high"), [(1, 3), (2, 4), (3, 20)])
def test_negatives_by_a_loop(low, high):
    found = pixels()
    got = negative_of(found, low, high)
    for i, c in np.ndindex(40, 4):
        rank = int((found.probability[i] > found.probability[i, c]).sum())
        if found.labeled[i]:
            wanted = rank < low and int(found.label[i]) != c
        else:
            wanted = low <= rank < high
        assert bool(got[i, c]) == (wanted and bool(found.unreliable[i]))


def test_info_nce_by_a_loop():
    torch.manual_seed(0)
    anchors, positive, negatives = torch.randn(3, 4), torch.randn(4), torch.randn(3, 5, 4)
    expected = []
    for a in range(3):
        own = math.exp(cosine(anchors[a], positive) / 0.5)
        others = sum(math.exp(cosine(anchors[a], n) / 0.5) for n in negatives[a])
        expected.append(-math.log(own / (own + others)))
    assert float(info_nce(anchors, positive, negatives, 0.5)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_bank_is_first_in_first_out():
    bank = BankContrast(3, settings())
    keys = torch.arange(40.0).view(-1, 1).expand(-1, 4)
    kept = {0: [], 1: []}
    start = 0
    for count in (2, 0, 3, 1, 6, 9, 1):
        for c, size in ((0, 7), (1, 4)):
            bank.push(c, keys[start : start + count])
            kept[c] = (kept[c] + list(range(start, start + count)))[-size:]
            assert sorted(bank.stored(c)[:, 0].tolist()) == kept[c]
        start += count
    assert len(bank.stored(2)) == 0


def test_the_whole_loss_where_nothing_is_left_to_chance():
    """One candidate and a bank of one entry per class: every draw is the same. Class 2 has no sure anchor."""
    label = torch.tensor([0, 0, 1, 2, 1, 0, 3])
    probability = torch.tensor(
        [[0.6, 0.2, 0.1, 0.1], [0.3, 0.4, 0.2, 0.1], [0.1, 0.7, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1],
         [0.05, 0.5, 0.4, 0.05], [0.5, 0.25, 0.15, 0.1], [0.1, 0.2, 0.3, 0.4]]
    )  # fmt: skip
    reliable = torch.tensor([1, 1, 1, 1, 0, 0, 0]).bool()
    found = pixels(
        7, label=label, probability=probability, reliable=reliable, unreliable=torch.zeros(7).bool()
    )
    # 0.3 is not above 0.3: only pixel 0 is an anchor of class 0, but pixel 1 counts for its mean.
    bank = BankContrast(4, settings(bank=1, bank_first=1))
    torch.manual_seed(1)
    for c in range(4):
        bank.push(c, torch.randn(1, 4))
    expected = 0.0
    for anchor, members, c in ((0, [0, 1], 0), (2, [2], 1)):
        a = found.student[anchor].detach()
        own = math.exp(cosine(a, found.teacher[members].mean(0)) / 0.5)
        other = math.exp(cosine(a, bank.stored(c)[0]) / 0.5)
        expected -= math.log(own / (own + 5 * other))
    loss = bank(found)
    assert float(loss.detach()) == pytest.approx(expected / 3, rel=1e-5)  # three classes are present
    loss.backward()
    moved = found.student.grad.abs().sum(1) > 0
    assert moved.tolist() == [True, False, True, False, False, False, False]


def test_one_class_or_none_costs_nothing():
    for label in (torch.zeros(40, dtype=torch.int64), torch.full((40,), 255)):
        mask = label != 255
        found = pixels(label=label, reliable=mask, unreliable=mask)
        loss = BankContrast(4, settings())(found)
        assert float(loss.detach()) == 0
        loss.backward()
        assert not found.student.grad.any()


def test_the_bank_is_fed_before_it_is_drawn_from_with_what_the_teacher_says():
    found = pixels()
    bank = BankContrast(4, settings(bank=100, bank_first=100))
    assert float(bank(found).detach()) > 0
    chosen = negative_of(found, 1, 3)
    for c in range(4):
        assert torch.equal(bank.stored(c), found.teacher[chosen[:, c]])
    assert not bank.rows.requires_grad


def test_the_bank_travels_with_the_weights():
    bank, other = BankContrast(4, settings()), BankContrast(4, settings())
    bank(pixels())
    other.load_state_dict(bank.state_dict())
    for c in range(4):
        assert torch.equal(other.stored(c), bank.stored(c))
    bank(pixels(seed=1))
    other(pixels(seed=1))
    assert torch.equal(other.rows, bank.rows)
    assert torch.equal(other.next, bank.next)


def test_masks_and_labels_of_maps_belong_to_their_pixels():
    """At the labels' own size; image by image, row by row, labelled ones first."""
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 4, 2, 3), torch.randn(3, 4, 2, 3)
    probability = torch.randn(3, 5, 2, 3).softmax(1)
    label = torch.randint(0, 5, (3, 2, 3))
    label[0, 1] = 255
    uncertainty = torch.rand(2, 2, 3)
    found = pixels_of(student, teacher, probability, label, uncertainty, 25.0, 255)
    low, high = np.percentile(uncertainty.numpy(), [25, 75])
    for n, (b, y, x) in enumerate(np.ndindex(3, 2, 3)):
        assert torch.equal(found.student[n], student[b, :, y, x])
        assert torch.equal(found.teacher[n], teacher[b, :, y, x])
        assert torch.equal(found.probability[n], probability[b, :, y, x])
        assert int(found.label[n]) == int(label[b, y, x])
        assert bool(found.labeled[n]) == (b == 0)
        if b == 0:
            assert bool(found.reliable[n]) == bool(found.unreliable[n]) == (int(label[b, y, x]) != 255)
        else:
            assert bool(found.reliable[n]) == (float(uncertainty[b - 1, y, x]) <= low)
            assert bool(found.unreliable[n]) == (float(uncertainty[b - 1, y, x]) >= high)


def test_half_precision_is_compared_in_float32():
    found = pixels()
    found = found._replace(student=found.student.detach().half(), teacher=found.teacher.half())
    loss = BankContrast(4, settings())(found)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
