"""Normals by the equations of each window, planes that are known, holes and windows that say nothing."""

import numpy as np
import pytest

from hardpix.ops import geometry

CAMERA = np.array([[20.0, 0, 6.3], [0, 23.0, 5.1], [0, 0, 1]])
SIZE = (14, 17)


def from_equations(depth, valid, camera, radius):
    """Per pixel: ``(sum a a^T) n = sum a / Z`` over the window, normalised, turned to the camera; NaN without."""
    height, width = depth.shape
    out = np.full((height, width, 3), np.nan)
    for v in range(height):
        for u in range(width):
            matrix, right = np.zeros((3, 3)), np.zeros(3)
            for j in range(max(0, v - radius), min(height, v + radius + 1)):
                for i in range(max(0, u - radius), min(width, u + radius + 1)):
                    if valid[j, i]:
                        a = np.array(
                            [(i - camera[0, 2]) / camera[0, 0], (j - camera[1, 2]) / camera[1, 1], 1]
                        )
                        matrix += np.outer(a, a)
                        right += a / depth[j, i]
            if valid[v, u] and np.linalg.cond(matrix) < 1e10:
                n = np.linalg.solve(matrix, right)
                ray = [(u - camera[0, 2]) / camera[0, 0], (v - camera[1, 2]) / camera[1, 1], 1]
                out[v, u] = -np.sign(n @ ray) * n / np.linalg.norm(n)
    return out


def noisy(share_valid, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(1, 2, SIZE).astype(np.float32), rng.random(SIZE) < share_valid


def plane_depth(normal, distance, shape=SIZE, camera=CAMERA):
    """Depth of the plane ``normal . P = distance``."""
    v, u = np.mgrid[: shape[0], : shape[1]]
    ray = np.stack([(u - camera[0, 2]) / camera[0, 0], (v - camera[1, 2]) / camera[1, 1], np.ones(shape)], -1)
    return (distance / (ray @ np.asarray(normal))).astype(np.float32)


def degrees(a, b):
    return np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2, 0, 1)))


def test_points_are_those_of_a_pinhole_whose_first_pixel_is_0():
    depth = noisy(1)[0]
    points = geometry.points(depth, CAMERA)
    z = depth[4, 9]
    np.testing.assert_allclose(points[4, 9], [(9 - 6.3) * z / 20, (4 - 5.1) * z / 23, z], rtol=1e-6)


