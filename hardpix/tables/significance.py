"""Whether two rows differ by more than chance: paired bootstrap and permutation test, and their caveats.

It is paired: the same images (from ``per_image.csv``, whose counts of each class add up to the scores of any sample
of a data set) and the same seeds on both sides. The score of a sample of images is computed from its summed counts, as
that of the complete split is, never averaged over images.

The only part of this package that needs NumPy, imported when a test is asked for: two thousand samples of a thousand
images and forty classes are 10^8 additions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from hardpix.scores import read_per_image
from hardpix.tables.columns import read_classes
from hardpix.tables.compare import Run, folded
from hardpix.types import HardpixError

if TYPE_CHECKING:
    import numpy as np


LEVEL = 95  # percent of the interval
SEEDS = 3  # below it nothing can be said of how training varies: no p, and an interval over the images alone
REPEATS = 25  # draws of the seeds' part for each sample of images: with 3 seeds one is too few for steady percentiles
MIN_RESAMPLES = 40  # resamples: with fewer no percentile is cut off
CHUNK = 250  # resamples at a time: the weights of one chunk are this many times the images
MAX_CACHED_RUNS = 40  # runs whose counts are held: up to ten megabytes each
SCORE_TOLERANCE = (
    1e-5  # how far a recorded score may lie from that of the counts, which is the same computation
)


@dataclass(frozen=True)
class Options:
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < MIN_RESAMPLES:
            raise HardpixError(
                f"--resamples {self.resamples}: must be {MIN_RESAMPLES} or more for an interval of {LEVEL} %."
            )


@dataclass(frozen=True)
class PairedTest:
    """Own row minus reference, in the metric's unit.

    ``low``, ``high``: the interval over images and seeds jointly; over seeds alone without counts of images, over
    images alone below ``SEEDS`` seeds. ``p``: from the same draws; NaN below ``SEEDS`` seeds.
    """

    delta: float
    low: float
    high: float
    p: float
    seeds: tuple[int, ...]
    images: int  # 0: without images
    why: str = ""  # why without

    @property
    def label(self) -> str:
        """Says that the interval is over images alone; else empty."""
        n = len(self.seeds)
        return f"images only, {n} seed{'s' if n > 1 else ''}" if self.images and n < SEEDS else ""


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
        paired = self._counts(pairs, metric, recorded) if seeds else "no common seed"
        images, why = (0, paired) if isinstance(paired, str) else (paired[0].shape[1], "")
        samples = None if isinstance(paired, str) else self._samples(*paired)
        low, high, p = interval_and_p(draws(apart, samples, images, self.options))
        delta = float(apart.mean()) if seeds else math.nan
        return PairedTest(delta, low, high, p if len(seeds) >= SEEDS else math.nan, tuple(seeds), images, why)

    def _samples(self, own: np.ndarray, base: np.ndarray, score: Score) -> np.ndarray:
        """Differences of each seed in resampled images, ``[n, S]``."""
        import numpy as np

        rng, count, total = np.random.default_rng(self.options.seed), own.shape[1], self.options.resamples
        sizes = (min(CHUNK, total - start) for start in range(0, total, CHUNK))
        images = (rng.integers(0, count, (n, count)) for n in sizes)
        return np.concatenate([resampled(own, base, score, drawn) for drawn in images])

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
                if not abs(float(score(one.values.sum(0))) - value) <= SCORE_TOLERANCE:
                    return f"{metric} of {run.directory} is not that of its per_image.csv"
        if len(first.images) < 2:
            return f"{name} scores one image only"
        ours, theirs = (np.stack([_ordered(counts[i], first.images) for counts in sides]) for i in (0, 1))
        return ours, theirs, score

    def _of_run(self, run: Run) -> Counts | str:
        if run.directory not in self.read:
            if len(self.read) >= MAX_CACHED_RUNS:
                del self.read[next(iter(self.read))]
            self.read[run.directory] = _read(Path(run.directory))
        return self.read[run.directory]


def resampled(own: np.ndarray, base: np.ndarray, score: Score, images: np.ndarray) -> np.ndarray:
    """Differences of the two rows in samples of images, for each seed, ``[n, S]``; the same images for both rows.

    ``own``, ``base``: counts ``[S, I, C, 3]``. ``images`` ``[n, I]``: indices drawn.
    """
    import numpy as np

    n, count = images.shape
    places = (images + count * np.arange(n)[:, None]).ravel()
    weights = np.bincount(places, minlength=n * count).reshape(n, count).astype(np.float64)
    apart = [
        score(_weighted(weights, a)) - score(_weighted(weights, b)) for a, b in zip(own, base, strict=True)
    ]
    return np.stack(apart, 1)


def draws(apart: np.ndarray, samples: np.ndarray | None, images: int, options: Options) -> np.ndarray:
    """What the mean of ``apart`` could have been with other images and, from ``SEEDS`` seeds on, with other seeds.

    ``apart``: the observed difference of each seed, ``[S]``. ``samples``: the same in resampled images, ``[n, S]``;
    None where there are no counts of images. ``images``: how many there are.

    The images' part is their bootstrap, stretched to Student's t. Resampling three seeds would understate how training
    varies (nothing beyond the outermost is ever drawn), so the seeds' part is drawn from Student's t of their standard
    error. What of the images' part differs between seeds is in that error already and is taken out (:func:`_shared`).
    """
    import numpy as np

    rng, count = np.random.default_rng((options.seed, 1)), len(apart)
    moved = np.zeros(options.resamples)
    if samples is not None:
        samples = samples[~np.isnan(samples).any(1)]  # such as those in which the class never occurs
        moved = (samples.mean(1) - apart.mean()) * np.sqrt(images / rng.chisquare(images - 1, len(samples)))
        if count >= SEEDS and len(samples):
            moved *= math.sqrt(_shared(samples))
    if count < SEEDS:
        return apart.mean() + moved if samples is not None else np.empty(0)
    error = apart.std(ddof=1) / math.sqrt(count)
    seeds = error * rng.standard_t(count - 1, (len(moved), REPEATS))
    return (apart.mean() + moved[:, None] + seeds).ravel()


def interval_and_p(values: np.ndarray) -> tuple[float, float, float]:
    """Percentile interval and two-sided p of ``values``: p < 1 - LEVEL / 100 exactly where the interval excludes 0.

    p counts the observed value as one of the draws; the interval's ends are the outermost values for which p, had they
    been 0, would reach the level. NaN where there are too few values.
    """
    import numpy as np

    values = np.sort(values)
    n = len(values)
    place = ((100 - LEVEL) * (n + 1) - 1) // 200  # the most values on one side of an end, itself included
    if place < 1:
        return math.nan, math.nan, math.nan
    beyond = min(int((values <= 0).sum()), int((values >= 0).sum()))
    return float(values[place - 1]), float(values[n - place]), min(1.0, 2 * (1 + beyond) / (n + 1))


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


def _shared(samples: np.ndarray) -> float:
    """The share of the mean's variance over samples of images ``[n, S]`` that all seeds have in common."""
    centred = samples - samples.mean(0)
    mean = centred.mean(1)
    total = float((mean**2).mean())
    n, count = samples.shape
    apart = float(((centred - mean[:, None]) ** 2).sum()) / (n * (count - 1) * count)
    return max(0.0, 1.0 - apart / total) if total else 0.0


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


