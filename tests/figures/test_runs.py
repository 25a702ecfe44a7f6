"""Which frames a figure shows."""

import pytest

from hardpix.draw.pictures import spread


@pytest.mark.parametrize(
    ("total", "count", "places"),
    [
        (10, 4, [0, 3, 6, 9]),
        (3, 16, [0, 1, 2]),  # all of them, not the first one again and again
        (3, 3, [0, 1, 2]),
        (2, 1, [0]),
        (0, 4, []),
    ],
)
def test_frames_are_spread_from_the_first_to_the_last(total, count, places):
    assert spread(total, count) == places
