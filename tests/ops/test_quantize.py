"""Labels of height and normal: bins, floor, rejection, and a box-shaped room whose labels are known."""

import math

import numpy as np
import pytest

from hardpix.data.sets.hn import hn_class_names, hn_palette
from hardpix.ops import quantize
from hardpix.ops.quantize import HNLabel
from hardpix.types import ConfigError

TEN = tuple(0.25 * k for k in range(10))
FIVE = tuple(0.5 * k for k in range(5))
SHAPE = (96, 128)
CAMERA = np.array([[104.0, 0, 63.5], [0, 104.0, 47.5], [0, 0, 1]])
ROOM = np.array([5.0, 6.0, 2.6])  # metres
TABLE = (np.array([1.8, 2.2, 0.0]), np.array([3.0, 3.4, 0.8]))


def hn_label(depth, valid=None, camera=CAMERA, **changes) -> HNLabel:
    settings = {"radius": 2, "gravity_radius": 4, "up_method": "gravity", "height_edges": TEN, "normals": 2}
    valid = np.ones(depth.shape, bool) if valid is None else valid
    return quantize.hn_label(depth, valid, camera, **(settings | changes))


def look(position, yaw, pitch, roll=0.0, camera=CAMERA, shape=SHAPE):
    """Depth of the room with the table as one sees it, and the world's point and up-part of the normal per pixel."""
    y, p, r = np.deg2rad([yaw, pitch, roll])
    forward = np.array([math.cos(y) * math.cos(p), math.sin(y) * math.cos(p), -math.sin(p)])
    right = np.array([math.sin(y), -math.cos(y), 0])
    down = np.cross(forward, right)
    right, down = math.cos(r) * right + math.sin(r) * down, math.cos(r) * down - math.sin(r) * right
    v, u = np.mgrid[: shape[0], : shape[1]]
    x, y = (u - camera[0, 2]) / camera[0, 0], (v - camera[1, 2]) / camera[1, 1]
    ray = x[..., None] * right + y[..., None] * down + forward
    with np.errstate(divide="ignore"):
        depth, axis = smallest(np.where(ray > 0, ROOM - position, -np.asarray(position)) / ray)
        near, far = (np.sort([(c - position) / ray for c in TABLE], axis=0)[k] for k in (0, 1))
    enter, side = near.max(-1), near.argmax(-1)
    hit = (enter < far.min(-1)) & (enter > 0) & (enter < depth)
    depth, axis = np.where(hit, enter, depth), np.where(hit, side, axis)
    point = position + depth[..., None] * ray
    up = np.array([right[2], down[2], forward[2]])
    return depth.astype(np.float32), point, axis == 2, np.where(hit, axis + 3, axis), up


def smallest(a):
    return a.min(-1), a.argmin(-1)


def away_from_edges(surface, point, radius):
    """Pixels whose window sees one surface, and whose height is not within 2 cm of a bin's edge."""
    same = np.ones(surface.shape, bool)
    padded = np.pad(surface, radius, mode="edge")
    signs = np.pad(np.sign(point - ROOM / 2) @ [1, 3, 9], radius, mode="edge")
    for j in range(2 * radius + 1):
        for i in range(2 * radius + 1):
            window = np.s_[j : j + surface.shape[0], i : i + surface.shape[1]]
            here = np.s_[radius : radius + surface.shape[0], radius : radius + surface.shape[1]]
            same &= padded[window] == surface
            same &= (signs[window] == signs[here]) | (surface > 2)
    gap = np.abs((point[..., 2] + 0.125) % 0.25 - 0.125)
    return same & ((gap > 0.02) | ((point[..., 2] < 0.02) | (point[..., 2] > ROOM[2] - 0.02)))


VIEWS = [
    ((0.6, 0.7, 1.5), 35, 15, 0), ((0.6, 0.7, 1.5), 60, 15, 0), ((2.4, 5.2, 1.2), 200, 25, -8),
    ((2.4, 5.2, 1.2), 290, 25, -8), ((4.2, 2.0, 1.8), 90, 30, 10), ((4.2, 2.0, 1.8), 160, 30, 10),
    ((2.4, 1.0, 1.5), 90, -5, 4), ((2.4, 1.0, 1.5), 110, 10, 4),
]  # fmt: skip


@pytest.mark.parametrize(("position", "yaw", "pitch", "roll"), VIEWS)
def test_labels_do_not_depend_on_where_the_camera_is(position, yaw, pitch, roll, monkeypatch):
    depth, point, flat, surface, up = look(np.array(position), yaw, pitch, roll)
    expected = np.minimum(np.floor(np.maximum(point[..., 2], 0) / 0.25 + 1e-6), 9) + 10 * ~flat
    sure = away_from_edges(surface, point, 2)
    assert sure.mean() > 0.3
    got = hn_label(depth)
    assert got.rejected is None
    assert np.degrees(np.arccos(min(1, got.up @ up))) < 1
    assert got.floor == pytest.approx(-position[2], abs=0.07)
    assert (got.label == expected)[sure].mean() > 0.9
    monkeypatch.setattr(quantize.geometry, "up_direction", lambda normal, method: up)
    got = hn_label(depth)
    assert got.floor == pytest.approx(-position[2], abs=1e-3)
    np.testing.assert_array_equal(got.label[sure], expected[sure])


