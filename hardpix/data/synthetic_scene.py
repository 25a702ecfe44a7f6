"""A furnished room of the synthetic world, ready for rays: primitives, every surface's material, lights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardpix.data.synthetic_appearance import (
    COMPONENTS,
    NAMES,
    STYLES,
    VOID,
    Array,
    Densities,
    Style,
    usual_components,
    void_appearance,
)
from hardpix.data.synthetic_furniture import Part, Rng, style
from hardpix.data.synthetic_layout import Rectangle, Slot, furnish, rotate


class Materials(NamedTuple):
    """One row per material; the last three are floor, ceiling and walls.

    A material has two albedos and a pattern that says which of the two a point shows. Each albedo by itself
    follows its class's density; within a room their mixture components go together (one wood for chairs and
    tables). Patterns are drawn alike for all classes: they tell nothing about the class.
    """

    label: NDArray[np.uint8]  # [M] class index, VOID for things without a class
    log_albedo: Array  # [M, 2, 3]
    hardness: Array  # [M, 2], 0 for void
    pattern: NDArray[np.int64]  # [M] 0 plain, 1 stripes, 2 checks, 3 blotches
    scale: Array  # [M] metres
    axis: Array  # [M, 3] unit normal of the stripes
    phase: Array  # [M, 3] metres


class Scene(NamedTuple):
    """Primitives sorted by shape, their materials, and the lights of one room."""

    size: Array  # [3] X, Y, Z
    shape: NDArray[np.int64]  # [N]
    centre: Array  # [N, 3] world
    half: Array  # [N, 3]
    yaw: Array  # [N] radians
    material: NDArray[np.int64]  # [N]
    materials: Materials
    lights: Array  # [L, 3] positions
    power: Array  # [L, 3] linear RGB
    sky: Array  # [3] linear RGB: factors of the light from everywhere
    stand: Rectangle  # where the camera may be

    @property
    def room_materials(self) -> NDArray[np.int64]:
        """Materials of the room's surfaces, in the order floor, ceiling, walls."""
        return np.arange(3) + len(self.materials.label) - 3


def _materials(rng: Rng, names: list[str | None], known: Densities, kept: NDArray[np.bool_]) -> Materials:
    count = len(names)
    drawn = np.array([NAMES.index(name) if name else 0 for name in names])
    unnamed = np.array([name is None for name in names])
    usual, common = usual_components(rng)
    component = np.repeat(rng.integers(COMPONENTS, size=(count, 1)), 2, axis=1)
    component = np.where(rng.random((count, 1)) < common[drawn, None], usual[drawn, None], component)
    component = np.where(rng.random((count, 2)) < 0.15, rng.integers(COMPONENTS, size=(count, 2)), component)
    labels = np.repeat(drawn[:, None], 2, axis=1)
    log_albedo = known.sample(rng, labels, component)
    log_albedo = np.where(unnamed[:, None, None], void_appearance(rng, (count, 2)), log_albedo)
    void = unnamed | ~kept[drawn]
    axis = rng.standard_normal((count, 3))
    return Materials(
        label=np.where(void, VOID, drawn).astype(np.uint8),
        log_albedo=log_albedo,
        hardness=np.where(void[:, None], 0.0, known.hardness(log_albedo, labels, kept)),
        pattern=rng.choice(4, size=count, p=(0.3, 0.25, 0.15, 0.3)),
        scale=np.exp(rng.uniform(np.log(0.05), np.log(0.4), count)),
        axis=axis / np.linalg.norm(axis, axis=1, keepdims=True),
        phase=rng.uniform(0, 10, (count, 3)),
    )


def build_scene(
    rng: Rng, difficulty: float, known: Densities, kept: NDArray[np.bool_], look: Style = STYLES["a"]
) -> Scene:
    """A furnished room. Classes outside ``kept [C]`` are drawn like any other but labelled void."""
    size = rng.uniform((3.8, 3.8, 2.4), (5.6, 5.6, 2.9))
    x, y = rng.uniform(0.1, 0.25, 2) * size[:2]
    stand = (float(x), float(y), float(x) + 0.8, float(y) + 0.8)
    parts = furnish(rng, style(difficulty), size, stand)

    placed = sorted(parts, key=lambda entry: entry[2].shape)
    skins: dict[tuple[int, int, str | None], int] = {}
    for piece, _, part in placed:
        skins.setdefault((piece, part.skin, part.name), len(skins))
    names = [name for _, _, name in skins] + ["floor", "ceiling", "wall"]
    lights = np.stack([size * (*rng.uniform(0.35, 0.65, 2), 0.95), size * (*rng.uniform(0.05, 0.3, 2), 0.7)])
    tint = np.exp(0.03 * rng.standard_normal((2, 3)))
    return Scene(
        size=size,
        shape=np.array([part.shape for _, _, part in placed]),
        centre=np.array([_to_world(slot, part) for _, slot, part in placed]),
        half=np.array([part.half for _, _, part in placed]),
        yaw=np.array([slot.yaw + part.yaw for _, slot, part in placed]),
        material=np.array([skins[piece, part.skin, part.name] for piece, _, part in placed]),
        materials=_materials(rng, names, known, kept),
        lights=lights,
        power=tint * rng.uniform((2.0,), (3.0,)) * np.array([[1.0], [0.6]]) * np.array(look.lamp),
        sky=np.array(look.sky),
        stand=stand,
    )


def _to_world(slot: Slot, part: Part) -> tuple[float, float, float]:
    x, y = rotate(part.centre[0], part.centre[1], slot.yaw)
    return slot.x + x, slot.y + y, part.centre[2]
