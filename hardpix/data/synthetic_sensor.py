"""What the cameras of the synthetic world make of a scene: shaded colour with noise, and Kinect-like depth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardpix.data.synthetic_render import Camera, Floats, Hits
from hardpix.data.synthetic_scene import Scene

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
    ``KINECT_RANGE``, in the projector's shadow beside depth edges, on surfaces seen at a grazing angle, and
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
