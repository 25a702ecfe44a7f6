"""Global attention upsampling (GAU), and the branches and the decoder made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.schema import Count, Share
from hardpix.models.deeplab import ASPP
from hardpix.models.layers import Classifiers, Concat, Head, check_order
from hardpix.models.tiles import TrackedGroupNorm, cut, fill_in
from hardpix.ops.resize import resize
from hardpix.types import ConfigError, FeatureSpec

GROUPS = 32  # of every group norm (Erroneous Pixel Prediction, implementation details)
ATTENTIONS = ("relu", "sigmoid")
ERROR_PRIOR = 0.04  # share of wrong pixels that the error branch starts from
SKIP_STRIDES = (16, 8, 4)
HALO = 3  # cells that the three 3x3 convolutions of a block, one after the other, see beyond a cell
TILES_AT_ONCE = 16
ALL = 0.85  # share of tiles above which their halos cost more than the rest of the map


class ConvGroupNorm(nn.Sequential):
    """Convolution without bias, group norm, ReLU; ``ceil(H / stride)``. Kaiming-normal (fan out), as ConvNormAct.

    32 groups; where 32 does not divide the channels, ``gcd(32, channels)``.
    """

    def __init__(
        self, inputs: int, channels: int, kernel_size: int, *, stride: int = 1, relu: bool = True
    ) -> None:
        activation = [nn.ReLU(inplace=True)] if relu else []
        super().__init__(
            _conv(inputs, channels, kernel_size, stride),
            nn.GroupNorm(math.gcd(GROUPS, channels), channels),
            *activation,
        )


class GAU(nn.Module):
    """Global attention upsampling: ``relu(U(high) + norm(conv3x3(low)) * a(norm(conv1x1(mean(high)))))``, eq. (5.6).

    ``high [B, high_channels, h', w']`` and ``low [B, low_channels, h, w]`` -> ``[B, channels, h, w]``. ``U`` enlarges
    bilinearly to the size of ``low``, then 1x1 convolution and norm; ``mean`` is over all pixels of an image. Every
    norm is a group norm: it is defined for a batch of one and for the ``1 x 1`` map of means, where batch norm fails.
    With 32 channels or fewer the norm of the means has at least two channels a group: of one number alone nothing
    would be left.

    Pyramid Attention Network (Li et al. 2018), section 3.3, with the group norm of Erroneous Pixel Prediction.

    Args:
        attention: ``a``, ``relu`` as that paper says, or ``sigmoid``.
        align_corners: of the enlargement.
    """

    def __init__(
        self, high_channels: int, low_channels: int, channels: int, *, attention: str, align_corners: bool
    ) -> None:
        super().__init__()
        if attention not in ATTENTIONS:
            raise ConfigError(f"attention={attention}: must be {' or '.join(ATTENTIONS)}")
        self.sigmoid, self.align_corners = attention == "sigmoid", align_corners
        self.up = ConvGroupNorm(high_channels, channels, 1, relu=False)
        self.low = ConvGroupNorm(low_channels, channels, 3, relu=False)
        groups = math.gcd(GROUPS, channels)
        if groups == channels > 1:
            groups //= 2
        self.means = nn.Sequential(_conv(high_channels, channels, 1), nn.GroupNorm(groups, channels))

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        return F.relu(self.enlarged(high, (low.shape[-2], low.shape[-1])) + self.low(low) * self.weigh(high))

    def enlarged(self, high: Tensor, size: tuple[int, int]) -> Tensor:
        """``U(high)``: ``[B, channels, *size]``."""
        # A 1x1 convolution without bias commutes with the enlargement, and is cheaper before it; the norm does not.
        return self.up[1](resize(self.up[0](high), size, align_corners=self.align_corners))

    def weigh(self, high: Tensor) -> Tensor:
        """The attention vector: ``[B, channels, 1, 1]``, not negative."""
        vector = self.means(high.float().mean((2, 3), keepdim=True).to(high.dtype))
        return vector.sigmoid() if self.sigmoid else F.relu(vector)


class GAUBlock(nn.Module):
    """A block of the detail branch: :class:`GAU`, then two 3x3 :class:`ConvGroupNorm`; shapes as of GAU."""

    def __init__(
        self, high_channels: int, low_channels: int, channels: int, *, attention: str, align_corners: bool
    ) -> None:
        super().__init__()
        self.gau = GAU(
            high_channels, low_channels, channels, attention=attention, align_corners=align_corners
        )
        self.convs = nn.Sequential(*(ConvGroupNorm(channels, channels, 3) for _ in range(2)))

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        return self.convs(self.gau(high, low))


class ErrorBranch(nn.Module):
    """Where is the segmenter wrong? Its probabilities and the image, attended by its deepest decoder map.

    ``probability [B, C, h4, w4]`` (of stride 4), ``image [B, 3, H, W]`` and ``high [B, high_channels, h, w]`` ->
    logits ``[B, 1, h4, w4]`` of an error. 3x3 convolution of the probabilities to half the width; two of stride 2 of
    the image to a quarter and half of it; both together are the low map of a GAU, followed by two 3x3 convolutions
    and a 1x1. The image's map is resized where it does not measure ``h4 x w4``. The parts
    are those of Erroneous Pixel Prediction, figure 2; their widths and counts are not in it and are ours.

    Args:
        classes: C.
        channels: width; a multiple of 4.
    """

    class_tensors: ClassVar = ("probability.0.",)  # of its input

    def __init__(
        self, classes: int, high_channels: int, *, channels: int, attention: str, align_corners: bool
    ) -> None:
        super().__init__()
        if channels % 4:
            raise ConfigError(f"channels={channels}: the error branch needs a multiple of 4")
        self.align_corners = align_corners
        self.probability = ConvGroupNorm(classes, channels // 2, 3)
        self.image = nn.Sequential(
            ConvGroupNorm(3, channels // 4, 3, stride=2),
            ConvGroupNorm(channels // 4, channels // 2, 3, stride=2),
        )
        self.block = GAUBlock(
            high_channels, channels, channels, attention=attention, align_corners=align_corners
        )
        self.classifier = _classifier(channels, 1)
        nn.init.constant_(self.classifier.bias, math.log(ERROR_PRIOR / (1 - ERROR_PRIOR)))  # type: ignore[arg-type]

    def forward(self, probability: Tensor, image: Tensor, high: Tensor) -> Tensor:
        size = (probability.shape[-2], probability.shape[-1])
        seen = resize(self.image(image), size, align_corners=self.align_corners)
        return self.classifier(self.block(high, torch.cat([self.probability(probability), seen], 1)))


class DetailBranch(nn.Module):
    """A second decoder for the pixels that are wrong: three :class:`GAUBlock`, each with a skip from the encoder.

    ``high [B, c, h, w]`` (the deepest decoder map) and three encoder maps, coarse to fine -> logits
    ``[B, C, h4, w4]`` at the size of the last. ``forward`` is :meth:`fine` after :meth:`coarse`.
    Erroneous Pixel Prediction, figure 1; the skips' strides are ours.

    The norms of the third block that see the whole map (:class:`TrackedGroupNorm`) keep statistics in training. With
    ``tracked`` they normalise by them at inference, and the third block and the classifier can then run on tiles
    alone, with the same values: the attention, a mean over the map, is taken from the second block, which is dense.

    Args:
        high, skips: as ``Segmenter.features`` knows them; :func:`choose_skips` names the skips.
        classes: C.
        channels: width of all blocks.
    """

    class_tensors: ClassVar = ("classifier.",)

    def __init__(
        self,
        high: FeatureSpec,
        skips: Sequence[FeatureSpec],
        classes: int,
        *,
        channels: int,
        attention: str,
        align_corners: bool,
        tracked: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = gau_blocks(high, skips, channels, attention=attention, align_corners=align_corners)
        self.classifier = _classifier(channels, classes)
        for module in self.blocks[2].modules():
            if isinstance(module, ConvGroupNorm):
                module[1] = TrackedGroupNorm(math.gcd(GROUPS, channels), channels)
                module[1].tracked = tracked  # type: ignore[assignment]

    def forward(
        self, high: Tensor, skips: Sequence[Tensor], *, tiles: Tensor | None = None, side: int = 0
    ) -> Tensor:
        """``tiles [B, ceil(h4 / side), ceil(w4 / side)]`` bool: the tiles to compute; the others' logits are 0."""
        x = self.coarse(high, skips[:-1])
        if tiles is None or float(tiles.float().mean()) > ALL:
            return self.fine(x, skips[-1])
        return self.fine_on_tiles(x, skips[-1], tiles, side)

    def coarse(self, high: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Blocks 1 and 2 on the two coarser skips: ``[B, channels, h8, w8]``."""
        return self.blocks[1](self.blocks[0](high, skips[0]), skips[1])

    def fine(self, x: Tensor, skip: Tensor) -> Tensor:
        """Block 3 on the finest skip, and the classifier: ``[B, C, h4, w4]``."""
        return self.classifier(self.blocks[2](x, skip))

    def fine_on_tiles(self, x: Tensor, skip: Tensor, tiles: Tensor, side: int) -> Tensor:
        """:meth:`fine` by kept statistics, on some tiles; 0 elsewhere."""
        size = (skip.shape[-2], skip.shape[-1])
        out = skip.new_zeros((len(skip), self.classifier.out_channels, *size), dtype=torch.float32)
        corners = [(image, y * side, left * side) for image, y, left in tiles.nonzero().tolist()]
        if not corners:
            return out
        gau: GAU = self.blocks[2].gau  # type: ignore[assignment]
        reduced, weight = gau.up[0](x), gau.weigh(x)
        up = resize(reduced, size, align_corners=gau.align_corners)
        inside = skip.new_ones((1, 1, *size)).expand(len(skip), -1, -1, -1)
        for start in range(0, len(corners), TILES_AT_ONCE):
            some = corners[start : start + TILES_AT_ONCE]
            known = cut(inside, some, side, HALO - 1)
            low = _inner(gau.low, cut(skip, some, side, HALO))
            own = weight[[image for image, *_ in some]]
            y = F.relu(gau.up[1](cut(up, some, side, HALO - 1)) + low * own)
            for conv in self.blocks[2].convs:  # type: ignore[union-attr]
                y = _inner(conv, y * known)  # beyond the map every convolution reads 0
                known = known[..., 1:-1, 1:-1]
            fill_in(out, self.classifier(y).float(), some)
        return out


def _inner(layer: ConvGroupNorm, x: Tensor) -> Tensor:
    """``layer`` where its 3x3 convolution sees no border: two rows and columns fewer."""
    y = F.conv2d(x, layer[0].weight)  # type: ignore[arg-type]
    for step in list(layer)[1:]:
        y = step(y)
    return y


def gau_blocks(
    high: FeatureSpec, skips: Sequence[FeatureSpec], channels: int, *, attention: str, align_corners: bool
) -> nn.ModuleList:
    """One :class:`GAUBlock` per skip, coarse to fine; the first reads ``high``, each further one the block before."""
    inputs = [high.channels] + [channels] * (len(skips) - 1)
    return nn.ModuleList(
        GAUBlock(width, skip.channels, channels, attention=attention, align_corners=align_corners)
        for width, skip in zip(inputs, skips, strict=True)
    )


def skip_levels(specs: Sequence[FeatureSpec]) -> tuple[int, int, int]:
    """Levels of a pyramid (finest first, at least one) that have strides 16, 8 and 4, in this order.

    From the finest: the first map of stride 4 or more, behind it the first of 8 or more, behind that the first of
    16 or more. Where no map behind is that coarse (dilation) the very next one, where none is behind at all the
    deepest again. So (4, 8, 16, 32), its dilated forms (4, 8, 16, 16) and (4, 8, 8, 8), and a plain ViT's
    (16, 16, 16, 16) all give 2, 1, 0; a pyramid of two maps gives 1, 1, 0.
    """
    chosen: list[int] = []
    level = -1
    for stride in reversed(SKIP_STRIDES):
        coarse = (i for i in range(level + 1, len(specs)) if specs[i].stride >= stride)
        level = next(coarse, min(level + 1, len(specs) - 1))
        chosen.insert(0, level)
    return chosen[0], chosen[1], chosen[2]


def choose_skips(features: dict[str, FeatureSpec]) -> tuple[str, str, str]:
    """Names of the encoder maps of strides 16, 8 and 4, by :func:`skip_levels`; for most backbones enc2, enc1, enc0.

    Args:
        features: of a segmenter; maps not named ``enc*`` are passed over. At least one encoder map.
    """
    names = [name for name in features if name.startswith("enc")]
    levels = skip_levels([features[name] for name in names])
    return names[levels[0]], names[levels[1]], names[levels[2]]


def _conv(inputs: int, channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _classifier(inputs: int, outputs: int) -> nn.Conv2d:
    """1x1 convolution, weights drawn from N(0, 0.01) as every head's, bias 0."""
    conv = nn.Conv2d(inputs, outputs, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


# The detail branch of Erroneous Pixel Prediction as the decoder of a segmenter (its table of decoders).


class GAUDecoderHead(Head):
    """Separable ASPP, then three blocks of global attention upsampling with skips of strides 16, 8 and 4.

    Decoder maps: ``dec0`` the third block's output, which the classifiers read, ``dec1`` the second's, ``dec2`` the
    first's, ``dec3`` the ASPP output. The stages 1, 2, 3 of a layer cascade are so ``dec2``, ``dec1``, ``dec0``.

    Args:
        channels: width of the ASPP and of all blocks.
        attention: ``relu`` or ``sigmoid``.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        dilations: Sequence[Count],
        attention: str,
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
        project_kernel: Literal[1, 3],
    ) -> None:
        super().__init__()
        check_order("gau_decoder", specs)
        self.input = Concat(specs, levels, align_corners=align_corners)
        self.aspp = ASPP(
            self.input.spec.channels,
            channels,
            dilations,
            separable=True,
            align_corners=align_corners,
            project_kernel=project_kernel,
        )
        self.skips = skip_levels(specs)
        deep = FeatureSpec(self.input.spec.stride, channels)
        skips = [specs[level] for level in self.skips]
        self.blocks = gau_blocks(deep, skips, channels, attention=attention, align_corners=align_corners)
        self.features = (*(FeatureSpec(skip.stride, channels) for skip in reversed(skips)), deep)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        maps = [self.aspp(self.input(pyramid))]
        for block, level in zip(self.blocks, self.skips, strict=True):
            maps.insert(0, block(maps[0], pyramid[level]))
        return maps
