"""TimmBackbone: levels, strides and sizes are what specs says; what cannot be done is refused in a sentence."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from torch import nn

from hardpix.models import TimmBackbone, convert_sync_batch_norm
from hardpix.types import ConfigError, FeatureSpec

SWIN = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 3, 4), "window_size": 4}
FAMILIES = {
    "resnet": ("resnet10t", {}, None),
    "dilated_resnet": ("resnet10t", {}, 8),
    "convnext": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}, None),
    "dilated_convnext": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}, 16),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, None),
    "mobilenetv3": ("mobilenetv3_small_050", {}, None),
    "hrnet": ("hrnet_w18_small", {"feature_location": ""}, None),
    "vit": ("test_vit", {}, None),
}


def build(name: str, options: dict | None = None, output_stride: int | None = None, **given) -> TimmBackbone:
    keys = {"pretrained": False} | given
    return TimmBackbone(name, options=options or {}, output_stride=output_stride, **keys)


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> TimmBackbone:
    return build(*FAMILIES[request.param])


@pytest.mark.parametrize("size", [(65, 97), (64, 96), (50, 33)])
def test_maps_measure_what_specs_says(backbone: TimmBackbone, size: tuple[int, int]) -> None:
    backbone.eval()
    maps = backbone(torch.randn(1, 3, *size))
    expected = [(1, s.channels, ceil(size[0] / s.stride), ceil(size[1] / s.stride)) for s in backbone.specs]
    assert [tuple(x.shape) for x in maps] == expected
    assert all(torch.isfinite(x).all() for x in maps)


def test_the_stem_is_no_level_and_there_are_four(backbone: TimmBackbone) -> None:
    assert len(backbone.specs) == 4
    assert min(spec.stride for spec in backbone.specs) >= 4
    assert list(backbone.specs) == sorted(backbone.specs, key=lambda spec: spec.stride)


def test_maps_are_where_the_image_is(backbone: TimmBackbone) -> None:
    """A change in the lower left corner moves the lower left of the finest map most: no axis is swapped."""
    backbone.eval()
    image = torch.zeros(1, 3, 64, 96)
    changed = image.clone()
    changed[..., 48:, :16] = torch.randn(3, 16, 16)
    with torch.no_grad():
        moved = (backbone(changed)[0] - backbone(image)[0]).abs().mean(1)[0]
    h, w = moved.shape
    assert moved[-(h // 4) :, : w // 6].mean() > 2 * moved[: h // 2, w // 2 :].mean()


@pytest.mark.parametrize(
    ("family", "strides"),
    [
        ("resnet", [4, 8, 16, 32]),
        ("dilated_resnet", [4, 8, 8, 8]),
        ("dilated_convnext", [4, 8, 16, 16]),
        ("vit", [16] * 4),
    ],
)
def test_strides(family: str, strides: list[int]) -> None:
    assert [spec.stride for spec in build(*FAMILIES[family]).specs] == strides


def test_specs_of_the_dilated_resnet_of_the_papers() -> None:
    """Strides (1, 2, 1, 1) and dilations (1, 1, 2, 4), halved in a dilated stage's first block; a 3x3 stem."""
    backbone = build("resnet50c", output_stride=8)
    assert backbone.specs == tuple(map(FeatureSpec, (4, 8, 8, 8), (256, 512, 1024, 2048)))
    net = backbone.net
    assert [net[f"layer{i}"][0].conv2.dilation[0] for i in (1, 2, 3, 4)] == [1, 1, 1, 2]
    assert [net[f"layer{i}"][1].conv2.dilation[0] for i in (1, 2, 3, 4)] == [1, 1, 2, 4]
    assert [m.kernel_size for m in net["conv1"] if isinstance(m, nn.Conv2d)] == [(3, 3)] * 3


