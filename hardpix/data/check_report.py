"""What ``hardpix data check`` prints: facts of the splits, classes, findings."""

from __future__ import annotations

import math

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hardpix.data.doctor import Checkup
from hardpix.data.doctor_findings import Finding, percent
from hardpix.data.doctor_sums import SplitSums

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
    told = [hit.sentence or hit.name for hit in finding.hits]
    for sentence in told[:EXAMPLES]:
        console.print(f"    {escape(sentence)}", highlight=False, soft_wrap=True)
    if len(told) > EXAMPLES:
        console.print(f"    ... and {len(told) - EXAMPLES} more, all in check.json", highlight=False)
    console.print(f"    -> {escape(finding.todo)}", highlight=False)


def _numbers(values: list[float]) -> str:
    return "" if any(map(math.isnan, values)) else " ".join(f"{value:.1f}" for value in values)


def _share(pixels: int, total: int) -> str:
    return "absent" if not pixels else percent(pixels / total)
