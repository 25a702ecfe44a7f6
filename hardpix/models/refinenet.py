"""RefineNet: Multi-Path Refinement Networks, and its two-cascade form in LWM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.schema import Count, Share, Whole
from hardpix.models.layers import Classifiers, Head, HeadOutput, check_order
from hardpix.ops.resize import resize
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


# The two-cascade RefineNet of LWM: one cascade of blocks per output, depth summed into segmentation.


FUSE_STRIDES = (1, 4)


class RefineNetCascadesHead(Head):
    """A RefineNet cascade per output on one encoder; the first output's receives the others' maps (eq. 4.3, 4.4).

    At every level the output of each further cascade (depth) is added to the first cascade's (segmentation);
    the sum is what the next block, the side outputs and the classifier see, and gradient flows through it. The
    further cascades see nothing of the first. Each classifier (3x3) reads all levels of its cascade, enlarged
    and concatenated. Decoder maps: those of the first cascade, after the sum.

    Args:
        widths: channels of the blocks, deepest first; as many as the backbone has levels.
        fuse_stride: 4 concatenates at the finest level's size; 1, the paper's form, at the size of the input,
            which for 480x640 pixels and the standard widths costs 0.8 GB an image in half precision.
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
        fuse_stride: int,
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        if fuse_stride not in FUSE_STRIDES:
            raise ConfigError(f"head.fuse_stride={fuse_stride}: must be 4 or 1")
        self.align_corners = align_corners
        self.enlarge_by = specs[0].stride if fuse_stride == 1 else 1
        self.cascades = nn.ModuleDict(
            {
                name: refinenet_blocks(
                    specs,
                    widths,
                    crp_stages=crp_stages,
                    crp_order=crp_order,
                    output_units=output_units,
                    dropout=dropout,
                )
                for name in outputs
            }
        )
        self.features = tuple(FeatureSpec(s.stride, w) for s, w in zip(specs, reversed(widths), strict=True))
        self.readers = nn.ModuleDict(
            {
                name: Classifiers(sum(widths), {name: channels}, nn.Dropout(dropout), kernel_size=3)
                for name, channels in outputs.items()
            }
        )

    def forward(self, pyramid: list[Tensor]) -> HeadOutput:
        first, *further = self.cascades
        blocks = {name: cast(nn.ModuleList, self.cascades[name]) for name in self.cascades}
        maps = {name: run_cascade(blocks[name], pyramid) for name in further}
        maps[first] = run_cascade(blocks[first], pyramid, list(maps.values()))
        outputs: dict[str, Tensor] = {}
        for name, reader in self.readers.items():
            outputs |= reader(self._concat(maps[name]))
        return HeadOutput(outputs, maps[first])

    def _concat(self, maps: list[Tensor]) -> Tensor:
        size = (maps[0].shape[-2] * self.enlarge_by, maps[0].shape[-1] * self.enlarge_by)
        return torch.cat([resize(x, size, align_corners=self.align_corners) for x in maps], 1)
