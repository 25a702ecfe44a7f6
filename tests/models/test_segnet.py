"""SegNet: the published structure, unpooling against loops, ImageNet weights tensor by tensor, frozen blocks."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from timm.models.vgg import VGG
from torch import Tensor, nn

from hardpix.models import (
    DeepLabV3PlusHead,
    FCNHead,
    PSPHead,
    Pyramid,
    RefineNetHead,
    Segmenter,
    SegNetEncoder,
    SegNetHead,
    TimmBackbone,
    UPerHead,
)
from hardpix.types import ConfigError, FeatureSpec

CONF = Path(__file__).parents[2] / "conf"
VGG16 = {"widths": [64, 128, 256, 512, 512], "convs": [2, 2, 3, 3, 3]}
SMALL = {"widths": [4, 6, 8, 10, 12], "convs": [2, 2, 3, 3, 3]}
DECODER = [3, 3, 3, 2, 1]
PLAIN = {"align_corners": False, "aux_level": None, "aux_channels": 8, "aux_dropout": 0.1}


def encoder(**given) -> SegNetEncoder:
    return SegNetEncoder(**{"pretrained": False, "freeze_bn": False, **SMALL, **given})


def head(specs, outputs=None, convs=DECODER) -> SegNetHead:
    return SegNetHead(specs, outputs or {"label": 3}, convs=convs, align_corners=False)


def segnet(outputs=None, **given) -> Segmenter:
    return Segmenter(
        partial(encoder, **given), partial(SegNetHead, convs=DECODER), outputs or {"label": 3}, **PLAIN
    )


def test_the_configuration_is_the_published_structure() -> None:
    """13 + 13 convolutions, counted by hand; 3x3 with bias, and two numbers a channel of each norm."""
    backbone, decoder = (
        OmegaConf.to_container(OmegaConf.load(CONF / f"{g}/segnet.yaml")) for g in ("backbone", "head")
    )
    assert {key: backbone[key] for key in VGG16} == VGG16
    assert decoder["convs"] == DECODER
    down = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    up = [512, 512, 512, 512, 512, 512, 256, 256, 256, 128, 128, 64, 64]
    with torch.device("meta"):
        model = Segmenter(
            partial(SegNetEncoder, pretrained=False, freeze_bn=False, **VGG16),
            partial(SegNetHead, convs=DECODER),
            {"label": 11},
            **PLAIN,
        )
    convs = [m for m in model.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convs] == list(pairwise(down))
    deepest_first = [
        c for block in reversed(model.head.blocks) for c in block.modules() if isinstance(c, nn.Conv2d)
    ]
    assert [(c.in_channels, c.out_channels) for c in deepest_first] == list(pairwise(up))
    pairs = [*pairwise(down), *pairwise(up)]
    expected = sum(9 * a * b + 3 * b for a, b in pairs) + 9 * 64 * 11 + 11
    assert sum(p.numel() for p in model.parameters()) == expected == 29_449_355


@pytest.mark.parametrize("count", [18, 38])
def test_a_block_is_convolution_norm_relu(count: int) -> None:
    kinds = [[type(layer) for layer in layers] for block in encoder().blocks.values() for layers in block]
    assert kinds == [[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]] * 13
    classifier = segnet({"label": count}).head.classifiers
    assert isinstance(classifier.dropout, nn.Identity)
    conv = classifier.convs["label"]
    assert (conv.kernel_size, conv.padding, conv.out_channels) == ((3, 3), (1, 1), count)


def test_sizes_of_the_paper() -> None:
    """424x560 ends as 14x18 and comes back exactly."""
    model = segnet().eval()
    with torch.no_grad():
        out = model(torch.randn(1, 3, 424, 560))
    sizes = {name: tuple(x.shape[-2:]) for name, x in out.features.items()}
    down = [(212, 280), (106, 140), (53, 70), (27, 35), (14, 18)]
    up = [(424, 560), *down[:-1]]
    assert sizes == {f"enc{i}": s for i, s in enumerate(down)} | {f"dec{i}": s for i, s in enumerate(up)}
    assert out.outputs["label"].shape == (1, 3, 424, 560)


@pytest.mark.parametrize("size", [(32, 32), (45, 61), (33, 70), (7, 130)])
def test_any_size_comes_back(size: tuple[int, int]) -> None:
    model = segnet({"label": 3, "depth": 1}).eval()
    out = model(torch.randn(2, 3, *size))
    for name, spec in model.features.items():
        expected = (2, spec.channels, *(-(-side // spec.stride) for side in size))
        assert out.features[name].shape == expected, name
    assert out.outputs["label"].shape == (2, 3, *size)
    assert out.outputs["depth"].shape == (2, 1, *size)


def pooled(x: np.ndarray) -> tuple[np.ndarray, dict]:
    """The greatest value of every 2x2 window, and where it stood; the last windows may be smaller."""
    b, c, h, w = x.shape
    out, places = np.zeros((b, c, -(-h // 2), -(-w // 2))), {}
    for n, k, i, j in np.ndindex(*out.shape):
        window = [(y, z) for y in (2 * i, 2 * i + 1) for z in (2 * j, 2 * j + 1) if y < h and z < w]
        places[n, k, i, j] = max(window, key=lambda p: x[n, k, p[0], p[1]])
        out[n, k, i, j] = x[n, k, *places[n, k, i, j]]
    return out, places


def unpooled(x: np.ndarray, places: dict, size: tuple[int, int]) -> np.ndarray:
    out = np.zeros((*x.shape[:2], *size))
    for (n, k, i, j), (y, z) in places.items():
        out[n, k, y, z] = x[n, k, i, j]
    return out


def test_decoding_against_loops() -> None:
    torch.manual_seed(0)
    model = segnet().double().eval()
    image = torch.randn(2, 3, 11, 14, dtype=torch.float64)
    x, record = image, []
    with torch.no_grad():
        for block in model.backbone.blocks.values():
            x = block(x)
            values, places = pooled(x.numpy())
            record.append((places, tuple(x.shape[-2:])))
            x = torch.from_numpy(values)
        for block, (places, size) in reversed(list(zip(model.head.blocks, record, strict=True))):
            x = block(torch.from_numpy(unpooled(x.numpy(), places, size)))
        expected = model.head.classifiers(x)["label"]
        torch.testing.assert_close(model(image).outputs["label"], expected, rtol=1e-9, atol=1e-12)


def test_the_indices_of_every_level_matter() -> None:
    torch.manual_seed(0)
    model = segnet().eval()
    with torch.no_grad():
        pyramid = model.backbone(torch.randn(2, 3, 64, 64))
        right = model.decode(pyramid).outputs["label"]
        for level in range(5):
            indices = list(pyramid.indices)
            indices[level] = indices[level].flip(0)  # of the other image
            wrong = Pyramid(pyramid, indices, pyramid.sizes)
            assert (model.decode(wrong).outputs["label"] - right).abs().max() > 1e-4, level


def test_every_parameter_gets_a_gradient_and_running_statistics_move() -> None:
    torch.manual_seed(0)
    model = segnet().train()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    out = model(torch.randn(2, 3, 64, 96)).outputs["label"]
    (out * torch.randn_like(out)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert not [k for k, v in before.items() if torch.equal(v, model.state_dict()[k])]


def test_a_second_head_on_a_detached_pyramid_unpools_and_leaves_the_encoder_alone() -> None:
    model = segnet().train()
    second = head(model.backbone.specs, {"hardness": 1})
    pyramid = model.backbone(torch.randn(2, 3, 33, 50))
    detached = pyramid.detach()
    assert isinstance(detached, Pyramid)
    out = second(detached).outputs["hardness"]
    assert out.shape == (2, 1, 33, 50)
    out.square().sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in second.parameters())
    for mine, theirs in zip(detached, pyramid, strict=True):
        assert torch.equal(mine, theirs)


POOLS = (1, 2, 3, 6)
OTHERS = {
    "fcn": partial(FCNHead, channels=8, num_convs=2, concat_input=True, levels=[-1], dropout=0.1),
    "psp": partial(PSPHead, channels=8, pool_sizes=POOLS, levels=[-1], dropout=0.1),
    "plus": partial(
        DeepLabV3PlusHead,
        channels=8,
        low_channels=4,
        dilations=(2,),
        project_kernel=3,
        levels=[-1],
        dropout=0.1,
    ),
    "uper": partial(UPerHead, channels=8, pool_sizes=POOLS, dropout=0.1),
    "refinenet": partial(
        RefineNetHead, widths=[8] * 5, crp_stages=4, crp_order="pool_conv", output_units=1, dropout=0.5
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_heads_read_the_encoder(name: str) -> None:
    model = Segmenter(encoder, OTHERS[name], {"label": 3}, **PLAIN | {"aux_level": 2}).train()
    out = model(torch.randn(2, 3, 65, 97))
    for key, spec in model.features.items():
        assert out.features[key].shape == (2, spec.channels, *(-(-side // spec.stride) for side in (65, 97)))
    assert out.aux["enc2"].shape == (2, 3, 9, 13)
    sum(x.square().sum() for x in (*out.outputs.values(), *out.aux.values())).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_he_initialisation() -> None:
    """Variance 2 / fan-in, of every convolution, the classifier too; biases 0."""
    torch.manual_seed(0)
    model = segnet({"label": 40}, widths=[48, 48, 64, 64, 96])
    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d):
            assert conv.bias is not None
            assert not conv.bias.any()
            fan_in = 9 * conv.in_channels
            assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.06), name


def test_half_precision() -> None:
    model = segnet().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.randn(2, 3, 33, 47)).outputs["label"]
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()
    out.float().sum().backward()


def vgg(cfg: str = "2 2 3 3 3", *, norm: bool = True, width: int = 1) -> VGG:
    """timm's own class with the widths of SMALL and random numbers everywhere."""
    torch.manual_seed(7)
    layers: list = []
    for count, channels in zip(map(int, cfg.split()), SMALL["widths"], strict=True):
        layers += [channels * width] * count + ["M"]
    model = VGG(layers, num_classes=4, norm_layer=nn.BatchNorm2d if norm else None, mlp_ratio=0.01)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.uniform_(-0.4, 0.6).abs_()
    return model


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_every_tensor_of_a_file_lands_in_its_convolution(tmp_path: Path, suffix: str) -> None:
    state, path = vgg().state_dict(), tmp_path / f"vgg.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": state}, path)
    else:
        from safetensors.torch import save_file

        save_file(state, str(path))
    net = encoder(pretrained=str(path))
    numbers = {
        "conv1": (0, 3),
        "conv2": (7, 10),
        "conv3": (14, 17, 20),
        "conv4": (24, 27, 30),
        "conv5": (34, 37, 40),
    }
    checked = 0
    for block, starts in numbers.items():
        for layers, number in zip(net.blocks[block], starts, strict=True):
            for offset in (0, 1):
                for key, value in layers[offset].state_dict().items():
                    assert torch.equal(value, state[f"features.{number + offset}.{key}"]), (
                        block,
                        number,
                        key,
                    )
                    checked += 1
    assert checked == 13 * (2 + 5) == len(net.state_dict())


