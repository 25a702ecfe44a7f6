"""Whether two rows of a table differ by more than chance: a paired bootstrap and a permutation test.

Both are paired: the same images (from ``per_image.csv``, whose counts of each class add up to the scores of any sample
of a data set) and the same seeds on both sides. The score of a sample of images is computed from its summed counts, as
that of the whole split is, never averaged over images.

The only part of this package that needs NumPy, imported when a test is asked for: two thousand samples of a thousand
images and forty classes are 10^8 additions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hardpix.report.collect import Run
from hardpix.report.columns import read_classes
from hardpix.report.compare import folded
from hardpix.report.per_image import read_per_image

if TYPE_CHECKING:
    import numpy as np

LEVEL = 95  # percent of the interval
CHUNK = 250  # resamples at a time: the weights of one chunk are this many times the images
KEPT = 40  # runs whose counts are held: up to ten megabytes each
AGREE = 1e-5  # how far a recorded score may lie from that of the counts, which is the same computation


@dataclass(frozen=True)
class Options:
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class PairedTest:
    """Own row minus reference, in the metric's unit. NaN where there are too few seeds for it.

    ``low``, ``high``: percentile interval over images and seeds jointly, over seeds alone without counts of images.
    ``p_images``: of swapping the rows image by image, for the seeds as they are. ``p_seeds``: of swapping them seed by
    seed.
    """

    delta: float
    low: float
    high: float
    p_images: float
    p_seeds: float
    seeds: tuple[int, ...]
    images: int  # 0: without images
    why: str = ""  # why without

    @property
    def p(self) -> float:
        return self.p_images if self.images else self.p_seeds


class Counts(NamedTuple):
    """Of one run: pixels hit, in the truth and predicted, ``[I, C, 3]`` float64 (whole numbers, exact)."""

    images: tuple[str, ...]
    classes: tuple[str, ...]
    values: np.ndarray


Score = Callable[["np.ndarray"], "np.ndarray"]  # [..., C, 3] -> [...]


class PairedTests:
    """Tests rows against each other; the counts of a run are read once."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.read: dict[str, Counts | str] = {}

    def test(self, own: Mapping[int, Run], base: Mapping[int, Run], metric: str) -> PairedTest:
        """``own``, ``base``: runs of two rows by seed. Raises nothing: ``why`` says what is not possible."""
        import numpy as np

        seeds = sorted(seed for seed in own.keys() & base.keys() if _both(own[seed], base[seed], metric))
        pairs = [(own[seed], base[seed]) for seed in seeds]
        recorded = np.array([[run.record.metrics[metric] for run in pair] for pair in pairs]).reshape(-1, 2)
        apart = recorded[:, 0] - recorded[:, 1]
        rng = np.random.default_rng(self.options.seed)
        p_seeds = _swapped_seeds(apart, self.options.resamples, rng) if len(seeds) > 1 else math.nan
        paired = self._counts(pairs, metric, recorded) if seeds else "no common seed"
        if isinstance(paired, str):
            low, high = _seed_interval(apart, self.options.resamples, rng)
            delta = float(apart.mean()) if seeds else math.nan
            return PairedTest(delta, low, high, math.nan, p_seeds, tuple(seeds), 0, paired)
        ours, theirs, score = paired
        count = ours.shape[1]
        found: list[Any] = []
        for start in range(0, self.options.resamples, CHUNK):
            n = min(CHUNK, self.options.resamples - start)
            images = rng.integers(0, count, (n, count))
            found.append(resampled(ours, theirs, score, images, rng.integers(0, len(seeds), (n, len(seeds)))))
        low, high = _interval(np.concatenate(found))
        chance = [
            swapped(
                ours, theirs, score, rng.integers(0, 2, (min(CHUNK, self.options.resamples - start), count))
            )
            for start in range(0, self.options.resamples, CHUNK)
        ]
        p_images = p_value(float(apart.mean()), np.concatenate(chance))
        return PairedTest(float(apart.mean()), low, high, p_images, p_seeds, tuple(seeds), count)

    def _counts(
        self, pairs: Sequence[tuple[Run, Run]], metric: str, recorded: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Score] | str:
        """Counts of the two rows, ``[S, I, C, 3]`` each, in one order of the images; or why there are none."""
        import numpy as np

        sides: list[list[Counts]] = []
        for pair in pairs:
            read = [self._of_run(run) for run in pair]
            lacking = [found for found in read if isinstance(found, str)]
            if lacking:
                return lacking[0]
            sides.append([found for found in read if not isinstance(found, str)])
        first, name = sides[0][0], pairs[0][0].directory
        score = score_of(metric, first.classes)
        if score is None:
            return f"{metric} cannot be computed from counts of classes"
        for pair, counts, known in zip(pairs, sides, recorded, strict=True):
            for run, one, value in zip(pair, counts, known, strict=True):
                if problem := _unlike(first, one):
                    return f"{name} and {run.directory} {problem}"
                if not abs(float(score(one.values.sum(0))) - value) <= AGREE:
                    return f"{metric} of {run.directory} is not that of its per_image.csv"
        ours, theirs = (np.stack([_ordered(counts[i], first.images) for counts in sides]) for i in (0, 1))
        return ours, theirs, score

    def _of_run(self, run: Run) -> Counts | str:
        if run.directory not in self.read:
            if len(self.read) >= KEPT:
                del self.read[next(iter(self.read))]
            self.read[run.directory] = _read(Path(run.directory))
        return self.read[run.directory]


