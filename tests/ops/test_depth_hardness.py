"""LWM's maps against slow loops written from the equations, the published vectors and their degenerate forms."""

import math

import numpy as np
import pytest
import torch

from hardpix.ops.depth_hardness import (
    _scattered_count,
    _scattered_errors,
    _sorted_median_and_max,
    curriculum,
    depth_prediction_error,
    depth_regions,
    fuse,
    log_depth_loss,
    median_and_max,
    scaled_depth,
    segmentation_error,
)
from hardpix.ops.pixel import pixel_cross_entropy, pixel_errors
from hardpix.types import ConfigError

VOID = 255


def case(seed=0, batch=3, height=11, width=13, classes=4):
    """Random logits, labels with void, metres with holes; every image with its own share of each."""
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, height, width)
    label = torch.randint(0, classes, shape, generator=rng)
    label[torch.rand(shape, generator=rng) < 0.2] = VOID
    depth = torch.rand(shape, generator=rng) * torch.tensor([4.0, 9.0, 14.0])[:batch, None, None]
    valid = torch.rand(shape, generator=rng) > 0.25
    log_depth = torch.rand(shape, generator=rng) * 7 - 0.5  # leaves [0, log 256] at both ends
    return torch.randn(batch, classes, height, width, generator=rng), label, depth, valid, log_depth


def slow_dse(wrong, target, valid, counted, cells, bin_size):
    _, height, width = target.shape
    out = np.zeros(target.shape)
    region = {}
    for b, y, x in np.ndindex(*target.shape):
        k = (y * cells[0] // height, x * cells[1] // width)
        t = math.floor((target[b, y, x] - 1) / bin_size) if valid[b, y, x] else "none"
        region.setdefault((b, k, t), []).append((b, y, x))
    for places in region.values():
        labelled = [p for p in places if counted[p]]
        for place in labelled:
            out[place] = sum(wrong[p] for p in labelled) / len(labelled)
    return out


@pytest.mark.parametrize("cells", [(1, 1), (2, 3), (4, 4), (8, 8), (11, 13)])
@pytest.mark.parametrize("bin_size", [3.5, 10, 100, 256])
def test_region_error_is_a_loop_over_regions(cells, bin_size):
    logits, label, depth, valid, _ = case()
    target = scaled_depth(depth, valid, 10.0)
    counted = label != VOID
    wrong = (logits.argmax(1) != label) & counted
    regions = depth_regions(target, valid, counted, cells=cells, bin_size=bin_size)
    found = segmentation_error(wrong, regions)
    expected = slow_dse(*(x.numpy() for x in (wrong, target, valid, counted)), cells, bin_size)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_region_error_of_the_published_example():
    target = torch.tensor([[1, 1, 120, 120], [1, 130, 120, 120], [250, 250, 5, 5], [250, 250, 5, 205.0]])[
        None
    ]
    wrong = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 0, 0]]).bool()[None]
    counted = torch.ones(1, 4, 4, dtype=torch.bool)
    counted[0, 3, 3] = False
    regions = depth_regions(target, torch.ones_like(counted), counted, cells=(2, 2), bin_size=100)
    third, quarter = 1 / 3, 1 / 4
    expected = [
        [third, third, quarter, quarter],
        [third, 1, quarter, quarter],
        [quarter, quarter, 2 / 3, 2 / 3],
        [quarter, quarter, 2 / 3, 0],
    ]
    np.testing.assert_allclose(segmentation_error(wrong, regions)[0].numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("cells", [(2, 3), None])
def test_void_has_no_region_error_whatever_is_wrong_there(cells):
    _, label, depth, valid, _ = case()
    counted, everything = label != VOID, torch.ones_like(label, dtype=torch.bool)
    regions = depth_regions(scaled_depth(depth, valid, 10.0), valid, counted, cells=cells, bin_size=10)
    assert not regions.share[~counted].any()
    np.testing.assert_allclose(
        segmentation_error(everything, regions).numpy(), counted.float().numpy(), atol=1e-6
    )


def test_one_cell_per_pixel_is_the_error_itself():
    logits, label, depth, valid, _ = case()
    counted = label != VOID
    wrong = pixel_errors(logits, label, VOID)[1]
    target = scaled_depth(depth, valid, 10.0)
    for cells in (None, (11, 13), (500, 500)):
        regions = depth_regions(target, valid, counted, cells=cells, bin_size=10)
        np.testing.assert_array_equal(segmentation_error(wrong, regions).numpy(), wrong.float().numpy())


def test_the_last_bin_holds_the_largest_depth():
    """d = 10 makes 26 bins; 256 lies in the last and not in that of pixels without a reading."""
    target = torch.tensor([[[256.0, 251.0, 250.9, 256.0]]])
    valid = torch.tensor([[[True, True, True, False]]])
    counted = torch.ones_like(valid)
    regions = depth_regions(target, valid, counted, cells=(1, 1), bin_size=10)
    assert regions.ids[0, 0].tolist() == [25, 25, 24, 26]
    assert regions.number == 28


def test_all_void_and_no_depth():
    logits, label, depth, valid, log_depth = case()
    label = torch.full_like(label, VOID)
    target = scaled_depth(depth, valid, 10.0)
    regions = depth_regions(target, valid, label != VOID, cells=(8, 8), bin_size=10)
    assert not segmentation_error(pixel_errors(logits, label, VOID)[1], regions).any()
    none = torch.zeros_like(valid)
    assert not depth_prediction_error(log_depth, target, none).any()
    assert log_depth_loss(log_depth, target, none) == 0
    assert scaled_depth(depth, none, None).unique().tolist() == [1.0]


def test_void_and_wrong_pixels():
    logits, label, *_ = case()
    error, found = pixel_errors(logits, label, VOID)
    assert torch.equal(error, pixel_cross_entropy(logits, label, VOID))
    np.testing.assert_array_equal(found.numpy(), ((logits.argmax(1) != label) & (label != VOID)).numpy())


@pytest.mark.parametrize("depth_max", [10.0, None])
def test_prediction_error_is_a_loop_over_pixels(depth_max):
    _, _, depth, valid, log_depth = case()
    depth[0, 0, 0], valid[0, 0, 0] = torch.nan, False
    target = scaled_depth(depth, valid, depth_max)
    expected = np.zeros(target.shape)
    for b in range(len(depth)):
        limit = depth_max or float(depth[b][valid[b]].max())
        for y, x in np.ndindex(*depth.shape[1:]):
            if valid[b, y, x]:
                truth = 1 + 255 * min(max(float(depth[b, y, x]) / limit, 0), 1)
                assert target[b, y, x] == pytest.approx(truth, rel=1e-5)
                guess = min(max(float(log_depth[b, y, x]), 0), math.log(256))
                expected[b, y, x] = abs(guess - math.log(truth))
        expected[b] /= expected[b].max()
    found = depth_prediction_error(log_depth, target, valid)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert [float(x.max()) for x in found] == [1.0] * 3


def test_perfect_depth_has_no_error():
    _, _, depth, valid, _ = case()
    target = scaled_depth(depth, valid, 10.0)
    assert not depth_prediction_error(target.log(), target, valid).any()


def test_depth_loss_is_a_mean_over_readings_of_the_batch():
    _, _, depth, valid, log_depth = case()
    target = scaled_depth(depth, valid, 10.0)
    gaps = (log_depth.double() - target.double().log())[valid]
    log_depth.requires_grad_()
    loss = log_depth_loss(log_depth, target, valid)
    assert float(loss.detach()) == pytest.approx(float(gaps.square().mean()), rel=1e-5)
    loss.backward()
    assert not log_depth.grad[~valid].any()
    np.testing.assert_allclose(log_depth.grad[valid].numpy(), (2 * gaps / valid.sum()).numpy(), rtol=1e-4)


def test_fusions():
    r, z = torch.tensor([0.2, 0.9]), torch.tensor([0.5, 0.1])
    said = {name: fuse(r, z, name).tolist() for name in ("dpe", "dse", "sum", "product", "max")}
    for name, expected in {
        "dpe": [0.2, 0.9], "dse": [0.5, 0.1], "sum": [0.7, 1.0], "product": [0.1, 0.09], "max": [0.5, 0.9],
    }.items():  # fmt: skip
        assert said[name] == pytest.approx(expected)
    with pytest.raises(ConfigError, match="must be one of dpe, dse, sum, product, max"):
        fuse(r, z, "mean")


@pytest.mark.parametrize(("epoch", "kept"), [(1, 3), (2, 4), (4, 4)])
def test_curriculum_of_the_published_example(epoch, kept):
    values = torch.tensor([[[0.2, 0.4, 0.6, 1.0, 2.0]]])
    assert int(curriculum(values, torch.ones_like(values, dtype=torch.bool), epoch / 4).sum()) == kept


@pytest.mark.parametrize("progress", [0.1, 0.5, 1.0])
def test_curriculum_is_per_image_over_valid_pixels(progress):
    values = (
        torch.rand(3, 7, 9, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1, 2, 4.0])[:, None, None]
    )
    valid = torch.rand(3, 7, 9, generator=torch.Generator().manual_seed(1)) > 0.3
    valid[2, 0, 0] = not valid[2].sum() % 2  # an even and an odd count
    found = curriculum(values, valid, progress)
    for v, m, kept in zip(values.double().numpy(), valid.numpy(), found.numpy(), strict=True):
        ranked = np.sort(v[m])
        middle = ranked[(len(ranked) - 1) // 2]
        eta = middle + progress * (ranked[-1] - middle)
        np.testing.assert_array_equal(kept, (v < eta - 1e-9) & m)
        assert kept.sum() < m.sum()


def test_curriculum_of_equal_or_no_values_keeps_nothing():
    values = torch.full((2, 4, 4), 0.3)
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1] = False
    assert not curriculum(values, valid, 1.0).any()