def test_loaded_features_are_the_models(tmp_path: Path) -> None:
    model = vgg().eval()
    torch.save(model.state_dict(), tmp_path / "vgg.pth")
    image = torch.randn(1, 3, 64, 96)
    got = encoder(pretrained=str(tmp_path / "vgg.pth")).eval()(image)[-1]
    torch.testing.assert_close(got, model.features(image))


def test_names_and_shapes_are_those_of_vgg16_bn() -> None:
    with torch.device("meta"):
        theirs = timm.create_model("vgg16_bn").state_dict()
        ours = encoder(**VGG16)
    names = ours._vgg16_names()
    assert {own: theirs[name].shape for own, name in names.items()} == {
        k: v.shape for k, v in ours.state_dict().items()
    }
    assert set(names.values()) == {k for k in theirs if k.startswith("features.")}


def test_hub_weights_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = vgg(), {}

    def create(name, **options):
        asked[name] = options
        return timm.models.FeatureListNet(model, (0, 1, 2, 3, 4, 5), flatten_sequential=True)

    monkeypatch.setattr(timm, "create_model", create)
    net = encoder(pretrained=True)
    assert asked["vgg16_bn.tv_in1k"]["pretrained"] is True
    assert asked["vgg16_bn.tv_in1k"]["in_chans"] == 3
    assert torch.equal(net.blocks["conv5"][2][0].weight, model.state_dict()["features.40.weight"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(vgg, "2 2 2 2 2"), "lacks blocks.conv"),
        (partial(vgg, "2 2 3 3 4"), "foreign features_43"),
        (partial(vgg, norm=False), "lacks"),
        (partial(vgg, width=2), "another shape of blocks.conv1"),
    ],
    ids=["vgg13", "vgg19", "no_norm", "wide"],
)
def test_other_weights_are_refused(tmp_path: Path, make, words: str) -> None:
    torch.save(make().state_dict(), tmp_path / "vgg.pth")
    with pytest.raises(ConfigError, match="vgg16_bn") as error:
        encoder(pretrained=str(tmp_path / "vgg.pth"))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        encoder(pretrained=str(tmp_path / "none.pth"))


