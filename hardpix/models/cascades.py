"""The two-cascade RefineNet of LWM: one cascade of blocks per output, depth summed into segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from hardpix.models.head import Head, HeadOutput
from hardpix.models.layers import Classifiers
from hardpix.models.refinenet import refinenet_blocks, run_cascade
from hardpix.ops.resize import resize
from hardpix.ranges import Count, Share, Whole
from hardpix.types import ConfigError, FeatureSpec

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
