"""Labels of height and normal, as ``hardpix data hn-labels`` writes them."""

from __future__ import annotations

import hashlib

from hardpix.data.classes import read_classes
from hardpix.data.files import FileSource, FrameFiles, existing_root
from hardpix.data.hn_files import FACTS, IMAGES, LABELS, LISTING, read_facts, read_listing
from hardpix.data.labels import LabelCode
from hardpix.ops.quantize import VOID
from hardpix.ranges import InnerShare, checked
from hardpix.types import ConfigError, DataError, DatasetInfo


class HN(FileSource):
    """Classes that height above the floor and the surface's direction make, computed from depth; to pre-train on.

    Layout below ``root``: see :mod:`hardpix.data.hn_files`. Frames that were rejected are left out.

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
                f"{self._made[folder]['labelled']}; the hardpix data hn-labels command that made them mends it"
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
