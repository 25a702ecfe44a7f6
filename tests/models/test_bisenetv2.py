"""BiSeNetV2 against its definition, its size against mmsegmentation's list of layers, its odd pyramid at its uses."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpix.config.compose import compose, validate
from hardpix.models import BiSeNetV2, Segmenter, choose_skips
from hardpix.models.bisenetv2 import ContextEmbedding, GatherExpansion, GuidedAggregation, Stem
from hardpix.models.layers import Concat
from hardpix.train.build import build, make
from hardpix.types import ConfigError, FeatureSpec, HardpixError

SMALL = {
    "detail_channels": [4, 5, 6],
    "semantic_channels": [4, 3, 5, 6],
    "layers": [2, 1, 2],
    "expansion": 3,
}
WHOLE = ["backbone=bisenetv2", "model=bisenetv2", "head=fcn", "head.channels=1024", "head.num_convs=1"]
WHOLE += ["head.concat_input=false"]


def small(**changes) -> BiSeNetV2:
    torch.manual_seed(0)
    return shaken(BiSeNetV2(**SMALL | {"align_corners": False, "freeze_bn": False} | changes))


def shaken(module: nn.Module) -> nn.Module:
    """In inference mode, with norms that change their input."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias, std=0.5)
    return module.eval()


def bn(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def layer(block: nn.Sequential, x: Tensor, *, stride: int = 1, depthwise: bool = False, relu: bool) -> Tensor:
    conv = block[0]
    assert conv.groups == (x.shape[1] if depthwise else 1)
    assert conv.bias is None
    y = bn(block[1], F.conv2d(x, conv.weight, None, stride, conv.weight.shape[-1] // 2, 1, conv.groups))
    return y.clamp(min=0) if relu else y


def test_stem() -> None:
    torch.manual_seed(0)
    stem, image = shaken(Stem(3, 4)), torch.randn(1, 3, 13, 18)
    x = layer(stem.first, image, stride=2, relu=True)
    left = layer(stem.convs[1], layer(stem.convs[0], x, relu=True), stride=2, relu=True)
    padded = F.pad(x, (1, 1, 1, 1), value=-torch.inf)
    right = padded.unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2))
    want = layer(stem.fuse, torch.cat([left, right], 1), relu=True)
    assert stem.convs[0][0].weight.shape == (2, 4, 1, 1)
    assert want.shape == (1, 4, 4, 5)
    torch.testing.assert_close(stem(image), want)


@pytest.mark.parametrize("stride", [1, 2])
def test_gather_and_expansion(stride: int) -> None:
    torch.manual_seed(0)
    unit = shaken(GatherExpansion(4, 4 if stride == 1 else 5, 3, stride=stride))
    x = torch.randn(2, 4, 7, 9)
    y, short = layer(unit.steps[0], x, relu=True), x
    if stride == 2:
        y = layer(unit.steps[1], y, stride=2, depthwise=True, relu=False)
        short = layer(unit.shortcut[0], x, stride=2, depthwise=True, relu=False)
        short = layer(unit.shortcut[1], short, relu=False)
    y = layer(unit.steps[-2], y, depthwise=True, relu=True)
    assert y.shape[1] == 12
    want = (layer(unit.steps[-1], y, relu=False) + short).clamp(min=0)
    torch.testing.assert_close(unit(x), want)
    assert (want == 0).any()  # the ReLU comes after the sum


def test_context_embedding() -> None:
    torch.manual_seed(0)
    unit, x = shaken(ContextEmbedding(4)), torch.randn(2, 4, 3, 5)
    mean = bn(unit.norm, x.sum((2, 3), keepdim=True) / 15)
    want = layer(unit.fuse, x + layer(unit.mean, mean, relu=True), relu=True)
    torch.testing.assert_close(unit(x), want)


@pytest.mark.parametrize("align_corners", [False, True])
def test_guided_aggregation(align_corners: bool) -> None:
    torch.manual_seed(0)
    unit = shaken(GuidedAggregation(3, align_corners=align_corners))
    detail, semantic = torch.randn(2, 3, 9, 13), torch.randn(2, 3, 3, 4)

    def up(x: Tensor) -> Tensor:
        return F.interpolate(x, (9, 13), mode="bilinear", align_corners=align_corners)

    def separable(blocks: nn.Sequential, x: Tensor) -> Tensor:
        y = layer(blocks[0], x, depthwise=True, relu=False)
        return F.conv2d(y, blocks[1].weight, blocks[1].bias)

    fine = separable(unit.detail, detail) / (1 + (-up(layer(unit.semantic_up, semantic, relu=False))).exp())
    down = F.pad(layer(unit.detail_down[0], detail, stride=2, relu=False), (1, 1, 1, 1))
    down = down.unfold(2, 3, 2).unfold(3, 3, 2).mean((-1, -2))  # padding counts in the mean
    coarse = down / (1 + (-separable(unit.semantic, semantic)).exp())
    want = layer(unit.fuse, fine + up(coarse), relu=True)
    torch.testing.assert_close(unit(detail, semantic), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (32, 64), (33, 65), (31, 200), (66, 99)])
