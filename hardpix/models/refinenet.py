"""RefineNet: Multi-Path Refinement Networks, as the authors released it (four pooling stages, no norm layers)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.models.head import Head
from hardpix.models.layers import Classifiers, check_order
from hardpix.ops.resize import resize
from hardpix.ranges import Count, Share, Whole
from hardpix.types import ConfigError, FeatureSpec

CRP_ORDERS = ("pool_conv", "conv_pool")


def _conv3x3(inputs: int, outputs: int, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class ResidualConvUnit(nn.Module):
    """``x + conv(relu(conv(relu(x))))``; the first convolution has a bias, the second none."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv3x3(channels, channels, bias=True)
        self.second = _conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class ChainedResidualPooling(nn.Module):
    """``x + t_1 + ... + t_n`` with ``t_0 = x`` and ``t_k = conv(maxpool5x5(t_{k-1}))``.

    Args:
        order: ``pool_conv``, or ``conv_pool`` as in the authors' improved model (NYUDv2, SUN RGB-D).
    """

    def __init__(self, channels: int, stages: int, *, order: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv3x3(channels, channels) for _ in range(stages))
        self.pool_first = order == "pool_conv"

    def forward(self, x: Tensor) -> Tensor:
        out = term = x
        for conv in self.convs:
            term = conv(_pool(term)) if self.pool_first else _pool(conv(term))
            out = out + term
        return out


class RefineNetBlock(nn.Module):
    """One block: adapt the encoder's map, sum it with the coarser block's output, pool, refine.

    Args:
        incoming: channels of the coarser block's output; None for the deepest block, which has none.
        input_dropout: elementwise, on the encoder's map.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        incoming: int | None,
        *,
        crp_stages: int,
        crp_order: str,
        output_units: int,
        input_dropout: float,
    ) -> None:
        super().__init__()
        self.adapt = nn.Sequential(
            nn.Dropout(input_dropout),
            _conv3x3(inputs, channels),
            ResidualConvUnit(channels),
            ResidualConvUnit(channels),
        )
        self.fuse_own = None if incoming is None else _conv3x3(channels, channels)
        self.fuse_incoming = None if incoming is None else _conv3x3(incoming, channels)
        self.pooling = ChainedResidualPooling(channels, crp_stages, order=crp_order)
        self.output = nn.Sequential(*(ResidualConvUnit(channels) for _ in range(output_units)))

    def forward(self, x: Tensor, incoming: Tensor | None) -> Tensor:
        """``x [B, inputs, h, w]`` and the coarser block's output (None if deepest) -> ``[B, channels, h, w]``."""
        x = self.adapt(x)
        if incoming is not None and self.fuse_own is not None and self.fuse_incoming is not None:
            # The released code aligns corners here whatever the image size.
            up = resize(self.fuse_incoming(incoming), (x.shape[-2], x.shape[-1]), align_corners=True)
            x = self.fuse_own(x) + up
        return self.output(self.pooling(F.relu(x)))


class RefineNetHead(Head):
    """Cascade of one block per level, from the deepest; the classifiers (3x3) read the finest block's output.

    Decoder maps: every block's output. Convolutions keep PyTorch's initialisation, as the released port does.
    ``align_corners`` governs the enlargement of the logits only: inside, corners are always aligned.

    Args:
        widths: channels of the blocks, deepest first; as many as the backbone has levels.
        dropout: elementwise, on the encoder's two deepest maps and before the classifiers.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        widths: Sequence[Count],
        crp_stages: Whole,
        crp_order: str,
        output_units: Whole,
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        self.blocks = refinenet_blocks(
            specs,
            widths,
            crp_stages=crp_stages,
            crp_order=crp_order,
            output_units=output_units,
            dropout=dropout,
        )
        self.features = tuple(FeatureSpec(s.stride, w) for s, w in zip(specs, reversed(widths), strict=True))
        self.classifiers = Classifiers(widths[-1], outputs, nn.Dropout(dropout), kernel_size=3)

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        return run_cascade(self.blocks, pyramid)


def refinenet_blocks(
    specs: tuple[FeatureSpec, ...],
    widths: Sequence[int],
    *,
    crp_stages: int,
    crp_order: str,
    output_units: int,
    dropout: float,
) -> nn.ModuleList:
    """One block per level, deepest first; ``dropout`` on the inputs of the two deepest."""
    check_order("refinenet", specs)
    if len(widths) != len(specs):
        raise ConfigError(
            f"head.widths={list(widths)}: RefineNet needs one width per level, deepest first, and the backbone "
            f"has {len(specs)} levels"
        )
    if crp_order not in CRP_ORDERS:
        raise ConfigError(f"head.crp_order={crp_order}: must be {' or '.join(CRP_ORDERS)}")
    incoming = [None, *widths[:-1]]
    return nn.ModuleList(
        RefineNetBlock(
            spec.channels,
            width,
            coarser,
            crp_stages=crp_stages,
            crp_order=crp_order,
            output_units=output_units,
            input_dropout=dropout if depth < 2 else 0.0,
        )
        for depth, (spec, width, coarser) in enumerate(zip(reversed(specs), widths, incoming, strict=True))
    )


def run_cascade(
    blocks: nn.ModuleList, pyramid: list[Tensor], added: Sequence[list[Tensor]] = ()
) -> list[Tensor]:
    """Encoder maps, finest first -> the blocks' outputs, finest first.

    The maps of ``added`` (finest first, of the outputs' shapes) are summed to each output before it goes on.
    """
    decoder: list[Tensor] = []
    x: Tensor | None = None
    for block, level in zip(blocks, reversed(range(len(pyramid))), strict=True):
        x = block(pyramid[level], x)
        for maps in added:
            x = x + maps[level]
        decoder.insert(0, x)
    return decoder


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, kernel_size=5, stride=1, padding=2)
