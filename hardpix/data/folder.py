"""A user's own images and masks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardpix.data.files import FileSource, FrameFiles
from hardpix.data.labels import LabelReader
from hardpix.data.listing import Stems, files_below, held_out_remarks, list_images, part_of, shares
from hardpix.data.missing_depth import depth_policy
from hardpix.data.own_depth import ENDINGS, NO_READING, has_reading, missing_values, read_own_depth
from hardpix.data.own_labels import OwnLabels
from hardpix.data.pixels import checked_range
from hardpix.ranges import InnerShare, LabelValue, Positive, checked
from hardpix.types import ConfigError, DataError, DatasetInfo


class Folder(FileSource):
    """Images and masks in folders, paired by name.

    Layout below ``root``; ``{split}`` stands for train, val or test, and sub-folders are allowed::

        {split}/images/NAME.{png,jpg,jpeg,tif,tiff}
        {split}/labels/NAME{label_suffix}.{png,tif,tiff}    a number or a colour per pixel (label_format)
        {split}/depths/NAME.{png,tif,tiff,npy}              grey of 8 or 16 bits, or floating-point numbers

    classes, palette, ignore_index, label_map, label_format, ignore_colours: what the masks hold, see
    :class:`hardpix.data.own_labels.OwnLabels`.
    images, labels, depths: the folders, with ``{split}``; ``depths`` None: there is no depth.
    val_fraction, test_fraction: share of the frames of train that are held out as val or test, where there is no such
        folder, chosen by their names; null for none.
    image_range: the values that are black and white in image files of more than 8 bits, for example [0, 4095]; values
    beyond become black or white. None: such files are refused.
    depth_scale: counts of a depth file per metre.
    depth_max: metres; the fixed range of the methods that need one.
    depth_missing_values: numbers of the depth files that are no reading; NaN, infinity and what is not above 0 are none
        either.
    depth_missing: see :func:`hardpix.data.missing_depth.depth_policy`.
    """

    read_depth = staticmethod(read_own_depth)
    lossless = True
    holds_out = True

    @checked
    def __init__(
        self,
        root: str,
        *,
        classes: Sequence[str] | str,
        name: str = "folder",
        palette: Sequence[Sequence[int]] | None = None,
        ignore_index: LabelValue = 255,
        label_map: Mapping[int, int] | None = None,
        label_format: str = "index",
        ignore_colours: Sequence[Sequence[int]] | None = None,
        images: str = "{split}/images",
        labels: str = "{split}/labels",
        label_suffix: str = "",
        val_fraction: InnerShare | None = None,
        test_fraction: InnerShare | None = None,
        depths: str | None = None,
        depth_scale: Positive | None = None,
        depth_max: Positive | None = None,
        depth_missing_values: Sequence[float] = NO_READING,
        depth_missing: str = "error",
        image_range: Sequence[float] | None = None,
    ) -> None:
        if depths is not None and not depth_scale:
            raise ConfigError("data.source.depth_scale is missing; with depths it must be counts per metre")
        self.root, self.depth_missing = Path(root), depth_policy(depth_missing)
        self._folders = {"image": images, "label": labels, "depth": depths}
        self._missing = missing_values(depth_missing_values)
        self._held_out = shares(val_fraction, test_fraction)
        self._label_suffix, self._depth_scale = label_suffix, depth_scale
        self.image_range = checked_range(image_range)
        self._labels = OwnLabels(
            classes=classes,
            palette=palette,
            ignore_index=ignore_index,
            label_map=label_map,
            label_format=label_format,
            ignore_colours=ignore_colours,
        )
        self.info = DatasetInfo(
            name=name,
            classes=self._labels.names,
            palette=self._labels.palette,
            ignore_index=self._labels.void,
            depth_max=depth_max,
            provides=frozenset({"image", "label"} | ({"depth", "depth_valid"} if depths else set())),
        )

    def files(self, split: str) -> list[FrameFiles]:
        if split != "train" and split not in self._held_out:
            return self._lying_in(split)
        for part in self._held_out:
            if (
                self._folder("image", part) != self._folder("image", "train")
                and self._folder("image", part).exists()
            ):
                raise ConfigError(
                    f"{self._folder('image', part)}: there is a split {part}; data.source.{part}_fraction=null takes it"
                )
        frames = self._lying_in("train")
        return [frames[i] for i in part_of([f.name for f in frames], split, self._held_out)]

    def _lying_in(self, split: str) -> list[FrameFiles]:
        images = list_images(self._folder("image", split))
        labels = Stems(self._folder("label", split))
        depths = Stems(self._folder("depth", split)) if self._folders["depth"] else None
        frames = [self._frame(split, image, labels, depths) for image in images]
        masks = {frame.label for frame in frames}  # where they lie among the images
        kept = [frame for frame in frames if frame.image not in masks]
        alone = masks.intersection(frame.image for frame in frames).difference(frame.label for frame in kept)
        if alone:
            raise DataError(
                f"{min(map(str, alone))}: would be the image and the label of one frame; in one folder "
                "data.source.label_suffix=_mask tells NAME.png from its label NAME_mask.png"
            )
        return kept

    def image_files(self, split: str) -> list[Path]:
        return files_below(self._folder("image", "train" if split in self._held_out else split))

    def has_split(self, split: str) -> bool:
        return self._folder("image", split).is_dir()

    def label_reader(self, split: str) -> LabelReader:
        return self._labels.code

    def remarks(self) -> tuple[str, ...]:
        return (*self._labels.remarks(self.info.name), *held_out_remarks(self.info.name, self._held_out))

    def ignored_values(self) -> str:
        return self._labels.code.ignored()

    def void_as(self, index: int | None, occurring: Collection[int]) -> str:
        return self._labels.code.void_as(index, occurring)

    def depth_code(self, raw: NDArray, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return raw.astype(np.float32) / np.float32(self._depth_scale), has_reading(raw, self._missing)

    def _folder(self, kind: str, split: str) -> Path:
        return self.root / str(self._folders[kind]).replace("{split}", split)

    def _frame(self, split: str, image: Path, labels: Stems, depths: Stems | None) -> FrameFiles:
        relative = image.relative_to(self._folder("image", split)).with_suffix("")
        label = labels.find(relative.with_name(relative.name + self._label_suffix))
        depth = depths.find(relative, ENDINGS) if depths else None
        return FrameFiles("__".join(relative.parts), image, label, depth)