def test_frozen_statistics() -> None:
    net = encoder(freeze_bn=True).train()
    before = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    sum(x.square().mean() for x in net(3 + torch.randn(2, 3, 64, 64))).backward()
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())
    assert net.blocks["conv1"][0][1].weight.grad.any()


def test_frozen_blocks() -> None:
    """conv1 .. conv-k: no gradient and norms in inference mode, whatever mode the rest is put into."""
    model = segnet().train()
    model.backbone.freeze(["conv1", "conv2"])
    model.eval().train()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items() if "running" in k}
    model(3 + torch.randn(2, 3, 64, 64)).outputs["label"].square().sum().backward()
    for name, p in model.backbone.named_parameters():
        assert (p.grad is None) == name.startswith(("blocks.conv1.", "blocks.conv2.")), name
    for name, value in before.items():
        frozen = name.startswith(("blocks.conv1.", "blocks.conv2."))
        assert torch.equal(model.backbone.state_dict()[name], value) == frozen, name
    with pytest.raises(ConfigError, match=r"no stage conv6.*conv1, conv2, conv3, conv4, conv5"):
        model.backbone.freeze(["conv1", "conv6"])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: encoder(convs=[2, 2]), "backbone: widths"),
        (lambda: encoder(widths=[4, 0, 4, 4, 4]), "1 or above"),
        (lambda: head(encoder().specs, convs=[3, 3]), "head.convs"),
        (
            lambda: head((FeatureSpec(4, 8), FeatureSpec(8, 8)), convs=[1, 1]),
            "head=segnet: .*backbone=segnet",
        ),
        (
            lambda: Segmenter(
                partial(TimmBackbone, "test_resnet", pretrained=False, options={}),
                partial(SegNetHead, convs=[1] * 4),
                {"label": 3},
                **PLAIN,
            ),
            "head=segnet: .*backbone=segnet",
        ),
    ],
)
def test_refusals_are_one_sentence(build, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        build()
    assert "\n" not in str(error.value)


def test_detaching_keeps_what_unpooling_needs() -> None:
    maps: list[Tensor] = [torch.ones(1, requires_grad=True) * 2]
    pyramid = Pyramid(maps, [torch.zeros(1, dtype=torch.long)], [(3, 5)])
    got = pyramid.detach()
    assert not got[0].requires_grad
    assert pyramid[0].requires_grad
    assert got.indices[0] is pyramid.indices[0]
    assert got.sizes == [(3, 5)]
