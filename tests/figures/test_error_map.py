"""Pictures of errors and repairs: single pixels, masks against a loop, and colours that everyone can tell apart."""

import itertools

import numpy as np
import pytest

from hardpix.draw.pictures import heatmap
from hardpix.figures import errors
from hardpix.figures.errors import change_map, changes, faded_image, probability_map

IMAGE = np.full((2, 4, 3), 100, np.uint8)
PALE = [255 - round(0.24 * 155)] * 3


def test_changes_equal_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    truth, before, after = (rng.integers(0, 4, (20, 30)) for _ in range(3))
    truth[truth == 3] = 255
    found = changes(truth, before, after, 255)
    for y, x in np.ndindex(truth.shape):
        t, b, a = int(truth[y, x]), int(before[y, x]), int(after[y, x])
        expected = (
            t != 255 and b != t and a == t,
            t != 255 and b == t and a != t,
            t != 255 and b != a != t != b,
        )
        assert tuple(bool(mask[y, x]) for mask in found) == expected
    assert all(mask.any() for mask in found)


def test_the_ignored_label_may_be_a_class():
    truth, zeros, ones = np.array([[0, 1]]), np.zeros((1, 2), int), np.ones((1, 2), int)
    found = changes(truth, zeros, ones, 0)
    assert found.repaired.tolist() == [[False, True]]
    assert not found.spoiled.any()


def test_errors_and_void_cover_the_faded_image():
    labelled = np.array([[True, True, True, False]] * 2)
    wrong = np.array([[False, True, True, False]] * 2)
    hard = np.array([[False, False, True, False]] * 2)
    shown = errors.error_map(IMAGE, labelled, wrong, hard)
    assert shown[0].tolist() == [PALE, list(errors.EASY), list(errors.HARD), list(errors.UNLABELLED)]
    assert (IMAGE == 100).all()


def test_each_kind_of_change_has_its_colour():
    truth = np.array([[0, 0, 1, 255], [0, 1, 1, 1]])
    before = np.array([[0, 0, 0, 0], [1, 0, 2, 1]])
    after = np.array([[0, 1, 1, 1], [1, 2, 1, 0]])
    shown = change_map(IMAGE, truth != 255, changes(truth, before, after, 255))
    assert shown[0].tolist() == [PALE, list(errors.SPOILED), list(errors.REPAIRED), list(errors.UNLABELLED)]
    assert shown[1].tolist() == [PALE, list(errors.EXCHANGED), list(errors.REPAIRED), list(errors.SPOILED)]


@pytest.mark.parametrize("scale", [1, 3])
def test_the_outline_lies_around_what_exceeds_the_threshold(scale):
    p = np.full((5, 7), 0.2, np.float32)
    p[2, 3] = 0.8
    p[0, 6] = 0.7  # does not exceed it
    shown = probability_map(p, 0.7, 7 * scale)
    assert shown.shape == (5 * scale, 7 * scale, 3)
    white = (shown == 255).all(2)
    inside = np.zeros_like(white)
    inside[2 * scale : 3 * scale, 3 * scale : 4 * scale] = True
    around = np.zeros_like(white)
    around[2 * scale - 1 : 3 * scale + 1, 3 * scale - 1 : 4 * scale + 1] = True
    assert (white == (around & ~inside)).all()
    assert shown[2 * scale, 3 * scale].tolist() == heatmap(np.array([[0.8]]), 0, 1)[0, 0].tolist()
    assert shown[0, 0].tolist() == heatmap(np.array([[0.2]]), 0, 1)[0, 0].tolist()


# How the three kinds of dichromats see linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(color, vision):
    c = np.array(color) / 255
    linear = vision @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x = to_xyz @ linear.clip(0, 1) / [0.9505, 1, 1.089]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_are_told_apart_by_everyone(vision):
    drawn = [color for _, color in (*errors.ERROR_ENTRIES, *errors.CHANGE_ENTRIES)]
    seen = [lab(color, np.array(VISIONS[vision])) for color in drawn]
    papers = [
        lab(faded_image(np.full((1, 1, 3), v, np.uint8))[0, 0], np.array(VISIONS[vision])) for v in (0, 255)
    ]
    pairs = [*itertools.combinations(seen, 2), *itertools.product(seen, papers)]
    assert min(np.linalg.norm(a - b) for a, b in pairs) > 20
