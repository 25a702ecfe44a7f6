"""Render the synthetic rooms: ray casting, shading, sensor noise.

Every primitive proposes the pixels of its projected bounding rectangle; all (pixel, primitive) pairs are then
tested at once, shape by shape, and the nearest hit per pixel is kept. There is no loop over pixels or objects.

Camera frame: x right, y down, z forward; pixel centres at integer coordinates. Rays have z = 1 in it, so the ray
parameter *is* the depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardpix.data.synthetic.furniture import BOX, CYLINDER, ELLIPSOID
from hardpix.data.synthetic.scene import Materials, Scene

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
_CHUNK = 1 << 16  # pairs tested together: the temporaries stay in cache


class Camera(NamedTuple):
    height: int
    width: int
    K: Floats  # [3, 3] pixels
    pose: Floats  # [4, 4] camera to world


class Hits(NamedTuple):
    """The first surface that each pixel's ray meets; ``P = H * W`` pixels in row order."""

    depth: Floats  # [P] metres along the optical axis
    normal: Floats  # [P, 3] world frame, unit, facing the camera
    material: Ints  # [P]
    point: Floats  # [P, 3] world frame
    texture: Floats  # [P, 3] the point in the primitive's own frame, metres


class _Local(NamedTuple):
    """Primitives seen from the camera, each in its own frame, scaled so that it spans [-1, 1]; float32."""

    origin: Floats  # [3, N] camera centre
    turn: Floats  # [5, N] ray to unit frame: x from x, x from y, y from x, y from y, z from z
    half: Floats  # [N, 3]
    cos: Floats  # [N] of the yaw
    sin: Floats  # [N]


def look(rng: np.random.Generator, scene: Scene, height: int, width: int, focal: float) -> Camera:
    """A camera 1.0 to 1.8 m above the floor, turned towards a random point of the far half of the room."""
    x0, y0, x1, y1 = scene.stand
    eye = rng.uniform((x0, y0, 1.0), (x1, y1, 1.8))
    target = rng.uniform((0.4, 0.4, 0.1), (0.95, 0.95, 0.45)) * scene.size
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.array([forward[1], -forward[0], 0.0]) / np.hypot(forward[0], forward[1])
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(forward, right), forward, eye], axis=1)
    return Camera(height, width, intrinsics(height, width, focal), pose.astype(np.float32))


def intrinsics(height: int, width: int, focal: float) -> Floats:
    """``[3, 3]`` of a camera with square pixels that looks at the middle of its picture; ``focal`` in widths."""
    f = focal * width
    K = np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1]])
    return K.astype(np.float32)


def camera_rays(camera: Camera) -> Floats:
    """Directions ``[P, 3]`` in the camera frame, with z = 1."""
    K = camera.K
    x = (np.arange(camera.width, dtype=np.float32) - K[0, 2]) / K[0, 0]
    y = (np.arange(camera.height, dtype=np.float32) - K[1, 2]) / K[1, 1]
    rays = np.ones((camera.height, camera.width, 3), np.float32)
    rays[..., 0], rays[..., 1] = x, y[:, None]
    return rays.reshape(-1, 3)


def cast(scene: Scene, camera: Camera) -> Hits:
    """Nearest hit of every pixel."""
    local = _localise(scene, camera.pose[:3, 3])
    rays = camera_rays(camera) @ camera.pose[:3, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):
        depth, owner = _room_exit(scene, camera, rays)
        columns = np.ascontiguousarray(rays.T)
        for shape in (BOX, CYLINDER, ELLIPSOID):
            for pixel, index in _pairs(scene, camera, np.flatnonzero(scene.shape == shape)):
                _keep_nearest(depth, owner, pixel, index, _enter(shape, local, columns, pixel, index)[0])
        return _describe(scene, camera, local, columns, depth, owner)


def _localise(scene: Scene, eye: Floats) -> _Local:
    cos, sin = np.cos(scene.yaw), np.sin(scene.yaw)
    to = eye - scene.centre
    x, y, z = scene.half.T
    turn = np.stack([cos / x, sin / x, -sin / y, cos / y, 1 / z])
    origin = np.stack(
        [turn[0] * to[:, 0] + turn[1] * to[:, 1], turn[2] * to[:, 0] + turn[3] * to[:, 1], to[:, 2] / z]
    )
    return _Local(*(a.astype(np.float32) for a in (origin, turn, scene.half, cos, sin)))


