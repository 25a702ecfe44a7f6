"""ISANet: Interlaced Sparse Self-Attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.schema import Count, Share
from hardpix.models.layers import Classifiers, Concat, ConvNormAct, Head
from hardpix.types import FeatureSpec

# A map cut into blocks, [B, c, down, row in block, across, column in block], as [B, groups (2 axes), pixels (2), c].
_LONG = (0, 3, 5, 2, 4, 1)  # a group: the pixels at one place in all blocks
_SHORT = (0, 2, 4, 3, 5, 1)  # a group: the pixels of one block


class GroupAttention(nn.Module):
    """Scaled dot-product attention among the pixels of each group alone; ``[B, channels, h, w]`` -> the same.

    Args:
        key_channels: of queries and keys; values keep ``channels``.
        block: rows and columns of a block; ``h`` and ``w`` are multiples of them.
        order: which pixels form a group, ``_LONG`` or ``_SHORT``.
    """

    def __init__(
        self, channels: int, key_channels: int, block: tuple[int, int], order: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.block, self.order = block, order
        self.query, self.key = (
            nn.Sequential(ConvNormAct(channels, key_channels, 1), ConvNormAct(key_channels, key_channels, 1))
            for _ in range(2)
        )
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = ConvNormAct(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._group(project(x)) for project in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(query.flatten(1, 2), key.flatten(1, 2), value.flatten(1, 2))
        return self.out(self._ungroup(y, (x.shape[-2], x.shape[-1])))

    def _group(self, x: Tensor) -> Tensor:
        """``[B, c, h, w]`` -> ``[B, groups, groups, pixels, c]``."""
        blocks = x.unflatten(3, (-1, self.block[1])).unflatten(2, (-1, self.block[0]))
        return blocks.permute(self.order).flatten(3, 4)

    def _ungroup(self, y: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, groups * groups, pixels, c]`` -> ``[B, c, h, w]`` of ``size``."""
        (rows, columns), (height, width) = self.block, size
        axes = (len(y), y.shape[-1], height // rows, rows, width // columns, columns)
        y = y.reshape([axes[axis] for axis in self.order])
        back = [self.order.index(axis) for axis in range(6)]
        return y.permute(back).reshape(len(y), axes[1], height, width)


class ISAHead(Head):
    """3x3 convolution, long-range then short-range attention, and 1x1 on both next to each other: one decoder map.

    Maps of other sizes are padded with zeros on all sides to whole blocks; as in mmsegmentation the padding is
    attended to, and counts in the attentions' batch statistics.

    Args:
        isa_channels: of queries and keys.
        down_factor: rows and columns of a block. Long-range attention joins pixels that far apart.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        isa_channels: Count,
        down_factor: Sequence[Count],
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        self.block = (down_factor[0], down_factor[1])
        self.input = Concat(specs, levels, align_corners=align_corners)
        self.reduce = ConvNormAct(self.input.spec.channels, channels, 3)
        self.long_range = GroupAttention(channels, isa_channels, self.block, _LONG)
        self.short_range = GroupAttention(channels, isa_channels, self.block, _SHORT)
        self.fuse = ConvNormAct(2 * channels, channels, 1)
        self.features = (FeatureSpec(self.input.spec.stride, channels),)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        x = self.reduce(self.input(pyramid))
        height, width = x.shape[-2:]
        down, across = -height % self.block[0], -width % self.block[1]
        top, left = down // 2, across // 2
        y = F.pad(x, (left, across - left, top, down - top))
        y = self.short_range(self.long_range(y))[..., top : top + height, left : left + width]
        return [self.fuse(torch.cat([y, x], 1))]
