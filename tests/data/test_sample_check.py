"""What a frame may hold when it leaves its loader: any decoded array, by attack."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hardpix.data.loading import check_label, checked_sample
from hardpix.types import DataError, DatasetInfo

INFO = DatasetInfo("tiny", ("a", "b", "c"), ((0, 0, 0),) * 3)
ODD = DatasetInfo("odd", ("a", "b", "c"), ((0, 0, 0),) * 3, ignore_index=7)
MANY = DatasetInfo("many", tuple(map(str, range(300))), ((0, 0, 0),) * 300, ignore_index=999)


def sample(**changes):
    plain = {
        "image": torch.zeros(3, 4, 6, dtype=torch.uint8),
        "name": "room",
        "label": torch.zeros(4, 6, dtype=torch.uint8),
        "depth": torch.ones(4, 6),
        "depth_valid": torch.ones(4, 6, dtype=torch.bool),
    }
    return plain | changes


@pytest.mark.parametrize(("info", "dtype"), [(INFO, torch.uint8), (INFO, torch.int64), (ODD, torch.uint8),
                                             (MANY, torch.int64)])  # fmt: skip
def test_every_value_is_judged_right(info, dtype):
    values = range(256) if dtype == torch.uint8 else range(-3, 1200)
    for value in values:
        label = torch.zeros(4, 6, dtype=dtype)
        label[1, 2:5] = value
        if value == info.ignore_index or 0 <= value < info.num_classes:
            check_label(label, info, "room")
        else:
            with pytest.raises(
                DataError, match=rf"^room: label {value} \(3 pixels\) is no class of {info.name}; "
            ):
                check_label(label, info, "room")


def test_the_classes_and_void_are_told():
    with pytest.raises(DataError, match=r"its classes are 0\.\.2, 7 is void$"):
        check_label(torch.full((2, 2), 3, dtype=torch.uint8), ODD, "room")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int16])
def test_a_label_of_another_type_is_refused(dtype):
    with pytest.raises(DataError, match=r"room: its label is torch\..*; it must be uint8 or int64"):
        checked_sample(sample(label=torch.zeros(4, 6, dtype=dtype)), INFO)


@pytest.mark.parametrize("key", ["label", "depth", "depth_valid"])
def test_sizes_that_differ_are_told(key):
    other = sample()[key][:, :5]
    with pytest.raises(DataError, match=rf"room: its image measures 6x4 pixels but its {key} 5x4; both"):
        checked_sample(sample(**{key: other}), INFO)
    with pytest.raises(DataError, match=r"but its label 6x4x3"):  # colours where numbers belong
        checked_sample(sample(label=torch.zeros(3, 4, 6, dtype=torch.uint8)), INFO)


def test_an_empty_label_is_no_index_error():
    nothing = torch.zeros(0, 6, dtype=torch.uint8)
    checked_sample({"image": torch.zeros(3, 0, 6), "name": "none", "label": nothing}, INFO)


WILD = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True), st.sampled_from([0.0, -0.0, -1.0, float("nan")])
)


@settings(max_examples=150, deadline=None)
@given(depth=arrays(np.float32, (4, 6), elements=WILD), valid=arrays(np.bool_, (4, 6)))
def test_only_finite_positive_readings_are_valid(depth, valid):
    """And what is invalid is finite, whatever the file had there: nothing downstream multiplies a NaN by a mask."""
    given_depth, given_valid = depth.copy(), valid.copy()
    found = checked_sample(sample(depth=torch.from_numpy(depth), depth_valid=torch.from_numpy(valid)), INFO)
    for row in range(4):
        for column in range(6):
            z = float(given_depth[row, column])
            good = bool(given_valid[row, column]) and np.isfinite(z) and z > 0
            assert bool(found["depth_valid"][row, column]) == good
            assert np.isfinite(float(found["depth"][row, column]))
            assert not good or float(found["depth"][row, column]) == z
    assert found["depth"].dtype == torch.float32
    np.testing.assert_array_equal(valid, given_valid)  # a source's own arrays are left as they are
    np.testing.assert_array_equal(depth, given_depth)
