"""A room of the synthetic world: walls, what hangs on them, furniture, and every surface's material.

World frame, metres: z up, the floor is z = 0, the room fills ``[0, X] x [0, Y] x [0, Z]``. The camera stands
near the corner ``(0, 0)``; most furniture stands along the two walls that it looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardpix.data import synthetic_furniture as furniture
from hardpix.data.synthetic_appearance import NAMES, VOID, Densities, void_appearance
from hardpix.data.synthetic_furniture import BOX, Part, Rng, Style

Array = NDArray[np.float64]
Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1 on the floor


class Materials(NamedTuple):
    """One row per material; the last three are floor, ceiling and walls.

    A material has two albedos, both drawn from its class's density, and a pattern that says which of the two
    a point shows. Patterns are drawn alike for all classes: they tell nothing about the class.
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
    stand: Rectangle  # where the camera may be

    @property
    def room_materials(self) -> NDArray[np.int64]:
        """Materials of the room's surfaces, in the order floor, ceiling, walls."""
        return np.arange(3) + len(self.materials.label) - 3


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
        self.taken: list[Rectangle] = [stand]
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

    def free_on_floor(self, area: Rectangle) -> bool:
        x0, y0, x1, y1 = area
        return all(x1 < a or x0 > c or y1 < b or y0 > d for a, b, c, d in self.taken)

    def hang(self, parts: list[Part], clearance: float = 0.0) -> None:
        """Fixes ``parts`` to a wall where nothing hangs yet, and keeps ``clearance`` metres free before it."""
        half = _extent(parts)[0]
        for _ in range(12):
            wall = self.pick_wall()
            length = float(self.size[wall % 2])
            along = float(self.rng.uniform(half + 0.1, length - half - 0.1))
            slot = self.wall_slot(wall, along)
            area = _footprint(slot, half, 0.0, clearance)
            if self.free_on_wall(wall, along - half, along + half) and self.free_on_floor(area):
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

    def stand_freely(self, pieces: list[tuple[Slot, list[Part]]], radius: float) -> bool:
        """Stands a group of pieces (slots relative to its centre) somewhere off the walls."""
        for _ in range(30):
            x, y = (float(self.rng.uniform(radius, s - radius)) for s in self.size[:2])
            if self.free_on_floor((x - radius, y - radius, x + radius, y + radius)):
                break
        else:
            return False
        self.taken.append((x - radius, y - radius, x + radius, y + radius))
        turn = float(self.rng.uniform(0, 2 * np.pi))
        for slot, parts in pieces:
            dx, dy = _rotate(slot.x, slot.y, turn)
            self.add(Slot(x + dx, y + dy, slot.yaw + turn), parts)
        return True


def _rotate(x: float, y: float, yaw: float) -> tuple[float, float]:
    return float(np.cos(yaw) * x - np.sin(yaw) * y), float(np.sin(yaw) * x + np.cos(yaw) * y)


def _extent(parts: list[Part]) -> tuple[float, float, float, float]:
    """Half width, nearest and farthest distance from the wall, and top of a piece."""
    half = max(abs(p.centre[0]) + p.half[0] for p in parts)
    low = min(p.centre[1] - p.half[1] for p in parts)
    high = max(p.centre[1] + p.half[1] for p in parts)
    return half, low, high, max(p.centre[2] + p.half[2] for p in parts)


