"""What macOS and Windows leave in folders (``._NAME``, ``.DS_Store``, ``Thumbs.db``) is no frame, in any layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardpix.config.compose import compose_group
from hardpix.data import ADE20K, GTAV, ISAID, CamVid, Cityscapes, NYUv2, RGBDFolder, TotalText
from hardpix.data.prepare import find_recipe
from hardpix.data.prepare.recipe import Work
from tests.listed import listed

CITY = "gtFine/train/ulm/ulm_0_1_gtFine_labelIds.png"
# Reader, files of two frames or one, and whether the recipe takes this tree as the archives unpack to it.
LAYOUTS = {
    "cityscapes": (Cityscapes, ["leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png", CITY], True),
    "gtav": (GTAV, ["images/00001.png", "labels/00001.png"], True),
    "ade20k": (ADE20K, ["images/training/a.jpg", "annotations/training/a.png", "images/validation/b.jpg",
                        "annotations/validation/b.png"], True),
    "isaid": (ISAID, ["train/images/P1.png", "train/images/P1_instance_color_RGB.png"], False),
    "total_text": (TotalText, [f"{kind}/{split}/img1.jpg" for split in ("Train", "Test")
                               for kind in ("Images", "groundtruth_pixel")], True),
    "camvid": (CamVid, ["train/a.png", "trainannot/a.png"], True),
    "nyuv2": (lambda root: NYUv2(root, void_40_in_train="class"),
              [f"train/{kind}/0001.png" for kind in ("rgb", "labels_40", "depth")], False),
    "rgbd": (lambda root: RGBDFolder(root, layout="open3d"), ["color/1.jpg", "depth/1.png"], False),
}  # fmt: skip

OTHERS = {
    *(
        "cifar100",
        "hn",
        "huggingface",
        "listed",
        "packed",
        "synthetic",
    ),  # no folder is searched: a list has the names
    *("coco", "folder"),  # in test_listing.py
    *("nyuv2_raw", "sunrgbd"),  # camera frames as the recipe has written them
}


def test_every_data_set_is_here():
    def readers(names):
        return {compose_group("data", name).data.source["_target_"] for name in names}

    assert readers(LAYOUTS) == readers(listed("data", without=OTHERS))


def litter(root):
    for path in [p for p in root.rglob("*") if p.is_file()]:
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        (path.parent / ".DS_Store").write_bytes(b"\0")
        (path.parent / "Thumbs.db").write_bytes(b"\0")


def facts(source):
    frames = source.frames("train", frozenset({"image", *source.info.provides} - {"depth", "depth_valid"}))
    return [frames.name(i) for i in range(len(frames))], source.strays("train")


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_they_are_no_frames(name, tmp_path):
    make, files, recipe = LAYOUTS[name]
    for file in files:
        path = tmp_path / "in" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 6, 3) if "mages" in file else (4, 6), np.uint8)).save(path)
    before = facts(make(tmp_path / "in"))
    assert len(before[0]) == 1
    assert before[1] == []
    litter(tmp_path / "in")
    assert facts(make(tmp_path / "in")) == before
    if recipe:
        work = Work([tmp_path / "in"], tmp_path / "out")
        find_recipe(name)().convert(work)
        assert work.faults == []
        out = tmp_path / "out"
        assert sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file()) == sorted(map(Path, files))
