"""CCNet: Criss-Cross Attention for Semantic Segmentation (Huang et al. 2019), in the form of mmsegmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardpix.models.attention import ContextHead, reduced
from hardpix.ranges import Count, Share
from hardpix.types import FeatureSpec


class CrissCross(nn.Module):
    """``x_u + gamma * sum_i softmax_i(q_u . k_i) v_i`` over the h + w - 1 pixels ``i`` of ``u``'s row and column.

    ``[B, channels, h, w]`` -> the same; memory grows with ``h w (h + w)``. ``gamma`` starts at 0.

    Args:
        reduction: ``channels // reduction`` is the width of query and key.
        recurrence: how often it is applied, always with the same weights; the second time every pixel is reached.
    """

    def __init__(self, channels: int, reduction: int, recurrence: int) -> None:
        super().__init__()
        inner = reduced(channels, reduction)
        self.recurrence = recurrence
        self.query, self.key = nn.Conv2d(channels, inner, 1), nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.recurrence):
            x = x + self.gamma.to(x.dtype) * criss_cross(self.query(x), self.key(x), self.value(x))
        return x


def criss_cross(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of every pixel to its row and column, itself counted once: ``[B, c, h, w]``, as ``value``.

    ``query`` and ``key`` ``[B, d, h, w]``. Computed in float32 whatever autocast says.
    """
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = query.float(), key.float(), value.float()
        row = torch.einsum("bchw,bchj->bhwj", q, k)
        column = torch.einsum("bchw,bciw->bhwi", q, k)
        own = torch.eye(q.shape[2], dtype=torch.bool, device=q.device)[:, None]  # the row has it already
        weight = torch.cat([row, column.masked_fill(own, -torch.inf)], 3).softmax(3)
        in_row, in_column = weight.split([q.shape[3], q.shape[2]], 3)
        out = torch.einsum("bhwj,bchj->bchw", in_row, v) + torch.einsum("bhwi,bciw->bchw", in_column, v)
    return out.to(value.dtype)


class CCHead(ContextHead):
    """FCN with :class:`CrissCross` between its convolutions."""

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        reduction: Count,
        recurrence: Count,
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__(
            specs,
            outputs,
            lambda: CrissCross(channels, reduction, recurrence),
            channels=channels,
            levels=levels,
            align_corners=align_corners,
            dropout=dropout,
        )