# Caveats of the tests below a table: how they were made, on what, what they do not say.


Key = TypeVar("Key")


def about(
    tests: Iterable[tuple[str, PairedTest]], against: str, seeds: Sequence[int], options: Options
) -> list[str]:
    """``tests``: with the labels of their rows. ``seeds``: all of the table."""
    tests = list(tests)
    made = [test for _, test in tests if test.seeds]
    if not made:
        return (
            [f"Nothing can be tested against {against}: no seed is finished on both sides."] if tests else []
        )
    notes = [_how(made, against, options)]
    counts = sorted({len(test.seeds) for test in made})
    if counts[0] < SEEDS:
        few = " or ".join(str(count) for count in counts if count < SEEDS)
        notes.append(
            f"With {few} seed{'' if few == '1' else 's'} the interval is about the sample of images alone and says "
            f"nothing of how training varies; p needs {SEEDS} seeds on both sides."
        )
    for why, labels in _collected(
        (test.why, label) for label, test in tests if test.seeds and test.why
    ).items():
        notes.append(f"{'; '.join(labels)}: without images, because {why}.")
    lacking = ((tuple(s for s in seeds if s not in test.seeds), label) for label, test in tests if test.seeds)
    for left, labels in _collected(pair for pair in lacking if pair[0]).items():
        named = f"seed{'s' if len(left) > 1 else ''} {', '.join(map(str, left))}"
        notes.append(f"{'; '.join(labels)}: {named} left out of the test, without a value on one side.")
    return notes


def _how(made: Sequence[PairedTest], against: str, options: Options) -> str:
    with_images = sorted({test.images for test in made if test.images})
    count = f"{options.resamples:,}"
    parts = []
    if with_images:
        parts.append(
            f"in brackets the {LEVEL} % interval of {count} paired bootstrap samples of the "
            f"{' or '.join(map(str, with_images))} images"
            + (
                ", with Student's t for the seeds, and p from the same samples (below 0.05 where the interval "
                "excludes 0)"
                if any(test.images and test.p == test.p for test in made)
                else ""
            )
        )
    if any(not test.images for test in made):
        parts.append(
            f"{'where images cannot be paired, ' if with_images else ''}Student's t over seeds alone"
        )
    return (
        f"Δ [{LEVEL} %], p: difference from {against}; {'; '.join(parts)}. Random numbers from {options.seed}; "
        f"p is not corrected for {len(made)} comparison{'s' if len(made) > 1 else ''}."
    )


def _collected(pairs: Iterable[tuple[Key, str]]) -> dict[Key, list[str]]:
    found: dict[Key, list[str]] = {}
    for key, label in pairs:
        if label not in found.setdefault(key, []):
            found[key].append(label)
    return found
