"""SUN RGB-D: the reader's layout and depth, and labels out of files built as MATLAB writes them."""

import pickle
from functools import partial
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from hardpix.data import SUNRGBD
from hardpix.data.prepare import find_recipe
from hardpix.data.prepare.recipe import Work
from hardpix.data.prepare.sunrgbd import SUNRGBDRecipe, write_label
from hardpix.types import ConfigError, DataError

ALL = frozenset({"image", "label", "depth", "depth_valid"})
DEPTH = ALL - {"label"}

# In the order of the annotations, which is neither that of the names nor that of the lists.
META = (
    "kv2/kinect2data/000009_rgbf-resize",
    "xtion/sun3ddata/hotel/hotel_1/0000110-000003653244",
    "kv1/NYUdata/NYU0002",
    "kv1/NYUdata/NYU0001",
    "realsense/sa/2014_10_21-18_22_28",
)
TRAIN = (META[4], META[2], META[1])
TEST = (META[0], META[3])
SIZES = {frame: (6 + i, 9 - i) for i, frame in enumerate(META)}  # height, width


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)
    return path


def label_of(number):
    """[H, W] doubles: no row is like another, no two frames are alike; 0 and 37 occur."""
    height, width = SIZES[META[number]]
    label = (np.arange(height * width).reshape(height, width) * (number + 3) + number) % 38
    label[0, 0], label[0, 1] = 0, 37
    return label.astype(np.float64)


def rotated(millimetres):
    value = np.asarray(millimetres).astype(np.int64)
    return ((value << 3) | (value >> 13)).astype(np.uint16)


def write_frame(root, frame, number):
    height, width = SIZES[frame]
    folder = root / frame
    save(folder / "image" / f"rgb{number}.jpg", np.full((height, width, 3), 40 * number + 20, np.uint8))
    save(folder / "depth" / f"d{number}.png", np.zeros((height, width), np.uint16))
    save(folder / "depth_bfx" / f"d{number}.png", np.full((height, width), rotated(1000 + number), np.uint16))
    numbers = ["500.5", "0", f"{number}.25", "0", "501", "2.5", "0", "0", "1"]
    rows = [" ".join(numbers[i : i + 3]) for i in (0, 3, 6)]
    (folder / "intrinsics.txt").write_text(" ".join(rows) if number % 2 else "\n".join(rows) + "\n")


def cells(paths):
    out = np.empty((1, len(paths)), object)
    out[0] = paths
    return out


def write_split(root, train=TRAIN, test=TEST):
    """Prefixes and slashes at the end differ within the published list."""
    path = root / "SUNRGBDtoolbox" / "traintestSUNRGBD" / "allsplit.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = {
        "alltrain": cells([f"/n/fs/sun3d/data/SUNRGBD/{f}/" for f in train]),
        "alltest": cells([f"/data1/SUNRGBD/{f}" for f in test]),
    }
    savemat(path, paths)


def write_meta(path, frames=META):
    fields = ["sequenceName", "rgbpath", "rgbname", "depthname"]
    meta = np.empty((1, len(frames)), [(name, object) for name in fields])
    for i, frame in enumerate(frames):
        slash = "//" if i % 2 else "/"
        meta[0, i] = (
            f"SUNRGBD/{frame}",
            f"/n/fs/sun3d/data/SUNRGBD/{frame}{slash}image/rgb{META.index(frame)}.jpg",
            f"rgb{META.index(frame)}.jpg",
            f"d{META.index(frame)}.png",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"SUNRGBDMeta": meta})


