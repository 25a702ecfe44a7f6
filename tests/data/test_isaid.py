"""iSAID: both layouts, the patches its recipe cuts, and that nothing is lost on the way."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardpix.data import ISAID
from hardpix.data.patches import read_sizes, stitch_files
from hardpix.data.prepare import find_recipe
from hardpix.data.prepare.photos import ISAIDRecipe, find_scenes
from hardpix.data.prepare.recipe import Work
from hardpix.data.sets.isaid import CLASSES, PALETTE
from hardpix.types import ConfigError, DataError

REAL = Path(os.environ.get("HARDPIX_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
real = [
    pytest.mark.real,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"no real frames in {REAL}; set HARDPIX_REAL_DATA"),
]
BOTH = frozenset({"image", "label"})


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)
    return path


def picture(size, seed):
    return np.random.default_rng(seed).integers(1, 255, (*size, 3), dtype=np.uint8)


def classes(size, seed):
    return np.random.default_rng(seed).integers(0, 16, size, dtype=np.uint8)


def coloured(label):
    return np.array(PALETTE, dtype=np.uint8)[label]


SIZES = {"train": {"P0000": (13, 17), "P0001": (8, 8)}, "val": {"P0003": (5, 12)}, "test": {"P0006": (9, 8)}}


@pytest.fixture
def released(tmp_path):
    """The release: masks beside the images in train, in the folder of the semantic masks in val."""
    root = tmp_path / "iSAID"
    for split, frames in SIZES.items():
        for seed, (name, size) in enumerate(frames.items()):
            save(root / split / "images" / f"{name}.png", picture(size, seed))
            if split == "test":
                continue
            masks = root / split / ("images" if split == "train" else "Semantic_masks/images")
            save(masks / f"{name}_instance_color_RGB.png", coloured(classes(size, seed)))
            save(root / split / "images" / f"{name}_instance_id_RGB.png", picture(size, 9))
    return root


def prepared(released, out, **options):
    work = Work([released], out)
    ISAIDRecipe(**{"patch": 8, "overlap": 3} | options).convert(work)
    return work


def names(frames):
    return [frames.name(i) for i in range(len(frames))]


def test_colours_of_released_masks_are_classes(released):
    source = ISAID(released)
    train, val = source.frames("train", BOTH), source.frames("val", BOTH)
    assert (names(train), names(val)) == (["P0000", "P0001"], ["P0003"])
    np.testing.assert_array_equal(train.load(0)["label"].numpy(), classes((13, 17), 0))
    np.testing.assert_array_equal(train.load(1)["label"].numpy(), classes((8, 8), 1))
    np.testing.assert_array_equal(val.load(0)["label"].numpy(), classes((5, 12), 0))
    np.testing.assert_array_equal(val.load(0)["image"].permute(1, 2, 0).numpy(), picture((5, 12), 0))


def test_the_classes():
    assert len(CLASSES) == len(set(PALETTE)) == 16
    info = ISAID("x").info
    assert (info.classes[0], info.classes[8], info.classes[9], info.ignore_index) == (
        "background", "Large_Vehicle", "Small_Vehicle", 255,
    )  # fmt: skip
    assert (PALETTE[8], PALETTE[9], PALETTE[15]) == ((0, 127, 127), (0, 0, 127), (0, 100, 155))


def test_test_has_no_labels(released):
    frames = ISAID(released).frames("test", frozenset({"image"}))
    assert names(frames) == ["P0006"]
    assert "label" not in frames.load(0)
    with pytest.raises(DataError, match="can be predicted on, not trained on or scored"):
        ISAID(released).frames("test", BOTH)


def test_a_colour_of_no_class_and_a_missing_mask(released):
    mask = released / "train/images/P0001_instance_color_RGB.png"
    wrong = coloured(classes((8, 8), 1))
    wrong[0, 0] = 1, 2, 3
    save(mask, wrong)
    with pytest.raises(DataError, match=r"P0001_instance_color_RGB\.png: colour \(1, 2, 3\)"):
        ISAID(released).frames("train", BOTH).load(1)
    mask.unlink()
    with pytest.raises(DataError, match=r"P0001_instance_color_RGB\.png: no such file"):
        ISAID(released).frames("train", BOTH)


def test_masks_without_images(released):
    for path in (released / "train/images").glob("P000?.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"holds masks but no images; .* DOTA"):
        ISAID(released).files("train")


def test_strays(released, tmp_path):
    save(released / "train/images/P0009_instance_color_RGB.png", np.zeros((4, 4, 3)))
    assert [path.name for path in ISAID(released).strays("train")] == ["P0009_instance_color_RGB.png"]
    assert ISAID(released).strays("val") == ISAID(released).strays("test") == []
    prepared(released, tmp_path / "out")
    save(tmp_path / "out/val/labels/P0009_0_8_0_8.png", np.zeros((8, 8)))
    assert [path.name for path in ISAID(tmp_path / "out").strays("val")] == ["P0009_0_8_0_8.png"]


def test_patches_are_windows_of_image_and_label(released, tmp_path):
    work = prepared(released, tmp_path / "out")
    assert work.faults == []
    frames = ISAID(tmp_path / "out").frames("train", BOTH)
    assert names(frames) == sorted(
        ["P0000_0_8_0_8", "P0000_0_8_5_13", "P0000_0_8_9_17", "P0000_5_13_0_8", "P0000_5_13_5_13",
         "P0000_5_13_9_17", "P0001_0_8_0_8"]
    )  # fmt: skip
    frame = frames.load(names(frames).index("P0000_5_13_9_17"))
    np.testing.assert_array_equal(frame["label"].numpy(), classes((13, 17), 0)[5:13, 9:17])
    np.testing.assert_array_equal(frame["image"].permute(1, 2, 0).numpy(), picture((13, 17), 0)[5:13, 9:17])


def test_small_images_are_padded_with_0_and_void(released, tmp_path):
    prepared(released, tmp_path / "out")
    frames = ISAID(tmp_path / "out").frames("val", BOTH)
    assert names(frames) == ["P0003_0_8_0_8", "P0003_0_8_4_12"]
    frame = frames.load(1)
    assert frame["image"].shape == (3, 8, 8)
    np.testing.assert_array_equal(frame["label"][:5].numpy(), classes((5, 12), 0)[:, 4:12])
    assert (frame["label"][5:] == 255).all()
    assert (frame["image"][:, 5:] == 0).all()
    assert (frame["image"][:, :5] > 0).all()


def test_stitched_patches_are_the_released_labels(released, tmp_path):
    out = tmp_path / "out"
    prepared(released, out)
    for split in ("train", "val"):
        sizes = read_sizes(out / split / "sizes.csv")
        assert sizes == SIZES[split]
        files = sorted((out / split / "labels").iterdir())
        assert stitch_files(files, tmp_path / "whole", overlap=3, sizes=sizes) == []
        for seed, (name, size) in enumerate(SIZES[split].items()):
            whole = np.asarray(Image.open(tmp_path / "whole" / f"{name}.png"))
            np.testing.assert_array_equal(whole, classes(size, seed))


def test_test_images_are_cut_without_labels(released, tmp_path):
    prepared(released, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out/test").iterdir()) == ["images", "sizes.csv"]
    frames = ISAID(tmp_path / "out").frames("test", frozenset({"image"}))
    assert names(frames) == ["P0006_0_8_0_8", "P0006_1_9_0_8"]


def test_preparing_goes_on_where_it_stopped(released, tmp_path):
    out = tmp_path / "out"
    prepared(released, out)
    kept, gone = out / "train/labels/P0000_0_8_0_8.png", out / "train/images/P0000_5_13_9_17.png"
    before, content = kept.stat().st_mtime_ns, gone.read_bytes()
    gone.unlink()
    save(released / "train/images/P0002.png", picture((8, 8), 5))
    save(released / "train/images/P0002_instance_color_RGB.png", coloured(classes((8, 8), 5)))
    assert prepared(released, out).faults == []
    assert kept.stat().st_mtime_ns == before
    assert gone.read_bytes() == content
    with open(out / "train/sizes.csv", newline="") as file:
        assert [row["frame"] for row in csv.DictReader(file)] == ["P0000", "P0001", "P0002"]


def test_bad_files_do_not_stop_the_others(released, tmp_path):
    (released / "train/images/P0000_instance_color_RGB.png").unlink()
    save(released / "val/Semantic_masks/images/P0003_instance_color_RGB.png", coloured(classes((12, 5), 0)))
    (released / "test/images/P0006.png").write_bytes(b"broken")
    faults = prepared(released, tmp_path / "out").faults
    assert len(faults) == 3
    assert "P0000.png: there is no mask P0000_instance_color_RGB.png of it" in faults[0]
    assert "measures 5x12 pixels but" in faults[1]
    assert "P0006.png: not a readable" in faults[2]
    assert names(ISAID(tmp_path / "out").frames("train", BOTH)) == ["P0001_0_8_0_8"]


def test_the_folder_above_tells_the_split(released, tmp_path):
    # As unpacked from archives that are called alike: train/images/part1/images, train/Semantic_masks/images.
    deep = tmp_path / "deep"
    save(deep / "train/images/part1/images/P0000.png", picture((8, 8), 1))
    save(deep / "train/Semantic_masks/images/images/P0000_instance_color_RGB.png", np.zeros((8, 8, 3)))
    save(deep / "val/images/part1/images/P0003.png", picture((8, 8), 1))
    save(deep / "elsewhere/P0007.png", picture((8, 8), 1))
    found = find_scenes([deep])
    assert [scene.image.name for scene in found["train"]] == ["P0000.png"]
    assert found["train"][0].mask == deep / "train/Semantic_masks/images/images/P0000_instance_color_RGB.png"
    assert [scene.image.name for scene in found["val"]] == ["P0003.png"]
    assert found["test"] == []
    assert len(find_scenes([released / "train", released / "val"])["val"]) == 1
    # The nearest one, whatever the folders above are called.
    save(tmp_path / "test" / "val/images/P0003.png", picture((8, 8), 1))
    assert [len(scenes) for scenes in find_scenes([tmp_path / "test"]).values()] == [0, 1, 0]


def test_what_the_recipe_refuses(released, tmp_path):
    with pytest.raises(DataError, match=r"no train image of iSAID; there must be train/images/P0000\.png"):
        prepared(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(ConfigError, match="overlap=8: must be 0 or more and less than the patch"):
        prepared(released, tmp_path / "out", overlap=8)
    with pytest.raises(ConfigError, match="patch=0"):
        prepared(released, tmp_path / "out", patch=0)


def test_the_recipe_is_known():
    recipe = find_recipe("isaid")()
    assert (recipe.patch, recipe.overlap) == (896, 384)
    assert recipe.wanted("images/P0000.png")
    assert recipe.wanted("images/P0000_instance_color_RGB.png")
    assert not recipe.wanted("images/P0000_instance_id_RGB.png")


class TestReal:
    pytestmark = real

    def test_both_layouts_hold_the_same_labels(self, tmp_path):
        released = ISAID(REAL / "iSAID").frames("val", BOTH).load(0)
        assert released["image"].shape == (3, 1023, 1147)
        assert released["label"].unique().tolist() == [0, 2, 8, 9]
        work = Work([REAL / "iSAID"], tmp_path / "out")
        ISAIDRecipe().convert(work)
        assert work.faults == []
        frames = ISAID(tmp_path / "out").frames("val", BOTH)
        assert len(frames) == 4
        last = frames.load(3)
        assert names(frames)[3] == "P0003_127_1023_251_1147"
        assert (last["label"] == released["label"][127:, 251:]).all()
        assert (last["image"] == released["image"][:, 127:, 251:]).all()
        narrow = ISAID(tmp_path / "out").frames("train", BOTH).load(0)["label"]
        assert (narrow[:, 884:] == 255).all()  # P0005 is 884 pixels wide
        assert (narrow[:, :884] != 255).all()

    def test_vehicles_do_not_look_like_background(self):
        # Buses and cars stand out against asphalt: a transposed mask would not tell them apart.
        frame = ISAID(REAL / "iSAID").frames("val", BOTH).load(0)
        image, label = frame["image"].float().mean(0), frame["label"]
        assert image[label == 8].mean() > image[label == 0].mean() + 40
