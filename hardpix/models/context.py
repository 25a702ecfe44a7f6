"""What heads with attention share: attention between maps, and FCN's head with a context module inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.models.fcn import FCNHead
from hardpix.types import ConfigError, FeatureSpec


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``softmax_j(q_i . k_j / sqrt(d)) v_j``, summed over all positions ``j`` of ``key`` and ``value``.

    ``query [B, d, h, w]``, ``key [B, d, ...]`` and ``value [B, c, ...]`` -> ``[B, c, h, w]`` in the query's dtype,
    computed in float32 whatever autocast says. The matrix of all pairs is not kept where torch has a fused kernel.
    """
    with torch.autocast(query.device.type, enabled=False):
        # The fused kernels want an axis of heads, and channels last.
        q, k, v = (x.float().flatten(2).transpose(1, 2)[:, None].contiguous() for x in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v)
    return out[:, 0].transpose(1, 2).unflatten(2, query.shape[2:]).to(query.dtype)


def reduced(channels: int, reduction: int) -> int:
    """``channels // reduction``, the width inside a context module."""
    if not 1 <= reduction <= channels:
        raise ConfigError(f"head.reduction={reduction}: must lie between 1 and head.channels={channels}")
    return channels // reduction


class ContextHead(FCNHead):
    """FCN's two 3x3 convolutions with a context module between them, joined with their input, then the classifiers.

    Args:
        context: ``[B, channels, h, w]`` -> the same shape.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        context: Callable[[], nn.Module],
        *,
        channels: int,
        levels: Sequence[int],
        align_corners: bool,
        dropout: float,
    ) -> None:
        super().__init__(
            specs,
            outputs,
            channels=channels,
            num_convs=2,
            concat_input=True,
            levels=levels,
            align_corners=align_corners,
            dropout=dropout,
        )
        self.convs.insert(1, context())
