"""What every backbone is: image -> pyramid of feature maps, made by stages that can be frozen by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hardpix.types import ConfigError, FeatureSpec

# (level, its map [B, c, h, w]) -> the map that the next stage and the pyramid get instead
Stitch = Callable[[int, Tensor], Tensor]


class Pyramid(list[Tensor]):
    """Encoder maps ``[B, c, h, w]``, finest first, and where their values stood before the max-pooling of each.

    Args:
        indices: int64 maps of the maps' shapes, as ``max_pool2d`` returns them; empty where nothing is unpooled.
        sizes: (height, width) that each map had before its pooling; as many as ``indices``.
    """

    def __init__(
        self,
        maps: Iterable[Tensor] = (),
        indices: Sequence[Tensor] = (),
        sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__(maps)
        self.indices, self.sizes = list(indices), list(sizes)

    def detach(self) -> Pyramid:
        """The same values without a way back to the encoder."""
        return Pyramid([x.detach() for x in self], self.indices, self.sizes)


class Backbone(nn.Module):
    """Image ``[B, in_channels, H, W]`` -> :class:`Pyramid` of as many maps as ``specs``, finest first.

    The last map is what a head reads that reads one. It may be finer than the one before where the backbone ends by
    joining what it has (BiSeNetV2); heads that climb level by level refuse such a pyramid.

    Subclasses set ``specs``, and implement ``levels`` and ``stages``.
    """

    specs: tuple[FeatureSpec, ...]
    freeze_bn: bool = False
    frozen: tuple[str, ...] = ()

    def levels(self, image: Tensor, stitch: Stitch | None = None) -> Pyramid:
        """The maps, finest first; ``stitch`` replaces each one before anything reads it."""
        raise TypeError(f"{type(self).__name__} does not say how it encodes")

    def stages(self) -> dict[str, list[nn.Module]]:
        """The modules behind each name that ``freeze`` takes, in the order in which they run."""
        raise TypeError(f"{type(self).__name__} does not name its stages")

    def forward(self, image: Tensor, stitch: Stitch | None = None) -> Pyramid:
        return self.levels(image, stitch)

    def freeze(self, names: Sequence[str]) -> None:
        """No gradient for these stages, and their norms and dropout in inference mode whatever the rest does."""
        known = self.stages()
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ConfigError(
                f"freeze: the backbone has no stage {', '.join(unknown)}; its stages are {', '.join(known)}"
            )
        self.frozen = tuple(names)
        for name in names:
            for module in known[name]:
                module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.freeze_bn:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        stages = self.stages() if self.frozen else {}
        for name in self.frozen:
            for module in stages[name]:
                module.eval()
        return self


def he_initialise(module: nn.Module) -> None:
    """All convolutions of ``module`` from a normal distribution of variance 2 / fan-in, biases 0 (He et al. 2015)."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
