"""What lies in a folder of images: read, counted, or refused; pairs by name in whatever form it is written."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from hardpix.data import (
    ADE20K,
    GTAV,
    ISAID,
    CamVid,
    Cityscapes,
    Coco,
    Folder,
    Listed,
    NYUv2,
    RGBDFolder,
    TotalText,
)
from hardpix.data.check import check
from hardpix.data.sampling import listed
from hardpix.types import DataError

BOTH = frozenset({"image", "label"})
IMAGE = frozenset({"image"})
NFC, NFD = (unicodedata.normalize(form, "Größe") for form in ("NFC", "NFD"))


def save(path, channels=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 6, channels)[: 3 if channels else 2], np.uint8)).save(path)


def own(root, **more):
    return Folder(str(root), classes=["a", "b"], **more)


def coco(root):
    return Coco(str(root), background="background")


def write_coco(root, names, split="train", annotations=()):
    content = {
        "images": [{"id": i, "file_name": name, "height": 4, "width": 6} for i, name in enumerate(names)],
        "annotations": list(annotations),
        "categories": [{"id": 1, "name": "a"}],
    }
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))


# The source, its files of one frame of train, and the folder of its images.
SOURCES = {
    "folder": (own, ["train/images/1.png", "train/labels/1.png"], "train/images"),
    "camvid": (CamVid, ["train/1.png", "trainannot/1.png"], "train"),
    "cityscapes": (
        Cityscapes,
        ["leftImg8bit/train/z/1_leftImg8bit.png", "gtFine/train/z/1_gtFine_labelIds.png"],
        "leftImg8bit/train/z",
    ),
    "ade20k": (ADE20K, ["images/training/1.jpg", "annotations/training/1.png"], "images/training"),
    "gtav": (GTAV, ["images/00001.png", "labels/00001.png"], "images"),
    "isaid": (ISAID, ["train/images/1.png", "train/images/1_instance_color_RGB.png"], "train/images"),
    "nyuv2": (
        lambda root: NYUv2(root, void_40_in_train="ignore"),
        ["train/rgb/0001.jpg", "train/labels_40/0001.png", "train/depth/0001.png"],
        "train/rgb",
    ),
    "total_text": (
        lambda root: TotalText(root, truth="region"),
        ["Images/Train/img1.jpg", "groundtruth_textregion/Text_Region_Mask/Train/img1.png"],
        "Images/Train",
    ),
    "open3d": (
        lambda root: RGBDFolder(root, layout="open3d"),
        ["color/1.jpg", "depth/1.png"],
        "color",
    ),
    "coco": (coco, ["train/1.jpg"], "train"),
}


def laid_out(name, root):
    make, files, folder = SOURCES[name]
    for file in files:
        save(root / file, 3 if root / file == root / files[0] or "color_RGB" in file else 0)
    if name == "coco":
        write_coco(root, ["1.jpg"])
    return make(root), root / folder


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_not_read_is_counted(name, tmp_path):
    source, folder = laid_out(name, tmp_path)
    keys = IMAGE | (BOTH & source.info.provides)
    assert len(source.frames("train", keys)) == 1
    assert source.left_out("train") == ()
    for litter in (".DS_Store", "._1.png", "Thumbs.db", "desktop.ini"):
        (folder / litter).write_bytes(b"\0")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX/1.jp2").write_bytes(b"\0")
    assert len(source.frames("train", keys)) == 1
    assert source.left_out("train") == ()
    (folder / "notes.txt").write_text("")
    (folder / "raw").write_text("")
    source.frames("train", keys)
    (line,) = source.left_out("train")
    assert line.startswith("train: 2 files (1 .txt, 1 without an ending, such as notes.txt)")
    assert str(folder) in line


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("ending", ["bmp", "webp", "gif", "JP2", "heic"])
def test_no_picture_is_dropped_silently(name, ending, tmp_path):
    source, folder = laid_out(name, tmp_path)
    (folder / f"2.{ending}").write_bytes(b"\0")
    counted = f"1 file (1 .{ending.lower()}, such as 2.{ending})"
    if name in ("cityscapes", "ade20k", "gtav", "nyuv2", "coco"):  # layouts that say which files are images
        source.frames("train", IMAGE)
        (line,) = source.left_out("train")
        assert counted in line
    else:
        with pytest.raises(DataError, match="convert them to PNG") as error:
            source.frames("train", IMAGE)
        assert counted in str(error.value)


def test_a_suffix_in_capitals_is_read(tmp_path):
    for name in ("1.PNG", "2.Jpg", "3.TIFF"):
        save(tmp_path / "train/images" / name, 3)
        save(tmp_path / "train/labels" / f"{name[0]}.PNG")
    source = own(tmp_path)
    assert [source.frames("train", BOTH).load(i)["label"].shape for i in range(3)] == [(4, 6)] * 3
    assert source.left_out("train") == ()


def test_the_check_of_a_data_set_counts_them_too(tmp_path):
    source, folder = laid_out("folder", tmp_path)
    (folder / "notes.txt").write_text("")
    found = [f for f in check(source, ["train"]).findings if f.code == "left-out"]
    assert [f.level for f in found] == ["warning"]
    assert "1 .txt" in found[0].what
    (folder / "1b.bmp").write_bytes(b"\0")
    (closed,) = (f for f in check(source, ["train"]).findings if f.code == "split-closed")
    assert "1b.bmp" in closed.what


@pytest.mark.parametrize("name", ["folder", "camvid", "isaid", "nyuv2", "total_text", "open3d"])
def test_two_images_of_one_name_are_refused_with_both_named(name, tmp_path):
    source, folder = laid_out(name, tmp_path)
    (first,) = (path for path in folder.iterdir() if "color" not in path.name)
    second = first.with_suffix(".jpg" if first.suffix == ".png" else ".png")
    save(second, 3)
    with pytest.raises(DataError) as error:
        source.frames("train", IMAGE)
    assert first.name in str(error.value)
    assert second.name in str(error.value)


def test_names_that_meet_in_another_way_are_refused(tmp_path):
    for name in ("a/b.png", "a__b.png"):
        save(tmp_path / "train/images" / name, 3)
        save(tmp_path / "train/labels" / name)
    with pytest.raises(DataError, match=r"'a__b' is that of .*a/b\.png too"):
        own(tmp_path).frames("train", BOTH)
    for name in (NFC, NFD):
        save(tmp_path / "val/images" / f"{name}.png", 3)
        save(tmp_path / "val/labels" / f"{name}.png")
    with pytest.raises(DataError, match="have one name in two Unicode forms"):
        own(tmp_path).frames("val", BOTH)


@pytest.mark.parametrize("endings", [("png", "tif"), ("png", "PNG"), ("jpg", "jpeg")])
def test_two_masks_of_one_image_are_refused_with_both_named(endings, tmp_path):
    save(tmp_path / "train/images/1.png", 3)
    for ending in endings:
        save(tmp_path / f"train/labels/1.{ending}")
    with pytest.raises(DataError, match=r"1\.\w+ and 1\.\w+ have one name; take away") as error:
        own(tmp_path).frames("train", BOTH)
    assert all(f"1.{ending}" in str(error.value) for ending in endings)


def test_a_preview_of_a_mask_is_none(tmp_path):
    save(tmp_path / "train/images/1.png", 3)
    save(tmp_path / "train/labels/1.png")
    save(tmp_path / "train/labels/1.jpg")
    assert own(tmp_path).frames("train", BOTH).load(0)["label"].shape == (4, 6)


@pytest.mark.parametrize(("image", "label"), [(NFC, NFD), (NFD, NFC)])
def test_a_mask_is_found_whatever_form_its_name_has(image, label, tmp_path):
    save(tmp_path / f"train/images/{image}/{image}.png", 3)
    save(tmp_path / f"train/labels/{label}/{label}_mask.png")
    save(tmp_path / f"train/depths/{label}/{label}.png")
    source = own(tmp_path, label_suffix="_mask", depths="{split}/depths", depth_scale=1000)
    frames = source.frames("train", BOTH | {"depth", "depth_valid"})
    assert frames.load(0)["depth"].shape == (4, 6)
    assert check(source, ["train"]).findings == [] or all(
        f.code not in ("label-missing", "label-stray") for f in check(source, ["train"]).findings
    )
    save(tmp_path / f"leftImg8bit/train/{image}/{image}_leftImg8bit.png", 3)
    save(tmp_path / f"gtFine/train/{label}/{label}_gtFine_labelIds.png")
    city = Cityscapes(str(tmp_path))
    assert city.frames("train", BOTH).load(0)["label"].shape == (4, 6)
    assert city.strays("train") == []
    save(tmp_path / f"{label}.png")
    (tmp_path / "l.csv").write_text(
        f"image,label,split\ntrain/images/{label}/{image}.png,{image}.png,train\n"
    )
    lists = Listed(str(tmp_path / "l.csv"), classes=["a", "b"])
    assert lists.frames("train", BOTH).load(0)["label"].shape == (4, 6)
    save(tmp_path / f"coco/train/{label}.jpg", 3)
    write_coco(tmp_path / "coco", [f"{image}.jpg"])
    assert coco(tmp_path / "coco").frames("train", BOTH).load(0)["label"].shape == (4, 6)
    (tmp_path / "labeled.txt").write_text(f"{label}\n", encoding="utf-8")
    assert listed(tmp_path / "labeled.txt", ["x", image]) == [1]


def test_forms_that_both_fit_are_refused(tmp_path):
    save(tmp_path / f"train/images/{NFC}.png", 3)
    for name in (NFC, NFD):
        save(tmp_path / f"train/labels/{name}.png")
    with pytest.raises(DataError, match="have one name"):
        own(tmp_path).frames("train", BOTH)


def test_images_and_masks_in_one_folder(tmp_path):
    for name in ("1", "2"):
        save(tmp_path / f"train/{name}.png", 3)
        save(tmp_path / f"train/{name}_mask.png")
    one = {"images": "{split}", "labels": "{split}"}
    frames = own(tmp_path, **one, label_suffix="_mask").frames("train", BOTH)
    assert [frames.name(i) for i in range(len(frames))] == ["1", "2"]
    with pytest.raises(DataError, match=r"data\.source\.label_suffix=_mask"):
        own(tmp_path, **one).frames("train", BOTH)
    save(tmp_path / "val/1.jpg", 3)
    save(tmp_path / "val/1.png")
    assert len(own(tmp_path, **one).frames("val", BOTH)) == 1
    save(tmp_path / "val/2.png")
    with pytest.raises(DataError, match=r"2\.png: would be the image and the label"):
        own(tmp_path, **one).frames("val", BOTH)


def test_truths_of_one_photograph_are_refused_with_both_named(tmp_path):
    source, _ = laid_out("total_text", tmp_path)
    save(tmp_path / "groundtruth_textregion/Text_Region_Mask/Train/gt_img1.png")
    with pytest.raises(DataError, match=r"gt_img1\.png and img1\.png stand for one frame"):
        source.frames("train", BOTH)