def _footprint(slot: Slot, half: float, low: float, high: float) -> Rectangle:
    corners = np.array([_rotate(x, y, slot.yaw) for x in (-half, half) for y in (low, high)])
    corners += (slot.x, slot.y)
    (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
    return float(x0) + 1e-3, float(y0) + 1e-3, float(x1) - 1e-3, float(y1) - 1e-3


def door(rng: Rng) -> list[Part]:
    half = float(rng.uniform(0.4, 0.48))
    return [
        Part(BOX, (0, 0.02, 1.03), (half, 0.02, 1.03), "door"),
        Part(BOX, (0, 0.015, 1.06), (half + 0.07, 0.015, 1.06), "door", 1),
        Part(furniture.ELLIPSOID, (half - 0.08, 0.07, 1.0), (0.035, 0.035, 0.035), "door", 2),
    ]


def pane(rng: Rng, name: str, x: float, z: float, half: tuple[float, float], skin: int) -> list[Part]:
    """A picture or a window: a pane in a frame of the same class, the window with a cross bar."""
    parts = [
        Part(BOX, (x, 0.015, z), (half[0], 0.015, half[1]), name, skin + 1),
        Part(BOX, (x, 0.02, z), (half[0] - 0.04, 0.02, half[1] - 0.04), name, skin),
    ]
    if name == "window":
        parts.append(Part(BOX, (x, 0.025, z), (0.015, 0.025, half[1]), name, skin + 1))
        parts.append(Part(BOX, (x, 0.025, z), (half[0], 0.025, 0.015), name, skin + 1))
    return parts


def panes(rng: Rng) -> list[Part]:
    """A picture beside a window on one wall: alike, and at the same depth."""
    height = float(rng.uniform(1.4, 1.6))
    window = (float(rng.uniform(0.35, 0.6)), float(rng.uniform(0.4, 0.55)))
    picture = (float(rng.uniform(0.2, 0.4)), float(rng.uniform(0.2, 0.4)))
    side = 1 if rng.random() < 0.5 else -1
    gap = float(rng.uniform(0.0, 0.12))
    parts = pane(rng, "window", -side * picture[0], height, window, 0)
    return parts + pane(rng, "picture", side * (window[0] + gap), height, picture, 10)


def picture(rng: Rng, look: Style) -> list[Part]:
    half = tuple(float(v) for v in rng.uniform(0.15, 0.35, 2) * look.small)
    return pane(rng, "picture", 0.0, float(rng.uniform(1.4, 1.7)), (half[0], half[1]), 0)


def dining(rng: Rng, look: Style) -> list[tuple[Slot, list[Part]]]:
    """A table with chairs in front of it and behind it: alike, across a depth gap."""
    table = furniture.table(rng, look)
    half, _, deep, _ = _extent(table)
    group = [(Slot(0.0, -deep / 2, 0.0), table)]
    seats = ((0.0, -1.0, 0.0), (0.0, 1.0, np.pi), (-1.0, 0.0, -np.pi / 2), (1.0, 0.0, np.pi / 2))
    for i in rng.permutation(4)[: int(rng.integers(2, 5))]:
        x, y, yaw = seats[i]
        away = 0.35 + float(rng.uniform(0.0, 0.25))
        where = Slot(x * (half + away), y * (deep / 2 + away), yaw + float(rng.uniform(-0.3, 0.3)))
        group.append((where, furniture.chair(rng, look)))
    return group


def furnish(rng: Rng, look: Style, size: Array, stand: Rectangle) -> Room:
    """Fills a room, large pieces first; what finds no place stays out."""
    room = Room(rng, size, stand)
    room.hang(door(rng), clearance=0.6)
    room.hang(panes(rng))
    large: list[Callable[[Rng, Style], list[Part]]] = [
        (furniture.bed, furniture.sofa)[int(rng.integers(2))],
        furniture.shelf,
        furniture.counter,
    ]
    room.stand_at_wall(large[0](rng, look))
    if not room.stand_freely(dining(rng, look), radius=1.05):
        room.stand_freely([(Slot(0.0, 0.0, 0.0), furniture.chair(rng, look))], radius=0.35)
    for piece in (
        *large[1:],
        furniture.lamp,
        furniture.plant,
        furniture.boxes,
        furniture.bin_,
        furniture.boxes,
    ):
        room.stand_at_wall(piece(rng, look))
    room.hang(picture(rng, look))
    if rng.random() < 0.5:
        room.hang(picture(rng, look))
    return room


def _materials(rng: Rng, names: list[str | None], known: Densities, kept: NDArray[np.bool_]) -> Materials:
    count = len(names)
    label = np.array([VOID if n is None or not kept[NAMES.index(n)] else NAMES.index(n) for n in names])
    log_albedo = np.empty((count, 2, 3))
    hardness = np.zeros((count, 2))
    for i, name in enumerate(names):
        if name is None:
            log_albedo[i] = void_appearance(rng, 2)
        else:
            log_albedo[i] = known.sample(rng, NAMES.index(name), 2)
            if label[i] != VOID:
                hardness[i] = known.hardness(log_albedo[i], int(label[i]), kept)
    axis = rng.standard_normal((count, 3))
    return Materials(
        label=label.astype(np.uint8),
        log_albedo=log_albedo,
        hardness=hardness,
        pattern=rng.choice(4, size=count, p=(0.25, 0.25, 0.2, 0.3)),
        scale=np.exp(rng.uniform(np.log(0.05), np.log(0.4), count)),
        axis=axis / np.linalg.norm(axis, axis=1, keepdims=True),
        phase=rng.uniform(0, 10, (count, 3)),
    )


def build_scene(rng: Rng, difficulty: float, known: Densities, kept: NDArray[np.bool_]) -> Scene:
    """A furnished room. Classes outside ``kept [C]`` are drawn like any other but labelled void."""
    size = rng.uniform((3.8, 3.8, 2.4), (5.6, 5.6, 2.9))
    x, y = rng.uniform(0.1, 0.25, 2) * size[:2]
    stand = (float(x), float(y), float(x) + 0.8, float(y) + 0.8)
    room = furnish(rng, furniture.style(difficulty), size, stand)

    placed = sorted(room.parts, key=lambda entry: entry[2].shape)
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
        power=tint * rng.uniform((2.0,), (3.0,)) * np.array([[1.0], [0.6]]),
        stand=stand,
    )


def _to_world(slot: Slot, part: Part) -> tuple[float, float, float]:
    x, y = _rotate(part.centre[0], part.centre[1], slot.yaw)
    return slot.x + x, slot.y + y, part.centre[2]
