"""A window resized alone is the window of the whole picture resized."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from hardpix.data import DepthMap
from hardpix.data.augment import Window, image_window, label_window, zoom

SCALES = [(37, 61), (50, 64), (75, 96), (143, 190), (200, 401), (60, 80)]


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def windows(native, scaled, height, width):
    """The first, a middle and the last window of that size, by their corner in the picture."""
    room = [(s - n) * size // s for s, n, size in zip(scaled, (height, width), native, strict=True)]
    return [Window(scaled, int(p * room[0]), int(p * room[1]), height, width) for p in (0, 0.4, 1)]


def by_pillow(pixels, window):
    """Resize with a box in fractions of a pixel: Pillow looks at the whole picture around it."""
    scale = [n / s for n, s in zip(pixels.shape[:2], window.scaled, strict=True)]
    box = (
        window.left,
        window.top,
        window.left + window.width * scale[1],
        window.top + window.height * scale[0],
    )
    box = (box[0], box[1], min(box[2], pixels.shape[1]), min(box[3], pixels.shape[0]))
    size = (window.width, window.height)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, box=box))


@pytest.mark.parametrize("scaled", SCALES)
def test_a_window_equals_that_of_the_whole_picture(scaled):
    pixels = noise(60, 80)
    for window in windows((60, 80), scaled, min(33, scaled[0]), min(47, scaled[1])):
        got = image_window(torch.from_numpy(pixels).permute(2, 0, 1), window)
        got = got.permute(1, 2, 0).numpy().astype(int)
        want = by_pillow(pixels, window).astype(int)
        assert got.shape == want.shape
        # Above and left the filter stops at the window: so far does that reach, in pixels of the crop.
        rim = [int(np.ceil(s / n)) + 1 for s, n in zip(scaled, (60, 80), strict=True)]
        y, x = rim[0] * (window.top > 0), rim[1] * (window.left > 0)
        difference = np.abs(got - want)[y:, x:]
        # Values that lie on a half may round either way, in both passes of the filter.
        assert (difference <= 1).mean() > 0.99
        assert difference.max() <= 2


@pytest.mark.parametrize("scaled", SCALES)
def test_the_corner_window_is_the_corner_of_the_resized_picture(scaled):
    pixels = noise(60, 80)
    whole = np.asarray(Image.fromarray(pixels).resize(scaled[::-1], Image.Resampling.BILINEAR)).astype(int)
    part = image_window(torch.from_numpy(pixels).permute(2, 0, 1), Window(scaled, 0, 0, 30, 40)).numpy()
    assert np.abs(part.transpose(1, 2, 0) - whole[:30, :40]).max() <= 1


def test_every_size_comes_out():
    """Whatever the float products of sizes and factors round to."""
    for size in (3, 7, 49, 50, 97):
        for scaled in range(2, 130):
            window = Window.whole((scaled, scaled))
            assert image_window(torch.zeros(3, size, size, dtype=torch.uint8), window).shape == (
                3,
                scaled,
                scaled,
            )
            assert label_window(np.zeros((size, size), dtype=np.uint8), window).shape == (scaled, scaled)


def test_labels_come_from_the_pixel_under_each_centre():
    label = np.random.default_rng(1).integers(0, 9, (13, 17), dtype=np.uint8)
    window = Window((29, 11), 4, 3, 18, 7)
    got = label_window(label, window)
    for y in range(18):
        for x in range(7):
            source_y = int(np.floor(4 + (y + 0.5) * 13 / 29))
            source_x = int(np.floor(3 + (x + 0.5) * 17 / 11))
            assert got[y, x] == label[source_y, source_x]


def test_image_and_label_stay_registered():
    """A step edge of the picture lies where the label changes, at every scale."""
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:, 25:] = 200
    label = np.zeros((40, 40), dtype=np.uint8)
    label[:, 25:] = 1
    for scaled in [(20, 20), (57, 57), (80, 80)]:
        window = Window(scaled, 3, 9, 15, scaled[1] * 3 // 4)
        image = image_window(torch.from_numpy(pixels).permute(2, 0, 1), window)
        picked = label_window(label, window)
        edge = np.argmax(image[0, 7].numpy() >= 100)
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
