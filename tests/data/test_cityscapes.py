"""Cityscapes and GTAV: layouts, the table of labels, splits, and what their recipes place."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix.data import GTAV, Cityscapes
from hardpix.data.prepare import find_recipe
from hardpix.data.prepare.recipe import Work
from hardpix.types import ConfigError, DataError

BOTH = frozenset({"image", "label"})
IMAGE = frozenset({"image"})

# id -> train id, written out a second time: the published table.
TRAIN_ID = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
            27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip


def save(path, array, colours=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, dtype=np.uint8))
    if colours is not None:
        image = image.convert("P") if image.mode != "L" else image
        image.putpalette(np.asarray(colours, dtype=np.uint8).ravel().tolist())
    image.save(path)
    return path


def city(root, split, name, *, value=0, label=None, train_ids=None, shape=(5, 7)):
    """One frame in the released layout."""
    folder = name.split("_")[0]
    save(root / "leftImg8bit" / split / folder / f"{name}_leftImg8bit.png", np.full((*shape, 3), value))
    stem = root / "gtFine" / split / folder / f"{name}_gtFine"
    if label is not None:
        save(stem.with_name(f"{stem.name}_labelIds.png"), label)
    if train_ids is not None:
        save(stem.with_name(f"{stem.name}_labelTrainIds.png"), train_ids)


IDS = np.arange(35).reshape(5, 7)
IDS[4, 6] = 255


@pytest.fixture
def cityscapes(tmp_path):
    root = tmp_path / "cityscapes"
    city(root, "train", "ulm_000001_000019", value=1, label=IDS, train_ids=np.full((5, 7), 18))
    city(
        root,
        "train",
        "aachen_000002_000019",
        value=2,
        label=np.full((5, 7), 7),
        train_ids=np.full((5, 7), 255),
    )
    city(root, "val", "lindau_000000_000019", value=3, label=np.full((5, 7), 33))
    city(root, "test", "berlin_000000_000019", value=4, label=np.full((5, 7), 3))
    return root


def names(frames):
    return [frames.name(i) for i in range(len(frames))]


def test_cityscapes_frames_and_every_id(cityscapes):
    frames = Cityscapes(cityscapes).frames("train", BOTH)
    assert names(frames) == ["aachen_000002_000019", "ulm_000001_000019"]
    frame = frames.load(1)
    assert set(frame["image"].unique().tolist()) == {1}
    assert frame["label"].dtype == torch.uint8
    expected = [TRAIN_ID.get(i, 255) for i in range(34)] + [255]
    assert frame["label"].flatten().tolist() == expected
    assert names(Cityscapes(cityscapes).frames("val", BOTH)) == ["lindau_000000_000019"]


def test_cityscapes_train_ids_are_read_as_they_are(cityscapes):
    frames = Cityscapes(cityscapes, labels="trainIds").frames("train", BOTH)
    assert frames.load(0)["label"].unique().tolist() == [255]
    assert frames.load(1)["label"].unique().tolist() == [18]
    with pytest.raises(DataError, match=r"lindau.*_labelTrainIds\.png: no such file; .*labels=ids"):
        Cityscapes(cityscapes, labels="trainIds").frames("val", BOTH)
    city(cityscapes, "train", "ulm_000001_000019", train_ids=np.full((5, 7), 19))
    with pytest.raises(DataError, match=r"value 19 .*allowed are 0\.\.18, 255"):
        Cityscapes(cityscapes, labels="trainIds").frames("train", BOTH).load(1)
    with pytest.raises(ConfigError, match="must be ids or trainIds"):
        Cityscapes(cityscapes, labels="trainids")


@pytest.mark.parametrize("value", [34, 100, 254])
def test_cityscapes_refuses_what_is_no_id(cityscapes, value):
    city(cityscapes, "train", "ulm_000001_000019", label=np.full((5, 7), value))
    with pytest.raises(DataError, match=rf"labelIds\.png: value {value} .*allowed are 0\.\.33, 255"):
        Cityscapes(cityscapes).frames("train", BOTH).load(1)


def test_cityscapes_test_has_images_alone(cityscapes):
    source = Cityscapes(cityscapes)
    frames = source.frames("test", IMAGE)
    assert names(frames) == ["berlin_000000_000019"]
    assert "label" not in frames.load(0)
    with pytest.raises(DataError, match=r"berlin.*no label belongs to it"):
        source.frames("test", BOTH)
    assert source.strays("test") == []


def test_cityscapes_missing_files(cityscapes, tmp_path):
    with pytest.raises(DataError, match=r"data\.source\.root"):
        Cityscapes(tmp_path / "no").frames("train", BOTH)
    with pytest.raises(DataError, match=r"train_extra: no CITY/\*_leftImg8bit\.png"):
        Cityscapes(cityscapes).frames("train_extra", BOTH)
    next((cityscapes / "gtFine/train").rglob("*ulm*labelIds.png")).unlink()
    with pytest.raises(DataError, match=r"ulm_000001_000019_gtFine_labelIds\.png: no such file"):
        Cityscapes(cityscapes).frames("train", BOTH)


def test_cityscapes_strays_are_of_the_kind_that_is_read(cityscapes):
    folder = cityscapes / "gtFine/train/ulm"
    for kind in ("instanceIds", "color", "labelIds", "labelTrainIds"):
        save(folder / f"ulm_000009_000019_gtFine_{kind}.png", IDS)
    save(folder / "ulm_000001_000019_gtFine_color.png", IDS)
    assert [p.name for p in Cityscapes(cityscapes).strays("train")] == [
        "ulm_000009_000019_gtFine_labelIds.png"
    ]
    found = Cityscapes(cityscapes, labels="trainIds").strays("train")
    assert [p.name for p in found] == ["ulm_000009_000019_gtFine_labelTrainIds.png"]


def test_the_test_server_gets_ids():
    for source in (Cityscapes("x"), GTAV("x")):
        assert dict(source.submission_values()) == {train: number for number, train in TRAIN_ID.items()}


def test_both_have_the_same_classes():
    assert Cityscapes.info.classes == GTAV.info.classes
    assert Cityscapes.info.palette == GTAV.info.palette
    assert Cityscapes.info.num_classes == 19
    assert Cityscapes.info.classes[13] == "car"
    assert Cityscapes.info.palette[13] == (0, 0, 142)


# GTAV


def gtav_frame(root, number, *, label=None, value=0, shape=(5, 7), colours=None):
    save(root / "images" / f"{number:05d}.png", np.full((*shape, 3), value))
    save(root / "labels" / f"{number:05d}.png", np.full(shape, 7) if label is None else label, colours)


@pytest.fixture
def gtav(tmp_path):
    root = tmp_path / "gtav"
    for number in (1, 2, 3, 10, 24966):
        gtav_frame(root, number, value=number % 200)
    return root


def official(root, **splits):
    scipy_io = pytest.importorskip("scipy.io")
    numbers = {f"{split}Ids": np.array(given, np.uint16)[:, None] for split, given in splits.items()}
    scipy_io.savemat(root / "split.mat", numbers)


def test_gtav_without_the_official_split_is_all_train(gtav):
    source = GTAV(gtav)
    frames = source.frames("train", BOTH)
    assert names(frames) == ["00001", "00002", "00003", "00010", "24966"]
    assert set(frames.load(3)["image"].unique().tolist()) == {10}
    for split in ("val", "test"):
        with pytest.raises(
            DataError, match=rf"split\.mat: no such file.*there is no {split}.*{split}_split=train"
        ):
            source.frames(split, BOTH)
    assert "every frame" in source.remarks()[1]


def test_gtav_with_the_official_split(gtav):
    official(gtav, train=[1, 10, 500], val=[3], test=[2, 24966])
    source = GTAV(gtav)
    assert names(source.frames("train", BOTH)) == ["00001", "00010"]
    assert names(source.frames("val", BOTH)) == ["00003"]
    assert names(source.frames("test", BOTH)) == ["00002", "24966"]
    assert "split.mat" in source.remarks()[1]
    official(gtav, train=[700], val=[3])
    with pytest.raises(DataError, match=r"none of the images belongs to train"):
        source.frames("train", BOTH)
    with pytest.raises(DataError, match=r"testIds is missing"):
        source.frames("test", BOTH)


def test_gtav_ids_of_grey_and_palette_files(gtav):
    """A palette of any colours changes nothing: the indices are the ids. 34 is void."""
    colours = np.random.default_rng(0).integers(0, 256, (35, 3))
    ids = np.arange(35).reshape(5, 7)
    expected = [TRAIN_ID.get(i, 255) for i in range(35)]
    gtav_frame(gtav, 1, label=ids)
    gtav_frame(gtav, 2, label=ids, colours=colours)
    with Image.open(gtav / "labels/00002.png") as image:
        assert image.mode == "P"
    frames = GTAV(gtav).frames("train", BOTH)
    for index in (0, 1):
        assert frames.load(index)["label"].flatten().tolist() == expected
    gtav_frame(gtav, 1, label=np.full((5, 7), 35))
    with pytest.raises(DataError, match=r"00001\.png: value 35 .*0\.\.34"):
        frames.load(0)


def test_gtav_colours_of_rgb_files(gtav):
    colours = [
        (128, 64, 128),
        (119, 11, 32),
        (153, 153, 153),
        (0, 0, 0),
        (111, 74, 0),
        (0, 0, 142),
        (0, 0, 90),
    ]
    label = np.array([colours] * 5)
    gtav_frame(gtav, 1, label=label)
    gtav_frame(gtav, 2, label=np.concatenate([label, np.full((5, 7, 1), 255)], axis=2))
    frames = GTAV(gtav).frames("train", BOTH)
    for index in (0, 1):
        assert frames.load(index)["label"][2].tolist() == [0, 18, 5, 255, 255, 13, 255]
    gtav_frame(gtav, 1, label=np.full((5, 7, 3), (1, 2, 3)))
    with pytest.raises(DataError, match=r"00001\.png: colour \(1, 2, 3\)"):
        frames.load(0)


def test_gtav_label_of_another_size(gtav):
    save(gtav / "labels/00002.png", np.full((4, 7), 7))
    frames = GTAV(gtav).frames("train", BOTH)
    for read in (frames.load, frames.label):
        with pytest.raises(
            DataError, match=r"00002\.png measures 7x4 pixels but its image 7x5, .*data prepare gtav"
        ):
            read(1)


def test_gtav_missing_files_and_strays(gtav, tmp_path):
    with pytest.raises(DataError, match=r"data\.source\.root"):
        GTAV(tmp_path / "no").frames("train", BOTH)
    official(gtav, train=[1, 2], val=[3])
    assert GTAV(gtav).strays("train") == []
    (gtav / "images/00003.png").unlink()
    assert [p.name for p in GTAV(gtav).strays("train")] == ["00003.png"]
    (gtav / "labels/00002.png").unlink()
    with pytest.raises(DataError, match=r"labels/00002\.png: no such file"):
        GTAV(gtav).frames("train", BOTH)


def test_a_run_on_one_is_a_run_on_the_other(cityscapes, gtav):
    """Both readers give the same label for the same ids."""
    gtav_frame(gtav, 1, label=np.minimum(IDS, 33))
    city(cityscapes, "train", "ulm_000001_000019", label=np.minimum(IDS, 33))
    theirs = GTAV(gtav).frames("train", BOTH).load(0)["label"]
    assert torch.equal(theirs, Cityscapes(cityscapes).frames("train", BOTH).load(1)["label"])


# Recipes


def convert(name, out, *roots, workers=1):
    work = Work(list(roots), out, workers=workers)
    find_recipe(name)().convert(work)
    return work


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_cityscapes_is_placed_without_what_is_not_read(cityscapes, tmp_path):
    save(cityscapes / "gtFine/train/ulm/ulm_000001_000019_gtFine_instanceIds.png", IDS)
    (cityscapes / "gtFine/train/ulm/ulm_000001_000019_gtFine_polygons.json").write_text("{}")
    # The two archives are unpacked into folders of their own.
    images, labels = tmp_path / "a/leftImg8bit_trainvaltest", tmp_path / "b"
    images.mkdir(parents=True)
    labels.mkdir()
    (cityscapes / "leftImg8bit").rename(images / "leftImg8bit")
    (cityscapes / "gtFine").rename(labels / "gtFine")
    out = tmp_path / "out"
    for _ in range(2):  # the second time finds everything there
        assert convert("cityscapes", out, tmp_path / "a", labels).faults == []
    assert files_below(out) == [
        "gtFine/train/aachen/aachen_000002_000019_gtFine_labelIds.png",
        "gtFine/train/aachen/aachen_000002_000019_gtFine_labelTrainIds.png",
        "gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png",
        "gtFine/train/ulm/ulm_000001_000019_gtFine_labelTrainIds.png",
        "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png",
        "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png",
        "leftImg8bit/train/aachen/aachen_000002_000019_leftImg8bit.png",
        "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png",
        "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png",
    ]
    assert names(Cityscapes(out).frames("train", BOTH)) == ["aachen_000002_000019", "ulm_000001_000019"]


def test_cityscapes_recipe_says_what_is_missing(cityscapes, tmp_path):
    next((cityscapes / "gtFine/train").rglob("*ulm*labelIds.png")).unlink()
    faults = convert("cityscapes", tmp_path / "out", cityscapes).faults
    assert len(faults) == 1
    assert "ulm_000001_000019_gtFine_labelIds.png belongs to it" in faults[0]
    (cityscapes / "gtFine").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"it comes from gtFine_trainvaltest\.zip"):
        convert("cityscapes", tmp_path / "out", cityscapes)


@pytest.mark.parametrize(
    ("name", "member", "wanted"),
    [
        ("cityscapes", "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png", True),
        ("cityscapes", "gtFine/val/lindau/lindau_000000_000019_gtFine_labelTrainIds.png", True),
        ("cityscapes", "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png", True),
        ("cityscapes", "gtFine/test/berlin/berlin_000000_000019_gtFine_labelIds.png", False),
        ("cityscapes", "gtFine/val/lindau/lindau_000000_000019_gtFine_instanceIds.png", False),
        ("cityscapes", "gtFine/val/lindau/lindau_000000_000019_gtFine_color.png", False),
        ("cityscapes", "gtFine/val/lindau/lindau_000000_000019_gtFine_polygons.json", False),
        ("cityscapes", "license.txt", False),
        ("gtav", "images/00001.png", True),
        ("gtav", "labels/24966.png", True),
        ("gtav", "read_mapping/split.mat", True),
        ("gtav", "read_mapping/mapping.mat", False),
    ],
)
def test_what_is_unpacked(name, member, wanted):
    assert find_recipe(name)().wanted(member) is wanted


def test_gtav_parts_become_two_folders(gtav, tmp_path):
    """Two parts in folders of their own, a label a few pixels off, one of quite another shape, one without image."""
    part = tmp_path / "02"
    gtav_frame(part, 2501, shape=(40, 60), label=np.full((40, 60), 8), value=9)
    off = np.repeat(np.arange(30), 41)[: 30 * 41].reshape(30, 41).T  # ids by column, [41, 30]
    off = np.repeat(off, 2, axis=1)  # [41, 60]
    save(part / "labels/02501.png", off, np.zeros((35, 3)))
    gtav_frame(part, 2504, shape=(40, 60), label=off)  # grey, which other filters would blend
    gtav_frame(part, 2502, shape=(40, 60), label=np.zeros((40, 80)))
    save(part / "labels/02503.png", np.zeros((5, 7)))
    official(part, train=[1, 2501, 2504], val=[2, 3], test=[10])
    out = tmp_path / "out"
    work = convert("gtav", out, gtav, part)
    assert len(work.faults) == 2
    assert "02503.png: no image belongs to it" in work.faults[0]
    assert "02502.png measures 80x40 pixels" in work.faults[1]
    assert [p.name for p in sorted((out / "images").iterdir())] == [
        "00001.png", "00002.png", "00003.png", "00010.png", "02501.png", "02504.png", "24966.png",
    ]  # fmt: skip
    frames = GTAV(out).frames("train", BOTH)
    assert names(frames) == ["00001", "02501", "02504"]
    for index in (1, 2):
        label = frames.load(index)["label"]
        assert label.shape == (40, 60)
        assert label[20].tolist() == [TRAIN_ID.get(i // 2, 255) for i in range(60)]
    assert (out / "labels/00001.png").read_bytes() == (gtav / "labels/00001.png").read_bytes()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    convert("gtav", out, gtav, part)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.png")} == before


def test_gtav_goes_on_past_a_broken_file(gtav, tmp_path):
    (gtav / "labels/00002.png").write_bytes(b"broken")
    (gtav / "images/00003.png").write_bytes(b"")
    work = convert("gtav", tmp_path / "out", gtav)
    assert [fault.split(":")[0].split("/")[-1] for fault in work.faults] == ["00002.png", "00003.png"]
    assert names(GTAV(tmp_path / "out").frames("train", BOTH)) == ["00001", "00010", "24966"]
    (gtav / "labels").rename(gtav / "other")
    with pytest.raises(DataError, match=r"it comes from 01_labels\.zip"):
        convert("gtav", tmp_path / "out2", gtav)


# Real frames


@pytest.mark.real
class TestReal:
    def test_the_table_is_the_published_one(self, real_data):
        from hardpix.data.sets.cityscapes import LABELS, id_to_class

        with (real_data / "cityscapes/labels.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if int(row["id"]) >= 0]
        assert [(int(r["id"]), r["name"], (int(r["r"]), int(r["g"]), int(r["b"]))) for r in rows] == [
            (label.id, label.name, label.colour) for label in LABELS
        ]
        assert id_to_class(255) == {int(row["id"]): int(row["trainId"]) for row in rows}

    def test_ids_and_train_ids_are_one_label(self, real_data):
        root = real_data / "cityscapes"
        ids, trained = (Cityscapes(root, labels=kind).frames("val", BOTH) for kind in ("ids", "trainIds"))
        assert names(ids) == names(trained) == ["frankfurt_000000_000294"]
        frame = ids.load(0)
        assert frame["image"].shape == (3, 128, 256)
        mapped, stored = frame["label"].numpy(), trained.load(0)["label"].numpy()
        # The two files were shrunk one by one: 77 of 32768 pixels, on edges, took another neighbour.
        differing = np.argwhere(mapped != stored)
        assert len(differing) <= 77
        for y, x in differing:
            assert len(np.unique(mapped[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3])) > 1
        raw = np.array(Image.open(next((root / "gtFine").rglob("*labelIds.png"))))
        for number in np.unique(raw):
            assert np.bincount(stored[raw == number]).argmax() == TRAIN_ID.get(int(number), 255)
        assert (frame["label"][80:110] == 0).float().mean() > 0.5  # road, in front of the car

    def test_the_real_frame_in_the_form_of_gtav(self, real_data, tmp_path):
        root = real_data / "cityscapes"
        label = np.array(Image.open(next((root / "gtFine").rglob("*labelIds.png"))))
        save(tmp_path / "images/00001.png", Image.open(next(root.rglob("*leftImg8bit.png"))))
        save(tmp_path / "labels/00001.png", label, np.zeros((34, 3)))
        found = GTAV(tmp_path).frames("train", BOTH).load(0)["label"]
        assert torch.equal(found, Cityscapes(root).frames("val", BOTH).load(0)["label"])
