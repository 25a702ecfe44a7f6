"""Structural similarity of two maps (Wang et al., Image Quality Assessment, 2004), of which parts may be undefined."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# The paper's window and constants; maps lie in [0, 1], so that the data range is 1.
SIDE, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


@torch.no_grad()
def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of ``a`` and ``b`` ``[B, H, W]`` in [0, 1] around each pixel, ``[B, H - 10, W - 10]`` float32.

    A Gaussian window of 11 x 11 pixels (sigma 1.5) lies around every pixel that is five or more from the border;
    variances are those of the weights (not of a sample). A pixel at which a map is NaN has weight 0 in every
    window, whose other weights then sum to 1, and is NaN in the result. Without such pixels this is plain SSIM.
    """
    if min(a.shape[-2:]) < SIDE:
        return a.new_empty(len(a), max(0, a.shape[-2] - SIDE + 1), max(0, a.shape[-1] - SIDE + 1))
    with torch.autocast(a.device.type, enabled=False):
        defined = torch.isfinite(a) & torch.isfinite(b)
        # Around their means: squares of a narrow map would leave no digits for its variance.
        shift_x, shift_y = (_mean(m.float(), defined) for m in (a, b))
        x, y = (torch.where(defined, m.float() - s, 0.0) for m, s in ((a, shift_x), (b, shift_y)))
        terms = torch.stack([defined.float(), x, y, x * x, y * y, x * y], 1)
        weight, *sums = _blurred(terms).unbind(1)
        mean_x, mean_y, xx, yy, xy = (s / weight for s in sums)
        var_x, var_y = (xx - mean_x**2).clamp_min(0), (yy - mean_y**2).clamp_min(0)
        covariance = xy - mean_x * mean_y
        mean_x, mean_y = mean_x + shift_x, mean_y + shift_y
        similar = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
        similar = similar / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))
        edge = SIDE // 2
        return similar.masked_fill(~defined[:, edge:-edge, edge:-edge], torch.nan)


def mean_ssim(local: Tensor) -> Tensor:
    """Mean of :func:`ssim_map` over each image's defined pixels, ``[B]`` float64 on the CPU; NaN without one."""
    return local.flatten(1).cpu().double().nanmean(1)


def _mean(x: Tensor, defined: Tensor) -> Tensor:
    """Of each image's defined pixels, ``[B, 1, 1]``; 0 without one."""
    total = torch.where(defined, x, 0.0).sum((1, 2), keepdim=True)
    return total / defined.sum((1, 2), keepdim=True).clamp_min(1)


def _blurred(terms: Tensor) -> Tensor:
    """Weighted sums over the windows that lie inside, ``[B, n, H, W]``."""
    place = torch.arange(SIDE, dtype=torch.float32, device=terms.device) - SIDE // 2
    line = (-(place**2) / (2 * SIGMA**2)).exp()
    line = line / line.sum()
    flat = terms.flatten(0, 1)[:, None]
    flat = F.conv2d(F.conv2d(flat, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))
    return flat.view(*terms.shape[:2], *flat.shape[-2:])
