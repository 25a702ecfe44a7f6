"""Non-local Neural Networks (Wang et al. 2018), in the form of mmsegmentation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hardpix.models.attention import ContextHead, attend, reduced
from hardpix.models.layers import ConvNormAct
from hardpix.ranges import Count, Share
from hardpix.types import FeatureSpec


class NonLocal(nn.Module):
    """``x + norm(out(attend(query(x), key(x), value(x))))``: the embedded Gaussian, its exponent over ``sqrt(d)``.

    ``[B, channels, h, w]`` -> the same. The norm's scale starts at 0, so that the block starts as the identity.

    Args:
        reduction: ``d = channels // reduction`` is the width of query, key and value.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = reduced(channels, reduction)
        self.query, self.key, self.value = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        for conv in (self.query, self.key, self.value):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.out = ConvNormAct(inner, channels, 1, relu=False)
        nn.init.zeros_(self.out[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(attend(self.query(x), self.key(x), self.value(x)))


class NonLocalHead(ContextHead):
    """FCN with :class:`NonLocal` between its convolutions."""

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
            lambda: NonLocal(channels, reduction),
            channels=channels,
            levels=levels,
            align_corners=align_corners,
            dropout=dropout,
        )
