"""The only file that interpolates feature maps and logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Bilinear resize of ``[B, c, h, w]`` maps to ``size = (H, W)``; returns ``x`` itself if nothing changes."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def enlarge_nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest enlargement of ``[B, c, h, w]`` maps to ``size = (H, W)``: output ``i`` repeats ``floor(i * h / H)``."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="nearest")


def resize_nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest resize of labels, depth or masks ``[B, H, W]``, any dtype kept; output pixel centres pick."""
    if x.shape[-2:] == tuple(size):
        return x
    out = F.interpolate(x[:, None].float(), size=tuple(size), mode="nearest-exact")
    return out[:, 0].to(x.dtype)


def resize_pixels(image: Tensor, zoom: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Top left ``size`` of a picture ``[c, H, W]`` uint8 enlarged by ``zoom`` (down, across); bilinear, uint8.

    Smoothed where it shrinks. Output pixel i samples ``(i + 1/2) / zoom`` exactly, whatever ``H`` and ``W`` are;
    they need only reach as far as that.
    """
    # A hair larger, so that the float product H * zoom never falls below the whole number it stands for.
    factors = tuple(factor * (1 + 1e-9) for factor in zoom)
    # Decoded pixels lie channel by channel in memory, for which torch has its fast kernel; a cut of them has to be
    # packed first.
    packed = image[None].contiguous(memory_format=torch.channels_last)
    out = F.interpolate(
        packed, scale_factor=factors, mode="bilinear", antialias=True, recompute_scale_factor=False
    )
    return out[0, :, : size[0], : size[1]]


def sample_pixels(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear values of a picture ``[c, H, W]`` uint8 at positions ``[h, w]``; ``[c, h, w]`` uint8.

    Positions count pixels from the upper left corner, where the first pixel's centre is at 1/2. Beyond the
    outermost centres the border's values go on.
    """
    grid = torch.empty(*rows.shape, 2)
    for axis, (places, size) in enumerate(((columns, image.shape[-1]), (rows, image.shape[-2]))):
        grid[..., axis] = places
        grid[..., axis].mul_(2 / size).sub_(1)
    out = F.grid_sample(image[None].float(), grid[None], padding_mode="border", align_corners=False)
    return out[0].add_(0.5).to(torch.uint8)
