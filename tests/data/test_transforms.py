"""The training pipeline, step by step, and what padding and zooming do to each kind of tensor."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from hardpix.data import DepthMap, Photometric, TestTransform, TrainTransform
from hardpix.data.augment import Window
from hardpix.data.sampling import generator
from hardpix.data.transforms import REDRAWS, is_varied
from hardpix.ops.window import fitted_size
from hardpix.types import ConfigError

IGNORE = 255


def sample_of(label):
    """A frame whose picture, depth and hardness all carry the label, so that they can be compared."""
    label = torch.as_tensor(label, dtype=torch.uint8)
    return {
        "image": label.repeat(3, 1, 1),
        "label": label,
        "depth": label.float() / 10 + 1,
        "depth_valid": label % 2 == 0,
        "hardness": label.float() / 255,
        "name": "frame",
    }


def train_transform(**changes):
    settings = {
        "crop": (20, 30), "base_size": None, "ratio": (0.5, 2.0), "cat_max_ratio": None, "hflip": 0.5,
        "photometric": None, "scale_with_zoom": False,
    }  # fmt: skip
    return TrainTransform(**{**settings, **changes})


@pytest.fixture
def blocks():
    """A coarse pattern of 24 values: bilinear and nearest agree inside a block."""
    pattern = np.arange(24, dtype=np.uint8).reshape(4, 6) * 8
    return sample_of(pattern.repeat(10, axis=0).repeat(10, axis=1))


def test_all_tensors_see_the_same_window_and_flip(blocks):
    for index in range(40):
        out = train_transform()(blocks, generator(3, 0, index), IGNORE)
        height, width = out.extent
        label = out.tensors["label"][:height, :width]
        torch.testing.assert_close(out.tensors["depth"][:height, :width], label.float() / 10 + 1)
        torch.testing.assert_close(out.tensors["hardness"][:height, :width], label.float() / 255)
        assert torch.equal(out.tensors["depth_valid"][:height, :width], label % 2 == 0)
        image = out.tensors["image"][0, :height, :width]
        assert (image == label).float().mean() > 0.5  # the rest are the blended borders of blocks


def test_flip_happens_with_its_probability_and_mirrors_columns():
    ramp = sample_of(np.arange(30, dtype=np.uint8)[None, :].repeat(20, axis=0))
    transform = train_transform(ratio=(1.0, 1.0), hflip=0.3)
    flipped = 0
    for index in range(300):
        row = transform(ramp, generator(0, 0, index), IGNORE).tensors["label"][0].tolist()
        assert row in (list(range(30)), list(range(29, -1, -1)))
        flipped += row[0] == 29
    assert 60 < flipped < 120


def test_padding_is_below_and_to_the_right():
    frame = sample_of(np.full((8, 9), 4, dtype=np.uint8))
    out = train_transform(ratio=(1.0, 1.0))(frame, generator(0), IGNORE)
    assert out.extent == (8, 9)
    inside = torch.zeros(20, 30, dtype=torch.bool)
    inside[:8, :9] = True
    assert torch.equal(out.tensors["label"] != IGNORE, inside)
    assert torch.equal(out.tensors["depth_valid"], inside)
    assert (out.tensors["depth"][~inside] == 0).all()
    assert (out.tensors["hardness"][~inside] == 0).all()
    assert out.tensors["image"].shape == (3, 20, 30)


def test_zoom_leaves_metres_unless_asked_to_scale():
    frame = sample_of(np.full((40, 60), 10, dtype=np.uint8))
    kept = train_transform(ratio=(2.0, 2.0))(frame, generator(0), IGNORE)
    divided = train_transform(ratio=(2.0, 2.0), scale_with_zoom=True)(frame, generator(0), IGNORE)
    assert set(kept.tensors["depth"].unique().tolist()) == {2.0}
    assert set(divided.tensors["depth"].unique().tolist()) == {1.0}
    assert type(divided.tensors["depth"]) is torch.Tensor  # plain tensors collate


@pytest.mark.parametrize(
    ("native", "base", "ratio", "want"),
    [
        ((1024, 2048), (2049, 1025), 1.0, (1025, 2049)),  # Cityscapes, 769 crop
        ((1024, 2048), (2049, 1025), 0.5, (512, 1024)),
        ((512, 683), (2048, 512), 1.0, (512, 683)),  # ADE20K: the short side binds
        ((256, 2048), (2048, 512), 1.0, (256, 2048)),  # ... or the long one
        ((683, 512), (2048, 512), 1.5, (1025, 768)),  # portrait
        ((480, 640), None, 0.73, (350, 467)),
    ],
)
def test_base_size_is_a_long_and_a_short_limit(native, base, ratio, want):
    assert fitted_size(native, base, ratio) == want


def redraw_slowly(label, windows, ratio):
    """mmsegmentation's loop, written out: keep the first varied window, or the last of eleven."""
    for window in windows[:REDRAWS]:
        y, x = window.top, window.left
        values, counts = np.unique(label[y : y + window.height, x : x + window.width], return_counts=True)
        counts = counts[values != IGNORE]
        if len(counts) > 1 and counts.max() / counts.sum() <= ratio:
            return window
    return windows[REDRAWS]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_crops_that_one_class_fills_are_redrawn(share, monkeypatch):
    rng = np.random.default_rng(0)
    label = np.zeros((60, 90), dtype=np.uint8)
    label[rng.random((60, 90)) < 0.2] = IGNORE
    label[:, : int(share * 90) + 5] = 7
    transform = train_transform(ratio=(1.0, 1.0), cat_max_ratio=0.75, hflip=0.0)
    for index in range(25):
        drawn = []
        original = TrainTransform._random_window

        def record(self, native, scaled, rng, drawn=drawn, original=original):
            drawn.append(original(self, native, scaled, rng))
            return drawn[-1]

        monkeypatch.setattr(TrainTransform, "_random_window", record)
        out = transform(sample_of(label), generator(1, 0, index), IGNORE)
        monkeypatch.setattr(TrainTransform, "_random_window", original)
        assert 1 <= len(drawn) <= REDRAWS + 1
        rest = [Window((60, 90), 0, 0, 20, 30)] * (REDRAWS + 1 - len(drawn))
        want = redraw_slowly(label, drawn + rest, 0.75)
        assert want is drawn[-1]
        got = out.tensors["label"].numpy()
        np.testing.assert_array_equal(got, label[want.top : want.top + 20, want.left : want.left + 30])


