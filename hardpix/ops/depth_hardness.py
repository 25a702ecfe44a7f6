"""Hardness from depth (LWM, Hard Pixel Mining for Depth Privileged Semantic Segmentation).

Maps are ``[B, H, W]`` float32 without gradient: they weigh losses, and must not be trained through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hardpix.ops.pixel import kth_smallest
from hardpix.ops.precision import without_autocast
from hardpix.types import ConfigError

DEEPEST = 256.0  # depth is read on a scale from 1 to 256
FUSIONS = ("dpe", "dse", "sum", "product", "max")


def scaled_depth(depth: Tensor, valid: Tensor, depth_max: float | None) -> Tensor:
    """``D* = 1 + 255 clip(z / z_max, 0, 1)`` in [1, 256] (eq. 4.6), 1 where ``valid`` is False.

    ``depth`` ``[B, H, W]`` metres; ``depth_max`` metres, or None for the largest valid depth of each image.
    """
    z = torch.where(valid, depth.float(), 0.0)
    largest = z.amax((1, 2), keepdim=True).clamp_min(1e-12) if depth_max is None else depth_max
    return 1 + (DEEPEST - 1) * (z / largest).clamp(0, 1)


def depth_target(depth: Tensor, depth_valid: Tensor, depth_max: float | None) -> tuple[Tensor, Tensor]:
    """``D*`` ``[B, H, W]`` of :func:`scaled_depth`, and its valid pixels: finite readings above 0."""
    valid = depth_valid & torch.isfinite(depth) & (depth > 0)
    return scaled_depth(depth, valid, depth_max), valid


def log_depth_loss(log_depth: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``(log D - log D*)^2`` over the valid pixels (eq. 4.8); 0 with a graph if there is none.

    ``log_depth`` ``[B, H, W]`` is the network's linear output, ``target`` is D* in [1, 256].
    """
    with without_autocast(log_depth):
        gap = torch.where(valid, log_depth.float() - target.log(), 0.0)
        return gap.square().sum() / torch.count_nonzero(valid).clamp_min(1)


