"""GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond (Cao et al. 2019), as in mmsegmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardpix.models.attention import ContextHead, reduced
from hardpix.ranges import Count, Share
from hardpix.types import FeatureSpec


class GlobalContext(nn.Module):
    """``x_i + transform(sum_j softmax_j(mask(x)) x_j)``: one vector per image, the same for all pixels.

    ``[B, channels, h, w]`` -> the same. The transform's last convolution starts at 0: the block starts as the identity.

    Args:
        reduction: ``channels // reduction`` is the width inside the transform.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = reduced(channels, reduction)
        self.mask = nn.Conv2d(channels, 1, 1)
        nn.init.kaiming_normal_(self.mask.weight, nonlinearity="relu")
        nn.init.zeros_(self.mask.bias)  # type: ignore[arg-type]
        last = nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.transform = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.LayerNorm([inner, 1, 1]), nn.ReLU(inplace=True), last
        )

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask(x)
        with torch.autocast(x.device.type, enabled=False):
            weight = mask.float().flatten(2).softmax(2)
            mean = x.float().flatten(2) @ weight.transpose(1, 2)
        return x + self.transform(mean[..., None].to(x.dtype))


class GCHead(ContextHead):
    """FCN with :class:`GlobalContext` between its convolutions."""

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        reduction: Count,
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__(
            specs,
            outputs,
            lambda: GlobalContext(channels, reduction),
            channels=channels,
            levels=levels,
            align_corners=align_corners,
            dropout=dropout,
        )
