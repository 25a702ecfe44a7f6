"""``hardpix predict --values``: label files for test servers, and runs that go from one data set to another."""

import re
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hardpix import record
from hardpix.cli import main
from hardpix.data import GTAV, Cityscapes
from hardpix.predict import find_images, predict, report_unread, value_table
from hardpix.train.train import train
from hardpix.types import ConfigError, DatasetInfo

NAME = "berlin_000000_000019_leftImg8bit"

# What the Cityscapes server looks for, for the label file of this frame.
SERVER = re.compile(r"berlin_000000_000019.*\.png")


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """A GTAV and a Cityscapes of 32x48 pixels: road below, sky above, and a test image of the server."""
    root = tmp_path_factory.mktemp("streets")
    rng = np.random.default_rng(0)
    label = np.full((32, 48), 23)
    label[16:] = 7
    for number in range(4):
        image = rng.integers(0, 60, (32, 48, 3)) + 180 * (label == 23)[..., None]
        save(root / "gtav/images" / f"{number:05d}.png", image)
        save(root / "gtav/labels" / f"{number:05d}.png", label)
        stem = f"ulm_{number:06d}_000019"
        for split in ("train", "val"):
            save(root / f"cityscapes/leftImg8bit/{split}/ulm/{stem}_leftImg8bit.png", image)
            save(root / f"cityscapes/gtFine/{split}/ulm/{stem}_gtFine_labelIds.png", label)
    save(root / f"cityscapes/leftImg8bit/test/berlin/{NAME}.png", image)
    return root


@pytest.fixture
def gtav_run(tiny, frames, tmp_path):
    """A run on GTAV as its reader has it without an official split."""
    overrides = ["data.val_split=train", "data.test_split=train", "data.train_transform.base_size=null"]
    train(tiny("run=g", "data=gtav", f"data.source.root={frames}/gtav", *overrides))
    return tmp_path / "runs/default/g"


@pytest.mark.slow
def test_the_servers_numbers(gtav_run, frames, tmp_path, capsys):
    images = frames / "cityscapes/leftImg8bit/test"
    for values in ("index", "dataset"):
        given = [str(gtav_run), str(images), "--out", str(tmp_path / values), "--values", values]
        assert main(["predict", *given, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/dataset/label is what the test server of gtav takes" in said
    assert f"{tmp_path}/index/label is" not in said
    files = [sorted((tmp_path / values / "label").iterdir()) for values in ("index", "dataset")]
    assert [[p.name for p in found] for found in files] == [[f"{NAME}.png"]] * 2
    assert SERVER.fullmatch(files[1][0].name)
    index, numbers = (np.array(Image.open(found[0])) for found in files)
    assert numbers.dtype == np.uint8
    assert numbers.shape == index.shape == (32, 48)
    ids = {0: 7, 1: 8, 2: 11, 3: 12, 4: 13, 5: 17, 6: 19, 7: 20, 8: 21, 9: 22, 10: 23, 11: 24, 12: 25, 13: 26,
           14: 27, 15: 28, 16: 31, 17: 32, 18: 33}  # fmt: skip
    np.testing.assert_array_equal(numbers, np.vectorize(ids.get)(index))
    # The pictures are of the classes, whatever the numbers.
    pictures = [
        np.array(Image.open(tmp_path / values / f"overlay/{NAME}.png")) for values in ("index", "dataset")
    ]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.slow
def test_another_data_set_of_the_same_classes_names_the_server(gtav_run, frames, tmp_path, capsys):
    given = [str(gtav_run), str(frames / "gtav/images/00000.png"), "--out", str(tmp_path / "out")]
    options = ["--values", "dataset", "--device", "cpu", "data=cityscapes"]
    assert main(["predict", *given, *options]) == 0
    assert "test server of cityscapes" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_on_gtav_is_scored_on_cityscapes(gtav_run, frames, tmp_path):
    out = tmp_path / "scores"
    options = ["data=cityscapes", f"data.source.root={frames}/cityscapes", "data.num_workers=0"]
    assert main(["evaluate", str(gtav_run), *options, "--out", str(out)]) == 0
    found = record.read(out)
    assert found.factors["data.source._target_"] == "hardpix.data.Cityscapes"
    assert "test/miou" in found.metrics
    # The pictures and labels are the ones it was trained on.
    assert found.metrics["test/pixel_acc"] == pytest.approx(record.read(gtav_run).metrics["test/pixel_acc"])


def test_a_data_set_without_numbers_of_its_own(tiny, frames, tmp_path, capsys):
    train(tiny("run=s", "trainer.max_steps=1"))
    image = str(frames / "gtav/images/00000.png")
    given = [
        "predict",
        str(tmp_path / "runs/default/s"),
        image,
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert main([*given, "--values", "dataset"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("hardpix: --values dataset: ")
    assert "has no numbers of its own; use --values index" in said
    assert "cityscapes" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_numbers_above_255_need_16_bits():
    table = value_table({0: 300, 1: 2}, 2)
    assert table.dtype == np.uint16
    assert table[np.array([[1, 0]])].tolist() == [[2, 300]]
    assert value_table({0: 255, 1: 2}, 2).dtype == np.uint8
    for source in (Cityscapes("x"), GTAV("x")):
        assert value_table(source.submission_values(), 19)[[0, 10, 18]].tolist() == [7, 23, 33]


def test_what_lies_among_the_images_is_counted_and_pictures_are_faults(tmp_path, capsys):
    for name in ("a.png", "b.PNG", "sub/c.png"):
        save(tmp_path / name, np.zeros((4, 6, 3)))
    for name in ("d.bmp", "notes.txt", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"\0")
    paths, unread = find_images([tmp_path])
    assert [path.name for path in paths] == ["a.png", "b.PNG", "c.png"]
    faults = report_unread(unread)
    assert "2 files (1 .bmp, 1 .txt, such as d.bmp) in the folders are not read" in capsys.readouterr().out
    assert faults == [f"{tmp_path}/d.bmp: not a PNG, JPEG or TIFF; convert it to PNG"]


def test_names_that_differ_in_their_unicode_form_alone_would_write_one_output(tmp_path):
    for form in ("NFC", "NFD"):
        save(tmp_path / form / f"{unicodedata.normalize(form, 'Größe')}.png", np.zeros((4, 6, 3)))
    with pytest.raises(ConfigError, match="would write the same output"):
        find_images([tmp_path])


@pytest.mark.parametrize("kind", ["label", "overlay", "hardness"])
def test_no_result_replaces_an_image(kind, tmp_path):
    path = tmp_path / kind / "a.png"
    save(path, np.zeros((4, 6, 3)))
    before = path.read_bytes()

    class Method:
        def to(self, device):
            return self

        def eval(self):
            return self

        def predict_logits(self, image):
            return image[:, :2]

        def enlarge(self, logits, shape):
            return logits

        def maps(self, batch):
            return {"hardness": batch["image"][:, 0]}

    info = DatasetInfo("x", ("a", "b"), ((0, 0, 0), (1, 1, 1)))
    data = SimpleNamespace(info=info, source=SimpleNamespace(image_range=None))
    with pytest.raises(ConfigError, match=r"a\.png is one of the images; name another folder"):
        predict(Method(), data, [path], tmp_path, device="cpu")
    assert path.read_bytes() == before
    predict(Method(), data, [path], tmp_path / "out", device="cpu")
    assert (tmp_path / "out" / kind / "a.png").is_file()
