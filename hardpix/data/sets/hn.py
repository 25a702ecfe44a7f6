"""Labels of height and normal, as ``hardpix data hn-labels`` writes them: reader, files and classes."""

from __future__ import annotations

import colorsys
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import hardpix
from hardpix.config.schema import InnerShare, checked
from hardpix.data.classes import read_classes
from hardpix.data.files import FileSource, FrameFiles, existing_root
from hardpix.data.labels import LabelCode
from hardpix.ops.quantize import VOID
from hardpix.record import UNFINISHED, write_text
from hardpix.types import ConfigError, DataError, DatasetInfo


class HN(FileSource):
    """Classes that height above the floor and the surface's direction make, computed from depth; to pre-train on.

    Layout below ``root``: see :mod:`hardpix.data.sets.hn`. Frames that were rejected are left out.

    ``val``, where ``root`` has no such split, is held out of ``train``; ``test``, where it has none, is ``val``.

    heights, normals: how many bins of each the labels have; a folder of others is refused, so that a run's
        configuration says what it was trained on. null takes any.
    val_fraction: share of the training frames that is held out, chosen by their names alone; null for none.
        Neighbours in a video look alike, so the held-out score is optimistic.
    """

    @checked
    def __init__(
        self,
        root: str,
        *,
        val_fraction: InnerShare | None,
        heights: int | None = None,
        normals: int | None = None,
    ) -> None:
        self.root = existing_root(root, "labels that hardpix data hn-labels wrote")
        self._val_fraction = val_fraction
        path = self.root / FACTS
        if not path.is_file():
            raise DataError(f"{self.root}: no {FACTS} in it; hardpix data hn-labels writes it")
        listed = read_classes(str(path))
        if listed.palette is None or len(listed.names) > VOID:
            raise DataError(f"{path}: must have a palette, and at most {VOID} classes; make the labels again")
        facts = read_facts(path)
        edges, kinds = (facts["settings"].get(key) for key in ("height_edges", "normals"))
        found = {"heights": len(edges) if isinstance(edges, list) else None, "normals": kinds}
        for key, wanted in (("heights", heights), ("normals", normals)):
            if wanted not in (None, found[key]):
                raise ConfigError(
                    f"data.source.{key}={wanted}: the labels in {self.root} were made with {found[key]}; say so "
                    f"(data.source.{key}={found[key]}), or name another root"
                )
        self._made = facts["splits"]
        self.info = DatasetInfo(name="hn", classes=listed.names, palette=listed.palette, ignore_index=VOID)

    def files(self, split: str) -> list[FrameFiles]:
        folder = self._folder(split)
        if self._made[folder]["status"] != "done":
            raise DataError(
                f"{self.root / folder}: not all of its labels are made; the hardpix data hn-labels command that "
                "began them goes on where it stopped"
            )
        entries = [e for e in read_listing(self.root / folder / LISTING) if e["rejected"] is None]
        if len(entries) != self._made[folder]["labelled"]:
            raise DataError(
                f"{self.root / folder / LISTING}: tells of {len(entries)} labelled frames, but {FACTS} of "
                f"{self._made[folder]['labelled']}; the hardpix data hn-labels command that made them repairs it"
            )
        if not entries:
            raise DataError(
                f"{self.root / folder}: no frame of it has a label; every one was rejected or failed"
            )
        held_out = self._held_out([entry["name"] for entry in entries]) if folder == "train" else set()
        kept = [e for e in entries if not held_out or (e["name"] in held_out) == (split != "train")]
        base = self.root / folder
        return [
            FrameFiles(e["name"], base / IMAGES / e["image"], base / LABELS / f"{e['name']}.png")
            for e in kept
        ]

    def label_reader(self, split: str) -> LabelCode:
        return LabelCode({VOID: VOID, **{index: index for index in range(self.info.num_classes)}}, VOID)

    def remarks(self) -> tuple[str, ...]:
        said = [
            f"hn: {sum(made['rejected'].values())} of {made['frames']} {split} frames were rejected and are left out"
            for split, made in self._made.items()
            if made["rejected"]
        ]
        if self._val_fraction and "train" in self._made and "val" not in self._made:
            said.append(f"hn: val is held out of train, it was not made (val_fraction={self._val_fraction})")
        if "test" not in self._made:
            said.append("hn: test is val, it was not made")
        return tuple(said)

    def _folder(self, split: str) -> str:
        """The split whose files hold ``split``."""
        if split in self._made:
            return split
        made = ", ".join(self._made) or "none"
        if split == "test":
            return self._folder("val")
        if split == "val" and "train" in self._made:
            if self._val_fraction:
                return "train"
            raise DataError(
                f"{self.root}: no split val was made; set data.source.val_fraction=0.05 to hold a twentieth of train "
                "out, or make it with hardpix data hn-labels"
            )
        raise DataError(f"{self.root}: no split {split} was made; there are: {made}")

    def _held_out(self, names: list[str]) -> set[str]:
        """The training frames that are ``val``: a digest of its name decides on each."""
        if self._val_fraction is None or "val" in self._made:
            return set()
        order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        return set(order[: max(1, round(self._val_fraction * len(names)))])


