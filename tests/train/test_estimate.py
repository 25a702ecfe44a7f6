"""Costs of a configuration that is not trained: against counting by hand, and against a step of real training."""

import math
from itertools import pairwise

import pytest
import torch

from hardpix.config.compose import compose
from hardpix.train.build import build
from hardpix.train.cost import Tally
from hardpix.train.estimate import estimate
from hardpix.types import ConfigError

STAGES = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
METHODS = (
    ("method=baseline", "head=psp"),
    ("method=baseline", "loss=ohem", "head=deeplabv3plus"),
    ("method=baseline", "head=ocr"),
    ("method=hardness",),
    ("method=hl_released", "head=psp"),
    ("method=lwm",),
    ("method=u2pl", "data.labeled=0.5", "data.unlabeled_batch_size=3"),
    ("method=u2pl_hl", "data.labeled=0.5", "method.contrastive=true", "head=deeplabv3plus"),
    ("method=layer_cascade", "head=gau_decoder"),
)
CASCADES = (
    ("method=error_prediction", "method=baseline head=psp"),
    ("method=detail", "method=error_prediction", "method=baseline head=psp"),
    ("method=bagging", "method=baseline head=psp"),
)


def test_segnet_is_as_counted_by_hand():
    """Two images a step of 64x96 pixels, 5 steps."""
    words = ("data=nyuv2", "backbone=segnet", "head=segnet", "model.aux_level=null")
    sizes = ("data.source.root=nowhere", "data.train_transform.crop=[64,96]", "data.batch_size=2")
    cfg = compose([*words, *sizes, "trainer.max_steps=5"])
    forward, parameters = 0, 0
    for level, widths in enumerate(STAGES):
        pixels = (64 >> level) * (96 >> level)
        # The decoder mirrors the encoder; its last layer gives 40 classes. All have biases, all but this one norms.
        back = (40, *widths[1:])[::-1] if level == 0 else widths[::-1]
        for channels in (widths, back):
            for ours, theirs in pairwise(channels):
                forward += 2 * 9 * ours * theirs * pixels
                parameters += 9 * ours * theirs + (1 if theirs == 40 else 3) * theirs
    first = 2 * 9 * 3 * 64 * 64 * 96  # the gradient of the image is not needed
    found = estimate(cfg, {})
    assert found.forward == forward
    assert found.training == 5 * 2 * (3 * forward - first)
    assert found.parameters == parameters


def check(cfg):
    """Against the operations of a real step on the CPU."""
    torch.manual_seed(0)
    data, method = build(cfg, training=True)
    batch = next(iter(data.train_dataloader()))
    batch = data.on_after_batch_transfer(batch, 0)
    with Tally() as tally:
        losses = method.train().losses(batch)
        forward = tally.flops
        sum(losses.values()).backward()
    found = estimate(cfg, {})
    assert found.forward == forward / (len(batch["image"]) + len(batch.get("unlabeled", ())))
    assert found.training == tally.flops * cfg.trainer.max_steps
    assert found.parameters == sum(p.numel() for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize("words", METHODS, ids=" ".join)
def test_a_method_costs_what_its_first_step_does(tiny, words):
    check(tiny(*words))


@pytest.mark.parametrize("words", CASCADES, ids=" ".join)
def test_a_method_on_a_frozen_segmenter_costs_what_its_first_step_does(stacked, words):
    check(stacked(*words))


def test_what_needs_a_run_is_refused_without_one():
    with pytest.raises(ConfigError, match="needs a trained segmenter"):
        estimate(compose(["data=camvid", "method=error_prediction", "data.source.root=nowhere"]), {})


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (("data.drop_last=true",), 10 * 2),  # of 11 frames two batches of 4
        (("data.drop_last=false",), 10 * 3),
        (("data.train_split=trainval",), 10 * 3),  # with 3 more frames
        (("trainer.devices=2",), 10 * 1 * 2),  # the work of both
        (("trainer.accumulate=2",), 10 * 1 * 2),
        (("data.labeled=0.4",), 10 * 1),  # of 4 frames
        (("data.labeled=0.4", "method=u2pl", "data.unlabeled_batch_size=2"), 10 * 3),
        (("data.labeled=a_list.txt",), math.nan),
        (("data.repeat_rare=0.1",), math.nan),
        (("data.train_split=test",), math.nan),  # whose frames are not given
    ],
    ids=str,
)
def test_lengths_in_epochs_are_of_the_frames_that_are_given(tiny, words, steps):
    one = tiny(*words, "trainer.max_steps=1", "trainer.devices=1", "trainer.accumulate=1")
    many = tiny(*words, "trainer.max_steps=null", "trainer.max_epochs=10")
    frames = {"synthetic": {"train": 11, "val": 3}}
    found = estimate(many, frames).training / estimate(one, {}).training
    assert found == pytest.approx(steps, nan_ok=True)


def test_neither_weights_nor_memory_are_needed():
    """A network of a terabyte, with published weights."""
    words = ("data=cityscapes", "data.source.root=nowhere", "backbone=resnet101c_d8", "head=psp")
    found = estimate(compose([*words, "head.channels=200000"]), {})
    assert found.parameters > 2e10
