"""Global attention upsampling against eq. (5.6) written out pixel by pixel, and the branches made of it."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hardpix.models import GAU, ConvGroupNorm, DetailBranch, ErrorBranch, GAUDecoderHead, choose_skips
from hardpix.types import ConfigError, FeatureSpec

EPS = 1e-5


def shaken(module: nn.Module) -> nn.Module:
    """Norm layers that are not the identity."""
    torch.manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, nn.GroupNorm):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    return module


def conv(x, weight, stride=1):
    """x [c, h, w], weight [o, c, k, k], zeros around; a pixel at a time."""
    side = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (side // 2, side // 2), (side // 2, side // 2)))
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    out = np.zeros((len(weight), height, width))
    for i in range(height):
        for j in range(width):
            window = padded[:, i * stride : i * stride + side, j * stride : j * stride + side]
            out[:, i, j] = (weight * window).sum((1, 2, 3))
    return out


def group_norm(x, groups, weight, bias):
    out, per = np.zeros_like(x), len(x) // groups
    for g in range(groups):
        part = x[g * per : (g + 1) * per]
        out[g * per : (g + 1) * per] = (part - part.mean()) / np.sqrt(part.var() + EPS)
    return out * weight[:, None, None] + bias[:, None, None]


def enlarge(x, size, align_corners):
    """Bilinear, a pixel at a time."""
    out = np.zeros((len(x), *size))
    for i in range(size[0]):
        for j in range(size[1]):
            place = []
            for at, new, old in ((i, size[0], x.shape[1]), (j, size[1], x.shape[2])):
                if align_corners:
                    p = at * (old - 1) / (new - 1) if new > 1 else 0.0
                else:
                    p = max((at + 0.5) * old / new - 0.5, 0.0)
                low = min(int(p), old - 1)
                place.append((low, min(low + 1, old - 1), p - low))
            (y0, y1, fy), (x0, x1, fx) = place
            top = x[:, y0, x0] * (1 - fx) + x[:, y0, x1] * fx
            bottom = x[:, y1, x0] * (1 - fx) + x[:, y1, x1] * fx
            out[:, i, j] = top * (1 - fy) + bottom * fy
    return out


def slow(gau: GAU, high, low, attention, align_corners):
    """(5.6) for one image."""
    p = {name: value.detach().double().numpy() for name, value in gau.named_parameters()}
    groups = math.gcd(32, len(p["up.1.bias"]))
    up = enlarge(high, low.shape[1:], align_corners)  # enlarged first, as the equation says
    up = group_norm(conv(up, p["up.0.weight"]), groups, p["up.1.weight"], p["up.1.bias"])
    own = group_norm(conv(low, p["low.0.weight"]), groups, p["low.1.weight"], p["low.1.bias"])
    vector = conv(high.mean((1, 2), keepdims=True), p["means.0.weight"])
    groups = groups // 2 if groups == len(vector) else groups
    vector = group_norm(vector, groups, p["means.1.weight"], p["means.1.bias"])
    weight = 1 / (1 + np.exp(-vector)) if attention == "sigmoid" else np.maximum(vector, 0)
    return np.maximum(up + own * weight, 0)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("attention", ["relu", "sigmoid"])
@pytest.mark.parametrize("channels", [8, 12, 64])
def test_gau_is_its_equation(attention, align_corners, channels) -> None:
    torch.manual_seed(0)
    gau = shaken(GAU(5, 3, channels, attention=attention, align_corners=align_corners))
    high, low = torch.randn(2, 5, 3, 4), torch.randn(2, 3, 5, 7)
    out = gau(high, low)
    expected = [
        slow(gau, h, x, attention, align_corners)
        for h, x in zip(high.double().numpy(), low.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(out.detach().numpy(), np.stack(expected), rtol=1e-3, atol=1e-4)
    assert (out == 0).any()
    assert (out > 0).any()


def test_each_norm_has_32_groups_at_the_papers_widths() -> None:
    gau = GAU(256, 1024, 256, attention="relu", align_corners=True)
    norms = [m for m in gau.modules() if isinstance(m, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [32, 32, 32]
    assert all(m.bias is None for m in gau.modules() if isinstance(m, nn.Conv2d))
    assert ConvGroupNorm(3, 48, 3)[1].num_groups == 16
    assert isinstance(ConvGroupNorm(3, 48, 3)[2], nn.ReLU)


@pytest.mark.parametrize("channels", [1, 2, 8, 32, 256])
def test_one_image_and_one_pixel_are_enough(channels) -> None:
    """Global means of a batch of one: the case in which batch norm fails. An image alone equals itself in a batch."""
    # In double precision: groups of next to equal values are divided by next to nothing, and rounding with them.
    gau = GAU(6, 4, max(channels, 2), attention="sigmoid", align_corners=True).double().train()
    high, low = torch.randn(2, 6, 1, 1).double(), torch.randn(2, 4, 3, 3).double()
    together = gau(high, low)
    torch.testing.assert_close(gau(high[:1], low[:1]), together[:1])
    weights = gau.weigh(high)
    assert weights.shape == (2, max(channels, 2), 1, 1)
    assert (weights[0] - weights[1]).abs().sum() > 0  # not normalised to nothing


def test_attention_is_of_known_names_only() -> None:
    with pytest.raises(ConfigError, match="attention=tanh: must be relu or sigmoid"):
        GAU(4, 4, 4, attention="tanh", align_corners=False)


def test_half_precision_means_do_not_overflow() -> None:
    gau = GAU(4, 4, 8, attention="relu", align_corners=False).half()
    with torch.no_grad():
        weights = gau.weigh(torch.full((1, 4, 64, 64), 1000.0).half())
    assert torch.isfinite(weights).all()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = GAU(4, 4, 8, attention="relu", align_corners=False)(
            torch.randn(1, 4, 2, 2), torch.randn(1, 4, 4, 4)
        )
    assert torch.isfinite(mixed).all()


ERROR = partial(ErrorBranch, channels=32, attention="relu", align_corners=False)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 50)])
def test_error_branch_has_the_size_of_the_probabilities(size) -> None:
    branch = ERROR(5, 7)
    quarter = tuple(-(-side // 4) for side in size)
    deep = tuple(-(-side // 16) for side in size)
    out = branch(torch.rand(2, 5, *quarter), torch.randn(2, 3, *size), torch.randn(2, 7, *deep))
    assert out.shape == (2, 1, *quarter)
    odd = branch(torch.rand(1, 5, 9, 9), torch.randn(1, 3, 64, 64), torch.randn(1, 7, 4, 4))
    assert odd.shape == (1, 1, 9, 9)


def test_error_branch_is_wired_as_drawn() -> None:
    branch = shaken(ERROR(5, 7))
    nn.init.normal_(branch.classifier.weight)
    probability, image, high = torch.rand(1, 5, 5, 6), torch.randn(1, 3, 17, 23), torch.randn(1, 7, 2, 3)
    p = {name: value.detach().double().numpy() for name, value in branch.named_parameters()}

    def layer(name: str, x, stride: int = 1):
        groups = math.gcd(32, len(p[f"{name}.1.bias"]))
        y = conv(x, p[f"{name}.0.weight"], stride)
        return np.maximum(group_norm(y, groups, p[f"{name}.1.weight"], p[f"{name}.1.bias"]), 0)

    seen = layer("image.1", layer("image.0", image[0].double().numpy(), 2), 2)
    low = np.concatenate([layer("probability", probability[0].double().numpy()), seen])
    x = slow(branch.block.gau, high[0].double().numpy(), low, "relu", False)
    x = layer("block.convs.1", layer("block.convs.0", x))
    expected = conv(x, p["classifier.weight"]) + p["classifier.bias"][:, None, None]
    out = branch(probability, image, high)[0].detach().numpy()
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)


def test_error_branch_starts_from_four_errors_in_a_hundred() -> None:
    branch = ERROR(5, 7)
    assert branch.classifier.bias.item() == pytest.approx(-3.18, abs=5e-3)
    assert branch.classifier.bias.sigmoid().item() == pytest.approx(0.04)
    widths = [m.out_channels for m in ErrorBranch(19, 256, channels=128, attention="relu", align_corners=True).modules()
              if isinstance(m, nn.Conv2d)]  # fmt: skip
    assert widths == [64, 32, 64, 128, 128, 128, 128, 128, 1]
    with pytest.raises(ConfigError, match="multiple of 4"):
        ErrorBranch(5, 7, channels=6, attention="relu", align_corners=False)


HIGH, SKIPS = FeatureSpec(16, 7), tuple(map(FeatureSpec, (16, 8, 4), (5, 4, 3)))


def detail() -> DetailBranch:
    return shaken(DetailBranch(HIGH, SKIPS, 6, channels=8, attention="relu", align_corners=True))


def maps(size: tuple[int, int], batch: int = 1) -> tuple[Tensor, list[Tensor]]:
    sizes = [[-(-side // spec.stride) for side in size] for spec in SKIPS]
    skips = [torch.randn(batch, s.channels, *at) for s, at in zip(SKIPS, sizes, strict=True)]
    return torch.randn(batch, HIGH.channels, *sizes[0]), skips


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (16, 16)])
def test_detail_branch_ends_at_the_finest_skip(size) -> None:
    high, skips = maps(size, batch=2)
    branch = detail()
    out = branch(high, skips)
    assert out.shape == (2, 6, *skips[2].shape[-2:])
    x = branch.coarse(high, skips)
    assert x.shape == (2, 8, *skips[1].shape[-2:])
    torch.testing.assert_close(branch.fine(x, skips[2]), out)


def test_detail_branch_is_three_blocks_of_an_attention_and_two_convolutions() -> None:
    branch = detail()
    high, skips = maps((33, 47))
    x = high
    for block, skip in zip(branch.blocks, skips, strict=True):
        x = block.gau(x, skip)
        assert [conv[0].kernel_size for conv in block.convs] == [(3, 3), (3, 3)]
        for layer in block.convs:
            x = torch.relu(layer[1](layer[0](x)))
    torch.testing.assert_close(branch(high, skips), branch.classifier(x))
    branch(high, skips).square().sum().backward()
    assert all(p.grad is not None for p in branch.parameters())


@pytest.mark.parametrize(
    ("strides", "chosen"),
    [
        ((4, 8, 16, 32), (2, 1, 0)),
        ((4, 8, 16, 16), (2, 1, 0)),
        ((4, 8, 8, 8), (2, 1, 0)),
        ((16, 16, 16, 16), (2, 1, 0)),
        ((2, 4, 8, 16, 32), (3, 2, 1)),
        ((4, 4, 8, 16), (3, 2, 0)),
        ((4, 8), (1, 1, 0)),
        ((8, 16, 32), (2, 1, 0)),
        ((16,), (0, 0, 0)),
        ((2,), (0, 0, 0)),
    ],
)
def test_skips_of_any_pyramid(strides, chosen) -> None:
    features = {f"enc{i}": FeatureSpec(stride, 8) for i, stride in enumerate(strides)}
    features |= {"dec0": FeatureSpec(4, 8), "dec1": FeatureSpec(16, 8)}
    assert choose_skips(features) == tuple(f"enc{i}" for i in chosen)


def test_gau_decoder_is_the_detail_branch_on_the_aspp_output() -> None:
    torch.manual_seed(0)
    specs = tuple(map(FeatureSpec, (4, 8, 16, 16), (3, 4, 5, 6)))
    head = GAUDecoderHead(
        specs,
        {"label": 2},
        channels=8,
        dilations=(1, 2),
        project_kernel=3,
        attention="relu",
        levels=[-1],
        align_corners=True,
        dropout=0.1,
    ).eval()
    assert head.features == tuple(map(FeatureSpec, (4, 8, 16, 16), (8, 8, 8, 8)))
    branch = DetailBranch(
        head.features[-1],
        [specs[2], specs[1], specs[0]],
        2,
        channels=8,
        attention="relu",
        align_corners=True,
    )
    kept = {k: v for k, v in branch.blocks.state_dict().items() if k.endswith(("_mean", "_var", "batches"))}
    branch.blocks.load_state_dict(head.blocks.state_dict() | kept)
    branch.classifier.load_state_dict(head.classifiers.convs["label"].state_dict())
    pyramid = [torch.randn(2, s.channels, 48 // s.stride, 64 // s.stride) for s in specs]
    out = head(pyramid)
    deep = head.aspp(pyramid[3])
    torch.testing.assert_close(out.decoder[3], deep)
    torch.testing.assert_close(out.decoder[2], branch.blocks[0](deep, pyramid[2]))
    torch.testing.assert_close(out.decoder[1], branch.coarse(deep, [pyramid[2], pyramid[1]]))
    torch.testing.assert_close(out.outputs["label"], branch(deep, [pyramid[2], pyramid[1], pyramid[0]]))
