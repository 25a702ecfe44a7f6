"""Depth as a torchvision tensor type, so that any v2 transform treats it as metres and not as a picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


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
