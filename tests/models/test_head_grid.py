"""Every head on every backbone family: sizes known at construction, gradients everywhere, nothing of it in eval."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from hydra.utils import instantiate

from hardpix.config.compose import compose_group
from hardpix.models import (
    ANNHead,
    Backbone,
    BiSeNetV2,
    CCHead,
    DeepLabV3Head,
    DeepLabV3PlusHead,
    DPCHead,
    DUpsamplingHead,
    EMAHead,
    FCNHead,
    FPNHead,
    GAUDecoderHead,
    GCHead,
    ISAHead,
    LRASPPHead,
    NonLocalHead,
    OCRHead,
    PSAHead,
    PSPHead,
    RefineNetHead,
    SegFormerHead,
    Segmenter,
    SegNetEncoder,
    TimmBackbone,
    UNetHead,
    UPerHead,
)
from hardpix.models.cross_stitch import CrossStitchBackbone
from hardpix.types import ConfigError, SegOutput
from tests.listed import listed

RESNET = {"zero_init_last": False}  # or the inside of a residual block has gradient 0 in the first step
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
SWIN = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 3, 4), "window_size": 4}
BACKBONES = {
    "resnet": ("test_resnet", RESNET, None),
    "dilated_resnet": ("test_resnet", RESNET, 8),
    "convnext": ("convnext_atto", CONVNEXT, None),
    "dilated_convnext": ("convnext_atto", CONVNEXT, 8),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, None),
    "mobilenetv3": ("mobilenetv3_small_050", {}, None),
    "dilated_mobilenetv3": ("mobilenetv3_small_050", {}, 16),
    "hrnet": ("hrnet_w18_small", {"feature_location": ""}, None),
    "vit": ("test_vit", {}, None),
}
KIN = ("dilated_convnext", "dilated_mobilenetv3", "stitched")  # like others here, and among the slow tests
FAMILIES = (*BACKBONES, "segnet", "bisenetv2", "stitched")  # the latter two ResNets
POOLS = (1, 2, 3, 6)
SMALL = {
    "fcn": partial(FCNHead, channels=8, num_convs=2, concat_input=True, dropout=0.1),
    "psp": partial(PSPHead, channels=8, pool_sizes=POOLS, dropout=0.1),
    "deeplabv3": partial(DeepLabV3Head, channels=8, dilations=(2, 4), project_kernel=3, dropout=0.1),
    "deeplabv3plus": partial(
        DeepLabV3PlusHead, channels=8, low_channels=4, dilations=(2, 4), project_kernel=3, dropout=0.1
    ),
    "dpc": partial(
        DPCHead,
        channels=8,
        low_channels=4,
        rates=((1, 2), (2, 1)),
        reads=(-1, 0),
        rate_multiplier=1,
        cell_dropout=0.1,
        dropout=0.1,
    ),
    "gau_decoder": partial(
        GAUDecoderHead, channels=8, dilations=(2, 4), project_kernel=3, attention="sigmoid", dropout=0.1
    ),
    "dupsampling": partial(
        DUpsamplingHead,
        channels=8,
        low_channels=4,
        code_channels=6,
        ratio=4,
        dilations=(2, 4),
        project_kernel=3,
        dropout=0.1,
    ),
    "nonlocal": partial(NonLocalHead, channels=8, reduction=2, dropout=0.1),
    "gcnet": partial(GCHead, channels=8, reduction=2, dropout=0.1),
    "ccnet": partial(CCHead, channels=8, reduction=2, recurrence=2, dropout=0.1),
    "ann": partial(ANNHead, channels=8, project_channels=4, pool_sizes=(1, 3), low_levels=(-2,), dropout=0.1),
    "emanet": partial(
        EMAHead, channels=8, ema_channels=12, num_bases=4, num_stages=3, momentum=0.1, dropout=0.1
    ),
    "isanet": partial(ISAHead, channels=8, isa_channels=4, down_factor=(2, 2), dropout=0.1),
    "psanet": partial(PSAHead, channels=8, mask_size=(5, 5), shrink_factor=2, padding=1, dropout=0.1),
    "lraspp": partial(
        LRASPPHead,
        channels=8,
        branch_channels=(2, 4),
        window=3,
        step=(1, 2),
        norm_eps=0.001,
        levels=(0, 1, -1),
        dropout=0.1,
    ),
    "ocr": partial(
        OCRHead,
        num_classes=6,
        channels=8,
        ocr_channels=4,
        coarse_levels=(1,),
        coarse_channels=6,
        coarse_kernel=3,
        dropout=0.1,
    ),
    "uper": partial(UPerHead, channels=8, pool_sizes=POOLS, dropout=0.1),
    "fpn": partial(FPNHead, channels=8, pyramid_channels=12, dropout=0.1),
    "unet": partial(UNetHead, channels=4, dropout=0.1),
    "segformer": partial(SegFormerHead, channels=8, dropout=0.1),
    "refinenet": partial(
        RefineNetHead, widths=(16, 8, 8, 8), crp_stages=4, crp_order="pool_conv", output_units=3, dropout=0.5
    ),
}
# Of other networks: of SegNet's pooling indices, of LWM, of an optional package.
OTHER_NETWORKS = {"segnet", "refinenet_cascades", "smp"}
HEADS = {
    name: SMALL.get(name) or instantiate(compose_group("head", name).head)
    for name in listed("head", without=OTHER_NETWORKS)
}
WHOLE = {"lraspp", "uper", "refinenet", "fpn", "unet", "segformer"}  # of levels of their own choice
CLIMBING = ("gau_decoder", "uper", "fpn", "unet", "refinenet")  # level by level, coarse to fine
CASES = [(h, f) for h in HEADS for f in FAMILIES if f != "bisenetv2" or h not in CLIMBING]
# Published to start at 0, with gradient 0 inside of them in the first step; here they start elsewhere.
ZERO_STARTS = {
    "nonlocal": ("convs.1.out.1.weight",),
    "gcnet": ("convs.1.transform.3.weight",),
    "ccnet": ("convs.1.gamma",),
    "ann": ("fusion.out.weight", "context.out.weight"),
}
# Biases that a softmax or a batch norm takes out again: no gradient but rounding.
INERT = {
    "nonlocal": ("convs.1.key.bias", "convs.1.value.bias"),
    "gcnet": ("convs.1.mask.bias",),
    "ccnet": ("convs.1.key.bias",),
    "ann": ("fusion.value.bias", "fusion.out.bias", "context.value.bias", "context.out.bias"),
}
SIZE = (65, 97)


@cache
def backbone(family: str) -> Backbone:
    if family == "segnet":
        return SegNetEncoder(pretrained=False, widths=[8] * 5, convs=[1] * 5, freeze_bn=False)
    if family == "bisenetv2":
        widths = {"detail_channels": (6, 6, 8), "semantic_channels": (4, 6, 8, 8), "expansion": 2}
        return BiSeNetV2(layers=(2, 1, 2), align_corners=False, freeze_bn=False, **widths)
    if family == "stitched":
        return CrossStitchBackbone(backbone("resnet"), own=0.9, other=0.1, per_channel=False)
    name, options, output_stride = BACKBONES[family]
    return TimmBackbone(name, pretrained=False, options=options, output_stride=output_stride)


def segmenter(head: str, family: str) -> Segmenter:
    # Only heads that join all levels reach every branch of an HRNet.
    levels = [0, 1, 2, 3] if family == "hrnet" else [-1]
    build_head = HEADS[head] if head in WHOLE else partial(HEADS[head], levels=levels)
    if head == "refinenet" and family == "segnet":
        build_head = partial(build_head, widths=(16, 8, 8, 8, 8))
    return Segmenter(
        lambda in_channels: backbone(family),
        build_head,
        {"label": 5, "depth": 1},
        align_corners=False,
        aux_level=2,
        aux_channels=8,
        aux_dropout=0.1,
    )


def fit(model: Segmenter) -> None:
    """What a run does before it trains."""
    for module in model.modules():
        if hasattr(module, "fit_labels"):
            module.fit_labels([torch.randint(5, (1, 64, 64))], ignore_index=255)


def label_size(head: str, model: Segmenter, out: SegOutput) -> tuple[int, ...]:
    size = out.features["dec0"].shape[-2:]
    if head != "dupsampling":
        return tuple(size)
    stride = model.features["dec0"].stride // 4  # cut where the finest map ends
    finest = model.features["enc0"].stride
    seen = (side * finest // stride for side in out.features["enc0"].shape[-2:])
    return tuple(min(4 * coarse, fine) for coarse, fine in zip(size, seen, strict=True))


@pytest.mark.parametrize("head", CLIMBING)
def test_heads_that_climb_refuse_a_last_level_finer_than_the_one_before(head: str) -> None:
    with pytest.raises(ConfigError, match=rf"head={head}: it climbs .* are 4, 8, 16, 32, 8; use a head"):
        segmenter(head, "bisenetv2")


@pytest.mark.parametrize(
    ("head", "family"),
    [pytest.param(*case, marks=pytest.mark.slow) if case[1] in KIN else case for case in CASES],
)
def test_head_on_backbone(head: str, family: str) -> None:
    torch.manual_seed(0)
    model = segmenter(head, family).train()
    fit(model)
    for name in ZERO_STARTS.get(head, ()):
        assert not model.head.get_parameter(name).any(), name
        torch.nn.init.normal_(model.head.get_parameter(name))
    model.zero_grad()
    out: SegOutput = model(torch.randn(2, 3, *SIZE))
    assert list(out.features) == list(model.features)
    for name, spec in model.features.items():
        height, width = (-(-side // spec.stride) for side in SIZE)
        assert out.features[name].shape == (2, spec.channels, height, width), name
    assert out.outputs["label"].shape == (2, 5, *label_size(head, model, out))
    assert out.outputs["depth"].shape == (2, 1, *out.features["dec0"].shape[-2:])
    assert out.aux["enc2"].shape == (2, 5, *out.features["enc2"].shape[-2:])

    sum(
        (x * torch.randn_like(x)).sum()
        for x in (*out.outputs.values(), *out.aux.values(), *out.stages.values())
    ).backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    inert = [f"head.{name}" for name in INERT.get(head, ())]
    inert += ["backbone.context.norm.bias"] if family == "bisenetv2" else []
    for name in inert:
        assert trained.pop(name).grad is not None, name
    starved = [n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not starved

    model.eval()
    with torch.no_grad():
        quiet = model(torch.randn(1, 3, *SIZE))
    assert quiet.aux == {}
    assert all(torch.isfinite(x).all() for x in quiet.outputs.values())


def test_a_second_head_on_a_detached_pyramid_leaves_the_backbone_alone() -> None:
    model = segmenter("psp", "resnet").train()
    second = HEADS["psp"](model.backbone.specs, {"hardness": 1}, levels=[-1], align_corners=False)
    model.zero_grad()
    pyramid = model.backbone(torch.randn(2, 3, 64, 64))
    second(pyramid.detach()).outputs["hardness"].sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in second.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_two_heads_of_one_configuration_share_nothing(head: str) -> None:
    specs = backbone("resnet").specs
    build = HEADS[head] if head in WHOLE else partial(HEADS[head], levels=[-1])
    a, b = (build(specs, {"label": 3}, align_corners=False) for _ in range(2))
    assert not {id(p) for p in a.parameters()} & {id(p) for p in b.parameters()}
    assert not torch.equal(a.classifiers.convs["label"].weight, b.classifiers.convs["label"].weight)


@pytest.mark.parametrize(
    "head", [head for head in HEADS if head != "dupsampling"]
)  # whose classifier is a code
def test_classifiers_start_at_a_hundredth(head: str) -> None:
    torch.manual_seed(0)
    specs = backbone("resnet").specs
    build = HEADS[head] if head in WHOLE else partial(HEADS[head], levels=[-1])
    conv = build(specs, {"label": 600}, align_corners=False).classifiers.convs["label"]
    assert abs(conv.weight.std().item() - 0.01) < 5e-4
    assert abs(conv.weight.mean().item()) < 5e-4
    assert not conv.bias.any()
