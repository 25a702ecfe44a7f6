"""Rotation of a crop against a slow loop over its pixels, and scales in steps."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from hardpix.data import DepthMap, Photometric, TrainTransform
from hardpix.data.augment import Window, cut, image_window, label_window, rotated_window
from hardpix.data.sampling import generator
from hardpix.data.transforms import is_varied, scales
from hardpix.ops.resize import sample_pixels
from hardpix.types import ConfigError

VOID = 255
NATIVE = (40, 56)
# Scaled sizes: as it is, enlarged, shrunk, and sides that are not scaled quite alike.
SCALED = [(40, 56), (60, 84), (20, 28), (53, 73)]


def views(scaled):
    """Windows over the whole picture, a corner and the middle, at several angles."""
    height, width = min(scaled[0], 15), min(scaled[1], 18)
    corners = {(0, 0), (NATIVE[0] - math.ceil(height * NATIVE[0] / scaled[0]), 0), (6, 9)}
    for top, left in sorted(corners):
        for angle in (-10.0, 3.3, 10.0, 90.0, 137.0):
            yield Window(scaled, top, left, height, width), angle
    yield Window.whole(scaled), 7.0


def source_position(window, angle, i, j):
    """Where pixel (i, j) of the crop was in the picture: from the resized picture's own coordinates, one by one."""
    sy, sx = NATIVE[0] / window.scaled[0], NATIVE[1] / window.scaled[1]
    y = window.top / sy + i + 0.5 - window.scaled[0] / 2  # from the centre, downwards
    x = window.left / sx + j + 0.5 - window.scaled[1] / 2
    radius, direction = math.hypot(x, y), math.atan2(-y, x)  # direction with y upwards, as angles are seen
    direction -= math.radians(angle)  # the content has moved by +angle
    x, y = radius * math.cos(direction), -radius * math.sin(direction)
    return (y + window.scaled[0] / 2) * sy, (x + window.scaled[1] / 2) * sx


@pytest.mark.parametrize("scaled", SCALED)
def test_positions_and_labels_equal_the_loop(scaled):
    label = np.random.default_rng(0).integers(0, 200, NATIVE, dtype=np.uint8)
    for window, angle in views(scaled):
        view = rotated_window(window, NATIVE, angle)
        got = cut(tv_tensors.Mask(torch.from_numpy(label)), view, VOID)
        assert isinstance(got, tv_tensors.Mask)
        assert got.shape == (window.height, window.width)
        for i, j in np.ndindex(window.height, window.width):
            y, x = source_position(window, angle, i, j)
            assert (view.rows[i, j], view.columns[i, j]) == pytest.approx((y, x), abs=1e-9)
            if min(abs(y - round(y)), abs(x - round(x))) < 1e-9:
                continue  # on the line between two pixels either is right
            inside = 0 <= y < NATIVE[0] and 0 <= x < NATIVE[1]
            assert got[i, j] == (label[int(y), int(x)] if inside else VOID)
            assert view.inside[i, j] == inside


def test_the_content_turns_counter_clockwise():
    label = torch.zeros(9, 9, dtype=torch.uint8)
    label[4, 8] = 1  # at three o'clock
    turned = cut(tv_tensors.Mask(label), rotated_window(Window.whole((9, 9)), (9, 9), 90.0), VOID)
    assert turned.nonzero().tolist() == [[0, 4]]  # at twelve


