"""Cross-stitch: two encoders of one kind, one of them fixed, whose maps are mixed on the way.

Cross-stitch Networks for Multi-task Learning (Misra et al. 2016), as used to transfer height and normal pre-training:
the fixed stream runs unmodified and only gives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from hardpix.config.schema import Count, Share
from hardpix.models import backbone
from hardpix.models.backbone import Backbone, Pyramid
from hardpix.models.layers import Head
from hardpix.models.segmenter import Segmenter
from hardpix.ops.precision import without_autocast

UNITS = 4  # behind the first four poolings of a SegNet, or levels of another backbone
STREAMS = ("own", "fixed")  # names in a state dict; a plain run's backbone starts both


class Unit(nn.Module):
    """``own * x + other * y``, eq. (6.7): two scalars, or two factors per channel; computed in float32.

    ``x`` and ``y`` ``[B, c, h, w]`` -> ``[B, c, h, w]`` in the precision of ``x``.
    """

    def __init__(self, channels: int, *, own: float, other: float) -> None:
        super().__init__()
        self.own = Parameter(torch.full((channels, 1, 1), own))
        self.other = Parameter(torch.full((channels, 1, 1), other))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        # Products of half precision would drown the factors' steps, and their gradients are sums over pixels.
        with without_autocast(x):
            return (self.own * x + self.other * y).to(x.dtype)  # the factors are float32: so is the sum


class CrossStitchBackbone(Backbone):
    """``own`` with the maps of ``fixed``, a copy of it, mixed in after its first four levels.

    The mixed map goes into the next stage of ``own`` and into the pyramid; pooling indices are those of ``own``.
    ``fixed`` has no gradient and stays in inference mode, its norms' statistics as they are.
    """

    def __init__(self, backbone: Backbone, *, own: float, other: float, per_channel: bool) -> None:
        super().__init__()
        backbone.stages()  # says by name if there is no way between its levels
        self.own = backbone
        self.fixed = copy.deepcopy(backbone).requires_grad_(False).eval()
        self.specs = backbone.specs
        self.units = nn.ModuleList(
            Unit(spec.channels if per_channel else 1, own=own, other=other) for spec in self.specs[:UNITS]
        )

    def levels(self, image: Tensor, stitch: backbone.Stitch | None = None) -> Pyramid:
        with torch.no_grad():
            fixed = self.fixed.levels(image)

        def mix(level: int, x: Tensor) -> Tensor:
            x = self.units[level](x, fixed[level]) if level < len(self.units) else x
            return x if stitch is None else stitch(level, x)

        return self.own(image, mix)

    def stages(self) -> dict[str, list[nn.Module]]:
        return self.own.stages()

    def train(self, mode: bool = True) -> CrossStitchBackbone:
        super().train(mode)
        self.fixed.eval()
        return self


class CrossStitch(Segmenter):
    """A segmenter whose backbone is two of the configured one: the trained stream and a fixed one, cross-stitched.

    Both start alike, from the backbone's pre-trained weights or from the run of ``init_from``; what other runs learnt
    stays available in the fixed stream. Optimiser groups: those of a segmenter, and ``stitch``, the factors.

    Args:
        init_own, init_other: the factors of the trained and of the fixed stream at the start.
        per_channel: two factors for every channel instead of two scalars.
        align_corners, aux_level, aux_channels, aux_dropout: as of :class:`Segmenter`.
    """

    backbone: CrossStitchBackbone

    def __init__(
        self,
        build_backbone: Callable[..., Backbone],
        build_head: Callable[..., Head],
        outputs: dict[str, int],
        *,
        in_channels: int = 3,
        align_corners: bool,
        aux_level: int | Sequence[int] | None,
        aux_channels: Count | Sequence[Count],
        aux_dropout: Share,
        init_own: float,
        init_other: float,
        per_channel: bool,
    ) -> None:
        def build(in_channels: int) -> Backbone:
            plain = build_backbone(in_channels=in_channels)
            return CrossStitchBackbone(plain, own=init_own, other=init_other, per_channel=per_channel)

        super().__init__(
            build,
            build_head,
            outputs,
            in_channels=in_channels,
            align_corners=align_corners,
            aux_level=aux_level,
            aux_channels=aux_channels,
            aux_dropout=aux_dropout,
        )

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        own = {
            "backbone": list(self.backbone.own.parameters()),
            "stitch": list(self.backbone.units.parameters()),
        }
        return super().parameter_groups() | own

    def scalars(self) -> dict[str, float]:
        """``stitch/1/own``, ``stitch/1/other`` ...; per channel their mean, and ``.../std`` over the channels."""
        found = {}
        for number, unit in enumerate(self.backbone.units, 1):
            for name in ("own", "other"):
                factors = cast(Tensor, getattr(unit, name)).detach().float()
                found[f"stitch/{number}/{name}"] = float(factors.mean())
                if factors.numel() > 1:
                    found[f"stitch/{number}/{name}/std"] = float(factors.std(correction=0))
        return found
