"""``hardpix report``: self-contained HTML pages of runs, with the explorer of hard pixels."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hardpix.draw.pictures import heatmap
from hardpix.page import sections
from hardpix.page.content import Part
from hardpix.page.sections import sensitivity
from hardpix.page.svg import attribute, cost_quality, learning_curves
from hardpix.record import write_text
from hardpix.tables.compare import Run
from hardpix.types import DatasetInfo, HardpixError

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #f3f4f6; --line: #d5d9df;
  --best: #0b6e3b; --lacking: #a4371f; --faint: #5c6570; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #14171a; --soft: #1e2328; --line: #3a424b;
  --best: #6fd6a0; --lacking: #ff9c83; --faint: #a0a8b2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1400px; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
thead th { background: var(--soft); white-space: normal; vertical-align: bottom; }
tbody th { font-weight: 500; position: sticky; left: 0; background: var(--paper); }
td.lacking { white-space: normal; min-width: 9rem; }
th.group { text-align: center; border-left: 1px solid var(--line); } th.part { background: var(--soft); }
sup { color: var(--faint); padding-left: .15em; } .unrun { color: var(--faint); }
.number { text-align: right; }
td.words { min-width: 16rem; white-space: normal; } th.rows { vertical-align: top; }
.second { text-decoration: underline; } code { font-size: .85em; background: var(--soft); padding: 0 .2em; }
.best { font-weight: 700; color: var(--best); } .lacking, .failed, .interrupted { color: var(--lacking); }
.note { color: var(--faint); margin: .4rem 0; font-size: .9rem; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; border-radius: .3rem; }
figure { margin: 0 0 1.5rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: .2rem; }
figcaption { font-size: .9rem; color: var(--faint); }
@media (max-width: 700px) { figure img { max-width: none; height: 11rem; } }
"""


@dataclass(frozen=True)
class Figure:
    caption: str
    image: Image.Image | Path  # a file must be a PNG


@dataclass(frozen=True)
class Section:
    title: str
    figures: Sequence[Figure]
    text: str = ""