def test_a_769_crop_keeps_its_97_cells() -> None:
    maps = build("resnet10t", output_stride=8).eval()(torch.zeros(1, 3, 769, 33))
    assert [x.shape[2] for x in maps] == [193, 97, 97, 97]


def test_padding_adds_nothing_to_an_image_that_fits() -> None:
    backbone = build(*FAMILIES["convnext"]).eval()
    assert backbone.multiple == 32
    image = torch.randn(1, 3, 64, 96)
    for ours, own in zip(backbone(image), backbone.net(image), strict=True):
        torch.testing.assert_close(ours, own)


def test_padding_is_zero_on_the_right_and_bottom() -> None:
    backbone = build(*FAMILIES["convnext"]).eval()
    image = torch.randn(1, 3, 40, 70)
    whole = torch.zeros(1, 3, 64, 96)
    whole[..., :40, :70] = image
    for ours, own in zip(backbone(image), backbone(whole), strict=True):
        torch.testing.assert_close(ours, own[..., : ours.shape[2], : ours.shape[3]])


def test_levels_can_be_chosen() -> None:
    vit = build("test_vit", {"out_indices": [1, 5]})
    assert len(vit.specs) == 2
    stem = build("resnet10t", {"out_indices": [0, 4]})
    assert [spec.stride for spec in stem.specs] == [2, 32]


def test_plain_vit_levels_are_evenly_spaced() -> None:
    """Blocks 3, 6, 9 and 12 of 12, by their number from 1."""
    backbone = build("vit_tiny_patch16_224", {"embed_dim": 24, "num_heads": 3})
    assert list(backbone.net.out_indices) == [2, 5, 8, 11]


def test_more_input_channels() -> None:
    assert build("resnet10t", in_channels=5).eval()(torch.zeros(1, 5, 64, 64))[0].shape[1] == 64


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "resnet5O"}, ["backbone.name=resnet5O", "resnet50"]),
        ({"name": "resnet18.no_tag"}, ["resnet18.no_tag"]),
        ({"name": "swin_tiny_patch4_window7_224", "output_stride": 8}, ["output_stride=8", "swin", "32"]),
        ({"name": "test_vit", "output_stride": 8}, ["output_stride=8", "test_vit"]),
        ({"name": "hrnet_w18_small", "output_stride": 8}, ["output_stride=8", "hrnet"]),
        ({"name": "resnet10t", "output_stride": 12}, ["output_stride=12"]),
        ({"name": "resnet10t", "options": {"colour": 1}}, ["backbone.options", "colour"]),
        ({"name": "levit_128"}, ["levit_128", "any size"]),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_refusals_are_one_sentence(given: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build(**given)
    message = str(error.value)
    assert all(word in message for word in words)
    assert "\n" not in message


def test_frozen_batch_norm_keeps_statistics_and_trains_scale() -> None:
    backbone = build("test_resnet", freeze_bn=True).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k}
    sum(x.square().mean() for x in backbone(3 + torch.randn(2, 3, 64, 64))).backward()
    after = backbone.state_dict()
    assert before
    assert all(torch.equal(after[k], v) for k, v in before.items())
    norm = next(m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.weight.grad is not None
    assert norm.weight.grad.abs().sum() > 0
    assert backbone.training


def test_batch_norm_statistics_move_by_default() -> None:
    backbone = build("test_resnet").train()
    before = backbone.net["bn1"].running_mean.clone()
    backbone(3 + torch.randn(2, 3, 64, 64))
    assert not torch.equal(before, backbone.net["bn1"].running_mean)


def test_synchronised_batch_norm_keeps_fused_activations() -> None:
    """PyTorch's own conversion drops the activation of timm's norm-and-activation layers."""
    backbone = build("mobilenetv3_small_050").eval()
    image = torch.randn(1, 3, 64, 64)
    before = backbone(image)
    synced = convert_sync_batch_norm(backbone).eval()
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synced.modules())
    for a, b in zip(before, synced(image), strict=True):
        torch.testing.assert_close(a, b)
