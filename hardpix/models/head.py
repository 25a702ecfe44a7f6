"""What every head is: pyramid -> named outputs and decoder features."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from hardpix.models.layers import Classifiers
from hardpix.types import FeatureSpec


class HeadOutput(NamedTuple):
    outputs: dict[str, Tensor]  # name -> [B, channels, h, w] at the finest decoder map's resolution
    decoder: list[
        Tensor
    ]  # finest first, never empty; the last is the deepest (ASPP or pyramid-pooling output)
    # name -> label logits [B, C, h, w] of the stages before the last, of heads that decide twice (OCRNet)
    stages: Mapping[str, Tensor] = MappingProxyType({})


class Head(nn.Module):
    """One decoder shared by all outputs, and one classifier per output on the decoder's finest map.

    Subclasses set ``features`` (the decoder's maps, known at construction) and ``classifiers``, and implement
    ``decode``. A second head of the same configuration is a second instance: nothing is shared.

    A constructor may ask for ``num_classes``, the data set's, beside ``specs``, ``outputs`` and ``align_corners``: a
    head that gathers context by class needs it whatever its outputs are.
    """

    decides_twice: ClassVar[bool] = False  # its output has ``stages``, in the place of an auxiliary head
    features: tuple[FeatureSpec, ...]
    classifiers: Classifiers

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Encoder maps, finest first -> decoder maps, finest first."""
        raise TypeError(f"{type(self).__name__} does not say how it decodes")

    def forward(self, pyramid: list[Tensor]) -> HeadOutput:
        decoder = self.decode(pyramid)
        return HeadOutput(self.classifiers(decoder[0]), decoder)
