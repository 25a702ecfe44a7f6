"""Cross-stitch: the plain network bit for bit at 0 and 1, eq. (6.7) by hand, a fixed stream that stays fixed."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from hardpix.models import CrossStitch, PSPHead, Segmenter, SegNetEncoder, SegNetHead, TimmBackbone
from hardpix.models.cross_stitch import Unit
from hardpix.types import ConfigError

SWIN = {
    "embed_dim": 8,
    "depths": (1, 2, 1, 1),
    "num_heads": (1, 2, 2, 2),
    "window_size": 4,
    "drop_path_rate": 0.5,
}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24), "drop_path_rate": 0.5}
SEGNET = partial(
    SegNetEncoder, pretrained=False, widths=[4, 6, 8, 10, 12], convs=[2, 1, 1, 1, 1], freeze_bn=False
)
BACKBONES = {
    "segnet": SEGNET,
    "resnet": partial(TimmBackbone, "test_resnet", pretrained=False, options={"zero_init_last": False}),
    "dilated_resnetv2": partial(TimmBackbone, "resnetv2_18", pretrained=False, output_stride=8, options={
        "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_chs": 8,
    }),  # timm's pre-activation
    "convnext": partial(TimmBackbone, "convnext_atto", pretrained=False, options=CONVNEXT),  # padded to a multiple
    "swin": partial(TimmBackbone, "swin_tiny_patch4_window7_224", pretrained=False, options=SWIN),  # channels last
}  # fmt: skip
HEADS = {"segnet": partial(SegNetHead, convs=[2, 1, 1, 1, 1])}
PSP = partial(PSPHead, channels=8, pool_sizes=(1, 2), levels=[0, -1], dropout=0.0)
PLAIN = {"align_corners": False, "aux_level": 2, "aux_channels": 8, "aux_dropout": 0.0}


def plain(family: str) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(BACKBONES[family], HEADS.get(family, PSP), {"label": 3}, **PLAIN)


def stitched(family: str, **given) -> CrossStitch:
    torch.manual_seed(0)
    options = {"init_own": 0.9, "init_other": 0.1, "per_channel": False, **given}
    model = CrossStitch(BACKBONES[family], HEADS.get(family, PSP), {"label": 3}, **PLAIN, **options)
    torch.manual_seed(1)
    for value in model.backbone.fixed.state_dict().values():  # the streams differ in all they know
        if value.is_floating_point():
            value.add_(0.05 * torch.rand_like(value))
    return model


def image() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(2, 3, 33, 50)


@pytest.mark.parametrize(
    ("family", "per_channel"), [*((family, False) for family in BACKBONES), ("segnet", True), ("swin", True)]
)
@pytest.mark.parametrize("training", [True, False])
def test_zero_and_one_are_the_plain_network_bit_for_bit(
    family: str, training: bool, per_channel: bool
) -> None:
    """Outputs, gradients and running statistics; the other stream has other weights."""
    a, b = plain(family), stitched(family, init_own=1.0, init_other=0.0, per_channel=per_channel)
    for name, value in a.state_dict().items():
        torch.testing.assert_close(
            b.state_dict()[name.replace("backbone.", "backbone.own.")], value, rtol=0, atol=0
        )
    outs = []
    for model in (a, b):
        model.train(training)
        torch.manual_seed(3)  # of drop path
        out = model(image())
        x = [out.outputs["label"], *out.features.values(), *out.aux.values()]
        sum((y * y).mean() for y in x).backward()
        outs.append(x)
    for mine, theirs in zip(*outs, strict=True):
        assert torch.equal(mine, theirs)
    grads = {n.replace("backbone.own.", "backbone."): p.grad for n, p in b.named_parameters()}
    for name, p in a.named_parameters():
        assert (p.grad is None) == (grads[name] is None), name
        assert p.grad is None or torch.equal(p.grad, grads[name]), name
    for name, value in a.state_dict().items():
        assert torch.equal(b.state_dict()[name.replace("backbone.", "backbone.own.")], value), name


@pytest.mark.parametrize("family", BACKBONES)
def test_the_fixed_stream_gives_and_never_learns(family: str) -> None:
    model = stitched(family).train()
    before = {k: v.clone() for k, v in model.backbone.fixed.state_dict().items()}
    groups = model.parameter_groups()
    optimizer = torch.optim.SGD([p for g in groups.values() for p in g], lr=0.01, weight_decay=0.1)
    for _ in range(2):
        model.eval().train()
        assert not any(module.training for module in model.backbone.fixed.modules())
        assert model.backbone.own.training
        out = model(image())
        optimizer.zero_grad()
        (out.outputs["label"].square().mean() + out.aux["enc2"].square().mean()).backward()
        for unit in model.backbone.units:
            assert unit.other.grad.abs().min() > 0
            assert unit.own.grad.abs().min() > 0
        optimizer.step()
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.fixed.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.backbone.fixed.state_dict().items())
    assert any(unit.own.item() != pytest.approx(0.9, abs=1e-9) for unit in model.backbone.units)


def test_streams_are_mixed_after_the_first_four_poolings_of_segnet() -> None:
    """Eq. (6.7) stage by stage: the mixed map enters the own stream's next block, and only that."""
    model = stitched("segnet", init_own=0.7, init_other=0.4).eval()
    own, fixed = model.backbone.own, model.backbone.fixed
    x = y = image()
    maps, indices = [], []
    for level, (a, b) in enumerate(zip(own.blocks.values(), fixed.blocks.values(), strict=True)):
        x, place = nn.functional.max_pool2d(a(x), 2, ceil_mode=True, return_indices=True)
        y = nn.functional.max_pool2d(b(y), 2, ceil_mode=True)
        if level < 4:
            x = 0.7 * x + 0.4 * y
        maps.append(x)
        indices.append(place)
    pyramid = model.backbone(image())
    for mine, theirs in zip(pyramid, maps, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert all(torch.equal(a, b) for a, b in zip(pyramid.indices, indices, strict=True))
    assert len(model.backbone.units) == 4


@pytest.mark.parametrize("family", [f for f in BACKBONES if f != "segnet"])
def test_streams_are_mixed_after_every_level_of_timm(family: str) -> None:
    """At factors 0.7 and 0.4, level by level; maps as the plain stream gives them: cropped, channels first."""
    model = stitched(family, init_own=0.7, init_other=0.4).eval()
    own, fixed = model.backbone.own, model.backbone.fixed
    others = fixed.levels(image())
    seen = []

    def by_hand(level, x):
        assert x.shape == others[level].shape
        assert x.shape[1] == own.specs[level].channels
        seen.append(level)
        return 0.7 * x + 0.4 * others[level]

    expected = own(image(), by_hand)
    assert seen == [0, 1, 2, 3]
    got = model.backbone(image())
    for mine, theirs, spec in zip(got, expected, own.specs, strict=True):
        torch.testing.assert_close(mine, theirs)
        assert mine.shape == (2, spec.channels, -(-33 // spec.stride), -(-50 // spec.stride))
    first = own(image())[0]
    torch.testing.assert_close(
        got[0], 0.7 * first + 0.4 * fixed(image())[0]
    )  # the first level, before any stitch
    assert not torch.allclose(
        got[1], 0.7 * own(image())[1] + 0.4 * fixed(image())[1], atol=1e-4
    )  # then mixed input


def test_the_factors_gradients_are_sums_over_all_values() -> None:
    """dL/d own = sum(g x), dL/d other = sum(g y); per channel over the others."""
    torch.manual_seed(0)
    x, y, g = torch.randn(3, 2, 5, 4, 6).unbind(0)
    for channels, over in ((1, (0, 1, 2, 3)), (5, (0, 2, 3))):
        unit = Unit(channels, own=0.9, other=0.1)
        z = unit(x, y)
        torch.testing.assert_close(z, 0.9 * x + 0.1 * y)
        z.backward(g)
        torch.testing.assert_close(unit.own.grad.flatten(), (g * x).sum(over).reshape(-1))
        torch.testing.assert_close(unit.other.grad.flatten(), (g * y).sum(over).reshape(-1))


def test_channels_have_factors_of_their_own() -> None:
    model = stitched("segnet", per_channel=True)
    assert [unit.own.shape for unit in model.backbone.units] == [(c, 1, 1) for c in (4, 6, 8, 10)]
    with torch.no_grad():
        model.backbone.units[0].other.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0])[:, None, None])
    unit = model.backbone.units[0].eval()
    x, y = torch.randn(2, 1, 4, 3, 3).unbind(0)
    torch.testing.assert_close(unit(x, y)[:, 2], 0.9 * x[:, 2] + 5 * y[:, 2])
    torch.testing.assert_close(unit(x, y)[:, 1], 0.9 * x[:, 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sees_small_steps_of_a_factor(dtype: torch.dtype) -> None:
    """1.001 in bfloat16 would be 1."""
    unit = Unit(1, own=1.0, other=1.001)
    x, y = torch.full((2, 3, 64, 64), -1.0, dtype=dtype), torch.full((2, 3, 64, 64), 1.0, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        z = unit(x, y)
    assert z.dtype == dtype
    assert z.float().mean().item() == pytest.approx(0.001, rel=0.01)
    z.sum().backward()
    assert unit.other.grad.item() == 2 * 3 * 64 * 64


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "hrnet_w18_small", "test_vit"])
def test_families_without_stages_are_refused_by_name(name: str) -> None:
    backbone = TimmBackbone(name, pretrained=False, options={})
    for ask in (lambda: CrossStitch(lambda in_channels: backbone, PSP, {"label": 3}, **PLAIN, init_own=1.0,
                                    init_other=0.0, per_channel=False),
                lambda: backbone.freeze(["stem"])):  # fmt: skip
        with pytest.raises(ConfigError, match=name) as error:
            ask()
        assert "\n" not in str(error.value)


def test_both_streams_start_alike_and_share_nothing() -> None:
    torch.manual_seed(0)
    model = CrossStitch(
        SEGNET, HEADS["segnet"], {"label": 3}, **PLAIN, init_own=0.9, init_other=0.1, per_channel=False
    )
    own, fixed = model.backbone.own.state_dict(), model.backbone.fixed.state_dict()
    assert all(torch.equal(own[k], v) for k, v in fixed.items())
    assert not {v.data_ptr() for v in own.values()} & {v.data_ptr() for v in fixed.values()}
    reference = plain("segnet").state_dict()  # the same seed gives the plain network's weights
    for key, value in model.state_dict().items():
        if ".own." in key or not key.startswith("backbone"):
            assert key.startswith("backbone.units") or torch.equal(
                value, reference[key.replace("own.", "")]
            ), key


def test_groups_hold_every_parameter_once() -> None:
    model = stitched("resnet")
    groups = model.parameter_groups()
    assert list(groups) == ["backbone", "head", "aux_head", "stitch"]
    assert [p.numel() for p in groups["stitch"]] == [1] * 8
    listed = [id(p) for members in groups.values() for p in members]
    assert len(set(listed)) == len(listed)
    assert set(listed) == {id(p) for p in model.parameters() if p.requires_grad}


def test_scalars_are_the_factors() -> None:
    model = stitched("segnet")
    with torch.no_grad():
        model.backbone.units[2].other.fill_(-0.25)
    found = model.scalars()
    assert list(found) == [f"stitch/{i}/{name}" for i in (1, 2, 3, 4) for name in ("own", "other")]
    assert found["stitch/3/other"] == -0.25
    assert found["stitch/3/own"] == pytest.approx(0.9)
    model = stitched("segnet", per_channel=True)
    with torch.no_grad():
        model.backbone.units[0].own.copy_(torch.tensor([1.0, 1.0, 3.0, 3.0])[:, None, None])
    assert model.scalars()["stitch/1/own"] == 2
    assert model.scalars()["stitch/1/own/std"] == 1
    assert plain("segnet").scalars() == {}


@pytest.mark.parametrize("family", ["resnet", "segnet"])
def test_stages_of_the_own_stream_can_be_frozen(family: str) -> None:
    model = stitched(family)
    names = list(model.backbone.stages())
    expected = (
        [f"conv{i}" for i in range(1, 6)]
        if family == "segnet"
        else ["stem", *(f"stage{i}" for i in (1, 2, 3, 4))]
    )
    assert names == expected
    model.backbone.freeze(names[:2])
    before = {k: v.clone() for k, v in model.backbone.own.state_dict().items() if "running" in k}
    model.train()(image()).outputs["label"].square().mean().backward()
    prefixes = {
        "segnet": ("blocks.conv1.", "blocks.conv2."),
        "resnet": ("net.conv1.", "net.bn1.", "net.layer1."),
    }[family]
    for name, p in model.backbone.own.named_parameters():
        assert (not p.requires_grad) == name.startswith(prefixes), name
    for name, value in before.items():
        assert torch.equal(model.backbone.own.state_dict()[name], value) == name.startswith(prefixes), name


@pytest.mark.parametrize("family", ["convnext", "swin", "dilated_resnetv2"])
def test_stages_end_at_the_levels(family: str) -> None:
    stages = BACKBONES[family]().stages()
    assert list(stages) == ["stem", "stage1", "stage2", "stage3", "stage4"]
    modules = [id(m) for part in stages.values() for m in part]
    backbone = BACKBONES[family]()
    assert len(modules) == len(list(backbone.net.children()))
    deepest = [
        name for name, child in backbone.net.named_children() if child is backbone.stages()["stage4"][-1]
    ]
    assert deepest == [list(backbone.net.return_layers)[-1]]
