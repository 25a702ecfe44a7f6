"""Charts as SVG for a page: the same bytes, the page's colours, nothing from outside."""

import re

import pytest

from hardpix.draw.svg import Series, chart, key, number

EVIL = '<script>alert("$x^2$")</script>'
SERIES = [
    Series(0, "curve", [0, 10, 20], [1, 2, 3], [0.1, 0.2, 0.3]),
    Series(8, "points", [5], [2.5], [0.2], [1.0]),
    Series(2, "level", [0], [1.5], [0.1]),
    Series(6, "run", [0, 20], [0, 1]),
]


def test_the_same_series_give_the_same_bytes():
    assert chart(SERIES, x_label="step", y_label="mIoU (%)") == chart(
        SERIES, x_label="step", y_label="mIoU (%)"
    )
    assert key(3) == key(3) != key(4)


def test_it_uses_the_colours_of_the_page_and_nothing_else():
    text = chart(SERIES, x_label="step", y_label="mIoU (%)")
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", text)) == {
        "none", "var(--ink)", "var(--line)", "var(--s0)", "var(--s1)", "var(--s2)", "var(--s6)",
    }  # fmt: skip
    assert not re.search(r"https?://|url\(|<style|<metadata", text)
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', text)) == set(ids)


def test_labels_are_text_as_they_are():
    text = chart(SERIES, x_label=EVIL, y_label="y")
    assert "<script" not in text
    assert '&lt;script&gt;alert("$x^2$")' in text.replace("&quot;", '"')


def test_ticks_have_names():
    text = chart(
        [Series(0, "points", [1, 100], [2, 3])],
        x_label="alpha",
        y_label="y",
        ticks=[(1, "one"), (100, "hundred")],
        log=True,
    )
    assert re.findall(r">(one|hundred)</text>", text) == ["one", "hundred"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.00012, "0.00012"),
        (9999, "9999"),
        (25_557_032, "25.56M"),
        (4.1e9, "4.1G"),
        (12345, "12.35k"),
    ],
)
def test_numbers_are_short(value, shown):
    assert number(value) == shown
