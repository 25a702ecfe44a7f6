"""smp's decoders on hardpix's pyramids: what smp itself computes, at any size; what cannot be is told before a run."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from hardpix.models import SMPHead
from hardpix.types import ConfigError, FeatureSpec

CONF = Path(__file__).parents[2] / "conf"
PYRAMID = tuple(map(FeatureSpec, (4, 8, 16, 32), (16, 16, 32, 32)))
DILATED = tuple(map(FeatureSpec, (4, 8, 8, 8), (16, 16, 32, 32)))
SIXTEENTH = tuple(map(FeatureSpec, (4, 8, 16, 16), (16, 16, 32, 32)))
VIT = tuple(FeatureSpec(16, 16) for _ in range(4))
NARROW = {"decoder_channels": [16, 16, 8, 8, 8]}
# decoder -> options, output stride, and which of the dilated pyramids it runs on besides
DECODERS = {
    "Unet": (NARROW, 1, (DILATED, SIXTEENTH)),
    "UnetPlusPlus": (NARROW, 1, ()),
    "MAnet": (NARROW, 1, ()),
    "Linknet": ({}, 1, ()),
    "FPN": ({"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32}, 4, ()),
    "PSPNet": ({"psp_out_channels": 16}, 32, (DILATED, SIXTEENTH)),
    "UPerNet": ({"decoder_channels": 16}, 4, (DILATED, SIXTEENTH)),
    "Segformer": ({"decoder_segmentation_channels": 16}, 4, (DILATED, SIXTEENTH)),
    "PAN": ({"decoder_channels": 8}, 4, (SIXTEENTH,)),
}


def maps(specs: tuple[FeatureSpec, ...], height: int, width: int, batch: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, s.channels, -(-height // s.stride), -(-width // s.stride)) for s in specs]


def build(specs: tuple[FeatureSpec, ...] = PYRAMID, decoder: str = "Unet", options: dict | None = None):
    torch.manual_seed(0)
    return SMPHead(specs, {"label": 3}, decoder=decoder, options=options or {}, align_corners=False)


@pytest.fixture(scope="module")
def smp() -> ModuleType:
    return pytest.importorskip("segmentation_models_pytorch")


@pytest.mark.parametrize("decoder", DECODERS)
def test_shapes_are_known_and_every_size_works(smp: ModuleType, decoder: str) -> None:
    """A map finer than the pyramid ends where the finest map ends."""
    options, stride, _ = DECODERS[decoder]
    head = build(PYRAMID, decoder, options)
    assert [spec.stride for spec in head.features] == [stride]
    least = 256 if decoder == "PAN" else 64
    for height, width in ((least, 96 + least), (least + 1, least + 33)):
        ends = [-(-side // 4) * 4 for side in (height, width)]
        out = head.train()(maps(PYRAMID, height, width))
        size = tuple(-(-side // stride) for side in ends)
        assert out.decoder[0].shape == (2, head.features[0].channels, *size)
        assert out.outputs["label"].shape == (2, 3, *size)
    out.outputs["label"].square().sum().backward()
    assert all(p.grad is not None for p in head.parameters())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.isfinite(head(maps(PYRAMID, least, least)).outputs["label"]).all()


@pytest.mark.parametrize("specs", [DILATED, SIXTEENTH], ids=["8", "16"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_dilated_levels_run_or_are_refused(smp: ModuleType, decoder: str, specs) -> None:
    options, _, runs_on = DECODERS[decoder]
    if specs not in runs_on:
        with pytest.raises(ConfigError, match=f"head.decoder={decoder}.*4, 8, .*output_stride=null"):
            build(specs, decoder, options)
        return
    head = build(specs, decoder, options)
    stride = head.features[0].stride
    out = head(maps(specs, 128, 144))
    assert out.outputs["label"].shape == (2, 3, 128 // stride, 144 // stride)


@pytest.mark.parametrize("decoder", ["DeepLabV3", "DeepLabV3Plus"])
def test_deeplab_needs_dilated_levels_and_learns_their_stride(smp: ModuleType, decoder: str) -> None:
    options = {"decoder_channels": 8, "decoder_atrous_rates": [2, 3, 4]}
    for specs in (DILATED, SIXTEENTH):
        head = build(specs, decoder, options)
        stride = specs[-1].stride if decoder == "DeepLabV3" else 4
        assert head.features == (FeatureSpec(stride, 8),)
        assert head(maps(specs, 65, 97)).outputs["label"].shape == (2, 3, -(-65 // stride), -(-97 // stride))
    with pytest.raises(ConfigError, match=r"4, 8, 16, 32 .*backbone\.output_stride=16 or 8"):
        build(PYRAMID, decoder, options)


@pytest.mark.parametrize("decoder", ["Unet", "FPN"])
def test_values_are_smps_own(smp: ModuleType, decoder: str) -> None:
    """On the levels of one of smp's encoders from stride 2 on, with its decoder's weights."""
    options = DECODERS[decoder][0]
    model = getattr(smp, decoder)("resnet18", encoder_weights=None, **options).eval()
    specs = tuple(map(FeatureSpec, (2, 4, 8, 16, 32), model.encoder.out_channels[1:]))
    head = build(specs, decoder, options).eval()
    head.decoder.load_state_dict(model.decoder.state_dict())
    head.classifiers.convs["label"] = model.segmentation_head[0]
    image = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        expected = model(image)
        found = head(model.encoder(image)[1:]).outputs["label"]
        zoom = 32 // found.shape[-2]
        found = F.interpolate(found, scale_factor=zoom, mode="bilinear", align_corners=True)
    torch.testing.assert_close(found, expected)


def test_a_pyramid_without_stride_2_is_what_smps_transformers_give(smp: ModuleType) -> None:
    model = smp.Unet("mit_b0", encoder_weights=None, decoder_channels=NARROW["decoder_channels"]).eval()
    assert model.encoder.out_channels[1] == 0
    specs = tuple(map(FeatureSpec, (4, 8, 16, 32), model.encoder.out_channels[2:]))
    head = build(specs, "Unet", NARROW).eval()
    head.decoder.load_state_dict(model.decoder.state_dict())
    head.classifiers.convs["label"] = model.segmentation_head[0]
    image = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(head(model.encoder(image)[2:]).outputs["label"], model(image))


def test_the_classifier_has_smps_kernel(smp: ModuleType) -> None:
    assert build(decoder="Unet", options=NARROW).classifiers.convs["label"].kernel_size == (3, 3)
    assert build(decoder="Linknet").classifiers.convs["label"].kernel_size == (1, 1)


def test_two_heads_share_nothing_and_smp_forgets_them(smp: ModuleType) -> None:
    before = list(smp.encoders.encoders)
    a, b = build(options=NARROW), build(options=NARROW)
    assert not {id(p) for p in a.parameters()} & {id(p) for p in b.parameters()}
    assert list(smp.encoders.encoders) == before


def test_the_configured_head_is_built(smp: ModuleType) -> None:
    node = OmegaConf.to_container(OmegaConf.load(CONF / "head/smp.yaml"))
    assert node.pop("_target_") == "hardpix.models.SMPHead"
    assert node.pop("_partial_") is True
    with torch.device("meta"):
        head = SMPHead(PYRAMID, {"label": 5}, align_corners=False, **node)
        assert head(maps(PYRAMID, 96, 128)).outputs["label"].shape == (2, 5, 96, 128)


class _Decoder(nn.Module):
    """Upper left of the finest level with channels, after all levels were as smp's encoders would give them."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, features: list[Tensor]) -> Tensor:
        assert [x.shape[1] for x in features] == self.channels
        cells = [x.shape[-1] for x in features]
        assert all(finer == 2 * coarser for finer, coarser in pairwise(cells)), "not x2"
        return features[2]


