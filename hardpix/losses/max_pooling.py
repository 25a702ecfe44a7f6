"""Loss max-pooling: the worst weighting of the pixel losses among the bounded ones."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from hardpix.ops.max_pooling import max_pooling_weight
from hardpix.ops.pixel import pixel_cross_entropy
from hardpix.ops.select import count_true
from hardpix.ranges import PositiveShare, checked


class LossMaxPooling(nn.Module):
    """``max_w sum w * CE`` over weights bounded in p-norm and maximum (Rota Bulò et al., CVPR 2017).

    At least the share ``ratio`` of the valid pixels carries weight; ``p`` to 1 gives the mean over that share of
    hardest pixels, ``p`` to infinity the plain mean. Never below the mean cross-entropy. ``scope="batch"`` pools
    all valid pixels together, ``"image"`` those of each image (then the mean over images that have any).
    """

    @checked
    def __init__(
        self,
        *,
        ignore_index: int,
        ratio: PositiveShare,
        p: Annotated[float, "[1.01, inf]"],
        scope: Literal["batch", "image"],
    ) -> None:
        super().__init__()
        self.ignore_index, self.ratio, self.p, self.scope = ignore_index, ratio, p, scope

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """``logits`` ``[B, C, H, W]`` at label size, ``label`` ``[B, H, W]``; returns a float32 scalar."""
        error = pixel_cross_entropy(logits, label, self.ignore_index)
        valid = label != self.ignore_index
        groups = [(error, valid)] if self.scope == "batch" else zip(error, valid, strict=True)
        counted = [(group, pixels) for group, mask in groups if (pixels := count_true(mask))]
        pooled = [self._pool(group, pixels) for group, pixels in counted]
        return torch.stack(pooled).mean() if pooled else error.sum()

    def _pool(self, error: Tensor, pixels: int) -> Tensor:
        # The gradient of the maximum is the maximising weight itself (envelope theorem).
        weight = max_pooling_weight(error.detach(), pixels, ratio=self.ratio, p=self.p)
        return torch.dot(weight.flatten(), error.flatten())
