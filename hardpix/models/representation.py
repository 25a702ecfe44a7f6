"""A head whose output is compared, not classified (U2PL)."""

from __future__ import annotations

from torch import nn

from hardpix.models.layers import ConvNormAct


class Representation(nn.Sequential):
    """Two 3x3 convolutions with batch norm, ReLU and Dropout2d, then 1x1.

    ``[B, inputs, h, w]`` -> ``[B, channels, h, w]``.
    """

    def __init__(self, inputs: int, channels: int, dropout: float) -> None:
        super().__init__(
            ConvNormAct(inputs, channels, 3),
            nn.Dropout2d(dropout),
            ConvNormAct(channels, channels, 3),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, channels, 1),
        )