def test_levels_of_any_image(size: tuple[int, int]) -> None:
    backbone = small()
    with torch.no_grad():
        pyramid = backbone(torch.randn(1, 3, *size))
    assert [spec.stride for spec in backbone.specs] == [4, 8, 16, 32, 8]
    assert [spec.channels for spec in backbone.specs] == [4, 3, 5, 6, 6]
    for x, spec in zip(pyramid, backbone.specs, strict=True):
        assert x.shape == (1, spec.channels, *(-(-side // spec.stride) for side in size))


def test_levels_are_the_semantic_stages_and_the_aggregation() -> None:
    backbone, image = small(), torch.randn(1, 3, 40, 56)
    x, want = image, []
    for stage in backbone.semantic.values():
        x = stage(x)
        want.append(x)
    want.append(
        backbone.aggregation(backbone.detail(image), backbone.context(x))
    )  # enc3 itself is before the context
    for got, expected in zip(backbone(image), want, strict=True):
        assert torch.equal(got, expected)
    assert [len(stage) for stage in backbone.detail] == [2, 3, 3]
    assert [len(backbone.semantic[f"stage{i}"]) for i in (2, 3, 4)] == [2, 1, 2]


def test_a_stitch_replaces_a_map_before_it_is_read() -> None:
    backbone, image = small(), torch.randn(1, 3, 40, 56)
    plain = backbone(image)
    for changed in range(5):
        seen: list[int] = []

        def stitch(level: int, x: Tensor, changed: int = changed, seen: list[int] = seen) -> Tensor:
            seen.append(level)
            return x + 1 if level == changed else x

        got = backbone(image, stitch)
        assert seen == [0, 1, 2, 3, 4]
        assert [torch.equal(a, b) for a, b in zip(got, plain, strict=True)] == [
            level < changed for level in range(5)
        ]


def test_stages_can_be_frozen_and_are_all_there_is() -> None:
    backbone = small().train()
    stages = backbone.stages()
    assert list(stages) == ["detail", "stage1", "stage2", "stage3", "stage4", "context", "aggregation"]
    members = [p for modules in stages.values() for module in modules for p in module.parameters()]
    assert len(members) == len({id(p) for p in members}) == len(list(backbone.parameters()))
    backbone.freeze(["detail", "stage1"])
    before = {n: b.clone() for n, b in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))[-1].square().sum().backward()
    for name, p in backbone.named_parameters():
        still = name.startswith(("detail.", "semantic.stage1."))
        assert (p.grad is None) == still, name
    changed = {n for n, b in backbone.named_buffers() if not torch.equal(b, before[n])}
    assert not {n for n in changed if n.startswith(("detail.", "semantic.stage1."))}
    assert {n for n in changed if n.startswith("context.")}
    with pytest.raises(ConfigError, match="no stage conv1; its stages are detail, stage1"):
        backbone.freeze(["conv1"])


def test_freeze_bn() -> None:
    backbone = small(freeze_bn=True).train()
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))


