"""Total-Text: three kinds of truth, the drawing of polygons, upright photographs, and the recipe."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardpix.data import TotalText
from hardpix.data.prepare import find_recipe
from hardpix.data.prepare.recipe import Work
from hardpix.data.sets.total_text import rasterise
from hardpix.types import ConfigError, DataError

io = pytest.importorskip("scipy.io")

REAL = Path(os.environ.get("HARDPIX_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
real = [
    pytest.mark.real,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"no real frames in {REAL}; set HARDPIX_REAL_DATA"),
]
BOTH = frozenset({"image", "label"})


# Polygons


def drawn(x, y, size):
    return ["".join(".#"[int(v)] for v in row) for row in rasterise(np.array(x), np.array(y), size)]


def test_a_triangle_by_hand():
    # Hypotenuse x + y = 4: its centres lie right of no inside, so they are out; the left and upper sides are in.
    assert drawn([0, 4, 0], [0, 0, 4], (5, 6)) == ["####..", "###...", "##....", "#.....", "......"]


def test_x_is_across_and_y_is_down():
    assert drawn([1, 5, 5, 1], [2, 2, 4, 4], (5, 7)) == [
        ".......",
        ".......",
        ".####..",
        ".####..",
        ".......",
    ]


def test_a_polygon_partly_outside():
    assert drawn([-3, 2.5, 2.5, -3], [-2, -2, 1.5, 1.5], (3, 4)) == ["###.", "###.", "...."]
    assert drawn([2.5, 9, 9, 2.5], [1, 1, 9, 9], (3, 4)) == ["....", "...#", "...#"]
    assert drawn([9, 12, 12], [1, 1, 9], (3, 4)) == ["...."] * 3
    assert drawn([-9, -5, -5], [-9, -9, -5], (3, 4)) == ["...."] * 3


def test_a_concave_polygon_has_two_runs_in_a_row():
    #           a U of two posts and a floor
    x, y = [0, 2, 2, 4, 4, 6, 6, 0], [0, 0, 3, 3, 0, 0, 5, 5]
    assert drawn(x, y, (5, 6)) == ["##..##"] * 3 + ["######"] * 2


def test_direction_does_not_matter_and_shared_edges_are_drawn_once():
    left, right = ([0, 3.5, 3.5, 0], [0, 0, 4, 4]), ([3.5, 7, 7, 3.5], [0, 0, 4, 4])
    a, b = rasterise(*map(np.array, left), (4, 7)), rasterise(*map(np.array, right), (4, 7))
    assert (a ^ b).all()
    assert (a == rasterise(np.array(left[0][::-1]), np.array(left[1][::-1]), (4, 7))).all()


@pytest.mark.parametrize("points", [[], [3], [1, 4]])
def test_fewer_than_three_corners_enclose_nothing(points):
    assert not rasterise(np.array(points), np.array(points), (5, 5)).any()


# The data set


def cell(*rows):
    table = np.empty((len(rows), 6), dtype=object)
    for i, (x, y, text, orientation) in enumerate(rows):
        table[i] = [
            "x:",
            np.array([x], np.int16),
            "y:",
            np.array([y], np.int16),
            np.array([text]) if text else np.array([], dtype="<U1"),
            np.array([orientation]) if orientation else np.array([], dtype="<U1"),
        ]
    return table


# In the words of the release the first pixel is (1, 1): rows 1 and 2, columns 2 to 4 of the image.
WORD = ([3, 6, 6, 3], [2, 2, 4, 4], "WORD", "h")
UNREADABLE = ([5, 9, 9, 5], [3, 3, 6, 6], "#", "#")


def jpeg(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path, "JPEG", quality=95, **options)


@pytest.fixture
def total_text(tmp_path):
    root = tmp_path / "Total-Text"
    for split, numbers in {"Train": [11, 2, 61], "Test": [1]}.items():
        for number in numbers:
            # One photograph and its mask end in capitals in the release.
            ending = "JPG" if number == 61 else "jpg"
            jpeg(root / "Images" / split / f"img{number}.{ending}", np.full((8, 16, 3), number))
            mask = np.zeros((8, 16))
            mask[:, 8:] = 255
            jpeg(root / "groundtruth_pixel" / split / f"img{number}.{ending}", mask)
            region = root / "groundtruth_textregion/Text_Region_Mask" / split / f"img{number}.png"
            region.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((np.eye(8, 16) * 255).astype(np.uint8)).save(region)
            polygons = root / "Groundtruth/Polygon" / split / f"poly_gt_img{number}.mat"
            polygons.parent.mkdir(parents=True, exist_ok=True)
            io.savemat(polygons, {"polygt": cell(WORD, UNREADABLE)})
    return root


def label(root, split="test", index=0, **options):
    return TotalText(root, **options).frames(split, BOTH).load(index)["label"].numpy()


def text(*rows):
    return np.array([[".#?".index(c) for c in row] for row in rows]).choose([0, 1, 255])


def test_splits_and_order(total_text):
    names = {}
    for split in ("train", "val", "test"):
        frames = TotalText(total_text).frames(split, BOTH)
        names[split] = [frames.name(i) for i in range(len(frames))]
    assert names == {"train": ["img2", "img11", "img61"], "val": ["img1"], "test": ["img1"]}


def test_the_main_metric_is_the_iou_of_text():
    info = TotalText("x").info
    assert (info.classes, info.main_metric) == (("background", "text"), "fg_iou")


def test_pixel_masks_are_cut_at_128(total_text):
    expected = np.zeros((8, 16))
    expected[:, 8:] = 1
    for index in range(3):
        np.testing.assert_array_equal(label(total_text, "train", index), expected)
    grey = np.full((8, 16), 127)
    grey[2:] = 128
    Image.fromarray(grey.astype(np.uint8)).save(total_text / "groundtruth_pixel/Test/img1.png")
    (total_text / "groundtruth_pixel/Test/img1.jpg").unlink()
    np.testing.assert_array_equal(label(total_text)[:, 0], [0, 0, 1, 1, 1, 1, 1, 1])


def test_region_masks(total_text):
    np.testing.assert_array_equal(label(total_text, truth="region"), np.eye(8, 16))


def test_polygons_count_pixels_from_one_and_unreadable_words_are_void(total_text):
    expected = text(
        "................",
        "..###...........",
        "..###???........",
        "....????........",
        "....????........",
        "................", "................", "................",
    )  # fmt: skip
    np.testing.assert_array_equal(label(total_text, truth="polygon"), expected)
    kept = label(total_text, truth="polygon", illegible="text")
    np.testing.assert_array_equal(kept, np.where(expected == 255, 1, expected))


@pytest.mark.parametrize(("transcription", "kind"), [("#", "h"), ("WORD", "#"), ("#", ""), ("", "#")])
def test_either_mark_makes_a_word_unreadable(total_text, transcription, kind):
    path = total_text / "Groundtruth/Polygon/Test/poly_gt_img1.mat"
    io.savemat(path, {"polygt": cell(([3, 6, 6, 3], [2, 2, 4, 4], transcription, kind))})
    assert set(np.unique(label(total_text, truth="polygon"))) == {0, 255}


def test_the_refined_outlines_and_words_without_outline(total_text):
    path = total_text / "Groundtruth/Polygon/Test/poly_gt_img1.mat"
    path.unlink()
    refined = cell(WORD, ([5], [5], "#", "#"), ([3, 6, 6, 3], [2, 2, 4, 4], "WORD", ""))
    refined[0, 1], refined[0, 3] = refined[0, 1].T, refined[0, 3].T  # columns of numbers
    io.savemat(path.with_name("gt_img1.mat"), {"gt": refined})
    found = label(total_text, truth="polygon")
    assert found.sum() == 6
    assert (found[1:3, 2:5] == 1).all()


def test_broken_polygons(total_text):
    path = total_text / "Groundtruth/Polygon/Test/poly_gt_img1.mat"
    io.savemat(path, {"polygt": cell(([3, 6, 6], [2, 2], "WORD", "h"))})
    with pytest.raises(DataError, match=r"poly_gt_img1\.mat: a word has 3 x but 2 y coordinates"):
        label(total_text, truth="polygon")
    io.savemat(path, {"other": cell(WORD)})
    with pytest.raises(DataError, match=r"variable polygt or gt is missing"):
        label(total_text, truth="polygon")
    io.savemat(path, {"polygt": np.zeros((2, 3))})
    with pytest.raises(DataError, match=r"its table has shape \(2, 3\)"):
        label(total_text, truth="polygon")
    path.unlink()
    with pytest.raises(DataError, match=r"poly_gt_img1\.mat: no such file"):
        label(total_text, truth="polygon")


@pytest.mark.parametrize(("how", "upright"), [
    (1, lambda a: a), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, np.rot90),
])  # fmt: skip
def test_labels_turn_with_their_photograph(total_text, how, upright):
    exif = Image.Exif()
    exif[274] = how
    pixels = np.zeros((8, 16, 3))
    pixels[:, 8:] = 255
    jpeg(total_text / "Images/Test/img1.jpg", pixels, exif=exif)
    frame = TotalText(total_text).frames("test", BOTH).load(0)
    bright = frame["image"].float().mean(0) > 128
    np.testing.assert_array_equal(frame["label"].numpy(), bright.numpy())
    jpeg(total_text / "Images/Test/img1.jpg", pixels)
    stored = label(total_text, truth="polygon")
    jpeg(total_text / "Images/Test/img1.jpg", pixels, exif=exif)
    np.testing.assert_array_equal(label(total_text, truth="polygon"), upright(stored))
    # A mask that carries the tag itself is upright already.
    mask = np.where(pixels[..., 0] > 0, 255, 0)
    jpeg(total_text / "groundtruth_pixel/Test/img1.jpg", mask, exif=exif)
    np.testing.assert_array_equal(label(total_text), bright.numpy())


def test_what_decides_a_label_is_in_its_identity():
    readers = [
        TotalText("x", truth=truth, illegible=illegible).label_reader("train").identity()
        for truth, illegible in (("pixel", "ignore"), ("polygon", "ignore"), ("polygon", "text"))
    ]
    assert len(set(readers)) == 3
    assert "illegible" in TotalText("x", truth="polygon").remarks()[0]
    assert TotalText("x").remarks() == TotalText("x", truth="polygon", illegible="text").remarks() == ()


def test_wrong_options_and_missing_files(total_text):
    with pytest.raises(ConfigError, match="truth is 'mask'; it must be one of pixel, region, polygon"):
        TotalText("x", truth="mask")
    with pytest.raises(ConfigError, match="illegible is 'void'"):
        TotalText("x", illegible="void")
    (total_text / "groundtruth_pixel/Train/img61.JPG").unlink()
    with pytest.raises(DataError, match=r"groundtruth_pixel/Train/img61\.jpg: no such file"):
        TotalText(total_text).frames("train", BOTH)
    assert TotalText(total_text).strays("train") == []
    (total_text / "Images/Train/img2.jpg").unlink()
    assert [path.name for path in TotalText(total_text).strays("train")] == ["img2.jpg"]


def test_outlines_without_scipy_are_refused_at_once(total_text, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ConfigError, match=r"pip install 'hardpix\[mat\]'"):
        TotalText(total_text, truth="polygon").frames("train", BOTH)
    TotalText(total_text).frames("train", BOTH)


# The recipe


def test_the_recipe_puts_the_archives_together(total_text, tmp_path):
    recipe, out = find_recipe("total_text")(), tmp_path / "out"
    (total_text / "Images/Train/.DS_Store").write_text("x")
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    # As each archive has its own folder: totaltext/Images/Train, groundtruth_textregion/Text_Region_Mask/Train ...
    (total_text / "Images").rename(unpacked / "Images")
    work = Work([total_text, tmp_path / "none", unpacked], out)
    recipe.convert(work)
    assert work.faults == []
    assert recipe.use(out) == {"data": "total_text", "data.source.root": str(out)}
    for truth in ("pixel", "region", "polygon"):
        assert len(TotalText(out, truth=truth).frames("train", BOTH)) == 3
    assert not list(out.rglob(".*"))


def test_the_recipe_without_pixel_masks(total_text, tmp_path):
    for path in list((total_text / "groundtruth_pixel").rglob("*.*")):
        path.unlink()
    for folder in ("Train", "Test", ""):
        (total_text / "groundtruth_pixel" / folder).rmdir()
    (total_text / "Groundtruth/Polygon/Train/poly_gt_img11.mat").unlink()
    recipe, out = find_recipe("total_text")(), tmp_path / "out"
    work = Work([total_text], out)
    recipe.convert(work)
    assert len(work.faults) == 1
    assert "Images/Train/img11.jpg: no polygon truth belongs to it" in work.faults[0]
    assert recipe.use(out)["data.source.truth"] == "region"
    with pytest.raises(DataError, match=r"there is no Images/Train; it comes from totaltext\.zip"):
        recipe.convert(Work([tmp_path / "none"], out))


def test_what_the_recipe_unpacks():
    recipe = find_recipe("total_text")()
    wanted = [
        "Images/Train/img61.JPG",
        "Groundtruth/Polygon/Train/poly_gt_img1.mat",
        "groundtruth_pixel/Test/img1.jpg",
    ]
    assert all(map(recipe.wanted, wanted))
    refused = [
        "Groundtruth/Rectangular/Train/rect_gt_img1.mat",
        "Images/.DS_Store",
        "__MACOSX/Images/._img1.jpg",
    ]
    assert not any(map(recipe.wanted, refused))


class TestReal:
    pytestmark = real

    def test_outlines_are_where_the_region_mask_is(self, tmp_path):
        # The release's own mask of the same words: a swapped axis, or counting from zero, would not fit.
        from hardpix.data.sets.total_text import MaskReader, PolygonReader

        root = REAL / "Total-Text"
        image = root / "Images/Test/img2.jpg"
        outlines = PolygonReader(255).read(root / "Groundtruth/Polygon/Test/poly_gt_img2.mat", image)
        region = MaskReader().read(root / "groundtruth_textregion/Text_Region_Mask/Test/img2.png", image) == 1
        pixel = MaskReader().read(root / "groundtruth_pixel/Test/img2.jpg", image) == 1
        words = outlines == 1
        assert (words & region).sum() / (words | region).sum() > 0.99
        assert (outlines == 255).sum() > 5000
        assert not (pixel & (outlines == 255)).any()  # unreadable words are background in the masks
        assert (pixel & words).sum() / pixel.sum() > 0.99