def bilinear(image, y, x):
    """At a position whose first pixel centre is at 1/2; the border's values go on."""
    y, x = (min(max(p - 0.5, 0), n - 1) for p, n in ((y, image.shape[1]), (x, image.shape[2])))
    top, left = int(y), int(x)
    bottom, right = min(top + 1, image.shape[1] - 1), min(left + 1, image.shape[2] - 1)
    upper = image[:, top, left] * (1 - x + left) + image[:, top, right] * (x - left)
    lower = image[:, bottom, left] * (1 - x + left) + image[:, bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def test_the_image_equals_bilinear_sampling():
    """Without a change of scale nothing else happens to it."""
    image = np.random.default_rng(1).integers(1, 256, (3, *NATIVE), dtype=np.uint8)
    for window, angle in views(NATIVE):
        view = rotated_window(window, NATIVE, angle)
        got = cut(tv_tensors.Image(torch.from_numpy(image)), view, VOID)
        assert isinstance(got, tv_tensors.Image)
        assert got.is_contiguous()
        for i, j in np.ndindex(window.height, window.width):
            if view.inside[i, j]:
                want = bilinear(image.astype(float), *source_position(window, angle, i, j))
                assert np.abs(got[:, i, j].numpy() - want).max() <= 0.51  # rounded, not cut off
            else:
                assert (got[:, i, j] == 0).all()


@pytest.mark.parametrize("scaled", SCALED[1:])
def test_a_resized_image_lies_where_its_labels_do(scaled):
    """A ramp, whose value tells the position: resizing and turning keep it to a grey level, but at the border."""
    y, x = np.mgrid[: NATIVE[0], : NATIVE[1]] + 0.5
    image = torch.from_numpy(np.stack([2 * y + 1.5 * x, 5 * y + 20, 4 * x + 10]).astype(np.uint8))
    for window, angle in views(scaled):
        view = rotated_window(window, NATIVE, angle)
        got = cut(tv_tensors.Image(image), view, VOID).numpy().astype(float)
        rim = 2 * max(1, NATIVE[0] / scaled[0])
        inner = (view.rows > rim) & (view.rows < NATIVE[0] - rim)
        inner &= (view.columns > rim) & (view.columns < NATIVE[1] - rim)
        rows, columns = view.rows, view.columns
        want = np.stack([2 * rows + 1.5 * columns, 5 * rows + 20, 4 * columns + 10])
        difference = np.abs(got + 0.25 - want)[:, inner]
        assert difference.size == 0 or difference.max() <= 2.5  # the ramp itself is cut to whole numbers
        assert difference.size == 0 or difference.mean() < 0.6
        assert (got[:, ~view.inside] == 0).all()


@pytest.mark.parametrize("scaled", [*SCALED, (61, 85), (23, 31)])
def test_no_turn_is_no_change(scaled):
    rng = np.random.default_rng(2)
    image = torch.from_numpy(rng.integers(0, 256, (3, *NATIVE), dtype=np.uint8))
    label = rng.integers(0, 200, NATIVE, dtype=np.uint8)
    window = Window(scaled, 3, 5, scaled[0] // 2, scaled[1] // 2)
    for part in (window, Window.whole(scaled)):
        view = rotated_window(part, NATIVE, 0.0)
        assert view.inside.all()
        np.testing.assert_array_equal(
            cut(tv_tensors.Mask(torch.from_numpy(label)), view, VOID), label_window(label, part)
        )
        assert torch.equal(cut(tv_tensors.Image(image), view, 0), image_window(image, part))


def test_a_half_turn_reverses_both_axes():
    image = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (3, *NATIVE), dtype=np.uint8))
    view = rotated_window(Window.whole(NATIVE), NATIVE, 180.0)
    assert torch.equal(cut(tv_tensors.Image(image), view, 0), tv_tensors.Image(image.flip(1, 2)))


