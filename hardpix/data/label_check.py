"""What is declared of labels, held against what the label files hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardpix.data.base import Source
from hardpix.data.doctor_findings import percent
from hardpix.data.own_labels import spelled_names

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
    told = [f"{percent(share)} of {split}" for split, share in void.items() if share > above]
    return f"{', '.join(told)} is ignored" if told else ""


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
