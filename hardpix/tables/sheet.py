"""A table of texts as Markdown, LaTeX (booktabs) and HTML, whatever it is about."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import NamedTuple

TIMES = "\u00d7"
LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    TIMES: r"$\times$",
    "Δ": r"$\Delta$",
    "\n": " ",
}
BEST, SECOND, LACKING, UNRUN = "best", "second", "lacking", "unrun"  # what a page's style knows
FOLDED = 4  # marked notes that a page shows at once; more of them open on a click
SAME = "same"  # a label that the row above has, too: it is shown once for the group


class Text(NamedTuple):
    """The content of one place: words, raised marks, and a style."""

    words: str
    marks: tuple[str, ...] = ()
    style: str = ""


class Note(NamedTuple):
    """A sentence below the table, behind its mark; ``commands`` are what to type."""

    mark: str
    words: str
    commands: tuple[str, ...] = ()


class Sheet(NamedTuple):
    """Per column a group and a head, per part a title and rows. ``left`` columns and the last ``right`` hold words."""

    title: str
    heads: list[tuple[str, str]]
    parts: list[tuple[str, list[list[Text]]]]
    left: int
    notes: list[Note]
    right: int = 0

    def words(self, index: int) -> bool:
        return index < self.left or index >= len(self.heads) - self.right


def render(sheet: Sheet, form: str) -> str:
    """``form``: ``md``, ``latex`` or ``html`` (a fragment)."""
    forms: dict[str, Callable[[Sheet], str]] = {"md": _markdown, "latex": _latex, "html": _html}
    return forms[form](sheet)


def grouped(rows: Sequence[Sequence[str]]) -> list[list[Text]]:
    """Labels of rows, level by level: one that the row above has is SAME, as long as all before it are."""
    made: list[list[Text]] = []
    above: Sequence[str] = ()
    for labels in rows:
        line = [Text(label) for label in labels]
        for level in range(len(labels) - 1):  # the last label names the row itself
            if tuple(labels[: level + 1]) != tuple(above[: level + 1]):
                break
            line[level] = Text(labels[level], style=SAME)
        made.append(line)
        above = labels
    return made


def tex(words: str) -> str:
    return "".join(LATEX.get(character, character) for character in words)


# --- Markdown -------------------------------------------------------------------------------------------------


def _markdown(sheet: Sheet) -> str:
    heads = [" ".join(filter(None, head)) for head in sheet.heads]
    blocks = [f"### {sheet.title}"] * bool(sheet.title)
    for part, rows in sheet.parts:
        lines = [list(map(_md_escaped, heads)), *(list(map(_md_text, row)) for row in rows)]
        blocks += [f"**{part}**"] * bool(part) + [_padded(lines, sheet)]
    marked = [f"- {note.mark}: {_md_note(note)}" for note in sheet.notes if note.mark]
    blocks += ["\n".join(marked)] * bool(marked)
    blocks += [f"Note: {_md_note(note)}" for note in sheet.notes if not note.mark]
    return "\n\n".join(blocks) + "\n"


def _md_text(text: Text) -> str:
    if text.style == SAME:
        return ""
    words = _md_escaped(text.words)
    words = f"**{words}**" if text.style == BEST else words
    return words + (f" [{','.join(text.marks)}]" if text.marks else "")


def _md_escaped(words: str) -> str:
    return words.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _md_note(note: Note) -> str:
    return _note_text(note.words, [f"`{command}`" for command in note.commands])


def _note_text(words: str, commands: Sequence[str]) -> str:
    return f"{words}: {', '.join(commands)}" if commands else words


def _padded(lines: list[list[str]], sheet: Sheet) -> str:
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    words = [sheet.words(i) for i in range(len(widths))]

    def line(cells: Sequence[str]) -> str:
        places = zip(cells, widths, words, strict=True)
        return "| " + " | ".join(c.ljust(w) if left else c.rjust(w) for c, w, left in places) + " |"

    rule = ["-" * w if left else "-" * (w - 1) + ":" for w, left in zip(widths, words, strict=True)]
    return "\n".join(map(line, [lines[0], rule, *lines[1:]]))


# --- LaTeX ----------------------------------------------------------------------------------------------------


def _latex(sheet: Sheet) -> str:
    width = len(sheet.heads)
    alignment = "".join("l" if sheet.words(i) else "r" for i in range(width))
    lines = [f"% {sheet.title}"] * bool(sheet.title)
    lines += [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    if spans := _spans(sheet):
        cells = [rf"\multicolumn{{{n}}}{{c}}{{{tex(group)}}}" if group else "" for group, n in spans]
        lines += [" & ".join(cells) + r" \\", *_rules(spans)]
    lines.append(" & ".join(tex(head) for _, head in sheet.heads) + r" \\")
    for part, rows in sheet.parts:
        lines.append(r"\midrule")
        lines += [rf"\multicolumn{{{width}}}{{l}}{{\textit{{{tex(part)}}}}} \\"] * bool(part)
        grouping = any(row[0].style == SAME for row in rows)
        for i, row in enumerate(rows):
            lines += [r"\addlinespace"] * (grouping and i > 0 and row[0].style != SAME)
            lines.append(" & ".join(map(_tex_text, row)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = [
        (f"$^{{{note.mark}}}$ " if note.mark else "")
        + _note_text(tex(note.words), [rf"\texttt{{{tex(command)}}}" for command in note.commands])
        for note in sheet.notes
    ]
    if notes:  # not comments: they belong below the table
        lines += [r"\par\raggedright\footnotesize", *(rf"{note}\par" for note in notes)]
    return "\n".join(lines) + "\n"


def _spans(sheet: Sheet) -> list[tuple[str, int]]:
    """The upper line of heads: groups and how many columns each spans, none where no column has one."""
    spans: list[tuple[str, int]] = []
    for i, (group, _) in enumerate(sheet.heads):
        if group and spans and spans[-1][0] == group and not sheet.words(i):
            spans[-1] = (group, spans[-1][1] + 1)
        else:
            spans.append((group, 1))
    return spans if any(group for group, _ in spans) else []


def _rules(spans: Sequence[tuple[str, int]]) -> list[str]:
    found, first = [], 1
    for group, n in spans:
        found += [rf"\cmidrule(lr){{{first}-{first + n - 1}}}"] * bool(group)
        first += n
    return ["".join(found)] if found else []


def _tex_text(text: Text) -> str:
    if text.style == SAME:
        return ""
    words = tex(text.words)
    if text.style in (BEST, SECOND):
        words = rf"\{'textbf' if text.style == BEST else 'underline'}{{{words}}}"
    return words + (f"$^{{{','.join(text.marks)}}}$" if text.marks else "")


# --- HTML -----------------------------------------------------------------------------------------------------


def _html(sheet: Sheet) -> str:
    width = len(sheet.heads)
    lines = [f"<h2>{html.escape(sheet.title)}</h2>"] * bool(sheet.title)
    lines += ["<div class='scroll'><table>", "<thead>"]
    if spans := _spans(sheet):
        cells = [
            f"<th class=group colspan={n}>{html.escape(group)}</th>" if group else f"<th colspan={n}></th>"
            for group, n in spans
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = [
        f"<th{'' if sheet.words(i) else ' class=number'}>{html.escape(head)}</th>"
        for i, (_, head) in enumerate(sheet.heads)
    ]
    lines += [f"<tr>{''.join(heads)}</tr>", "</thead>", "<tbody>"]
    parts = {note.mark: _note_text(note.words, note.commands) for note in sheet.notes if note.mark}
    for part, rows in sheet.parts:
        lines += [f"<tr><th class=part colspan={width}>{html.escape(part)}</th></tr>"] * bool(part)
        lines += [_html_row(rows, i, sheet, parts) for i in range(len(rows))]
    lines.append("</tbody></table></div>")
    marked = [_html_note(note) for note in sheet.notes if note.mark]
    folds = len(marked) > FOLDED
    lines += [f"<details><summary>{len(marked)} notes, with commands for what is missing</summary>"] * folds
    lines += [*marked, *["</details>"] * folds]
    lines += [_html_note(note) for note in sheet.notes if not note.mark]
    return "\n".join(lines) + "\n"


def _html_note(note: Note) -> str:
    mark = f"<sup>{note.mark}</sup> " if note.mark else ""
    commands = [f"<code>{html.escape(command)}</code>" for command in note.commands]
    return f"<p class=note>{mark}{_note_text(html.escape(note.words), commands)}</p>"


def _html_row(rows: Sequence[Sequence[Text]], place: int, sheet: Sheet, summary: dict[str, str]) -> str:
    cells = []
    for i, text in enumerate(rows[place]):
        words = html.escape(text.words)
        if text.marks:
            title = html.escape("\n".join(summary.get(mark, "") for mark in text.marks), quote=True)
            words += f"<sup title='{title}'>{','.join(text.marks)}</sup>"
        if i < sheet.left:
            if text.style != SAME:
                cells.append(f"<th scope=row{_spanning(rows, place, i)}>{words}</th>")
        else:
            kind = "words" if sheet.words(i) else "number"
            cells.append(f"<td class='{' '.join(filter(None, [kind, text.style]))}'>{words}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _spanning(rows: Sequence[Sequence[Text]], place: int, column: int) -> str:
    """How many rows a group's name stands for."""
    below = place + 1
    while below < len(rows) and rows[below][column].style == SAME:
        below += 1
    return f" rowspan={below - place} class=rows" if below - place > 1 else ""