def test_the_bins_of_a_height_begin_at_their_edge():
    height = np.array([-0.3, 0, 0.2499, 0.25, 0.4999, 0.5, 2.2499, 2.25, 3, 50], np.float32)
    assert quantize.height_bins(height, TEN).tolist() == [0, 0, 0, 1, 1, 2, 8, 9, 9, 9]
    assert quantize.height_bins(height, FIVE).tolist() == [0, 0, 0, 0, 0, 1, 4, 4, 4, 4]
    assert quantize.height_bins(height, (0.0,)).tolist() == [0] * 10
    assert quantize.height_bins(height, (0, 0.1, 2.25)).tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 199, 200, 201, 1000, 1234])
def test_the_floor_is_the_first_percentile(count):
    level = np.random.default_rng(count).permutation(count).astype(np.float32).reshape(1, -1)
    floor = quantize.floor_level(level, np.ones_like(level, bool))
    assert np.mean(level <= floor) >= 0.01
    assert np.mean(level <= floor - 1) < 0.01
    holes = np.concatenate([level - 5000, level], 1)
    assert quantize.floor_level(holes, np.arange(2 * count)[None] >= count) == floor


def test_heights_are_along_up():
    depth, up = np.random.default_rng(0).uniform(1, 2, SHAPE).astype(np.float32), np.array([0.1, -0.9, -0.2])
    got = quantize.heights(depth, CAMERA, up)
    for v, u in ((0, 0), (50, 17), (95, 127)):
        point = depth[v, u] * np.array([(u - 63.5) / 104, (v - 47.5) / 104, 1])
        assert got[v, u] == pytest.approx(up @ point, abs=1e-5)


def down_looking(angle):
    """A floor 1.5 m below a camera that looks at it, and right of the middle a plane tilted by ``angle`` degrees."""
    v, u = np.mgrid[: SHAPE[0], : SHAPE[1]]
    x, y = (u - 63.5) / 104, (v - 47.5) / 104
    turn = np.deg2rad(20)
    up = np.array([0, -math.cos(turn), -math.sin(turn)])
    ray = np.stack([x, y, np.ones(SHAPE)], -1)
    tilted = math.cos(np.deg2rad(angle)) * up + math.sin(np.deg2rad(angle)) * np.array([-1, 0, 0])
    with np.errstate(divide="ignore"):
        floor, slope = -1.5 / (ray @ up), -1.5 / (ray @ tilted)
    use = (v > 50) & (floor > 0) & (floor < 6) & ((u < 60) | ((slope > 0) & (slope < 6)))
    return np.where(u < 60, floor, slope).astype(np.float32), use, u >= 70


@pytest.mark.parametrize(("angle", "horizontal"), [(0, True), (30, True), (43, True), (47, False), (-47, False),
                                                   (-43, True), (70, False)])  # fmt: skip
def test_the_angle_to_up_is_folded_at_45_degrees(angle, horizontal, monkeypatch):
    turn = np.deg2rad(20)
    up = np.array([0, -math.cos(turn), -math.sin(turn)])
    monkeypatch.setattr(quantize.geometry, "up_direction", lambda normal, method: up)
    monkeypatch.setattr(quantize, "floor_level", lambda level, valid: -1.5)
    depth, use, sloped = down_looking(angle)
    got = hn_label(depth, use)
    inner = use & sloped
    inner[51:54] = False
    assert inner.sum() > 200
    assert (got.label[~use] == 255).all()
    assert (got.label[inner] < 10).mean() == (1.0 if horizontal else 0.0)


