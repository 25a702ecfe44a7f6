"""COCO's instance annotations as semantic labels: shapes and run lengths computed by hand."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from hardpix.data import Coco
from hardpix.data.check import check
from hardpix.data.masks import decode, fill, uncompressed
from hardpix.types import ConfigError, DataError

BOTH = frozenset({"image", "label"})


def whole(mask, height, width):
    label = np.zeros((height, width), np.uint8)
    mask.paint(label, 1)
    return label


# Polygons


def test_a_rectangle_covers_the_pixels_between_its_corners():
    wanted = np.zeros((5, 7), np.uint8)
    wanted[1:3, 2:6] = 1
    np.testing.assert_array_equal(whole(decode([[2, 1, 6, 1, 6, 3, 2, 3]], 5, 7), 5, 7), wanted)
    # Turned the other way round, and with corners off the pixels' edges.
    np.testing.assert_array_equal(
        whole(decode([[1.6, 3.4, 6.4, 3.4, 6.4, 0.6, 1.6, 0.6]], 5, 7), 5, 7), wanted
    )


def test_a_triangle_by_hand():
    # Below the diagonal x = y of a 4x4 square: centres (j + 1/2, i + 1/2) with j < i; the diagonal's own lie on it.
    wanted = np.tril(np.ones((4, 4)), -1)
    np.testing.assert_array_equal(fill(np.array([[0, 0.1], [4, 4.1], [0, 4.1]]), 4, 4), wanted)


def test_any_polygon_by_a_slow_loop():
    rng = np.random.default_rng(1)
    for _ in range(5):
        points = rng.uniform(-3, 14, (7, 2))
        found = fill(points, 11, 9)
        for i in range(11):
            for j in range(9):
                x, y, inside = j + 0.5, i + 0.5, False
                for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
                    if (y0 > y) != (y1 > y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
                        inside = not inside
                assert found[i, j] == inside


def test_polygons_of_one_instance_are_joined_and_cut_at_the_border():
    found = whole(decode([[-5, 0, 2, 0, 2, 2, -5, 2], [1, 1, 99, 1, 99, 3, 1, 3]], 4, 5), 4, 5)
    np.testing.assert_array_equal(found, [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    assert decode([[50, 50, 60, 50, 60, 60]], 4, 5).area == 0


# Run lengths


def test_run_lengths_go_down_the_columns_and_begin_with_zeros():
    # Columns of height 3: 0 1 1 | 1 0 0 | 0 0 1 | 1 1 1
    found = whole(decode({"size": [3, 4], "counts": [1, 3, 4, 4]}, 3, 4), 3, 4)
    np.testing.assert_array_equal(found, [[0, 1, 0, 1], [1, 0, 0, 1], [1, 0, 1, 1]])
    found = whole(decode({"size": [2, 2], "counts": [0, 1, 3]}, 2, 2), 2, 2)
    np.testing.assert_array_equal(found, [[1, 0], [0, 0]])


def test_compressed_counts_by_hand():
    # 2 -> '2', 3 -> '3', 1 -> '1'; the fourth is 1 - 3 = -2 = 11110b with the sign bit -> chr(48 + 30) = 'N'.
    assert uncompressed("231N") == [2, 3, 1, 1]
    # 16 needs a second character, lest its bit 10000b be a sign: 48 + 32 + 16 = '`', then '0'.
    assert uncompressed("`0") == [16]
    # 40 = 1 * 32 + 8: 48 + 32 + 8 = 'X', then '1'; 1000 = 31 * 32 + 8: 'X', then 31 = 1 * 32 - 1: 48 + 32 + 31, '0'.
    assert uncompressed("X1") == [40]
    assert uncompressed("Xo0") == [1000]
    # From the fourth on differences to two places before: 6 1 40 4 5 4 5 4 21 -> 6 1 40 +3 -35 0 0 0 16
    # -35 = -2 * 32 + 29: 48 + 32 + 29 = 'm', then -2 = 'N'.
    assert uncompressed("61X13mN000`0") == [6, 1, 40, 4, 5, 4, 5, 4, 21]


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ([[1, 1, 2, 2]], "3 points or more, but has 4 values"),
        ([[1, 1, 2, 2, 3]], "but has 5 values"),
        ([[1, 1, 2, 2, 3, "4"]], "but has 6 values"),
        ([[1, 1, 2, 2, 3, float("inf")]], "not finite"),
        ([], "must be a list of polygons"),
        ("mask", "must be a list of polygons"),
        ({"size": [4, 3], "counts": [12]}, r"of size \[4, 3\], but its image has \[3, 4\]"),
        ({"size": [3, 4], "counts": [1, 3, 4]}, "counts sum to 8, but the image has 12 pixels"),
        ({"size": [3, 4], "counts": [13, -1]}, "counts must be whole numbers, 0 or above"),
        ({"size": [3, 4], "counts": [6.0, 6.0]}, "counts must be whole numbers"),
        ({"size": [3, 4], "counts": "X"}, "end within a number"),
        ({"size": [3, 4], "counts": "2 3"}, "hold ' '"),
        ({"size": [3, 4]}, "counts must be whole numbers"),
        ({"counts": [12]}, "of size None"),
    ],
)
def test_damaged_segmentations(segmentation, said):
    with pytest.raises(ValueError, match=said):
        decode(segmentation, 3, 4)


# The source


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 44, "name": "ball"}]


def annotations():
    """A small dog before a large car in file order, a crowd of dogs across the top row, a ball in no image."""
    return {
        "images": [
            {"id": 9, "file_name": "sub/b.png", "height": 4, "width": 6},
            {"id": 5, "file_name": "a.png", "height": 4, "width": 6},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 18, "segmentation": box(1, 1, 3, 2), "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 3, "segmentation": box(0, 0, 4, 3), "area": 1},
            {"id": 3, "image_id": 9, "category_id": 18, "iscrowd": 1,
             "segmentation": {"size": [4, 6], "counts": [0] + [1, 3] * 6}},
        ],
        "categories": CATEGORIES,
    }  # fmt: skip


@pytest.fixture
def tree(tmp_path):
    for split in ("train", "val"):
        for name, value in (("sub/b.png", 80), ("a.png", 40)):
            path = tmp_path / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(path)
        store(tmp_path, annotations(), split)
    return tmp_path


def store(root, content, split="train"):
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def labels(tree, index=0, **options):
    return Coco(str(tree), **options).frames("train", BOTH).load(index)["label"].numpy()


def test_each_pixel_has_the_class_of_its_smallest_instance(tree):
    source = Coco(str(tree))
    assert source.info.classes == ("background", "dog", "car", "ball")
    frames = source.frames("train", BOTH)
    assert [frames.name(i) for i in range(2)] == ["sub__b", "a"]
    sample = frames.load(0)
    assert sample["image"].unique().tolist() == [80]
    wanted = [[2, 2, 2, 2, 255, 255], [2, 1, 1, 2, 0, 0], [2, 2, 2, 2, 0, 0], [0, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(sample["label"].numpy(), wanted)
    assert frames.load(1)["label"].unique().tolist() == [0]
    assert frames.load(1)["image"].unique().tolist() == [40]


def test_a_missing_image_costs_its_frame_alone_in_a_look(tree):
    (tree / "train" / "a.png").unlink()
    checkup = check(Coco(str(tree)), ["train"])
    (lost,) = [f for f in checkup.findings if f.level == "error"]
    assert (lost.code, [hit.name for hit in lost.hits]) == ("frame-unreadable", ["a"])
    assert "a.png: no such file" in lost.hits[0].sentence
    assert checkup.sums[0].class_pixels.tolist() == [10, 2, 10, 0]
    with pytest.raises(DataError, match="no such file"):
        Coco(str(tree)).frames("train", BOTH)


def test_background_crowds_and_others_by_choice(tree):
    np.testing.assert_array_equal(labels(tree, crowd="class")[0], [2, 2, 2, 2, 1, 1])
    void = labels(tree, background=None)
    np.testing.assert_array_equal(void[1], [1, 0, 0, 1, 255, 255])
    np.testing.assert_array_equal(labels(tree, classes=["ball", "dog"])[1], [255, 2, 2, 255, 0, 0])
    np.testing.assert_array_equal(labels(tree, classes=["dog"], others="background")[1], [0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(
        labels(tree, classes=["dog", "background", "car", "ball"])[1], [2, 0, 0, 2, 1, 1]
    )


def test_category_ids_are_mapped_as_label_map_says(tree):
    found = labels(tree, classes=["animal", "thing"], label_map={18: 1, 3: 255, 44: 2})
    np.testing.assert_array_equal(found[1], [255, 1, 1, 255, 0, 0])
    source = Coco(str(tree), classes=["animal", "thing"], label_map={18: 1, 3: 255, 44: 2})
    assert source.remarks() == (
        "labels of coco: category 18 -> animal, 44 -> thing, 3 -> ignored, pixels of no instance -> background, "
        "crowd regions -> ignored",
    )
    assert Coco(str(tree), classes=["dog"], background=None, crowd="class").remarks() == (
        "labels of coco: category 18 -> dog, 2 values -> ignored (3, 44), pixels of no instance -> ignored, "
        "crowd regions -> their class",
    )


def test_frames_travel_to_workers_and_tell_when_annotations_change(tree):
    frames = Coco(str(tree)).frames("train", BOTH)
    other = pickle.loads(pickle.dumps(frames))
    np.testing.assert_array_equal(other.label(0).numpy(), frames.label(0).numpy())
    before = frames.fingerprint()
    assert other.fingerprint() == before
    assert Coco(str(tree), crowd="class").frames("train", BOTH).fingerprint() != before
    content = annotations()
    content["annotations"][0]["segmentation"] = box(1, 1, 3, 3)
    store(tree, content)
    assert Coco(str(tree)).frames("train", BOTH).fingerprint() != before


def test_names_alone_need_no_labels(tree):
    assert "label" not in Coco(str(tree)).frames("train", frozenset({"image"})).load(0)


def changed(**entries):
    """The annotations with the first image (or annotation, or category) changed."""
    content = annotations()
    for key, change in entries.items():
        content[key] = [{**content[key][0], **change}, *content[key][1:]]
    return content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"images": [\n', r"instances_train\.json: line 2: not valid JSON"),
        ({"images": [], "annotations": []}, r"the list categories is missing"),
        ({"images": 3}, r"the list images is missing"),
        ({**annotations(), "images": []}, "the list images is empty"),
        (changed(annotations={"category_id": 7}), "annotation 1: category_id 7 is no category of the file"),
        (changed(annotations={"category_id": [7]}), r"annotation 1: category_id \[7\] is no category"),
        (changed(annotations={"image_id": 7}), "annotation 1: image_id 7 is no image of the file"),
        (changed(images={"id": 5}), r"image 5: the id is there already"),
        (changed(images={"file_name": ".."}), r"image 9: file_name '\.\.' is none of \.png"),
        (changed(images={"file_name": "a.png"}), "image 5: a frame 'a' is there already"),
        (changed(images={"file_name": "c.png"}), r"train/c\.png: no such file; instances_train\.json names it"),
        (changed(images={"height": None}), "image 9: height None and width 6 must be"),
        (changed(images={"height": 10**6, "width": 10**6}), "image 9: .* at most 80000000 in all"),
        (changed(images={"file_name": ""}), "image 9: file_name '' is none of"),
        (changed(categories={"name": "wolf"}), "its categories are not those of"),
        (changed(categories={"id": 3}), "category 3: each must have an id of its own and a name"),
        ({**annotations(), "annotations": [{"id": "x"}]}, "annotations, entry 0: must be an object"),
        ({**annotations(), "annotations": [{"id": 1, "image_id": 9, "category_id": 3}]}, "1: segmentation is missing"),
    ],
)  # fmt: skip
def test_faults_of_the_file(tree, content, said):
    source = Coco(str(tree))
    store(tree, content)
    with pytest.raises(DataError, match=said):
        source.frames("train", BOTH)


def test_faults_of_a_single_annotation_and_picture(tree):
    store(tree, changed(annotations={"segmentation": [[1, 1, 2, 2]]}))
    with pytest.raises(DataError, match=r"instances_train\.json: annotation 1: a polygon must list"):
        labels(tree)
    store(tree, changed(images={"height": 5}))
    with pytest.raises(DataError, match=r"of size \[4, 6\], but its image has \[5, 6\]"):
        labels(tree)
    store(tree, {**changed(images={"height": 5}), "annotations": []})
    with pytest.raises(DataError, match=r"image b\.png measures 6x5 pixels but .*b\.png 6x4"):
        labels(tree)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"crowd": "keep"}, "crowd=keep: must be ignore or class"),
        ({"others": "void"}, "others=void: must be ignore or background"),
        ({"classes": ["dog", "cat"]}, "the class 'cat' is no category of .* dog, car, ball"),
        ({"label_map": {1: 0}}, "label_map maps the category id 1, .* 18, 3, 44"),
        ({"label_map": {18: 9}}, r"label_map leads to 9; it must lead to 0\.\.3"),
        ({"palette": [[1, 2, 3]]}, "palette has 1 colours for 4 classes"),
    ],
)
def test_options_that_cannot_be(tree, options, said):
    with pytest.raises(ConfigError, match=said):
        Coco(str(tree), **options)


def test_a_root_without_annotations(tmp_path):
    with pytest.raises(DataError, match=r"instances_\{split\}\.json: no such file"):
        Coco(str(tmp_path))
    with pytest.raises(DataError, match=r"data\.source\.root must be the folder"):
        Coco(str(tmp_path / "none"))
