"""Segmenter: named features, the auxiliary head, one align_corners."""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hardpix import models
from hardpix.config.compose import compose_group
from hardpix.models import PSPHead, Segmenter, TimmBackbone
from hardpix.types import ConfigError, FeatureSpec
from tests.listed import listed

PSP = partial(PSPHead, channels=8, pool_sizes=(1, 2), levels=[-1], dropout=0.1)
NOT_OF_TIMM = {"segnet", "bisenetv2"}  # these and the heads of an optional package have tests of their own
BACKBONE = partial(TimmBackbone, "test_resnet", pretrained=False, options={})


def node_of(group: str, name: str) -> Any:
    return OmegaConf.to_container(compose_group(group, name)[group])


def build(outputs: dict[str, int] | None = None, **given) -> Segmenter:
    keys = {"align_corners": False, "aux_level": 2, "aux_channels": 16, "aux_dropout": 0.1} | given
    return Segmenter(BACKBONE, PSP, outputs or {"label": 3}, **keys)


def test_features_are_named_levels_finest_first() -> None:
    model = build()
    assert list(model.features) == ["enc0", "enc1", "enc2", "enc3", "dec0"]
    assert model.features["enc2"] == FeatureSpec(16, 192)
    assert model.features["dec0"] == FeatureSpec(32, 8)


def test_auxiliary_head_is_one_convolution_on_the_chosen_level() -> None:
    """3x3 192 -> 16 without bias, norm, Dropout2d, 1x1 to 3 with bias; it reads enc2."""
    model = build().train()
    assert sum(p.numel() for p in model.aux_head["enc2"].parameters()) == 9 * 192 * 16 + 2 * 16 + 17 * 3
    assert isinstance(model.aux_head["enc2"].classifiers.dropout, nn.Dropout2d)
    pyramid = [x.detach().requires_grad_() for x in model.backbone(torch.randn(2, 3, 64, 64))]
    model.decode(pyramid).aux["enc2"].sum().backward()
    assert [x.grad is not None for x in pyramid] == [False, False, True, False]


def test_auxiliary_logits_exist_in_training_only() -> None:
    model, image = build(), torch.randn(2, 3, 64, 64)
    assert set(model.train()(image).aux) == {"enc2"}
    assert model.eval()(image).aux == {}
    assert build(aux_level=None).train()(image).aux == {}
    assert build(outputs={"depth": 1}).train()(image).aux == {}
    assert set(build(aux_level=-1).train()(image).aux) == {"enc3"}


def test_decode_is_the_rest_of_forward() -> None:
    model, image = build().eval(), torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        model(image).outputs["label"], model.decode(model.backbone(image)).outputs["label"]
    )


def test_align_corners_reaches_the_head() -> None:
    a, b = build(align_corners=False).eval(), build(align_corners=True).eval()
    b.load_state_dict(a.state_dict())
    pyramid: list[Tensor] = [torch.randn(1, s.channels, 8, 8) for s in a.backbone.specs]
    assert a.head.pooling.align_corners is False
    assert b.head.pooling.align_corners is True
    assert not torch.allclose(a.decode(pyramid).outputs["label"], b.decode(pyramid).outputs["label"])


def test_a_level_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"model\.aux_level=4"):
        build(aux_level=4)


def test_input_channels_reach_the_backbone() -> None:
    assert build(in_channels=4).eval()(torch.zeros(1, 4, 64, 64)).outputs["label"].shape == (1, 3, 2, 2)


@pytest.mark.parametrize("name", listed("head", without={"segnet", "smp"}))
def test_configured_heads_are_built(name: str) -> None:
    node = node_of("head", name)
    kind = getattr(models, node.pop("_target_").rpartition(".")[2])
    assert node.pop("_partial_") is True
    specs = tuple(map(FeatureSpec, (4, 8, 16, 32), (8, 16, 32, 64)))
    node |= {"num_classes": 5} if "num_classes" in signature(kind).parameters else {}
    with FakeTensorMode():  # not the meta device, for which there is no autocast
        head = kind(specs, {"label": 5}, align_corners=False, **node)
        head._fitted = True  # dupsampling reads a value to know, and there are none
        maps = [torch.empty(2, s.channels, 96 // s.stride, 128 // s.stride) for s in specs]
        assert head(maps).outputs["label"].shape[:2] == (2, 5)


@pytest.mark.parametrize("name", listed("backbone", without=NOT_OF_TIMM))
def test_configured_backbones_name_timm_models(name: str) -> None:
    import timm

    node = node_of("backbone", name)
    assert node.pop("_target_") == "hardpix.models.TimmBackbone"
    assert timm.is_model(node["name"])
    assert set(node) == {"_partial_", "name", "pretrained", "options", "output_stride", "freeze_bn"}


def test_several_auxiliary_heads_each_with_its_level_and_width() -> None:
    """BiSeNetV2's: four heads of two convolutions; d of one's output reaches its own level alone."""
    model = build(aux_level=[0, -1], aux_channels=[4, 6], aux_convs=2).train()
    widths = {name: [m[0].out_channels for m in head.convs] for name, head in model.aux_head.items()}
    assert widths == {"enc0": [4, 4], "enc3": [6, 6]}
    pyramid = [x.detach().requires_grad_() for x in model.backbone(torch.randn(2, 3, 64, 64))]
    aux = model.decode(pyramid).aux
    assert list(aux) == ["enc0", "enc3"]
    aux["enc3"].sum().backward()
    assert [x.grad is not None for x in pyramid] == [False, False, False, True]


@pytest.mark.parametrize(
    ("level", "channels", "told"),
    [
        ([0, 4], 8, "aux_level"),
        ([3, -1], 8, "aux_level"),
        (-5, 8, "aux_level"),
        ([0, 1], [8], "aux_channels"),
    ],
)
def test_auxiliary_levels_and_widths_that_do_not_fit_are_refused(level, channels, told) -> None:
    with pytest.raises(ConfigError, match=told):
        build(aux_level=level, aux_channels=channels)


def test_weights_that_name_the_one_auxiliary_head_without_its_level_still_load() -> None:
    model, other = build(), build()
    old = {key.replace("aux_head.enc2.", "aux_head."): value for key, value in model.state_dict().items()}
    assert old.keys() != model.state_dict().keys()
    other.load_state_dict(old)
    assert all(
        torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in (model, other)), strict=True)
    )
