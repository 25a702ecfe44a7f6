"""Examine single frames of a data set, and add up their facts."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hardpix.data.files import FileSource, FrameFiles
from hardpix.data.images import Traits, decodes, image_size, traits
from hardpix.data.source import CameraFrames, Frames, Sample
from hardpix.types import DataError, DatasetInfo

# Depth is counted in bins 1 % wide from 0.1 mm to beyond 10 km, of every fourth pixel both ways: what quantiles
# are taken from. Least and largest are of all pixels.
DEPTH_BINS = 1860
DEPTH_LEAST, DEPTH_STEP, DEPTH_THIN = 1e-4, math.log(1.01), 4


@dataclass(frozen=True)
class Fault:
    """What is wrong with a frame: the code of a finding, and a sentence that names the file."""

    code: str
    sentence: str


@dataclass
class ImageFacts:
    """Of the decoded RGB pixels."""

    size: tuple[int, int]  # height, width
    digest: bytes  # equal for equal pixels
    total: NDArray[np.int64]  # [3] sum of each channel
    squares: NDArray[np.int64]  # [3] sum of squares
    constant: bool
    grey: bool  # the three channels are equal


@dataclass
class LabelFacts:
    pixels: NDArray[np.int64]  # [C] of each class
    void: int  # pixels of the ignored value


@dataclass
class DepthFacts:
    valid: int  # pixels with a reading
    pixels: int
    least: float  # metres; of the valid pixels
    largest: float
    beyond: int  # valid pixels beyond info.depth_max
    bins: NDArray[np.int64]  # [DEPTH_BINS]


@dataclass
class FrameFacts:
    """One frame. With ``faults`` it has no other facts: it counts nowhere else."""

    index: int
    faults: list[Fault] = field(default_factory=list)
    image: ImageFacts | None = None
    label: LabelFacts | None = None
    depth: DepthFacts | None = None
    traits: Traits | None = None  # of the image file, where it is one
    camera: tuple[float, ...] | None = None  # fx, fy, cx, cy
    camera_inside: bool = True  # the principal point lies in the picture


def examine(sample: Sample, index: int, info: DatasetInfo) -> FrameFacts:
    """The facts of a decoded frame; its faults where its parts contradict each other or the data set."""
    facts = FrameFacts(index)
    pixels = sample["image"].permute(1, 2, 0).contiguous().numpy()
    size = pixels.shape[:2]
    for key in ("label", "depth", "depth_valid"):
        part = sample.get(key)
        if part is not None and tuple(part.shape) != size:  # type: ignore[attr-defined]
            found = "x".join(map(str, reversed(part.shape)))  # type: ignore[attr-defined]
            sentence = f"{sample['name']}: {key} measures {found}, but the image {size[1]}x{size[0]}"
            facts.faults.append(Fault("size-mismatch", sentence))
    if facts.faults:
        return facts
    facts.image = image_facts(pixels)
    try:
        if "label" in sample:
            facts.label = label_facts(sample["label"].numpy(), info, sample["name"])
        if "depth" in sample:
            depth = sample["depth"].numpy()
            valid = sample["depth_valid"].numpy() if "depth_valid" in sample else np.isfinite(depth)
            facts.depth = depth_facts(depth, valid, info.depth_max, sample["name"])
    except Contradiction as error:
        return FrameFacts(index, [error.fault])
    return facts


class Contradiction(Exception):
    """Decoded numbers that cannot be."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.fault = Fault(code, sentence)


def image_facts(pixels: NDArray[np.uint8]) -> ImageFacts:
    """Of contiguous RGB ``[H, W, 3]``."""
    counts = np.array(Image.fromarray(pixels).histogram(), dtype=np.int64).reshape(3, 256)
    values = np.arange(256, dtype=np.int64)
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(pixels.data)
    return ImageFacts(
        size=(pixels.shape[0], pixels.shape[1]),
        digest=digest.digest()[:16],
        total=counts @ values,
        squares=counts @ values**2,
        constant=bool(((counts > 0).sum(axis=1) == 1).all()),
        grey=_is_grey(pixels, counts),
    )


def _is_grey(pixels: NDArray[np.uint8], counts: NDArray[np.int64]) -> bool:
    """Channels that are equal have equal histograms, which most pictures have not: no pixel need be compared."""
    if not ((counts[0] == counts[1]) & (counts[0] == counts[2])).all():
        return False
    red = pixels[..., 0]
    return bool((red == pixels[..., 1]).all() and (red == pixels[..., 2]).all())


