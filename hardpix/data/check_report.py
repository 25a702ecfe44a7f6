"""Print what a check of a data set found: splits, classes, findings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hardpix.data.check import Checkup, Finding, percent
from hardpix.data.check_frames import SplitSums
from hardpix.data.labels import spelled_names
from hardpix.data.source import Source

EXAMPLES = 3
COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def show(checkup: Checkup, console: Console) -> None:
    if checkup.sums:
        console.print(_splits(checkup))
    labelled = [sums for sums in checkup.sums if sums.labelled]
    if labelled:
        console.print(_classes(checkup, labelled))
    for finding in checkup.findings:
        _print_finding(finding, console)
    counts = {level: sum(f.level == level for f in checkup.findings) for level in COLOURS}
    if not checkup.findings:
        console.print("nothing to complain of")
    else:
        console.print(", ".join(f"{n} {level}{'s' * (n != 1)}" for level, n in counts.items()))


def _splits(checkup: Checkup) -> Table:
    info = checkup.info
    table = Table(title=f"{escape(info.name)}: {info.num_classes} classes")
    table.add_column("")
    for sums in checkup.sums:
        copies = "".join(f" = {plan.split}" for plan in checkup.plans if plan.same_as == sums.split)
        table.add_column(f"{sums.split}{copies}", justify="right")
    for row in zip(*(_facts(sums, checkup) for sums in checkup.sums), strict=True):
        if any(value for _, value in row):
            table.add_row(row[0][0], *(value or "-" for _, value in row))
    return table


def _facts(sums: SplitSums, checkup: Checkup) -> list[tuple[str, str]]:
    seen = f"{sums.looked:,}" if sums.looked == sums.frames else f"{sums.looked:,} of {sums.frames:,}"
    sizes = sorted(sums.sizes, key=lambda size: (size[0] * size[1], size))
    shown = [f"{width}x{height}" for height, width in sizes]
    facts = [
        ("frames looked at", seen),
        ("of these with faults", f"{sums.broken:,}"),
        ("width x height", shown[0] if len(shown) == 1 else " to ".join(shown[:: max(1, len(shown) - 1)])),
        ("different sizes", f"{len(shown):,}" if len(shown) > 1 else ""),
        ("mean of R G B", _numbers(sums.mean)),
        ("deviation of R G B", _numbers(sums.std)),
        ("void", percent(sums.void_share) if sums.labelled else ""),
    ]
    depth = sums.depth_quantiles
    valid = percent(sums.depth_valid / sums.depth_pixels) if sums.depth_pixels else ""
    span = f"{sums.depth_least:.3g} to {sums.depth_largest:.4g} m" if depth else ""
    middle = f"{depth['5%']:.2f}  {depth['50%']:.2f}  {depth['95%']:.2f} m" if depth else ""
    known, distinct = sum(sums.cameras.values()), len(sums.cameras)
    cameras = f"{known:,} frames, {distinct} different" if known else "none"
    return [
        *facts,
        ("depth", span),
        ("depth: 5 %, median, 95 %", middle),
        ("pixels with depth", valid),
        ("camera known", cameras if sums.with_depth or known else ""),
    ]


def _classes(checkup: Checkup, labelled: list[SplitSums]) -> Table:
    table = Table(title="classes: share of the labelled pixels, images with the class")
    table.add_column("")
    table.add_column("class")
    for sums in labelled:
        table.add_column(sums.split, justify="right")
        table.add_column("images", justify="right")
    for index, name in enumerate(checkup.info.classes):
        cells = []
        for sums in labelled:
            total, pixels = int(sums.class_pixels.sum()), int(sums.class_pixels[index])
            cells += [_share(pixels, total), f"{sums.class_images[index]:,}"]
        table.add_row(str(index), escape(name), *cells)
    return table


def _print_finding(finding: Finding, console: Console) -> None:
    colour, place = COLOURS[finding.level], f"{finding.split}: " if finding.split else ""
    head = f"[{colour}]{finding.level}[/] {escape(f'{place}{finding.what}')} [dim]({finding.code})[/]"
    console.print(head, highlight=False)
    parts = [hit.sentence or hit.name for hit in finding.hits]
    for sentence in parts[:EXAMPLES]:
        console.print(f"    {escape(sentence)}", highlight=False, soft_wrap=True)
    if len(parts) > EXAMPLES:
        console.print(f"    ... and {len(parts) - EXAMPLES} more, all in check.json", highlight=False)
    console.print(f"    -> {escape(finding.todo)}", highlight=False)


def _numbers(values: list[float]) -> str:
    return "" if any(map(math.isnan, values)) else " ".join(f"{value:.1f}" for value in values)


def _share(pixels: int, total: int) -> str:
    return "absent" if not pixels else percent(pixels / total)


# What is declared of labels, held against what the label files hold.


MUCH_VOID = 0.5  # share of a split's pixels without a class
NAMED = 8  # classes that a line lists


class Verdict(NamedTuple):
    """``refusal``: why no score would mean anything, empty where it would; ``lines``: what a user should know."""

    refusal: str
    lines: tuple[str, ...]


def judge(source: Source, counts: Mapping[str, NDArray[np.int64]]) -> Verdict:
    """Of the pixels of each class, and of none, in each split: ``[C + 1]``."""
    info, lines = source.info, []
    found = {split: np.flatnonzero(pixels[:-1]).tolist() for split, pixels in counts.items()}
    everywhere = sorted({index for indices in found.values() for index in indices})
    never = [index for index in range(info.num_classes) if index not in everywhere]
    void = {split: float(pixels[-1] / max(pixels.sum(), 1)) for split, pixels in counts.items()}
    way_out = "; ".join(filter(None, (_if_void_is(source, never, everywhere), _alone(source, everywhere))))
    begin, where = f"labels of {info.name}: ", _listed(list(counts), len(counts))
    missing = f"{_names(source, never)} never occur{'s' if len(never) == 1 else ''} in {where}"
    if not everywhere:
        return Verdict(f"{begin}no pixel of {where} has a class{_so(way_out)}", ())
    if len(everywhere) == 1 < info.num_classes:
        shares = _shares(void, 0)
        return Verdict(
            f"{begin}{missing}; {info.classes[everywhere[0]]} alone does"
            f"{f' ({shares})' if shares else ''}, so that every score would be 100 %{_so(way_out)}",
            (),
        )
    if info.num_classes == 1:
        lines.append(
            f"{info.classes[0]} is the only class, so that every score is 100 %{_so(source.void_as(None, [0]))}"
        )
    if never:
        lines.append(f"{missing}{_so(way_out)}")
    if shares := _shares(void, MUCH_VOID):
        values = source.ignored_values()
        advice = "" if never or info.num_classes == 1 else source.void_as(None, everywhere)
        lines.append(f"{shares}{f' ({values} in the files)' if values else ''}{_so(advice)}")
    for split, indices in found.items():
        if not indices:
            lines.append(
                f"no pixel of {split} has a class: {'nothing is learned' if split == 'train' else 'no score'}"
            )
        elif len(indices) == 1 < info.num_classes:
            lines.append(f"{split} holds {info.classes[indices[0]]} alone: a score of it tells little")
    if "train" in found:
        unseen = [index for index in everywhere if index not in found["train"]]
        if unseen and found["train"]:
            lines.append(f"{_names(source, unseen)}: not in train, so that it cannot be learned")
    return Verdict("", tuple(begin + line for line in lines))


def _so(way_out: str) -> str:
    return f"; {way_out}" if way_out else ""


def _shares(void: Mapping[str, float], above: float) -> str:
    parts = [f"{percent(share)} of {split}" for split, share in void.items() if share > above]
    return f"{', '.join(parts)} is ignored" if parts else ""


def _names(source: Source, indices: list[int]) -> str:
    return _listed([source.info.classes[index] for index in indices])


def _listed(names: list[str], most: int = NAMED) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _if_void_is(source: Source, never: list[int], everywhere: list[int]) -> str:
    return source.void_as(never[0], everywhere) if never else ""


def _alone(source: Source, everywhere: list[int]) -> str:
    """For own data with a single class among its labels."""
    if len(everywhere) != 1 or not source.ignored_values():
        return ""
    return f"if there is no other class: {spelled_names([source.info.classes[everywhere[0]]])}"
