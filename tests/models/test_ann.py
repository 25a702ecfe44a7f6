"""The asymmetric non-local blocks against their equations, pixel by pixel and sample by sample; their head."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hardpix.config.compose import compose
from hardpix.models import ANNHead
from hardpix.models.context import SampledAttention
from hardpix.models.layers import ConvNormAct
from hardpix.train.build import make
from hardpix.types import ConfigError, FeatureSpec, HardpixError

SPECS = tuple(map(FeatureSpec, (4, 8, 16, 32), (3, 4, 5, 6)))
R101_D8 = tuple(map(FeatureSpec, (4, 8, 8, 8), (256, 512, 1024, 2048)))
SIZES = ((16, 24), (8, 12), (4, 6), (2, 3))


def shaken(module: nn.Module) -> nn.Module:
    """In eval, every weight random and so large that no softmax is nearly uniform."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return module.eval()


def head(**changes: object) -> ANNHead:
    settings = {
        "channels": 8,
        "project_channels": 4,
        "pool_sizes": (1, 3),
        "low_levels": (-2,),
        "levels": (-1,),
    }
    return ANNHead(SPECS, {"label": 3}, **settings | changes, align_corners=False, dropout=0.1)


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def pointwise(conv: nn.Conv2d, x: np.ndarray) -> np.ndarray:
    """A 1x1 convolution of ``[..., c]`` vectors."""
    y = x @ array(conv.weight)[:, :, 0, 0].T
    return y if conv.bias is None else y + array(conv.bias)


def layer(block: ConvNormAct, x: np.ndarray, *, relu: bool = True) -> np.ndarray:
    norm = block[1]
    y = (pointwise(block[0], x) - array(norm.running_mean)) / np.sqrt(array(norm.running_var) + norm.eps)
    y = y * array(norm.weight) + array(norm.bias)
    return np.maximum(y, 0) if relu else y


