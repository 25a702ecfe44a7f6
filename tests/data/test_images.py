"""Files that decode, and one sentence for each that does not."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from hardpix.data.images import read_colour, read_depth, read_image, read_index
from hardpix.types import DataError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
RGB = np.stack([GREY, GREY + 50, GREY + 100], axis=2)


def save(path, array, mode=None):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


def sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colour_is_read_as_it_is(tmp_path, suffix):
    np.testing.assert_array_equal(read_colour(save(tmp_path / f"a.{suffix}", RGB)), RGB)


def test_read_image_puts_channels_first(tmp_path):
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", RGB)).numpy(), RGB.transpose(2, 0, 1))


def test_other_modes_become_rgb(tmp_path):
    three = np.repeat(GREY[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(read_colour(save(tmp_path / "l.png", GREY)), three)
    np.testing.assert_array_equal(read_colour(save(tmp_path / "rgba.png", RGB, "RGBA")), RGB)
    deep = GREY.astype(np.uint16) * 256 + 7
    np.testing.assert_array_equal(read_colour(save(tmp_path / "deep.png", deep)), three)
    palette = Image.fromarray(GREY)
    palette = palette.convert("P")
    palette.putpalette([value for i in range(256) for value in (i, 255 - i, 0)])
    palette.save(tmp_path / "p.png")
    want = np.stack([GREY, 255 - GREY, 0 * GREY], axis=2)
    np.testing.assert_array_equal(read_colour(tmp_path / "p.png"), want)
    palette.save(tmp_path / "pt.png", transparency=3)
    np.testing.assert_array_equal(read_colour(tmp_path / "pt.png"), want)


def test_a_palette_label_counts_by_its_indices(tmp_path):
    image = Image.fromarray(GREY % 5).convert("P")
    image.putpalette([value for i in range(256) for value in (255 - i, 1, 2)])
    image.putdata((GREY % 5).ravel().tolist())
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_index(tmp_path / "p.png"), GREY % 5)


def test_sixteen_bits_stay_sixteen_bits(tmp_path):
    deep = GREY.astype(np.uint16) * 1000
    save(tmp_path / "deep.png", deep)
    assert read_depth(tmp_path / "deep.png").dtype == np.uint16
    np.testing.assert_array_equal(read_depth(tmp_path / "deep.png"), deep)
    np.testing.assert_array_equal(read_index(tmp_path / "deep.png"), deep)


def test_a_coloured_label_is_refused_by_its_mode(tmp_path):
    with pytest.raises(DataError) as error:
        read_index(save(tmp_path / "a.png", RGB))
    assert "RGB" in sentence(error)
    assert "a.png" in sentence(error)
    with pytest.raises(DataError, match="RGB"):
        read_depth(tmp_path / "a.png")


def test_unknown_modes_are_named(tmp_path):
    Image.fromarray(GREY).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="CMYK"):
        read_colour(tmp_path / "a.jpg")


def test_missing(tmp_path):
    with pytest.raises(DataError, match=r"no\.png: no such file"):
        read_colour(tmp_path / "no.png")


def test_empty(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError) as error:
        read_colour(tmp_path / "a.png")
    assert "it is empty" in sentence(error)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError) as error:
        read_colour(path)
    assert sentence(error).count(str(path)) == 1


def test_something_else(tmp_path):
    (tmp_path / "a.png").write_text("this is no picture")
    with pytest.raises(DataError, match="PNG, JPEG, TIFF"):
        read_colour(tmp_path / "a.png")
    Image.fromarray(RGB).save(tmp_path / "a.bmp")
    with pytest.raises(DataError, match="PNG, JPEG, TIFF"):
        read_colour(tmp_path / "a.bmp")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError):
        read_colour(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_bomb_is_refused_by_its_header(tmp_path, side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError) as error:
        read_colour(tmp_path / "a.png")
    assert "at most 80000000 are read" in sentence(error)


@pytest.mark.slow
def test_the_largest_picture_is_a_setting(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    read = f"read_colour(pathlib.Path({str(tmp_path / 'a.png')!r})).shape"
    script = f"import pathlib; from hardpix.data.images import read_colour; print({read})"
    for limit, said in (("600", "(20, 30, 3)"), ("599", "at most 599 are read; HARDPIX_MAX_PIXELS=N")):
        told = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"HARDPIX_MAX_PIXELS": limit},
            capture_output=True,
            text=True,
        )
        assert said in told.stdout + told.stderr