@torch.no_grad()
def depth_prediction_error(log_depth: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """DPE ``|log D - log D*|``, divided by its maximum over each image's valid pixels (eq. 4.9), in [0, 1].

    ``log_depth`` is clamped to [0, log 256]. 0 without a depth reading, and everywhere if no pixel errs.
    """
    with without_autocast(log_depth):
        gap = (log_depth.float().clamp(0, math.log(DEEPEST)) - target.log()).abs()
        gap = torch.where(valid, gap, 0.0)
        return gap / gap.amax((1, 2), keepdim=True).clamp_min(1e-12)


class Regions(NamedTuple):
    """Which region each labelled pixel lies in: made once a batch, used for every output."""

    ids: Tensor  # [B, H, W] int64; the last region collects what is not counted
    share: Tensor  # [B, H, W] float32: 1 / pixels of the pixel's region; 0 where it is not counted
    number: int


@torch.no_grad()
def depth_regions(
    target: Tensor, depth_valid: Tensor, counted: Tensor, *, cells: Sequence[int] | None, bin_size: float
) -> Regions:
    """Regions of DSE (eq. 4.10): pixels of one image, one cell of a grid and one bin of depth.

    ``target`` is D* ``[B, H, W]``; pixels without a reading share one further bin per cell; ``counted`` (bool)
    leaves out void pixels. ``cells``: (rows, columns) of the grid, None for one cell per pixel; ``bin_size``: d.
    """
    batch, height, width = target.shape
    if cells is None:
        ids = torch.arange(target.numel(), device=target.device).view_as(target)
        return Regions(torch.where(counted, ids, target.numel()), counted.float(), target.numel() + 1)
    rows, columns = min(cells[0], height), min(cells[1], width)
    bins = math.ceil(DEEPEST / bin_size) + 1
    depth_bin = ((target - 1) / bin_size).to(torch.int64).clamp_(max=bins - 2)
    depth_bin.masked_fill_(~depth_valid, bins - 1)
    row = torch.arange(height, device=target.device) * rows // height
    column = torch.arange(width, device=target.device) * columns // width
    image = torch.arange(batch, device=target.device) * (rows * columns)
    cell = image[:, None, None] + (row * columns)[:, None] + column
    number = batch * rows * columns * bins + 1
    ids = (cell * bins + depth_bin).masked_fill_(~counted, number - 1)
    pixels = _count(ids.flatten(), number).take(ids).float()
    return Regions(ids, counted / pixels, number)


@torch.no_grad()
def segmentation_error(wrong: Tensor, regions: Regions) -> Tensor:
    """DSE (eq. 4.10): the share of wrong pixels in each pixel's region, in [0, 1]; 0 on pixels not counted.

    ``wrong`` ``[B, H, W]`` bool.
    """
    if regions.ids.device.type == "cpu":
        errors = np.compress(wrong.numpy().ravel(), regions.ids.numpy().ravel())
        counts = _count(torch.from_numpy(errors), regions.number)
    else:
        counts = _scattered_errors(wrong, regions)
    return counts.take(regions.ids) * regions.share


def fuse(prediction_error: Tensor, region_error: Tensor, fusion: str) -> Tensor:
    """``M = F(R, Z)`` (eq. 4.11): ``sum`` (in [0, 2]), ``product`` or ``max``; ``dpe`` and ``dse`` are one alone."""
    if fusion == "dpe":
        return prediction_error
    if fusion == "dse":
        return region_error
    if fusion == "sum":
        return prediction_error + region_error
    if fusion == "product":
        return prediction_error * region_error
    if fusion == "max":
        return torch.maximum(prediction_error, region_error)
    raise ConfigError(f"hardness={fusion}: must be one of {', '.join(FUSIONS)}")


@torch.no_grad()
def image_mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of ``values`` over each image's valid pixels, at every pixel ``[B, H, W]``; 0 without a valid pixel."""
    total = torch.where(valid, values, 0.0).double().sum((1, 2), keepdim=True)
    mean = total / valid.sum((1, 2), keepdim=True).clamp_min(1)
    return mean.to(values.dtype).expand_as(values)


@torch.no_grad()
def curriculum(values: Tensor, valid: Tensor, progress: float) -> Tensor:
    """Which pixels are easy enough yet: ``values < eta`` (eq. 4.14), bool ``[B, H, W]``, False where not valid.

    ``eta = u1 + progress (u2 - u1)`` with u1 the (lower) median and u2 the maximum of each image's valid pixels;
    ``progress`` is e / E. At 1 all but the hardest pixels are kept; where all are equal, none.
    """
    middle, largest = median_and_max(values, valid)
    eta = torch.lerp(middle, largest, progress)
    return (values < eta[:, None, None]) & valid


@torch.no_grad()
def median_and_max(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The lower median and the maximum over each image's valid pixels, ``[B]`` each; 0 without a valid pixel."""
    if values.device.type == "cpu":
        found = [_median_and_max(v, m) for v, m in zip(values, valid, strict=True)]
        return torch.stack([m for m, _ in found]), torch.stack([x for _, x in found])
    return _sorted_median_and_max(values, valid)


def _sorted_median_and_max(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """For other devices, none of which is waited for: the number of valid pixels stays there."""
    flat = values.masked_fill(~valid, torch.inf).flatten(1).sort(1).values
    count = valid.flatten(1).sum(1)
    places = torch.stack([(count - 1) // 2, count - 1]).clamp_min(0)
    picked = flat.gather(1, places.T)
    picked = torch.where(count[:, None] > 0, picked, 0.0)
    return picked[:, 0], picked[:, 1]


def _median_and_max(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    kept = torch.from_numpy(np.compress(valid.numpy().ravel(), values.numpy().ravel()))
    if not len(kept):
        return values.new_zeros(()), values.new_zeros(())
    return kth_smallest(kept, (len(kept) - 1) // 2), kept.max()


def _count(ids: Tensor, number: int) -> Tensor:
    """How often each of ``0..number-1`` occurs."""
    if ids.device.type == "cpu":
        counts = torch.from_numpy(np.bincount(ids.numpy().ravel(), minlength=number))
        # Reading few regions is faster in float32; many are not worth the conversion.
        return counts.float() if number < 1 << 18 else counts
    return _scattered_count(ids, number)


def _scattered_count(ids: Tensor, number: int) -> Tensor:
    ones = torch.ones((), device=ids.device).expand(ids.numel())
    return torch.zeros(number, device=ids.device).index_add_(0, ids.flatten(), ones)


def _scattered_errors(wrong: Tensor, regions: Regions) -> Tensor:
    """Wrong pixels of each region; right ones are counted in the last, where nothing is."""
    return _scattered_count(torch.where(wrong, regions.ids, regions.number - 1), regions.number)
