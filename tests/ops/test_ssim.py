"""SSIM of maps, against a loop over windows and torchmetrics' own."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from hardpix.ops.hardness import mean_ssim, ssim_map


def slow(a, b):
    """Around each pixel five from the border; pixels that are NaN in a or b do not exist."""
    place = np.arange(11) - 5
    window = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    height, width = a.shape
    out = np.full((height - 10, width - 10), np.nan)
    for y, x in np.ndindex(out.shape):
        p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
        known = np.isfinite(p) & np.isfinite(q)
        if not known[5, 5]:
            continue
        w = window[known] / window[known].sum()
        p, q = p[known], q[known]
        mp, mq = w @ p, w @ q
        vp, vq, cov = w @ (p - mp) ** 2, w @ (q - mq) ** 2, w @ ((p - mp) * (q - mq))
        top = (2 * mp * mq + 0.01**2) * (2 * cov + 0.03**2)
        out[y, x] = top / ((mp**2 + mq**2 + 0.01**2) * (vp + vq + 0.03**2))
    return out


def maps(seed, height=17, width=21):
    rng = np.random.default_rng(seed)
    a = rng.random((height, width))
    return a, np.clip(a + rng.normal(0, 0.3, a.shape), 0, 1)


def both(a, b):
    return tuple(torch.tensor(x, dtype=torch.float32)[None] for x in (a, b))


def test_equals_a_loop_with_and_without_undefined_pixels():
    a, b = maps(0)
    assert ssim_map(*both(a, b))[0].numpy() == pytest.approx(slow(a, b), abs=2e-5)
    a[3:9, 4:10], b[11, 12] = np.nan, np.nan
    found, expected = ssim_map(*both(a, b)), slow(a, b)
    assert np.isnan(found[0].numpy()).sum() == np.isnan(expected).sum() > 0
    assert found[0].numpy() == pytest.approx(expected, abs=2e-5, nan_ok=True)
    assert mean_ssim(found).tolist() == pytest.approx([np.nanmean(expected)], abs=1e-5)


def test_what_lies_under_an_undefined_pixel_changes_nothing():
    a, b = both(*maps(1))
    b[0, 8, 8] = torch.nan
    one = ssim_map(a, b)
    a[0, 8, 8] = 1e6
    assert torch.equal(one.nan_to_num(-9), ssim_map(a, b).nan_to_num(-9))


@pytest.mark.parametrize("size", [(11, 11), (16, 30)])
def test_equals_torchmetrics_inside(size):
    """Which also reflects the picture at its border, so that its mean has more windows."""
    one, two = maps(2, *size), maps(3, *size)
    a, b = (torch.tensor(np.stack(x), dtype=torch.float32) for x in zip(one, two, strict=True))
    _, around = structural_similarity_index_measure(
        a[:, None], b[:, None], data_range=1.0, sigma=1.5, kernel_size=11, return_full_image=True
    )
    assert ssim_map(a, b).numpy() == pytest.approx(around[:, 0, 5:-5, 5:-5].numpy(), abs=1e-5)
    assert mean_ssim(ssim_map(a, b)).tolist() == pytest.approx(
        around[:, 0, 5:-5, 5:-5].double().mean((1, 2)).tolist(), abs=1e-5
    )


def test_narrow_maps_keep_their_digits():
    """As hardness maps at the start of a training are: variances of 1e-6 beside a mean of 0.5."""
    a, b = maps(5)
    a, b = 0.5 + 1e-3 * a, 0.5 + 1e-3 * b
    assert ssim_map(*both(a, b))[0].numpy() == pytest.approx(slow(a, b), abs=1e-6)
    one, _ = both(a, b)
    assert mean_ssim(ssim_map(one, one)).item() == pytest.approx(1, abs=1e-6)


def test_equal_maps_have_one_and_too_small_ones_none():
    a, _ = both(*maps(4))
    assert mean_ssim(ssim_map(a, a)).item() == pytest.approx(1, abs=1e-6)
    assert mean_ssim(ssim_map(a, 1 - a)).item() < 0
    small = torch.rand(2, 10, 30)
    assert all(math.isnan(x) for x in mean_ssim(ssim_map(small, small)).tolist())
    nothing = torch.full((1, 15, 15), torch.nan)
    assert math.isnan(mean_ssim(ssim_map(nothing, nothing)).item())