def index_page(
    title: str,
    tables: Sequence[str],
    sections: Sequence[Section] = (),
    *,
    runs: Sequence[Run] = (),
    commands: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """A whole HTML document. ``tables`` are fragments from ``render(table, "html")``; all else is escaped here.

    Pictures are embedded, so the page can be mailed or archived alone.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    parts += tables
    parts += [part for section in sections for part in _section(section)]
    if runs:
        parts += ["<h2>Runs</h2>", _run_list(runs)]
    if commands:
        parts += ["<h2>Commands</h2>", f"<pre>{html.escape(chr(10).join(commands))}</pre>"]
    return _index_document(title, "\n".join(parts))


def _section(section: Section) -> list[str]:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    return parts + [_figure(figure) for figure in section.figures]


def _figure(figure: Figure) -> str:
    caption = html.escape(figure.caption, quote=True)
    # The wrapper scrolls on a phone, where a panel of five tiles would be too small to see.
    return (
        f"<figure><div class=scroll tabindex=0><img src='{_data_uri(figure.image)}' alt='{caption}' loading=lazy></div>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _data_uri(image: Image.Image | Path) -> str:
    if isinstance(image, Path):
        content = image.read_bytes()
    else:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        content = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _run_list(runs: Sequence[Run]) -> str:
    lines = ["<div class=scroll><table><thead><tr>"]
    heads = ("run", "status", "seed", "seconds", "directory")
    lines += [f"<th>{head}</th>" for head in heads] + ["</tr></thead><tbody>"]
    for directory, record in runs:
        seconds = record.metrics.get("run/seconds")
        status = f"{record.outcome}: {record.reason}" if record.reason else record.outcome
        cells = [record.name or record.run_id, status, str(record.seed)]
        cells += ["-" if seconds is None else f"{seconds:.1f}", directory]
        kinds = ["", f"words {record.outcome}", "number", "number", ""]
        row = [
            f"<td class='{kind}'>{html.escape(cell)}</td>" for kind, cell in zip(kinds, cells, strict=True)
        ]
        lines.append("<tr>" + "".join(row) + "</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def _index_document(title: str, body: str) -> str:
    return (
        "<!DOCTYPE html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        "<meta name=viewport content='width=device-width, initial-scale=1'>\n"
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


# ``hardpix report``: one page of runs that needs no network and, but for its explorer, no script.


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
SCRIPTS = ("report.js", "explorer.js")


def page(
    title: str,
    parts: Sequence[Part],
    explorers: Sequence[Explorer | None],
    *,
    damaged: Sequence[tuple[str, str]] = (),
    commands: Sequence[str] = (),
) -> str:
    """A whole HTML document. ``explorers``: of each part; None: it is not wanted.

    The same runs give the same bytes. Names of runs and classes are escaped, whatever they hold.
    """
    several = len(parts) > 1
    sections: list[tuple[str, str]] = []
    for i, (part, found) in enumerate(zip(parts, explorers, strict=True)):
        before = f"{part.dataset or 'unknown data'}: " if several else ""
        sections += [(f"{before}{name}", body) for name, body in _sections(part, found, i) if body]
    if damaged:
        lines = [f"<li><strong>damaged</strong> {attribute(d)}: {attribute(why)}</li>" for d, why in damaged]
        sections.insert(0, ("Damaged runs", f'<ul class="lacking">{"".join(lines)}</ul>'))
    if commands:
        sections.append(("Commands", f"<pre tabindex=0>{attribute(chr(10).join(commands))}</pre>"))
    links = "".join(f'<a href="#s{i}">{attribute(name)}</a>' for i, (name, _) in enumerate(sections))
    body = "\n".join(
        f'<section id="s{i}" aria-labelledby="h{i}"><h2 id="h{i}">{attribute(name)}</h2>\n{content}\n</section>'
        for i, (name, content) in enumerate(sections)
    )
    return _document(title, links, body)


def _sections(part: Part, found: Explorer | None, place: int) -> list[tuple[str, str]]:
    notes = list(part.notes)
    curves = learning_curves(part, notes)
    matrices = sections.matrices(part, notes)
    told = "".join(f'<p class="note">{attribute(note)}</p>' for note in dict.fromkeys(notes))
    return [
        ("Summary", sections.summary(part) + sections.without_score(part) + told),
        ("Scores", sections.scores(part)),
        ("Hard pixels", "" if found is None else explorer(found, place)),
        ("Learning curves", curves),
        ("Swept settings", sensitivity(part)),
        ("Cost against quality", cost_quality(part)),
        ("Classes", sections.per_class(part, notes)),
        ("Confusion matrices", sections.confusion_matrices(part, matrices)),
        ("Runs", sections.run_list(part.runs)),
    ]


def _document(title: str, links: str, body: str) -> str:
    style = STYLE + asset("report.css")
    script = "\n".join(asset(name) for name in SCRIPTS)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{attribute(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#content">to the content</a>\n<h1>{attribute(title)}</h1>\n'
        f'<nav aria-label="sections">{links}</nav>\n<main id="content">\n{body}\n</main>\n'
        f"<script>\n{script}\n</script>\n</body>\n</html>\n"
    )


def asset(name: str) -> str:
    """A style or script of the page, from the package."""
    return files("hardpix.page").joinpath("assets", name).read_text(encoding="utf-8")


def write_page(text: str, path: Path) -> None:
    """Whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise HardpixError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None


# The explorer of hard pixels on a page of runs: frames, labels and maps as pictures in the page's own
# data.


WIDTHS = (480, 360, 240, 160)  # of a picture: the first at which all of them are small enough
BUDGET = 10_000_000  # bytes of all pictures of one explorer
VOID = 255  # in labels as they are embedded
HIGH = 99.9  # percentile at which a map ends, so that one pixel does not darken all others


class MapKind(NamedTuple):
    name: str
    title: str


@dataclass(frozen=True)
class View:
    """What one run says of a frame: classes ``[H, W]``, maps ``[H, W]`` float32 with NaN where nothing is said."""

    prediction: np.ndarray
    maps: dict[str, np.ndarray]
    miou: float  # mean IoU of the classes in the frame's labels, NaN without labels
    wrong: float  # share of the labelled pixels


@dataclass(frozen=True)
class Frame:
    name: str
    image: np.ndarray  # [H, W, 3] uint8
    label: np.ndarray  # [H, W]
    views: list[View]  # of each run


@dataclass(frozen=True)
class Explorer:
    """``runs``: label and the maps of each; ``notes``: what is not shown, and why."""

    info: DatasetInfo | None
    split: str
    runs: list[tuple[str, list[MapKind]]]
    frames: list[Frame]
    notes: list[str]
    order: str = ""  # how the frames were chosen


def score(label: np.ndarray, prediction: np.ndarray, ignore_index: int, classes: int) -> tuple[float, float]:
    """(mean IoU over the classes that occur in ``label``, share of wrong pixels); NaN without a labelled pixel."""
    valid = (label != ignore_index) & (label >= 0) & (label < classes)
    truth, guess = label[valid], prediction[valid]
    if not truth.size:
        return math.nan, math.nan
    present = np.unique(truth)
    ious = [((truth == c) & (guess == c)).sum() / ((truth == c) | (guess == c)).sum() for c in present]
    return float(np.mean(ious)), float((truth != guess).mean())


def explorer(found: Explorer, place: int) -> str:
    """The controls and the data; the script draws. ``place`` tells explorers of one page apart."""
    notes = "".join(f'<p class="note">{attribute(note)}</p>' for note in found.notes)
    if not found.frames or found.info is None:
        return notes
    content = json.dumps(_fitting(found), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<noscript><p class="lacking">The explorer needs JavaScript; all else on this page does not.</p></noscript>'
        f'<div class="explorer" role="group" aria-label="explorer of hard pixels" tabindex="-1">'
        f'<script type="application/json" id="frames-{place}">{content}</script></div>{notes}'
    )


def _fitting(found: Explorer) -> dict[str, Any]:
    """The data with pictures of the largest width that keeps the page small."""
    for width in WIDTHS:
        content, size = _content(found, width)
        if size <= BUDGET:
            break
    return content


def _content(found: Explorer, width: int) -> tuple[dict[str, Any], int]:
    assert found.info is not None
    ranges = [_ranges(found, i) for i in range(len(found.runs))]
    frames = [_frame(found, frame, ranges, width) for frame in found.frames]
    size = sum(len(text) for frame in frames for text in _pictures(frame))
    colors = heatmap(np.linspace(0, 1, 256, dtype=np.float32)[None], 0, 1)[0]
    return {
        "split": found.split,
        "order": found.order,
        "classes": list(found.info.classes),
        "palette": [list(color) for color in found.info.palette],
        "colors": colors.tobytes().hex(),
        "runs": [
            {
                "label": label,
                "maps": [
                    {"name": m.name, "title": m.title, "low": low, "high": high}
                    for m, (low, high) in zip(maps, own, strict=True)
                ],
            }
            for (label, maps), own in zip(found.runs, ranges, strict=True)
        ],
        "frames": frames,
    }, size


def _ranges(found: Explorer, run: int) -> list[tuple[float, float]]:
    """Of each map of a run over all frames that are shown: rounded, and never empty."""
    made = []
    for kind in found.runs[run][1]:
        values = np.concatenate([frame.views[run].maps[kind.name].ravel() for frame in found.frames])
        values = values[np.isfinite(values)]
        low, high = (values.min(), np.percentile(values, HIGH)) if values.size else (0.0, 1.0)
        made.append((float(f"{low:.6g}"), float(f"{high:.6g}")))
    return made


def _frame(
    found: Explorer, frame: Frame, ranges: list[list[tuple[float, float]]], width: int
) -> dict[str, Any]:
    assert found.info is not None
    ignore, classes = found.info.ignore_index, found.info.num_classes
    rows, columns = _grid(frame.label.shape, width)
    void = (frame.label == ignore) | (frame.label < 0) | (frame.label >= classes)
    label = np.where(void, VOID, frame.label)[rows, columns]
    shape = label.shape
    picture = Image.fromarray(frame.image).resize((shape[1], shape[0]), Image.Resampling.BOX)
    views = []
    for view, (_, maps), own in zip(frame.views, found.runs, ranges, strict=True):
        coded = [
            _png(_bytes(view.maps[kind.name][rows, columns], *ends))
            for kind, ends in zip(maps, own, strict=True)
        ]
        views.append(
            {
                "prediction": _png(view.prediction[rows, columns]),
                "miou": None if math.isnan(view.miou) else round(view.miou, 4),
                "wrong": None if math.isnan(view.wrong) else round(view.wrong, 4),
                "maps": coded,
            }
        )
    return {
        "name": frame.name,
        "width": shape[1],
        "height": shape[0],
        "image": _jpeg(picture),
        "label": _png(label),
        "runs": views,
    }


def _grid(shape: tuple[int, ...], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the pixels that stay, evenly spaced: the same of image, labels and maps."""
    height = shape[0] if shape[1] <= width else max(1, round(shape[0] * width / shape[1]))
    wide = min(shape[1], width)
    rows = ((np.arange(height) + 0.5) * shape[0] / height).astype(int)
    columns = ((np.arange(wide) + 0.5) * shape[1] / wide).astype(int)
    return rows[:, None], columns[None, :]


def _bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """1 at ``low`` to 255 at ``high``, clipped; 0 where there is no value."""
    finite = np.isfinite(values)
    unit = (np.where(finite, values, low) - low) / (high - low) if high > low else np.zeros(values.shape)
    return np.where(finite, 1 + np.rint(254 * np.clip(unit, 0, 1)), 0)


def _png(values: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _pictures(frame: dict[str, Any]) -> Sequence[str]:
    own = [text for run in frame["runs"] for text in (run["prediction"], *run["maps"])]
    return [frame["image"], frame["label"], *own]
