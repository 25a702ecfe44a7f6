"""RefineNet against its equations in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hardpix.models import RefineNetHead
from hardpix.types import ConfigError, FeatureSpec

Array = NDArray[np.float64]
SPECS = tuple(map(FeatureSpec, (4, 8, 16, 32), (3, 4, 5, 6)))
SIZES = ((9, 12), (5, 6), (3, 4), (2, 2))


def build(**given) -> RefineNetHead:
    torch.manual_seed(0)
    keys = {
        "widths": (4, 3, 2, 2),
        "crp_stages": 4,
        "crp_order": "pool_conv",
        "output_units": 3,
        "align_corners": False,
        "dropout": 0.5,
    }
    head = RefineNetHead(SPECS, {"label": 3}, **(keys | given)).double()
    for conv in (m for m in head.modules() if isinstance(m, nn.Conv2d)):
        nn.init.normal_(conv.weight, std=0.3)  # so that every term is seen
    return head


@pytest.fixture
def pyramid() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(1, s.channels, *size).double() for s, size in zip(SPECS, SIZES, strict=True)]


def conv3x3(conv: nn.Conv2d, x: Array) -> Array:
    weight = conv.weight.detach().numpy()
    h, w = x.shape[1:]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((weight.shape[0], h, w))
    for i in range(3):
        for j in range(3):
            out += np.einsum("oc,chw->ohw", weight[:, :, i, j], padded[:, i : i + h, j : j + w])
    return out if conv.bias is None else out + conv.bias.detach().numpy()[:, None, None]


def max_pool(x: Array) -> Array:
    out = np.empty_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            out[:, i, j] = x[:, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3].max((1, 2))
    return out


def enlarge(x: Array, size: tuple[int, ...]) -> Array:
    """Bilinear with the corners' centres aligned."""
    out = x
    for axis, n in ((1, size[0]), (2, size[1])):
        at = np.arange(n) * (x.shape[axis] - 1) / max(1, n - 1)
        low = np.minimum(at.astype(int), x.shape[axis] - 2)
        share = np.expand_dims(at - low, (0, 3 - axis))
        out = np.take(out, low, axis) * (1 - share) + np.take(out, low + 1, axis) * share
    return out


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def rcu(unit: nn.Module, x: Array) -> Array:
    assert unit.first.bias is not None
    assert unit.second.bias is None
    return x + conv3x3(unit.second, relu(conv3x3(unit.first, relu(x))))


def crp(pooling: nn.Module, x: Array, order: str) -> Array:
    term, out = x, x
    for conv in pooling.convs:
        assert conv.bias is None
        term = conv3x3(conv, max_pool(term)) if order == "pool_conv" else max_pool(conv3x3(conv, term))
        out = out + term
    return out


def block(module: nn.Module, x: Array, coarser: Array | None, order: str) -> Array:
    x = conv3x3(module.adapt[1], x)
    x = rcu(module.adapt[3], rcu(module.adapt[2], x))
    if coarser is not None:
        x = conv3x3(module.fuse_own, x) + enlarge(conv3x3(module.fuse_incoming, coarser), x.shape[1:])
    x = crp(module.pooling, relu(x), order)
    for unit in module.output:
        x = rcu(unit, x)
    return x


@pytest.mark.parametrize("order", ["pool_conv", "conv_pool"])
def test_the_cascade_follows_its_equations(pyramid: list[Tensor], order: str) -> None:
    head = build(crp_order=order).eval()
    out = head(pyramid)
    x: Array | None = None
    for i in (3, 2, 1, 0):
        x = block(head.blocks[3 - i], pyramid[i][0].numpy(), x, order)
        np.testing.assert_allclose(out.decoder[i].detach().numpy()[0], x, rtol=1e-9, atol=1e-9)
    assert x is not None
    logits = conv3x3(head.classifiers.convs["label"], x)
    np.testing.assert_allclose(out.outputs["label"].detach().numpy()[0], logits, rtol=1e-9, atol=1e-9)


def test_no_norm_layers_four_pools_and_three_output_units() -> None:
    head = build()
    kinds = {type(m) for m in head.modules()}
    assert not {nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm} & kinds
    assert [len(b.pooling.convs) for b in head.blocks] == [4] * 4
    assert [len(b.output) for b in head.blocks] == [3] * 4
    assert head.features == tuple(map(FeatureSpec, (4, 8, 16, 32), (2, 2, 3, 4)))


def test_dropout_is_on_the_two_deepest_inputs_and_before_the_classifier() -> None:
    head = build(dropout=0.4)
    assert [b.adapt[0].p for b in head.blocks] == [0.4, 0.4, 0, 0]
    assert type(head.classifiers.dropout) is nn.Dropout
    assert head.classifiers.dropout.p == 0.4


def test_parameters_at_the_released_widths() -> None:
    """Decoder for ResNet-50 to 152 and 40 classes, counted from the layer list: 9 weights per channel pair."""
    specs = tuple(map(FeatureSpec, (4, 8, 16, 32), (256, 512, 1024, 2048)))
    with torch.device("meta"):
        head = RefineNetHead(
            specs,
            {"label": 40},
            widths=(512, 256, 256, 256),
            crp_stages=4,
            crp_order="pool_conv",
            output_units=3,
            align_corners=False,
            dropout=0.5,
        )
    # A block of width c: five RCUs of two convolutions (one bias each) and four pooling convolutions.
    own = {c: 9 * c * c * (2 * 5 + 4) + 5 * c for c in (256, 512)}
    adapt = 9 * (2048 * 512 + (1024 + 512 + 256) * 256)
    fusion = 9 * (3 * 256 * 256 + (512 + 256 + 256) * 256)
    classifier = 9 * 256 * 40 + 40
    expected = own[512] + 3 * own[256] + adapt + fusion + classifier
    assert sum(p.numel() for p in head.parameters()) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [({"widths": (4, 4)}, "head.widths"), ({"crp_order": "conv"}, "pool_conv or conv_pool")],
)
def test_refusals(given: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(**given)
