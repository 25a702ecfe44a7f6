"""HN labels of one frame: depth in, picture and label out as files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hardpix.data.base import CameraFrames, Frames
from hardpix.data.border import Border, shifted_camera
from hardpix.data.files import FileFrames
from hardpix.data.hn_files import IMAGES, LABELS, Entry
from hardpix.data.images import read_image
from hardpix.data.missing_depth import no_reading
from hardpix.data.prepare.recipe import link_or_copy, write_once
from hardpix.data.rgbd import camera_matrix
from hardpix.data.window import Window, image_window
from hardpix.ops.quantize import HNLabel, check_bins, hn_label
from hardpix.types import ConfigError, DataError

KEYS = frozenset({"image", "depth", "depth_valid"})
PNG_EFFORT = 1  # of 9: a photograph takes a quarter of the default's time and 14 % more space
KEPT = (".png", ".jpg", ".jpeg")

Saver = Callable[[Path], None]


@dataclass(frozen=True)
class HNSettings:
    """What the labels depend on besides the frames; :func:`hardpix.ops.quantize.hn_label` says what it means.

    crop: ``(top, left, height, width)`` in pixels of the depth, the part that is labelled and kept; what lies outside
        has no say in where the floor is. None: all of it.
    camera: ``(fx, fy, cx, cy)`` in pixels of the whole depth, in place of what the data set knows; None: that.
    """

    height_edges: tuple[float, ...]
    normals: int
    up: str
    radius: int
    gravity_radius: int
    crop: tuple[int, int, int, int] | None = None
    camera: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        check_bins(self.height_edges, self.normals)
        if self.up not in ("gravity", "manhattan"):
            raise ConfigError(f"up is '{self.up}'; it must be 'gravity' or 'manhattan'")
        if min(self.radius, self.gravity_radius) < 1:
            radii = f"{self.radius} and {self.gravity_radius}"
            raise ConfigError(f"radius and gravity_radius are {radii}; they must be at least 1")
        if self.crop and not (min(self.crop[:2]) >= 0 and min(self.crop[2:]) >= 1):
            raise ConfigError(
                f"crop is {list(self.crop)}; it must be TOP LEFT HEIGHT WIDTH, in pixels from 0"
            )
        if self.camera and not (min(self.camera[:2]) > 0 and all(map(math.isfinite, self.camera))):
            raise ConfigError(f"camera is {list(self.camera)}; it must be FX FY CX CY, in pixels")

    @property
    def window(self) -> Border | None:
        """The crop as rows and columns."""
        if self.crop is None:
            return None
        top, left, height, width = self.crop
        return Border(top, top + height, left, left + width)


class Picture(NamedTuple):
    """One frame at the size of its depth."""

    image: Tensor  # [3, H, W] uint8
    depth: NDArray[np.float32]  # [H, W] metres
    valid: NDArray[np.bool_]  # [H, W]
    original: Path | None  # the file that shows ``image``, and nothing else


@dataclass(frozen=True)
class Split:
    """The frames of one split, the names of their files, and where these go; pickles, for other processes."""

    frames: Frames
    stems: list[str]
    folder: Path
    settings: HNSettings

    def make(self, index: int) -> Entry:
        """Write the picture and the label of one frame unless it is rejected; what the listing says of it.

        A label is written after its picture: where there is one the frame is whole.
        """
        camera = self.camera(index)
        if camera is None:
            raise DataError(f"{self.frames.name(index)}: its camera is not known")
        picture = read_picture(self.frames, index)
        if self.settings.window is not None:
            picture = cut(picture, self.settings.window)
        made = label_of(picture, camera, self.settings)
        stem, entry = self.stems[index], _entry(made)
        if made.rejected is None:
            kept = picture.original
            name, save = stem + (kept.suffix.lower() if kept else ".png"), _saver(picture.image, kept)
            _write(self.folder / IMAGES / name, save)
            _write(self.folder / LABELS / f"{stem}.png", Image.fromarray(made.label).save)
            entry["image"] = name
        return {"name": stem, **entry}

    def camera(self, index: int) -> NDArray[np.float64] | None:
        """The camera matrix of a frame, in pixels of what is kept of it; None where nobody tells it."""
        if self.settings.camera:
            matrix: NDArray[np.float64] | None = camera_matrix(*self.settings.camera)
        else:
            matrix = self.frames.intrinsics(index) if isinstance(self.frames, CameraFrames) else None
        return shifted_camera(matrix, self.settings.window)

    def is_whole(self, entry: Entry) -> bool:
        """Whether the files of a frame that was made, or rejected, are there."""
        if entry["rejected"] is not None:
            return True
        paths = (self.folder / IMAGES / entry["image"], self.folder / LABELS / f"{entry['name']}.png")
        return all(path.is_file() and path.stat().st_size > 0 for path in paths)


def read_picture(frames: Frames, index: int) -> Picture:
    """Frame ``index``; a colour image of another size than its depth is resized to that, bilinearly."""
    files = frames.whole(index) if isinstance(frames, FileFrames) else None
    if files is None or not isinstance(frames, FileFrames):
        sample = frames.load(index)
        return Picture(sample["image"], sample["depth"].numpy(), sample["depth_valid"].numpy(), None)
    image = read_image(files.image, frames.image_range)
    lacking = index in frames.without_depth()
    depth, valid = no_reading(tuple(image.shape[1:])) if lacking else frames.depth(index)
    if image.shape[1:] == depth.shape:
        as_it_is = files.image.suffix.lower() in KEPT and frames.image_range is None
        return Picture(image, depth, valid, files.image if as_it_is else None)
    height, width = depth.shape
    return Picture(image_window(image, Window.whole((height, width))), depth, valid, None)


def label_of(picture: Picture, camera: NDArray[np.float64], settings: HNSettings) -> HNLabel:
    """The label of a picture whose first pixel is (0, 0) of ``camera``."""
    return hn_label(
        picture.depth,
        picture.valid,
        camera,
        radius=settings.radius,
        gravity_radius=settings.gravity_radius,
        up_method=settings.up,
        height_edges=settings.height_edges,
        normals=settings.normals,
    )


def cut(picture: Picture, window: Border) -> Picture:
    """The part of a picture inside ``window``."""
    top, bottom, left, right = window
    height, width = picture.depth.shape
    if bottom > height or right > width:
        crop = [top, left, bottom - top, right - left]
        raise DataError(f"the crop {crop} (top, left, height, width) leaves the {width}x{height} pixels")
    part = (slice(top, bottom), slice(left, right))
    return Picture(picture.image[:, *part], picture.depth[part], picture.valid[part], None)


def _saver(image: Tensor, kept: Path | None) -> Saver:
    if kept is not None:
        return partial(link_or_copy, kept)
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return partial(Image.fromarray(pixels).save, compress_level=PNG_EFFORT)


def _write(path: Path, save: Saver) -> None:
    """Anew, since a file that no listing tells of may have lost its contents with the power."""
    path.unlink(missing_ok=True)
    write_once(path, save)


def _entry(made: HNLabel) -> Entry:
    known = bool(np.isfinite(made.up).all())
    return {
        "rejected": made.rejected,
        "up": [round(float(value), 6) for value in made.up] if known else None,
        "floor": round(made.floor, 4) if known else None,
        "valid_share": round(made.valid_share, 4),
        "size": list(made.label.shape),
        "image": None,
    }


# A worker's own: the split that it works on.
_work: list[Split] = []


def start_worker(split: Split) -> None:
    """Called once in each process that makes labels."""
    torch.set_num_threads(1)
    _work[:] = [split]


def make_in_worker(index: int) -> tuple[int, Entry | str]:
    return attempt(_work[0], index)


def attempt(split: Split, index: int) -> tuple[int, Entry | str]:
    """What the listing says of a frame, or a sentence on why it cannot be made; a disk's fault goes on up."""
    try:
        return index, split.make(index)
    except DataError as error:
        name = split.frames.name(index)
        return index, str(error) if name in str(error) else f"{name}: {error}"
    except OSError:
        raise
    except Exception as error:  # nothing that one frame holds may stop the others
        return index, f"{split.frames.name(index)}: {type(error).__name__}: {error}"
