"""EMANet: Expectation-Maximization Attention Networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.models.head import Head
from hardpix.models.layers import Classifiers, Concat, ConvNormAct
from hardpix.ranges import Count, Share
from hardpix.types import FeatureSpec


class EMAttention(nn.Module):
    """Every pixel rebuilt from a few bases, which expectation and maximisation fit to each image.

    ``[B, channels, h, w]`` -> the same, computed in float32. Without gradient: the bases are means of pixels, not
    weights, and the 1x1 convolution ahead of them stays as it was drawn. All images start from the same bases of
    length 1, a buffer. In training it follows the images' fitted bases by a moving average, over all processes.

    Args:
        num_stages: rounds of expectation and maximisation.
        momentum: weight of the new bases in the moving average.
    """

    bases: Tensor  # [channels, num_bases]

    def __init__(self, channels: int, num_bases: int, num_stages: int, momentum: float) -> None:
        super().__init__()
        self.num_stages, self.momentum = num_stages, momentum
        self.project = nn.Conv2d(channels, channels, 1)
        nn.init.kaiming_normal_(self.project.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]
        self.project.requires_grad_(False)
        self.register_buffer("bases", F.normalize(torch.randn(channels, num_bases), dim=0))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        pixels = self.project(x).flatten(2)
        with torch.autocast(x.device.type, enabled=False):
            bases, z = self.fit(pixels.float())
            if self.training:
                self._follow(bases)
            return (bases @ z.mT).unflatten(2, x.shape[-2:]).to(x.dtype)

    def fit(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, c, n]`` -> bases ``[B, c, k]`` of length 1, and each pixel's shares in them ``[B, n, k]``."""
        bases = self.bases.float().expand(len(pixels), -1, -1)
        for _ in range(self.num_stages):
            z = (pixels.mT @ bases).softmax(2)
            bases = F.normalize(pixels @ F.normalize(z, p=1, dim=1), dim=1)
        return bases, z

    def _follow(self, bases: Tensor) -> None:
        mean = bases.mean(0)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(mean)  # the sum has the mean's direction, and only that counts
        self.bases.lerp_(F.normalize(mean, dim=0).to(self.bases.dtype), self.momentum)


class EMAHead(Head):
    """3x3 convolution, attention added to it, 3x3, and once more 3x3 with the input beside; the one decoder map.

    Args:
        ema_channels: of the map that is rebuilt from ``num_bases`` bases.
        channels: of the decoder map.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        ema_channels: Count,
        num_bases: Count,
        num_stages: Count,
        momentum: Share,
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        self.input = Concat(specs, levels, align_corners=align_corners)
        inputs = self.input.spec.channels
        self.reduce = ConvNormAct(inputs, ema_channels, 3)
        self.attention = EMAttention(ema_channels, num_bases, num_stages, momentum)
        self.restore = ConvNormAct(ema_channels, ema_channels, 1, relu=False)
        self.bottleneck = ConvNormAct(ema_channels, channels, 3)
        self.fuse = ConvNormAct(inputs + channels, channels, 3)
        self.features = (FeatureSpec(self.input.spec.stride, channels),)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        x = self.input(pyramid)
        reduced = self.reduce(x)
        rebuilt = self.restore(F.relu(self.attention(reduced)))
        return [self.fuse(torch.cat([x, self.bottleneck(F.relu(reduced + rebuilt))], 1))]
