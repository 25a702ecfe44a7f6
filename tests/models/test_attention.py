"""Non-local, global context and criss-cross blocks against their equations, pixel by pixel; the heads around them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hardpix.config.compose import compose
from hardpix.models import CCHead, GCHead, NonLocalHead
from hardpix.models.context import ContextHead, CrissCross, GlobalContext, NonLocal, attend, criss_cross
from hardpix.train.build import make
from hardpix.types import ConfigError, FeatureSpec, HardpixError

SPECS = tuple(map(FeatureSpec, (4, 8, 16, 32), (3, 4, 5, 6)))
R101_D8 = tuple(map(FeatureSpec, (4, 8, 8, 8), (256, 512, 1024, 2048)))
BLOCKS = {
    "nonlocal": partial(NonLocal, 6, 2),
    "gcnet": partial(GlobalContext, 6, 2),
    "ccnet": partial(CrissCross, 6, 2, 2),
}
HEADS = {
    "nonlocal": partial(NonLocalHead, channels=8, reduction=2),
    "gcnet": partial(GCHead, channels=8, reduction=2),
    "ccnet": partial(CCHead, channels=8, reduction=2, recurrence=2),
}


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


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def pointwise(conv: nn.Conv2d, x: np.ndarray) -> np.ndarray:
    """A 1x1 convolution of ``[..., c]`` vectors."""
    y = x @ array(conv.weight)[:, :, 0, 0].T
    return y if conv.bias is None else y + array(conv.bias)


def normed(norm: nn.BatchNorm2d, x: np.ndarray) -> np.ndarray:
    x = (x - array(norm.running_mean)) / np.sqrt(array(norm.running_var) + norm.eps)
    return x * array(norm.weight) + array(norm.bias)


def mixture(query: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float) -> np.ndarray:
    """``sum_j exp(q . k_j * scale) v_j / sum_j exp(q . k_j * scale)``, term by term."""
    weights = [np.exp(query @ key * scale) for key in keys]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def naive_nonlocal(block: NonLocal, x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    query, key, value = (pointwise(conv, x) for conv in (block.query, block.key, block.value))
    for i in np.ndindex(x.shape[:2]):
        y = mixture(query[i], key.reshape(-1, 3), value.reshape(-1, 3), 3**-0.5)
        out[i] = x[i] + normed(block.out[1], pointwise(block.out[0], y))
    return out


def naive_context(block: GlobalContext, x: np.ndarray) -> np.ndarray:
    weights = np.exp(pointwise(block.mask, x))[..., 0]
    mean = sum(weights[j] * x[j] for j in np.ndindex(weights.shape)) / weights.sum()
    first, norm, _, last = block.transform
    y = pointwise(first, mean)
    y = (y - y.mean()) / np.sqrt(((y - y.mean()) ** 2).mean() + 1e-5)
    y = y * array(norm.weight)[:, 0, 0] + array(norm.bias)[:, 0, 0]
    return x + pointwise(last, np.maximum(y, 0))


def naive_criss_cross(block: CrissCross, x: np.ndarray) -> np.ndarray:
    height, width = x.shape[:2]
    for _ in range(block.recurrence):
        query, key, value = (pointwise(conv, x) for conv in (block.query, block.key, block.value))
        out = np.empty_like(x)
        for row, column in np.ndindex(height, width):
            path = {(row, j) for j in range(width)} | {(i, column) for i in range(height)}
            assert len(path) == height + width - 1
            y = mixture(query[row, column], [key[u] for u in path], [value[u] for u in path], 1)
            out[row, column] = x[row, column] + block.gamma.item() * y
        x = out
    return x


NAIVE = {"nonlocal": naive_nonlocal, "gcnet": naive_context, "ccnet": naive_criss_cross}


@pytest.mark.parametrize("size", [(3, 5), (4, 2), (1, 4), (1, 1)])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_its_equation(name: str, size: tuple[int, int]) -> None:
    block = shaken(BLOCKS[name]())
    x = torch.randn(2, 6, *size)
    expected = np.stack([NAIVE[name](block, image) for image in array(x.permute(0, 2, 3, 1))])
    np.testing.assert_allclose(array(block(x).permute(0, 2, 3, 1)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recurrence", [1, 3])
def test_recurrences_share_their_weights(recurrence: int) -> None:
    block = shaken(CrissCross(6, 3, recurrence))
    x = torch.randn(1, 6, 3, 4)
    expected = naive_criss_cross(block, array(x[0].permute(1, 2, 0)))
    np.testing.assert_allclose(array(block(x)[0].permute(1, 2, 0)), expected, rtol=1e-3, atol=1e-3)
    assert sum(p.numel() for p in block.parameters()) == 2 * (6 * 2 + 2) + 6 * 6 + 6 + 1


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_starts_as_the_identity(name: str) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name]()
    x = torch.randn(2, 6, 4, 5)
    assert torch.equal(block(x), x)


def test_published_initialisation() -> None:
    torch.manual_seed(0)
    nonlocal_block = NonLocal(256, 2)
    for conv in (nonlocal_block.query, nonlocal_block.key, nonlocal_block.value):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not conv.bias.any()
    assert nonlocal_block.out[0].weight.any()  # the norm starts at 0, not what is before it
    mask = GlobalContext(4096, 4).mask
    assert mask.weight.std().item() == pytest.approx((2 / 4096) ** 0.5, rel=0.05)
    assert not mask.bias.any()


def test_criss_cross_reaches_row_and_column_and_then_all() -> None:
    for recurrence in (1, 2):
        block = shaken(CrissCross(6, 2, recurrence))
        x = torch.randn(1, 6, 4, 5, requires_grad=True)
        block(x)[0, :, 1, 3].sum().backward()
        reached = x.grad[0].abs().sum(0) > 0
        path = torch.zeros(4, 5, dtype=torch.bool)
        path[1], path[:, 3] = True, True
        assert torch.equal(reached, path if recurrence == 1 else torch.ones_like(path))


def test_the_own_pixel_counts_once() -> None:
    nothing = torch.zeros(1, 2, 3, 5)
    value = torch.zeros(1, 1, 3, 5)
    value[0, 0, 1, 2] = 1
    out = criss_cross(nothing, nothing, value)[0, 0]
    expected = torch.zeros(3, 5)
    expected[1], expected[:, 2] = 1 / 7, 1 / 7
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("attention", [attend, criss_cross])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(attention, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 8, 9, 13) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(query, key, value)
    assert torch.equal(mixed, attention(query, key, value))
    halves = [x.to(dtype) for x in (query, key, value)]
    out = attention(*halves)
    assert out.dtype == dtype
    assert torch.equal(out, attention(*(x.float() for x in halves)).to(dtype))
    # Products beyond the range of float16.
    far = attention(*(x * 300 for x in halves))
    assert torch.isfinite(far).all()


def test_the_global_mean_is_one_in_bfloat16() -> None:
    block = GlobalContext(4, 1)
    seen = []
    block.transform.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.ones(1, 4, 63, 65)  # 4095 weights that bfloat16 cannot hold
    with torch.autocast("cpu", torch.bfloat16):
        block(x)
    torch.testing.assert_close(seen[0], torch.ones(1, 4, 1, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_modules_in_half_precision(name: str) -> None:
    block = shaken(BLOCKS[name]())
    x = torch.randn(2, 6, 5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x.bfloat16()).dtype == torch.bfloat16  # not widened by weights in float32
    half = block.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.isfinite(half).all()


def head_of(name: str, levels: tuple[int, ...] = (-1,)) -> ContextHead:
    return HEADS[name](SPECS, {"label": 3}, levels=levels, align_corners=False, dropout=0.1)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_fcn_with_the_block_inside(name: str) -> None:
    head = shaken(head_of(name))
    pyramid = [torch.randn(2, s.channels, 128 // s.stride, 96 // s.stride) for s in SPECS]
    first, block, second = head.convs
    assert isinstance(block, type(BLOCKS[name]()))
    x = pyramid[3]
    inside = block(first(x))
    assert (inside - first(x)).abs().amin(1).max() > 1e-3
    fine = head.join(torch.cat([x, second(inside)], 1))
    out = head(pyramid)
    assert len(out.decoder) == 1
    torch.testing.assert_close(out.decoder[0], fine)
    torch.testing.assert_close(out.outputs["label"], head.classifiers.convs["label"](fine))
    assert head.features == (FeatureSpec(32, 8),)
    assert head_of(name, (1, 3)).features == (FeatureSpec(8, 8),)


@pytest.mark.parametrize("name", HEADS)
def test_training_in_bfloat16(name: str) -> None:
    head = head_of(name)
    for parameter in head.parameters():
        if not parameter.any():
            nn.init.constant_(parameter, 0.5)
    x = torch.randn(2, 6, 3, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = head([x] * 4).outputs["label"]
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_one_pixel_of_one_image_cannot_train(name: str) -> None:
    head = head_of(name)
    with pytest.raises(HardpixError, match=r"batch of one image"):
        head([torch.randn(1, 6, 1, 1)] * 4)
    assert torch.isfinite(head([torch.randn(2, 6, 1, 1)] * 4).outputs["label"]).all()
    assert torch.isfinite(head.eval()([torch.randn(1, 6, 1, 1)] * 4).outputs["label"]).all()


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("reduction", [0, 9])
def test_a_reduction_that_cannot_be(name: str, reduction: int) -> None:
    build = partial(HEADS[name], reduction=reduction)
    with pytest.raises(ConfigError, match=rf"head\.reduction={reduction}: .* head\.channels=8"):
        build(SPECS, {"label": 3}, levels=[-1], align_corners=False, dropout=0.1)


def conv(inputs: int, outputs: int, side: int = 1, *, bias: bool = False, norm: bool = False) -> int:
    return inputs * outputs * side**2 + outputs * bias + 2 * outputs * norm


# mmsegmentation's layers on ResNet-101: FCN's head, and the blocks on its 512 channels.
FCN = (
    conv(2048, 512, 3, norm=True)
    + conv(512, 512, 3, norm=True)
    + conv(2048 + 512, 512, 3, norm=True)
    + conv(512, 19, bias=True)
)
COUNTS = {
    "nonlocal": 3 * conv(512, 256, bias=True) + conv(256, 512, norm=True),
    "gcnet": conv(512, 1, bias=True) + conv(512, 128, bias=True) + 2 * 128 + conv(128, 512, bias=True),
    "ccnet": 2 * conv(512, 64, bias=True) + conv(512, 512, bias=True) + 1,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_of_the_published_heads(name: str) -> None:
    head = make(compose([f"head={name}"]).head)(R101_D8, {"label": 19}, align_corners=True)
    assert sum(p.numel() for p in head.parameters()) == FCN + COUNTS[name]
