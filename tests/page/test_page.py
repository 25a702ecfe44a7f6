"""``hardpix page`` without weights: rows, the outcome, charts, tables, and what it does with names and damage."""

import base64
import hashlib
import io
import json
import math
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hardpix.cli import main
from hardpix.page import explorer, runs
from hardpix.page.explorer import Explorer, Frame, MapKind, View, _bytes, _content, _grid, score
from hardpix.page.page import asset, over_seeds, policy, table_page
from hardpix.page.runs import automatic_rows, curves, gather, metric_title, outcome, parts, swept, thinned
from hardpix.record import SCHEMA, RunRecord, write
from hardpix.scores import per_class_rows, write_per_class
from hardpix.tables.render import render
from hardpix.types import DatasetInfo

EVIL = "<script>alert('x')</script>\"&"
CLASSES = ["road", EVIL, "car"]


def made(
    folder,
    method="Baseline",
    seed=0,
    miou=0.4,
    status="done",
    alpha=None,
    *,
    dataset="rooms",
    files=True,
    study="",
    **more,
):
    """A run directory with all that a page reads, ``more``: factors (dots as two underscores)."""
    factors = {"method._target_": f"hardpix.methods.{method}", "loss._target_": "hardpix.losses.CrossEntropy",
               "trainer.max_steps": 100, "seed": seed, "run": folder.name}  # fmt: skip
    factors |= {} if alpha is None else {"method.alpha": alpha}
    factors |= {key.replace("__", "."): value for key, value in more.items()}
    metrics = {"test/miou": miou, "test/pixel_acc": 0.8, "cost/step_seconds": 0.1 + seed, "run/seconds": 3.0}
    folder.mkdir(parents=True)
    record = RunRecord(
        schema=SCHEMA, run_id=folder.name, status=status, factors=factors, metrics=metrics if status == "done" else {},
        seed=seed, parent=None, code={"commit": "abc"}, host={}, started="", dataset=dataset, name=folder.name,
        error="out of memory" if status == "failed" else None, study=study,
    )  # fmt: skip
    write(record, folder)
    if files:
        lines = [
            "step,train/loss,val/miou,test/miou",
            "9,2.0,,",
            "19,nan,0.1,",
            "29,1.0,0.3,",
            f"30,,0.3,{miou}",
        ]
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
        matrix = np.array([[30, 10, 0], [5, 5, 0], [0, 20, 0]]) * (seed + 1)
        np.save(folder / "confusion.npy", matrix)
        write_per_class(per_class_rows(matrix, CLASSES), folder / "per_class.csv")
        (folder / "classes.json").write_text(json.dumps(CLASSES))
    return folder


@pytest.fixture
def study(tmp_path):
    """A baseline and a sweep of alpha, two seeds each; one run that failed, one that runs."""
    for seed in (0, 1):
        made(tmp_path / f"base-{seed}", seed=seed, miou=0.40 + 0.02 * seed)
        for i, alpha in enumerate((0.01, 0.1, 1.0)):
            made(tmp_path / f"hl-{i}-{seed}", "HardnessLevel", seed, 0.5 + 0.1 * i + 0.04 * seed, alpha=alpha)
    made(tmp_path / "lost", "LossWeightModule", 0, status="failed", alpha=1.0, files=False)
    made(tmp_path / "later", "LossWeightModule", 1, status="running", alpha=1.0, files=False)
    return tmp_path


