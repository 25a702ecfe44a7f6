"""Classes from a list or a file, what their values mean, and the sentence that says so."""

import json
import re
import shlex

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from hardpix.data import Folder
from hardpix.data.classes import read_classes
from hardpix.data.labels import OwnLabels, mapping_sentence
from hardpix.types import ConfigError, DataError

BOTH = frozenset({"image", "label"})


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_a_list_is_the_names():
    assert read_classes(["road", "tree"]) == (("road", "tree"), None, None)


def test_a_text_file_has_a_name_a_line(tmp_path):
    assert read_classes(written(tmp_path, "c.txt", "road\n\n  traffic sign \ntree")).names == (
        "road", "traffic sign", "tree",
    )  # fmt: skip


def test_a_csv_file_has_columns_in_any_order(tmp_path):
    path = written(tmp_path, "c.csv", '\ufeffB, id ,Name,r,g\n3,7,road,1,2\n\n60,8,"tree, tall",40,50\n')
    assert read_classes(path) == (("road", "tree, tall"), ((1, 2, 3), (40, 50, 60)), (7, 8))
    assert read_classes(written(tmp_path, "i.csv", "name,index\na,3\nb,1\n")) == (("a", "b"), None, (3, 1))
    assert read_classes(written(tmp_path, "n.csv", "name\na\nb\n")) == (("a", "b"), None, None)


def test_both_forms_of_json(tmp_path):
    path = written(tmp_path, "c.json", {"classes": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]]})
    assert read_classes(path) == (("a", "b"), ((1, 2, 3), (4, 5, 6)), None)
    entries = [
        {"name": "a", "id": 0, "color": [9, 8, 7]},
        {"color": [6, 5, 4], "name": "b", "id": 4, "isthing": 1},
    ]
    for content in (entries, {"categories": entries, "images": []}):
        assert read_classes(written(tmp_path, "d.json", content)) == (
            ("a", "b"),
            ((9, 8, 7), (6, 5, 4)),
            (0, 4),
        )
    assert read_classes(written(tmp_path, "e.json", {"classes": ["a"]})) == (("a",), None, None)


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("c.txt", "building, edifice\nsky\nother (void)\nfloor-wood\n3d printer\nstop/yield sign", None),
        ("c.names", "road\nsidewalk", ("road", "sidewalk")),
        ("c", "0 void\n1 wall\n2 night stand\n", (("void", "wall", "night stand"), None, (0, 1, 2))),
        ("c.txt", "64 128 64\tAnimal\n192 0 128\tArch", (("Animal", "Arch"), ((64, 128, 64), (192, 0, 128)), None)),
        ("o.txt", "Idx\tRatio\tName\n1\t0.2\twall\n2\t0.1\tbuilding, edifice\n",
         (("wall", "building, edifice"), None, (1, 2))),
        ("o.csv", "Idx,Stuff,Name\n1,1,wall\n2,1,building;edifice\n", (("wall", "building;edifice"), None, (1, 2))),
        ("s.csv", "name;r;g;b\nroad;1;2;3\n", (("road",), ((1, 2, 3),), None)),
        ("c.dat", "name,id\nroad,7\n", (("road",), None, (7,))),
        ("n.txt", "Name\nroad\n", ("road",)),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nthe car:9,8,7:door:\n",
         (("background", "the car"), ((0, 0, 0), (9, 8, 7)), None)),
        ("c.json", ["road", "tree"], ("road", "tree")),
        ("c.txt", ["road", "tree"], ("road", "tree")),
        ("c.json", {"0": "road", "5": "tree"}, (("road", "tree"), None, (0, 5))),
        ("c.yaml", "names:\n  0: road\n  1: tree\nnc: 2\n", (("road", "tree"), None, (0, 1))),
        ("c.yml", "names: [road, tree]", ("road", "tree")),
        ("c.txt", "- road\n- tree\n", ("road", "tree")),
    ],
)  # fmt: skip
def test_known_formats_are_known_by_their_content(tmp_path, name, content, wanted):
    found = read_classes(written(tmp_path, name, content))
    if wanted is None:
        wanted = tuple(content.split("\n"))
    assert found == (wanted if isinstance(wanted[0], tuple) else (wanted, None, None))


