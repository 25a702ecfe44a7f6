"""Finding the one row of a table that a user means."""

from __future__ import annotations

from collections.abc import Sequence

from hardpix.report.compare import folded
from hardpix.report.labels import TARGET
from hardpix.types import HardpixError


def row(selector: str, rows: Sequence[str], names: Sequence[tuple[str, ...]], option: str) -> int:
    """The one row whose labels are those asked for: ``loss=cross_entropy`` finds ``CrossEntropy``.

    ``rows``: the declared factors. ``names``: the labels of each row. A word finds the labels that begin with it
    (``hardness``: ``HardnessLevel``) where none is equal. ``option`` is named in the error.
    """
    whole = [i for i, labels in enumerate(names) if folded(selector) == folded(", ".join(_said(labels)))]
    if len(whole) == 1:
        return whole[0]
    wanted = [part.strip().rpartition("=")[::2] for part in selector.split(",")]
    places = {
        name: i for i, factor in enumerate(rows) for name in (factor, factor.removesuffix(f".{TARGET}"))
    }
    unknown = [factor for factor, _ in wanted if factor and factor not in places]
    if unknown:
        raise HardpixError(f"{option} names {unknown[0]!r}, which is none of the rows' factors {list(rows)}.")
    for fits in (lambda own, word: own == word, lambda own, word: own.startswith(word)):
        found = [
            i
            for i, labels in enumerate(names)
            if all(
                any(fits(folded(label), folded(value)) for label in ([labels[places[f]]] if f else labels))
                for f, value in wanted
            )
        ]
        if found:
            break
    if len(found) != 1:
        told = "; ".join(", ".join(labels) for labels in sorted(names))
        raise HardpixError(f"{option} {selector!r} fits {len(found)} rows and must fit one of: {told}.")
    return found[0]


def _said(labels: Sequence[str]) -> list[str]:
    return [label for label in labels if label != "-"]
