"""The settings that say how large a training was, in a few words: crop, batch, length, start, frames."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from hardpix.report.collect import Run
from hardpix.report.compare import ABSENT, covers, text
from hardpix.report.partial import shortfalls

Factors = Mapping[str, Any]
BELOW = "parent_config."  # before the factors of the run that a run stands on


def _size(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else text(value)


def _length(own: Factors) -> str:
    steps, epochs = own.get("trainer.max_steps"), own.get("trainer.max_epochs")
    return f"{steps:,} steps" if steps is not None else f"{epochs} epochs" if epochs is not None else ""


def _start(own: Factors) -> str:
    if own.get("init_from"):
        return "weights of another run"
    pretrained = own.get("backbone.pretrained", ABSENT)
    if pretrained is ABSENT:
        return ""
    tag = str(own.get("backbone.name") or "").partition(".")[2]  # of timm's weights
    return {True: f"pre-trained {tag}".strip(), False: "from scratch"}.get(pretrained, "weights from a file")


def _backbone(own: Factors) -> str:
    name, target = own.get("backbone.name"), own.get("backbone._target_", "")
    return str(name).partition(".")[0] if name else str(target).rpartition(".")[2]


def _key(key: str, shown: Callable[[Any], str] = text) -> Callable[[Factors], str]:
    return lambda own: "" if own.get(key) is None else shown(own[key])


# What is told, how its value reads, and the keys that it speaks for; a word that says all by itself has no name.
SETTINGS: tuple[tuple[str, Callable[[Factors], str], tuple[str, ...]], ...] = (
    ("crop", _key("data.train_transform.crop", _size), ("data.train_transform.crop",)),
    ("images", _key("data.test_transform.resize", _size), ("data.test_transform.resize",)),
    ("batch", _key("data.batch_size"), ("data.batch_size",)),
    ("accumulated", _key("trainer.accumulate"), ("trainer.accumulate",)),
    ("processes", _key("trainer.world_size"), ("trainer.world_size",)),
    ("", _length, ("trainer.max_steps", "trainer.max_epochs")),
    ("backbone", _backbone, ("backbone",)),
    ("", _start, ("init_from", "backbone.pretrained", "backbone.name")),
    ("inference", _key("inference._target_", lambda name: name.rpartition(".")[2]), ("inference",)),
)
# What changes nothing by itself: it follows from another setting that is told.
SIMPLE = {"accumulated": "1", "processes": "1", "images": "", "inference": "WholeImage"}


def phrases(own: Factors) -> list[str]:
    """Of runs that stand for no paper: ``crop 96x128, batch 8, 240 steps, from scratch``."""
    found = []
    for name, value, _ in SETTINGS:
        word = value(own)
        if word and word != SIMPLE.get(name):
            found.append(f"{name} {word}".strip())
    return found


def of_run(run: Run) -> str:
    """With the frames of its training, and what it falls short of."""
    frames = [count for key, count in run.record.frames.items() if key.endswith("/train")]
    told = [f"{frames[0]:,} training frames"] if len(frames) == 1 else []
    return ", ".join([*phrases(run.record.factors), *told, *shortfalls(run.record)])


def departures(
    own: Factors, keys: Mapping[str, tuple[Any, Any]], frames: Mapping[str, tuple[int, int]]
) -> str:
    """``crop 144x192 (512x1024), 300 steps (40,000), from scratch``: ours, and the paper's in parentheses.

    ``own``: a run's factors. ``keys`` and ``frames``: where it departs, and the two values. Empty at the protocol.
    """
    found: list[str] = []
    unsaid = 0
    for depth in sorted({_depth(key) for key in keys}):
        below = BELOW * depth
        mine = {key.removeprefix(below): value for key, value in own.items() if _depth(key) == depth}
        differing = {key.removeprefix(below): pair for key, pair in keys.items() if _depth(key) == depth}
        told, spoken = _told(mine, differing)
        found += [f"{'stage below: ' if depth else ''}{words}" for words in told]
        unsaid += len(differing) - spoken
    found += [f"{count:,} {name} ({whole:,})" for name, (count, whole) in frames.items()]
    if unsaid:
        found.append(f"{'and ' if found else ''}{unsaid} other setting{'s' if unsaid > 1 else ''}")
    return ", ".join(found)


def _depth(key: str) -> int:
    """How many runs below its own a factor belongs to."""
    return len(re.match(rf"(?:{re.escape(BELOW)})*", key)[0]) // len(BELOW)  # type: ignore[index]


def _told(own: Factors, keys: Mapping[str, tuple[Any, Any]]) -> tuple[list[str], int]:
    """The phrases, and how many of the keys they speak for."""
    wanted = {key: value for key, value in own.items() if key not in keys}
    wanted |= {key: theirs for key, (_, theirs) in keys.items() if theirs is not ABSENT}
    found: list[str] = []
    spoken: list[str] = []
    for name, value, of in SETTINGS:
        concerned = [key for key in keys if covers(of, key) and key not in spoken]
        here, there = value(own), value(wanted)
        if concerned and here != there:
            spoken += concerned
            found.append(_phrase(name, here or "none", there or "none"))
    return found, len(spoken)


def _phrase(name: str, here: str, there: str) -> str:
    if here == "from scratch":
        return here
    unit = here.partition(" ")[2] if not name else ""
    there = there.removesuffix(f" {unit}") if unit in ("steps", "epochs") else there
    return f"{name} {here} ({there})".strip()
