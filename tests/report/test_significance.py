"""Paired bootstrap and permutation test against full enumeration, loops and simulation."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from hardpix.record import SCHEMA, RunRecord
from hardpix.report import significance
from hardpix.report.collect import Run
from hardpix.report.per_image import write_per_image
from hardpix.report.render import render
from hardpix.report.significance import Options, PairedTests, p_value, resampled, score_of, swapped
from hardpix.report.table import table
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
    for seeds in itertools.product(range(2), repeat=2):
        drawn = np.tile(seeds, (len(images), 1))
        found = resampled(
            own.astype(float), base.astype(float), score_of("test/miou", CLASSES), images, drawn
        )
        wanted = [
            np.mean([miou(own[s][list(places)]) - miou(base[s][list(places)]) for s in seeds])
            for places in images
        ]
        np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_every_permutation_swaps_whole_images_in_all_seeds():
    own, base = pair(np.random.default_rng(1))
    swaps = np.array(list(itertools.product((0, 1), repeat=5)))
    found = swapped(own.astype(float), base.astype(float), score_of("test/miou", CLASSES), swaps)
    wanted = []
    for mask in swaps:
        apart = []
        for a, b in zip(own, base, strict=True):
            one = np.stack([y if swap else x for x, y, swap in zip(a, b, mask, strict=True)])
            other = np.stack([x if swap else y for x, y, swap in zip(a, b, mask, strict=True)])
            apart.append(miou(one) - miou(other))
        wanted.append(np.mean(apart))
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert found[0] == pytest.approx(-found[-1])  # nothing swapped, everything swapped


def test_sampled_results_come_near_the_enumerated_ones(stored):
    own, base = pair(np.random.default_rng(2), images=5, seeds=1)
    run, other = stored("a", own[0], loss="OHEM"), stored("b", base[0])
    found = PairedTests(Options(20000, 3)).test({0: run}, {0: other}, "test/miou")
    score = score_of("test/miou", CLASSES)
    every = np.array(list(itertools.product(range(5), repeat=5)))
    samples = resampled(own.astype(float), base.astype(float), score, every, np.zeros((len(every), 1), int))
    np.testing.assert_allclose((found.low, found.high), np.percentile(samples, [2.5, 97.5]), atol=0.012)
    masks = np.array(list(itertools.product((0, 1), repeat=5)))
    chance = swapped(own.astype(float), base.astype(float), score, masks)
    exact = np.mean(np.abs(chance) >= abs(found.delta) - 1e-12)
    assert found.p == pytest.approx(exact, abs=0.012)
    assert found.delta == pytest.approx(miou(own[0]) - miou(base[0]))
    assert (found.images, found.seeds, math.isnan(found.p_seeds)) == (5, (0,), True)


def test_seeds_are_swapped_in_all_ways_where_they_are_few(stored):
    runs = [{}, {}]
    values = ((0.5, 0.4), (0.6, 0.45), (0.55, 0.56))
    for seed, both in enumerate(values):
        for side, value in enumerate(both):
            name = f"{side}{seed}"
            runs[side][seed] = stored(name, np.zeros((1, 3, 3), int) + 1, seed, scores={"depth/rmse": value})
    found = PairedTests(Options()).test(*runs, "depth/rmse")
    apart = [a - b for a, b in values]
    signs = [
        np.mean([s * d for s, d in zip(row, apart, strict=True)])
        for row in itertools.product((-1, 1), repeat=3)
    ]
    assert found.p == found.p_seeds == pytest.approx(np.mean(np.abs(signs) >= abs(np.mean(apart)) - 1e-12))
    assert found.why == "depth/rmse cannot be computed from counts of classes"
    assert found.images == 0
    # Of 27 samples the lowest and the highest have a share of 3.7 % each, more than the 2.5 % that are cut off.
    assert found.low == pytest.approx(min(apart))
    assert found.high == pytest.approx(max(apart))


def test_p_counts_itself():
    assert p_value(2.0, np.array([1.0, -2.0, 3.0, math.nan])) == (1 + 2) / (1 + 3)
    assert p_value(2.0, np.array([0.0] * 9)) == 0.1


def test_the_interval_covers_and_p_is_uniform_under_no_difference(tmp_path, monkeypatch):
    """Two equal predictors, a hundred times: the interval holds 0 and p is above 5 % in about 95 of them."""
    rng = np.random.default_rng(4)
    covered, small, count = 0, 0, 120
    score = score_of("pixel_acc", CLASSES)
    for _ in range(count):
        hits = rng.binomial(20, rng.uniform(0.3, 0.9, (30, 1)), (30, 2))
        sides = np.zeros((2, 1, 30, 3, 3))
        sides[:, 0, :, 0, 0] = hits.T
        sides[:, 0, :, 0, 1] = 20
        own, base = sides
        samples = resampled(own, base, score, rng.integers(0, 30, (400, 30)), np.zeros((400, 1), int))
        low, high = np.percentile(samples, [2.5, 97.5])
        covered += low <= 0 <= high
        delta = float(score(own[0].sum(0)) - score(base[0].sum(0)))
        small += p_value(delta, swapped(own, base, score, rng.integers(0, 2, (400, 30)))) <= 0.05
    assert 0.88 <= covered / count <= 0.99
    assert 0.0 < small / count <= 0.10


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
    assert (
        f"{100 * test.delta:+.2f} [{100 * test.low:+.2f}, {100 * test.high:+.2f}], p={test.p:.2g} (n=2)"
        in text
    )
    assert "500 paired bootstrap samples of the 6 images" in text
    assert "Random numbers from 7" in text
    assert "OHEM: seed 2 left out of the test, without a value on one side." in text
    assert "With 2 seeds the interval still understates" in text
    assert "OHEM: without images, because time/ms cannot be computed from counts of classes." in text
    again = table(
        runs[::-1], ["loss"], ["test/miou", "time/ms"], against="CrossEntropy", options=Options(500, 7)
    )
    assert render(again, "json") == render(made, "json")
    cells = json.loads(render(made, "json"))["rows"][1]["cells"]
    (found,) = [cell for cell in cells if (cell["metric"], cell["kind"]) == ("test/miou", "test")]
    assert found["test"]["delta"] == test.delta
    assert found["test"]["p_images"] == test.p_images


def test_one_seed_says_nothing_of_training(stored):
    own, base = pair(np.random.default_rng(6), seeds=1)
    runs = [stored("a", own[0], loss="OHEM"), stored("b", base[0])]
    notes = table(runs, ["loss"], ["test/miou"], against="cross").notes
    assert any("say nothing of how training varies" in note for note in notes)
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
