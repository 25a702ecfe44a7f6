"""PSANet: Point-wise Spatial Attention Network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.schema import Count, Share
from hardpix.models.layers import Classifiers, Concat, ConvNormAct, Head
from hardpix.ops.precision import without_autocast
from hardpix.ops.resize import resize
from hardpix.types import ConfigError, FeatureSpec


def pair_channels(
    size: tuple[int, int], mask_size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Channel of a mask ``[rows * columns, h, w]`` in which pixel i speaks of pixel j, at offset j - i.

    The middle channel is offset 0, the next one a column to the right. ``[h * w (j), h * w (i)]`` int64 and, of the
    same shape, whether the mask reaches that far; where it does not, the channel means nothing.
    """
    steps = []
    for side, extent in zip(size, mask_size, strict=True):
        place = torch.arange(side, device=device)
        steps.append(place[:, None] - place + (extent - 1) // 2)
    down, across = steps[0][:, None, :, None], steps[1][None, :, None, :]
    reached = (down >= 0) & (down < mask_size[0]) & (across >= 0) & (across < mask_size[1])
    channel = torch.where(reached, down * mask_size[1] + across, 0)
    pixels = size[0] * size[1]
    return channel.reshape(pixels, pixels), reached.reshape(pixels, pixels)


class PointAttention(nn.Module):
    """Each pixel predicts one number per offset, its mask, by which it collects from or distributes to all others.

    Collecting (``distribute=False``), pixel i receives ``sum_j softmax_j(a_i[j - i]) x_j``; distributing, pixel j
    receives ``sum_i softmax_i(a_i[j - i]) x_i``. Offsets beyond the mask count as ``a = 0``, as in mmcv. The sums are
    in float32.
    """

    def __init__(self, inputs: int, channels: int, mask_size: tuple[int, int], *, distribute: bool) -> None:
        super().__init__()
        self.distribute = distribute
        self.reduce = ConvNormAct(inputs, channels, 1)
        self.mask = nn.Sequential(
            ConvNormAct(channels, channels, 1),
            nn.Conv2d(channels, mask_size[0] * mask_size[1], 1, bias=False),
        )

    def forward(
        self, x: Tensor, size: tuple[int, int], pairs: tuple[Tensor, Tensor], *, align_corners: bool
    ) -> Tensor:
        """``[B, inputs, H, W]`` -> ``[B, channels, h, w]``; ``pairs``: what :func:`pair_channels` says of ``size``."""
        x = resize(self.reduce(x), size, align_corners=align_corners)
        channel, reached = pairs
        a = self.mask(x).flatten(2).gather(1, channel.expand(len(x), -1, -1))
        a = a.masked_fill(~reached, 0)  # [B, j, i]
        a = a.mT if self.distribute else a
        with without_autocast(x):
            y = x.flatten(2).float() @ a.softmax(1, dtype=torch.float32)
        return y.unflatten(2, size).to(x.dtype)


class PSAHead(Head):
    """Collected and distributed features, joined to the input and fused by 3x3 into the one decoder map.

    The attention runs on a smaller map of n pixels and holds n x n numbers per direction and image: n = 49 * 49 for
    769x769 at stride 8, shrunk twofold, where the head keeps 0.7 GB per image for the backward pass in float32.

    Args:
        mask_size: rows and columns of a pixel's mask, odd; twice the shrunk map's less one sees the whole map.
        shrink_factor: by which the map is made smaller for the attention.
        padding: zeros around the attention's output ahead of its projection, which shrink it when it is enlarged to
            the input's size.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        mask_size: Sequence[Count],
        shrink_factor: Count,
        padding: int,
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        if not all(side > 0 and side % 2 for side in mask_size):
            raise ConfigError(
                f"head.mask_size={list(mask_size)}: a mask has its pixel in the middle; set odd numbers"
            )
        self.mask_size = (mask_size[0], mask_size[1])
        self.shrink_factor, self.padding, self.align_corners = shrink_factor, padding, align_corners
        self.input = Concat(specs, levels, align_corners=align_corners)
        inputs = self.input.spec.channels
        self.collect = PointAttention(inputs, channels, self.mask_size, distribute=False)
        self.distribute = PointAttention(inputs, channels, self.mask_size, distribute=True)
        self.project = ConvNormAct(2 * channels, inputs, 1)
        self.fuse = ConvNormAct(2 * inputs, channels, 3)
        self.features = (FeatureSpec(self.input.spec.stride, channels),)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        x = self.input(pyramid)
        full = (x.shape[-2], x.shape[-1])
        size, align_corners = self._shrunk(*full)
        pairs = pair_channels(size, self.mask_size, x.device)
        y = torch.cat(
            [f(x, size, pairs, align_corners=align_corners) for f in (self.collect, self.distribute)], 1
        )
        y = self.project(F.pad(y, [self.padding] * 4))
        return [self.fuse(torch.cat([x, resize(y, full, align_corners=align_corners)], 1))]

    def _shrunk(self, height: int, width: int) -> tuple[tuple[int, int], bool]:
        """Size of the smaller map, and how it is resized to and from: mmsegmentation's rule, and at least 1x1."""
        by = self.shrink_factor
        if by == 1:
            return (height, width), self.align_corners
        if height % by and width % by:
            return ((height - 1) // by + 1, (width - 1) // by + 1), True
        return (max(1, height // by), max(1, width // by)), False
