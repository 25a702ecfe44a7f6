"""Whole-image, sliding-window and multi-scale prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hardpix.ops import MultiScale, SlidingWindow, WholeImage
from hardpix.ops.window import fitted_size, window_starts
from hardpix.types import ConfigError


def slide(crop, stride, batch=1, base_size=None):
    return SlidingWindow(crop=crop, stride=stride, batch=batch, base_size=base_size, align_corners=False)


def image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def place(x):
    """A network that knows where in its input a pixel lies, so that windows disagree."""
    h, w = x.shape[-2:]
    ramp = torch.arange(h)[:, None] * 1.0 + torch.arange(w) / 100
    return torch.cat([x[:, :1] * 2, x[:, 1:2] + ramp], 1)


def test_starts_of_cityscapes():
    assert window_starts(1025, 769, 513) == [0, 256]
    assert window_starts(2049, 769, 513) == [0, 513, 1026, 1280]
    assert window_starts(769, 769, 513) == [0]
    assert window_starts(100, 769, 513) == [0]


def naive_slide(forward, x, crop, stride):
    b, _, h, w = x.shape
    total, visits = np.zeros((b, 2, h, w)), np.zeros((h, w))
    for i in range(max(h - crop[0] + stride[0] - 1, 0) // stride[0] + 1):
        for j in range(max(w - crop[1] + stride[1] - 1, 0) // stride[1] + 1):
            y, z = max(min(i * stride[0], h - crop[0]), 0), max(min(j * stride[1], w - crop[1]), 0)
            at = (..., slice(y, y + crop[0]), slice(z, z + crop[1]))
            total[at] += forward(x[at]).double().numpy()
            visits[at[1:]] += 1
    return total / visits


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("size", "crop", "stride"),
    [
        ((17, 23), (8, 9), (5, 4)),
        ((8, 23), (8, 8), (8, 8)),
        ((9, 9), (8, 8), (1, 7)),
        ((8, 9), (8, 9), (5, 5)),
    ],
)
def test_logits_are_averaged_over_visits(size, crop, stride, batch):
    x = image(2, 3, *size)
    got = slide(crop, stride, batch)(place, x)
    np.testing.assert_allclose(got.numpy(), naive_slide(place, x, crop, stride), rtol=1e-5, atol=1e-5)


def test_a_local_network_does_not_notice_windows():
    x = image(1, 3, 30, 41)
    got = slide((16, 16), (7, 9))(lambda v: v.sin(), x)
    torch.testing.assert_close(got, x.sin())


def test_forward_count_and_size():
    seen = []

    def forward(x):
        seen.append(tuple(x.shape))
        return x

    slide((8, 8), (4, 4), 4)(forward, image(1, 3, 12, 16))
    assert seen == [(4, 3, 8, 8), (2, 3, 8, 8)]


def test_small_images_are_padded_with_zero_below_and_to_the_right():
    x = image(2, 3, 5, 20)

    def forward(v):
        assert v.shape[-2:] == (8, 8)
        assert (v[:, :, 5:] == 0).all()
        return v * 3

    torch.testing.assert_close(slide((8, 8), (6, 6))(forward, x), x * 3)
    torch.testing.assert_close(slide((8, 30), (6, 6))(lambda v: v[:, :2], x), x[:, :2])


def test_half_logits_are_added_in_float32():
    got = slide((8, 8), (1, 1))(lambda v: v.half(), image(1, 3, 20, 20))
    assert got.dtype == torch.float32


def test_base_size_fits_and_comes_back():
    assert fitted_size((1024, 2048), (2049, 1025), 1.0) == (1025, 2049)
    assert fitted_size((512, 683), (2048, 512), 1.0) == (512, 683)
    assert fitted_size((2000, 1000), (2048, 512), 1.0) == (1024, 512)
    assert fitted_size((10, 20), None, 1.5) == (15, 30)
    x, seen = image(1, 3, 12, 16), []

    def forward(v):
        seen.append(v)
        return v[:, :2] ** 2

    got = WholeImage(base_size=(32, 24), align_corners=True)(forward, x)
    inner = F.interpolate(x, size=(24, 32), mode="bilinear", align_corners=False)
    assert torch.equal(seen[0], inner)
    want = F.interpolate(inner[:, :2] ** 2, size=(12, 16), mode="bilinear", align_corners=True)
    assert torch.equal(got, want)
    assert torch.equal(WholeImage(base_size=None, align_corners=False)(forward, x), x[:, :2] ** 2)
    assert slide((9, 9), (5, 5), base_size=(32, 24))(forward, x).shape == (1, 2, 12, 16)


def test_multi_scale_averages_probabilities():
    x = image(1, 3, 12, 16)
    whole = WholeImage(base_size=None, align_corners=False)
    got = MultiScale(whole, scales=[0.5, 1.0], flip=True)(place, x)
    parts = []
    for scale in (0.5, 1.0):
        for flip in (False, True):
            v = x.flip(-1) if flip else x
            small = F.interpolate(v, scale_factor=scale, mode="bilinear") if scale != 1 else v
            z = F.interpolate(place(small), size=(12, 16), mode="bilinear")
            parts.append((z.flip(-1) if flip else z).softmax(1))
    torch.testing.assert_close(got.softmax(1), torch.stack(parts).mean(0))
    torch.testing.assert_close(got.exp().sum(1), torch.ones(1, 12, 16))


def test_multi_scale_averages_what_follows_the_classes_as_it_is():
    """Depth behind the class logits neither takes part in the softmax nor becomes a probability."""
    x = image(1, 3, 12, 16)
    whole = WholeImage(base_size=None, align_corners=False)
    multi = MultiScale(whole, scales=[0.5, 1.0], flip=True)

    def depth(v):
        return 5 + place(v)[:, :1]

    got = multi(lambda v: torch.cat([place(v), depth(v)], 1), x, groups=(place(x).shape[1],))
    torch.testing.assert_close(got[:, :-1], multi(place, x))
    torch.testing.assert_close(got[:, -1:], multi(depth, x))


def test_multi_scale_multiplies_the_base_size_and_averages_single_maps():
    seen = []

    def forward(v):
        seen.append(tuple(v.shape[-2:]))
        return v[:, :1]

    inner = slide((100, 100), (50, 50), base_size=(32, 24))
    got = MultiScale(inner, scales=[1.0, 2.0], flip=False)(forward, torch.full((1, 3, 12, 16), 0.25))
    assert seen == [(100, 100), (100, 100)]
    torch.testing.assert_close(got, torch.full((1, 1, 12, 16), 0.25))
    whole = WholeImage(base_size=(32, 24), align_corners=False)
    MultiScale(whole, scales=[1.0, 0.5], flip=False)(forward, image(1, 3, 12, 16))
    assert seen[2:] == [(24, 32), (12, 16)]


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: slide((8, 8), (9, 8)), "inference.stride"),
        (lambda: slide((8, 8), (8, 8), batch=0), "batch=0: must be at least 1"),
        (lambda: slide((8,), (8, 8)), "crop=.*must be 2 values"),
        (lambda: MultiScale(WholeImage(base_size=None, align_corners=False), scales=[], flip=True), "scales"),
    ],
)
def test_impossible_settings_are_refused(build, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build()