def resampled(
    own: np.ndarray, base: np.ndarray, score: Score, images: np.ndarray, seeds: np.ndarray
) -> np.ndarray:
    """Differences of the two rows in samples, ``[n]``; the same images and the same seeds for both.

    ``own``, ``base``: counts ``[S, I, C, 3]``. ``images`` ``[n, I]`` and ``seeds`` ``[n, S]``: indices drawn.
    """
    import numpy as np

    n, count = images.shape
    places = (images + count * np.arange(n)[:, None]).ravel()
    weights = np.bincount(places, minlength=n * count).reshape(n, count).astype(np.float64)
    apart = [
        score(_weighted(weights, a)) - score(_weighted(weights, b)) for a, b in zip(own, base, strict=True)
    ]
    return np.take_along_axis(np.stack(apart, 1), seeds, 1).mean(1)


def swapped(own: np.ndarray, base: np.ndarray, score: Score, swaps: np.ndarray) -> np.ndarray:
    """Differences ``[n]`` after the two rows have changed places in the images where ``swaps`` ``[n, I]`` is 1.

    An image is swapped in all seeds at once: it is as hard for one as for the next.
    """
    import numpy as np

    weights = swaps.astype(np.float64)
    found = []
    for a, b in zip(own, base, strict=True):
        moved = _weighted(weights, b - a)
        found.append(score(a.sum(0) + moved) - score(b.sum(0) - moved))
    return np.stack(found, 1).mean(1)


def p_value(observed: float, chance: np.ndarray) -> float:
    """(1 + as extreme ones) / (1 + all), two-sided; 1 where chance knows no number."""
    import numpy as np

    chance = chance[~np.isnan(chance)]
    extreme = int((np.abs(chance) >= abs(observed) - 1e-12).sum())
    return (1 + extreme) / (1 + len(chance))