@pytest.mark.parametrize(
    "content",
    [
        "# Classes\nroad\ntree\n",
        "The road is what cars drive on and people cross.\n",
        "Permission is hereby granted to any person obtaining a copy\n",
        "import os\nprint(os.name)\n",
        "road: 0\ntree: 1\n",
        "background,crack\n",
        "road,1,2,3\ntree,4,5,6\n",
        "road\t1\ntree\t2\n",
        "road;tree\n",
        "/SegNet/CamVid/train/1.png /SegNet/CamVid/trainannot/1.png\n",
        "0001.png\n0002.png\n",
        "a/b/c\n",
        "0016E5_05070\n0016E5_05100\n0016E5_05130\n",
        "1\n2\n3\n",
        "0 0 0\n128 0 0\n",
        "0 void\nwall\n",
        "<html>\n<body>\n",
        "[paths]\nroot = /data\n",
        "road\n\x00\x01\n",
        '"road"\n"tree"\n',
    ],
)
def test_texts_that_list_no_classes_are_refused(tmp_path, content):
    with pytest.raises(DataError, match=r"c\.txt: line \d.*(CVAT|JSON)|c\.txt: not valid JSON") as error:
        read_classes(written(tmp_path, "c.txt", content))
    assert "\n" not in str(error.value)


def test_the_class_lists_of_real_sets_are_read(real_data):
    counts = {
        "CamVid/classes11.csv": 12, "iSAID/classes.csv": 16, "nyudv2/classes40.txt": 41, "nyudv2/classes13.txt": 14,
        "SUNRGBD/classes37.txt": 37, "ADEChallengeData2016/objectInfo150.txt": 150,
        "ADEChallengeData2016/objectInfo150.csv": 150,
    }  # fmt: skip
    assert {name: len(read_classes(str(real_data / name)).ids) for name in counts} == counts
    for name in ("README.md", "CamVid/train.txt", "nyudv2/train.txt", "nyudv2/intrinsics_rgb.txt",
                 "ADEChallengeData2016/sceneCategories.txt", "nyudv2_raw/dining_room/pose.txt"):  # fmt: skip
        with pytest.raises(DataError, match=name):
            read_classes(str(real_data / name))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("c.txt", "", r"c\.txt: there is no class in it"),
        ("c.txt", "a\nb\n\na\n", r"c\.txt: line 4: the class 'a' is there already \(.*c\.txt: line 1\)"),
        (
            "c.csv",
            "title,r\na,1\n",
            r"c\.csv: line 1: the header must name the column name once; .*: title, r",
        ),
        ("c.csv", "name,name\na,1\n", r"c\.csv: line 1: the header must name the column name once"),
        ("c.csv", "name,r,g,b\na,1,2,3\nb,1,2\n", r"c\.csv: line 3: 3 values for 4 columns"),
        ("c.csv", "name,r,g,b\na,1,2,3\nb,1,,3\n", r"c\.csv: line 3: a colour needs all of r, g and b"),
        ("c.csv", "name,r,g,b\na,1,2,3\nb,,,\n", r"c\.csv: line 3: no colour, but other classes have one"),
        ("c.csv", "name,r,g,b\na,1,2,256\n", r"c\.csv: line 2: the colour \[1, 2, 256\] must be"),
        ("c.csv", "name,r,g,b\na,1,x,3\n", r"c\.csv: line 2: 'x' must be a whole number"),
        ("c.csv", "name,id\na,1\nb,1\n", r"c\.csv: line 3: the id 1 is there already \(.*line 2\)"),
        ("c.csv", "name,id\na,-1\n", r"c\.csv: line 2: the id -1 must be a whole number, 0 or above"),
        ("c.csv", "name,id\na,1\nb,\n", r"c\.csv: line 3: no id, but other classes have one"),
        ("c.csv", 'name\n"a', r"c\.csv: line 2: not readable as CSV"),
        ("c.csv", "", r"c\.csv: line 1: the header must name the column name once; its columns are: none"),
        ("c.json", '["a",\n"b"', r"c\.json: line 2: not valid JSON"),
        ("c.json", "[" * 100000, r"c\.json: not valid JSON \(nested too deeply\)"),
        ("c.json", {"names": ["a"]}, r"c\.json: must hold"),
        ("c.json", {"classes": ["a", 3]}, r"c\.json: entry 1: 3 is no name of a class"),
        (
            "c.json",
            {"classes": ["a"], "palette": [[1, 2, 3], [1, 2, 3]]},
            r"palette must list one .* 1 classes",
        ),
        ("c.json", [{"name": "a"}, "b"], r"c\.json: entry 1: must be an object"),
        ("c.json", [{"name": "a", "color": [1, 2]}], r"c\.json: entry 0: the colour \[1, 2\] must be"),
        ("c.json", [{"name": "a", "id": 1.5}], r"c\.json: entry 0: the id 1\.5 must be a whole number"),
    ],
)
def test_faults_name_file_and_line(tmp_path, name, content, said):
    with pytest.raises(DataError, match=said):
        read_classes(written(tmp_path, name, content))


