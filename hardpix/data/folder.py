"""A user's own images and masks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardpix.data.files import FileSource, FrameFiles, list_images
from hardpix.data.labels import LabelReader
from hardpix.data.missing_depth import depth_policy
from hardpix.data.own_labels import OwnLabels
from hardpix.data.pixels import checked_range
from hardpix.ranges import LabelValue, Positive, checked
from hardpix.types import ConfigError, DatasetInfo


class Folder(FileSource):
    """Images and masks in folders, paired by name.

    Layout below ``root``; ``{split}`` stands for train, val or test, and sub-folders are allowed::

        {split}/images/NAME.{png,jpg,jpeg,tif,tiff}
        {split}/labels/NAME{label_suffix}.{png,tif,tiff}    a number or a colour per pixel (label_format)
        {split}/depths/NAME.{png,tif,tiff}                  grey, 8 or 16 bits, 0 no reading

    classes, palette, ignore_index, label_map, label_format, ignore_colours: what the masks hold, see
    :class:`hardpix.data.own_labels.OwnLabels`.
    images, labels, depths: the folders, with ``{split}``; ``depths`` None: there is no depth.
    image_range: the values that are black and white in image files of more than 8 bits, for example [0, 4095]; values
    beyond become black or white. None: such files are refused.
    depth_scale: counts of a depth file per metre.
    depth_max: metres; the fixed range of the methods that need one.
    depth_missing: see :func:`hardpix.data.missing_depth.depth_policy`.
    """

    lossless = True

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
        depths: str | None = None,
        depth_scale: Positive | None = None,
        depth_max: Positive | None = None,
        depth_missing: str = "error",
        image_range: Sequence[float] | None = None,
    ) -> None:
        if depths is not None and not depth_scale:
            raise ConfigError("data.source.depth_scale is missing; with depths it must be counts per metre")
        self.root, self.depth_missing = Path(root), depth_policy(depth_missing)
        self._folders = {"image": images, "label": labels, "depth": depths}
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
        return [self._frame(split, image) for image in list_images(self._folder("image", split))]

    def label_reader(self, split: str) -> LabelReader:
        return self._labels.code

    def remarks(self) -> tuple[str, ...]:
        return self._labels.remarks(self.info.name)

    def ignored_values(self) -> str:
        return self._labels.code.ignored()

    def void_as(self, index: int | None, occurring: Collection[int]) -> str:
        return self._labels.code.void_as(index, occurring)

    def depth_code(self, raw: NDArray, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return raw.astype(np.float32) / np.float32(self._depth_scale), raw > 0

    def _folder(self, kind: str, split: str) -> Path:
        return self.root / str(self._folders[kind]).replace("{split}", split)

    def _frame(self, split: str, image: Path) -> FrameFiles:
        relative = image.relative_to(self._folder("image", split)).with_suffix("")
        label = self._folder("label", split) / relative.parent / f"{relative.name}{self._label_suffix}"
        depth = None
        if self._folders["depth"]:
            depth = _lossless(self._folder("depth", split) / relative)
        return FrameFiles("__".join(relative.parts), image, _lossless(label), depth)


def _lossless(stem: Path) -> Path:
    """The file of that stem; where there is none the JPEG, which is refused, or the PNG, which is missing."""
    for suffix in (".png", ".tif", ".tiff", ".PNG", ".TIF", ".TIFF", ".jpg", ".jpeg", ".JPG", ".JPEG"):
        path = stem.with_name(stem.name + suffix)
        if path.is_file():
            return path
    return stem.with_name(stem.name + ".png")
