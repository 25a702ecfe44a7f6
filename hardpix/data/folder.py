"""A user's own images and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardpix.data.files import FileSource, FrameFiles, list_images
from hardpix.data.labels import LabelCode
from hardpix.data.palette import voc_palette
from hardpix.types import ConfigError, DataError, DatasetInfo


class Folder(FileSource):
    """Images and masks in folders, paired by name.

    Layout below ``root``; ``{split}`` stands for train, val or test, and sub-folders are allowed::

        {split}/images/NAME.{png,jpg,jpeg,tif,tiff}
        {split}/labels/NAME{label_suffix}.{png,tif,tiff}    grey or palette: a number per pixel
        {split}/depths/NAME.{png,tif,tiff}                  grey, 8 or 16 bits, 0 no reading

    classes: names in the order of their indices.
    palette: one RGB colour per class; None takes the PASCAL VOC colours.
    ignore_index: the value in the masks that marks unlabelled pixels; loss and metrics leave them out.
    label_map: value in the masks -> class index (or ``ignore_index``); None: the values are the indices.
    images, labels, depths: the folders, with ``{split}``; ``depths`` None: there is no depth.
    depth_scale: counts of a depth file per metre.
    depth_max: metres; the fixed range of the methods that need one.
    """

    def __init__(
        self,
        root: str,
        *,
        classes: Sequence[str],
        name: str = "folder",
        palette: Sequence[Sequence[int]] | None = None,
        ignore_index: int = 255,
        label_map: Mapping[int, int] | None = None,
        images: str = "{split}/images",
        labels: str = "{split}/labels",
        label_suffix: str = "",
        depths: str | None = None,
        depth_scale: float | None = None,
        depth_max: float | None = None,
    ) -> None:
        if depths is not None and not depth_scale:
            raise ConfigError("data.source.depth_scale is missing; with depths it must be counts per metre")
        if palette is not None and len(palette) != len(classes):
            raise ConfigError(f"palette has {len(palette)} colours for {len(classes)} classes; give one each")
        self.root = Path(root)
        self._folders = {"image": images, "label": labels, "depth": depths}
        self._label_suffix, self._depth_scale = label_suffix, depth_scale
        self._code = _label_code(len(classes), ignore_index, label_map)
        self.info = DatasetInfo(
            name=name,
            classes=tuple(classes),
            palette=voc_palette(len(classes)) if palette is None else tuple((r, g, b) for r, g, b in palette),
            ignore_index=_void(len(classes)),
            depth_max=depth_max,
            provides=frozenset({"image", "label"} | ({"depth", "depth_valid"} if depths else set())),
        )

    def files(self, split: str) -> list[FrameFiles]:
        return [self._frame(split, image) for image in list_images(self._folder("image", split))]

    def label_reader(self, split: str) -> LabelCode:
        return self._code

    def depth_code(self, raw: NDArray, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return raw.astype(np.float32) / np.float32(self._depth_scale), raw > 0

    def _folder(self, kind: str, split: str) -> Path:
        return self.root / str(self._folders[kind]).format(split=split)

    def _frame(self, split: str, image: Path) -> FrameFiles:
        relative = image.relative_to(self._folder("image", split)).with_suffix("")
        label = self._folder("label", split) / relative.parent / f"{relative.name}{self._label_suffix}"
        depth = None
        if self._folders["depth"]:
            depth = _lossless(self._folder("depth", split) / relative)
        return FrameFiles("__".join(relative.parts), image, _lossless(label), depth)


def _void(classes: int) -> int:
    """The ignored index of loaded labels: the last value of their type, whatever the files use."""
    return 255 if classes < 256 else 65535


def _label_code(classes: int, ignore_value: int, label_map: Mapping[int, int] | None) -> LabelCode:
    void = _void(classes)
    if label_map is None:
        if 0 <= ignore_value < classes:
            raise ConfigError(
                f"ignore_index {ignore_value} is also a class index of {classes} classes; "
                "set data.source.label_map to say which value means which class"
            )
        return LabelCode({**{i: i for i in range(classes)}, ignore_value: void}, void)
    wrong = [index for index in label_map.values() if not 0 <= index < classes and index != ignore_value]
    if wrong:
        raise ConfigError(
            f"label_map leads to {wrong[0]}; it must lead to 0..{classes - 1} or to ignore_index {ignore_value}"
        )
    # An ignored value that is no class index may stand in the masks itself, besides being a target.
    mapping = {} if 0 <= ignore_value < classes else {ignore_value: void}
    mapping |= {int(v): int(i) if 0 <= i < classes else void for v, i in label_map.items()}
    return LabelCode(mapping, void)


def _lossless(stem: Path) -> Path:
    """The file of that stem; the PNG, for the message that it is missing, where there is none."""
    for suffix in (".png", ".tif", ".tiff", ".PNG", ".TIF", ".TIFF"):
        path = stem.with_name(stem.name + suffix)
        if path.is_file():
            return path
    lossy = [path for path in stem.parent.glob(f"{stem.name}.*") if path.suffix.lower() in (".jpg", ".jpeg")]
    if lossy:
        raise DataError(
            f"{lossy[0]}: JPEG changes numbers at every edge; labels and depth must be PNG or TIFF"
        )
    return stem.with_name(stem.name + ".png")
