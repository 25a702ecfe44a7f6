"""Layers that several heads are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from hardpix.ops.resize import resize
from hardpix.types import ConfigError, FeatureSpec, HardpixError


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, ReLU; keeps the size. Kaiming-normal (fan out), as mmcv's ConvModule.

    Args:
        dilation: of both axes, or (down, across).
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        kernel_size: int,
        *,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        dilation = (dilation, dilation) if isinstance(dilation, int) else dilation
        padding = (dilation[0] * (kernel_size // 2), dilation[1] * (kernel_size // 2))
        conv = nn.Conv2d(
            inputs, channels, kernel_size, padding=padding, dilation=dilation, groups=groups, bias=bias
        )
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x[:, 0].numel() == 1 and type(self[1]) is nn.BatchNorm2d:
            raise HardpixError(
                "data.batch_size=1: batch norm on a 1x1 map (global pooling, or a crop no larger than the stride) has "
                "one value per channel and cannot train; use at least 2 images per process"
            )
        return super().forward(x)


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

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.dropout(x)
        return {name: conv(x) for name, conv in self.convs.items()}


class Concat(nn.Module):
    """Chosen levels of a pyramid, resized to the finest of them and concatenated; one level passes as it is.

    Args:
        levels: indices into the pyramid, ``-1`` the deepest.
    """

    def __init__(self, specs: tuple[FeatureSpec, ...], levels: Sequence[int], *, align_corners: bool) -> None:
        super().__init__()
        if not levels or not all(-len(specs) <= level < len(specs) for level in levels):
            raise ConfigError(
                f"head.levels={list(levels)}: the backbone has levels 0 to {len(specs) - 1} (or -1, the deepest)"
            )
        self.levels = sorted(level % len(specs) for level in levels)
        self.align_corners = align_corners
        chosen = [specs[level] for level in self.levels]
        self.spec = FeatureSpec(chosen[0].stride, sum(spec.channels for spec in chosen))

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        maps = [pyramid[level] for level in self.levels]
        if len(maps) == 1:
            return maps[0]
        size = (maps[0].shape[-2], maps[0].shape[-1])
        return torch.cat([resize(x, size, align_corners=self.align_corners) for x in maps], 1)
