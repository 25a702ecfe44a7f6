"""LR-ASPP: the gate's windows, joining level by level, torchvision's same gate, and sizes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.lraspp import LRASPPHead as TorchvisionHead

from hardpix.config.compose import compose
from hardpix.models import LRASPPHead, TimmBackbone
from hardpix.types import ConfigError, FeatureSpec

SPECS = tuple(map(FeatureSpec, (2, 4, 8), (3, 4, 5)))


@cache
def published() -> dict[str, object]:
    return {k: v for k, v in compose(["head=lraspp"]).head.items() if not k.startswith("_")}


def head(specs: tuple[FeatureSpec, ...] = SPECS, **changes) -> LRASPPHead:
    """In eval, with norm layers that are not the identity."""
    torch.manual_seed(0)
    keys = published() | {"channels": 6, "branch_channels": [2, 3], "window": 4, "step": [2, 3]} | changes
    model = LRASPPHead(specs, {"label": 2}, align_corners=False, **keys)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    return model.eval()


def layer(block: nn.Sequential, x: Tensor) -> Tensor:
    """relu(norm(conv(x))), from the definition and with LR-ASPP's epsilon."""
    norm, y = block[1], F.conv2d(x, block[0].weight)
    scale = norm.weight / (norm.running_var + 0.001).sqrt()
    return F.relu((y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None])


def windows(x: np.ndarray, window: int, step: tuple[int, int]) -> np.ndarray:
    """Means of whole windows only, each as large as the map allows."""
    tall, wide = min(window, x.shape[2]), min(window, x.shape[3])
    tops = range(0, x.shape[2] - tall + 1, step[0])
    lefts = range(0, x.shape[3] - wide + 1, step[1])
    return np.array(
        [[x[..., t : t + tall, s : s + wide].mean((2, 3)) for s in lefts] for t in tops]
    ).transpose(2, 3, 0, 1)


@pytest.mark.parametrize(
    ("size", "cells"), [((7, 10), (2, 3)), ((3, 10), (1, 3)), ((3, 2), (1, 1)), ((1, 1), (1, 1))]
)
def test_the_whole_head(size: tuple[int, int], cells: tuple[int, int]) -> None:
    model = head()
    sizes = (tuple(4 * s for s in size), tuple(2 * s for s in size), size)
    fine, middle, deep = pyramid = [
        torch.randn(2, spec.channels, *s) for spec, s in zip(SPECS, sizes, strict=True)
    ]
    means = torch.as_tensor(windows(deep.double().numpy(), 4, (2, 3)), dtype=torch.float32)
    assert means.shape[2:] == cells

    def enlarge(x: Tensor, to: tuple[int, ...]) -> Tensor:
        return F.interpolate(x, to, mode="bilinear", align_corners=False)

    gate = enlarge(1 / (1 + torch.exp(-F.conv2d(means, model.gate.weight))), size)
    y = F.conv2d(layer(model.deep, deep) * gate, model.project.weight, model.project.bias)
    maps = [y]
    for i, skip in ((1, middle), (0, fine)):
        y = torch.cat([enlarge(y, skip.shape[2:]), F.conv2d(skip, model.reduce[i].weight)], 1)
        y = layer(model.join[i], y)
        maps.insert(0, y)
    out = model(pyramid)
    torch.testing.assert_close(out.decoder, maps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        out.outputs["label"], model.classifiers.convs["label"](y), rtol=1e-4, atol=1e-5
    )
    assert model.features == tuple(FeatureSpec(spec.stride, 6) for spec in SPECS)


def test_the_published_windows_of_a_crop() -> None:
    """512x1024 at stride 8: one window down, four across; not a global average."""
    model = head(window=49, step=[16, 20])
    assert model._gate(torch.randn(1, 5, 64, 128)).shape == (1, 6, 1, 4)


def test_the_gate_is_torchvision_s() -> None:
    """On maps within one window, which torchvision's global average is then equal to."""
    theirs, model = TorchvisionHead(4, 5, 2, 6).eval(), head(window=49)
    theirs.cbr.load_state_dict(model.deep.state_dict())
    theirs.cbr[1].eps = 0.001
    theirs.scale[1].load_state_dict(model.gate.state_dict())
    x = torch.randn(2, 5, 9, 13)
    torch.testing.assert_close(model.deep(x) * model._gate(x), theirs.cbr(x) * theirs.scale(x))


def test_the_deepest_level_is_the_gated_one() -> None:
    """Of four levels the third is left out, and negative numbers count from the end."""
    model = head((*SPECS[:2], FeatureSpec(8, 9), FeatureSpec(16, 5)), levels=[0, 1, -1])
    assert model.levels == [0, 1, 3]
    assert (model.deep[0].in_channels, model.gate.in_channels) == (5, 5)
    assert [conv.in_channels for conv in model.reduce] == [3, 4]


@pytest.mark.parametrize("levels", [[0, 1], [0, 2, -1], [0, 1, 3], [0, 0, 1, 2]])
def test_levels_that_do_not_fit(levels: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"head\.levels"):
        head(levels=levels)


def test_a_pyramid_whose_last_level_is_finer() -> None:
    with pytest.raises(ConfigError, match="head=lraspp"):
        head(tuple(map(FeatureSpec, (4, 8, 4), (3, 4, 5))))


def test_published_size() -> None:
    """MobileNetV3-Large and 19 classes: mmsegmentation's layers, one by one (norm: two per channel)."""
    specs = tuple(map(FeatureSpec, (2, 4, 8), (16, 24, 960)))
    with torch.device("meta"):
        model = LRASPPHead(specs, {"label": 19}, align_corners=False, **published())
        theirs = TorchvisionHead(40, 960, 19, 128)
    layers = {
        "deep": 960 * 128 + 2 * 128,
        "gate": 960 * 128,
        "project": 128 * 128 + 128,
        "reduce": 16 * 32 + 24 * 64,
        "join": (128 + 32) * 128 + 2 * 128 + (128 + 64) * 128 + 2 * 128,
        "classifiers": 128 * 19 + 19,
    }
    counted = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    assert counted == layers
    assert sum(layers.values()) == 312_595
    shared = sum(p.numel() for part in (theirs.cbr, theirs.scale) for p in part.parameters())
    assert counted["deep"] + counted["gate"] == shared
    assert (model.window, model.step, model.levels) == (49, (16, 20), [0, 1, 2])


def test_the_configured_backbone() -> None:
    node = compose(["backbone=mobilenetv3_large_d8"]).backbone
    keys = {k: node[k] for k in ("name", "output_stride", "freeze_bn")}
    backbone = TimmBackbone(pretrained=False, options={"out_indices": list(node.options.out_indices)}, **keys)
    assert backbone.specs == tuple(map(FeatureSpec, (2, 4, 8), (16, 24, 960)))
    sizes = [tuple(x.shape[2:]) for x in backbone.eval()(torch.zeros(1, 3, 65, 97))]
    assert sizes == [(33, 49), (17, 25), (9, 13)]
