"""Backbone + head, with auxiliary heads that exist in training only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn
from torch.nn import Parameter

from hardpix.config.schema import Count, Share, Whole
from hardpix.models.backbone import Backbone
from hardpix.models.layers import Classifiers, Head
from hardpix.models.pyramid import FCNHead
from hardpix.types import ConfigError, FeatureSpec, SegOutput


class Segmenter(nn.Module):
    """Image ``[B, in_channels, H, W]`` -> ``SegOutput``, everything at feature resolution.

    ``features`` names every map: ``enc0`` .. of the backbone and ``dec0`` .. of the head, index 0 the finest.

    Args:
        build_backbone: ``(in_channels=) -> backbone``.
        build_head: ``(specs, outputs, align_corners=) -> head``.
        align_corners: of every resize of the head, the loss and the prediction.
        aux_level: pyramid index that an auxiliary FCN head reads (``aux_convs`` 3x3 convolutions to ``aux_channels``,
            Dropout2d, 1x1 classifier), or several, a head each; they predict ``label`` in training mode only. None:
            no auxiliary head.
        aux_channels: of the auxiliary heads, one number for all or one for each.
    """

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
        aux_convs: Whole = 1,
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
        self.aux_head = nn.ModuleDict()
        self.register_load_state_dict_pre_hook(_name_levels)
        if aux_level is not None and "label" in outputs:
            for level, channels in _aux_plan(aux_level, aux_channels, len(specs)):
                self.aux_head[f"enc{level}"] = FCNHead(
                    specs,
                    {"label": outputs["label"]},
                    channels=channels,
                    num_convs=aux_convs,
                    concat_input=False,
                    levels=[level],
                    align_corners=align_corners,
                    dropout=aux_dropout,
                )

    def forward(self, image: Tensor) -> SegOutput:
        return self.decode(self.backbone(image))

    def decode(self, pyramid: list[Tensor]) -> SegOutput:
        """What follows the backbone, for those who need the pyramid a second time."""
        outputs, decoder, stages = self.head(pyramid)
        features = {f"enc{i}": x for i, x in enumerate(pyramid)} | {
            f"dec{i}": x for i, x in enumerate(decoder)
        }
        return SegOutput(outputs, features, self._aux(pyramid), stages if self.training else {})

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """Named groups for the optimiser's configuration; frozen parameters included."""
        return {name: list(child.parameters()) for name, child in self.named_children()}

    def output_biases(self, name: str) -> list[Tensor]:
        """The biases ``[channels]`` of the convolutions that give the output ``name``."""
        readers = (m for m in self.head.modules() if isinstance(m, Classifiers) and name in m.convs)
        if found := [reader.bias(name) for reader in readers]:
            return found
        raise ConfigError(
            f"head={type(self.head).__name__}: no Classifiers of it gives {name}, whose bias has to be set before "
            "training; build its outputs with hardpix.models.layers.Classifiers"
        )

    def scalars(self) -> dict[str, float]:
        """Learnt numbers worth a curve of their own, by name; written at every validation."""
        return {}

    def _aux(self, pyramid: list[Tensor]) -> dict[str, Tensor]:
        if not self.training:
            return {}
        return {name: head(pyramid).outputs["label"] for name, head in self.aux_head.items()}


def _aux_plan(
    level: int | Sequence[int], channels: int | Sequence[int], count: int
) -> Iterator[tuple[int, int]]:
    """(index of the level, channels) of each auxiliary head."""
    levels = [level] if isinstance(level, int) else list(level)
    widths = [channels] * len(levels) if isinstance(channels, int) else list(channels)
    places = [one % count for one in levels if -count <= one < count]
    if len(set(places)) != len(levels):
        raise ConfigError(
            f"model.aux_level={level}: the backbone has levels 0 to {count - 1}; set one of them, several, or null"
        )
    if len(widths) != len(levels):
        raise ConfigError(
            f"model.aux_channels={widths}: {len(levels)} auxiliary head(s) need one number, or one each"
        )
    return zip(places, widths, strict=True)


def _name_levels(segmenter: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Weights written when there was one auxiliary head at most name it without its level."""
    heads = segmenter.get_submodule("aux_head")
    names = [name for name, _ in heads.named_children()]
    old = [key for key in state if key.startswith(f"{prefix}aux_head.") and ".enc" not in key[len(prefix) :]]
    if len(names) == 1:
        for key in old:
            state[key.replace("aux_head.", f"aux_head.{names[0]}.", 1)] = state.pop(key)