def samples(x: np.ndarray, pool_sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Means over s x s cells: cell i is from floor(i h / s) up to, not with, ceil((i + 1) h / s)."""
    found = []
    for s in pool_sizes:
        for i, j in np.ndindex(s, s):
            rows, columns = (
                slice(math.floor(k * side / s), math.ceil((k + 1) * side / s))
                for k, side in ((i, x.shape[0]), (j, x.shape[1]))
            )
            found.append(x[rows, columns].reshape(-1, x.shape[2]).mean(0))
    return found


def naive(block: SampledAttention, x: np.ndarray, source: np.ndarray, pools: tuple[int, ...]) -> np.ndarray:
    query = layer(block.key if block.query is None else block.query, x)
    keys, values = samples(layer(block.key, source), pools), samples(pointwise(block.value, source), pools)
    assert len(keys) == sum(s**2 for s in pools)
    out = np.empty_like(x)
    for i in np.ndindex(x.shape[:2]):
        weights = [np.exp(query[i] @ key / math.sqrt(len(key))) for key in keys]
        y = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        out[i] = pointwise(block.out, y)
    return out


def last(x: Tensor) -> np.ndarray:
    return array(x.permute(0, 2, 3, 1))


@pytest.mark.parametrize("pools", [(1, 3), (2,), (1, 3, 6, 8)])
def test_fusion_is_its_equation(pools: tuple[int, ...]) -> None:
    block = shaken(SampledAttention(6, 5, 3, pools))
    x, source = torch.randn(2, 6, 3, 4), torch.randn(2, 5, 5, 7)
    expected = np.stack([naive(block, *maps, pools) for maps in zip(last(x), last(source), strict=True)])
    np.testing.assert_allclose(last(block(x, source)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(3, 5), (1, 1), (9, 2)])
def test_attention_within_a_map_is_its_equation(size: tuple[int, int]) -> None:
    block = shaken(SampledAttention(6, None, 3, (1, 3)))
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"key", "value", "out"}
    x = torch.randn(2, 6, *size)
    expected = np.stack([naive(block, image, image, (1, 3)) for image in last(x)])
    np.testing.assert_allclose(last(block(x, x)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(97, 97), (13, 29), (1, 1)])
def test_the_published_samples(size: tuple[int, int]) -> None:
    pools = compose(["head=ann"]).head.pool_sizes
    x = torch.ones(1, 2, *size)
    found = SampledAttention(2, 2, 2, pools).sample(x.bfloat16())
    assert found.shape == (1, 2, 1 + 9 + 36 + 64)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.ones(1, 2, 110))


def test_both_attentions_start_at_zero() -> None:
    for block in (SampledAttention(6, 5, 3, (1, 3)), SampledAttention(6, None, 3, (1, 3))):
        sources = 6 if block.query is None else 5
        assert not block(torch.randn(2, 6, 4, 4), torch.randn(2, sources, 4, 4)).any()


def test_the_head_fuses_two_levels_and_attends_within_the_result() -> None:
    model = shaken(head())
    pyramid = [torch.randn(2, s.channels, *size) for s, size in zip(SPECS, SIZES, strict=True)]
    low, high = last(pyramid[2]), last(pyramid[3])
    context = np.stack([naive(model.fusion, a, b, (1, 3)) for a, b in zip(high, low, strict=True)])
    fused = layer(model.fuse, np.concatenate([context, high], -1), relu=False)
    assert fused.min() < 0
    x = model.reduce[1](torch.from_numpy(fused).float().permute(0, 3, 1, 2))
    context = np.stack([naive(model.context, a, a, (1, 3)) for a in last(x)])
    expected = layer(model.join, np.concatenate([context, last(x)], -1))
    out = model(pyramid)
    assert len(out.decoder) == 1
    np.testing.assert_allclose(last(out.decoder[0]), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(out.outputs["label"], model.classifiers.convs["label"](out.decoder[0]))


def test_channels_drop_between_fusion_and_reduction() -> None:
    model = head(channels=4, levels=(3,)).train()
    seen: list[Tensor] = []
    model.reduce[0].p = 0.5
    model.reduce[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.manual_seed(0)
    model([torch.randn(4, s.channels, *size) for s, size in zip(SPECS, SIZES, strict=True)])
    gone = (seen[0] == 0).flatten(2)
    assert torch.equal(gone.all(2), gone.any(2))  # whole channels
    assert gone.any()
    assert not gone.all()


def test_levels() -> None:
    assert head().features == (FeatureSpec(32, 8),)
    assert head(levels=(0, 1, 2, 3), low_levels=(0, 3)).features == (FeatureSpec(4, 8),)
    model = shaken(head(levels=(2,), low_levels=(0,)))
    pyramid = [
        torch.randn(1, s.channels, *size, requires_grad=True) for s, size in zip(SPECS, SIZES, strict=True)
    ]
    model(pyramid).outputs["label"].sum().backward()
    assert [x.grad is not None and bool(x.grad.any()) for x in pyramid] == [True, False, True, False]
    with pytest.raises(ConfigError, match=r"head\.low_levels=\[4\]"):
        head(low_levels=(4,))


def test_training_in_bfloat16() -> None:
    model = head()
    for block in (model.fusion, model.context):
        nn.init.normal_(block.out.weight)
    pyramid = [torch.randn(2, s.channels, *size) for s, size in zip(SPECS, SIZES, strict=True)]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(pyramid).outputs["label"]
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_one_pixel_of_one_image_cannot_train() -> None:
    model = head()
    with pytest.raises(HardpixError, match=r"batch of one image"):
        model([torch.randn(1, s.channels, 1, 1) for s in SPECS])
    assert torch.isfinite(model([torch.randn(2, s.channels, 1, 1) for s in SPECS]).outputs["label"]).all()


def conv(inputs: int, outputs: int, side: int = 1, *, bias: bool = False, norm: bool = False) -> int:
    return inputs * outputs * side**2 + outputs * bias + 2 * outputs * norm


def test_parameters_of_the_published_head() -> None:
    """mmsegmentation's layers on the 1024 and 2048 channels of ResNet-101."""
    fusion = conv(1024, 256, norm=True) + conv(2048, 256, norm=True)  # key, query
    fusion += conv(1024, 256, bias=True) + conv(256, 2048, bias=True)  # value, out
    fusion += conv(2048 + 2048, 2048, norm=True)
    context = conv(512, 256, norm=True)  # key and query in one
    context += conv(512, 256, bias=True) + conv(256, 512, bias=True) + conv(512 + 512, 512, norm=True)
    expected = fusion + conv(2048, 512, 3, norm=True) + context + conv(512, 19, bias=True)
    model = make(compose(["head=ann"]).head)(R101_D8, {"label": 19}, align_corners=True)
    assert sum(p.numel() for p in model.parameters()) == expected