@pytest.mark.parametrize(
    ("label", "varied"),
    [
        ([0, 0, 0, 1], True),  # exactly 75 %: not more than the limit
        ([0, 0, 0, 0, 1], False),
        ([0, 0, 0, 1, 255, 255], True),  # void is left out of the share
        ([0, 0, 255, 255], False),  # one class
        ([255, 255], False),  # none
    ],
)
def test_a_varied_crop_has_two_classes_and_no_dominant_one(label, varied):
    assert is_varied(torch.tensor([label], dtype=torch.uint8), IGNORE, 0.75) is varied


def test_the_redraw_looks_at_the_resized_label_in_its_window():
    """Left half class 0, right half class 1: a window over the border is one in six, among eleven nearly sure."""
    label = np.zeros((40, 60), dtype=np.uint8)
    label[:, 30:] = 1
    transform = train_transform(ratio=(2.0, 2.0), cat_max_ratio=0.75)
    varied = [
        is_varied(transform(sample_of(label), generator(5, 0, i), IGNORE).tensors["label"], IGNORE, 0.75)
        for i in range(60)
    ]
    assert 0.75 < np.mean(varied) < 1


def test_the_photometric_step_changes_the_image_alone(blocks):
    photometric = Photometric(brightness=32, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18, p=1.0)
    plain = train_transform()(blocks, generator(1), IGNORE)
    distorted = train_transform(photometric=photometric)(blocks, generator(1), IGNORE)
    assert not torch.equal(plain.tensors["image"], distorted.tensors["image"])
    for key in ("label", "depth", "depth_valid", "hardness"):
        assert torch.equal(plain.tensors[key], distorted.tensors[key])


