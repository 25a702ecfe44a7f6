"""A file of COCO's instance annotations, read and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from hardpix.data.classes import ClassList, parse_json, read_text
from hardpix.data.files import frame_name
from hardpix.data.images import MAX_PIXELS, SUFFIXES
from hardpix.data.listing import Finder, kinds, normal
from hardpix.data.masks import check
from hardpix.types import ConfigError, DataError


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
