"""Files that decode, and one sentence for each that does not."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from hardpix.data.images import checked_range, read_colour, read_depth, read_image, read_index
from hardpix.types import ConfigError, DataError

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
    np.testing.assert_array_equal(read_colour(save(tmp_path / "deep.png", deep), (0, 65535)), three)
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


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def save_png(path, numbers, bits, colour_type):
    """A PNG whose file holds exactly these numbers, ``[H, W]`` or ``[H, W, channels]``."""
    height, width = numbers.shape[:2]
    rows = b""
    for row in numbers.reshape(height, -1):
        planes = np.unpackbits(row.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)
        rows += b"\0" + np.packbits(planes[:, 16 - bits :]).tobytes()
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(3 * 2 ** min(bits, 6)))) if colour_type == 3 else b""
    body = chunk(b"IHDR", header) + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("colour_type", [0, 3])
def test_class_numbers_are_read_as_stored_at_every_bit_depth(tmp_path, bits, colour_type):
    if (bits, colour_type) == (16, 3):
        return
    numbers = np.random.default_rng(bits).integers(0, 2 ** min(bits, 6), (7, 13))
    numbers = numbers * 700 if bits == 16 else numbers
    path = save_png(tmp_path / "a.png", numbers, bits, colour_type)
    np.testing.assert_array_equal(read_index(path), numbers)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_label_of_equal_channels_is_one_number(tmp_path, mode):
    path = save(tmp_path / "a.png", GREY, mode)
    np.testing.assert_array_equal(read_index(path), GREY)
    if mode != "RGB":
        clear = np.array(Image.open(path))
        clear[2, 3, -1] = 254
        Image.fromarray(clear, mode).save(path)
        with pytest.raises(DataError, match=r"a\.png: .*alpha channel .* is not opaque"):
            read_index(path)


def test_a_label_that_has_no_plain_numbers_is_refused(tmp_path):
    save_png(tmp_path / "a.png", np.repeat(GREY[:, :, None], 3, 2), 16, 2)
    with pytest.raises(DataError, match="16 bits each"):
        read_index(tmp_path / "a.png")
    Image.fromarray(GREY).save(tmp_path / "w.tif", tiffinfo={262: 0})
    with pytest.raises(DataError, match="WhiteIsZero"):
        read_index(tmp_path / "w.tif")
    Image.fromarray(GREY).save(tmp_path / "s.tif", tiffinfo={339: 2})
    with pytest.raises(DataError, match="signs"):
        read_index(tmp_path / "s.tif")
    with pytest.raises(DataError, match=r"label_format=colour .*data\.source\.palette"):
        read_index(save(tmp_path / "c.png", RGB))


TWELVE = np.arange(48, dtype=np.uint16).reshape(6, 8) * 87  # 0..4089


@pytest.mark.parametrize(
    ("values", "suffix", "said", "fitting"),
    [
        (TWELVE, "png", "from 0 to 4089", [0, 4095]),
        (TWELVE * 16, "tif", "from 0 to 65424", [0, 65535]),
        (TWELVE.astype(np.int32) - 100, "tif", "from -100 to 3989", [-100, 3989]),
        (TWELVE.astype(np.float32) / 4089, "tif", r"from 0\.0 to 1\.0 \(mode F", [0, 1]),
        (np.full((6, 8), 1 << 20, np.int32), "tif", "from 1048576 to", [0, 2**21 - 1]),
    ],
)
def test_grey_of_more_than_8_bits_is_refused_or_scaled(tmp_path, values, suffix, said, fitting):
    path = save(tmp_path / f"a.{suffix}", values)
    told = "{},{}".format(*fitting)
    with pytest.raises(DataError, match=rf"a\.{suffix}: .*{said}.*data\.source\.image_range=\[{told}\]"):
        read_colour(path)
    for low, high in (fitting, (fitting[0], fitting[1] / 2)):
        wanted = np.rint((values.astype(np.float64) - low).clip(0, high - low) / (high - low) * 255)
        found = read_colour(path, (low, high))
        assert found.dtype == np.uint8
        assert np.abs(found - wanted[:, :, None]).max() <= (values.dtype == np.float32)
        np.testing.assert_array_equal(read_image(path, (low, high)).numpy(), found.transpose(2, 0, 1))


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_colours_of_16_bits_keep_them(tmp_path, colour_type, channels):
    numbers = np.random.default_rng(0).integers(0, 4096, (6, 8, channels))
    path = save_png(tmp_path / "a.png", numbers, 16, colour_type)
    with pytest.raises(DataError, match=r"data\.source\.image_range=\[0,4095\]"):
        read_colour(path)
    wanted = numbers[..., :3] if channels > 2 else numbers[..., :1].repeat(3, 2)
    np.testing.assert_allclose(read_colour(path, (0, 4095)), wanted / 4095 * 255, atol=0.5001)


def test_what_no_range_can_mean_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"8 bits.*data\.source\.image_range=null"):
        read_colour(save(tmp_path / "a.png", RGB), (0, 4095))
    np.testing.assert_array_equal(read_colour(tmp_path / "a.png", (0, 255)), RGB)
    hole = TWELVE.astype(np.float32)
    hole[1, 1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        read_colour(save(tmp_path / "a.tif", hole), (0, 4095))
    four = np.dstack([RGB, GREY])
    Image.fromarray(four, "RGBX").save(tmp_path / "n.tif")
    with pytest.raises(DataError, match="4 channels, of which RGB"):
        read_colour(tmp_path / "n.tif")
    for wrong in (
        [0],
        [5, 5],
        [3, 1],
        ["0", 9],
        [0, float("nan")],
        [0, float("inf")],
        [False, True],
        4095,
        "04",
    ):
        with pytest.raises(ConfigError, match=r"data\.source\.image_range=.*\[black, white\]"):
            checked_range(wrong)


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
