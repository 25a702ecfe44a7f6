"""Instance annotations in COCO's JSON form (Lin et al. 2014), as semantic labels."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardpix.config.schema import LabelValue, checked
from hardpix.data.classes import ClassList, parse_json, read_classes, read_text
from hardpix.data.files import existing_root, frame_name
from hardpix.data.images import MAX_PIXELS, SUFFIXES, checked_range, image_size, read_colour, same_size
from hardpix.data.labels import check_targets, mapping_sentence, palette_of, voc_palette, void
from hardpix.data.listing import Finder, files_below, kinds, normal
from hardpix.data.masks import Mask, check, decode, stacked
from hardpix.data.source import Frames, Sample, Source
from hardpix.types import ConfigError, DataError, DatasetInfo, NoSuchSplit

CHOICES = {"imperfect": ("error", "ignore"), "crowd": ("ignore", "class"), "others": ("ignore", "background")}


class Coco(Source):
    """Images and one JSON file of instance annotations per split; each pixel gets the class of its instance.

    Layout below ``root``; ``{split}`` stands for the split's name (COCO's own are train2017 and val2017)::

        {split}/FILE_NAME                        images, named by the JSON file
        annotations/instances_{split}.json       images, annotations (polygons or run lengths), categories

    Where instances overlap, the smaller one (by its mask's pixels) is on top. A crowd region lies below them all.

    classes: category names in the order of the indices, or a file of them; None: all categories, in the order of
    the file.
    background: the name of the class of pixels in no instance, placed first unless ``classes`` names it; None: such
    pixels are unlabelled.
    label_map: category id -> class index (the background counts) or ``ignore_index``; None: by the names.
    others: what becomes of a category that neither ``classes`` nor ``label_map`` names: ``ignore`` or ``background``.
    imperfect: annotations without a mask that encloses pixels (empty, a point, a line, a box alone) or of an image or
    category that the file does not have: ``error``, or ``ignore``, which leaves them out and counts them.
    crowd: pixels of ``iscrowd`` regions: ``ignore``, or their ``class``.
    palette: one RGB colour per class, the background's included; None: the PASCAL VOC colours.
    image_range: the values that are black and white in image files of more than 8 bits, for example [0, 4095]; values
    beyond become black or white. None: such files are refused.
    """

    @checked
    def __init__(
        self,
        root: str,
        *,
        name: str = "coco",
        classes: Sequence[str] | str | None = None,
        background: str | None = "background",
        palette: Sequence[Sequence[int]] | None = None,
        ignore_index: LabelValue = 255,
        label_map: Mapping[int, int] | None = None,
        others: str = "ignore",
        crowd: str = "ignore",
        imperfect: str = "error",
        images: str = "{split}",
        annotations: str = "annotations/instances_{split}.json",
        image_range: Sequence[float] | None = None,
    ) -> None:
        for key, value in (("crowd", crowd), ("others", others), ("imperfect", imperfect)):
            if value not in CHOICES[key]:
                raise ConfigError(f"data.source.{key}={value}: must be {' or '.join(CHOICES[key])}")
        self.root = existing_root(root, "the images and annotations")
        self._images, self._annotations, self._crowd = images, annotations, crowd
        self._ignore = imperfect == "ignore"
        self._left_out: dict[str, tuple[str, ...]] = {}
        self.image_range = checked_range(image_range)
        self._categories = self._read_categories()
        listed = with_background(
            ClassList(tuple(dict.fromkeys(self._categories.values())), None, None)
            if classes is None
            else read_classes(classes),
            background,
        )
        self.info = DatasetInfo(
            name=name,
            classes=listed.names,
            palette=palette_of(listed, palette) or voc_palette(len(listed.names)),
            ignore_index=void(len(listed.names)),
        )
        self._background = self.info.ignore_index if background is None else listed.names.index(background)
        other = self._background if others == "background" else self.info.ignore_index
        if label_map is None:
            check_single(self._categories, listed.names, self._first())
            self._check_named(listed.names, background)
        else:
            check_targets(label_map, self.info.num_classes, ignore_index)
            self._check_known(label_map)
        self._mapping = {
            number: self._target(number, listed.names, label_map, other) for number in self._categories
        }

    def frames(self, split: str, keys: frozenset[str]) -> Frames:
        frames = self.frames_as_they_are(split, keys)
        frames.check_files()
        return frames

    def frames_as_they_are(self, split: str, keys: frozenset[str]) -> CocoFrames:
        if not self._path(split).is_file():
            raise NoSuchSplit(f"{self._path(split)}: no such file; it must hold the annotations of the split")
        content = read_annotations(self._path(split))
        if categories_of(content, self._path(split)) != self._categories:
            raise DataError(
                f"{self._path(split)}: its categories are not those of {self._first()}; all splits must have the same"
            )
        frames = CocoFrames(
            content,
            self._path(split),
            self.root / self._images.replace("{split}", split),
            keys,
            mapping=self._mapping,
            crowd=self.info.ignore_index if self._crowd == "ignore" else None,
            ignore=self._ignore,
            background=self._background,
            label_type=np.uint8 if self.info.ignore_index < 256 else np.int64,
            image_range=self.image_range,
        )
        self._left_out[split] = frames.left_out(split, images="{split}" in self._images)
        return frames

    def left_out(self, split: str) -> tuple[str, ...]:
        """Known once the split has been opened: its annotations are not read twice."""
        return self._left_out.get(split, ())

    def has_split(self, split: str) -> bool:
        return self._path(split).is_file()

    def remarks(self) -> tuple[str, ...]:
        said = mapping_sentence(self._mapping, self.info.classes)
        names = (*self.info.classes, *["ignored"] * (self._background >= self.info.num_classes))
        outside = f"pixels of no instance -> {names[min(self._background, len(names) - 1)]}"
        crowds = "crowd regions -> ignored" if self._crowd == "ignore" else "crowd regions -> their class"
        return (
            f"labels of {self.info.name}: {'category ' + said + ', ' if said else ''}{outside}, {crowds}",
        )

    def _target(
        self, number: int, names: tuple[str, ...], label_map: Mapping[int, int] | None, other: int
    ) -> int:
        if label_map is not None and number in label_map:
            index = label_map[number]
            return index if 0 <= index < len(names) else self.info.ignore_index
        if label_map is None and self._categories[number] in names:
            return names.index(self._categories[number])
        return other

    def _check_named(self, names: tuple[str, ...], background: str | None) -> None:
        unknown = [name for name in names if name != background and name not in self._categories.values()]
        if unknown:
            raise ConfigError(
                f"the class {unknown[0]!r} is no category of {self._first()}; "
                f"its categories are {', '.join(self._categories.values())} "
                "(data.source.label_map can give them other names)"
            )

    def _check_known(self, label_map: Mapping[int, int]) -> None:
        unknown = [number for number in label_map if number not in self._categories]
        if unknown:
            raise ConfigError(
                f"label_map maps the category id {unknown[0]}, which {self._first()} does not have; "
                f"its ids are {', '.join(map(str, self._categories))}"
            )

    def _path(self, split: str) -> Path:
        return self.root / self._annotations.replace("{split}", split)

    def _first(self) -> Path:
        """The smallest annotation file: all have the same categories."""
        found = sorted(
            self.root.glob(self._annotations.replace("{split}", "*")),
            key=lambda p: (p.stat().st_size, p),
        )
        if not found:
            raise DataError(f"{self._path('{split}')}: no such file; it must hold the annotations of a split")
        return found[0]

    def _read_categories(self) -> dict[int, str]:
        path = self._first()
        return categories_of(read_annotations(path), path)


class CocoFrames:
    """One split. The annotations are kept as one compact text: a million of small objects would fill the memory."""

    def __init__(
        self,
        content: dict[str, Any],
        path: Path,
        images: Path,
        keys: frozenset[str],
        *,
        mapping: Mapping[int, int],
        crowd: int | None,
        ignore: bool,
        background: int,
        label_type: type,
        image_range: tuple[float, float] | None = None,
    ) -> None:
        self._path, self._with_label = path, "label" in keys
        self._mapping, self._crowd = mapping, crowd
        self._background, self._label_type = background, label_type
        self.image_range = image_range
        self._images = images
        self._files, self._sizes, self._names = image_entries(content, path, images)
        self.image_files = self._files
        found, self._imperfect = by_image(
            content, path, self._sizes, with_masks=self._with_label, ignore=ignore
        )
        texts = [json.dumps(entries).encode() for entries in found]
        self._ends = np.cumsum([0, *map(len, texts)])
        self._text = b"".join(texts)

    def __len__(self) -> int:
        return len(self._files)

    def check_files(self) -> None:
        """Raise ``DataError`` where an image is missing."""
        missing = [file for file in self._files if not file.is_file()]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError(f"{missing[0]}: no such file{more}; {self._path.name} names it")

    def check(self) -> None:
        """Raise ``DataError`` for an image that is none, or of another size than the annotations say."""
        for index, (file, size) in enumerate(zip(self._files, self._sizes, strict=True)):
            if sorted(image_size(file)) != sorted(size):  # it may be turned upright
                self.load(index)

    def left_out(self, split: str, *, images: bool) -> tuple[str, ...]:
        """What is not read; of the folder of ``images`` the files that none of them names."""
        unread = sorted(set(files_below(self._images)).difference(self._files)) if images else []
        return left_out_sentences(split, self._path, self._imperfect, unread)

    def name(self, index: int) -> str:
        return self._names[index]

    def load(self, index: int) -> Sample:
        """Decode one image and paint its instances."""
        file = self._files[index]
        image = read_colour(file, self.image_range)
        sample = Sample(image=torch.from_numpy(image).permute(2, 0, 1), name=self._names[index])
        if self._with_label:
            label = self.label(index)
            same_size(label, Path(f"{self._path}: image {file.name}"), image, file)
            sample["label"] = label
        return sample

    def label(self, index: int) -> Tensor:
        """The label ``[H, W]`` of one frame alone."""
        height, width = self._sizes[index]
        label: NDArray = np.full((height, width), self._background, dtype=self._label_type)
        below: list[tuple[Mask, int]] = []
        above: list[tuple[Mask, int]] = []
        for annotation in json.loads(self._text[self._ends[index] : self._ends[index + 1]]):
            mask = self._mask(annotation, height, width)
            target = self._mapping[annotation["category_id"]]
            if annotation["iscrowd"]:
                below.append((mask, target if self._crowd is None else self._crowd))
            else:
                above.append((mask, target))
        stacked(below, label)
        stacked(above, label)
        return torch.from_numpy(label)

    def fingerprint(self) -> str:
        """Changes when the annotations do, or what becomes of them."""
        rules = f"{self._mapping} {self._crowd} {self._background} {self._names} {self._sizes}"
        return hashlib.sha256(rules.encode() + self._text).hexdigest()

    def stored(self) -> list[Path]:
        """The annotations and all images."""
        return [self._path, *self._files]

    def _mask(self, annotation: dict[str, Any], height: int, width: int) -> Mask:
        try:
            return decode(annotation["segmentation"], height, width)
        except ValueError as error:
            raise DataError(f"{self._path}: annotation {annotation['id']}: {error}") from None


# A file of COCO's instance annotations, read and checked.


def read_annotations(path: Path) -> dict[str, Any]:
    """The whole file; its lists ``images``, ``annotations`` and ``categories`` hold objects with an ``id``."""
    content = parse_json(read_text(path, "COCO annotations"), str(path))
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path}: the list {key} is missing; it must be a COCO file of instances")
        for number, entry in enumerate(content[key]):
            if not isinstance(entry, dict) or type(entry.get("id")) is not int:
                raise DataError(f"{path}: {key}, entry {number}: must be an object with a whole number as id")
    return content


def categories_of(content: dict[str, Any], path: Path) -> dict[int, str]:
    """Category id -> name, in the order of the file."""
    found: dict[int, str] = {}
    for entry in content["categories"]:
        if entry["id"] in found or not isinstance(entry.get("name"), str):
            raise DataError(f"{path}: category {entry['id']}: each must have an id of its own and a name")
        found[entry["id"]] = entry["name"]
    if not found:
        raise DataError(f"{path}: the list categories is empty; it must name the classes")
    return found


def check_single(categories: Mapping[int, str], names: Sequence[str], path: Path) -> None:
    """Raise ``ConfigError`` where one of the classes ``names`` is the name of two categories of ``path``."""
    ids = {name: number for number, name in categories.items()}
    for name in names:
        own = [str(number) for number in categories if categories[number] == name]
        if len(own) > 1:
            mapped = ",".join(f"{ids[known]}:{index}" for index, known in enumerate(names) if known in ids)
            raise ConfigError(
                f"{path}: the class {name!r} is the name of the categories {' and '.join(own)}; "
                f"data.source.label_map={{{mapped}}} says by its id which of them is meant"
            )


def with_background(listed: ClassList, background: str | None) -> ClassList:
    if background is None or background in listed.names:
        return listed
    palette = None if listed.palette is None else ((0, 0, 0), *listed.palette)
    return ClassList((background, *listed.names), palette, None)


def left_out_sentences(
    split: str, path: Path, imperfect: Counter[str], unread: Sequence[Path]
) -> tuple[str, ...]:
    """A sentence that counts annotations, and one that counts files next to the images, that are not used."""
    said = []
    if imperfect:
        listed = ", ".join(f"{count} {kind}" for kind, count in imperfect.items())
        said.append(f"{split}: {imperfect.total()} annotations of {path} are left out ({listed})")
    if unread:
        said.append(
            f"{split}: {kinds(unread)} in {unread[0].parent} are not named by {path} and are not read"
        )
    return tuple(said)


def image_entries(
    content: dict[str, Any], path: Path, folder: Path
) -> tuple[list[Path], list[tuple[int, int]], list[str]]:
    """Files, (height, width) and names of the images, in the order of the file."""
    find, files = Finder(), list[Path]()
    sizes: list[tuple[int, int]] = []
    names: dict[str, str] = {}
    for entry in content["images"]:
        where = f"{path}: image {entry['id']}"
        file_name, height, width = (entry.get(key) for key in ("file_name", "height", "width"))
        if not isinstance(file_name, str) or Path(file_name).suffix.lower() not in SUFFIXES:
            raise DataError(f"{where}: file_name {file_name!r} is none of {', '.join(SUFFIXES)}")
        if type(height) is not int or type(width) is not int or not 0 < height * width <= MAX_PIXELS:
            raise DataError(
                f"{where}: height {height} and width {width} must be whole numbers of pixels, "
                f"at most {MAX_PIXELS} in all"
            )
        name = frame_name(file_name)
        if normal(name) in names:
            raise DataError(
                f"{where}: a frame {name!r} is there already; each image must have a file name of its own"
            )
        names[normal(name)] = name
        files.append(find(folder / file_name))
        sizes.append((height, width))
    if not files:
        raise DataError(f"{path}: the list images is empty; a split must have images")
    return files, sizes, list(names.values())


def by_image(
    content: dict[str, Any],
    path: Path,
    sizes: Sequence[tuple[int, int]],
    *,
    with_masks: bool = True,
    ignore: bool = False,
) -> tuple[list[list[dict[str, Any]]], Counter[str]]:
    """The annotations of each image, less what is not used of them; and how many were left out, by what is wrong.

    sizes: (height, width) of the images. with_masks: what ``segmentation`` holds is judged as well. ignore: annotations
    without a mask, or of nothing that the file knows, are left out; else the first of them is an error.
    """
    categories = {entry["id"] for entry in content["categories"]}
    places: dict[int, int] = {}
    for entry in content["images"]:
        if entry["id"] in places:
            raise DataError(
                f"{path}: image {entry['id']}: the id is there already; each image must have its own"
            )
        places[entry["id"]] = len(places)
    found: list[list[dict[str, Any]]] = [[] for _ in places]
    left_out: Counter[str] = Counter()
    for entry in content["annotations"]:
        kind, sentence = _wrong(entry, places, categories, sizes if with_masks else None)
        if kind and not ignore:
            raise DataError(
                f"{path}: annotation {entry['id']}: {sentence}; data.source.imperfect=ignore leaves such "
                "annotations out and counts them"
            )
        if kind:
            left_out[kind] += 1
            continue
        kept = {key: entry[key] for key in ("id", "category_id", "segmentation")}
        found[places[entry["image_id"]]].append(kept | {"iscrowd": bool(entry.get("iscrowd", 0))})
    return found, left_out


def _wrong(
    entry: dict[str, Any],
    places: Mapping[int, int],
    categories: Container[int],
    sizes: Sequence[tuple[int, int]] | None,
) -> tuple[str, str]:
    """What is wrong with an annotation, in two words and in a sentence; two empty texts where nothing is."""
    if not _known(entry.get("image_id"), places):
        return "of no image", f"image_id {entry.get('image_id')} is no image of the file"
    if not _known(entry.get("category_id"), categories):
        return "of no category", f"category_id {entry.get('category_id')} is no category of the file"
    if "segmentation" not in entry:
        return "without a mask", "segmentation is missing; boxes alone make no semantic label"
    try:
        if sizes is not None:
            check(entry["segmentation"], *sizes[places[entry["image_id"]]])
    except ValueError as error:
        return "without an area", str(error)
    return "", ""


def _known(number: Any, known: Container[int]) -> bool:
    return type(number) is int and number in known
