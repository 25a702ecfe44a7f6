"""A mean teacher's arithmetic, by slow loops."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from hardpix.ops.semi import (
    cut_mix,
    cut_mix_rectangle,
    entropy,
    follow,
    percentile,
    reliable_loss,
    teacher_decay,
    unreliable_percent,
)


def test_the_decay_begins_with_a_copy_and_ends_at_its_limit():
    assert [teacher_decay(i, 0.99) for i in range(4)] == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4])
    assert teacher_decay(98, 0.99) == pytest.approx(1 - 1 / 99)
    assert [teacher_decay(i, 0.99) for i in (99, 100, 10**6)] == pytest.approx([0.99] * 3)


def test_the_first_steps_average_all_students_so_far():
    """With decays 0, 1/2, 2/3, ... and no limit the average is the plain mean."""
    teacher, student, seen = nn.Linear(2, 2), nn.Linear(2, 2), []
    for iteration in range(5):
        nn.init.normal_(student.weight)
        seen.append(student.weight.detach().clone())
        follow(teacher, student, teacher_decay(iteration, 1.0))
        torch.testing.assert_close(teacher.weight.detach(), torch.stack(seen).mean(0))


def test_parameters_follow_and_buffers_do_not():
    torch.manual_seed(0)
    teacher, student = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    for p in (*teacher.parameters(), *student.parameters()):
        nn.init.normal_(p)
    student.running_mean.fill_(7)
    before, buffers = teacher.weight.detach().clone(), {k: b.clone() for k, b in teacher.named_buffers()}
    follow(teacher, student, 0.75)
    torch.testing.assert_close(teacher.weight.detach(), 0.75 * before + 0.25 * student.weight.detach())
    assert all(torch.equal(b, buffers[k]) for k, b in teacher.named_buffers())
    follow(teacher, student, 0.0)
    assert torch.equal(teacher.bias, student.bias)
    assert teacher.bias.data_ptr() != student.bias.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_entropy_by_a_loop(dtype):
    logits = torch.randn(2, 4, 3, 2, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    logits[0, :, 0, 0] = torch.tensor([60.0, 0.0, 0.0, 0.0])  # sure: probabilities of 0
    got = entropy(logits)
    assert got.dtype == torch.float32
    for b, y, x in np.ndindex(2, 3, 2):
        v = logits[b, :, y, x].double().numpy()
        p = np.exp(v - v.max()) / np.exp(v - v.max()).sum()
        assert float(got[b, y, x]) == pytest.approx(-sum(q * math.log(q + 1e-10) for q in p), abs=1e-5)
    assert float(entropy(torch.zeros(1, 4, 1, 1))) == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
@pytest.mark.parametrize("percent", [0, 3.7, 20, 50, 81.25, 100])
def test_percentile_is_numpys(count, percent):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)).view(1, -1)
    assert float(percentile(values, percent)) == pytest.approx(
        np.percentile(values.numpy(), percent), rel=1e-5, abs=1e-6
    )


def test_the_share_of_unreliable_pixels_falls_to_nothing():
    assert [unreliable_percent(20, e, 4) for e in range(4)] == [20, 15, 10, 5]


def test_the_loss_on_kept_pixels_grows_with_what_was_left_out():
    error = torch.tensor([[[1.0, 2.0], [4.0, 8.0]], [[3.0, 5.0], [6.0, 7.0]]], requires_grad=True)
    kept = torch.tensor([[[1, 0], [1, 0]], [[0, 1], [0, 0]]]).bool()
    loss = reliable_loss(error, kept)
    assert float(loss.detach()) == pytest.approx((1 + 4 + 5) / 3 * 8 / 3)
    loss.backward()
    torch.testing.assert_close(error.grad, kept * (8 / 9))
    assert float(reliable_loss(error.detach(), torch.ones_like(kept))) == pytest.approx(36 / 8)
    nothing = reliable_loss(error, torch.zeros_like(kept))
    assert float(nothing.detach()) == 0
    assert nothing.requires_grad


@pytest.mark.parametrize("size", [(769, 769), (32, 48), (7, 5), (3, 2), (1, 1)])
def test_rectangles_are_half_of_the_picture_and_inside(size):
    torch.manual_seed(0)
    height, width = size
    drawn = [cut_mix_rectangle(height, width) for _ in range(300)]
    for top, left, down, across in drawn:
        assert top >= 0
        assert left >= 0
        assert top + down <= height
        assert left + across <= width
        if min(size) > 2:
            assert width // 2 < across < width
            assert abs(down * across - height * width / 2) <= across / 2
    if min(size) > 30:
        widths, places = {r[3] for r in drawn}, {r[:2] for r in drawn}
        assert max(widths) > 0.9 * width
        assert min(widths) < 0.6 * width
        assert len(places) > 100
        assert any(top + down == height for top, _, down, _ in drawn)
        assert any(left + across == width for _, left, _, across in drawn)
        assert {0} <= {top for top, *_ in drawn} & {left for _, left, *_ in drawn}


def test_rectangles_repeat_with_torchs_generator():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = [cut_mix_rectangle(20, 30) for _ in range(4)]
    torch.set_rng_state(state)
    assert [cut_mix_rectangle(20, 30) for _ in range(4)] == first
    assert len(set(first)) > 1


def test_the_next_image_is_pasted_into_each():
    torch.manual_seed(0)
    image, label, confidence = torch.rand(3, 2, 6, 5), torch.randint(0, 9, (3, 6, 5)), torch.rand(3, 6, 5)
    rectangles = [(0, 1, 3, 4), (2, 0, 4, 3), (1, 2, 2, 3)]
    originals = [x.clone() for x in (image, label, confidence)]
    mixed = [cut_mix(x, rectangles) for x in (image, label, confidence)]
    for i, (top, left, height, width) in enumerate(rectangles):
        for y, x in np.ndindex(6, 5):
            inside = top <= y < top + height and left <= x < left + width
            source = (i + 1) % 3 if inside else i
            for before, after in zip(originals, mixed, strict=True):
                assert torch.equal(after[i, ..., y, x], before[source, ..., y, x])
    assert all(torch.equal(a, b) for a, b in zip((image, label, confidence), originals, strict=True))
