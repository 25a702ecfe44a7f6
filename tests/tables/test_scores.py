"""``per_image.csv`` comes back as it was written, and is whole or absent."""

import math

import pytest

from hardpix.scores import read_per_image, write_per_image
from hardpix.types import DataError

ROWS = [("b, with a comma", 10, 0.5, 0.25), ("a", 0, math.nan, math.nan), ("c", 7, 1.0, 1 / 3)]


def test_rows_come_back_in_order(tmp_path):
    write_per_image(ROWS, tmp_path)
    text = (tmp_path / "per_image.csv").read_text()
    assert text.splitlines()[0] == "image,pixels,pixel_acc,miou,counts"
    assert text.splitlines()[2] == "a,0,nan,nan,"
    found = read_per_image(tmp_path)
    assert [tuple(row[:2]) for row in found] == [row[:2] for row in ROWS]
    assert found[2].miou == pytest.approx(1 / 3, abs=1e-6)
    assert math.isnan(found[1].miou)
    assert read_per_image(tmp_path / "elsewhere") is None


def test_counts_come_back_and_files_without_them_are_read(tmp_path):
    write_per_image(
        [("a", 17, 0.5, 0.25, ((0, 12, 15, 14), (3, 0, 2, 3))), ("b", 0, math.nan, math.nan, ())], tmp_path
    )
    assert (tmp_path / "per_image.csv").read_text().splitlines()[
        1
    ] == "a,17,0.500000,0.250000,0:12/15/14 3:0/2/3"
    found = read_per_image(tmp_path)
    assert found[0].classes() == {0: (12, 15, 14), 3: (0, 2, 3)}
    assert found[1].classes() == {}
    (tmp_path / "per_image.csv").write_text("image,pixels,pixel_acc,miou\na,1,1.0,1.0\n")
    (old,) = read_per_image(tmp_path)
    assert (old.image, old.counts, old.classes()) == ("a", "", {})


def test_an_interruption_leaves_the_former_file(tmp_path):
    write_per_image(ROWS, tmp_path)
    before = (tmp_path / "per_image.csv").read_text()

    def broken():
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_per_image(broken(), tmp_path)
    assert (tmp_path / "per_image.csv").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["per_image.csv"]


@pytest.mark.parametrize("text", ["image,pixels\na,1\n", "image,pixels,pixel_acc,miou\na,x,1,1\n"])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "per_image.csv").write_text(text)
    with pytest.raises(DataError, match=r"per_image\.csv is damaged"):
        read_per_image(tmp_path)
