"""One self-contained page: tables, runs, commands and pictures in a single file that needs no network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hardpix.report.collect import Run

if TYPE_CHECKING:
    from PIL import Image

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
    return _document(title, "\n".join(parts))


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


def _document(title: str, body: str) -> str:
    return (
        "<!DOCTYPE html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        "<meta name=viewport content='width=device-width, initial-scale=1'>\n"
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