def text_of(study, *arguments):
    out = study.parent / f"{study.name}.html"
    assert main(["page", str(study), "-o", str(out), "--no-explorer", *arguments]) == 0
    return out.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """The elements, and whether each closes what was opened last."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_rows_are_what_the_runs_differ_in(study, tmp_path):
    runs, _ = gather([study])
    assert automatic_rows(runs) == ["method"]
    swept_only = [run for run in runs if "hl-" in run.directory]
    assert automatic_rows(swept_only) == ["method.alpha"]
    assert [row.label for row in parts(swept_only, "test")[0].rows] == [
        "alpha=0.01",
        "alpha=0.1",
        "alpha=1.0",
    ]
    assert automatic_rows(swept_only[:1]) == ["method"]
    (part,) = parts(runs, "test")
    assert [(row.label, len(row.done)) for row in part.rows] == [
        ("Baseline", 2), ("HardnessLevel (alpha=0.01)", 2), ("HardnessLevel (alpha=0.1)", 2),
        ("HardnessLevel (alpha=1.0)", 2), ("LossWeightModule", 0),
    ]  # fmt: skip
    assert part.rows[3].values("test/miou") == [0.7, 0.74]
    assert part.metric == "test/miou"
    assert part.table.rows[0].cells[0].mean == pytest.approx(0.41)


def test_a_swept_setting_has_a_line_and_rows_without_it_are_levels(study):
    (part,) = parts(gather([study])[0], "test")
    found = swept(part)
    assert list(found) == ["method.alpha"]  # LossWeightModule's own alpha has one value
    line, level = found["method.alpha"]
    assert [(value, row.values("test/miou")) for value, row in line.points] == [
        (0.01, [0.5, 0.54]), (0.1, [0.6, 0.64]), (1.0, [0.7, 0.74]),
    ]  # fmt: skip
    assert (line.label, line.level, level.label, level.level) == ("HardnessLevel", False, "Baseline", True)


def test_two_swept_settings_have_lines_of_each_and_a_heat_map(tmp_path):
    for i, (alpha, c) in enumerate([(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]):
        made(tmp_path / "runs" / str(i), miou=0.1 * (i + 1), alpha=alpha, method__c=c)
    (part,) = parts(gather([tmp_path / "runs"])[0], "test")
    found = swept(part)
    assert [line.label for line in found["method.alpha"]] == ["c=1", "c=2"]
    assert [line.label for line in found["method.c"]] == ["alpha=0.1", "alpha=0.2"]
    text = text_of(tmp_path / "runs")
    cells = re.findall(r'<td class="cell[^"]*" style="--v:([\d.]+)">([\d.]+)</td>', text)
    assert cells == [("0.08", "10.00"), ("0.39", "20.00"), ("0.69", "30.00"), ("1.00", "40.00")]


def test_nothing_is_dropped_silently(study):
    (study / "broken").mkdir()
    (study / "broken" / "run.json").write_text("{")
    (study / "base-0" / "metrics.csv").write_text("step,train/loss\n9,much\n")
    (study / "base-1" / "confusion.npy").write_bytes(b"no array")
    text = text_of(study)
    assert re.search(r"<strong>failed</strong> \S*lost: out of memory", text)
    assert re.search(r"<strong>running</strong> \S*later", text)
    assert re.search(r"<strong>damaged</strong> \S*broken: ", text)
    assert re.search(r"base-0/metrics\.csv is damaged", text)
    assert re.search(r"base-1/confusion\.npy is damaged", text)
    assert "failed (1 of 2), running (1 of 2)" in text


def test_runs_that_share_no_table_are_told(study, capsys):
    made(study / "again", seed=0, miou=0.1)
    text = text_of(study)
    assert "There is no common table of these runs." in text
    assert "finished runs of the same row with the same seed 0" in text
    assert main(["page", str(study), "-o", str(study / "x.html"), "--no-explorer", "--rows", "loss"]) == 2
    assert "not comparable" in capsys.readouterr().err
    assert not (study / "x.html").exists()


def test_data_sets_have_parts_of_their_own(study):
    made(study / "street", dataset="camvid")
    found = parts(gather([study])[0], "test")
    assert [(part.dataset, len(part.runs)) for part in found] == [("camvid", 1), ("rooms", 10)]
    text = text_of(study)
    assert "camvid: Scores" in text
    assert "rooms: Scores" in text


def test_curves_are_means_over_seeds(study):
    (part,) = parts(gather([study])[0], "test")
    own = curves(part.rows[0].runs[0])
    assert own == {
        "train/loss": {9: 2.0, 29: 1.0},
        "val/miou": {19: 0.1, 29: 0.3},
    }  # no NaN, none of the test
    assert curves(part.rows[4].runs[0]) == {}
    path = study / "later" / "metrics.csv"
    path.write_text("step,val/miou,test/miou\n19,0.1,\n29,0.3,\n34,0.35,0.4\n")  # it ended within an epoch
    assert curves(part.rows[4].runs[1])["val/miou"] == {19: 0.1, 29: 0.3, 34: 0.35}
    assert thinned({0: 1.0, 1: 3.0, 5: 4.0}, 5) == {0: 1.0, 1: 3.0, 5: 4.0}
    long = thinned({step: float(step) for step in range(0, 1000, 3)}, 999)
    assert len(long) <= runs.MAX_STEPS
    assert long[6] == statistics.fmean([0, 3, 6])  # steps 0 to 6
    assert over_seeds([{0: 1.0, 9: 2.0}, {9: 4.0}]) == {0: (1.0, 0.0), 9: (3.0, pytest.approx(math.sqrt(2)))}
    labels = re.findall(r'<svg class="chart" role="img" aria-label="([^"]*)"', text_of(study))
    assert labels == ["training loss over step", "validation mIoU (%) over step", "mIoU (%) over alpha"]


def test_classes_and_confusion(study):
    text = text_of(study)
    # Both seeds: [[90, 30, 0], [15, 15, 0], [0, 60, 0]]; IoU of the first class 30 / 45.
    first = re.search(r'<details class="confusion" data-label="Baseline".*?</details>', text, re.S)[0]
    counts = [int(n) for n in re.findall(r'data-n="(\d+)"', first)]
    assert counts == [90, 30, 0, 15, 15, 0, 0, 60, 0]
    assert re.findall(r"--v:([\d.]+)", first) == [
        "0.75",
        "0.25",
        "0.00",
        "0.50",
        "0.50",
        "0.00",
        "0.00",
        "1.00",
        "0.00",
    ]
    assert '<td class="number">66.67 ± 0.00</td>' in text


def test_many_classes_are_folded():
    matrix = np.diag(np.arange(40))
    names, folded = runs._frequent([str(i) for i in range(40)], matrix)
    assert names == [*map(str, range(11, 40)), "11 others"]
    assert folded.sum() == matrix.sum()
    assert folded[-1, -1] == sum(range(11))


def test_the_page_needs_nothing_from_outside_and_names_do_no_harm(tmp_path):
    made(tmp_path / "r" / "a", dataset=EVIL, method__note=EVIL)
    made(tmp_path / "r" / "b", dataset=EVIL, method__note='\'" onmouseover=alert(1) x="')
    text = text_of(tmp_path / "r", "--title", EVIL)
    page = Reader(text)
    assert page.open == []
    scripts = [attributes for tag, attributes in page.seen if tag == "script"]
    assert scripts == [{}]  # the page's own, and none of a name
    assert not re.search(r"https?://|url\(|@import", text)
    assert not any(tag in ("link", "iframe", "object", "base", "form") for tag, _ in page.seen)
    assert not any(name.startswith("on") for _, attributes in page.seen for name in attributes)
    script = asset("page.js")
    own = ("meta", {"http-equiv": "Content-Security-Policy", "content": policy(script)})
    assert own in page.seen
    digest = hashlib.sha256(re.search(r"<script>(.*?)</script>", text, re.S)[1].encode()).digest()
    for word in ("default-src 'none'", "img-src data:", f"'sha256-{base64.b64encode(digest).decode()}'"):
        assert word in own[1]["content"]
    assert "</script" not in script


def test_the_same_runs_give_the_same_bytes(study):
    assert text_of(study) == text_of(study)


def test_requests_that_cannot_be_met(study, capsys):
    for arguments, told_ in [
        ([str(study), "-o", "x.pdf"], "must be a file that ends in .html"),
        ([str(study), "-o", "x.html", "--frames", "0"], "must be at least 1"),
        ([str(study / "nowhere"), "-o", "x.html"], "holds no run"),
        ([str(study), "-o", "x.html", "--no-explorer", "--rows", "methd"], "did you mean method"),
        (["data.batch_size=1", "-o", "x.html"], "name at least one run"),
        (
            [str(study), "-o", str(study / "lost" / "run.json" / "x.html"), "--no-explorer"],
            "name another file",
        ),
    ]:
        assert main(["page", *arguments]) == 2
        assert told_ in capsys.readouterr().err


def test_a_page_without_explorer_needs_no_torch(study):
    code = (
        "import sys; sys.modules['torch'] = None; from hardpix.cli import main; "
        f"sys.exit(main(['page', {str(study)!r}, '-o', {str(study / 'o.html')!r}, '--no-explorer']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "10 runs, swept: method.alpha" in done.stdout
    assert list(study.glob(".*")) == []  # nothing unfinished


def test_a_frame_scores_the_classes_of_its_labels():
    label = np.array([[0, 0, 1, 1, 255, 7]])
    prediction = np.array([[0, 1, 1, 2, 0, 0]])
    miou, wrong = score(label, prediction, 255, 3)
    assert miou == pytest.approx((1 / 2 + 1 / 3) / 2)  # class 2 is not in the labels
    assert wrong == 0.5
    assert all(map(math.isnan, score(np.full((1, 2), 255), np.zeros((1, 2)), 255, 3)))


def test_maps_keep_their_order_and_their_holes():
    values = np.array([[np.nan, 0.2, 0.4, 0.6, 9.0]])
    assert _bytes(values, 0.2, 0.6).tolist() == [[0, 1, 128, 255, 255]]
    assert _bytes(values, 0.2, 0.2).tolist() == [[0, 1, 1, 1, 1]]
    rows, columns = _grid((4, 8), 4)
    assert (rows.ravel().tolist(), columns.ravel().tolist()) == ([1, 3], [1, 3, 5, 7])
    assert [part.size for part in _grid((4, 8), 480)] == [4, 8]


def test_the_explorer_embeds_labels_as_they_are():
    label = np.array([[0, 1, 2], [255, -1, 1]])
    maps = {"loss": np.array([[0.0, 1.0, 2.0], [np.nan, np.nan, 0.5]], np.float32)}
    frame = Frame(
        "f", np.zeros((2, 3, 3), np.uint8), label, [View(np.array([[0, 1, 1], [2, 2, 2]]), maps, 0.5, 0.25)]
    )
    info = DatasetInfo("x", ("a", "b", "c"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    found = Explorer(info, "test", [("run", [MapKind("loss", "loss")])], [frame], [])
    content = _content(found, info, 480)

    def decoded(uri):
        return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).tolist()

    own = content["frames"][0]
    assert decoded(own["label"]) == [[0, 1, 2], [255, 255, 1]]
    assert decoded(own["runs"][0]["prediction"]) == [[0, 1, 1], [2, 2, 2]]
    assert decoded(own["runs"][0]["maps"][0])[0][0] == 1
    assert decoded(own["runs"][0]["maps"][0])[1] == [0, 0, 65]  # the map ends at its 99.9th percentile
    assert content["runs"][0]["maps"][0]["low"] == 0
    assert len(bytes.fromhex(content["colors"])) == 3 * 256


def test_pictures_shrink_until_the_page_is_small_enough(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (90, 300, 3), np.uint8)
    views = [View(np.zeros((90, 300), int), {"loss": noise[..., 0].astype(np.float32)}, 0.5, 0.5)]
    info = DatasetInfo("x", ("a",), ((1, 2, 3),))
    frame = Frame("f", noise, np.zeros((90, 300), int), views)
    found = Explorer(info, "test", [("run", [MapKind("loss", "loss")])], [frame], [])
    assert found.content()["frames"][0]["width"] == 300
    monkeypatch.setattr(explorer, "BUDGET", 50_000)
    own = found.content()["frames"][0]
    assert (own["width"], own["height"]) == (240, 72)
    assert len(json.dumps(own)) <= 50_000


def with_images(folder, scores, classes=("a", "b")):
    """A run's counts by image: of each image the pixels that are right, of 10 in each class."""
    lines = ["image,pixels,pixel_acc,miou,counts"]
    for i, hit in enumerate(scores):
        lines.append(f"f{i},20,0.5,0.5,0:{hit}/10/10 1:{hit}/10/10")
    (folder / "per_image.csv").write_text("\n".join(lines) + "\n")
    (folder / "per_class.csv").write_text(
        "class,iou,acc,pixels\n" + "".join(f"{c},0.5,0.5,10\n" for c in classes)
    )


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_first_sentence_says_what_came_out(tmp_path, seeds):
    """Counts of hit pixels h of 10 give IoU h / (20 - h) for a class with as many predicted."""
    for seed in range(seeds):
        for method, hits in (("Baseline", [4, 5, 6, 5]), ("Better", [6, 7, 8, 7 + seed])):
            share = sum(hits) / (80 - sum(hits))
            folder = made(tmp_path / "r" / f"{method}{seed}", method, seed, share, files=False)
            with_images(folder, hits)
    (part,) = parts(gather([tmp_path / "r"])[0], "test")
    cell = part.table.rows[1].cells[1]  # what `hardpix table --against` says of it
    low, high = (f"{100 * end:.1f}" for end in (cell.test.low, cell.test.high))
    said = outcome(part)
    expected = f"Best: Better, +{100 * cell.mean:.1f} mIoU over Baseline [{low}, {high}], n = {seeds}."
    assert said.startswith(expected)
    assert ("With fewer than 3 seeds" in said) == (seeds == 2)
    assert part.table.against == "Baseline"
    text = text_of(tmp_path / "r")
    assert f'<p class="lead">{said}</p>' in text
    assert "<title>Runs on rooms</title>" in text