def test_one_image_alone_cannot_train_and_says_why() -> None:
    backbone = small().train()
    with pytest.raises(
        HardpixError, match=r"batch norm on a 1x1 map .* data\.batch_size=2 .* data\.drop_last"
    ):
        backbone(torch.randn(1, 3, 64, 64))
    assert len(backbone.eval()(torch.randn(1, 3, 64, 64))) == 5


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"detail_channels": [4, 5, 7]}, "last ones are equal"),
        ({"detail_channels": [4, 6]}, "three and four widths"),
        ({"semantic_channels": [4, 3, 6]}, "three and four widths"),
        ({"semantic_channels": [1, 3, 5, 6]}, "2 or above"),
        ({"layers": [2, 2]}, "three counts"),
        ({"layers": [2, 0, 4]}, "1 or above"),
        ({"expansion": 0}, "1 or above"),
    ],
)
def test_widths_that_do_not_fit(changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        small(**changes)


def test_there_are_no_pretrained_weights() -> None:
    with pytest.raises(ConfigError, match="pretrained"):
        validate(compose([*WHOLE, "+backbone.pretrained=true"]))


def test_a_level_finer_than_the_one_before_is_still_what_others_are_resized_to() -> None:
    specs = small().specs
    join = Concat(specs, [3, 4], align_corners=False)
    assert join.spec == FeatureSpec(8, 12)
    maps = [torch.randn(1, c, s, s) for c, s in ((4, 16), (3, 8), (5, 4), (6, 2), (6, 8))]
    want = torch.cat([F.interpolate(maps[3], (8, 8), mode="bilinear"), maps[4]], 1)
    torch.testing.assert_close(join(maps), want)
    assert Concat(specs, [0, 3, 4], align_corners=False).spec == FeatureSpec(4, 16)


def conv(inputs: int, outputs: int, kernel: int) -> int:
    """Weights of a convolution without bias, and the scale and shift of its norm."""
    return inputs * outputs * kernel**2 + 2 * outputs


def backbone_size() -> int:
    """BiSeNetV2 of mmsegmentation 0.22.1, layer by layer."""
    detail = conv(3, 64, 3) + conv(64, 64, 3)
    detail += conv(64, 64, 3) + 2 * conv(64, 64, 3)
    detail += conv(64, 128, 3) + 2 * conv(128, 128, 3)
    semantic = conv(3, 16, 3) + conv(16, 8, 1) + conv(8, 16, 3) + conv(32, 16, 3)
    for inputs, outputs, more in ((16, 32, 1), (32, 64, 1), (64, 128, 3)):
        semantic += conv(inputs, inputs, 3) + conv(1, 6 * inputs, 3) + conv(1, 6 * inputs, 3)
        semantic += conv(6 * inputs, outputs, 1) + conv(1, inputs, 3) + conv(inputs, outputs, 1)
        semantic += more * (
            conv(outputs, outputs, 3) + conv(1, 6 * outputs, 3) + conv(6 * outputs, outputs, 1)
        )
    context = 2 * 128 + conv(128, 128, 1) + conv(128, 128, 3)
    separable = conv(1, 128, 3) + 128 * 128 + 128
    aggregation = 2 * separable + 3 * conv(128, 128, 3)
    return detail + semantic + context + aggregation


def head_size(inputs: int, width: int, convs: int) -> int:
    return conv(inputs, width, 3) + (convs - 1) * conv(width, width, 3) + (width + 1) * 19


def test_size() -> None:
    cfg = compose(WHOLE)
    assert cfg.aux_weight == 1.0
    with torch.device("meta"):
        model: Segmenter = partial(make(cfg.model), make(cfg.backbone), make(cfg.head))(outputs={"label": 19})
    sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in model.named_children()}
    pairs = ((16, 16), (32, 64), (64, 256), (128, 1024))
    assert sizes["backbone"] == backbone_size() == 2_157_712
    assert sizes["head"] == head_size(128, 1024, 1) == 1_201_171
    assert sizes["aux_head"] == sum(head_size(a, b, 2) for a, b in pairs) == 11_445_372
    assert list(model.aux_head) == ["enc0", "enc1", "enc2", "enc3"]
    assert model.head.features == (FeatureSpec(8, 1024),)


SMALL_RUN = [f"backbone.{key}={str(value).replace(' ', '')}" for key, value in SMALL.items()]
SMALL_RUN += ["backbone=bisenetv2", "model=bisenetv2", "model.aux_channels=[4,6,8,10]"]


def small_batch(data, *keys: str) -> dict:
    parts = [data.evaluation_batch("train", i) for i in range(2)]
    return {k: torch.cat([p[k] for p in parts]) for k in ("image", "label", *keys)} | {"name": ["a", "b"]}


def test_lwm_attaches_to_it(tiny) -> None:
    data, method = build(tiny("method=lwm", *SMALL_RUN))
    losses = method.train().losses(small_batch(data, "depth", "depth_valid"))
    assert [name for name in losses if name.startswith("aux")] == [f"aux_enc{i}" for i in range(4)]
    assert list(method.side) == ["dec0"]
    assert all(torch.isfinite(x) for x in losses.values())


def test_the_branches_of_ep_attach_to_it(stacked) -> None:
    names = ("method=detail method.channels=8", "method=error_prediction method.channels=8")
    data, method = build(stacked(*names, " ".join(SMALL_RUN)))
    assert method.skips == choose_skips(method.model.features) == ("enc2", "enc1", "enc0")
    assert method.spec(method.high).stride == 8
    losses = method.train().losses(small_batch(data))
    assert all(torch.isfinite(x) for x in losses.values())


def test_two_of_them_can_be_stitched(tiny) -> None:
    plain = [o for o in SMALL_RUN if not o.startswith("model")]
    _, method = build(tiny("model=cross_stitch", *plain))
    out = method.eval().model(torch.randn(1, 3, 33, 49))
    assert out.features["enc4"].shape == (1, 6, 5, 7)
