"""Heights of classes and cross-stitch factors: their order, their cells and what is read of a run's log."""

import csv
import math

import numpy as np
import pytest

from hardpix.draw.charts import by_height, height_chart, height_rows, read_factors, stitch_chart
from hardpix.types import HardpixError

COUNTS = np.array([[2000, 0, 0], [0, 0, 0], [1, 1, 2], [10, 80, 10]])
CLASSES, EDGES = ("floor", "ghost", "lamp", "table"), (0.0, 0.5, 1.0)


def test_rows_of_the_csv():
    rows = height_rows(COUNTS, CLASSES, EDGES)
    assert len(rows) == 12
    assert rows[0] == ("floor", 0.0, 0.5, 2000, 1.0)
    assert rows[8] == ("lamp", 1.0, math.inf, 2, 0.5)
    assert rows[10] == ("table", 0.5, 1.0, 80, 0.8)
    assert all(math.isnan(row[4]) for row in rows[3:6])


def test_classes_stand_at_their_height_and_rows_sum_to_one():
    assert by_height(COUNTS) == [2, 3, 0]
    axes, _ = height_chart(COUNTS, CLASSES, EDGES, title="t").axes
    shown = np.asarray(axes.images[0].get_array())
    assert shown.tolist() == [[0.25, 0.25, 0.5], [0.1, 0.8, 0.1], [1, 0, 0]]
    assert [x.get_text() for x in axes.get_yticklabels()] == ["lamp (4)", "table (100)", "floor (2.0k)"]
    assert [x.get_text() for x in axes.get_xticklabels()] == ["0", "0.5", "1", "\N{INFINITY}"]
    assert axes.get_xticks().tolist() == [-0.5, 0.5, 1.5, 2.5]
    said = {(x.get_position()[1], x.get_position()[0]): x.get_text() for x in axes.texts}
    assert said[0, 2] == "50"
    assert said[1, 1] == "80"
    assert (2, 1) not in said
    assert axes.images[0].get_clim() == (0, 1)


def write_log(folder, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def test_factors_of_a_log(tmp_path):
    write_log(
        tmp_path,
        [
            {"step": 0, "train/loss": 1.0},
            {
                "step": 3,
                "stitch/1/own": 0.9,
                "stitch/1/other": 0.1,
                "stitch/1/own/std": 0.01,
                "stitch/10/own": 0.5,
            },
            {"step": 3, "train/loss": 0.5},
            {
                "step": 9,
                "stitch/1/own": 0.8,
                "stitch/1/other": 0.2,
                "stitch/1/own/std": 0.02,
                "stitch/10/own": 0.6,
            },
        ],
    )
    found = read_factors(tmp_path)
    assert [(f.unit, f.stream, f.step, f.value) for f in found] == [
        (1, "own", 3, 0.9), (1, "own", 9, 0.8), (1, "other", 3, 0.1), (1, "other", 9, 0.2),
        (10, "own", 3, 0.5), (10, "own", 9, 0.6),
    ]  # fmt: skip
    assert [f.std for f in found[:2]] == [0.01, 0.02]
    assert math.isnan(found[2].std)
    own, other = stitch_chart(found, title="t").axes
    assert [(x.get_label(), list(x.get_xdata()), list(x.get_ydata())) for x in own.lines] == [
        ("unit 1", [3, 9], [0.9, 0.8]),
        ("unit 10", [3, 9], [0.5, 0.6]),
    ]
    assert list(other.lines[0].get_ydata()) == [0.1, 0.2]
    assert "trained" in own.get_title()
    assert "fixed" in other.get_title()
    (band,) = own.collections
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(0.78)
    assert not other.collections


def test_runs_without_factors_are_refused(tmp_path):
    with pytest.raises(HardpixError, match="does not exist"):
        read_factors(tmp_path)
    write_log(tmp_path, [{"step": 0, "train/loss": 1.0}])
    with pytest.raises(HardpixError, match="model=cross_stitch"):
        read_factors(tmp_path)