@pytest.mark.parametrize("path", [median_and_max, _sorted_median_and_max])
def test_median_and_max_of_valid_pixels(path):
    """By NumPy on the CPU, by sorting on other devices: the same, for odd and even counts and for none."""
    values = torch.rand(4, 30, 40, generator=torch.Generator().manual_seed(0))
    valid = torch.rand(4, 30, 40, generator=torch.Generator().manual_seed(1)) > 0.5
    valid[1] = False
    valid[2:] = valid[0]
    valid[2, 3, 4] = ~valid[0, 3, 4]  # one count even, one odd
    middle, largest = path(values, valid)
    for i in (0, 2, 3):
        ranked = values[i][valid[i]].sort().values
        assert middle[i] == ranked[(len(ranked) - 1) // 2]
        assert largest[i] == ranked[-1]
    assert middle[1] == largest[1] == 0


def test_regions_are_counted_alike_on_every_device():
    logits, label, depth, valid, _ = case()
    target, counted = scaled_depth(depth, valid, 10.0), label != VOID
    wrong = pixel_errors(logits, label, VOID)[1]
    regions = depth_regions(target, valid, counted, cells=(4, 3), bin_size=10)
    ids = regions.ids.flatten()
    for found, expected in (
        (_scattered_count(regions.ids, regions.number), torch.bincount(ids, minlength=regions.number)),
        (
            _scattered_errors(wrong, regions)[:-1],
            torch.bincount(ids[wrong.flatten()], minlength=regions.number)[:-1],
        ),
    ):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected.float())