@pytest.mark.parametrize("scaled", [(10, 200), (5, 100), (3, 71), (20, 400)])
@pytest.mark.parametrize("angle", [60.0, -60.0])
@pytest.mark.parametrize("left", [0, 160])
def test_a_window_that_turns_out_of_the_picture_is_empty(scaled, angle, left):
    image, label = torch.full((3, 10, 200), 9, dtype=torch.uint8), torch.ones(10, 200, dtype=torch.uint8)
    view = rotated_window(Window(scaled, 0, left, scaled[0], scaled[1] // 5), (10, 200), angle)
    assert not view.inside.any()
    assert (cut(tv_tensors.Image(image), view, 0) == 0).all()
    assert (cut(tv_tensors.Mask(label), view, VOID) == VOID).all()


def test_any_size_window_and_angle_comes_out():
    rng = np.random.default_rng(4)
    for _ in range(300):
        native, scaled = (tuple(rng.integers(1, 30, 2).tolist()) for _ in range(2))
        size = [int(rng.integers(1, side + 1)) for side in scaled]
        corner = [int((s - z) * n // s) for s, z, n in zip(scaled, size, native, strict=True)]
        view = rotated_window(Window(scaled, *corner, *size), native, rng.uniform(-180, 180))
        got = cut(tv_tensors.Image(torch.full((3, *native), 200, dtype=torch.uint8)), view, 0)
        assert got.shape == (3, *size)
        assert torch.equal(got == 200, torch.from_numpy(view.inside).expand(got.shape))


def test_sampling_continues_the_border():
    image = torch.tensor([[[10, 20], [30, 41]]], dtype=torch.uint8)
    rows, columns = torch.tensor([[0.5, 0.0, 1.0, 2.0]]), torch.tensor([[0.5, -3.0, 1.0, 2.0]])
    assert sample_pixels(image, rows, columns).tolist() == [[[10, 10, 25, 41]]]  # 25.25


def sample_of(label):
    label = torch.as_tensor(label, dtype=torch.uint8)
    return {
        "image": label.repeat(3, 1, 1), "label": label, "depth": label.float() / 10 + 1,
        "depth_valid": torch.ones_like(label, dtype=torch.bool), "name": "frame",
    }  # fmt: skip


def train_transform(**changes):
    settings = {
        "crop": (24, 30), "base_size": None, "ratio": (0.5, 2.0), "cat_max_ratio": None, "hflip": 0.5,
        "photometric": None, "scale_with_zoom": False, "rotate": 30,
    }  # fmt: skip
    return TrainTransform(**{**settings, **changes})


@pytest.fixture
def blocks():
    """A coarse pattern of 24 values from 40 to 224."""
    pattern = np.arange(24, dtype=np.uint8).reshape(4, 6) * 8 + 40
    return sample_of(pattern.repeat(10, axis=0).repeat(10, axis=1))


@pytest.mark.parametrize("photometric", [None, Photometric(brightness=32, contrast=(0.5, 1.5), saturation=(0.5, 1.5),
                                                           hue=18, p=1.0)])  # fmt: skip
def test_all_tensors_turn_alike_and_nothing_is_outside(blocks, photometric):
    emptied = 0
    for index in range(40):
        transform = train_transform(photometric=photometric)
        out = transform(blocks, generator(3, 0, index), VOID).tensors
        assert set(out) == set(blocks) - {"name"}
        assert {type(value) for value in out.values()} == {torch.Tensor}
        inside = out["label"] != VOID
        assert torch.equal(out["depth_valid"], inside)
        assert (out["depth"][~inside] == 0).all()
        assert (out["image"][:, ~inside] == 0).all()
        torch.testing.assert_close(out["depth"][inside], out["label"][inside].float() / 10 + 1)
        assert set(out["label"].unique().tolist()) <= {*blocks["label"].unique().tolist(), VOID}
        if photometric is None:
            assert (out["image"][0] == out["label"])[inside].float().mean() > 0.4  # the rest: blended borders
            assert (out["image"][:, inside] >= 40).all()
        emptied += bool((~inside).any())
    assert emptied > 10


def test_the_flip_mirrors_what_is_outside_too(blocks):
    """Of the same draws, a picture that is always flipped is the mirror of one that never is."""
    photometric = Photometric(brightness=32, contrast=(1.0, 1.0), saturation=(1.0, 1.0), hue=0, p=1.0)
    given = {"photometric": photometric, "ratio": (1.0, 1.0), "crop": (40, 60)}
    for index in range(5):
        kept = train_transform(hflip=0.0, **given)(blocks, generator(index), VOID).tensors
        flipped = train_transform(hflip=1.0, **given)(blocks, generator(index), VOID).tensors
        assert (kept["image"] == 0).any()
        for key in kept:
            assert torch.equal(flipped[key], kept[key].flip(-1)), key


def test_the_crop_is_that_of_the_turned_picture(blocks, monkeypatch):
    """Every crop is the same window of one turned picture, for angles within the limits."""
    drawn, original = [], TrainTransform._random_window

    def record(self, native, scaled, rng):
        drawn.append(original(self, native, scaled, rng))
        return drawn[-1]

    monkeypatch.setattr(TrainTransform, "_random_window", record)
    transform, angles = train_transform(ratio=(1.0, 1.0), hflip=0.0, rotate=10), []
    label = blocks["label"]
    for index in range(60):
        out = transform(blocks, generator(index), VOID)
        rng = generator(index)
        torch.rand((), generator=rng)  # the scale is drawn first
        angles.append(20 * torch.rand((), generator=rng).item() - 10)
        whole = cut(
            tv_tensors.Mask(label), rotated_window(Window.whole((40, 60)), (40, 60), angles[-1]), VOID
        )
        window = drawn[-1]
        want = whole[window.top : window.top + 24, window.left : window.left + 30]
        assert torch.equal(out.tensors["label"], torch.as_tensor(want).as_subclass(torch.Tensor))
    assert -10 <= min(angles) < -8
    assert 8 < max(angles) <= 10


def test_a_small_picture_turns_and_is_padded():
    frame = sample_of(np.full((16, 20), 90, dtype=np.uint8))
    out = train_transform(ratio=(1.0, 1.0), rotate=20)(frame, generator(1), VOID)
    assert out.extent == (16, 20)
    label = out.tensors["label"]
    assert (label[16:] == VOID).all()
    assert (label[:, 20:] == VOID).all()
    assert 0 < (label[:16, :20] == VOID).sum() < 100
    assert torch.equal(out.tensors["depth_valid"], label != VOID)


def test_the_redraw_looks_at_the_turned_label():
    label = np.zeros((40, 60), dtype=np.uint8)
    label[:, 30:] = 1
    transform = train_transform(ratio=(2.0, 2.0), cat_max_ratio=0.75, rotate=10)
    outs = [transform(sample_of(label), generator(5, 0, i), VOID) for i in range(40)]
    assert np.mean([is_varied(out.tensors["label"], VOID, 0.75) for out in outs]) > 0.75
    for out in outs:  # the picture is cropped where the label is
        assert torch.equal(out.tensors["depth_valid"], out.tensors["label"] != VOID)


def test_the_same_draw_gives_the_same_crop(blocks):
    transform = train_transform(rotate=10, ratio_step=0.25)
    once, again, other = (transform(blocks, generator(3, 1, index), VOID).tensors for index in (4, 4, 5))
    assert all(torch.equal(once[key], again[key]) for key in once)
    assert not torch.equal(once["image"], other["image"])


def test_depth_stays_depth(blocks):
    view = rotated_window(Window.whole((40, 60)), (40, 60), 12.0)
    depth = cut(DepthMap(blocks["depth"]), view, 0)
    assert isinstance(depth, DepthMap)
    assert set(depth.unique().tolist()) <= {0.0, *blocks["depth"].unique().tolist()}
    assert (depth[torch.from_numpy(~view.inside)] == 0).all()


def test_scales_come_in_steps_with_equal_probability(monkeypatch):
    drawn, original = [], TrainTransform._random_window

    def record(self, native, scaled, rng):
        drawn.append(scaled)
        return original(self, native, scaled, rng)

    monkeypatch.setattr(TrainTransform, "_random_window", record)
    transform = train_transform(ratio_step=0.25, rotate=None, crop=(4, 4))
    frame = sample_of(np.zeros((40, 60), dtype=np.uint8))
    for index in range(1400):
        transform(frame, generator(7, 0, index), VOID)
    counts = Counter(drawn)
    assert set(counts) == {(int(40 * s), int(60 * s)) for s in (0.5, 0.75, 1, 1.25, 1.5, 1.75, 2)}
    assert min(counts.values()) > 150  # of 200 each, 13 to a standard deviation
    assert max(counts.values()) < 250


def test_steps_of_a_range():
    assert scales((0.5, 2.0), 0.25) == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert scales((1.0, 1.0), 0.25) == [1.0]
    assert scales((0.7, 1.3), 0.1) == pytest.approx([0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3])


@pytest.mark.parametrize("step", [0.4, 1.6])
def test_steps_that_do_not_fit_are_named(step):
    with pytest.raises(ConfigError, match=r"^ratio_step=.*divide the range of ratio=\[0\.5, 2\.0\]"):
        train_transform(ratio_step=step)


@pytest.mark.parametrize("step", [0, -0.25, float("nan")])
def test_a_step_must_be_positive(step):
    with pytest.raises(ConfigError, match=r"ratio_step=.*above 0, or null"):
        train_transform(ratio_step=step)


@pytest.mark.parametrize("angle", [-1, 181, float("nan")])
def test_an_angle_out_of_range_is_named(angle):
    with pytest.raises(ConfigError, match=r"rotate=.*at least 0 and at most 180"):
        train_transform(rotate=angle)