def test_a_missing_file_and_one_that_is_no_text(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        read_classes(str(tmp_path / "none.txt"))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"b\.txt: not a UTF-8 text"):
        read_classes(str(tmp_path / "b.txt"))
    with pytest.raises(ConfigError, match=r"data\.source\.classes, entry 1: the class 'a' is there already"):
        read_classes(["a", "a"])


# The sentence


def test_what_is_mapped_is_said_and_an_identity_is_not():
    names = ("road", "sidewalk")
    mapping = {7: 0, 8: 1, **dict.fromkeys((0, 1, 2, 9, 12), 255)}
    assert mapping_sentence(mapping, names) == "7 -> road, 8 -> sidewalk, 5 values -> ignored (0..2, 9, 12)"
    assert mapping_sentence({0: 0, 1: 1, 255: 255}, names, usual=255) == ""
    assert (
        mapping_sentence({0: 0, 1: 1, 9: 255}, names, usual=255) == "0 -> road, 1 -> sidewalk, 9 -> ignored"
    )
    assert mapping_sentence({0: 1, 1: 0}, names) == "0 -> sidewalk, 1 -> road"
    colours = {(1, 2, 3): 0, (0, 0, 0): 255, (9, 9, 9): 255}
    assert mapping_sentence(colours, names) == "(1, 2, 3) -> road, 2 values -> ignored ((0, 0, 0), (9, 9, 9))"


def test_ids_of_a_file_are_the_values_of_the_masks(tmp_path):
    path = written(tmp_path, "c.csv", "name,id\nroad,7\nsidewalk,8\n")
    labels = OwnLabels(classes=path, palette=None)
    assert labels.code.mapping == {7: 0, 8: 1, 255: 255}
    assert labels.remarks("mine") == ("labels of mine: 7 -> road, 8 -> sidewalk, 255 -> ignored",)
    assert OwnLabels(classes=path, palette=None, label_map={3: 1, 4: 0}).code.mapping == {
        3: 1,
        4: 0,
        255: 255,
    }
    with pytest.raises(ConfigError, match="ignore_index 8 is also the id of class sidewalk"):
        OwnLabels(classes=path, palette=None, ignore_index=8)


# A folder


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)


@pytest.fixture
def colours(tmp_path):
    """Masks of two colours, red left of green, and a black row on top."""
    mask = np.zeros((4, 6, 3))
    mask[1:, :2] = (200, 0, 0)
    mask[1:, 2:] = (0, 100, 0)
    save(tmp_path / "train/images/a.png", np.full((4, 6, 3), 9))
    save(tmp_path / "train/labels/a.png", mask)
    return tmp_path