def test_evaluation_changes_nothing(blocks):
    out = TestTransform(resize=None)(blocks, generator(0), IGNORE)
    for key, value in out.tensors.items():
        assert torch.equal(value, blocks[key])
    assert out.extent == (40, 60)


def test_evaluation_at_a_fixed_size_picks_labels(blocks):
    out = TestTransform(resize=(20, 30))(blocks, generator(0), IGNORE)
    assert out.tensors["image"].shape == (3, 20, 30)
    assert set(out.tensors["label"].unique().tolist()) <= set(blocks["label"].unique().tolist())


def test_depth_obeys_any_v2_transform():
    """Nearest, filled as invalid, whatever the image gets."""
    depth = DepthMap(torch.arange(1.0, 17.0).reshape(4, 4))
    values = {0.0, *depth.flatten().tolist()}
    transforms = [
        v2.Resize((7, 7)), v2.Pad(2, fill=99), v2.RandomCrop(6, pad_if_needed=True, fill=99),
        v2.RandomResizedCrop(5), v2.RandomRotation((30, 30), fill=99), v2.CenterCrop(6),
        v2.RandomAffine(20, translate=(0.3, 0.3), fill=99, interpolation=v2.InterpolationMode.BILINEAR),
    ]  # fmt: skip
    for transform in transforms:
        _, out = transform(tv_tensors.Image(torch.zeros(3, 4, 4)), depth)
        assert isinstance(out, DepthMap), transform
        assert set(out.flatten().tolist()) <= values, transform
    assert (v2.Pad(1, fill=99)(depth)[0] == 0).all()
    assert v2.RandomHorizontalFlip(p=1.0)(depth)[0].tolist() == [4.0, 3.0, 2.0, 1.0]
    assert v2.RandomVerticalFlip(p=1.0)(depth)[:, 0].tolist() == [13.0, 9.0, 5.0, 1.0]


@pytest.mark.parametrize(
    "change",
    [
        {"crop": (0, 30)}, {"crop": (20,)}, {"crop": (20, 30, 3)}, {"crop": (20.5, 30)}, {"base_size": (20, -1)},
        {"ratio": (2.0, 0.5)}, {"ratio": (0.0, 1.0)}, {"ratio": (1.0,)}, {"ratio": (0.5, float("nan"))},
    ],
)  # fmt: skip
def test_sizes_and_ratios_out_of_range_are_named(change):
    with pytest.raises(ConfigError, match=rf"{next(iter(change))}=.*must be (values|2 values|two positive)"):
        train_transform(**change)


def test_a_test_size_must_be_positive():
    with pytest.raises(ConfigError, match="resize="):
        TestTransform(resize=(0, 4))
    assert TestTransform(resize=(3, 4)).resize == (3, 4)


def test_a_hopeless_label_is_drawn_eleven_times_and_every_corner_is_reached(monkeypatch):
    """One draw and ten redraws; corners run from the first to the last at which the crop still fits."""
    drawn, original = [], TrainTransform._random_window

    def record(self, native, scaled, rng):
        drawn.append(original(self, native, scaled, rng))
        return drawn[-1]

    monkeypatch.setattr(TrainTransform, "_random_window", record)
    transform = train_transform(ratio=(1.0, 1.0), cat_max_ratio=0.75)
    one_class = sample_of(np.full((23, 32), 4, dtype=np.uint8))
    for index in range(20):
        transform(one_class, generator(0, 0, index), IGNORE)
    assert len(drawn) == 20 * 11
    assert {window.top for window in drawn} == {0, 1, 2, 3}
    assert {window.left for window in drawn} == {0, 1, 2}
