"""The page of ``hardpix page`` in a browser: it sorts, marks the hardest pixels, and asks for nothing."""

import shutil

import numpy as np
import pytest

from hardpix.page.explorer import Explorer, Frame, MapKind, View, score
from hardpix.page.page import page
from hardpix.page.runs import gather, parts
from hardpix.record import SCHEMA, RunRecord, write
from hardpix.types import DatasetInfo

pytestmark = pytest.mark.slow

CLASSES = ("</script><b>road", "tree", "car")
PALETTE = ((128, 64, 128), (0, 128, 0), (0, 0, 200))
HEIGHT, WIDTH = 6, 10
HARD = (255, 60, 20)


def run(folder, method, seed, miou, alpha=None):
    factors = {"method._target_": f"hardpix.methods.{method}", "seed": seed}
    factors |= {} if alpha is None else {"method.alpha": alpha}
    folder.mkdir(parents=True)
    write(
        RunRecord(
            schema=SCHEMA, run_id=folder.name, status="done", factors=factors, seed=seed, parent=None, code={}, host={},
            metrics={"test/miou": miou, "cost/step_seconds": miou, "cost/peak_memory_mb": 3.0 - miou}, started="",
            dataset="rooms", name=folder.name,
        ),
        folder,
    )  # fmt: skip
    (folder / "metrics.csv").write_text("step,train/loss,val/miou\n0,2,0.1\n1,1,0.2\n")
    counts = (
        [[8, 2, 0], [0, 10, 0], [5, 0, 5]] if method == "Baseline" else [[10, 0, 0], [0, 10, 0], [10, 0, 0]]
    )
    np.save(folder / "confusion.npy", np.array(counts))


