"""Scores over the threshold, from records alone: the numbers, the lines of the chart, and what is refused."""

import csv
import math
import statistics

import pytest

from hardpix import record
from hardpix.figures.curves import draw_thresholds, published_values, threshold_chart, threshold_values
from hardpix.tables.compare import collect
from hardpix.types import HardpixError

THRESHOLDS = (0.3, 0.7, 0.1)


def write(folder, name, seed, method, metrics, **factors):
    run = folder / name
    run.mkdir(parents=True)
    made = record.RunRecord(
        record.SCHEMA, f"id-{name}", "done", {"method._target_": f"hardpix.methods.{method}", "seed": seed} | factors,
        metrics, seed, None, {}, {}, "2026-01-01T00:00:00+00:00", dataset="camvid",
    )  # fmt: skip
    record.write(made, run)


def scores(seed, repairs):
    found = {"test/miou": 0.5}
    for t in THRESHOLDS:
        found[f"test/error_iou@{t:g}"] = 0.2 + t / 10 + seed / 100
        found[f"test/hard_recall@{t:g}"] = 0.9 - t - seed / 50
        if repairs:
            found[f"test/fused_miou@{t:g}"] = 0.6 + t * (1 - t) / 10
    return found | ({"test/semantic_miou": 0.6 + seed / 100, "test/detail_miou": 0.55} if repairs else {})


@pytest.fixture
def runs(tmp_path):
    for seed in (0, 1):
        write(tmp_path, f"e{seed}", seed, "ErrorPrediction", scores(seed, repairs=False))
    write(tmp_path, "d0", 0, "Detail", scores(0, repairs=True))
    return tmp_path


def numbers(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_segmenter_without_errors_is_told(tmp_path):
    nothing = {key: math.nan for key in scores(0, repairs=False) if "@" in key}
    write(tmp_path, "e0", 0, "ErrorPrediction", nothing)
    with pytest.raises(HardpixError, match="the segmenter made no error"):
        draw_thresholds([str(tmp_path)], "test", "method", False, [], [tmp_path / "f.png"])


def test_numbers_are_means_over_seeds_in_the_order_of_thresholds(runs, tmp_path):
    out = tmp_path / "out/f.png"
    notes = draw_thresholds([str(runs)], "test", "method", False, [], [out])
    assert out.is_file()
    found = numbers(tmp_path / "out/f.csv")
    for line, seeds in (("ErrorPrediction", (0, 1)), ("Detail", (0,))):
        rows = [r for r in found if r["line"] == line and r["score"] == "hard_recall"]
        assert [r["t"] for r in rows] == ["0.1", "0.3", "0.7"]
        for r in rows:
            values = [0.9 - float(r["t"]) - seed / 50 for seed in seeds]
            assert float(r["mean"]) == pytest.approx(statistics.fmean(values))
            assert int(r["n"]) == len(seeds)
            std = statistics.stdev(values) if len(seeds) > 1 else math.nan
            assert float(r["std"]) == pytest.approx(std, nan_ok=True)
    # The method without a second branch has no row of it.
    assert {r["line"] for r in found if r["score"] in ("fused_miou", "semantic_miou", "detail_miou")} == {
        "Detail"
    }
    assert [r["t"] for r in found if r["score"] == "detail_miou"] == [""]
    assert any(note.startswith("Detail, error_iou at t = 0.1: missing:1") for note in notes)


def chart(runs, printed=()):
    values, _ = threshold_values(collect([runs]), "test", "method", [])
    return threshold_chart(values, printed, title="t").axes


def test_the_chart_has_a_plot_per_score_and_bars_only_for_several_seeds(runs):
    iou, recall, fused = chart(runs)
    assert [plot.get_title() for plot in (iou, recall, fused)] == [
        "error IoU (%)", "recall of hard errors (%)", "mIoU after fusion (%)",
    ]  # fmt: skip
    by_name = {c.get_label(): c for c in recall.containers}
    assert by_name["ErrorPrediction"].has_yerr
    assert not by_name["Detail"].has_yerr
    assert list(by_name["Detail"].lines[0].get_xdata()) == [0.1, 0.3, 0.7]
    assert list(by_name["Detail"].lines[0].get_ydata()) == pytest.approx([80, 60, 20])
    levels = {x.get_label(): x.get_ydata()[0] for x in fused.lines if "alone" in x.get_label()}
    assert levels == pytest.approx({"Detail: segmenter alone": 60, "Detail: detail branch alone": 55})


def test_without_a_repairing_method_there_are_two_plots(runs):
    assert len(chart(runs / "e0")) == 2


def test_published_curves_are_those_of_the_paper(runs, tmp_path):
    printed = published_values({"error_iou", "hard_recall", "fused_miou"})
    found = {(v.score, v.t): v.cell.mean for v in printed}
    assert found["error_iou", 0.7] == pytest.approx(0.2734)
    assert found["hard_recall", 0.1] == pytest.approx(0.7916)
    assert found["fused_miou", 0.8] == pytest.approx(0.7966)
    assert len(found) == 9 + 9 + 4
    assert {v.score for v in published_values({"hard_recall"})} == {"hard_recall"}
    iou, _, fused = chart(runs, printed)
    dashed = next(x for x in iou.lines if x.get_label().startswith("published"))
    assert dashed.get_label() == "published (cityscapes val)"
    assert (dashed.get_linestyle(), dashed.get_color()) == ("--", "black")
    assert list(dashed.get_ydata())[:2] == pytest.approx([14.8, 17.19])
    assert list(next(x for x in fused.lines if x.get_label().startswith("published")).get_xdata()) == [
        0.5, 0.6, 0.7, 0.8,
    ]  # fmt: skip
    draw_thresholds([str(runs)], "test", "method", True, [], [tmp_path / "p.png"])
    rows = [r for r in numbers(tmp_path / "p.csv") if r["line"].startswith("published")]
    assert (len(rows), rows[0]["t"], float(rows[0]["mean"])) == (22, "0.1", pytest.approx(0.148))


def test_what_cannot_be_drawn_is_refused(runs, tmp_path):
    write(tmp_path, "plain", 0, "Baseline", {"test/miou": 0.5})
    with pytest.raises(HardpixError, match="method=error_prediction or method=detail"):
        draw_thresholds([str(tmp_path / "plain")], "test", "method", False, [], [tmp_path / "x.png"])
    with pytest.raises(HardpixError, match="val/error_iou@T"):
        draw_thresholds([str(runs / "d0")], "val", "method", False, [], [tmp_path / "x.png"])
    write(tmp_path, "e2", 2, "ErrorPrediction", scores(2, repairs=False), **{"method.rho": 0.9})
    with pytest.raises(HardpixError, match=r"method\.rho"):
        draw_thresholds(
            [str(tmp_path / name) for name in ("e0", "e2")],
            "test",
            "method._target_",
            False,
            [],
            [tmp_path / "x.png"],
        )
    assert not (tmp_path / "x.png").exists()
