"""Joint transforms of image, label, depth and masks for training and test.

A transform maps a :class:`hardpix.data.source.Sample` to tensors that collate. Images stay 8-bit: they are
normalised after the transfer to the device, which then moves a quarter of the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from hardpix.config.schema import Count, Positive, PositiveShare, Share, checked
from hardpix.data.augment import Photometric, RotatedWindow, Window, cut, rotated_window, uniform, zoom
from hardpix.data.source import Sample
from hardpix.ops.window import fitted_size
from hardpix.types import ConfigError

Size = tuple[int, int]  # height, width

INSIDE = "inside"  # where a turned picture is picture, among the tensors while they are transformed
REDRAWS = 10  # mmsegmentation's RandomCrop redraws at most so often


class Transformed(NamedTuple):
    """A sample ready to collate."""

    tensors: dict[str, Tensor]  # image uint8 [3, H, W]; label, depth, ... [H, W]
    name: str
    extent: Size  # what of height and width is picture; the rest, below and to the right, is padding
    skipped: Mapping[str, str] = {}  # frames that could not be read, in whose place this one stands, and why


class TrainTransform:
    """Random resize, rotation, random crop, horizontal flip, photometric distortion, padding: mmsegmentation's order.

    The crop window is drawn first and only its pixels are resized (and turned): what resizing everything, turning
    it and cropping then would give, for a window whose corner lies on a pixel of the picture.

    crop: (height, width) that comes out; smaller pictures are padded below and to the right, with void in
        the label, invalid depth, and an image that is 0 after normalisation.
    base_size: (long, short) limits that the picture is fitted into, keeping its ratio, before ``ratio``
        scales it; null for its native size.
    ratio: range of the random scale, one for both sides.
    ratio_step: the scales are the smaller end of ``ratio`` and every such step up to the larger, equally
        probable; null: any scale of the range.
    rotate: the picture is turned about its centre by an angle drawn from [-rotate, rotate] degrees and keeps its
        size. Where nothing was, the image is 0 (black, before normalisation), the label void, depth invalid. Null:
        no rotation.
    cat_max_ratio: the window is redrawn, at most ten times, while one class covers more than this share of
        its labelled pixels or fewer than two classes are in it; the last draw is kept. Null: no test.
    hflip: probability of a horizontal flip.
    photometric: null, or a :class:`Photometric`.
    scale_with_zoom: a random scale s of the picture is a zoom of the camera. False leaves depth in metres as
        measured; True divides it by s, as if the camera had moved nearer.
    """

    @checked
    def __init__(
        self,
        *,
        crop: tuple[Count, Count],
        base_size: tuple[Count, Count] | None,
        ratio: tuple[Positive, Positive],
        cat_max_ratio: PositiveShare | None,
        hflip: Share,
        photometric: Photometric | None,
        scale_with_zoom: bool,
        ratio_step: Positive | None = None,
        rotate: Annotated[float, "[0, 180]"] | None = None,
    ) -> None:
        self.crop = (crop[0], crop[1])
        self.base_size = None if base_size is None else (base_size[0], base_size[1])
        if ratio[0] > ratio[1]:
            raise ConfigError(f"ratio={list(ratio)}: must be two positive numbers, the smaller first")
        self.ratio = (ratio[0], ratio[1])
        self.scales = None if ratio_step is None else scales(self.ratio, ratio_step)
        self.rotate = rotate
        self.cat_max_ratio, self.hflip, self.photometric = cat_max_ratio, hflip, photometric
        self.scale_with_zoom = scale_with_zoom

    def __call__(self, sample: Sample, rng: torch.Generator, ignore_index: int) -> Transformed:
        ratio = self._random_ratio(rng)
        angle = 0.0 if self.rotate is None else uniform(rng, -self.rotate, self.rotate)
        native = (sample["image"].shape[-2], sample["image"].shape[-1])
        scaled = fitted_size(native, self.base_size, ratio)
        tensors = typed(sample)
        view, label = self._draw_view(tensors.pop("label", None), native, scaled, angle, rng, ignore_index)
        tensors = {key: cut(value, view, 0) for key, value in tensors.items()}
        if label is not None:
            tensors["label"] = label
        if self.scale_with_zoom and "depth" in tensors:
            tensors["depth"] = DepthMap(tensors["depth"] / ratio)
        if isinstance(view, RotatedWindow):
            tensors[INSIDE] = tv_tensors.Mask(torch.from_numpy(view.inside))
        if uniform(rng, 0, 1) < self.hflip:
            tensors = {key: F.horizontal_flip(value) for key, value in tensors.items()}
        if self.photometric is not None:
            distorted = self.photometric(tensors["image"].numpy(), rng)
            tensors["image"] = tv_tensors.Image(torch.from_numpy(distorted))
        if INSIDE in tensors:  # brightness made what is outside lighter
            tensors["image"].mul_(tensors.pop(INSIDE).as_subclass(Tensor))
        padded = {
            key: pad(value, self.crop, ignore_index if key == "label" else 0)
            for key, value in tensors.items()
        }
        extent = (view if isinstance(view, Window) else view.window)[3:5]
        return Transformed(plain(padded), sample["name"], extent)

    def _random_ratio(self, rng: torch.Generator) -> float:
        if self.scales is None:
            return uniform(rng, *self.ratio)
        return self.scales[int(torch.randint(len(self.scales), (), generator=rng))]

    def _draw_view(
        self, label: Any, native: Size, scaled: Size, angle: float, rng: torch.Generator, ignore_index: int
    ) -> tuple[Window | RotatedWindow, Any]:
        """What is cropped, and the label (None without one) in it, which the test has to resize anyhow."""

        def draw() -> Window | RotatedWindow:
            window = self._random_window(native, scaled, rng)
            return rotated_window(window, native, angle) if angle else window

        view = draw()
        if label is None:
            return view, None
        picked = cut(label, view, ignore_index)
        if self.cat_max_ratio is None:
            return view, picked
        for _ in range(REDRAWS):
            if is_varied(picked, ignore_index, self.cat_max_ratio):
                break
            view = draw()
            picked = cut(label, view, ignore_index)
        return view, picked

    def _random_window(self, native: Size, scaled: Size, rng: torch.Generator) -> Window:
        height, width = (min(size, limit) for size, limit in zip(scaled, self.crop, strict=True))
        # Rooms above and left of the window, in whole pixels of the picture.
        top = int(torch.randint((scaled[0] - height) * native[0] // scaled[0] + 1, (), generator=rng))
        left = int(torch.randint((scaled[1] - width) * native[1] // scaled[1] + 1, (), generator=rng))
        return Window(scaled, top, left, height, width)


class TestTransform:
    """Evaluation: the picture as it is.

    resize: null, or the (height, width) that image, label and depth are all brought to, for protocols that
        score at a fixed size. Scores at native size need null here.
    """

    __test__ = False  # the name begins like a test's

    @checked
    def __init__(self, *, resize: tuple[Count, Count] | None) -> None:
        self.resize = None if resize is None else (resize[0], resize[1])

    def __call__(self, sample: Sample, rng: torch.Generator, ignore_index: int) -> Transformed:
        native = (sample["image"].shape[-2], sample["image"].shape[-1])
        window = Window.whole(self.resize or native)
        tensors = {key: zoom(value, window) for key, value in typed(sample).items()}
        return Transformed(plain(tensors), sample["name"], window.scaled)


def scales(ratio: tuple[float, float], step: float) -> list[float]:
    """From the smaller to the larger ``ratio``; ``ConfigError`` unless a whole number of steps leads there."""
    low, high = ratio
    count = round((high - low) / step) if step > 0 else 0
    if not step > 0 or abs(low + count * step - high) > 1e-6:
        raise ConfigError(
            f"ratio_step={step}: must be positive and divide the range of ratio={list(ratio)}, or null"
        )
    return [low + index * step for index in range(count + 1)]


def sides(name: str, size: Sequence[int]) -> Size:
    """A size from the configuration; ``ConfigError`` unless it is two positive ints."""
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ConfigError(f"{name}={list(size)}: must be two positive ints")
    return size[0], size[1]


def typed(sample: Sample) -> dict[str, tv_tensors.TVTensor]:
    """The tensors of a sample as what they are, for v2 transforms to tell apart."""
    types: dict[str, Any] = {"image": tv_tensors.Image, "depth": DepthMap}
    return {
        key: types.get(key, tv_tensors.Mask)(value)
        for key, value in sample.items()
        if isinstance(value, Tensor)
    }


def plain(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {key: value.as_subclass(Tensor) for key, value in tensors.items()}


def pad(value: Tensor, size: Size, fill: int) -> Tensor:
    """Pad below and to the right to ``size``; ``fill`` is for labels, a :class:`DepthMap` becomes invalid."""
    height, width = value.shape[-2:]
    if (height, width) == tuple(size):
        return value
    return F.pad(value, [0, 0, size[1] - width, size[0] - height], fill=fill)


def is_varied(label: Tensor, ignore_index: int, cat_max_ratio: float) -> bool:
    """Whether a crop holds two classes or more, none on more than ``cat_max_ratio`` of its labelled pixels."""
    counts = torch.bincount(label.as_subclass(Tensor).flatten(), minlength=ignore_index + 1)
    counts[ignore_index] = 0
    counts = counts[counts > 0]
    return len(counts) > 1 and int(counts.max()) <= cat_max_ratio * int(counts.sum())


# Depth as a torchvision tensor type, so that any v2 transform treats it as metres and not as a picture.


class DepthMap(tv_tensors.TVTensor):
    """Depth ``[..., H, W]`` in metres.

    It resizes by nearest (a mean over a depth edge lies on no surface), what a transform fills in is 0, which
    means invalid, whatever fill is asked for the image, and its values stay metres under a zoom:
    :class:`hardpix.data.TrainTransform` decides whether they are divided by it.
    """

    def __new__(cls, data: Any) -> DepthMap:
        return torch.as_tensor(data).as_subclass(cls)


def _wrap(data: Tensor) -> DepthMap:
    return data.as_subclass(DepthMap)


@F.register_kernel(F.resize, DepthMap)
def _resize(depth: DepthMap, size: list[int], max_size: int | None = None, **_: Any) -> DepthMap:
    plain = depth.as_subclass(Tensor)
    return _wrap(F.resize_image(plain[None], size, InterpolationMode.NEAREST_EXACT, max_size)[0])


@F.register_kernel(F.resized_crop, DepthMap)
def _resized_crop(
    depth: DepthMap, top: int, left: int, height: int, width: int, size: list[int], **_: Any
) -> DepthMap:
    return _resize(_crop(depth, top, left, height, width), size)


@F.register_kernel(F.crop, DepthMap)
def _crop(depth: DepthMap, top: int, left: int, height: int, width: int) -> DepthMap:
    return _wrap(F.crop_mask(depth.as_subclass(Tensor), top, left, height, width))


@F.register_kernel(F.center_crop, DepthMap)
def _center_crop(depth: DepthMap, output_size: list[int]) -> DepthMap:
    return _wrap(F.center_crop_mask(depth.as_subclass(Tensor), output_size))


@F.register_kernel(F.horizontal_flip, DepthMap)
def _horizontal_flip(depth: DepthMap) -> DepthMap:
    return _wrap(F.horizontal_flip_mask(depth.as_subclass(Tensor)))


@F.register_kernel(F.vertical_flip, DepthMap)
def _vertical_flip(depth: DepthMap) -> DepthMap:
    return _wrap(F.vertical_flip_mask(depth.as_subclass(Tensor)))


@F.register_kernel(F.pad, DepthMap)
def _pad(depth: DepthMap, padding: list[int], fill: Any = None, padding_mode: str = "constant") -> DepthMap:
    return _wrap(F.pad_mask(depth.as_subclass(Tensor), padding, fill=0, padding_mode=padding_mode))


@F.register_kernel(F.rotate, DepthMap)
def _rotate(
    depth: DepthMap,
    angle: float,
    interpolation: InterpolationMode | int = InterpolationMode.NEAREST,
    expand: bool = False,
    center: list[float] | None = None,
    fill: Any = None,
) -> DepthMap:
    return _wrap(F.rotate_mask(depth.as_subclass(Tensor), angle, expand=expand, center=center, fill=0))


@F.register_kernel(F.affine, DepthMap)
def _affine(
    depth: DepthMap,
    angle: float,
    translate: list[float],
    scale: float,
    shear: list[float],
    interpolation: InterpolationMode | int = InterpolationMode.NEAREST,
    fill: Any = None,
    center: list[float] | None = None,
) -> DepthMap:
    plain = depth.as_subclass(Tensor)
    return _wrap(F.affine_mask(plain, angle, translate, scale, shear, fill=0, center=center))
