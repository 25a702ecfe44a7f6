"""``hardpix report``: one page of runs that needs no network and, but for its explorer, no script."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from hardpix.atomic import write_text
from hardpix.report import page_tables
from hardpix.report.html import STYLE
from hardpix.report.page_charts import cost_quality, learning_curves
from hardpix.report.page_explorer import Explorer, explorer
from hardpix.report.page_runs import Part
from hardpix.report.page_sweep import sensitivity
from hardpix.report.svg import attribute
from hardpix.types import HardpixError

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
    matrices = page_tables.matrices(part, notes)
    told = "".join(f'<p class="note">{attribute(note)}</p>' for note in dict.fromkeys(notes))
    return [
        ("Summary", page_tables.summary(part) + page_tables.without_score(part) + told),
        ("Scores", page_tables.scores(part)),
        ("Hard pixels", "" if found is None else explorer(found, place)),
        ("Learning curves", curves),
        ("Swept settings", sensitivity(part)),
        ("Cost against quality", cost_quality(part)),
        ("Classes", page_tables.per_class(part, notes)),
        ("Confusion matrices", page_tables.confusion_matrices(part, matrices)),
        ("Runs", page_tables.run_list(part.runs)),
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
    return files("hardpix.report").joinpath("assets", name).read_text(encoding="utf-8")


def write_page(text: str, path: Path) -> None:
    """Whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise HardpixError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None
