"""Layers that several heads are made of, and the contract of a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hardpix.ops.resize import resize
from hardpix.types import ConfigError, FeatureSpec, HardpixError

ONE_VALUE = (
    "batch norm on a 1x1 map (global pooling, or a crop no larger than the stride) has one value per channel and "
    "cannot train on a batch of one image"
)


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, ReLU; ``ceil(H / stride)``. Kaiming-normal (fan out), as mmcv's ConvModule.

    Args:
        dilation: of both axes, or (down, across).
        relu: False: what comes last is the norm.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        relu: bool = True,
    ) -> None:
        dilation = (dilation, dilation) if isinstance(dilation, int) else dilation
        padding = (dilation[0] * (kernel_size // 2), dilation[1] * (kernel_size // 2))
        conv = nn.Conv2d(
            inputs, channels, kernel_size, stride, padding, dilation=dilation, groups=groups, bias=bias
        )
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        activation = [nn.ReLU(inplace=True)] if relu else []
        super().__init__(conv, nn.BatchNorm2d(channels), *activation)

    def forward(self, x: Tensor) -> Tensor:
        check_batch_norm(self[1], x)
        return super().forward(x)


def check_batch_norm(norm: nn.Module, x: Tensor) -> None:
    """Refuse a batch ``[B, c, h, w]`` of one value per channel, from which a batch norm cannot train."""
    if norm.training and x[:, 0].numel() == 1 and type(norm) is nn.BatchNorm2d:
        raise HardpixError(
            f"{ONE_VALUE}; set data.batch_size=2 or more, and data.drop_last=true where one image is left over"
        )


def check_order(head: str, specs: tuple[FeatureSpec, ...]) -> None:
    """Refuse ``head``, which goes from the last level up to the finest, where a level is finer than the one before."""
    if any(coarse.stride < fine.stride for fine, coarse in pairwise(specs)):
        strides = ", ".join(str(spec.stride) for spec in specs)
        raise ConfigError(
            f"head={head}: it climbs from the backbone's last level to the first, but their strides are {strides}; "
            "use a head that reads chosen levels, such as head=fcn with head.levels=[-1]"
        )


class SeparableConv(nn.Sequential):
    """Depthwise 3x3 then pointwise 1x1, each with batch norm and ReLU; ``dilation`` as of ConvNormAct."""

    def __init__(self, inputs: int, channels: int, *, dilation: int | tuple[int, int] = 1) -> None:
        super().__init__(
            ConvNormAct(inputs, inputs, 3, dilation=dilation, groups=inputs), ConvNormAct(inputs, channels, 1)
        )


class Classifiers(nn.Module):
    """Dropout, then one convolution per named output, all on the same map; weights drawn from N(0, 0.01)."""

    class_tensors: ClassVar = ("convs.label.",)  # these mean nothing to a run on other classes

    def __init__(
        self, inputs: int, outputs: dict[str, int], dropout: nn.Module, *, kernel_size: int = 1
    ) -> None:
        super().__init__()
        self.dropout = dropout
        convs = {n: nn.Conv2d(inputs, c, kernel_size, padding=kernel_size // 2) for n, c in outputs.items()}
        for conv in convs.values():
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.convs = nn.ModuleDict(convs)

    def bias(self, name: str) -> Tensor:
        """The bias ``[channels]`` of one output."""
        return self.convs[name].bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.dropout(x)
        return {name: conv(x) for name, conv in self.convs.items()}


class Concat(nn.Module):
    """Chosen levels of a pyramid, resized to the finest of them and concatenated; one level passes as it is.

    Args:
        levels: indices into the pyramid, ``-1`` the last.
        name: of the setting that ``levels`` come from, for its refusal.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        levels: Sequence[int],
        *,
        align_corners: bool,
        name: str = "levels",
    ) -> None:
        super().__init__()
        if not levels or not all(-len(specs) <= level < len(specs) for level in levels):
            raise ConfigError(
                f"head.{name}={list(levels)}: the backbone has levels 0 to {len(specs) - 1} (or -1, the deepest)"
            )
        self.levels = sorted(level % len(specs) for level in levels)
        self.align_corners = align_corners
        chosen = [specs[level] for level in self.levels]
        strides = [spec.stride for spec in chosen]
        self.finest = strides.index(min(strides))
        self.spec = FeatureSpec(strides[self.finest], sum(spec.channels for spec in chosen))

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        maps = [pyramid[level] for level in self.levels]
        if len(maps) == 1:
            return maps[0]
        size = (maps[self.finest].shape[-2], maps[self.finest].shape[-1])
        return torch.cat([resize(x, size, align_corners=self.align_corners) for x in maps], 1)


# The contract of a head: pyramid -> named outputs and decoder features.


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

    A constructor may ask for ``num_classes``, the data set's, besides ``specs``, ``outputs`` and ``align_corners``: a
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


# A head whose output is compared, not classified (U2PL).


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