def _room_exit(scene: Scene, camera: Camera, rays: Floats) -> tuple[Floats, Ints]:
    """Depth of the room's own surfaces, and their owner: ``N + 2 * axis + far side``."""
    eye, size = camera.pose[:3, 3], scene.size.astype(np.float32)
    exits = np.where(rays > 0, size - eye, -eye) / rays
    axis = np.argmin(exits, axis=1)
    rows = np.arange(len(rays))
    return exits[rows, axis].copy(), len(scene.shape) + 2 * axis + (rays[rows, axis] > 0)


def _rectangles(scene: Scene, camera: Camera, which: Ints) -> Ints:
    """Pixel rectangles ``[n, 4]`` (x0, y0, x1, y1, inclusive) that cover the primitives ``which``."""
    corner = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T * scene.half[which, None]
    cos, sin = np.cos(scene.yaw[which, None]), np.sin(scene.yaw[which, None])
    x = cos * corner[..., 0] - sin * corner[..., 1]
    y = sin * corner[..., 0] + cos * corner[..., 1]
    world = np.stack([x, y, corner[..., 2]], -1) + scene.centre[which, None] - camera.pose[:3, 3]
    seen = world @ camera.pose[:3, :3].astype(np.float64)
    uv = seen[..., :2] / np.maximum(seen[..., 2:], 1e-6) * np.diag(camera.K)[:2] + camera.K[:2, 2]
    last = (camera.width - 1, camera.height - 1)
    low = np.clip(np.floor(uv.min(1)), 0, last)
    high = np.clip(np.ceil(uv.max(1)), -1, last)
    near, behind = seen[..., 2].min(1) < 0.05, seen[..., 2].max(1) < 0
    low[near], high[near] = 0, last  # a corner next to or behind the camera does not project
    high[behind] = -1
    return np.concatenate([low, high], 1).astype(np.int64)


def _pairs(scene: Scene, camera: Camera, which: Ints) -> Iterator[tuple[Ints, Ints]]:
    """All (pixel, primitive) pairs that can meet, as two index vectors, in chunks."""
    x0, y0, x1, y1 = _rectangles(scene, camera, which).T
    wide = np.maximum(x1 - x0 + 1, 0)
    area = wide * np.maximum(y1 - y0 + 1, 0)
    end = np.cumsum(area)
    first = y0 * camera.width + x0
    for start in range(0, int(area.sum()), _CHUNK):
        inside = np.clip(end - start, 0, _CHUNK) - np.clip(end - area - start, 0, _CHUNK)
        slot = np.repeat(np.arange(len(which)), inside)
        place = np.arange(start, start + len(slot)) - (end - area)[slot]
        row = place // wide[slot]
        yield first[slot] + place + row * (camera.width - wide)[slot], which[slot]


def _slab(o: Floats, d: Floats) -> tuple[Floats, Floats]:
    """Interval of the ray ``o + t d`` within [-1, 1]."""
    inverse: Floats = np.reciprocal(d)
    middle, reach = -o * inverse, np.abs(inverse)
    return middle - reach, middle + reach


def _round(o: list[Floats], d: list[Floats]) -> tuple[Floats, Floats]:
    """Interval of the ray within the unit circle or sphere (as many axes as given); NaN where it misses."""
    a = _total([x * x for x in d])
    middle = -_total([x * y for x, y in zip(o, d, strict=True)]) / a
    # From the point nearest to the centre: no cancellation for small things far away.
    rest = 1 - _total([(x + middle * y) ** 2 for x, y in zip(o, d, strict=True)])
    reach = np.sqrt(rest / a)
    return middle - reach, middle + reach


def _total(terms: list[Floats]) -> Floats:
    return np.add.reduce(terms)