def write_segmentation(path, labels, dtype="f8"):
    """A v7.3 struct array: a column of references for each field; arrays are stored columns first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        store, struct = file.create_group("#refs#"), file.create_group("SUNRGBD2Dseg")
        for field, shift in (("seglabelall", 100), ("seglabel", 0)):
            references = struct.create_dataset(field, (len(labels), 1), h5py.ref_dtype)
            for i, label in enumerate(labels):
                stored = store.create_dataset(f"{field}{i}", data=(label + shift).T.astype(dtype))
                references[i, 0] = stored.ref
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


@pytest.fixture
def published(tmp_path):
    """Both archives, unpacked."""
    base = tmp_path / "published"
    for number, frame in enumerate(META):
        write_frame(base / "SUNRGBD", frame, number)
    write_split(base)
    write_meta(base / "SUNRGBDtoolbox" / "Metadata" / "SUNRGBDMeta.mat")
    write_segmentation(
        base / "SUNRGBDtoolbox" / "Metadata" / "SUNRGBD2Dseg.mat", [label_of(i) for i in range(len(META))]
    )
    return base


@pytest.fixture
def root(tmp_path):
    """What the recipe makes, written by hand."""
    base = tmp_path / "SUNRGBD"
    for number, frame in enumerate(META):
        write_frame(base, frame, number)
        save(base / "labels37" / f"{frame}.png", label_of(number).astype(np.uint8))
    write_split(base)
    return base


def names(frames):
    return [frames.name(i) for i in range(len(frames))]


def dashed(frames):
    return [frame.replace("/", "__") for frame in frames]


# The reader


def test_the_lists_say_what_a_split_is_and_in_which_order(root):
    source = SUNRGBD(root)
    assert names(source.frames("train", ALL)) == dashed(TRAIN)
    assert names(source.frames("test", ALL)) == dashed(TEST)
    assert names(source.frames("val", ALL)) == dashed(TEST)


def test_a_frame_has_its_own_picture_label_depth_and_camera(root):
    frames = SUNRGBD(root).frames("train", ALL)
    for index, frame in enumerate(TRAIN):
        number = META.index(frame)
        loaded = frames.load(index)
        height, width = SIZES[frame]
        assert loaded["image"].shape == (3, height, width)
        assert abs(int(loaded["image"].float().mean()) - (40 * number + 20)) <= 1
        stored = label_of(number).astype(int)
        np.testing.assert_array_equal(loaded["label"].numpy(), np.where(stored == 0, 255, stored - 1))
        assert {36, 255} <= set(loaded["label"].unique().tolist())
        assert torch.allclose(loaded["depth"], torch.tensor(1 + number / 1000))
        right = [[500.5, 0, number + 0.25], [0, 501, 2.5], [0, 0, 1]]
        np.testing.assert_array_equal(frames.intrinsics(index), right)


def test_depth_is_rotated_by_three_bits_and_ends_at_8_metres(root):
    # 1.234 m is 9872; 8191 mm fills the low thirteen bits; 1 is 8192 mm: the three high bits stand below.
    stored = np.array([[0, 9872, 4, 8, 65528, 1, 64000, 65535]], np.uint16)
    metres, valid = SUNRGBD(root).depth_code(stored, Path("d.png"))
    np.testing.assert_allclose(metres[0], [0, 1.234, 8, 0.001, 8, 8, 8, 8], atol=1e-6)
    assert valid[0].tolist() == [False, *[True] * 7]
    assert metres.dtype == np.float32
    near = np.arange(0, 8001, 7)
    np.testing.assert_allclose(
        SUNRGBD(root).depth_code(rotated(near)[None], Path("d"))[0][0], near / 1000, atol=1e-6
    )
    with pytest.raises(DataError, match=r"d\.png: 8 bits; .* 16 rotated bits"):
        SUNRGBD(root).depth_code(stored.astype(np.uint8), Path("d.png"))


def test_depth_as_measured_or_in_painted(root):
    measured = SUNRGBD(root, depth="raw").frames("test", ALL).load(0)
    assert not measured["depth_valid"].any()
    assert SUNRGBD(root, depth="filled").frames("test", ALL).load(0)["depth_valid"].all()
    with pytest.raises(ConfigError, match=r"data\.source\.depth is 'bfx'; it must be 'filled' or 'raw'"):
        SUNRGBD(root, depth="bfx")


def test_frames_of_nyuv2_can_be_left_out_of_every_split(root):
    source = SUNRGBD(root, exclude_nyu=True)
    assert names(source.frames("train", ALL)) == dashed([TRAIN[0], TRAIN[2]])
    assert names(source.frames("test", ALL)) == dashed([TEST[0]])
    assert any("kv1/NYUdata" in line for line in source.remarks())


def test_a_missing_frame_is_an_error_unless_the_copy_is_said_to_be_partial(root):
    (root / TRAIN[1]).rename(root / "elsewhere")
    with pytest.raises(DataError, match=rf"{TRAIN[1]}: no such folder; 1 of the 3 frames .*partial=true"):
        SUNRGBD(root).frames("train", ALL)
    source = SUNRGBD(root, partial=True)
    assert names(source.frames("train", ALL)) == dashed([TRAIN[0], TRAIN[2]])
    assert any(line.startswith("sunrgbd: 2 of 3 train frames are there") for line in source.remarks())
    write_split(root, test=["kv1/b3dodata/img_0063"])
    with pytest.raises(DataError, match="no frame of the test split lies there"):
        source.frames("test", ALL)


def test_a_frame_without_its_files_is_an_error_even_in_a_partial_copy(root):
    next((root / TRAIN[0] / "depth_bfx").iterdir()).unlink()
    source = SUNRGBD(root, partial=True)
    with pytest.raises(DataError, match=r"depth_bfx/.*\.png: no such file"):
        source.frames("train", ALL)
    assert len(source.frames("train", frozenset({"image", "label"}))) == 3
    (root / "labels37" / f"{TEST[0]}.png").unlink()
    with pytest.raises(DataError, match=r"labels37/kv2/kinect2data/000009_rgbf-resize\.png: no such file"):
        source.frames("test", ALL)
    save(root / TEST[1] / "image" / "second.jpg", np.zeros((3, 3, 3), np.uint8))
    (root / TEST[0] / "image" / "._rgb0.jpg").write_text("left by another system")
    with pytest.raises(DataError, match=r"NYU0001/image: holds 2 pictures, rgb3\.jpg and others"):
        source.files("test")


def test_a_frame_without_depth_may_be_kept_without_a_reading(root):
    (root / META[0] / "depth_bfx" / "d0.png").unlink()
    source = SUNRGBD(str(root), depth_missing="ignore")
    found = {split: source.frames(split, ALL) for split in ("train", "test")}
    (one,) = [frames.load(i) for frames in found.values() for i in frames.without_depth()]
    assert one["name"] == dashed([META[0]])[0]
    assert not one["depth_valid"].any()
    assert one["depth"].shape == one["label"].shape


def test_without_labels_it_says_who_writes_them_and_loads_the_rest(root):
    (root / "labels37").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"labels37: no such folder; 'hardpix data prepare sunrgbd'"):
        SUNRGBD(root).frames("train", ALL)
    assert set(SUNRGBD(root).frames("train", DEPTH).load(0)) == {"image", "name", "depth", "depth_valid"}


def test_a_label_value_above_the_classes(root):
    save(root / "labels37" / f"{TEST[0]}.png", np.full(SIZES[TEST[0]], 38, np.uint8))
    with pytest.raises(DataError, match=r"value 38 .* is no class; allowed are 0\.\.37"):
        SUNRGBD(root).frames("test", ALL).load(0)


def test_strays_belong_to_no_split(root):
    source = SUNRGBD(root)
    assert source.strays("train") == source.strays("test") == []
    stray = save(root / "labels37" / "kv1" / "NYUdata" / "NYU9999.png", np.zeros((3, 3), np.uint8))
    assert source.strays("train") == source.strays("test") == [stray]


def test_lists_that_are_missing_or_name_no_frame(root):
    write_split(root, train=["/"])
    with pytest.raises(DataError, match=r"allsplit\.mat: '.*' is no frame; it must be a path with SUNRGBD/"):
        SUNRGBD(root).files("train")
    (root / "SUNRGBDtoolbox" / "traintestSUNRGBD" / "allsplit.mat").unlink()
    with pytest.raises(DataError, match=r"allsplit\.mat: no such file; .* comes with SUNRGBDtoolbox"):
        SUNRGBD(root).files("train")


def test_classes():
    classes = SUNRGBD.info.classes
    assert len(classes) == len(set(classes)) == len(set(SUNRGBD.info.palette)) == 37
    assert (classes[0], classes[23], classes[24], classes[36]) == ("wall", "fridge", "tv", "bag")


# The recipe


def prepare(published, out, **options):
    work = Work([published], out)
    find_recipe("sunrgbd")(**options).convert(work)
    return work


def test_labels_follow_the_order_of_the_annotations(published, tmp_path):
    out = tmp_path / "out"
    assert prepare(published, out).faults == []
    for number, frame in enumerate(META):
        written = np.asarray(Image.open(out / "labels37" / f"{frame}.png"))
        np.testing.assert_array_equal(written, label_of(number))
        assert written.dtype == np.uint8
    source = SUNRGBD(out)
    assert names(source.frames("train", ALL)) == dashed(TRAIN)
    assert source.strays("train") == []
    for split, frames in {"train": TRAIN, "test": TEST}.items():
        for kind in ("raw", "filled"):
            opened = SUNRGBD(out, depth=kind).frames(split, ALL)
            for index, frame in enumerate(frames):
                loaded = opened.load(index)
                assert loaded["depth_valid"].all() == (kind == "filled")
                assert opened.intrinsics(index)[0, 2] == META.index(frame) + 0.25


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_labels_of_any_number_type(published, tmp_path, dtype):
    path = published / "SUNRGBDtoolbox" / "Metadata" / "SUNRGBD2Dseg.mat"
    write_segmentation(path, [label_of(i) for i in range(len(META))], dtype)
    prepare(published, tmp_path / "out")
    written = np.asarray(Image.open(tmp_path / "out" / "labels37" / f"{META[2]}.png"))
    np.testing.assert_array_equal(written, label_of(2))


def test_the_published_tree_itself_can_be_the_result(published):
    tree = published / "SUNRGBD"
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*") if path.is_file()}
    assert prepare(published, tree).faults == []
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(SUNRGBD(tree).frames("train", ALL)) == 3


def test_a_second_run_writes_only_what_is_missing(published, tmp_path):
    out = tmp_path / "out"
    prepare(published, out)
    kept, lost = (out / "labels37" / f"{frame}.png" for frame in META[:2])
    time = kept.stat().st_mtime_ns
    lost.unlink()
    prepare(published, out)
    assert kept.stat().st_mtime_ns == time
    assert lost.is_file()
    assert not list(out.rglob("*.partial*"))


def test_faults_of_single_frames_stop_no_other(published, tmp_path):
    labels = [label_of(i) for i in range(len(META))]
    labels[0][2, 3], labels[1] = 38, labels[1].T
    labels[2][1, 1], labels[3][1, 1] = 1.5, 256
    write_segmentation(published / "SUNRGBDtoolbox" / "Metadata" / "SUNRGBD2Dseg.mat", labels)
    faults = prepare(published, tmp_path / "out").faults
    assert len(faults) == 4
    assert "000009_rgbf-resize: value 38.0 is no class; allowed are 0..37" in faults[0]
    assert "label 2 measures 7x8 pixels but" in faults[1]
    assert "value 1.5" in faults[2]
    assert "value 256.0" in faults[3]
    assert [p.stem for p in (tmp_path / "out" / "labels37").rglob("*.png")] == [PurePosixPath(META[4]).name]


def test_frames_that_are_missing_or_unknown_are_said(published, tmp_path):
    (published / "SUNRGBD" / META[1]).rename(published / "elsewhere")
    next((published / "SUNRGBD" / META[0] / "depth").iterdir()).unlink()
    write_split(published, test=[*TEST, "kv1/NYUdata/NYU0777"])
    faults = " ".join(prepare(published, tmp_path / "out").faults)
    assert "1 of 5 frames have no folder" in faults
    assert "1 frames have no entry in SUNRGBDMeta.mat, kv1/NYUdata/NYU0777 the first" in faults
    assert "depth/d0.png: no such file" in faults
    assert not (tmp_path / "out" / "labels37" / f"{META[1]}.png").exists()


def test_a_partial_copy_is_prepared_as_far_as_it_goes(published, tmp_path):
    (published / "SUNRGBD" / META[1]).rename(published / "elsewhere")
    assert prepare(published, tmp_path / "out", partial=True).faults == []
    assert names(SUNRGBD(tmp_path / "out", partial=True).frames("train", ALL)) == dashed([TRAIN[0], TRAIN[1]])
    use = {"data": "sunrgbd", "data.source.root": "out"}
    assert SUNRGBDRecipe(partial=True).use(Path("out")) == {**use, "data.source.partial": "true"}
    assert SUNRGBDRecipe().use(Path("out")) == use


def test_annotations_that_do_not_belong_together(published, tmp_path):
    write_meta(published / "SUNRGBDtoolbox" / "Metadata" / "SUNRGBDMeta.mat", META[:4])
    with pytest.raises(DataError, match=r"2Dseg\.mat holds 5 labels but .*Meta\.mat 4 frames"):
        prepare(published, tmp_path / "out")
    savemat(published / "SUNRGBDtoolbox" / "Metadata" / "SUNRGBDMeta.mat", {"SUNRGBDMeta": {"rgbname": "x"}})
    with pytest.raises(DataError, match=r"SUNRGBDMeta\.mat: no field depthname"):
        prepare(published, tmp_path / "out")


def test_what_is_missing_names_its_archive(published, tmp_path):
    (published / "SUNRGBD").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"there is no kv1; it comes from SUNRGBD\.zip"):
        prepare(published, tmp_path / "out")
    (published / "SUNRGBDtoolbox" / "Metadata" / "SUNRGBD2Dseg.mat").unlink()
    with pytest.raises(DataError, match=r"SUNRGBD2Dseg\.mat; it comes from SUNRGBDtoolbox\.zip"):
        prepare(published, tmp_path / "out")


def test_labels_can_be_written_by_other_processes(tmp_path):
    pickle.loads(pickle.dumps(partial(write_label, tmp_path, tmp_path, tmp_path)))


def test_only_what_is_read_is_unpacked():
    wanted = SUNRGBDRecipe().wanted
    frame = "SUNRGBD/kv2/kinect2data/000002_x-resize"
    for member in ("image/1.jpg", "depth/1.png", "depth_bfx/1.png", "intrinsics.txt"):
        assert wanted(f"{frame}/{member}")
    for member in (
        "fullres/1.jpg",
        "fullres/intrinsics.txt",
        "seg.mat",
        "annotation2Dfinal/index.json",
        "scene.txt",
    ):
        assert not wanted(f"{frame}/{member}")
    assert wanted("SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat")
    assert wanted("SUNRGBDtoolbox/Metadata/SUNRGBDMeta.mat")
    assert wanted("SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat")
    assert not wanted("SUNRGBDtoolbox/Metadata/groundtruth.mat")
    assert not wanted("__MACOSX/SUNRGBD/kv1/a/image/._1.jpg")


# Real frames


@pytest.mark.real
def test_real_lists_and_frames(real_data):
    root = real_data / "SUNRGBD"
    with pytest.raises(DataError, match="of the 5285 frames of the train split are missing"):
        SUNRGBD(root).files("train")
    source = SUNRGBD(root, partial=True)
    assert source.remarks()[1:] == (
        "sunrgbd: 1 of 5285 train frames are there, the others are left out",
        "sunrgbd: 12 of 5050 test frames are there, the others are left out",
    )
    assert names(source.frames("train", DEPTH)) == ["kv1__b3dodata__img_0063"]
    without = SUNRGBD(root, partial=True, exclude_nyu=True)
    assert "of 4490 train" in without.remarks()[2]
    assert "of 4396 test" in without.remarks()[3]
    assert tuple((root / "classes37.txt").read_text().replace("_", " ").split("\n"))[:37] == tuple(
        f"{i} {name}" for i, name in enumerate(source.info.classes, 1)
    )


@pytest.mark.real
def test_real_depth_lies_on_its_picture(real_data):
    """In-painted depth is the measured one where there is one, and its edges are edges of the picture."""
    root = real_data / "SUNRGBD"
    raw, filled = (
        SUNRGBD(root, partial=True, depth=kind).frames("test", DEPTH) for kind in ("raw", "filled")
    )
    for index in (2, 8, 11):
        frame, whole = raw.load(index), filled.load(index)
        valid, metres = frame["depth_valid"], whole["depth"]
        assert whole["depth_valid"].all()
        assert 0.5 < valid.float().mean() < 0.95
        assert (frame["depth"] - metres)[valid].abs().median() < 0.01
        assert 1 < metres.median() < 5
        grey = frame["image"].float().mean(0)
        edge = (metres.diff(dim=1).abs() > 0.2)[:, 1:]
        contrast = grey[:, 2:] - grey[:, :-2]
        assert contrast.abs()[edge].mean() > 1.5 * contrast.abs()[edge.flip(1)].mean()


@pytest.mark.real
def test_real_cameras(real_data):
    frames = SUNRGBD(real_data / "SUNRGBD", partial=True).frames("train", DEPTH)
    np.testing.assert_allclose(
        frames.intrinsics(0)[[0, 1, 0, 1], [0, 1, 2, 2]], [520.532, 520.7444, 277.9258, 215.115]
    )


def test_a_misspelt_split_is_not_the_test_frames(root):
    with pytest.raises(ConfigError, match="sunrgbd has no split 'trian'; there are train, val, test"):
        SUNRGBD(str(root), partial=True).frames("trian", frozenset({"image"}))
