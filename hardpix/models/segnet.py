"""SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation, as backbone and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.schema import Count
from hardpix.models.backbone import Backbone, Pyramid, Stitch, he_initialise, load_vgg16_bn
from hardpix.models.layers import Classifiers, ConvNormAct, Head
from hardpix.types import ConfigError, FeatureSpec


class SegNetEncoder(Backbone):
    """VGG16's convolutions with batch norm: image -> the maps after each 2x2 max-pooling, strides 2, 4, 8, ...

    Pooling rounds up: a map measures ``ceil(H / stride)``, and 424x560 pixels end as 14x18. The pyramid carries the
    pooling indices. Stages: ``conv1`` .. ``conv5``, each a block of convolutions.

    Args:
        pretrained: ImageNet weights of timm's ``vgg16_bn``, convolutions and norms only: True (the hub, or its
            cache) | path of a ``.safetensors``, ``.pth`` or ``.pt`` file | False (He initialisation).
        widths: channels of the blocks.
        convs: 3x3 convolutions of each block; each is followed by batch norm and ReLU.
        freeze_bn: batch norm keeps its running statistics in training (scale and shift are still trained).
    """

    def __init__(
        self,
        *,
        pretrained: bool | str,
        widths: Sequence[Count],
        convs: Sequence[Count],
        freeze_bn: bool,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(convs) or min(*widths, *convs) < 1:
            raise ConfigError(
                f"backbone: widths={list(widths)} and convs={list(convs)} must give one width and one count, "
                "1 or above, for every block"
            )
        inputs = [in_channels, *widths]
        self.blocks = nn.ModuleDict(
            {f"conv{i + 1}": _block(inputs[i], [widths[i]] * count) for i, count in enumerate(convs)}
        )
        self.specs = tuple(FeatureSpec(2 ** (i + 1), width, indices=True) for i, width in enumerate(widths))
        self.freeze_bn = freeze_bn
        he_initialise(self)
        if pretrained is not False:
            load_vgg16_bn(self, self._vgg16_names(), pretrained, in_channels)

    def levels(self, image: Tensor, stitch: Stitch | None = None) -> Pyramid:
        pyramid, x = Pyramid(), image
        for level, block in enumerate(self.blocks.values()):
            x = block(x)
            pyramid.sizes.append((x.shape[-2], x.shape[-1]))
            x, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
            x = x if stitch is None else stitch(level, x)
            pyramid.append(x)
            pyramid.indices.append(indices)
        return pyramid

    def stages(self) -> dict[str, list[nn.Module]]:
        return {name: [block] for name, block in self.blocks.items()}

    def _vgg16_names(self) -> dict[str, str]:
        """Our tensors -> timm's: there convolutions, norms, ReLUs and poolings are numbered through."""
        names: dict[str, str] = {}
        number = 0
        for block_name, block in self.blocks.items():
            for i, layers in enumerate(cast(nn.Sequential, block)):
                for j, layer in enumerate(cast(nn.Sequential, layers)):
                    names |= {
                        f"blocks.{block_name}.{i}.{j}.{key}": f"features.{number + j}.{key}"
                        for key in layer.state_dict()
                    }
                number += 3
            number += 1  # the pooling
        return names


class SegNetHead(Head):
    """The encoder mirrored: unpool with the encoder's indices to the size before its pooling, convolve; no skips.

    Logits and ``dec0`` have the image's size. Decoder maps: one per unpooling. Every block keeps its width but for
    the last convolution, which goes to the width of the next finer encoder map (the finest: keeps its own); the
    classifier is a 3x3 convolution with neither norm nor ReLU. Needs a backbone that keeps its pooling indices.

    Args:
        convs: 3x3 convolutions of each block, deepest first; as many as the backbone has levels.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        convs: Sequence[Count],
        align_corners: bool,
    ) -> None:
        super().__init__()
        if not all(spec.indices for spec in specs):
            raise ConfigError(
                "head=segnet: it unpools with the indices of the encoder's max-poolings, and this backbone keeps none; "
                "use backbone=segnet with it, or another head"
            )
        if len(convs) != len(specs) or min(convs) < 1:
            raise ConfigError(
                f"head.convs={list(convs)}: SegNet needs one count, 1 or above, per level, deepest first, and the "
                f"backbone has {len(specs)} levels"
            )
        widths = [
            specs[0].channels,
            *(spec.channels for spec in specs),
        ]  # of the maps to decode to, finest first
        counts = list(reversed(convs))
        self.blocks = nn.ModuleList(
            _block(spec.channels, [spec.channels] * (counts[i] - 1) + [widths[i]])
            for i, spec in enumerate(specs)
        )
        strides = [specs[0].stride // 2, *(spec.stride for spec in specs)]
        self.features = tuple(FeatureSpec(strides[i], widths[i]) for i in range(len(specs)))
        self.classifiers = Classifiers(widths[0], outputs, nn.Identity(), kernel_size=3)
        he_initialise(self)

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        encoded = cast(Pyramid, pyramid)
        decoder: list[Tensor] = []
        x = encoded[-1]
        for level in reversed(range(len(encoded))):
            x = F.max_unpool2d(x, encoded.indices[level], [2, 2], output_size=encoded.sizes[level])
            x = self.blocks[level](x)
            decoder.insert(0, x)
        return decoder


def _block(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    pairs = zip([inputs, *widths[:-1]], widths, strict=True)
    return nn.Sequential(*(ConvNormAct(a, b, 3, bias=True) for a, b in pairs))
