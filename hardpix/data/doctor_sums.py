"""What the frames of a split add up to: sums of whole numbers, so that the order they come in changes nothing."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardpix.data.doctor_frame import (
    DEPTH_BINS,
    DepthFacts,
    FrameFacts,
    ImageFacts,
    LabelFacts,
    depth_quantile,
)

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass
class Hit:
    """One frame of a finding."""

    index: int
    name: str
    sentence: str


@dataclass
class SplitSums:
    """The running sums of one split."""

    split: str
    frames: int  # of the split
    num_classes: int
    looked: int = 0  # at so many of them
    broken: int = 0  # of these have faults and count nowhere below
    hits: dict[str, list[Hit]] = field(
        default_factory=lambda: defaultdict(list)
    )  # by the code of the finding
    digests: dict[int, bytes] = field(default_factory=dict)  # frame -> digest of its pixels
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: int = 0
    total: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    squares: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    labelled: int = 0  # frames with a label
    class_pixels: NDArray[np.int64] = field(init=False)
    class_images: NDArray[np.int64] = field(init=False)
    void: int = 0
    with_depth: int = 0
    depth_pixels: int = 0
    depth_valid: int = 0
    depth_beyond: int = 0
    depth_least: float = math.inf
    depth_largest: float = -math.inf
    depth_bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(DEPTH_BINS, np.int64))
    cameras: Counter[tuple[float, ...]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.class_pixels = np.zeros(self.num_classes, np.int64)
        self.class_images = np.zeros(self.num_classes, np.int64)

    def add(self, facts: FrameFacts, name: str) -> None:
        self.looked += 1
        if facts.faults:
            self.broken += 1
            for fault in facts.faults:
                self.hit(fault.code, facts.index, name, fault.sentence)
            return
        if facts.image:
            self._add_image(facts.image, facts, name)
        if facts.label:
            self._add_label(facts.label, facts.index, name)
        if facts.depth:
            self._add_depth(facts.depth, facts.index, name)
        if facts.camera:
            self.cameras[facts.camera] += 1
            if not facts.camera_inside:
                x, y = facts.camera[2:]
                self.hit("camera-outside", facts.index, name, f"{name}: principal point at ({x:g}, {y:g})")

    def hit(self, code: str, index: int, name: str, sentence: str = "") -> None:
        self.hits[code].append(Hit(index, name, sentence))

    def _add_image(self, image: ImageFacts, facts: FrameFacts, name: str) -> None:
        self.digests[facts.index] = image.digest
        self.sizes[image.size] += 1
        self.pixels += image.size[0] * image.size[1]
        self.total += image.total
        self.squares += image.squares
        traits = facts.traits
        noted = {
            "image-constant": image.constant,
            "image-grey": image.grey and not image.constant,
            "image-turned": traits is not None and traits.turned,
            "image-transparent": traits is not None and traits.transparent,
            "image-deep": traits is not None and traits.deep,
        }
        for code in (code for code, true in noted.items() if true):
            self.hit(code, facts.index, name)

    def _add_label(self, label: LabelFacts, index: int, name: str) -> None:
        self.labelled += 1
        self.class_pixels += label.pixels
        self.class_images += label.pixels > 0
        self.void += label.void
        if not label.pixels.any():
            self.hit("label-void", index, name)

    def _add_depth(self, depth: DepthFacts, index: int, name: str) -> None:
        self.with_depth += 1
        self.depth_pixels += depth.pixels
        self.depth_valid += depth.valid
        self.depth_beyond += depth.beyond
        self.depth_bins += depth.bins
        if depth.valid == 0:
            self.hit("depth-empty", index, name)
            return
        self.depth_least = min(self.depth_least, depth.least)
        self.depth_largest = max(self.depth_largest, depth.largest)
        if depth.least == depth.largest and depth.valid > 1:
            self.hit("depth-constant", index, name, f"{name}: {depth.least:g} m everywhere")
        if depth.beyond:
            self.hit(
                "depth-beyond", index, name, f"{name}: {depth.beyond} pixels, up to {depth.largest:.4g} m"
            )

    @property
    def void_share(self) -> float:
        """Of all pixels of the labels; NaN without any."""
        return _share(self.void, int(self.class_pixels.sum()) + self.void)

    @property
    def mean(self) -> list[float]:
        """Of each channel, on the 0..255 scale, over all pixels of the split; NaN without any."""
        return [_share(int(total), self.pixels) for total in self.total]

    @property
    def std(self) -> list[float]:
        if not self.pixels:
            return [math.nan] * 3
        # In whole numbers of any size: the difference of two large sums is small.
        n, pairs = self.pixels, zip(self.total.tolist(), self.squares.tolist(), strict=True)
        return [math.sqrt(n * squares - total**2) / n for total, squares in pairs]

    @property
    def depth_quantiles(self) -> dict[str, float]:
        """``{"1%": metres, ...}`` to 1 %, from every fourth pixel both ways; empty without a valid pixel."""
        if not self.depth_bins.any():
            return {}
        low, high = self.depth_least, self.depth_largest
        return {f"{q:.0%}": min(max(depth_quantile(self.depth_bins, q), low), high) for q in QUANTILES}

    def to_json(self, classes: tuple[str, ...]) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "frames": self.frames,
            "looked_at": self.looked,
            "broken": self.broken,
            "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in sorted(self.sizes.items())],
            "mean": [_finite(value) for value in self.mean],
            "std": [_finite(value) for value in self.std],
        }
        if self.labelled:
            counts = zip(classes, self.class_pixels.tolist(), self.class_images.tolist(), strict=True)
            facts["label"] = {
                "frames": self.labelled,
                "void_share": self.void_share,
                "classes": [{"name": name, "pixels": p, "images": n} for name, p, n in counts],
            }
        if self.with_depth:
            facts["depth"] = {
                "frames": self.with_depth,
                "valid_share": _share(self.depth_valid, self.depth_pixels),
                "beyond_share": _finite(_share(self.depth_beyond, self.depth_valid)),
                "min": _finite(self.depth_least),
                "max": _finite(self.depth_largest),
                "quantiles": self.depth_quantiles,
            }
        facts["cameras"] = {"frames": sum(self.cameras.values()), "distinct": len(self.cameras)}
        return facts


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