def test_the_first_sentence_where_there_is_no_best(tmp_path):
    made(tmp_path / "a", "Baseline", 0, 0.5, files=False)
    said = lambda: outcome(parts(gather([tmp_path])[0], "test")[0])  # noqa: E731
    assert said() == "Baseline, 50.00 mIoU, n = 1."
    made(tmp_path / "b", "HL", 0, 0.4, files=False)
    assert said() == "Best: Baseline, +10.0 mIoU over HL, n = 1. There is no interval: it needs 3 seeds."
    made(tmp_path / "c", "HL", 1, status="failed", files=False)
    assert said() == "No row has its mIoU for every seed yet: 2 of 3 runs are done."
    made(tmp_path / "d", "HL", 0, 0.4, files=False)
    assert said() == "These runs are not comparable."


def test_a_run_that_was_only_tried_has_no_score(tmp_path):
    made(tmp_path / "a", miou=0.9, trainer__fast_dev_run=True)
    text = text_of(tmp_path)
    assert "<strong>fast_dev_run</strong>" in text
    assert "90.00" not in text


def test_names_are_those_of_papers_and_of_the_study(study):
    assert [metric_title(m) for m in ("test/miou", "val/pixel_acc", "train/loss")] == [
        "mIoU (%)", "validation pixel accuracy (%)", "training loss",
    ]  # fmt: skip
    text = text_of(study)
    assert "_target_" not in text
    assert "test/miou" not in text
    made(study / "named", seed=5, study="my study")
    assert "<h1>my study</h1>" in text_of(study)


def test_a_table_has_a_page_of_its_own(tmp_path):
    made(tmp_path / "r" / "a", method__note=EVIL)
    (part,) = parts(gather([tmp_path / "r"])[0], "test")
    page = table_page(EVIL, render(part.table, "html"), part.runs)
    assert Reader(page).open == []
    assert page.startswith("<!DOCTYPE html>")
    assert [tag for tag, _ in Reader(page).seen].count("script") == 1


def test_the_former_name_of_the_command_says_the_new_one(study, capsys):
    assert main(["report", str(study), "-o", str(study / "o.html"), "--no-explorer"]) == 0
    assert "hardpix page" in capsys.readouterr().err
    assert (study / "o.html").is_file()