def test_a_label_is_normal_bin_times_bins_plus_height_bin():
    depth, point, flat, surface, _ = look(np.array([0.6, 0.7, 1.5]), 35, 15)
    sure = away_from_edges(surface, point, 2)
    ten, five, plain = (
        hn_label(depth, height_edges=edges, normals=n).label for edges, n in ((TEN, 2), (FIVE, 2), (TEN, 1))
    )
    assert set(np.unique(ten)) <= set(range(20))
    assert (ten[sure] // 10 == ~flat[sure]).mean() > 0.995
    np.testing.assert_array_equal(five // 5, ten // 10)
    np.testing.assert_array_equal(five % 5, ten % 10 // 2)
    np.testing.assert_array_equal(plain, ten % 10)


def test_pixels_without_depth_or_normal_are_255():
    depth = look(np.array([0.6, 0.7, 1.5]), 35, 15)[0]
    valid = np.random.default_rng(0).random(SHAPE) < 0.8
    valid[20:40, 30:60] = False
    valid[30, 45] = valid[30, 44] = True  # a normal takes three
    got = hn_label(np.where(valid, depth, np.float32(np.nan)), valid)
    assert got.rejected is None
    assert got.valid_share == pytest.approx(valid.mean())
    expected = ~valid
    expected[30, 44:46] = True
    np.testing.assert_array_equal(got.label == 255, expected)


def test_few_pixels_with_depth_are_rejected():
    depth = look(np.array([0.6, 0.7, 1.5]), 35, 15)[0]
    for share, kept in ((0.0, False), (0.0099, False), (1.0, True)):
        valid = np.zeros(depth.size, bool)
        valid[: int(share * depth.size)] = True
        got = hn_label(depth, valid.reshape(SHAPE)[::-1].copy())
        assert (got.rejected is None) == kept
        if not kept:
            assert got.rejected == "fewer than 1% of the pixels have depth"
            assert (got.label == 255).all()
            assert np.isnan(got.up).all()
            assert math.isnan(got.floor)


def test_one_per_cent_of_the_pixels_is_enough_to_be_looked_at():
    depth = look(np.array([0.6, 0.7, 1.5]), 35, 15)[0]
    valid = np.zeros(depth.size, bool)
    valid[-math.ceil(0.01 * depth.size) :] = True
    assert "pixels have depth" not in (hn_label(depth, valid.reshape(SHAPE)).rejected or "")


def test_a_frame_whose_lowest_points_are_no_floor_is_rejected():
    depth = look(np.array([0.6, 0.7, 1.5]), 35, -30)[0]
    got = hn_label(depth)
    assert got.rejected == "floor not horizontal: 0% of its points agree"
    assert (got.label == 255).all()
    assert np.isfinite([*got.up, got.floor]).all()


@pytest.mark.parametrize(("tilt", "kept"), [(28, True), (32, False)])
def test_a_floor_may_lean_by_30_degrees(tilt, kept, monkeypatch):
    lean = np.deg2rad(20 + tilt)
    leaning = np.array([0, -math.cos(lean), -math.sin(lean)])
    monkeypatch.setattr(quantize.geometry, "up_direction", lambda normal, method: leaning)
    depth, use, sloped = down_looking(0)
    assert (hn_label(depth, use & ~sloped).rejected is None) == kept


def test_half_of_the_floor_is_no_majority(monkeypatch):
    depth = look(np.array([0.6, 0.7, 1.5]), 35, 25)[0]
    level = np.where(np.arange(SHAPE[1]) < 64, -1.5, 0.0) * np.ones((SHAPE[0], 1))
    monkeypatch.setattr(quantize, "heights", lambda depth, camera, up: level.astype(np.float32))
    valid, found = np.ones(SHAPE, bool), np.ones(SHAPE, bool)
    for extra, kept in ((0, False), (1, True)):
        aligned = np.zeros(SHAPE, bool)
        aligned[: SHAPE[0] // 2, :64] = True
        aligned[-1, :extra] = True
        monkeypatch.setattr(quantize, "_by_angle", lambda *a, aligned=aligned: (aligned, aligned, found))
        assert (hn_label(depth, valid).rejected is None) == kept


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (1, 7), (3, 2)])
def test_small_images(shape):
    depth = np.full(shape, 2, np.float32)
    got = hn_label(depth)
    assert got.label.shape == shape
    assert (got.label == 255).all()
    assert got.rejected


def test_settings_that_cannot_be_are_told():
    depth = np.ones(SHAPE, np.float32)
    for changes, message in (
        ({"height_edges": (0.1, 0.5)}, "must begin with 0 and ascend"),
        ({"height_edges": (0, 0.5, 0.5)}, "must begin with 0 and ascend"),
        ({"height_edges": (0, math.inf)}, "must begin with 0 and ascend"),
        ({"height_edges": ()}, "must begin with 0 and ascend"),
        ({"height_edges": [0.01 * k for k in range(128)]}, "128 bins"),
        ({"normals": 3}, "normals is 3; it must be 1 or 2"),
        ({"radius": 0}, "radii are 0 and 4"),
        ({"up_method": "guess"}, "it must be 'gravity' or 'manhattan'"),
    ):
        with pytest.raises(ConfigError, match=message):
            hn_label(depth, **changes)


def test_classes_have_names_in_the_order_of_the_labels_and_colours_that_differ():
    names = hn_class_names(TEN, 2)
    assert (len(names), len(set(names))) == (20, 20)
    assert names[0] == "0.00-0.25 m, horizontal"
    assert names[9] == "2.25 m and more, horizontal"
    assert names[11] == "0.25-0.50 m, vertical"
    assert hn_class_names(FIVE, 1) == (
        "0.00-0.50 m", "0.50-1.00 m", "1.00-1.50 m", "1.50-2.00 m", "2.00 m and more",
    )  # fmt: skip
    assert hn_class_names((0.0,), 2) == ("0.00 m and more, horizontal", "0.00 m and more, vertical")
    for heights, normals in ((10, 2), (5, 2), (10, 1), (1, 2)):
        colours = np.array(hn_palette(heights, normals))
        assert colours.shape == (heights * normals, 3)
        gap = np.abs(colours[:, None] - colours).sum(-1) + 999 * np.eye(len(colours), dtype=int)
        assert gap.min() >= 25
        assert colours.min() >= 0
        assert colours.max() <= 255
