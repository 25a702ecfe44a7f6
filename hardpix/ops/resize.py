"""The only file that interpolates feature maps and logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Bilinear resize of ``[B, c, h, w]`` maps to ``size = (H, W)``; returns ``x`` itself if nothing changes."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def resize_nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest resize of labels, depth or masks ``[B, H, W]``, any dtype kept; output pixel centres pick."""
    if x.shape[-2:] == tuple(size):
        return x
    out = F.interpolate(x[:, None].float(), size=tuple(size), mode="nearest-exact")
    return out[:, 0].to(x.dtype)
