"""LWM's two cascades: what is summed where, what is concatenated, and what sees what."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hardpix.models import RefineNetCascadesHead, RefineNetHead
from hardpix.types import ConfigError, FeatureSpec

SPECS = tuple(map(FeatureSpec, (4, 8, 16, 32), (3, 4, 5, 6)))
SIZES = ((9, 12), (5, 6), (3, 4), (2, 2))
WIDTHS = (5, 4, 3, 2)
KEYS = {"widths": WIDTHS, "crp_stages": 2, "crp_order": "pool_conv", "output_units": 1}


def build(outputs, **given):
    torch.manual_seed(0)
    keys = {**KEYS, "fuse_stride": 4, "align_corners": False, "dropout": 0.0} | given
    head = RefineNetCascadesHead(SPECS, outputs, **keys).double()
    for conv in (m for m in head.modules() if isinstance(m, nn.Conv2d)):
        nn.init.normal_(conv.weight, std=0.2)  # so that every term is seen
    return head


@pytest.fixture
def pyramid():
    torch.manual_seed(1)
    return [torch.randn(1, s.channels, *size).double() for s, size in zip(SPECS, SIZES, strict=True)]


def cascade(blocks, pyramid, added=None):
    """Deepest first: each output, increased by the other cascade's, is what the next block gets."""
    maps, x = {}, None
    for block, level in zip(blocks, (3, 2, 1, 0), strict=True):
        x = block(pyramid[level], x)
        if added is not None:
            x = x + added[level]
        maps[level] = x
    return maps


@pytest.mark.parametrize(("stride", "corners"), [(4, False), (1, False), (4, True)])
def test_outputs_are_the_equations(pyramid, stride, corners):
    head = build({"label": 7, "depth": 1}, fuse_stride=stride, align_corners=corners)
    depth = cascade(head.cascades["depth"], pyramid)
    label = cascade(head.cascades["label"], pyramid, depth)
    found = head(pyramid)
    size = (9, 12) if stride == 4 else (36, 48)
    for name, maps in (("label", label), ("depth", depth)):
        enlarged = [
            maps[k] if maps[k].shape[-2:] == size
            else F.interpolate(maps[k], size, mode="bilinear", align_corners=corners)
            for k in range(4)
        ]  # fmt: skip
        conv = head.readers[name].convs[name]
        assert conv.weight.shape[1:] == (sum(WIDTHS), 3, 3)
        torch.testing.assert_close(
            found.outputs[name], F.conv2d(torch.cat(enlarged, 1), conv.weight, conv.bias, padding=1)
        )
    for k in range(4):
        torch.testing.assert_close(found.decoder[k], label[k])
    assert [(f.stride, f.channels) for f in head.features] == [(4, 2), (8, 3), (16, 4), (32, 5)]


def test_one_output_is_a_plain_refinenet_cascade(pyramid):
    head = build({"label": 7})
    plain = RefineNetHead(SPECS, {"label": 7}, **KEYS, align_corners=False, dropout=0.0).double()
    plain.blocks.load_state_dict(head.cascades["label"].state_dict())
    for ours, theirs in zip(head(pyramid).decoder, plain(pyramid).decoder, strict=True):
        assert torch.equal(ours, theirs)


def test_depth_never_sees_segmentation(pyramid):
    head = build({"label": 7, "depth": 1})
    before = head(pyramid)
    with torch.no_grad():
        for p in head.cascades["label"].parameters():
            p.mul_(1.5)
    after = head(pyramid)
    assert torch.equal(before.outputs["depth"], after.outputs["depth"])
    assert not torch.equal(before.outputs["label"], after.outputs["label"])


def test_dropout_lies_before_the_deepest_inputs_and_the_classifiers():
    head = build({"label": 7, "depth": 1}, dropout=0.5)
    for blocks in head.cascades.values():
        assert [block.adapt[0].p for block in blocks] == [0.5, 0.5, 0, 0]
    assert [reader.dropout.p for reader in head.readers.values()] == [0.5, 0.5]


def test_bad_settings():
    with pytest.raises(ConfigError, match="fuse_stride=2: must be 4 or 1"):
        build({"label": 2}, fuse_stride=2)
    with pytest.raises(ConfigError, match="one width per level"):
        build({"label": 2}, widths=(4, 4))
