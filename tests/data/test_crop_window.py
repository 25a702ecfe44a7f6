"""Resizing the crop alone equals resizing the picture and cropping then."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from hardpix.data import DepthMap
from hardpix.data.window import Window, image_window, label_window, zoom

SCALES = [(37, 61), (50, 64), (75, 96), (143, 190), (200, 401), (60, 80)]


def smooth_noise(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return noise // 2 + np.linspace(0, 127, width).astype(np.uint8)[None, :, None]


@pytest.mark.parametrize("scaled", SCALES)
@pytest.mark.parametrize("corner", ["first", "middle", "last"])
def test_crop_first_equals_resize_then_crop(scaled, corner):
    pixels = smooth_noise(60, 80)
    height, width = min(33, scaled[0]), min(47, scaled[1])
    share = {"first": 0.0, "middle": 0.37, "last": 1.0}[corner]
    top, left = int(share * (scaled[0] - height)), int(share * (scaled[1] - width))
    got = image_window(pixels, Window(scaled, top, left, height, width)).astype(int)
    whole = np.asarray(Image.fromarray(pixels).resize(scaled[::-1], Image.Resampling.BILINEAR)).astype(int)
    want = whole[top : top + height, left : left + width]
    assert got.shape == want.shape
    # Pillow takes the box in float32: values that lie on a half may round the other way, in both of its passes.
    assert (np.abs(got - want) <= 1).mean() > 0.999
    assert np.abs(got - want).max() <= 2


def test_labels_come_from_the_pixel_under_each_centre():
    label = np.random.default_rng(1).integers(0, 9, (13, 17), dtype=np.uint8)
    window = Window((29, 11), 4, 3, 20, 7)
    got = label_window(label, window)
    for y in range(20):
        for x in range(7):
            source_y = int(np.floor((y + 4 + 0.5) * 13 / 29))
            source_x = int(np.floor((x + 3 + 0.5) * 17 / 11))
            assert got[y, x] == label[source_y, source_x]


def test_the_window_of_a_label_is_the_crop_of_its_resize():
    label = np.random.default_rng(2).integers(0, 255, (60, 80), dtype=np.uint8)
    for scaled in SCALES:
        whole = label_window(label, Window(scaled, 0, 0, *scaled))
        part = label_window(label, Window(scaled, 5, 9, 20, 30))
        np.testing.assert_array_equal(part, whole[5:25, 9:39])


def test_image_and_label_stay_registered():
    """A step edge of the picture lies where the label changes, at every scale."""
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:, 25:] = 200
    label = np.zeros((40, 40), dtype=np.uint8)
    label[:, 25:] = 1
    for scaled in [(20, 20), (57, 57), (80, 80)]:
        window = Window(scaled, 3, 2, 15, scaled[1] - 2)
        image, picked = image_window(pixels, window), label_window(label, window)
        edge = np.argmax(image[7, :, 0] >= 100)
        assert abs(edge - np.argmax(picked[7] == 1)) <= 1


def test_types_decide_how_pixels_are_made():
    ramp = torch.arange(8, dtype=torch.float32).repeat(8, 1)
    window = Window((16, 16), 0, 0, 16, 16)
    image = zoom(tv_tensors.Image((ramp * 30).to(torch.uint8).repeat(3, 1, 1)), window)
    depth = zoom(DepthMap(ramp), window)
    assert image.shape == (3, 16, 16)
    assert image.is_contiguous()
    assert isinstance(depth, DepthMap)
    assert set(depth.unique().tolist()) == set(range(8))  # nearest invents no value
    assert len(image.unique()) > 8  # bilinear does