# The files of labels of height and normal, all but the pictures and the labels themselves.
#
# Layout; :func:`hardpix.data.hn_labels.make_labels` writes it and :class:`hardpix.data.HN` reads it::
#
# hn.json classes, palette, settings, source, and counts of each split hn.log a sentence for each frame
# that could not be read, where there are any {split}/images/NAME.* the picture: a hard link to the data
# set's file (a copy where links are impossible), or a PNG where cropping or resizing changed it or the
# data set has no such file {split}/labels/NAME.png grey: the class, 255 for void {split}/frames.jsonl a
# line a frame, the rejected ones too, which have no files
#
# A frame is done when the listing has its line and the files that the line tells of are there.


FACTS, LISTING, LOG = "hn.json", "frames.jsonl", "hn.log"
IMAGES, LABELS = "images", "labels"
SCHEMA = 1

Entry = dict[str, Any]  # what the listing says of a frame


def begin(out: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """What ``hn.json`` holds, of a new folder or of one that was begun with the same settings and source."""
    path = out / FACTS
    if not path.is_file():
        if out.exists() and (
            not out.is_dir() or any(not UNFINISHED.fullmatch(p.name) for p in out.iterdir())
        ):
            raise DataError(f"{out}: it holds other files; --out must be a new or an empty folder")
        return {"schema": SCHEMA, "hardpix": hardpix.__version__, **wanted, "splits": {}}
    facts = read_facts(path)
    for part, spelled in (("source", "data.source.{}="), ("settings", "--{} ")):
        before, now = facts[part], wanted[part]
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                option = spelled.format(key if part == "source" else key.replace("_", "-"))
                raise ConfigError(
                    f"{out}: it was begun with {option}{before.get(key)}, not {now.get(key)}; "
                    "give the same settings, or another --out"
                )
    return facts


def read_facts(path: Path) -> dict[str, Any]:
    """``hn.json`` as far as its shape goes; ``DataError`` where it is not what :func:`make_labels` wrote."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); make the labels again") from None
    parts = ("settings", "source", "splits")
    shaped = isinstance(facts, dict) and all(isinstance(facts.get(part), dict) for part in parts)
    if not shaped or facts.get("schema") != SCHEMA or not all(map(_is_tally, facts["splits"].values())):
        raise DataError(
            f"{path}: not what hardpix data hn-labels of this version writes; make the labels again"
        )
    return facts


def _is_tally(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("rejected"), dict):
        return False
    numbers = [value.get(key) for key in ("frames", "labelled", "failed")] + list(value["rejected"].values())
    return value.get("status") in ("running", "done") and all(type(n) is int and n >= 0 for n in numbers)


def read_listing(path: Path) -> list[Entry]:
    """The sound lines of a listing; of a line that was cut off the frame counts as not made."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [entry for entry in map(_entry, lines) if entry is not None]


def _entry(line: str) -> Entry | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    rejected, image = entry.get("rejected", 0), entry.get("image")
    if not (isinstance(rejected, str) or (rejected is None and isinstance(image, str))):
        return None
    files = [entry["name"], *([image] if rejected is None else [])]
    safe = all(file == Path(file).name and "\\" not in file and file not in ("", ".", "..") for file in files)
    return entry if safe else None


def write_listing(path: Path, entries: Iterable[Entry]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(map(line_of, entries)))


def line_of(entry: Entry) -> str:
    return json.dumps(entry) + "\n"


def plain_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return dict(json.loads(json.dumps(settings)))


# Names and colours of the classes that height and normal make (see :mod:`hardpix.ops.quantize`).


KINDS = ("horizontal", "vertical")
_HUES = ((0.02, 0.17), (0.72, 0.47))  # of the lowest and the highest bin: red to yellow, violet to green-blue
_LIGHTNESS = (0.22, 0.82)


def hn_class_names(height_edges: Sequence[float], normals: int) -> tuple[str, ...]:
    """``0.00-0.25 m, horizontal``, ... in the order of the labels; without the kind for one normal bin."""
    ends = [f"{low:.2f}-{high:.2f} m" for low, high in pairwise(height_edges)]
    ends.append(f"{height_edges[-1]:.2f} m and more")
    return tuple(f"{end}, {kind}" for kind in KINDS for end in ends) if normals == 2 else tuple(ends)


def hn_palette(heights: int, normals: int) -> tuple[tuple[int, int, int], ...]:
    """A colour per class: the hue tells horizontal from vertical, lighter is higher."""
    return tuple(
        _colour(kind, index / max(1, heights - 1)) for kind in range(normals) for index in range(heights)
    )


def _colour(kind: int, high: float) -> tuple[int, int, int]:
    hue, lightness = (low + (top - low) * high for low, top in (_HUES[kind], _LIGHTNESS))
    red, green, blue = (round(255 * c) for c in colorsys.hls_to_rgb(hue, lightness, 0.85))
    return red, green, blue