def frame(name, wrong):
    """A frame of three upright stripes, the last column void; ``wrong`` pixels of the first row are mistaken."""
    label = np.tile(np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 255]), (HEIGHT, 1))
    loss = np.arange(HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)  # hardest below
    loss[label == 255] = np.nan
    views = []
    for shift in (0, 1):
        prediction = np.where(label == 255, 0, label)
        prediction[0, :wrong] = (prediction[0, :wrong] + 1 + shift) % 3
        views.append(View(prediction, {"loss": loss, "own": -loss}, *score(label, prediction, 255, 3)))
    return Frame(name, np.full((HEIGHT, WIDTH, 3), 100, np.uint8), label, views)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for i, (method, miou, alpha) in enumerate([("Baseline", 0.3, None), ("HL", 0.4, 0.1), ("HL", 0.2, 1.0)]):
        for seed in (0, 1):
            run(folder / "runs" / f"{i}-{seed}", method, seed, miou + 0.05 * seed, alpha)
    made = parts(gather([folder / "runs"])[0], "test")
    kinds = [MapKind("loss", "loss"), MapKind("own", "own <i>map</i>")]
    explorer = Explorer(
        DatasetInfo("rooms", CLASSES, PALETTE), "test", [("base", kinds), ("hl", kinds)],
        [frame("easy", 1), frame("worst", 9), frame("middle", 4)], [], "Three frames.",
    )  # fmt: skip
    path = folder / "page.html"
    path.write_text(page("A page", made, [explorer]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, file):
    """``opened(width, ...)``: the loaded page; afterwards it must have been silent and asked for nothing."""
    contexts, faults = [], []

    def open_page(width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        view = context.new_page()
        view.on("console", lambda message: faults.append(message.text))
        view.on("pageerror", lambda error: faults.append(str(error)))
        view.on("request", lambda request: request.url == file.as_uri() or faults.append(request.url[:80]))
        view.goto(file.as_uri())
        if options.get("java_script_enabled", True):
            view.wait_for_selector(".explorer[data-frame]")
        return view

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def marked(view):
    """Which pixels of the main canvas have the marks' colour, as (row, column)."""
    code = """c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const found = [];
        for (let i = 0; i < d.length; i += 4) found.push([d[i], d[i + 1], d[i + 2]]); return found; }"""
    colors = np.array(view.locator(".explorer .main canvas").evaluate(code)).reshape(HEIGHT, WIDTH, 3)
    return {tuple(map(int, place)) for place in np.argwhere((colors == HARD).all(2))}


def slide(view, name, value):
    view.get_by_role("slider", name=name).evaluate(
        "(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); }", str(value)
    )


def test_tables_sort_by_click_and_by_key(opened):
    view = opened()
    table = view.locator("section[aria-label=Scores] table")
    button = table.locator("th", has_text="mIoU (%)").get_by_role("button")
    first = [row.split("\t")[0] for row in table.locator("tbody tr").all_inner_texts()]
    button.click()
    rising = [row.split("\t")[0] for row in table.locator("tbody tr").all_inner_texts()]
    assert rising == ["HL (alpha=1.0)", "Baseline", "HL (alpha=0.1)"] != first
    button.press("Enter")
    assert [row.split("\t")[0] for row in table.locator("tbody tr").all_inner_texts()] == rising[::-1]
    assert table.locator("th[aria-sort=descending]").count() == 1


def test_the_slider_marks_the_hardest_pixels(opened):
    view = opened()
    slide(view, "opacity", 100)
    slide(view, "hardest pixels", 0)
    assert marked(view) == set()
    slide(view, "hardest pixels", 50)
    labelled = [(r, c) for r in range(HEIGHT) for c in range(WIDTH - 1)]
    hardest = set(labelled[len(labelled) // 2 :])  # the last column is void
    assert marked(view) == hardest
    assert view.locator(".main .note").inner_text().startswith("Marked: the 50.0 % with loss")
    slide(view, "opacity", 50)
    assert marked(view) == set()  # another colour
    slide(view, "opacity", 100)
    view.get_by_label("hardness map").select_option(label="own <i>map</i>")
    assert marked(view) == set(labelled) - hardest
    view.get_by_label("only pixels of", exact=True).select_option(label="tree")
    assert marked(view) == {(r, c) for r, c in set(labelled) - hardest if c in (3, 4, 5)}
    # Other classes are darkened everywhere.
    centre = "c => [...c.getContext('2d').getImageData({}, 1, 1, 1).data].slice(0, 3)"
    truth = view.locator(".once canvas")
    assert truth.evaluate(centre.format(4)) == list(PALETTE[1])
    assert sum(truth.evaluate(centre.format(1))) < 0.3 * sum(PALETTE[0])
    view.locator(".explorer").get_by_role("button", name="</script><b>road").click()
    assert truth.evaluate(centre.format(1)) == list(PALETTE[0])


def test_frames_are_walked_by_keys_worst_first(opened):
    view = opened()
    shown = lambda name: view.wait_for_selector(f".explorer[data-frame={name}]", timeout=2000)  # noqa: E731
    shown("worst")
    view.get_by_label("next frame").focus()
    view.keyboard.press("ArrowRight")
    shown("middle")
    view.keyboard.press("PageDown")
    shown("easy")
    view.keyboard.press("PageDown")  # the last one
    view.keyboard.press("ArrowLeft")
    shown("middle")
    view.keyboard.press("Home")
    shown("worst")
    view.get_by_label("order of frames").select_option(label="by name")
    shown("easy")
    assert (
        view.get_by_label("frame", exact=True)
        .locator("option")
        .all_inner_texts()[1]
        .startswith("2 of 3: middle")
    )


def test_a_pixel_is_read_out_by_keys(opened):
    view = opened()
    canvas = view.locator(".explorer .main canvas")
    canvas.focus()
    for key in ("Shift+ArrowUp", "Shift+ArrowLeft", "ArrowRight"):
        canvas.press(key)
    told = view.locator(".readout").inner_text()
    # Column 1 of row 0 of the worst frame: A takes the next class for it, B the one after. Of 255 levels to 57.9 the
    # nearest to 1 is 0.913.
    assert told.startswith("(1, 0) truth  </script><b>road; A:  tree, loss 0.913")
    assert "; B:  car, loss 0.913" in told
    assert view.locator(".explorer").get_attribute("data-frame") == "worst"  # the keys did not change it


def test_two_runs_line_up_or_one_is_alone(opened):
    view = opened()
    places = (
        "all => all.map(f => f.getBoundingClientRect()).map(b => [Math.round(b.left), Math.round(b.top)])"
    )
    a, b = (view.locator(f".kinds figure.{side}").evaluate_all(places) for side in "ab")
    assert len(a) == len(b) == 4  # prediction, error and two maps
    assert [x for x, _ in a] == [x for x, _ in b]
    assert [len({y for _, y in side}) for side in (a, b)] == [1, 1]
    assert view.locator(".once").count() == 1  # the truth is shown once
    view.get_by_label("run B").select_option(label="none")
    view.locator(".kinds h3.b").wait_for(state="detached")
    assert view.locator(".kinds figure").count() == 4


def test_a_map_that_one_run_lacks_leaves_its_place_empty(browser, file, tmp_path):
    own = [MapKind("loss", "loss")]
    found = frame("f", 1)
    found.views[0].maps.pop("own")
    info = DatasetInfo("rooms", CLASSES, PALETTE)
    explorer = Explorer(
        info, "test", [("base", own), ("hl", [*own, MapKind("own", "Z")])], [found], [], "One."
    )
    made = parts(gather([file.parent / "runs"])[0], "test")
    path = tmp_path / "page.html"
    path.write_text(page("A page", made, [explorer]), encoding="utf-8")
    view = browser.new_page()
    view.goto(path.as_uri())
    view.wait_for_selector(".explorer[data-frame]")
    assert view.locator(".kinds figure.a").all_inner_texts()[-1] == "A has no Z"
    view.close()


def test_charts_are_drawn_in_the_colours_of_the_page(opened):
    ink = "c => getComputedStyle(c.querySelector('text')).fill"
    for scheme, expected in (("light", "rgb(27, 31, 36)"), ("dark", "rgb(230, 232, 235)")):
        charts = opened(color_scheme=scheme).locator("svg.chart")
        assert charts.count() == 5  # two curves, two costs, one sweep
        assert charts.first.evaluate(ink) == expected


def test_confusion_matrices_and_their_difference(opened):
    view = opened()
    section = view.locator("section", has=view.get_by_role("heading", name="Classes"))
    holder = section.get_by_role("group", name="confusion matrix")
    assert holder.locator("tbody tr").first.inner_text().split("\t")[1:3] == ["80", "20"]
    section.get_by_label("minus").select_option(label="HL (alpha=0.1)")
    assert [cell.strip() for cell in holder.locator("td.cell").all_inner_texts()][:2] == ["\u221220", "+20"]
    title = holder.locator("td.cell").nth(1).get_attribute("title")
    assert title == "0 predicted as 1: 4 pixels, against 0: 20.00 points"


@pytest.mark.parametrize("width", [360, 390, 800, 1280])
def test_no_width_scrolls_sideways(opened, width):
    view = opened(width)
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert view.locator(".explorer .main canvas").bounding_box()["width"] > 300


def test_light_and_dark(opened):
    ground = "getComputedStyle(document.body).backgroundColor"
    assert opened(color_scheme="light").evaluate(ground) == "rgb(255, 255, 255)"
    assert opened(color_scheme="dark").evaluate(ground) == "rgb(20, 23, 26)"


def test_every_control_can_be_focused_and_shows_it(opened):
    view = opened()
    kinds = "button, select, input, a, summary, canvas[tabindex]"
    view.evaluate(f"window.all = [...document.querySelectorAll('{kinds}')]")
    reached = set()
    for _ in range(120):
        view.keyboard.press("Tab")
        reached.add(view.evaluate("all.indexOf(document.activeElement)"))
    visible = "all.map((e, i) => [e, i]).filter(([e]) => e.checkVisibility()).map(([, i]) => i)"
    assert set(view.evaluate(visible)) <= reached
    view.get_by_label("run B").focus()
    view.keyboard.press("Tab")
    assert view.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_without_scripts_only_the_explorer_is_lost(opened):
    view = opened(java_script_enabled=False)
    assert view.locator("noscript").inner_text().startswith("The explorer needs JavaScript")
    assert view.locator("svg.chart:visible").count() == 5  # two curves, one sweep, both costs
    assert view.locator("details.confusion").count() == 3
    assert view.locator("td.best").count() > 0
