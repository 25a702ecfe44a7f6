"""Backbone + head, with an auxiliary head that exists in training only."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import Parameter

from hardpix.models.encoder import Backbone
from hardpix.models.fcn import FCNHead
from hardpix.models.head import Head
from hardpix.types import ConfigError, FeatureSpec, SegOutput


class Segmenter(nn.Module):
    """Image ``[B, in_channels, H, W]`` -> ``SegOutput``, everything at feature resolution.

    ``features`` names every map: ``enc0`` .. of the backbone and ``dec0`` .. of the head, index 0 the finest.

    Args:
        build_backbone: ``(in_channels=) -> backbone``.
        build_head: ``(specs, outputs, align_corners=) -> head``.
        align_corners: of every resize of the head, the loss and the prediction.
        aux_level: pyramid index that an auxiliary FCN head reads (one 3x3 convolution to ``aux_channels``,
            Dropout2d, 1x1 classifier); it predicts ``label`` in training mode only. None: no auxiliary head.
    """

    def __init__(
        self,
        build_backbone: Callable[..., Backbone],
        build_head: Callable[..., Head],
        outputs: dict[str, int],
        *,
        in_channels: int = 3,
        align_corners: bool,
        aux_level: int | None,
        aux_channels: int,
        aux_dropout: float,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.backbone: Backbone = build_backbone(in_channels=in_channels)
        specs = self.backbone.specs
        self.head = build_head(specs, outputs, align_corners=align_corners)
        self.features: dict[str, FeatureSpec] = {
            **{f"enc{i}": spec for i, spec in enumerate(specs)},
            **{f"dec{i}": spec for i, spec in enumerate(self.head.features)},
        }
        self.aux_head: FCNHead | None = None
        if aux_level is not None and "label" in outputs:
            self.aux_name = _level_name(aux_level, len(specs))
            self.aux_head = FCNHead(
                specs,
                {"label": outputs["label"]},
                channels=aux_channels,
                num_convs=1,
                concat_input=False,
                levels=[aux_level],
                align_corners=align_corners,
                dropout=aux_dropout,
            )

    def forward(self, image: Tensor) -> SegOutput:
        return self.decode(self.backbone(image))

    def decode(self, pyramid: list[Tensor]) -> SegOutput:
        """What follows the backbone, for those who need the pyramid a second time."""
        outputs, decoder = self.head(pyramid)
        features = {f"enc{i}": x for i, x in enumerate(pyramid)} | {
            f"dec{i}": x for i, x in enumerate(decoder)
        }
        return SegOutput(outputs, features, self._aux(pyramid))

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """Named groups for the optimiser's configuration; frozen parameters included."""
        return {name: list(child.parameters()) for name, child in self.named_children()}

    def scalars(self) -> dict[str, float]:
        """Learnt numbers worth a curve of their own, by name; written at every validation."""
        return {}

    def _aux(self, pyramid: list[Tensor]) -> dict[str, Tensor]:
        if self.aux_head is None or not self.training:
            return {}
        return {self.aux_name: self.aux_head(pyramid).outputs["label"]}


def _level_name(level: int, count: int) -> str:
    if not -count <= level < count:
        raise ConfigError(
            f"model.aux_level={level}: the backbone has levels 0 to {count - 1}; set one of them or null"
        )
    return f"enc{level % count}"
