"""Pictures of a pixel, crops larger than they are, depth of any kind: every result is defined."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hardpix.data import Photometric, TestTransform, TrainTransform
from hardpix.data.loading import checked_sample
from hardpix.data.sampling import generator
from hardpix.losses import OHEM, Focal, LossMaxPooling
from hardpix.ops import depth_hardness
from hardpix.ops.hardness import hardness_weight
from hardpix.types import DatasetInfo

INFO = DatasetInfo("tiny", ("a", "b"), ((0, 0, 0),) * 2)
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
DEPTH = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True), st.sampled_from([0.0, -2.0, 1.5, float("nan")])
)


@st.composite
def frames(draw):
    size = draw(SIZES)
    depth = draw(arrays(np.float32, size, elements=DEPTH))
    if draw(st.booleans()):
        depth[:] = draw(DEPTH)  # constant, all invalid, all NaN
    return {
        "image": torch.from_numpy(draw(arrays(np.uint8, (3, *size)))),
        "label": torch.from_numpy(draw(arrays(np.uint8, size, elements=st.sampled_from([0, 1, 255])))),
        "depth": torch.from_numpy(depth),
        "depth_valid": torch.from_numpy(draw(arrays(np.bool_, size))),
        "name": "any",
    }


@settings(max_examples=60, deadline=None)
@given(sample=frames(), crop=SIZES, seed=st.integers(0, 99), rotate=st.sampled_from([None, 30.0]))
def test_a_crop_of_any_picture_is_defined(sample, crop, seed, rotate):
    transform = TrainTransform(
        crop=crop, base_size=None, ratio=(0.5, 2.0), cat_max_ratio=0.75, hflip=0.5, rotate=rotate, scale_with_zoom=True,
        photometric=Photometric(brightness=32, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18, p=0.5),
    )  # fmt: skip
    whole = checked_sample(dict(sample), INFO)
    for found in (
        transform(whole, generator(seed), 255).tensors,
        TestTransform(resize=crop)(whole, generator(seed), 255).tensors,
    ):
        assert {tuple(found[k].shape[-2:]) for k in found} == {tuple(crop)}
        assert set(found["label"].unique().tolist()) <= {0, 1, 255}
        assert torch.isfinite(found["depth"][found["depth_valid"]]).all()
        assert (found["depth"][found["depth_valid"]] > 0).all()


@settings(max_examples=100, deadline=None)
@given(sample=frames(), rows=st.integers(1, 20), columns=st.integers(1, 20),
       bin_size=st.sampled_from([1.0, 16, 255, 999]),
       depth_max=st.sampled_from([None, 1e-3, 10.0]), seed=st.integers(0, 99))  # fmt: skip
def test_every_map_of_depth_is_finite_and_blind_to_what_has_no_reading(
    sample, rows, columns, bin_size, depth_max, seed
):
    """More cells than pixels among them; a picture that is all of one depth, or of none."""
    sample = checked_sample(sample, INFO)
    depth, valid, label = sample["depth"][None], sample["depth_valid"][None], sample["label"][None].long()
    dice = torch.Generator().manual_seed(seed)
    log_depth = 40 * torch.randn(depth.shape, generator=dice)
    counted, wrong = label != 255, torch.rand(depth.shape, generator=dice) < 0.5

    def maps(depth):
        target = depth_hardness.scaled_depth(depth, valid, depth_max)
        dpe = depth_hardness.depth_prediction_error(log_depth, target, valid)
        regions = depth_hardness.depth_regions(
            target, valid, counted, cells=(rows, columns), bin_size=bin_size
        )
        dse = depth_hardness.segmentation_error(wrong, regions)
        fused = [depth_hardness.fuse(dpe, dse, kind) for kind in depth_hardness.FUSIONS]
        kept = depth_hardness.curriculum(dse, counted, 0.5)
        return [target, dpe, dse, *fused, kept, depth_hardness.log_depth_loss(log_depth, target, valid)]

    found = maps(depth)
    target, dpe, dse = found[:3]
    assert all(torch.isfinite(x).all() for x in found)
    assert (target >= 1).all()
    assert (target <= 256).all()
    assert (dpe >= 0).all()
    assert (dpe <= 1).all()
    assert (dpe[~valid] == 0).all()
    assert (dse[~counted] == 0).all()
    assert (dse <= 1).all()
    other = torch.where(valid, depth, torch.rand(depth.shape, generator=dice) * 9)
    assert all(torch.equal(a, b) for a, b in zip(found, maps(other), strict=True))


@settings(max_examples=60, deadline=None)
@given(size=SIZES, void=st.floats(0, 1), seed=st.integers(0, 99), scale=st.sampled_from([0.0, 1.0, 1e4]))
def test_losses_and_weights_of_any_few_pixels_are_finite(size, void, seed, scale):
    dice = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(2, 3, *size, generator=dice)).requires_grad_()
    label = torch.randint(3, (2, *size), generator=dice)
    label[torch.rand(label.shape, generator=dice) < void] = 255
    label[0] = 255  # one image without a labelled pixel
    losses = [
        OHEM(ignore_index=255, thresh=0.7, min_kept=100, reduction="kept"),
        OHEM(ignore_index=255, thresh=None, min_kept=0, reduction="all"),
        Focal(ignore_index=255, gamma=2.0, normalizer="valid"),
        Focal(ignore_index=255, gamma=0.5, normalizer="all"),
        LossMaxPooling(ignore_index=255, ratio=0.3, p=1.7, scope="batch"),
        LossMaxPooling(ignore_index=255, ratio=0.3, p=1.7, scope="image"),
    ]
    for loss in losses:
        logits.grad = None
        found = loss(logits, label)
        found.backward()
        assert torch.isfinite(found)
        assert torch.isfinite(logits.grad).all()
        assert (logits.grad.movedim(1, -1)[label == 255] == 0).all()
        if (label == 255).all():
            assert float(found.detach()) == 0


@pytest.mark.parametrize("void_in_normalizer", [True, False])
@pytest.mark.parametrize("normalize_over", ["image", "batch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2)])
@pytest.mark.parametrize("fill", [0.0, -50.0, 50.0])
def test_a_weight_of_any_hardness_is_finite(normalize_over, void_in_normalizer, size, fill):
    level = torch.full((2, *size), fill)
    valid = torch.ones(2, *size, dtype=torch.bool)
    valid[0] = False
    weight = hardness_weight(
        level, valid, c=0.0, normalize_over=normalize_over, void_in_normalizer=void_in_normalizer
    )
    assert torch.isfinite(weight).all()
    assert void_in_normalizer or (weight[~valid] == 0).all()