def test_colour_masks_are_read_by_the_palette(colours):
    path = written(colours, "c.csv", "r,g,b,name\n0,100,0,tree\n200,0,0,car\n")
    source = Folder(colours, classes=path, label_format="colour", ignore_colours=[[0, 0, 0]])
    wanted = np.full((4, 6), 255)
    wanted[1:, :2], wanted[1:, 2:] = 1, 0
    np.testing.assert_array_equal(source.frames("train", BOTH).load(0)["label"].numpy(), wanted)
    assert source.info.palette == ((0, 100, 0), (200, 0, 0))
    assert source.remarks() == (
        "labels of folder: (0, 100, 0) -> tree, (200, 0, 0) -> car, (0, 0, 0) -> ignored",
    )
    with pytest.raises(DataError, match=r"a\.png: colour \(0, 0, 0\) \(6 pixels\) is no class"):
        Folder(colours, classes=path, label_format="colour").frames("train", BOTH).load(0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label_format": "rgb"}, "label_format=rgb: must be index or colour"),
        ({"label_format": "colour"}, "needs the colour of each class"),
        ({"label_format": "colour", "palette": [[1, 1, 1], [1, 1, 1]]}, "a and b have one colour"),
        ({"label_format": "colour", "palette": [[1, 1, 1]]}, "palette has 1 colours for 2 classes"),
        ({"palette": [[1, 1, 1], [1, 1, 300]]}, r"data\.source\.palette: the colour \[1, 1, 300\] must be"),
        ({"label_format": "colour", "palette": [[1, 1, 1], [2, 2, 2]], "ignore_colours": [[2, 2, 2]]},
         r"ignore_colours: \(2, 2, 2\) is there already"),
        ({"label_format": "colour", "palette": [[1, 1, 1], [2, 2, 2]], "label_map": {1: 0}}, "label_map maps numbers"),
        ({"ignore_colours": [[0, 0, 0]]}, "ignore_colours needs label_format=colour"),
        ({"label_map": {-1: 0}}, "label_map maps -1"),
        ({"label_map": {65536: 0}}, r"data\.source\.label_map maps 65536; label files hold values from 0 to 65535"),
        ({"label_map": {7.5: 0}}, r"data\.source\.label_map maps 7\.5"),
        ({"label_map": {"7": 0}}, r"data\.source\.label_map maps '7'"),
        ({"label_map": {True: 0}}, r"data\.source\.label_map maps True"),
        ({"label_map": {7: 0.5}}, r"data\.source\.label_map leads to 0\.5"),
        ({"label_map": {7: True}}, r"data\.source\.label_map leads to True"),
        ({"label_map": {7: 256}}, r"data\.source\.label_map leads to 256"),
        ({"label_map": {7: -1}}, r"data\.source\.label_map leads to -1"),
        ({"ignore_index": 70000}, r"ignore_index=70000: must be at least 0 and at most 65535"),
        ({"ignore_index": -1}, r"ignore_index=-1: must be at least 0"),
        ({"ignore_index": 255.0}, r"ignore_index=255\.0: must be an int"),
        ({"ignore_index": 0}, "ignore_index 0 is also a class index"),
        ({"ignore_index": 1, "label_map": {7: 0}}, "ignore_index 1 is also a class index"),
        ({"palette": [[1, 1, 1], [1, 1, -1]]}, r"the colour \[1, 1, -1\] must be"),
        ({"palette": [[1, 1, 1], [1, 1, 1.5]]}, r"the colour \[1, 1, 1\.5\] must be"),
        ({"label_map": {1: 2}}, r"label_map leads to 2; it must lead to 0\.\.1 or to ignore_index 255"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        Folder(tmp_path, classes=["a", "b"], **options)


def test_ids_of_classes_and_their_number_fit_label_files(tmp_path):
    with pytest.raises(ConfigError, match="class b has the id 70000; label files hold 0 to 65535"):
        OwnLabels(classes=written(tmp_path, "c.csv", "name,id\na,1\nb,70000\n"), palette=None)
    with pytest.raises(ConfigError, match=r"data\.source\.classes: 65536 classes; at most 65535"):
        OwnLabels(classes=[str(i) for i in range(65536)], palette=None)


def test_values_that_a_label_map_leaves_out_stay(tmp_path):
    def mapping(classes=("a", "b", "c"), **options):
        return OwnLabels(classes=classes, palette=None, **options).code.mapping

    assert mapping(label_map={11: 255}) == {0: 0, 1: 1, 2: 2, 11: 255, 255: 255}
    assert mapping(label_map={2: 255}) == {0: 0, 1: 1, 2: 255, 255: 255}
    assert mapping(label_map={7: 1, 8: 1}) == {0: 0, 1: 1, 2: 2, 7: 1, 8: 1, 255: 255}
    assert mapping(label_map={}) == mapping()
    listed = written(tmp_path, "c.csv", "name,id\na,7\nb,8\n")
    assert mapping(listed, label_map={9: 255}) == {7: 0, 8: 1, 9: 255, 255: 255}
    # One that says the value of every class leaves nothing over: other numbers are no classes.
    assert mapping(label_map={7: 0, 8: 1, 9: 2}) == {7: 0, 8: 1, 9: 2, 255: 255}
    assert mapping(label_map={1: 0, 2: 1, 3: 2}, ignore_index=0) == {0: 255, 1: 0, 2: 1, 3: 2}


def applied(said, **before):
    """The settings after a user has typed the overrides of a sentence."""
    parser = OverridesParser.create()
    given = [parser.parse_override(word) for word in shlex.split(said)]
    return before | {o.key_or_group.removeprefix("data.source."): o.value() for o in given}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"classes": ["a"]},
        {"label_map": {11: 255}},
        {"label_map": {7: 0, 8: 1, 9: 2, 3: 255}},
        {"label_map": {1: 0, 2: 1, 3: 2}, "ignore_index": 0},
        {"classes": [f"c{i}" for i in range(300)], "ignore_index": 65535},
    ],
)
def test_an_unknown_value_is_told_with_the_overrides_that_ignore_and_map_it(options):
    options = {"classes": ["a", "b", "c"]} | options
    labels = OwnLabels(palette=None, **options)
    with pytest.raises(DataError) as error:
        labels.code.decode(np.full((2, 3), 1000, np.uint16), "x.png")
    found = re.fullmatch(
        r"x\.png: value 1000 \(6 pixels\) is no class; allowed are [^;]*; to ignore it: (.*); to read it as "
        r"(?:a|c0): ([^(]*)( \(.*\))?",
        str(error.value),
    )
    for said, target in ((found[1], labels.void), (found[2], 0)):
        again = OwnLabels(palette=None, **applied(said, **options))
        wanted = labels.code.mapping | {1000: target}
        assert {v: again.code.mapping.get(v) for v in wanted} == wanted


