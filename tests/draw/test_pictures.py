from __future__ import annotations

import csv
import math

import numpy as np
import pytest

from hardpix.draw import pictures
from hardpix.draw.charts import Bin, depth_error_chart
from hardpix.draw.pictures import STRIP, VOID, WRONG, cloud, colorize, error, heatmap, overlay, panel
from hardpix.scores import per_class_rows, write_per_class
from hardpix.types import DatasetInfo

INFO = DatasetInfo("toy", ("wall", "chair"), ((0, 0, 0), (200, 100, 50)))
IMAGE = np.full((3, 4, 3), 100, np.uint8)
TRUTH = np.array([[0, 0, 1, 255], [0, 1, 1, 255], [0, 1, 1, 1]], np.uint8)
PREDICTION = np.array([[0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 0, 1]], np.int64)


def test_colorize_maps_classes_void_and_nonsense():
    colors = colorize(np.array([[0, 1], [255, 7]]), INFO.palette, 255)
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[0, 0, 0], [200, 100, 50]], [list(VOID), list(VOID)]]
    # An ignored value inside the classes' range is void too.
    assert colorize(np.array([[0]], np.uint8), INFO.palette, 0).tolist() == [[list(VOID)]]
    assert colorize(np.array([[-1]]), INFO.palette, 255).tolist() == [[list(VOID)]]


def test_overlay_blends_classes_and_leaves_void_alone():
    shown = overlay(IMAGE, TRUTH, INFO.palette, 255, opacity=0.5)
    assert shown[0, 2].tolist() == [150, 100, 75]
    assert shown[0, 0].tolist() == [50, 50, 50]
    assert shown[0, 3].tolist() == [100, 100, 100]


def test_error_marks_exactly_the_wrong_labelled_pixels():
    shown = error(IMAGE, TRUTH, PREDICTION, 255)
    wrong = (shown == WRONG).all(2)
    void = (shown == VOID).all(2)
    assert np.argwhere(wrong).tolist() == [[0, 1], [2, 2]]
    assert np.argwhere(void).tolist() == [[0, 3], [1, 3]]
    rest = shown[~wrong & ~void]
    assert (rest == 110).all()  # 40 + 0.7 x 100


def test_heatmap_range_clipping_and_undefined_values():
    values = np.array([[0.0, 0.5, 1.0, np.nan, np.inf, 2.0]])
    colors = heatmap(values, 0.0, 1.0)[0].astype(int)
    assert colors[3].tolist() == colors[4].tolist() == list(VOID)
    assert colors[5].tolist() == colors[2].tolist()
    brightness = colors[:3] @ [0.299, 0.587, 0.114]
    assert brightness[0] < brightness[1] < brightness[2]
    assert heatmap(values)[0, 5].tolist() == colors[2].tolist()  # own range: 0 to 2
    assert heatmap(np.full((1, 2), np.nan)).tolist() == [[list(VOID)] * 2]
    assert heatmap(np.full((1, 2), 3.0))[0, 0].tolist() == colors[0].tolist()


def test_panel_has_every_tile_at_its_place():
    shown = np.asarray(panel(IMAGE, TRUTH, PREDICTION, INFO, {"hardness": np.eye(3, 4)}))
    factor = 256 // 4
    step = 256 + pictures.GAP

    def pixel(tile: int, row: int, column: int) -> list[int]:
        return shown[STRIP + row * factor + factor // 2, tile * step + column * factor + factor // 2].tolist()

    assert pixel(0, 0, 0) == [100, 100, 100]
    assert pixel(1, 0, 2) == [200, 100, 50]
    assert pixel(1, 0, 3) == list(VOID)
    assert pixel(2, 0, 1) == [200, 100, 50]
    assert pixel(3, 0, 1) == list(WRONG)
    assert pixel(4, 1, 1) == heatmap(np.eye(3, 4))[1, 1].tolist()
    assert shown.shape[1] == 5 * step - pictures.GAP
    assert shown.shape[0] > STRIP + 3 * factor  # the legend


@pytest.mark.parametrize(("width", "shown"), [(128, 256), (480, 480), (1280, 640), (2048, 512)])
def test_tiles_keep_a_readable_width(width, shown):
    label = np.zeros((8, width), np.uint8)
    made = panel(np.zeros((8, width, 3), np.uint8), label, label, INFO)
    assert made.width == 4 * (shown + pictures.GAP) - pictures.GAP


def test_a_frame_without_labels_has_no_errors():
    void = np.full((3, 4), 255, np.uint8)
    assert panel(IMAGE, void, PREDICTION, INFO).width


def test_per_class_scores(tmp_path):
    confusion = np.array([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.int64)
    confusion[0, 3] = 4  # predicted, never there
    rows = per_class_rows(confusion, ("wall", "chair", "lamp", "door"))
    assert rows[0] == {"class": "wall", "iou": 6 / 13, "acc": 6 / 12, "pixels": 12}
    assert rows[1] == {"class": "chair", "iou": 3 / 6, "acc": 3 / 4, "pixels": 4}
    assert math.isnan(rows[2]["iou"])
    assert math.isnan(rows[2]["acc"])
    assert rows[3]["iou"] == 0.0
    assert math.isnan(rows[3]["acc"])
    write_per_class(rows, tmp_path / "per_class.csv")
    with open(tmp_path / "per_class.csv", newline="") as file:
        stored = list(csv.DictReader(file))
    assert stored[2] == {"class": "lamp", "iou": "nan", "acc": "nan", "pixels": "0"}
    assert float(stored[1]["acc"]) == 0.75


@pytest.mark.parametrize("rate", [0.0, 0.7, 1.0])
def test_the_highest_error_rate_is_drawn_whole(rate):
    bins = [Bin(k, k + 1.0, 1000, round(1000 * (rate - 0.01 * k if rate else 0))) for k in range(10)]
    rates, counts = depth_error_chart({"a": bins}, title="t", shared="a").axes
    low, high = rates.get_ylim()
    assert low == 0
    assert 100 * rate < 0.96 * high
    assert [bar.get_height() for bar in counts.patches] == [1000] * 10


def test_a_cloud_shows_the_nearest_point_from_where_the_viewer_stands():
    """Three points: at the camera's right, behind it, and above; red, green and blue."""
    points = np.array([[1.0, 1, 0], [1, 2, 0], [0, 1, 1]], np.float32)
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)

    def seen(**view):
        picture = cloud(points, colors, width=41, dot=1, **view)
        rows, columns = np.nonzero((picture != 255).any(-1))
        return {tuple(map(int, picture[at])): at for at in zip(rows.tolist(), columns.tolist(), strict=True)}

    assert seen(turn=0, tilt=0) == {(255, 0, 0): (40, 40), (0, 0, 255): (0, 0)}
    assert seen(turn=0, tilt=90) == {(255, 0, 0): (40, 40), (0, 255, 0): (0, 40), (0, 0, 255): (40, 0)}
    # From the right the far point is on the viewer's right, and blue behind red, but above.
    assert seen(turn=90, tilt=0) == {(255, 0, 0): (40, 0), (0, 255, 0): (40, 40), (0, 0, 255): (0, 0)}
