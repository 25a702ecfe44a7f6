"""``hardpix data check`` and ``hardpix data show`` as a person types them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix.cli import main
from hardpix.draw.pictures import Frame, contact_sheet
from hardpix.train.build import make
from hardpix.train.results import extent, frame_of_batch
from hardpix.types import DatasetInfo

H, W = 12, 16
ROOMS = (
    "data=synthetic", "data.source.height=32", "data.source.width=48", "data.source.train_frames=8",
    "data.source.val_frames=3", "data.source.test_frames=3", "data.train_transform.crop=[40,48]",
    "data.train_transform.ratio=[0.5,1.5]", "data.batch_size=4", "data.num_workers=0",
)  # fmt: skip


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("a", "b", "[c]"):  # a name that rich would take for a style
            save(
                tmp_path / "set" / split / "images" / f"{name}.png", rng.integers(0, 256, (H, W, 3), np.uint8)
            )
            save(tmp_path / "set" / split / "labels" / f"{name}.png", rng.integers(0, 2, (H, W), np.uint8))
    return tmp_path / "set"


def check(root, *arguments):
    given = ["data=folder", f"data.source.root={root}", "data.source.classes=[wall,floor]"]
    return main(["data", "check", *given, *arguments])


def test_a_sound_data_set(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert check(root, "data.source.name=mine", "--workers", "1") == 0
    out = capsys.readouterr().out
    assert "nothing to complain of" in out
    assert "check/mine/check.json and check/mine/contact.png" in out
    report = json.loads((tmp_path / "check/mine/check.json").read_text())
    assert report["schema"] == 1
    assert report["findings"] == []
    assert report["splits"]["train"]["frames"] == 3
    classes = report["splits"]["val"]["label"]["classes"]
    assert sum(c["pixels"] for c in classes) == 3 * H * W
    assert sorted(p.name for p in (tmp_path / "check/mine").iterdir()) == ["check.json", "contact.png"]


def test_errors_are_told_and_counted_by_the_exit_status(root, tmp_path, capsys):
    (root / "train/images/[c].png").write_bytes(b"")
    save(root / "val/labels/a.png", np.full((H, W), 9, np.uint8))
    out = tmp_path / "out"
    assert check(root, "--out", str(out)) == 1
    said = capsys.readouterr().out
    assert "[c].png: not a readable" in said
    assert "value 9 (192 pixels) is no class" in said
    assert "2 errors, 0 warnings, 0 notes" in said
    report = json.loads((out / "check.json").read_text())
    assert {(f["code"], f["split"], f["count"]) for f in report["findings"]} == {
        ("image-unreadable", "train", 1),
        ("label-values", "val", 1),
    }
    assert all(f["what"] and f["what_to_do"] for f in report["findings"])
    assert report["findings"][0]["frames"][0]["name"] == "[c]"


def test_a_warning_is_no_error(root, tmp_path):
    save(root / "train/images/a.png", np.full((H, W, 3), 77, np.uint8))
    assert check(root, "--out", str(tmp_path / "out"), "--splits", "train") == 0
    report = json.loads((tmp_path / "out/check.json").read_text())
    assert [f["code"] for f in report["findings"]] == ["image-constant"]
    assert list(report["splits"]) == ["train"]


def test_nothing_to_draw_leaves_no_picture_of_a_former_look(root, tmp_path):
    out = tmp_path / "out"
    assert check(root, "--out", str(out), "--splits", "train") == 0
    assert (out / "contact.png").is_file()
    for path in (root / "train/images").iterdir():
        path.write_bytes(b"")
    assert check(root, "--out", str(out), "--splits", "train") == 1
    assert not (out / "contact.png").exists()


def test_the_splits_are_those_of_the_configuration(root, tmp_path):
    assert check(root, "data.test_split=val", "data.train_split=test", "--out", str(tmp_path / "out")) == 0
    report = json.loads((tmp_path / "out/check.json").read_text())
    assert list(report["splits"]) == ["test", "val"]


def test_a_root_that_is_not_there_is_findings(tmp_path, capsys):
    assert check(tmp_path / "no", "--out", str(tmp_path / "out")) == 1
    assert capsys.readouterr().out.count("split-closed") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data", "check", "data.num_workers=0"], "name the data set"),
        (["data", "check", "data=camvid", "--limit", "0"], "--limit 0: must be at least 1"),
        (["data", "check", "data=camvid", "data.sorce=1"], "did you mean"),
        (["data", "show", "data=camvid", "--out", "a.jpg"], "ends in .png"),
        (["data", "show", "data=camvid", "--out", "a.png", "--count", "0"], "--count"),
        (["data", "show", "data.seed=1", "--out", "a.png"], "name the data set"),
        (["data", "show", "data=camvid", "data.source.root=/nowhere", "--out", "a.png"], "no such folder"),
    ],
)
def test_wrong_requests_get_one_sentence(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_place_that_cannot_be_written(root, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert check(root, "--out", str(tmp_path / "file" / "out")) == 2
    assert "cannot be made" in capsys.readouterr().err


# show


@pytest.mark.parametrize("epoch", [0, 2])
def test_what_is_shown_is_what_is_trained_on(epoch, tiny):
    """Frame by frame, pixel by pixel, key by key: the batches of the training loader of that seed and epoch."""
    cfg = tiny(*ROOMS, "data.seed=5")
    data, shown = make(cfg.data), make(cfg.data)
    keys = frozenset({"image", "label", "depth", "hardness"})
    data.use(keys)
    shown.use(keys)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    frames = list(shown.training_frames(epoch, 8))
    assert len(frames) == 8
    trained = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    assert [n for batch in trained for n in batch["name"]] == [f["name"][0] for f in frames]
    for key in ("image", "label", "depth", "depth_valid", "hardness"):
        assert torch.equal(torch.cat([b[key] for b in trained]), torch.cat([f[key] for f in frames])), key
    assert len({f["name"][0] for f in shown.training_frames(epoch, 3)}) == 3


def test_the_method_that_needs_less_sees_the_same_pixels(tiny):
    cfg = tiny(*ROOMS)
    data, shown = make(cfg.data), make(cfg.data)
    shown.use(frozenset({"depth", "hardness"}))
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    frames = list(shown.training_frames(0, 4))
    assert torch.equal(batch["image"], torch.cat([f["image"] for f in frames]))


def test_a_frame_of_the_sheet_has_the_augmented_pixels(tiny):
    data = make(tiny(*ROOMS).data)
    data.use(frozenset({"depth", "hardness"}))
    raw = data.train_dataloader()
    batch = next(iter(raw))  # not yet normalised
    for place, finished in enumerate(data.training_frames(0, 4)):
        frame = frame_of_batch(finished, 0, data.info)
        height, width = (int(side) for side in batch["extent"][place])
        assert frame.extent == (height, width)
        expected = batch["image"][place].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(frame.image[:height, :width], expected[:height, :width])
        np.testing.assert_array_equal(frame.label, batch["label"][place].numpy())
        valid = batch["depth_valid"][place].numpy()
        depth = frame.maps["depth"][0]
        np.testing.assert_array_equal(np.isfinite(depth), valid)
        np.testing.assert_array_equal(depth[valid], batch["depth"][place].numpy()[valid])
        np.testing.assert_array_equal(frame.maps["hardness"][0], batch["hardness"][place].numpy())


def test_extent_is_what_is_not_padding():
    image = torch.ones(3, 6, 8)
    image[:, 4:] = 0
    image[:, :, 7:] = 0
    image[0] = 0  # one channel may be 0 anywhere
    assert extent(image) == (4, 7)
    assert extent(torch.zeros(3, 2, 2)) == (0, 0)


@pytest.mark.parametrize("options", [["--seed", "1"], ["--epoch", "1"], ["--split", "val"]])
def test_show_writes_a_picture_that_depends_on_its_options(options, tmp_path):
    first, again, other = (tmp_path / f"deep/{name}.png" for name in "abc")
    for path, given in ((first, []), (again, []), (other, options)):
        assert main(["data", "show", *ROOMS, "--count", "3", "--out", str(path), *given]) == 0
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    assert len(list((tmp_path / "deep").iterdir())) == 3


# The sheet


INFO = DatasetInfo("x", ("red", "green"), ((200, 0, 0), (0, 200, 0)))


def test_a_sheet_of_frames_of_any_shape():
    rng = np.random.default_rng(0)
    frames = [
        Frame("a" * 200, rng.integers(0, 256, (h, w, 3), np.uint8), rng.integers(0, 2, (h, w)))
        for h, w in ((5, 400), (700, 9), (1, 1), (240, 240))
    ]
    frames[0].maps = {"depth": (np.full((5, 400), np.nan), "m")}
    sheet = contact_sheet({"train": frames, "val": []}, INFO)
    assert sheet.width > 4 * 240
    assert contact_sheet({}, INFO).width > 0


def test_a_sheet_shows_pixels_labels_and_padding_where_they_are():
    """A 240-pixel frame is drawn as it is: the image, below it the label over it; checks where it is padded."""
    image = np.full((240, 240, 3), 100, np.uint8)
    label = np.zeros((240, 240), np.uint8)
    label[:, 120:] = 1
    label[:60] = 255
    sheet = np.asarray(contact_sheet({"s": [Frame("n", image, label, extent=(200, 240))]}, INFO))
    top = next(y for y in range(len(sheet)) if (sheet[y, :240] == 100).all())
    assert (sheet[top : top + 200, :240] == 100).all()
    assert set(np.unique(sheet[top + 200 : top + 240, :240])) == {190, 225}
    second = top + 240 + 4
    assert (sheet[second : second + 60, :240] == 100).all()
    np.testing.assert_array_equal(sheet[second + 60, 0], [155, 45, 45])
    np.testing.assert_array_equal(sheet[second + 199, 239], [45, 155, 45])
    assert set(np.unique(sheet[second + 200 : second + 240, :240])) == {190, 225}


def test_a_folder_that_cannot_be_written_is_told_before_the_look(root, monkeypatch, tmp_path, capsys):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hardpix.train.results.TemporaryFile", refuse)
    monkeypatch.setattr("hardpix.data.check.check", lambda *given, **options: pytest.fail("looked"))
    assert check(root, "--out", str(tmp_path / "out")) == 2
    assert "out: not writable (Permission denied); name another folder" in capsys.readouterr().err
