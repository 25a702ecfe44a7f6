"""Heads with attention over the map: Non-local, ANN, CCNet, GCNet, EMANet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.schema import Count, Share
from hardpix.models.layers import Classifiers, Concat, ConvNormAct, Head
from hardpix.models.pyramid import FCNHead
from hardpix.ops.precision import without_autocast
from hardpix.types import ConfigError, FeatureSpec


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``softmax_j(q_i . k_j / sqrt(d)) v_j``, summed over all positions ``j`` of ``key`` and ``value``.

    ``query [B, d, h, w]``, ``key [B, d, ...]`` and ``value [B, c, ...]`` -> ``[B, c, h, w]`` in the query's dtype,
    computed in float32 whatever autocast says. The matrix of all pairs is not kept where torch has a fused kernel.
    """
    with without_autocast(query):
        # The fused kernels want an axis of heads, and channels last.
        q, k, v = (x.float().flatten(2).transpose(1, 2)[:, None].contiguous() for x in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v)
    return out[:, 0].transpose(1, 2).unflatten(2, query.shape[2:]).to(query.dtype)


def reduced(channels: int, reduction: int) -> int:
    """``channels // reduction``, the width inside a context module."""
    if not 1 <= reduction <= channels:
        raise ConfigError(f"head.reduction={reduction}: must lie between 1 and head.channels={channels}")
    return channels // reduction


