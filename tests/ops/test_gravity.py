"""The direction of gravity: the iteration of eq. 6.2 written out, known directions, scenes that say nothing."""

import numpy as np
import pytest

from hardpix.ops import geometry
from hardpix.types import ConfigError


def turned(degrees, axis):
    """Rotation about a coordinate axis."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out = np.eye(3)
    out[i, i], out[i, j], out[j, i], out[j, j] = c, -s, s, c
    return out


def room(rotation, floor=400, walls=400, clutter=0, noise=0.03, yaw=20, seed=0):
    """Unit normals of a floor, two pairs of walls turned by ``yaw`` about the vertical, and clutter."""
    rng = np.random.default_rng(seed)
    up = np.array([0, -1.0, 0])
    sides = turned(yaw, 1) @ np.array([[1.0, 0, 0], [0, 0, 1]]).T
    normals = [np.repeat(up[None], floor, 0), np.repeat(sides.T, walls // 2, 0)]
    normals = np.concatenate(normals) + noise * rng.standard_normal((floor + walls // 2 * 2, 3))
    normals = np.concatenate([normals, rng.standard_normal((clutter, 3))]) @ rotation.T
    return normals / np.linalg.norm(normals, axis=1, keepdims=True), rotation @ up


def angle(a, b):
    return np.degrees(np.arccos(np.clip(a @ b, -1, 1)))


def written_out(normals):
    """Eq. 6.2, one normal at a time."""
    g = np.array([0, 1.0, 0])
    for theta in (45, 15):
        for _ in range(5):
            matrix, any_found = np.zeros((3, 3)), False
            for n in normals:
                if abs(g @ n) > np.cos(np.deg2rad(theta)):
                    matrix, any_found = matrix - np.outer(n, n), True
                if abs(g @ n) < np.sin(np.deg2rad(theta)):
                    matrix, any_found = matrix + np.outer(n, n), True
            if any_found:
                values, vectors = np.linalg.eigh(matrix)
                new = vectors[:, np.argmin(values)]
                g = new * (1 if new @ g > 0 else -1)
    return g


@pytest.mark.parametrize("noise", [0.2, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_iteration_is_that_of_the_paper(seed, noise):
    """Also where it has not settled after ten steps, and one more or less would show."""
    rng = np.random.default_rng(seed)
    normals = room(turned(rng.uniform(-30, 30), 0), 40, 60, clutter=80, noise=noise, seed=seed)[0]
    np.testing.assert_allclose(geometry.gravity(normals), written_out(normals), atol=1e-9)


@pytest.mark.parametrize("pitch", [-40, -10, 0, 25, 40])
@pytest.mark.parametrize("roll", [-15, 0, 10])
@pytest.mark.parametrize("method", ["gravity", "manhattan"])
def test_a_tilted_camera_finds_up(pitch, roll, method):
    normals, up = room(turned(roll, 2) @ turned(pitch, 0), clutter=200)
    got = geometry.up_direction(normals, method)
    assert abs(np.linalg.norm(got) - 1) < 1e-12
    assert angle(got, up) < 1


@pytest.mark.parametrize(("floor", "walls"), [(400, 0), (0, 400)])
def test_floor_alone_or_walls_alone_will_do(floor, walls):
    normals, up = room(turned(12, 0), floor, walls)
    assert angle(geometry.up_direction(normals, "gravity"), up) < 1


def test_the_second_stage_leaves_slanted_clutter_out():
    """Of surfaces 30 degrees from the vertical the first stage takes all, the second none."""
    normals, up = room(turned(8, 0), floor=300, walls=0, noise=0.01)
    slanted = room(turned(8 + 30, 0), floor=150, walls=0, noise=0.01, seed=1)[0]
    assert angle(geometry.up_direction(np.concatenate([normals, slanted]), "gravity"), up) < 0.5


def test_signs_of_normals_do_not_matter():
    normals, _ = room(turned(12, 0), clutter=100)
    flipped = normals * np.random.default_rng(0).choice([-1, 1], (len(normals), 1))
    for method in ("gravity", "manhattan"):
        one, other = (geometry.up_direction(n, method) for n in (normals, flipped))
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_without_floor_and_walls_it_stays_at_the_camera(monkeypatch):
    """Normals that are neither leave nothing to fit; at 45 degrees itself rounding would decide for some."""
    monkeypatch.setattr(geometry, "STAGES", ((40.0, 5), (15.0, 5)))
    half = np.sqrt(0.5)
    for normals in (np.zeros((0, 3)), np.array([[half, half, 0], [0, half, half]])):
        for method in ("gravity", "manhattan"):
            np.testing.assert_allclose(geometry.up_direction(normals, method), [0, -1, 0], atol=1e-12)


def test_manhattan_is_a_rotation_that_lowers_the_sum():
    normals, _ = room(turned(12, 0) @ turned(7, 2), clutter=300, noise=0.1)
    start = np.eye(3)
    frame = geometry.manhattan(normals, start)
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(frame) > 0
    assert np.abs(normals @ frame.T).sum() < 0.9 * np.abs(normals @ start).sum()
    turn = [turned(3, axis) for axis in range(3)] + [turned(-3, axis) for axis in range(3)]
    least = np.abs(normals @ frame.T).sum()
    assert all(np.abs(normals @ (t @ frame).T).sum() > least for t in turn)


def test_manhattan_uses_walls_at_right_angles():
    """A floor of few noisy points: two clean pairs of walls fix the third axis."""
    normals, up = room(turned(10, 0), floor=60, walls=2000, noise=0.02, clutter=0)
    normals[:60] = room(turned(22, 0), floor=60, walls=0, noise=0.02)[0]  # a ramp in place of the floor
    assert angle(geometry.up_direction(normals, "manhattan"), up) < 1


def test_a_method_that_does_not_exist_is_told():
    with pytest.raises(ConfigError, match="up_method is 'guess'; it must be 'gravity' or 'manhattan'"):
        geometry.up_direction(np.zeros((0, 3)), "guess")
