"""The helpers of tests: thresholds between values, and classes that are not next to equal."""

import numpy as np
import pytest
import torch

from tests.boundary import clear, epochs_near, percent_near, threshold_near


def test_a_threshold_lies_half_way_in_the_widest_gap_near_by():
    values = np.array([0, 1, 2, 3, 5, 6, 7, 9.9])
    assert threshold_near(values, 2.9, within=0.25) == 4
    assert threshold_near(values.reshape(2, 4)[:, ::-1], 6.5, within=0.25) == pytest.approx(8.45)
    with pytest.raises(AssertionError, match="too close"):
        threshold_near(np.full(50, 0.3), 0.3)


def test_its_percentage_is_numpys():
    values = np.random.default_rng(0).random(2000)
    percent = percent_near(values, 80)
    assert percent == pytest.approx(80, abs=2)
    found = np.percentile(values, percent)
    assert found == pytest.approx(threshold_near(values, np.percentile(values, 80)), abs=1e-9)
    assert np.abs(values - found).min() > 1e-4


def test_epochs_keep_every_threshold_of_the_curriculum_from_the_values():
    maps = np.random.default_rng(1).random((3, 2, 20, 30))
    valid = np.random.default_rng(2).random((2, 20, 30)) < 0.8
    epochs = epochs_near(maps, valid, 3)
    assert epochs == pytest.approx(3, rel=0.1)
    for values in (x[b][valid[b]] for x in maps for b in range(2)):
        middle = np.sort(values)[(len(values) - 1) // 2]
        assert np.abs(values - (middle + (values.max() - middle) / epochs)).min() > 1e-5


def test_clear_pixels_have_one_largest_class():
    scores = torch.tensor([[0.0, 3.0, 1.0], [0.5, 0.0, 0.99995]]).T.reshape(1, 3, 1, 2).repeat(1, 1, 1, 20)
    scores[0, :, 0, 1] = torch.tensor([0.0, 1.0, 0.99995])
    assert (~clear(scores)).nonzero().tolist() == [[0, 0, 1]]
    assert clear(scores, 1e-6).all()
    with pytest.raises(AssertionError):
        clear(torch.zeros(1, 3, 4, 4))
