"""Classes of the synthetic rooms, and the known densities from which their colours are drawn.

An **appearance** is a log albedo: ``(ln R, ln G, ln B)`` of linear reflectance. Class ``c`` draws it from a
mixture of isotropic Gaussians of standard deviation ``SPREAD`` around a few colours. Classes of one group
share these colours; ``difficulty`` sets how far apart the group's members are moved. Since every density is
known, so is the posterior ``p(c | appearance)``, and from it the true hardness of a pixel (``hardness``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