def _enter(
    shape: int, local: _Local, columns: Floats, pixel: Ints, index: Ints
) -> tuple[Floats, list[Floats], list[Floats], list[Floats]]:
    """Depth at which pairs enter their primitive (inf: never), the entries per constraint, and the unit ray."""
    x, y, z = (column[pixel] for column in columns)
    t = [row[index] for row in local.turn]
    d = [t[0] * x + t[1] * y, t[2] * x + t[3] * y, t[4] * z]
    o = [row[index] for row in local.origin]
    if shape == BOX:
        spans = [_slab(o[i], d[i]) for i in range(3)]
    elif shape == CYLINDER:
        spans = [_round(o[:2], d[:2]), _slab(o[2], d[2])]
    else:
        spans = [_round(o, d)]
    enter = [span[0] for span in spans]
    near, far = enter[0], spans[0][1]
    for low, high in spans[1:]:
        near, far = np.maximum(near, low), np.minimum(far, high)
    return np.where((near < far) & (near > 0), near, np.float32(np.inf)), enter, o, d


def _keep_nearest(depth: Floats, owner: Ints, pixel: Ints, index: Ints, t: Floats) -> None:
    nearer = t < depth[pixel]
    pixel, index, t = pixel[nearer], index[nearer], t[nearer]
    np.minimum.at(depth, pixel, t)
    won = t == depth[pixel]
    owner[pixel[won]] = index[won]


def _describe(
    scene: Scene, camera: Camera, local: _Local, columns: Floats, depth: Floats, owner: Ints
) -> Hits:
    """Normals, materials and texture coordinates of the winning surfaces."""
    point = camera.pose[:3, 3] + (depth * columns).T
    normal, texture = np.zeros_like(point), point.copy()
    count = len(scene.shape)
    of_room = np.flatnonzero(owner >= count)
    axis, far = np.divmod(owner[of_room] - count, 2)
    normal[of_room, axis] = 1 - 2 * far
    material = np.empty(len(owner), np.int64)
    material[of_room] = scene.room_materials[np.where(axis == 2, far, 2)]
    shapes = scene.shape[np.minimum(owner, count - 1)]
    for shape in (BOX, CYLINDER, ELLIPSOID):
        pixel = np.flatnonzero((owner < count) & (shapes == shape))
        index = owner[pixel]
        material[pixel] = scene.material[index]
        _, enter, o, d = _enter(shape, local, columns, pixel, index)
        unit = np.stack(o, 1) + depth[pixel, None] * np.stack(d, 1)
        texture[pixel] = unit * local.half[index]
        normal[pixel] = _outward(shape, unit, enter, d, local, index)
    return Hits(depth, normal, material, point, texture)


def _outward(
    shape: int, unit: Floats, enter: list[Floats], d: list[Floats], local: _Local, index: Ints
) -> Floats:
    """World normals ``[n, 3]`` at points ``unit [n, 3]`` of the unit frame."""
    out = unit.copy()
    if shape == BOX:
        side = np.argmax(np.stack(enter, 1), 1)[:, None] == np.arange(3)
        out = np.where(side, -np.sign(np.stack(d, 1)), np.float32(0))
    elif shape == CYLINDER:
        cap = enter[1] > enter[0]
        out[cap] = 0
        out[:, 2] = np.where(cap, -np.sign(d[2]), 0)
    out = out / local.half[index]
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    cos, sin = local.cos[index], local.sin[index]
    return np.stack([cos * out[:, 0] - sin * out[:, 1], sin * out[:, 0] + cos * out[:, 1], out[:, 2]], 1)


def choose_albedo(materials: Materials, hits: Hits) -> NDArray[np.int64]:
    """Which of its material's two albedos each pixel shows, ``[P]``."""
    m = hits.material
    scale = materials.scale.astype(np.float32)[m, None]
    w = (hits.texture + materials.phase.astype(np.float32)[m]) / scale
    stripes = np.floor((w * materials.axis.astype(np.float32)[m]).sum(1)) % 2 > 0
    checks = np.floor(w).sum(1) % 2 > 0
    wave = np.sin(2.1 * w + np.sin(1.3 * np.roll(w, 1, axis=1) + 0.5))
    kind = materials.pattern[m]
    return np.select([kind == 1, kind == 2, kind == 3], [stripes, checks, wave.sum(1) > 0.3], False).astype(
        int
    )


# What the cameras of the synthetic world make of a scene: shaded colour with noise, and Kinect-like depth.


DEPTH_MAX = 10.0
"""Metres; no room is as large."""

