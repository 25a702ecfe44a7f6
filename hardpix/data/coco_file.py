"""A file of COCO's instance annotations, read and checked."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from hardpix.data.classes import parse_json, read_text
from hardpix.data.files import frame_name
from hardpix.data.images import MAX_PIXELS, SUFFIXES
from hardpix.data.listing import Finder, normal
from hardpix.types import DataError


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
        if entry["id"] in found or not isinstance(entry.get("name"), str) or entry["name"] in found.values():
            raise DataError(f"{path}: category {entry['id']}: each must have an id and a name of its own")
        found[entry["id"]] = entry["name"]
    if not found:
        raise DataError(f"{path}: the list categories is empty; it must name the classes")
    return found


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


def by_image(content: dict[str, Any], path: Path) -> list[list[dict[str, Any]]]:
    """The annotations of each image, less what is not used of them."""
    categories = {entry["id"] for entry in content["categories"]}
    places: dict[int, int] = {}
    for entry in content["images"]:
        if entry["id"] in places:
            raise DataError(
                f"{path}: image {entry['id']}: the id is there already; each image must have its own"
            )
        places[entry["id"]] = len(places)
    found: list[list[dict[str, Any]]] = [[] for _ in places]
    for entry in content["annotations"]:
        where = f"{path}: annotation {entry['id']}"
        if not _known(entry.get("image_id"), places):
            raise DataError(f"{where}: image_id {entry.get('image_id')} is no image of the file")
        if not _known(entry.get("category_id"), categories):
            raise DataError(f"{where}: category_id {entry.get('category_id')} is no category of the file")
        if "segmentation" not in entry:
            raise DataError(f"{where}: segmentation is missing; boxes alone make no semantic label")
        kept = {key: entry[key] for key in ("id", "category_id", "segmentation")}
        found[places[entry["image_id"]]].append(kept | {"iscrowd": bool(entry.get("iscrowd", 0))})
    return found


def _known(number: Any, known: Container[int]) -> bool:
    return type(number) is int and number in known
