"""Photometric distortion against a slow reference: Python's own HSV, one pixel at a time."""

import colorsys

import numpy as np
import pytest
import torch

from hardpix.data.augment import (
    Photometric,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
)

CORNERS = [
    (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255),
    (255, 0, 255), (128, 128, 128), (200, 200, 10), (10, 200, 200), (200, 10, 200), (1, 0, 0), (254, 255, 255),
]  # fmt: skip


@pytest.fixture
def planes():
    random = np.random.default_rng(0).integers(0, 256, (3, 20, 20))
    corners = np.array(CORNERS).T[:, None, :].repeat(20, axis=1)
    return np.concatenate([random, corners], axis=2).astype(np.float32)


def per_pixel(planes, function):
    out = np.empty_like(planes)
    for y in range(planes.shape[1]):
        for x in range(planes.shape[2]):
            out[:, y, x] = function(*planes[:, y, x])
    return out


def test_brightness_shifts_and_clips(planes):
    want = per_pixel(planes, lambda *rgb: [min(max(c + 31.5, 0), 255) for c in rgb])
    adjust_brightness(planes, 31.5)
    np.testing.assert_allclose(planes, want, atol=1e-3)


def test_contrast_scales_about_black_and_clips(planes):
    want = per_pixel(planes, lambda *rgb: [min(c * 1.37, 255) for c in rgb])
    adjust_contrast(planes, 1.37)
    np.testing.assert_allclose(planes, want, atol=1e-3)


@pytest.mark.parametrize("factor", [0.5, 0.83, 1.0, 1.2, 1.5])
def test_saturation_is_that_of_hsv(planes, factor):
    def slow(r, g, b):
        h, s, v = colorsys.rgb_to_hsv(r / 255, g / 255, b / 255)
        return np.array(colorsys.hsv_to_rgb(h, min(1.0, s * factor), v)) * 255

    want = per_pixel(planes, slow)
    adjust_saturation(planes, factor)
    np.testing.assert_allclose(planes, want, atol=0.01)


@pytest.mark.parametrize("degrees", [-36.0, -35.0, -1.0, 0.0, 2.0, 34.0, 180.0, 359.0, 400.0])
def test_hue_turns_around_the_circle(planes, degrees):
    def slow(r, g, b):
        h, s, v = colorsys.rgb_to_hsv(r / 255, g / 255, b / 255)
        return np.array(colorsys.hsv_to_rgb((h + degrees / 360) % 1.0, s, v)) * 255

    want = per_pixel(planes, slow)
    adjust_hue(planes, degrees)
    np.testing.assert_allclose(planes, want, atol=0.02)


def test_red_turned_back_by_36_degrees_is_pink_not_clipped():
    red = np.array([255, 0, 0], dtype=np.float32).reshape(3, 1, 1)
    adjust_hue(red, -36)
    np.testing.assert_allclose(red.ravel(), [255, 0, 153], atol=1e-3)


def test_each_step_is_chosen_half_of_the_time_and_contrast_moves():
    """Which steps ran is read off single pixels that only one step can change."""
    settings = {"brightness": 0.0, "contrast": (1, 1), "saturation": (1, 1), "hue": 0}
    grey = np.full((3, 2, 2), 100, dtype=np.uint8)
    rng = torch.Generator().manual_seed(0)
    changed = Photometric(**{**settings, "brightness": 32.0}, p=0.5)
    share = np.mean([(changed(grey, rng) != 100).any() for _ in range(400)])
    assert 0.4 < share < 0.6
    both = Photometric(**{**settings, "contrast": (1.5, 1.5), "saturation": (0.5, 0.5)}, p=1.0)
    # 200 x 1.5 clips: contrast first, then half the saturation of (255, 151.5, 151.5), or the other way round.
    pixel = np.array([200, 101, 101], dtype=np.uint8).reshape(3, 1, 1)
    seen = {tuple(both(pixel, rng).ravel().tolist()) for _ in range(60)}
    assert seen == {(255, 203, 203), (255, 226, 226)}  # 203.25 and 225.75, neither next to a half


def test_nothing_chosen_returns_the_image_itself():
    off = Photometric(brightness=32, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18, p=0.0)
    image = np.zeros((3, 4, 4), dtype=np.uint8)
    assert off(image, torch.Generator()) is image


def test_ranges_are_the_ones_given():
    photometric = Photometric(brightness=32, contrast=(1, 1), saturation=(1, 1), hue=0, p=1.0)
    grey = np.full((3, 1, 1), 100, dtype=np.uint8)
    rng = torch.Generator().manual_seed(1)
    values = [int(photometric(grey, rng)[0, 0, 0]) for _ in range(500)]
    assert 68 <= min(values) < 74
    assert 126 < max(values) <= 132


def test_hue_turns_by_whole_units_of_two_degrees_to_both_sides():
    photometric = Photometric(brightness=0, contrast=(1, 1), saturation=(1, 1), hue=18, p=1.0)
    turns = set()
    for seed in range(400):
        steps = dict(photometric.draw(torch.Generator().manual_seed(seed)))
        turns.add(steps[adjust_hue])
    assert turns == {
        2.0 * unit for unit in range(-18, 18)
    }  # -36 included, +36 not: OpenCV's 180 to the circle