KINECT_RANGE = (0.8, 5.0)
"""Metres, between which the Kinect-like sensor reads."""

_BASELINE, _FOCAL, _STEP = 0.075, 580.0, 1 / 8  # of the Kinect: metres, pixels, pixels of disparity


def shade(scene: Scene, hits: Hits, albedo: Floats) -> Floats:
    """Linear colour ``[P, 3]``: ambient and Lambert terms of point lights that fall off and cast no shadow."""
    sky = (0.38 + 0.1 * hits.normal[:, 2:]) * scene.sky.astype(np.float32)
    light: Floats = np.broadcast_to(sky, albedo.shape).astype(np.float32)
    for position, power in zip(scene.lights.astype(np.float32), scene.power.astype(np.float32), strict=True):
        to = position - hits.point
        squared = (to * to).sum(1)
        cosine = np.maximum((to * hits.normal).sum(1), 0) / np.sqrt(squared)
        light = light + (cosine / (1.0 + squared))[:, None] * power
    return albedo * light * _corner_darkening(scene, hits)[:, None]


def _corner_darkening(scene: Scene, hits: Hits) -> Floats:
    """A little less light where the room's surfaces meet, in [0.7, 1]."""
    size = scene.size.astype(np.float32)
    gap = np.minimum(hits.point, size - hits.point)
    second = np.sort(gap, axis=1)[:, 1]
    return (1 - 0.3 * np.exp(-second / 0.25)).astype(np.float32)


def expose(
    rng: np.random.Generator, linear: Floats, height: int, width: int, noise: float, mean: float
) -> NDArray[np.uint8]:
    """sRGB-like picture ``[H, W, 3]``: exposure to ``mean``, slight blur, read and shot noise, gamma."""
    picture = linear.reshape(height, width, 3) * (mean / linear.mean())
    for axis in (0, 1):
        edge = np.pad(picture, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        size = picture.shape[axis]
        before, after = np.take(edge, range(size), axis), np.take(edge, range(2, size + 2), axis)
        picture = 0.8 * picture + 0.1 * (before + after)
    grain = rng.standard_normal(picture.shape, dtype=np.float32)
    picture = picture + noise * np.sqrt(0.04 + np.maximum(picture, 0)) * grain
    return (255 * np.clip(picture, 0, 1) ** np.float32(1 / 2.2) + 0.5).astype(np.uint8)


def kinect(rng: np.random.Generator, camera: Camera, hits: Hits) -> tuple[Floats, NDArray[np.bool_]]:
    """Depth as a structured-light sensor reads it: ``([H, W] metres, 0 where invalid; [H, W] valid)``.

    Disparity is rounded to 1/8 pixel, so steps grow with the square of depth. No reading beyond
    ``KINECT_RANGE``, in the projector's shadow next to depth edges, on surfaces seen at a grazing angle, and
    at a few random specks.
    """
    shape = (camera.height, camera.width)
    depth = hits.depth.reshape(shape)
    disparity = _BASELINE * _FOCAL / depth + rng.normal(0, 0.06, shape)
    read = (_BASELINE * _FOCAL / (np.round(disparity / _STEP) * _STEP)).astype(np.float32)
    ray = hits.point - camera.pose[:3, 3]
    facing = -(ray * hits.normal).sum(1) / np.linalg.norm(ray, axis=1)
    valid = (read >= KINECT_RANGE[0]) & (read <= KINECT_RANGE[1])
    valid &= ~_projector_shadow(camera, depth)
    valid &= facing.reshape(shape) > rng.uniform(0.02, 0.2, shape)
    valid &= rng.random(shape) > 0.003
    return np.where(valid, read, np.float32(0)), valid


def _projector_shadow(camera: Camera, depth: Floats) -> NDArray[np.bool_]:
    """Pixels that something nearer hides from the projector, ``_BASELINE`` to the right of the camera."""
    columns = np.arange(camera.width, dtype=np.float32)
    seen_from_projector = columns - camera.K[0, 0] * np.float32(_BASELINE) / depth
    # Along a row the projector's columns ascend as well, except behind an edge.
    hidden_by = np.minimum.accumulate(seen_from_projector[:, ::-1], axis=1)[:, ::-1]
    return seen_from_projector > hidden_by + 0.5
