"""A convolutional block on squares of its output alone: which squares, and cutting and filling in of windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOWEST = 0.01  # least weight of a batch in the running statistics


class TrackedGroupNorm(nn.GroupNorm):
    """Group norm that keeps the mean and variance that its groups have on average over the images of training.

    In training it is group norm. At inference ``tracked`` chooses what normalises: False, each image's own statistics
    (group norm); True, the kept ones, with which every pixel's value depends on that pixel alone. A batch's weight in
    them is one over the number of batches so far, never below 0.01: the plain mean of the first hundred batches, then
    a running one.
    """

    running_mean: Tensor  # [groups]
    running_var: Tensor  # [groups], mean of the images' variances
    batches: Tensor  # int64

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels)
        self.tracked = False
        self.register_buffer("running_mean", torch.zeros(groups))
        self.register_buffer("running_var", torch.ones(groups))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.tracked and not self.training:
            return self._by_kept(x)
        if self.training:
            self._keep(x)
        return super().forward(x)

    @torch.no_grad()
    def _keep(self, x: Tensor) -> None:
        groups = x.float().unflatten(1, (self.num_groups, -1))
        var, mean = torch.var_mean(groups, (2, 3, 4), correction=0)
        self.batches += 1
        weight = self.batches.float().reciprocal().clamp_min(SLOWEST)
        self.running_mean.lerp_(mean.mean(0), weight)
        self.running_var.lerp_(var.mean(0), weight)

    def _by_kept(self, x: Tensor) -> Tensor:
        per = self.num_channels // self.num_groups
        factor = self.weight.float() * (self.running_var + self.eps).rsqrt().repeat_interleave(per)
        shift = self.bias.float() - factor * self.running_mean.repeat_interleave(per)
        return torch.addcmul(shift[:, None, None], x.float(), factor[:, None, None]).to(x.dtype)


def tiles_read(flagged: Tensor, size: tuple[int, int], side: int, *, align_corners: bool) -> Tensor:
    """Which tiles of a map an enlargement of it reads at the flagged pixels.

    ``flagged [B, H, W]`` bool of the bilinear enlargement of a map of ``size = (h, w)``, which is cut into squares of
    ``side`` -> ``[B, ceil(h / side), ceil(w / side)]`` bool. A pixel reads the four cells around it; one more on
    either side is counted, so that nothing hangs on the rounding of positions.
    """
    found = flagged
    for dim, cells in ((1, size[0]), (2, size[1])):
        ranges = _readers(flagged.shape[dim], cells, side, align_corners)
        found = torch.stack([found.narrow(dim, a, b - a).any(dim) for a, b in ranges], dim)
    return found


def _readers(pixels: int, cells: int, side: int, align_corners: bool) -> list[tuple[int, int]]:
    """For each tile along one side the range of pixels of the enlargement that may read it."""
    place = torch.arange(pixels, dtype=torch.float64)
    if align_corners:
        place *= (cells - 1) / max(pixels - 1, 1)
    else:
        place = ((place + 0.5) * (cells / pixels) - 0.5).clamp_min(0)
    cell = place.floor().long()
    first, last = (cell - 1).clamp_min(0), (cell + 2).clamp_max(cells - 1)
    starts = torch.arange(0, cells, side)
    begin = torch.searchsorted(last, starts)
    end = torch.searchsorted(first, (starts + side - 1).clamp_max(cells - 1), right=True)
    return list(zip(begin.tolist(), end.tolist(), strict=True))


def cut(x: Tensor, corners: list[tuple[int, int, int]], side: int, halo: int) -> Tensor:
    """Windows of ``x [B, c, h, w]`` around tiles, ``[n, c, side + 2 halo, side + 2 halo]``, 0 beyond the map's border.

    Args:
        corners: (image, row, column) of each tile's first cell.
    """
    height, width = x.shape[-2:]
    windows = []
    for image, y, left in corners:
        rows, columns = (y - halo, y + side + halo), (left - halo, left + side + halo)
        part = x[image, :, max(rows[0], 0) : rows[1], max(columns[0], 0) : columns[1]]
        beyond = (
            max(-columns[0], 0), max(columns[1] - width, 0), max(-rows[0], 0), max(rows[1] - height, 0)
        )  # fmt: skip
        windows.append(F.pad(part, beyond) if any(beyond) else part)
    return torch.stack(windows)


def fill_in(out: Tensor, tiles: Tensor, corners: list[tuple[int, int, int]]) -> None:
    """Put ``tiles [n, c, side, side]`` where they were cut in ``out [B, c, h, w]``; what is beyond it is dropped."""
    height, width = out.shape[-2:]
    for tile, (image, y, left) in zip(tiles, corners, strict=True):
        side = tile.shape[-1]
        part = tile[:, : height - y, : width - left]
        out[image, :, y : y + side, left : left + side] = part
