"""The dense prediction cell: every branch's kernel, rate and input, written out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.compose import compose
from hardpix.models import DPCHead
from hardpix.models.deeplab import DensePredictionCell
from hardpix.types import ConfigError, FeatureSpec

SPECS = tuple(map(FeatureSpec, (4, 8, 16, 16), (3, 4, 5, 6)))


def shaken(module: nn.Module) -> nn.Module:
    """In eval, with norm layers that are not the identity."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    return module.eval()


def published(**changes: object) -> dict[str, object]:
    head = compose(["head=dpc"]).head
    return {
        key: [list(r) if key == "rates" else r for r in head[key]] if key in ("rates", "reads") else head[key]
        for key in ("rates", "reads", "rate_multiplier")
    } | changes


def norm_relu(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    y = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return y.clamp(min=0)


def separable(branch: nn.Module, x: Tensor, down: int, across: int) -> Tensor:
    """Depthwise 3x3 whose taps lie ``down`` and ``across`` apart, by shifted copies; then 1x1."""
    weight, height, width = branch[0][0].weight, *x.shape[-2:]
    padded = F.pad(x, (across, across, down, down))
    y = torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            shifted = padded[..., i * down : i * down + height, j * across : j * across + width]
            y = y + shifted * weight[:, 0, i, j][:, None, None]
    y = norm_relu(branch[0][1], y)
    return norm_relu(branch[1][1], torch.einsum("oc,bchw->bohw", branch[1][0].weight[..., 0, 0], y))


@pytest.mark.parametrize("times", [1, 2])
def test_the_published_cell(times: int) -> None:
    cell = shaken(DensePredictionCell(6, 8, **published(rate_multiplier=times), dropout=0.1))
    x = torch.randn(2, 6, 23, 29)
    b = cell.branches
    first = separable(b[0], x, 1 * times, 6 * times)
    second = separable(b[1], first, 18 * times, 15 * times)
    third = separable(b[2], second, 6 * times, 3 * times)
    fourth = separable(b[3], first, 1 * times, 1 * times)
    fifth = separable(b[4], first, 6 * times, 21 * times)
    joined = torch.cat([first, second, third, fourth, fifth], 1)
    weight = cell.fuse[0].weight
    assert weight.shape == (8, 40, 1, 1)
    expected = norm_relu(cell.fuse[1], torch.einsum("oc,bchw->bohw", weight[..., 0, 0], joined))
    torch.testing.assert_close(cell(x), expected, rtol=1e-4, atol=1e-4)


def test_the_cell_drops_single_elements_of_the_joined_branches() -> None:
    cell = DensePredictionCell(6, 8, **published(), dropout=0.5).train()
    seen: list[Tensor] = []
    cell.fuse.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    cell(torch.randn(2, 6, 23, 29))
    gone = (seen[0] == 0).flatten(2).float().mean(2)
    assert (gone < 1).all()  # no channel as a whole, and all of them in part
    assert (gone > 0.3).all()


def test_the_head_is_deeplabv3plus_with_another_context() -> None:
    head = shaken(
        DPCHead(
            SPECS,
            {"label": 3},
            channels=8,
            low_channels=2,
            **published(),
            cell_dropout=0.1,
            levels=[-1],
            align_corners=True,
            dropout=0.1,
        )
    )
    pyramid = [torch.randn(2, s.channels, 64 // s.stride, 96 // s.stride) for s in SPECS]
    deep = head.cell(pyramid[3])
    up = F.interpolate(deep, (16, 24), mode="bilinear", align_corners=True)
    fine = head.refine(torch.cat([up, head.low(pyramid[0])], 1))
    out = head(pyramid)
    torch.testing.assert_close(out.decoder[1], deep)
    torch.testing.assert_close(out.decoder[0], fine)
    torch.testing.assert_close(out.outputs["label"], head.classifiers.convs["label"](fine))
    assert head.features == (FeatureSpec(4, 8), FeatureSpec(16, 8))


@pytest.mark.parametrize(
    "changes",
    [
        {"reads": [-1, 0, 2, 0, 0]},
        {"reads": [0, 0, 1, 0, 0]},
        {"reads": [-1, 0, 1, 0, -2]},
        {"reads": [-1, 0]},
        {"rates": [[1, 6, 1]], "reads": [-1]},
        {"rates": [], "reads": []},
    ],
)
def test_a_cell_that_cannot_be(changes) -> None:
    with pytest.raises(ConfigError, match=r"head\.reads"):
        DensePredictionCell(6, 8, **published(**changes), dropout=0.1)