class Halving(nn.Module):
    def __init__(
        self, encoder_name, encoder_depth=5, encoder_weights="imagenet", width=4, classes=1, **kwargs
    ):
        super().__init__()
        registered = sys.modules["segmentation_models_pytorch"].encoders.encoders[encoder_name]
        encoder = registered["encoder"](**registered["params"], depth=encoder_depth, output_stride=32)
        if width < 1:
            raise ValueError("no width\nat all")
        self.decoder = _Decoder(encoder.out_channels)
        self.segmentation_head = nn.Sequential(nn.Conv2d(16, classes, 3))


class DPT(Halving):
    pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The package's surface, for those who do not have it."""
    module = SimpleNamespace(
        MODEL_ARCHITECTURES_MAPPING={"halving": Halving, "dpt": DPT}, encoders=SimpleNamespace(encoders={})
    )
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", module)
    return module


def test_maps_are_padded_to_whole_cells_by_the_border_and_cropped_back(fake: SimpleNamespace) -> None:
    """65 x 97: 17 x 25 cells of stride 4, 3 x 4 of stride 32, which are 24 x 32 of stride 4."""
    seen = []
    head = build(decoder="Halving")
    head.decoder.register_forward_hook(lambda _, given, out: seen.extend(given[0]))
    pyramid = maps(PYRAMID, 65, 97)
    out = head(pyramid)
    assert head.features == (FeatureSpec(4, 16),)
    assert [tuple(x.shape[1:]) for x in seen[:3]] == [(0, 96, 128), (0, 48, 64), (16, 24, 32)]
    torch.testing.assert_close(out.decoder[0], pyramid[0])
    torch.testing.assert_close(seen[2][..., 17:, 25:], pyramid[0][..., -1:, -1:].expand(2, 16, 7, 7))
    torch.testing.assert_close(seen[2][..., :17, 31], pyramid[0][..., -1])
    assert fake.encoders.encoders == {}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"decoder": "DPT"}, r"head\.decoder=DPT: reads the class token.*choose one of Halving$"),
        ({"decoder": "Unett"}, r"head\.decoder=Unett: no such model.*Halving$"),
        ({"options": {"widht": 3}}, r"head\.options: widht is no option of Halving.*it takes width$"),
        ({"options": {"classes": 3, "width": 3}}, r"head\.options: classes is no option"),
        ({"options": {"encoder_depth": 3}}, r"head\.options: encoder_depth is no option"),
        ({"options": {"width": 0}}, r"head\.options=\{'width': 0\}.*\(no width\); set .*other options$"),
        ({"specs": VIT}, r"strides from 2 or 4 on.*16, 16, 16, 16.*ResNet"),
        ({"specs": DILATED}, r"4, 8, 8, 8 \(not x2\); set backbone\.output_stride=null"),
    ],
)
def test_refusals_are_one_sentence(fake: SimpleNamespace, given: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        build(**({"decoder": "Halving"} | given))
    assert "\n" not in str(error.value)
    assert fake.encoders.encoders == {}


def test_without_the_package_its_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ConfigError, match=r"^head=smp: .*pip install 'hardpix\[smp\]'$"):
        build()
