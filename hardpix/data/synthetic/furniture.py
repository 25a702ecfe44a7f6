"""Furniture and colours of the synthetic rooms.

Piece frame, in metres: x along the wall, y out of the wall into the room, z up; the origin lies on the floor at
the middle of the piece's back. Sizes come from the generator that is handed in, so a piece is a pure function.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BOX, CYLINDER, ELLIPSOID = 0, 1, 2
Rng = np.random.Generator


class Part(NamedTuple):
    """One primitive. Parts of a piece with the same class and ``skin`` share a material."""

    shape: int
    centre: tuple[float, float, float]
    half: tuple[float, float, float]  # half extents along x, y, z before ``yaw``
    name: str | None  # class name; None for a thing without a class
    skin: int = 0
    yaw: float = 0.0  # radians about the part's own vertical axis


class Sizes(NamedTuple):
    """What difficulty does to geometry."""

    thin: float  # half thickness of legs and poles, metres
    small: float  # scale of small things


def sizes(difficulty: float) -> Sizes:
    """Legs from 6 cm down to 2 cm thick, small things from 1.3 down to 0.7 of their usual size."""
    return Sizes(thin=0.03 - 0.02 * difficulty, small=1.3 - 0.6 * difficulty)


def _legs(x: float, y: float, depth: float, height: float, thin: float, name: str) -> list[Part]:
    half = (thin, thin, height / 2)
    return [
        Part(BOX, (sx * (x - thin), depth + sy * (y - thin), height / 2), half, name)
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]


def small_thing(rng: Rng, look: Sizes, x: float, y: float, z: float, skin: int) -> list[Part]:
    """A cup, ball, bottle, parcel, pile of books or an unlabelled thing standing at ``(x, y, z)``."""
    s = look.small
    kind = int(rng.integers(6))
    yaw = float(rng.uniform(0, np.pi))
    if kind == 0:
        return [Part(CYLINDER, (x, y, z + 0.06 * s), (0.045 * s, 0.045 * s, 0.06 * s), "object", skin)]
    if kind == 1:
        return [Part(ELLIPSOID, (x, y, z + 0.07 * s), (0.07 * s,) * 3, "object", skin)]
    if kind == 2:
        return [
            Part(CYLINDER, (x, y, z + 0.09 * s), (0.04 * s, 0.04 * s, 0.09 * s), "object", skin),
            Part(CYLINDER, (x, y, z + 0.22 * s), (0.014 * s, 0.014 * s, 0.05 * s), "object", skin),
        ]
    if kind == 3:
        half = (0.12 * s, 0.09 * s, 0.07 * s)
        return [Part(BOX, (x, y, z + half[2]), half, "box", skin, yaw)]
    if kind == 4:
        half = (0.11 * s, 0.08 * s, 0.02 * s)
        return [
            Part(BOX, (x, y, z + half[2] * (2 * i + 1)), half, "books", skin + i, yaw + 0.2 * i)
            for i in range(int(rng.integers(1, 4)))
        ]
    return [Part(CYLINDER, (x, y, z + 0.08 * s), (0.06 * s, 0.06 * s, 0.08 * s), None, skin)]


def things_on(rng: Rng, look: Sizes, half_x: float, depth: float, z: float, count: int) -> list[Part]:
    """``count`` small things side by side on a top of half width ``half_x`` and given depth."""
    parts: list[Part] = []
    slots = np.linspace(-half_x, half_x, count + 1)
    for i in range(count):
        x = float((slots[i] + slots[i + 1]) / 2 + rng.uniform(-0.05, 0.05))
        y = float(depth * rng.uniform(0.3, 0.75))
        parts += small_thing(rng, look, x, y, z, 10 * (i + 1))
    return parts


def _headrests(rng: Rng, look: Sizes, half_x: float, y: float, z: float, tilt: bool) -> list[Part]:
    """Pillows and cushions in turn, touching each other: alike, and at the same depth."""
    count = max(2, round(2 * half_x / 0.5))
    width = half_x / count
    first = int(rng.integers(2))
    parts = []
    for i in range(count):
        name = ("pillow", "cushion")[(first + i) % 2]
        tall = (0.21 if tilt else 0.09) * min(look.small, 1.1)
        deep = 0.09 if tilt else 0.2
        x = -half_x + (2 * i + 1) * width
        shape = ELLIPSOID if name == "pillow" or rng.random() < 0.5 else BOX
        size = (width, deep, tall) if shape == ELLIPSOID else (width * 0.92, deep * 0.8, tall * 0.85)
        parts.append(Part(shape, (x, y, z + size[2]), size, name, i, float(rng.uniform(-0.1, 0.1))))
    return parts


def bed(rng: Rng, look: Sizes) -> list[Part]:
    half_x, length, top = float(rng.uniform(0.5, 0.85)), 2.0, float(rng.uniform(0.4, 0.55))
    parts = [
        Part(BOX, (0, 0.04, 0.45), (half_x, 0.03, 0.45), "bed", 1),
        Part(BOX, (0, length / 2 + 0.05, top * 0.3), (half_x, length / 2, top * 0.3), "bed", 1),
        Part(BOX, (0, length / 2 + 0.05, top * 0.8), (half_x * 0.98, length / 2 * 0.98, top * 0.2), "bed"),
    ]
    return parts + _headrests(rng, look, half_x * 0.95, 0.32, top, tilt=False)


def sofa(rng: Rng, look: Sizes) -> list[Part]:
    half_x, seat = float(rng.uniform(0.8, 1.1)), float(rng.uniform(0.38, 0.45))
    parts = [
        Part(BOX, (0, 0.45, seat / 2), (half_x, 0.42, seat / 2), "sofa"),
        Part(BOX, (0, 0.12, 0.42), (half_x, 0.1, 0.42), "sofa"),
        Part(BOX, (-half_x - 0.08, 0.45, 0.3), (0.08, 0.43, 0.3), "sofa", 1),
        Part(BOX, (half_x + 0.08, 0.45, 0.3), (0.08, 0.43, 0.3), "sofa", 1),
    ]
    return parts + _headrests(rng, look, half_x * 0.9, 0.33, seat, tilt=True)


def table(rng: Rng, look: Sizes) -> list[Part]:
    half_x, half_y = float(rng.uniform(0.5, 0.75)), float(rng.uniform(0.35, 0.45))
    top = float(rng.uniform(0.68, 0.78))
    parts = [Part(BOX, (0, half_y, top - 0.02), (half_x, half_y, 0.02), "table")]
    parts += _legs(half_x, half_y, half_y, top - 0.04, look.thin * 1.3, "table")
    return parts + things_on(rng, look, half_x * 0.85, 2 * half_y, top, int(rng.integers(2, 5)))


def chair(rng: Rng, look: Sizes) -> list[Part]:
    """The back rest stands at y = 0; the sitter looks along +y."""
    half, seat, back = 0.22, float(rng.uniform(0.42, 0.48)), float(rng.uniform(0.85, 1.0))
    thin = look.thin
    parts = [Part(BOX, (0, half, seat), (half, half, 0.02), "chair")]
    parts += _legs(half, half, half, seat, thin, "chair")
    post = (thin, thin, (back - seat) / 2)
    parts += [Part(BOX, (s * (half - thin), thin, (back + seat) / 2), post, "chair") for s in (-1, 1)]
    if rng.random() < 0.5:
        return [*parts, Part(BOX, (0, thin, back - 0.12), (half, thin * 0.7, 0.12), "chair")]
    return parts + [
        Part(BOX, (0, thin, seat + 0.12 * i), (half, thin * 0.6, thin), "chair") for i in (1, 2, 3, 4)
    ]


def _book_row(rng: Rng, look: Sizes, x0: float, x1: float, y: float, z: float, room: float) -> list[Part]:
    parts: list[Part] = []
    x, skin = x0, int(z * 1000) * 100
    end = x0 + (x1 - x0) * float(rng.uniform(0.5, 1.0))
    while True:
        thick = float(rng.uniform(0.015, 0.03)) * look.small
        if x + 2 * thick > end:
            return parts
        tall = room / 2 * float(rng.uniform(0.6, 0.9))
        parts.append(
            Part(BOX, (x + thick, y, z + tall), (thick * 0.96, 0.09, tall), "books", skin + len(parts))
        )
        x += 2 * thick


def shelf(rng: Rng, look: Sizes) -> list[Part]:
    half_x, depth, rows = float(rng.uniform(0.4, 0.6)), 0.14, int(rng.integers(3, 6))
    gap, board = 0.34, 0.012
    tall = rows * gap / 2 + board
    parts = [Part(BOX, (0, 0.01, tall), (half_x, 0.01, tall), "shelf", 1)]
    parts += [Part(BOX, (s * half_x, depth, tall), (board, depth, tall), "shelf") for s in (-1, 1)]
    for i in range(rows + 1):
        parts.append(Part(BOX, (0, depth, board + i * gap), (half_x, depth, board), "shelf"))
        z = 2 * board + i * gap
        if i < rows and rng.random() < 0.75:
            parts += _book_row(rng, look, -half_x + 0.03, half_x - 0.03, depth, z, gap - 2 * board)
        elif i < rows or rng.random() < 0.5:
            parts += small_thing(rng, look, float(rng.uniform(-0.2, 0.2)), depth, z, 10 * (i + 1))
    return parts


def lamp(rng: Rng, look: Sizes) -> list[Part]:
    tall, thin, radius = float(rng.uniform(1.4, 1.7)), look.thin * 0.6, float(rng.uniform(0.16, 0.22))
    y = 0.25
    return [
        Part(CYLINDER, (0, y, 0.015), (0.14, 0.14, 0.015), "lamp", 1),
        Part(CYLINDER, (0, y, tall / 2), (thin, thin, tall / 2), "lamp", 1),
        Part(CYLINDER, (0, y, tall), (radius, radius, 0.14), "lamp"),
    ]


def counter(rng: Rng, look: Sizes) -> list[Part]:
    half_x, top = float(rng.uniform(0.6, 1.0)), float(rng.uniform(0.85, 0.95))
    parts = [
        Part(BOX, (0, 0.3, top / 2 - 0.02), (half_x, 0.28, top / 2 - 0.02), "counter"),
        Part(BOX, (0, 0.31, top - 0.02), (half_x + 0.02, 0.31, 0.02), "counter", 1),
    ]
    half = tuple(float(v) for v in rng.uniform(0.1, 0.2, 3) * look.small)
    parts.append(Part(BOX, (half_x * 0.6, 0.3, top + half[2]), (half[0], half[1], half[2]), "box", 1))
    things = things_on(rng, look, half_x * 0.6, 0.6, top, int(rng.integers(1, 4)))
    return parts + [p._replace(centre=(p.centre[0] - half_x * 0.35, *p.centre[1:])) for p in things]


def boxes(rng: Rng, look: Sizes) -> list[Part]:
    half = rng.uniform(0.14, 0.3, 3) * look.small
    lower = Part(BOX, (0, 0.3, half[2]), (half[0], half[1], half[2]), "box", 0, float(rng.uniform(-0.4, 0.4)))
    if rng.random() < 0.5:
        return [lower]
    upper = half * 0.7
    yaw = float(rng.uniform(0, 1.5))
    return [lower, Part(BOX, (0, 0.3, 2 * half[2] + upper[2]), (upper[0], upper[1], upper[2]), "box", 1, yaw)]


def plant(rng: Rng, look: Sizes) -> list[Part]:
    """Without a class: a pot, a stem and leaves."""
    parts = [Part(CYLINDER, (0, 0.25, 0.15), (0.14, 0.14, 0.15), None, 1)]
    parts.append(Part(CYLINDER, (0, 0.25, 0.5), (look.thin * 0.5, look.thin * 0.5, 0.3), None, 2))
    for x, y, z in rng.uniform((-0.15, 0.1, 0.65), (0.15, 0.4, 1.1), (5, 3)):
        parts.append(Part(ELLIPSOID, (x, y, z), (0.15, 0.12, 0.1), None, 3, float(rng.uniform(0, np.pi))))
    return parts


def waste_bin(rng: Rng, look: Sizes) -> list[Part]:
    """Without a class: a waste bin."""
    return [Part(CYLINDER, (0, 0.2, 0.2), (0.14, 0.14, 0.2), None)]


def door(rng: Rng, look: Sizes) -> list[Part]:
    half = float(rng.uniform(0.4, 0.48))
    return [
        Part(BOX, (0, 0.02, 1.03), (half, 0.02, 1.03), "door"),
        Part(BOX, (0, 0.015, 1.06), (half + 0.07, 0.015, 1.06), "door", 1),
        Part(ELLIPSOID, (half - 0.08, 0.07, 1.0), (0.035, 0.035, 0.035), "door", 2),
    ]


def pane(name: str, x: float, z: float, half: tuple[float, float], skin: int) -> list[Part]:
    """A picture or a window: a pane in a frame of the same class, the window with a cross bar."""
    parts = [
        Part(BOX, (x, 0.015, z), (half[0], 0.015, half[1]), name, skin + 1),
        Part(BOX, (x, 0.02, z), (half[0] - 0.04, 0.02, half[1] - 0.04), name, skin),
    ]
    if name == "window":
        parts.append(Part(BOX, (x, 0.025, z), (0.015, 0.025, half[1]), name, skin + 1))
        parts.append(Part(BOX, (x, 0.025, z), (half[0], 0.025, 0.015), name, skin + 1))
    return parts


def window_beside_picture(rng: Rng, look: Sizes) -> list[Part]:
    """A picture next to a window on one wall: alike, and at the same depth."""
    height = float(rng.uniform(1.4, 1.6))
    window = (float(rng.uniform(0.35, 0.6)), float(rng.uniform(0.4, 0.55)))
    picture = (float(rng.uniform(0.2, 0.4)), float(rng.uniform(0.2, 0.4)))
    side = 1 if rng.random() < 0.5 else -1
    gap = float(rng.uniform(0.0, 0.12))
    parts = pane("window", -side * picture[0], height, window, 0)
    return parts + pane("picture", side * (window[0] + gap), height, picture, 10)


def picture(rng: Rng, look: Sizes) -> list[Part]:
    half = tuple(float(v) for v in rng.uniform(0.15, 0.35, 2) * look.small)
    return pane("picture", 0.0, float(rng.uniform(1.4, 1.7)), (half[0], half[1]), 0)


# Classes of the synthetic rooms, and the known densities from which their colours are drawn.
#
# An **appearance** is a log albedo: ``(ln R, ln G, ln B)`` of linear reflectance. Class ``c`` draws it
# from a mixture of isotropic Gaussians of standard deviation ``SPREAD`` around a few colours. Classes of
# one group share these colours; ``difficulty`` sets how far apart the group's members are moved. Since
# every density is known, so is the posterior ``p(c | appearance)``, and from it the true hardness of a
# pixel (``hardness``).


Array = NDArray[np.float64]

CLASSES: dict[str, tuple[int, int, int]] = {  # name -> palette colour
    "floor": (128, 92, 60),
    "wall": (204, 197, 180),
    "ceiling": (235, 235, 240),
    "door": (150, 111, 214),
    "window": (70, 160, 230),
    "picture": (230, 110, 180),
    "bed": (40, 70, 160),
    "sofa": (0, 128, 128),
    "pillow": (250, 190, 190),
    "cushion": (220, 40, 60),
    "table": (245, 130, 48),
    "chair": (255, 215, 0),
    "shelf": (120, 70, 20),
    "books": (60, 180, 75),
    "lamp": (255, 250, 130),
    "counter": (110, 110, 120),
    "box": (170, 255, 195),
    "object": (240, 50, 230),
}
"""Everything that has a label. Plants, bins, rugs and some clutter have none: they are void."""

NAMES = tuple(CLASSES)
VOID = 255

SPREAD = 0.07
"""Standard deviation of the log albedo around its colour, each axis."""

MAX_SEPARATION = 4.0
"""Distance between two classes of a group at difficulty 0, in units of ``SPREAD``; 0 at difficulty 1."""


class Group(NamedTuple):
    """Classes that look alike."""

    members: tuple[str, ...]
    colours: tuple[tuple[float, float, float], ...]  # the linear RGB reflectances which they come in
    common: float = 0.75  # chance that a thing takes the colour usual in its room


GROUPS = (
    Group(("floor",), ((0.30, 0.20, 0.12), (0.24, 0.23, 0.22))),
    Group(("wall",), ((0.70, 0.66, 0.55), (0.58, 0.66, 0.62))),
    Group(("ceiling",), ((0.95, 0.95, 0.93), (0.88, 0.92, 0.98))),
    Group(("lamp",), ((0.92, 0.72, 0.18), (0.95, 0.90, 0.45))),
    Group(("pillow", "cushion"), ((0.72, 0.28, 0.26), (0.45, 0.14, 0.34))),
    Group(("picture", "window"), ((0.35, 0.52, 0.75), (0.12, 0.30, 0.40))),
    Group(("chair", "table"), ((0.50, 0.30, 0.12), (0.30, 0.10, 0.05))),
    Group(("bed", "sofa"), ((0.22, 0.26, 0.52), (0.10, 0.12, 0.22))),
    Group(("door", "shelf"), ((0.60, 0.50, 0.28), (0.58, 0.45, 0.40))),
    Group(("counter", "box"), ((0.40, 0.42, 0.38), (0.16, 0.17, 0.16))),
    Group(
        ("books", "object"),
        ((0.14, 0.40, 0.15), (0.70, 0.12, 0.10), (0.08, 0.18, 0.62), (0.80, 0.75, 0.08)),
        common=0.0,
    ),
)


class Style(NamedTuple):
    """What the world looks like; its rooms and their labels are the same in every style."""

    colours: tuple[tuple[tuple[float, float, float], ...], ...]  # of each group, in the order of GROUPS
    lamp: tuple[float, float, float]  # factors of the lamps' light, linear RGB
    sky: tuple[float, float, float]  # of the light from everywhere
    exposure: float  # mean of the linear picture


STYLES = {
    "a": Style(
        colours=tuple(group.colours for group in GROUPS),
        lamp=(1.0, 1.0, 1.0),
        sky=(1.0, 1.0, 1.0),
        exposure=0.24,
    ),
    # Evening: warm lamps, blue light from the windows, darker; other woods, paints and fabrics.
    "b": Style(
        colours=(
            ((0.42, 0.30, 0.16), (0.16, 0.17, 0.20)),
            ((0.52, 0.58, 0.66), (0.72, 0.60, 0.52)),
            ((0.90, 0.88, 0.82), (0.80, 0.82, 0.80)),
            ((0.85, 0.62, 0.30), (0.90, 0.84, 0.62)),
            ((0.60, 0.34, 0.20), (0.34, 0.16, 0.44)),
            ((0.26, 0.46, 0.62), (0.20, 0.36, 0.36)),
            ((0.40, 0.28, 0.18), (0.22, 0.12, 0.08)),
            ((0.32, 0.28, 0.46), (0.14, 0.16, 0.18)),
            ((0.52, 0.44, 0.34), (0.66, 0.48, 0.34)),
            ((0.34, 0.38, 0.42), (0.22, 0.20, 0.18)),
            ((0.24, 0.36, 0.14), (0.56, 0.20, 0.12), (0.14, 0.26, 0.50), (0.66, 0.60, 0.20)),
        ),
        lamp=(1.25, 1.0, 0.7),
        sky=(0.75, 0.8, 0.95),
        exposure=0.16,
    ),
}
"""``a`` is the default; ``b`` another world, to see how far what is learnt in one holds in the other."""

COMPONENTS = 4
"""Gaussians per class, of equal weight; a group of two colours has each of them twice."""

# Members of a group part along red against green: light of any strength leaves this direction alone.
_DIRECTION = np.array([1.0, -1.0, 0.0]) / np.sqrt(2.0)


class Densities(NamedTuple):
    """The mixture of every class: ``means [C, M, 3]``, equal weights, one standard deviation."""

    means: Array

    def sample(
        self, rng: np.random.Generator, label: NDArray[np.int64], component: NDArray[np.int64]
    ) -> Array:
        """One log albedo per entry, ``[..., 3]``; with uniform components it follows ``p(a | label)``."""
        means = self.means[label, component]
        return means + SPREAD * rng.standard_normal(means.shape)

    def log_density(self, appearance: Array) -> Array:
        """``ln p(appearance | c)`` up to one constant: ``[..., 3] -> [..., C]``."""
        # Axis by axis: [..., C, M, 3] at once takes twice as long and more memory.
        squared = (appearance[..., None, None, 0] - self.means[..., 0]) ** 2
        for axis in (1, 2):
            squared += (appearance[..., None, None, axis] - self.means[..., axis]) ** 2
        squared /= -2.0 * SPREAD**2
        peak = squared.max(-1)
        return peak + np.log(np.exp(squared - peak[..., None]).sum(-1))

    def posterior(self, appearance: Array, kept: NDArray[np.bool_] | None = None) -> Array:
        """``p(c | appearance)`` under equal priors: ``[..., 3] -> [..., C]``.

        ``kept [C]`` bool restricts the classes; the others have posterior 0.
        """
        log_density = self.log_density(appearance)
        if kept is not None:
            log_density = np.where(kept, log_density, -np.inf)
        weight = np.exp(log_density - log_density.max(-1, keepdims=True))
        return weight / weight.sum(-1, keepdims=True)

    def hardness(
        self, appearance: Array, label: NDArray[np.int64], kept: NDArray[np.bool_] | None = None
    ) -> Array:
        """True hardness ``1 - p(label | appearance)``, in [0, 1]: ``[..., 3]`` and ``[...]`` to ``[...]``.

        Its mean over draws is the error rate of a judge who sees the colour alone and answers at random
        from the exact posterior; it lies between the Bayes error and twice the Bayes error.
        """
        posterior = self.posterior(appearance, kept)
        return 1.0 - np.take_along_axis(posterior, label[..., None], -1)[..., 0]


def densities(difficulty: float, style: str = "a") -> Densities:
    """The classes' densities in a style: members of a group lie ``MAX_SEPARATION * (1 - difficulty)`` spreads apart."""
    means = np.zeros((len(NAMES), COMPONENTS, 3))
    for group, of_group in zip(GROUPS, STYLES[style].colours, strict=True):
        colours = np.log(np.resize(of_group, (COMPONENTS, 3)))
        offsets = np.arange(len(group.members)) - (len(group.members) - 1) / 2
        for member, offset in zip(group.members, offsets, strict=True):
            shift = offset * MAX_SEPARATION * (1.0 - difficulty) * SPREAD * _DIRECTION
            means[NAMES.index(member)] = colours + shift
    return Densities(means)


def usual_components(rng: np.random.Generator) -> tuple[NDArray[np.int64], Array]:
    """For one room, ``[C]``: the component usual for each class (one per group), and the chance to take it."""
    component, common = np.zeros(len(NAMES), np.int64), np.zeros(len(NAMES))
    for group in GROUPS:
        members = [NAMES.index(member) for member in group.members]
        component[members], common[members] = rng.integers(COMPONENTS), group.common
    return component, common


def void_appearance(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Log albedos ``[*shape, 3]`` of things without a class: any colour."""
    return np.log(rng.uniform(0.08, 0.8, (*shape, 3)))