def test_an_unknown_colour_is_told_with_the_override_that_ignores_it():
    given = {
        "classes": ["a"],
        "palette": [[1, 2, 3]],
        "label_format": "colour",
        "ignore_colours": [[9, 9, 9]],
    }
    with pytest.raises(DataError, match=r"colour \(7, 7, 7\) .*; to ignore it: ") as error:
        OwnLabels(**given).code.decode(np.full((2, 3, 3), 7, np.uint8), "x.png")
    said = re.search(r"to ignore it: (\S+);", str(error.value))[1]
    assert OwnLabels(**applied(said, **given)).code.mapping == {(1, 2, 3): 0, (9, 9, 9): 255, (7, 7, 7): 255}


def test_a_folder_says_what_it_maps(tmp_path):
    assert Folder(tmp_path, classes=["a", "b"]).remarks() == ()
    source = Folder(tmp_path, classes=["a", "b"], name="mine", label_map={7: 0, 8: 1, 3: 255})
    assert source.remarks() == ("labels of mine: 7 -> a, 8 -> b, 2 values -> ignored (3, 255)",)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.csv", "name,value\ncrack,1\nbackground,0\n", r"line 2: value=1 is not read; name it id"),
        ("c.json", '[{"name": "crack", "value": 1}]', r"entry 0: value=1 is not read; name it id"),
        ("c.json", '[{"name": "crack", "colour": [1, 2, 3]}]', r"colour=\[1, 2, 3\] is not read"),
        ("c.txt", "class\nbackground\ncrack\n", r"line 1: 'class' looks like a header"),
    ],
)
def test_what_a_class_file_says_and_is_not_read_is_refused(tmp_path, name, text, said):
    """The order of the lines is not that of the values, and a header is no class."""
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_classes(str(tmp_path / name))