def label_facts(label: NDArray[Any], info: DatasetInfo, name: str) -> LabelFacts:
    """Of ``[H, W]`` class indices; anything but a class or the ignored value is a contradiction."""
    if label.dtype == np.uint8:
        counts = np.array(Image.fromarray(label).histogram(), dtype=np.int64)
    else:
        least = int(label.min(initial=0))
        if least < 0:
            raise Contradiction("label-values", f"{name}: the label holds {least}, which is no class")
        counts = np.bincount(label.ravel(), minlength=info.num_classes)
    void = int(counts[info.ignore_index]) if info.ignore_index < len(counts) else 0
    pixels = counts[: info.num_classes].copy()
    if pixels.sum() + void != label.size:
        legal = np.arange(len(counts)) < info.num_classes
        legal[info.ignore_index : info.ignore_index + 1] = True
        wrong = int(np.flatnonzero(counts * ~legal)[0])
        raise Contradiction(
            "label-values",
            f"{name}: the label holds {wrong} ({counts[wrong]} pixels), which is no class; "
            f"classes are 0..{info.num_classes - 1}, unlabelled is {info.ignore_index}",
        )
    return LabelFacts(pixels, void)


def depth_facts(
    depth: NDArray[np.float32], valid: NDArray[np.bool_], depth_max: float | None, name: str
) -> DepthFacts:
    """Of metres ``[H, W]``; a valid pixel that is not finite or not above 0 is a contradiction."""
    read = depth[valid]
    bins = np.zeros(DEPTH_BINS, dtype=np.int64)
    if not read.size:
        return DepthFacts(0, depth.size, math.inf, -math.inf, 0, bins)
    least, largest = float(read.min()), float(read.max())
    if not (least > 0 and math.isfinite(largest)):  # also NaN, which min() hands on
        wrong = int((~(np.isfinite(read) & (read > 0))).sum())
        raise Contradiction(
            "depth-values", f"{name}: {wrong} pixels are marked as read, but their depth is no length above 0"
        )
    thin = (slice(None, None, DEPTH_THIN),) * 2
    places = np.log(depth[thin][valid[thin]] / np.float32(DEPTH_LEAST)) / np.float32(DEPTH_STEP)
    bins += np.bincount(places.astype(np.int64).clip(0, DEPTH_BINS - 1), minlength=DEPTH_BINS)
    beyond = int((read > depth_max).sum()) if depth_max is not None and largest > depth_max else 0
    return DepthFacts(read.size, depth.size, least, largest, beyond, bins)


def depth_quantile(bins: NDArray[np.int64], share: float) -> float:
    """The depth in metres below which ``share`` of the counted pixels lie, to 1 %."""
    place = int(np.searchsorted(np.cumsum(bins), share * bins.sum()))
    return DEPTH_LEAST * math.exp((place + 0.5) * DEPTH_STEP)


def add_camera(facts: FrameFacts, frames: Frames, index: int) -> None:
    """The intrinsics of a frame, where they are known; a camera file that cannot be read is a fault."""
    if facts.image is None or not isinstance(frames, CameraFrames):
        return
    try:
        matrix = frames.intrinsics(index)
    except DataError as error:
        facts.faults.append(Fault("camera-unreadable", str(error)))
        return
    if matrix is None:
        return
    height, width = facts.image.size
    x, y = matrix[0, 2], matrix[1, 2]
    facts.camera = tuple(float(value) for value in (matrix[0, 0], matrix[1, 1], x, y))
    facts.camera_inside = bool(0 <= x <= width and 0 <= y <= height)


def add_traits(facts: FrameFacts, path: Path) -> None:
    try:
        facts.traits = traits(path)
    except DataError:  # a frame of another kind, which its source could read
        facts.traits = None


def diagnose(
    source: FileSource, split: str, files: FrameFiles, keys: frozenset[str], first: Exception
) -> list[Fault]:
    """Every fault of a frame of files that could not be loaded, part by part; ``first`` is what was raised."""
    faults: list[Fault] = []

    def tried(part: str, path: Path, load: Callable[[], object]) -> bool:
        try:
            load()
        except Exception as error:
            faults.append(_fault(part, path, files.image, str(error) or repr(error)))
        return not faults

    image = frozenset({"image"})
    alone = tried("image", files.image, lambda: source.open(split, [files], image).load(0))
    if "label" in keys and files.label:
        reads = lambda: source.label_reader(split).read(files.label, files.image)  # noqa: E731
        if tried("label", files.label, reads):
            tried("label", files.label, lambda: source.open(split, [files], image | {"label"}).load(0))
    if alone and "depth" in keys and files.depth:
        depth = image | {"depth", "depth_valid"}
        tried("depth", files.depth, lambda: source.open(split, [files], depth).load(0))
    return faults or [Fault("frame-unreadable", str(first) or repr(first))]


def _fault(part: str, path: Path, image: Path, sentence: str) -> Fault:
    """What kind of fault a part's error is: not decodable, of another size, or of wrong numbers."""
    if not decodes(path):
        return Fault(f"{part}-unreadable", sentence)
    if part == "image":
        return Fault("frame-unreadable", sentence)
    if decodes(image) and image_size(path) != image_size(image):
        return Fault("size-mismatch", sentence)
    return Fault(f"{part}-values", sentence)


# Sums over the frames of a split, in integers, so that their order changes nothing.


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