def score_of(metric: str, classes: Sequence[str]) -> Score | None:
    """How a metric comes from counts ``[..., C, 3]``, as :func:`hardpix.metrics.segmentation.scores` has it."""
    import numpy as np

    def ratio(hit: np.ndarray, of: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return hit / of

    def iou(x: np.ndarray) -> np.ndarray:
        return ratio(x[..., 0], x[..., 1] + x[..., 2] - x[..., 0])

    def acc(x: np.ndarray) -> np.ndarray:
        return ratio(x[..., 0], x[..., 1])

    def mean(x: np.ndarray) -> np.ndarray:
        """Over the classes that have a value."""
        known = ~np.isnan(x)
        return ratio(np.where(known, x, 0.0).sum(-1), known.sum(-1))

    kind, colon, name = metric.partition(":")
    if colon:
        names = list(map(folded, classes))
        if folded(name) not in names or kind not in ("iou", "acc"):
            return None
        place, of_classes = names.index(folded(name)), iou if kind == "iou" else acc
        return lambda x: of_classes(x)[..., place]
    known: dict[str, Score] = {
        "miou": lambda x: mean(iou(x)),
        "mean_acc": lambda x: mean(acc(x)),
        "pixel_acc": lambda x: ratio(x[..., 0].sum(-1), x[..., 1].sum(-1)),
        "fg_iou": lambda x: iou(x)[..., -1],
    }
    return known.get(metric.rpartition("/")[2])


def _weighted(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``[n, I]`` and ``[I, C, 3]`` -> sums ``[n, C, 3]``."""
    return (weights @ counts.reshape(len(counts), -1)).reshape(len(weights), *counts.shape[1:])


def _both(one: Run, other: Run, metric: str) -> bool:
    values = [run.record.metrics.get(metric, math.nan) for run in (one, other) if run.record.status == "done"]
    return len(values) == 2 and all(map(math.isfinite, values))


def _swapped_seeds(apart: np.ndarray, resamples: int, rng: np.random.Generator) -> float:
    """All ways to swap the rows seed by seed where they are few: the share that is as extreme, itself included."""
    import numpy as np

    observed = float(apart.mean())
    if 2 ** len(apart) > resamples:
        return p_value(observed, (rng.choice((-1.0, 1.0), (resamples, len(apart))) * apart).mean(1))
    every = np.array(list(itertools.product((-1.0, 1.0), repeat=len(apart))))
    return float((np.abs((every * apart).mean(1)) >= abs(observed) - 1e-12).mean())


def _seed_interval(apart: np.ndarray, resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    if len(apart) < 2:
        return math.nan, math.nan
    return _interval(apart[rng.integers(0, len(apart), (resamples, len(apart)))].mean(1))


def _interval(found: np.ndarray) -> tuple[float, float]:
    """Percentiles; samples without a value, such as those in which a class never occurs, are left out."""
    import numpy as np

    found = found[~np.isnan(found)]
    if not len(found):
        return math.nan, math.nan
    low, high = np.percentile(found, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def _read(folder: Path) -> Counts | str:
    import numpy as np

    rows = read_per_image(folder)
    if rows is None:
        return f"{folder} has no per_image.csv"
    classes = tuple(line["class"] for line in read_classes(folder))
    if len({row.image for row in rows}) < len(rows):
        return f"{folder}/per_image.csv names an image twice"
    own = [row.classes() for row in rows]
    if not classes or not any(own):
        return f"{folder} has no counts of classes in its per_image.csv, which earlier versions did not write"
    if max((index for one in own for index in one), default=0) >= len(classes):
        return f"per_image.csv and per_class.csv of {folder} know different classes"
    values = np.zeros((len(rows), len(classes), 3))
    for i, one in enumerate(own):
        for index, numbers in one.items():
            values[i, index] = numbers
    return Counts(tuple(row.image for row in rows), classes, values)


def _unlike(first: Counts, other: Counts) -> str:
    """Why two runs cannot be paired; empty if they can."""
    if first.classes != other.classes:
        return "know different classes"
    apart = sorted(set(first.images) ^ set(other.images))
    if apart:
        return f"score different images ({len(apart)} in one only: {', '.join(apart[:3])})"
    same = (_ordered(other, first.images)[..., 1] == first.values[..., 1]).all(1)
    wrong = [name for name, alike in zip(first.images, same, strict=True) if not alike]
    return f"have different labels of {len(wrong)} images ({', '.join(wrong[:3])})" if wrong else ""


def _ordered(counts: Counts, images: Sequence[str]) -> np.ndarray:
    place = {name: i for i, name in enumerate(counts.images)}
    return counts.values[[place[name] for name in images]]
