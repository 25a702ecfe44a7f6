"""Furnish a synthetic room and prepare it for ray casting.

World frame, metres: z up, the floor is z = 0, the room fills ``[0, X] x [0, Y] x [0, Z]``. The camera stands
near the corner ``(0, 0)``; most furniture stands along the two walls that it looks at.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardpix.data.synthetic import furniture
from hardpix.data.synthetic.furniture import (
    COMPONENTS,
    NAMES,
    STYLES,
    VOID,
    Array,
    Densities,
    Part,
    Rng,
    Sizes,
    Style,
    sizes,
    usual_components,
    void_appearance,
)

Rectangle = tuple[float, float, float, float]
"""``x0, y0, x1, y1`` on the floor."""


class Slot(NamedTuple):
    """A place for a piece: the world position of its origin and its yaw."""

    x: float
    y: float
    yaw: float


class Room:
    """Collects pieces without overlap while a room is furnished."""

    def __init__(self, rng: Rng, size: Array, stand: Rectangle) -> None:
        self.rng, self.size = rng, size
        self.parts: list[tuple[int, Slot, Part]] = []  # piece number, where, what
        x0, y0, x1, y1 = stand
        self.taken: list[Rectangle] = [(x0 - 0.25, y0 - 0.25, x1 + 0.25, y1 + 0.25)]
        self.on_wall: list[tuple[int, float, float]] = []  # wall, from, to
        self._pieces = 0

    def add(self, slot: Slot, parts: list[Part]) -> None:
        self._pieces += 1
        self.parts += [(self._pieces, slot, part) for part in parts]

    def wall_slot(self, wall: int, along: float) -> Slot:
        """Walls 0 and 1 are the far ones (y = Y, x = X), 2 and 3 those behind the camera."""
        x, y = float(self.size[0]), float(self.size[1])
        return (
            Slot(along, y, np.pi),
            Slot(x, along, np.pi / 2),
            Slot(along, 0.0, 0.0),
            Slot(0.0, along, -np.pi / 2),
        )[wall]

    def pick_wall(self) -> int:
        return int(self.rng.choice(4, p=(0.42, 0.42, 0.08, 0.08)))

    def free_on_wall(self, wall: int, low: float, high: float) -> bool:
        return all(w != wall or high < a or low > b for w, a, b in self.on_wall)

    def free_on_floor(self, area: Rectangle, but: Rectangle | None = None) -> bool:
        x0, y0, x1, y1 = area
        others = (other for other in self.taken if other is not but)
        return all(x1 < a or x0 > c or y1 < b or y0 > d for a, b, c, d in others)

    def hang(self, parts: list[Part], clearance: float = 0.0) -> None:
        """Fixes ``parts`` to a wall where nothing hangs yet, and keeps ``clearance`` metres free before it."""
        half = _extent(parts)[0]
        for _ in range(12):
            wall = self.pick_wall()
            length = float(self.size[wall % 2])
            along = float(self.rng.uniform(half + 0.1, length - half - 0.1))
            slot = self.wall_slot(wall, along)
            area = _footprint(slot, half, 0.0, clearance)
            free = self.free_on_wall(wall, along - half, along + half)
            if free and (clearance == 0 or self.free_on_floor(area)):
                self.on_wall.append((wall, along - half - 0.05, along + half + 0.05))
                if clearance:
                    self.taken.append(area)
                self.add(slot, parts)
                return

    def stand_at_wall(self, parts: list[Part]) -> None:
        """Stands ``parts`` with their back to a wall; tall pieces keep off what hangs there."""
        half, low, high, top = _extent(parts)
        for _ in range(20):
            wall = self.pick_wall()
            length = float(self.size[wall % 2])
            if length < 2 * half + 0.1:
                continue
            along = float(self.rng.uniform(half + 0.02, length - half - 0.02))
            slot = self.wall_slot(wall, along)
            area = _footprint(slot, half, low, high)
            free = top < 1.1 or self.free_on_wall(wall, along - half, along + half)
            if free and self.free_on_floor(area):
                self.taken.append(area)
                if top >= 1.1:
                    self.on_wall.append((wall, along - half, along + half))
                self.add(slot, parts)
                return

    def seat(self, table: list[Part], chairs: list[tuple[Slot, list[Part]]]) -> None:
        """Stands a table off the walls, and those of its chairs (slots relative to it) that find room."""
        half, low, high, _ = _extent(table)
        turn = float(self.rng.integers(4)) * np.pi / 2 + float(self.rng.normal(0, 0.15))
        for _ in range(30):
            x, y = (float(self.rng.uniform(1.0, s - 1.0)) for s in self.size[:2])
            slot = Slot(x, y, turn)
            area = _footprint(slot, half, low, high)
            if self.free_on_floor(area):
                break
        else:
            return
        self.add(slot, table)
        self.taken.append(area)
        for place, chair in chairs:
            dx, dy = rotate(place.x, place.y, turn)
            self._push_in(Slot(x + dx, y + dy, place.yaw + turn), chair, under=area)

    def _push_in(self, slot: Slot, chair: list[Part], under: Rectangle) -> None:
        half, low, high, _ = _extent(chair)
        area = _footprint(slot, half, low, high)
        inside = min(area[:2]) > 0 and area[2] < self.size[0] and area[3] < self.size[1]
        if inside and self.free_on_floor(area, but=under):
            self.taken.append(area)
            self.add(slot, chair)


def rotate(x: float, y: float, yaw: float) -> tuple[float, float]:
    return float(np.cos(yaw) * x - np.sin(yaw) * y), float(np.sin(yaw) * x + np.cos(yaw) * y)


def _extent(parts: list[Part]) -> tuple[float, float, float, float]:
    """Half width, nearest and farthest distance from the wall, and top of a piece."""
    half = max(abs(p.centre[0]) + p.half[0] for p in parts)
    low = min(p.centre[1] - p.half[1] for p in parts)
    high = max(p.centre[1] + p.half[1] for p in parts)
    return half, low, high, max(p.centre[2] + p.half[2] for p in parts)


def _footprint(slot: Slot, half: float, low: float, high: float) -> Rectangle:
    corners = np.array([rotate(x, y, slot.yaw) for x in (-half, half) for y in (low, high)])
    corners += (slot.x, slot.y)
    (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
    return float(x0) + 1e-3, float(y0) + 1e-3, float(x1) - 1e-3, float(y1) - 1e-3


def chairs_around(rng: Rng, look: Sizes, table: list[Part]) -> list[tuple[Slot, list[Part]]]:
    """Chairs in front of a table and behind it: alike, across a depth gap. Slots in the table's frame."""
    half, _, deep, _ = _extent(table)
    sides = ((0.0, -1.0, 0.0), (0.0, 1.0, np.pi), (-1.0, 0.0, -np.pi / 2), (1.0, 0.0, np.pi / 2))
    chairs = []
    for i in rng.permutation(4)[: int(rng.integers(2, 5))]:
        x, y, yaw = sides[i]
        away = float(rng.uniform(0.3, 0.6))
        slot = Slot(x * (half + away), deep / 2 + y * (deep / 2 + away), yaw + float(rng.uniform(-0.3, 0.3)))
        chairs.append((slot, furniture.chair(rng, look)))
    return chairs


def furnish(rng: Rng, look: Sizes, size: Array, stand: Rectangle) -> list[tuple[int, Slot, Part]]:
    """Fills a room, large pieces first; what finds no place stays out. Returns (piece number, slot, part)."""
    room = Room(rng, size, stand)
    room.hang(furniture.door(rng, look), clearance=0.6)
    room.hang(furniture.window_beside_picture(rng, look))
    room.stand_at_wall((furniture.bed, furniture.sofa)[int(rng.integers(2))](rng, look))
    table = furniture.table(rng, look)
    room.seat(table, chairs_around(rng, look, table))
    for piece in (furniture.shelf, furniture.counter, furniture.lamp, furniture.plant, furniture.boxes):
        room.stand_at_wall(piece(rng, look))
    room.stand_at_wall(furniture.waste_bin(rng, look))
    for _ in range(int(rng.integers(1, 3))):
        room.hang(furniture.picture(rng, look))
    return room.parts


# A furnished room of the synthetic world, ready for rays: primitives, every surface's material, lights.


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
    parts = furnish(rng, sizes(difficulty), size, stand)

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