class ContextHead(FCNHead):
    """FCN's two 3x3 convolutions with a context module between them, joined with their input, then the classifiers.

    Args:
        context: ``[B, channels, h, w]`` -> the same shape.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        context: Callable[[], nn.Module],
        *,
        channels: int,
        levels: Sequence[int],
        align_corners: bool,
        dropout: float,
    ) -> None:
        super().__init__(
            specs,
            outputs,
            channels=channels,
            num_convs=2,
            concat_input=True,
            levels=levels,
            align_corners=align_corners,
            dropout=dropout,
        )
        self.convs.insert(1, context())


# Non-local Neural Networks (Wang et al. 2018), in the form of mmsegmentation.


class NonLocal(nn.Module):
    """``x + norm(out(attend(query(x), key(x), value(x))))``: the embedded Gaussian, its exponent over ``sqrt(d)``.

    ``[B, channels, h, w]`` -> the same. The norm's scale starts at 0, so that the block starts as the identity.

    Args:
        reduction: ``d = channels // reduction`` is the width of query, key and value.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = reduced(channels, reduction)
        self.query, self.key, self.value = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        for conv in (self.query, self.key, self.value):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.out = ConvNormAct(inner, channels, 1, relu=False)
        nn.init.zeros_(self.out[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(attend(self.query(x), self.key(x), self.value(x)))


class NonLocalHead(ContextHead):
    """FCN with :class:`NonLocal` between its convolutions."""

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        reduction: Count,
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__(
            specs,
            outputs,
            lambda: NonLocal(channels, reduction),
            channels=channels,
            levels=levels,
            align_corners=align_corners,
            dropout=dropout,
        )


# Asymmetric Non-local Neural Networks for Semantic Segmentation (Zhu et al. 2019), in the form of
# mmsegmentation.


class SampledAttention(nn.Module):
    """Attention of every pixel of a map to averages over cells of a map, its own or another of any size.

    ``x [B, inputs, h, w]`` and ``source [B, source_channels, h', w']`` -> ``[B, inputs, h, w]``. Key and value are
    averaged over ``s x s`` cells for each ``s`` of ``pool_sizes``: ``sum(s ** 2)`` positions (the pyramid sampling of
    the paper). The last convolution starts at 0.

    Args:
        source_channels: of another map; None: ``source`` is ``x``, and the query is the key before it is averaged.
        channels: of query, key and value.
    """

    def __init__(
        self, inputs: int, source_channels: int | None, channels: int, pool_sizes: Sequence[int]
    ) -> None:
        super().__init__()
        self.query = None if source_channels is None else ConvNormAct(inputs, channels, 1)
        sources = inputs if source_channels is None else source_channels
        self.key = ConvNormAct(sources, channels, 1)
        self.value = nn.Conv2d(sources, channels, 1)
        self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(s) for s in pool_sizes)
        self.out = nn.Conv2d(channels, inputs, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        key = self.key(source)
        query = key if self.query is None else self.query(x)
        return self.out(attend(query, self.sample(key), self.sample(self.value(source))))

    def sample(self, x: Tensor) -> Tensor:
        """``[B, c, h, w]`` -> ``[B, c, positions]`` float32."""
        return torch.cat([pool(x.float()).flatten(2) for pool in self.pools], 2)


class ANNHead(Head):
    """Fusion with a level below, 3x3 convolution, and attention within the result, the one decoder map.

    The paper's AFNB: pixels of ``levels`` attend to samples of ``low_levels``; a 1x1 convolution with norm joins the
    outcome with the map itself. Its APNB does so within one map, and a ReLU follows.

    Args:
        low_levels: maps that the fusion samples, joined as ``levels`` are; -2, the one before the deepest.
        pool_sizes: of the samples, in both.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        project_channels: Count,
        pool_sizes: Sequence[Count],
        low_levels: Sequence[int],
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        self.input = Concat(specs, levels, align_corners=align_corners)
        self.low = Concat(specs, low_levels, align_corners=align_corners, name="low_levels")
        inputs = self.input.spec.channels
        self.fusion = SampledAttention(inputs, self.low.spec.channels, project_channels, pool_sizes)
        self.fuse = ConvNormAct(2 * inputs, inputs, 1, relu=False)
        self.reduce = nn.Sequential(nn.Dropout2d(dropout), ConvNormAct(inputs, channels, 3))
        self.context = SampledAttention(channels, None, project_channels, pool_sizes)
        self.join = ConvNormAct(2 * channels, channels, 1)
        self.features = (FeatureSpec(self.input.spec.stride, channels),)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        x = self.input(pyramid)
        x = self.reduce(self.fuse(torch.cat([self.fusion(x, self.low(pyramid)), x], 1)))
        return [self.join(torch.cat([self.context(x, x), x], 1))]


# CCNet: Criss-Cross Attention for Semantic Segmentation (Huang et al. 2019), in the form of
# mmsegmentation.


class CrissCross(nn.Module):
    """``x_u + gamma * sum_i softmax_i(q_u . k_i) v_i`` over the h + w - 1 pixels ``i`` of ``u``'s row and column.

    ``[B, channels, h, w]`` -> the same; memory grows with ``h w (h + w)``. ``gamma`` starts at 0.

    Args:
        reduction: ``channels // reduction`` is the width of query and key.
        recurrence: how often it is applied, always with the same weights; the second time every pixel is reached.
    """

    def __init__(self, channels: int, reduction: int, recurrence: int) -> None:
        super().__init__()
        inner = reduced(channels, reduction)
        self.recurrence = recurrence
        self.query, self.key = nn.Conv2d(channels, inner, 1), nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.recurrence):
            x = x + self.gamma.to(x.dtype) * criss_cross(self.query(x), self.key(x), self.value(x))
        return x


def criss_cross(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of every pixel to its row and column, itself counted once: ``[B, c, h, w]``, as ``value``.

    ``query`` and ``key`` ``[B, d, h, w]``. Computed in float32 whatever autocast says.
    """
    with without_autocast(query):
        q, k, v = query.float(), key.float(), value.float()
        row = torch.einsum("bchw,bchj->bhwj", q, k)
        column = torch.einsum("bchw,bciw->bhwi", q, k)
        own = torch.eye(q.shape[2], dtype=torch.bool, device=q.device)[:, None]  # the row has it already
        weight = torch.cat([row, column.masked_fill(own, -torch.inf)], 3).softmax(3)
        in_row, in_column = weight.split([q.shape[3], q.shape[2]], 3)
        out = torch.einsum("bhwj,bchj->bchw", in_row, v) + torch.einsum("bhwi,bciw->bchw", in_column, v)
    return out.to(value.dtype)


class CCHead(ContextHead):
    """FCN with :class:`CrissCross` between its convolutions."""

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        reduction: Count,
        recurrence: Count,
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__(
            specs,
            outputs,
            lambda: CrissCross(channels, reduction, recurrence),
            channels=channels,
            levels=levels,
            align_corners=align_corners,
            dropout=dropout,
        )


# GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond (Cao et al. 2019), as in
# mmsegmentation.


class GlobalContext(nn.Module):
    """``x_i + transform(sum_j softmax_j(mask(x)) x_j)``: one vector per image, the same for all pixels.

    ``[B, channels, h, w]`` -> the same. The transform's last convolution starts at 0: the block starts as the identity.

    Args:
        reduction: ``channels // reduction`` is the width inside the transform.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = reduced(channels, reduction)
        self.mask = nn.Conv2d(channels, 1, 1)
        nn.init.kaiming_normal_(self.mask.weight, nonlinearity="relu")
        nn.init.zeros_(self.mask.bias)  # type: ignore[arg-type]
        last = nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.transform = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.LayerNorm([inner, 1, 1]), nn.ReLU(inplace=True), last
        )

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask(x)
        with without_autocast(x):
            weight = mask.float().flatten(2).softmax(2)
            mean = x.float().flatten(2) @ weight.transpose(1, 2)
        return x + self.transform(mean[..., None].to(x.dtype))


class GCHead(ContextHead):
    """FCN with :class:`GlobalContext` between its convolutions."""

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        reduction: Count,
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__(
            specs,
            outputs,
            lambda: GlobalContext(channels, reduction),
            channels=channels,
            levels=levels,
            align_corners=align_corners,
            dropout=dropout,
        )


# EMANet: Expectation-Maximization Attention Networks.


class EMAttention(nn.Module):
    """Every pixel rebuilt from a few bases, which expectation and maximisation fit to each image.

    ``[B, channels, h, w]`` -> the same, computed in float32. Without gradient: the bases are means of pixels, not
    weights, and the 1x1 convolution ahead of them stays as it was drawn. All images start from the same bases of
    length 1, a buffer. In training it follows the images' fitted bases by a moving average, over all processes.

    Args:
        num_stages: rounds of expectation and maximisation.
        momentum: weight of the new bases in the moving average.
    """

    bases: Tensor  # [channels, num_bases]

    def __init__(self, channels: int, num_bases: int, num_stages: int, momentum: float) -> None:
        super().__init__()
        self.num_stages, self.momentum = num_stages, momentum
        self.project = nn.Conv2d(channels, channels, 1)
        nn.init.kaiming_normal_(self.project.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]
        self.project.requires_grad_(False)
        self.register_buffer("bases", F.normalize(torch.randn(channels, num_bases), dim=0))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        pixels = self.project(x).flatten(2)
        with without_autocast(x):
            bases, z = self.fit(pixels.float())
            if self.training:
                self._follow(bases)
            return (bases @ z.mT).unflatten(2, x.shape[-2:]).to(x.dtype)

    def fit(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, c, n]`` -> bases ``[B, c, k]`` of length 1, and each pixel's shares in them ``[B, n, k]``."""
        bases = self.bases.float().expand(len(pixels), -1, -1)
        for _ in range(self.num_stages):
            z = (pixels.mT @ bases).softmax(2)
            bases = F.normalize(pixels @ F.normalize(z, p=1, dim=1), dim=1)
        return bases, z

    def _follow(self, bases: Tensor) -> None:
        mean = bases.mean(0)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(mean)  # the sum has the mean's direction, and only that counts
        self.bases.lerp_(F.normalize(mean, dim=0).to(self.bases.dtype), self.momentum)


class EMAHead(Head):
    """3x3 convolution, attention added to it, 3x3, and once more 3x3 with the input beside; the one decoder map.

    Args:
        ema_channels: of the map that is rebuilt from ``num_bases`` bases.
        channels: of the decoder map.
    """

    def __init__(
        self,
        specs: tuple[FeatureSpec, ...],
        outputs: dict[str, int],
        *,
        channels: Count,
        ema_channels: Count,
        num_bases: Count,
        num_stages: Count,
        momentum: Share,
        levels: Sequence[int],
        align_corners: bool,
        dropout: Share,
    ) -> None:
        super().__init__()
        self.input = Concat(specs, levels, align_corners=align_corners)
        inputs = self.input.spec.channels
        self.reduce = ConvNormAct(inputs, ema_channels, 3)
        self.attention = EMAttention(ema_channels, num_bases, num_stages, momentum)
        self.restore = ConvNormAct(ema_channels, ema_channels, 1, relu=False)
        self.bottleneck = ConvNormAct(ema_channels, channels, 3)
        self.fuse = ConvNormAct(inputs + channels, channels, 3)
        self.features = (FeatureSpec(self.input.spec.stride, channels),)
        self.classifiers = Classifiers(channels, outputs, nn.Dropout2d(dropout))

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        x = self.input(pyramid)
        reduced = self.reduce(x)
        rebuilt = self.restore(F.relu(self.attention(reduced)))
        return [self.fuse(torch.cat([x, self.bottleneck(F.relu(reduced + rebuilt))], 1))]
