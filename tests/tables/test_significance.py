"""The paired bootstrap, its interval and its p against full enumeration, loops and simulation."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from hardpix.record import SCHEMA, RunRecord
from hardpix.scores import write_per_image
from hardpix.tables import significance
from hardpix.tables.compare import Run
from hardpix.tables.render import render
from hardpix.tables.render import test_text as text_of
from hardpix.tables.significance import (
    Options,
    PairedTest,
    PairedTests,
    draws,
    interval_and_p,
    resampled,
    score_of,
)
from hardpix.tables.table import table
from hardpix.types import HardpixError

CLASSES = ("wall", "floor", "lamp")


def predictions(rng, images, skill, truth):
    """Counts ``[I, C, 3]`` of a predictor that is right with probability ``skill``, by loops over pixels."""
    counts = np.zeros((images, len(CLASSES), 3), dtype=int)
    for i in range(images):
        for label in truth[i]:
            pred = label if rng.random() < skill else rng.integers(0, len(CLASSES))
            counts[i, label, 1] += 1
            counts[i, pred, 2] += 1
            counts[i, label, 0] += pred == label
    return counts


def miou(counts):
    """Of summed counts, class by class; one that neither occurs nor is predicted does not count."""
    total = counts.sum(0)
    ious = [hit / (truth + pred - hit) for hit, truth, pred in total if truth + pred]
    return sum(ious) / len(ious)


@pytest.fixture
def stored(tmp_path):
    """``stored("a", counts, seed, loss)``: a finished run whose folder holds what a test leaves."""

    def make(name, counts, seed=0, loss="CrossEntropy", images=None, scores=None, classes=CLASSES):
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for i, one in enumerate(counts):
            seen = tuple((c, *map(int, numbers)) for c, numbers in enumerate(one) if numbers.any())
            rows.append((images[i] if images else f"i{i}", int(one[:, 1].sum()), 0.5, 0.5, seen))
        write_per_image(rows, folder)
        lines = "".join(f"{name},0.5,0.5,1\n" for name in classes)
        (folder / "per_class.csv").write_text(f"class,iou,acc,pixels\n{lines}")
        metrics = {"test/miou": miou(counts), "time/ms": 1.0 + seed} | (scores or {})
        record = RunRecord(
            schema=SCHEMA, run_id=name, status="done", seed=seed, parent=None, started="", code={}, host={},
            metrics=metrics, factors={"loss._target_": f"x.{loss}", "seed": seed},
        )  # fmt: skip
        return Run(str(folder), record)

    return make


def pair(rng, images=5, seeds=2, pixels=6):
    truth = [rng.integers(0, 2 if i else 3, pixels) for i in range(images)]
    own, base = (
        np.stack([predictions(rng, images, skill, truth) for _ in range(seeds)]) for skill in (0.7, 0.5)
    )
    return own, base


def test_every_bootstrap_sample_is_scored_from_its_summed_counts():
    own, base = pair(np.random.default_rng(0), images=4)
    images = np.array(list(itertools.product(range(4), repeat=4)))
    found = resampled(own.astype(float), base.astype(float), score_of("test/miou", CLASSES), images)
    wanted = [
        [miou(own[s][list(places)]) - miou(base[s][list(places)]) for s in range(2)] for places in images
    ]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_sampled_results_come_near_the_enumerated_ones(stored):
    own, base = pair(np.random.default_rng(2), images=5, seeds=1)
    run, other = stored("a", own[0], loss="OHEM"), stored("b", base[0])
    found = PairedTests(Options(20000, 3)).test({0: run}, {0: other}, "test/miou")
    score = score_of("test/miou", CLASSES)
    every = np.array(list(itertools.product(range(5), repeat=5)))
    samples = resampled(own.astype(float), base.astype(float), score, every)[:, 0]
    spread = np.random.default_rng(0).chisquare(4, (200, 1))  # of the variance of 5 images
    wanted = found.delta + (samples - found.delta) * np.sqrt(5 / spread)
    np.testing.assert_allclose((found.low, found.high), np.percentile(wanted, [2.5, 97.5]), atol=0.02)
    assert found.delta == pytest.approx(miou(own[0]) - miou(base[0]))
    assert (found.images, found.seeds, math.isnan(found.p)) == (5, (0,), True)
    assert found.label == "images only, 1 seed"


def test_without_images_it_is_the_t_test_of_the_seeds(stored):
    runs = [{}, {}]
    values = ((0.5, 0.4), (0.6, 0.45), (0.55, 0.56))
    for seed, both in enumerate(values):
        for side, value in enumerate(both):
            name = f"{side}{seed}"
            runs[side][seed] = stored(name, np.zeros((1, 3, 3), int) + 1, seed, scores={"depth/rmse": value})
    found = PairedTests(Options()).test(*runs, "depth/rmse")
    apart = [a - b for a, b in values]
    wanted = stats.ttest_1samp(apart, 0.0)
    assert found.p == pytest.approx(wanted.pvalue, abs=0.01)
    interval = wanted.confidence_interval()
    np.testing.assert_allclose((found.low, found.high), (interval.low, interval.high), rtol=0.05)
    assert found.why == "depth/rmse cannot be computed from counts of classes"
    assert (found.images, found.label) == (0, "")
    two = PairedTests(Options()).test({s: runs[0][s] for s in (0, 1)}, runs[1], "depth/rmse")
    assert math.isnan(two.low)
    assert math.isnan(two.p)


def test_p_counts_itself_and_the_interval_ends_where_p_reaches_the_level():
    values = np.arange(1.0, 100.0)  # 99 draws: p of 0 inside k of them from an end is 2 (1 + k) / 100
    assert interval_and_p(values) == (2.0, 98.0, 0.02)
    assert interval_and_p(values - 1.5)[::2] == (0.5, 0.04)
    assert interval_and_p(values - 2.0)[::2] == (0.0, 0.06)
    assert interval_and_p(values - 98.5)[1:] == (-0.5, 0.04)
    assert interval_and_p(np.zeros(99)) == (0.0, 0.0, 1.0)
    assert all(map(math.isnan, interval_and_p(values[:38])))
    with pytest.raises(HardpixError, match="--resamples 39: must be 40 or more"):
        Options(39)


def study(rng, seeds, apart, *, of_seeds, of_images, of_both, images=25):
    """Two rows whose pixel accuracies differ by ``apart`` on average: the counts ``[2, S, I, 3, 3]``.

    ``of_seeds``, ``of_images``, ``of_both``: standard deviations of that difference for one seed, for one image, and
    for one image of one seed.
    """
    pixels = 10000
    hard = rng.uniform(0.3, 0.7, (1, images))  # as hard for one row as for the other
    moved = apart + of_seeds * rng.normal(size=(seeds, 1)) + of_images * rng.normal(size=(1, images))
    moved = moved + of_both * rng.normal(size=(seeds, images))
    made = np.zeros((2, seeds, images, 3, 3))
    made[..., 0, 1:] = pixels
    for side, sign in enumerate((0.5, -0.5)):
        made[side, :, :, 0, 0] = np.clip(np.round(pixels * (hard + sign * moved)), 0, pixels)
    return made


def outcome(made, options):
    """:meth:`PairedTests.test` of the two rows, on records and counts that lie in memory."""
    score = score_of("test/pixel_acc", CLASSES)

    class Tests(PairedTests):
        def _counts(self, *args):
            return made[0], made[1], score

    rows = []
    for side in made:
        row = {}
        for seed, one in enumerate(side):
            metrics = {"test/pixel_acc": float(score(one.sum(0)))}
            row[seed] = Run("", RunRecord(
                schema=SCHEMA, run_id="", status="done", seed=seed, parent=None, started="", code={}, host={},
                metrics=metrics, factors={},
            ))  # fmt: skip
        rows.append(row)
    return Tests(options).test(*rows, "test/pixel_acc")


SPREADS = {
    "seeds": {"of_seeds": 0.05, "of_images": 0.02, "of_both": 0.02},
    "images": {"of_seeds": 0.002, "of_images": 0.1, "of_both": 0.05},
    "both alike": {"of_seeds": 0.03, "of_images": 0.1, "of_both": 0.05},
    "images of seeds": {"of_seeds": 0.0, "of_images": 0.01, "of_both": 0.1},
}


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("seeds", [3, 4, 5])
def test_false_alarms_and_the_interval_that_p_belongs_to(seeds, spread):
    """Of studies without a difference at most 7 % find one; p and the interval agree in every study, also in others."""
    rng = np.random.default_rng(seeds)
    alarms, count = 0, 800
    for i in range(count):
        apart = 0.0 if i % 4 else rng.choice([-1, 1]) * rng.uniform(0, 0.2)
        found = outcome(study(rng, seeds, apart, **spread), Options(200, i))
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
        assert found.low < found.delta < found.high
        alarms += apart == 0.0 and found.p < 0.05
    assert alarms / (0.75 * count) <= 0.07


def test_a_difference_is_found():
    """The power of the best possible test, which knows the deviations, is 88 % where images make the difference vary;
    that of a t test of 5 seeds is 65 % where seeds do."""
    rng = np.random.default_rng(0)
    for seeds, kind, error, least in ((3, "images", 0.021, 0.75), (5, "seeds", 0.023, 0.55)):
        hits = [
            outcome(study(rng, seeds, 3.2 * error, **SPREADS[kind]), Options(200, i)).p < 0.05
            for i in range(100)
        ]
        assert np.mean(hits) >= least, kind


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_give_no_p_and_say_so(seeds):
    found = outcome(study(np.random.default_rng(1), seeds, 0.1, **SPREADS["images"]), Options(200))
    assert math.isnan(found.p)
    assert found.low < found.delta < found.high
    assert found.label == f"images only, {seeds} seed{'s' if seeds > 1 else ''}"
    assert text_of(found, 100.0, ".2f").endswith(f"] ({found.label})")


def test_the_interval_over_images_covers():
    """Two equal predictors of one seed, many times: the interval holds 0 in about 95 % of them."""
    rng = np.random.default_rng(4)
    score = score_of("pixel_acc", CLASSES)
    covered, count = 0, 200
    for _ in range(count):
        hits = rng.binomial(20, rng.uniform(0.3, 0.9, (30, 1)), (30, 2))
        sides = np.zeros((2, 1, 30, 3, 3))
        sides[:, 0, :, 0, 0] = hits.T
        sides[:, 0, :, 0, 1] = 20
        own, base = sides
        samples = resampled(own, base, score, rng.integers(0, 30, (400, 30)))
        apart = np.array([float(score(own[0].sum(0)) - score(base[0].sum(0)))])
        low, high, _ = interval_and_p(draws(apart, samples, 30, Options(400)))
        covered += low <= 0 <= high
    assert 0.91 <= covered / count <= 0.99


def test_a_rounded_p_stays_on_its_side():
    made = PairedTest(0.1, 0.01, 0.2, 0.04998, (0, 1, 2), 10)
    assert text_of(made, 1.0, ".2f").endswith(", p=0.04998")
    assert text_of(replace(made, p=0.05), 1.0, ".2f").endswith(", p=0.05")
    assert text_of(replace(made, p=0.0004), 1.0, ".2f").endswith(", p<0.001")


def test_a_row_against_another_in_a_table(stored):
    own, base = pair(np.random.default_rng(5), images=6, seeds=3)
    runs = [stored(f"a{s}", own[s], s, "OHEM") for s in range(3)] + [
        stored(f"b{s}", base[s], s) for s in range(2)
    ]
    made = table(
        runs, ["loss"], ["test/miou", "time/ms"], against="loss=cross_entropy", options=Options(500, 7)
    )
    assert [column.kind for column in made.columns] == ["value", "test", "value", "test"]
    assert [row.labels[0] for row in made.rows] == ["CrossEntropy", "OHEM"]
    test = made.rows[1].cells[1].test
    apart = [miou(own[s]) - miou(base[s]) for s in range(2)]
    assert test.delta == pytest.approx(np.mean(apart))
    assert (test.seeds, test.images) == ((0, 1), 6)
    assert test.low < test.delta < test.high
    text = render(made, "md")
    interval = f"[{100 * test.low:+.2f}, {100 * test.high:+.2f}]"
    assert f"{100 * test.delta:+.2f} {interval} (images only, 2 seeds) (n=2)" in text
    assert "500 paired bootstrap samples of the 6 images" in text
    assert "Random numbers from 7" in text
    assert "OHEM: seed 2 left out of the test, without a value on one side." in text
    assert "With 2 seeds the interval is about the sample of images alone" in text
    assert "OHEM: without images, because time/ms cannot be computed from counts of classes." in text
    again = table(
        runs[::-1], ["loss"], ["test/miou", "time/ms"], against="CrossEntropy", options=Options(500, 7)
    )
    assert render(again, "json") == render(made, "json")
    cells = json.loads(render(made, "json"))["rows"][1]["cells"]
    (found,) = [cell for cell in cells if (cell["metric"], cell["kind"]) == ("test/miou", "test")]
    assert found["test"]["delta"] == test.delta
    assert (found["test"]["p"], found["test"]["label"]) == (None, "images only, 2 seeds")


def test_one_seed_says_nothing_of_training(stored):
    own, base = pair(np.random.default_rng(6), seeds=1)
    runs = [stored("a", own[0], loss="OHEM"), stored("b", base[0])]
    notes = table(runs, ["loss"], ["test/miou"], against="cross").notes
    assert any("says nothing of how training varies" in note for note in notes)
    with pytest.raises(HardpixError, match=r"--against 'loss=Dice' fits 0 rows"):
        table(runs, ["loss"], ["test/miou"], against="loss=Dice")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": ["i0", "i1", "i2", "other"]}, "score different images (2 in one only: i3, other)"),
        ({"images": ["i0", "i1", "i2", "i2"]}, "names an image twice"),
        ({"classes": ("wall", "floor", "bed")}, "know different classes"),
        ({"scores": {"test/miou": 0.9}}, "is not that of its per_image.csv"),
        ({}, ""),
    ],
)
def test_what_cannot_be_paired_is_told(stored, change, said):
    own, base = pair(np.random.default_rng(7), images=4, seeds=1)
    found = PairedTests(Options(50)).test(
        {0: stored("a", own[0], **change)}, {0: stored("b", base[0])}, "test/miou"
    )
    assert said in found.why
    assert bool(said) == bool(found.why)
    assert found.images == (0 if said else 4)


def test_other_labels_of_an_image_and_files_of_earlier_versions_are_told(stored, tmp_path):
    own, base = pair(np.random.default_rng(8), images=4, seeds=1)
    base[0][2, :, 1] = base[0][2, ::-1, 1] + 1
    found = PairedTests(Options(50)).test({0: stored("a", own[0])}, {0: stored("b", base[0])}, "test/miou")
    assert "have different labels of 1 images (i2)" in found.why
    (tmp_path / "a/per_image.csv").write_text("image,pixels,pixel_acc,miou\ni0,1,1,1\n")
    old = Run(str(tmp_path / "a"), stored("d", own[0]).record)
    found = PairedTests(Options(50)).test({0: stored("c", own[0])}, {0: old}, "test/miou")
    assert "has no counts of classes in its per_image.csv" in found.why


def test_images_are_paired_by_name_and_not_by_place(stored):
    own, base = pair(np.random.default_rng(9), images=4, seeds=1)
    turned = stored("c", base[0][::-1], images=["i3", "i2", "i1", "i0"])
    straight = stored("b", base[0])
    run = stored("a", own[0])
    one, other = (
        PairedTests(Options(300, 1)).test({0: run}, {0: x}, "test/miou") for x in (straight, turned)
    )
    assert one == other
    assert one.images == 4


def test_scores_of_counts():
    counts = np.array([[6.0, 8, 7], [0, 0, 1], [0, 0, 0]])  # one class is predicted only, one is nowhere
    wanted = {
        "miou": (6 / 9 + 0) / 2,
        "mean_acc": 6 / 8,
        "pixel_acc": 6 / 8,
        "iou:wall": 6 / 9,
        "acc:wall": 6 / 8,
    }
    for metric, value in wanted.items():
        assert float(score_of(metric, CLASSES)(counts)) == pytest.approx(value), metric
    assert math.isnan(score_of("test/fg_iou", CLASSES)(counts))
    assert score_of("iou:bed", CLASSES) is None
    assert score_of("cost/step_seconds", CLASSES) is None
    assert significance.LEVEL == 95
