from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

from PIL import Image

from hardpix.page.page import Figure, Section, index_page
from hardpix.record import SCHEMA, RunRecord
from hardpix.tables.compare import Run
from hardpix.tables.render import render
from hardpix.tables.table import table

VOID_ELEMENTS = {"meta", "img", "link", "br"}


class Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def example_run(**changes) -> Run:
    values = {"factors": {"loss._target_": "x.OHEM"}, "metrics": {"test/miou": 0.5, "run/seconds": 12.34}}
    fixed = {"schema": SCHEMA, "run_id": "r", "status": "done", "seed": 0, "parent": None, "started": ""}
    return Run("runs/r", RunRecord(**(fixed | values | {"code": {}, "host": {}} | changes)))


def test_the_page_is_whole_and_needs_no_network(tmp_path):
    image = Image.new("RGB", (3, 2), (9, 8, 7))
    image.save(tmp_path / "stored.png")
    failed = example_run(status="failed", error="a <fault> & more", seed=1, metrics={}, name="loss=ohem")
    runs = [example_run(), failed]
    section = Section("Frames", [Figure("one 'quoted'", image), Figure("two", tmp_path / "stored.png")])
    page = index_page(
        "Demo <1>",
        [render(table(runs, ["loss"], ["test/miou"]), "html")],
        [section],
        runs=runs,
        commands=["hardpix train a=1 && echo"],
        notes=["Two seeds."],
    )
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "50.00 (n=1), failed (1 of 2)" in page
    assert "failed: a &lt;fault&gt; &amp; more" in page
    assert "Demo &lt;1&gt;" in page
    assert "hardpix train a=1 &amp;&amp; echo" in page
    assert not re.search(r"(src|href)=['\"](?!data:)", page)
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert len(pictures) == 2
    for picture in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(picture))).getpixel((2, 1)) == (9, 8, 7)