@pytest.mark.parametrize("radius", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("share", [1.0, 0.7, 0.25])
def test_normals_solve_the_equations_of_each_window(radius, share):
    depth, valid = noisy(share)
    expected = from_equations(depth, valid, CAMERA, radius)
    normal, found = geometry.plane_normals(depth, valid, CAMERA, radius)
    np.testing.assert_array_equal(found, ~np.isnan(expected[..., 0]))
    assert degrees(normal[found], expected[found]).max() < 0.02
    assert not normal[~found].any()


@pytest.mark.parametrize(("radius", "step"), [(1, 1), (2, 3), (3, 5), (10, 4), (6, 40)])
def test_normals_on_a_grid_are_those_of_all_pixels(radius, step):
    depth, valid = noisy(0.6)
    normal, found = geometry.plane_normals(depth, valid, CAMERA, radius)
    some, seen = geometry.grid_normals(geometry.inverse_depth(depth, valid), CAMERA, radius, step)
    first = [(min(step, size) - 1) // 2 for size in SIZE]
    np.testing.assert_array_equal(seen, found[first[0] :: step, first[1] :: step])
    np.testing.assert_allclose(some, normal[first[0] :: step, first[1] :: step], atol=2e-4)


def test_the_cut_into_blocks_does_not_show(monkeypatch):
    depth, valid = noisy(0.6)
    whole = geometry.plane_normals(depth, valid, CAMERA, 3)
    for block in (1, 50, 100):
        monkeypatch.setattr(geometry, "_BLOCK", block)
        for one, other in zip(geometry.plane_normals(depth, valid, CAMERA, 3), whole, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("normal", [(0, 0.8, 0.6), (0.6, 0, 0.8), (-0.36, -0.48, 0.8), (0, 0, 1)])
def test_a_plane_has_its_normal_everywhere_and_it_faces_the_camera(normal):
    shape, camera = (60, 80), np.array([[70.0, 0, 39], [0, 71.0, 12], [0, 0, 1]])
    depth = plane_depth(normal, 1.7, shape, camera)
    seen = (depth > 0.2) & (depth < 50)
    for radius in (1, 3, 10):
        got, found = geometry.plane_normals(depth, seen, camera, radius)
        np.testing.assert_array_equal(found, seen)
        assert degrees(got[found], -np.array(normal)).max() < 0.03
        assert (np.einsum("...i,...i", got, geometry.points(depth, camera))[found] < 0).all()


def test_far_planes_seen_at_a_grazing_angle_survive_float32():
    camera = np.array([[519.0, 0, 319.5], [0, 519.0, 239.5], [0, 0, 1]])
    normal = np.array([0, 0.9998, np.sqrt(1 - 0.9998**2)])
    depth = plane_depth(normal, 1.4, (480, 640), camera)
    seen = (depth > 0.2) & (depth < 10)
    got, found = geometry.plane_normals(depth, seen, camera, 3)
    assert found.sum() > 50_000
    assert degrees(got[found], -normal).max() < 0.03


def test_what_lies_in_pixels_without_depth_does_not_matter():
    depth, valid = noisy(0.5)
    expected = geometry.plane_normals(depth, valid, CAMERA, 2)
    for rubbish in (0, -1, 1e-30, 1e30, np.nan, np.inf):
        spoilt = np.where(valid, depth, np.float32(rubbish)).astype(np.float32)
        for one, other in zip(geometry.plane_normals(spoilt, valid, CAMERA, 2), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        if not 0 < rubbish < np.inf:  # no depth, whatever the mask says
            got = geometry.plane_normals(spoilt, np.ones_like(valid), CAMERA, 2)
            np.testing.assert_array_equal(got[0], expected[0])


@pytest.mark.parametrize("radius", [1, 3, 10])
@pytest.mark.parametrize(
    "line", [[(7, x) for x in range(17)], [(y, 4) for y in range(14)], [(d, d + 2) for d in range(14)],
             [(2 * d, d + 1) for d in range(7)], [(3, 3)], [(3, 3), (4, 5)]],
)  # fmt: skip
def test_pixels_on_one_line_have_no_plane(radius, line):
    depth, valid = noisy(0)
    for v, u in line:
        valid[v, u] = True
    assert not geometry.plane_normals(depth, valid, CAMERA, radius)[1].any()
    assert not geometry.grid_normals(geometry.inverse_depth(depth, valid), CAMERA, radius, 1)[1].any()
    v, u = line[len(line) // 2]
    valid[v, u - 1] = valid[v - 1, u] = True  # but three corners of a square do
    assert geometry.plane_normals(depth, valid, CAMERA, radius)[1][v, u]
    assert geometry.grid_normals(geometry.inverse_depth(depth, valid), CAMERA, radius, 1)[1][v, u]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_small_images(shape):
    depth, valid = np.full(shape, 2, np.float32), np.ones(shape, bool)
    for radius in (1, 3, 10):
        normal, found = geometry.plane_normals(depth, valid, CAMERA, radius)
        assert found.all() == (shape == (2, 2))
        assert normal.shape == (*shape, 3)
        some, seen = geometry.grid_normals(geometry.inverse_depth(depth, valid), CAMERA, radius, 8)
        assert some.shape[:2] == seen.shape
        assert seen.size > 0
    assert degrees(normal[found], [0, 0, -1]).max(initial=0) < 0.01


def test_types_hold():
    depth, valid = noisy(0.5)
    for radius in (3, 8):
        assert geometry.plane_normals(depth, valid, CAMERA, radius)[0].dtype == np.float32
        assert (
            geometry.grid_normals(geometry.inverse_depth(depth, valid), CAMERA, radius, 2)[0].dtype
            == np.float32
        )
