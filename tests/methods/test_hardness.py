"""HL's own equations, on a whole network."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hardpix.models import Pyramid
from hardpix.models.layers import HeadOutput
from hardpix.train.build import build
from hardpix.types import ConfigError


def made(tiny, case="method=hardness", *overrides):
    torch.manual_seed(0)
    data, method = build(tiny(case, "head.dropout=0", "model.aux_dropout=0", *overrides))
    parts = [data.evaluation_batch("train", i) for i in range(2)]
    batch = {k: torch.cat([p[k] for p in parts]) for k in ("image", "label")} | {"name": ["a", "b"]}
    batch["label"][0, :9] = 255  # the images differ in labelled pixels, so image and batch means differ
    return method.train(), batch


def gradients(method, loss):
    method.zero_grad()
    loss.backward()
    return {n: p.grad for n, p in method.named_parameters()}


def nothing(grads, prefix):
    chosen = {n: g for n, g in grads.items() if n.startswith(prefix)}
    assert chosen
    return all(g is None or not g.any() for g in chosen.values())


def test_each_player_moves_only_its_own_weights(tiny):
    method, batch = made(tiny)
    grads = gradients(method, method.losses(batch)["hardness"])
    assert nothing(grads, "model.")
    assert not nothing(grads, "hardness.")
    grads = gradients(method, method.losses(batch)["segmentation"])
    assert nothing(grads, "hardness.")
    assert not nothing(grads, "model.backbone.")


@pytest.mark.parametrize("case", ["method=hardness", "method=hl_released"])
def test_losses_are_the_equations(tiny, case):
    """A slow NumPy loop from the definitions, on the network's own logits and hardness."""
    method, batch = made(tiny, case, "method.alpha=0.3")
    image, label = batch["image"], batch["label"].numpy()
    pyramid = method.model.backbone(image)
    logits = (
        method.enlarge(method.model.decode(pyramid).outputs["label"], label.shape).detach().double().numpy()
    )
    d = method.hardness_logits(pyramid, label.shape).detach().double().numpy()[:, 0]
    ce = np.zeros(label.shape)
    z = 1 / (1 + np.exp(-d)) + 0.1
    for index in np.ndindex(*label.shape):
        if label[index] != 255:
            v = logits[index[0], :, index[1], index[2]]
            ce[index] = np.log(np.exp(v - v.max()).sum()) + v.max() - v[label[index]]
    if case == "method=hl_released":
        expected = (z / z.sum() * ce).sum()
    else:
        valid = label != 255
        expected = np.mean([(z[b] * ce[b]).sum() / z[b][valid[b]].sum() for b in range(2)])
    losses = method.losses(batch)
    assert float(losses["segmentation"].detach()) == pytest.approx(expected, rel=1e-4)
    assert float(losses["hardness"].detach()) == pytest.approx(-0.3 * expected, rel=1e-4)


def test_the_hardness_head_is_a_second_instance_with_one_class(tiny):
    method, _ = made(tiny)
    ours = {n: p.shape for n, p in method.hardness.named_parameters()}
    theirs = {n: p.shape for n, p in method.model.head.named_parameters()}
    assert len(ours) == len(theirs)
    differing = [n for n in ours if "classifier" not in n and ours[n] != theirs[n]]
    assert differing == []
    shared = {id(p) for p in method.hardness.parameters()} & {id(p) for p in method.model.parameters()}
    assert shared == set()
    weights = [n for n, p in method.hardness.named_parameters() if p.ndim == 4 and "classifier" not in n]
    same = [
        n
        for n in weights
        if torch.equal(method.hardness.get_parameter(n), method.model.head.get_parameter(n))
    ]
    assert same == []


def test_the_map_is_z_with_its_known_range(tiny):
    method, batch = made(tiny)
    method.eval()
    with torch.no_grad():
        z = method.maps(batch)["hardness"]
        d = method.hardness_logits(method.model.backbone(batch["image"]), batch["label"].shape)[:, 0]
    assert torch.allclose(z, torch.sigmoid(d) + 0.1)
    assert ((z > 0.1) & (z < 1.1)).all()


def test_hardness_rises_where_the_loss_is_high(tiny):
    """d(alpha L_h)/dD has the sign of (weighted mean loss - loss): a step raises D on the costly pixels."""
    method, batch = made(tiny)
    for name, p in method.named_parameters():
        if "classifier" in name:
            p.data.mul_(
                60
            )  # as initialised all pixels cost alike, and the step shows in the last digit alone
    pyramid = method.model.backbone(batch["image"])
    grads = torch.autograd.grad(
        method.losses(batch)["hardness"], list(method.hardness.parameters()), allow_unused=True
    )
    before = method.hardness_logits(pyramid, batch["label"].shape)
    with torch.no_grad():
        for p, g in zip(method.hardness.parameters(), grads, strict=True):
            p -= 50 * g
    after = method.hardness_logits(pyramid, batch["label"].shape)
    weighted = method.losses(batch)["segmentation"]
    with torch.no_grad():
        for p, g in zip(method.hardness.parameters(), grads, strict=True):
            p += 50 * g
    assert not torch.equal(before, after)
    assert float(weighted.detach()) > 1.001 * float(method.losses(batch)["segmentation"].detach())


@pytest.mark.parametrize("override", ["method.alpha=-1", "method.c=0", "method.normalize_over=pixel"])
def test_ranges(tiny, override):
    with pytest.raises(ConfigError, match=override.split("=")[0].split(".")[1]):
        build(tiny("method=hardness", override))


@pytest.mark.parametrize("align_corners", [False, True])
def test_hardness_is_enlarged_before_the_sigmoid_by_the_models_corners(tiny, align_corners):
    """Logits of +-8: a sigmoid that came first would leave a ramp where there has to be a steep edge."""
    method, batch = made(tiny, "method=hardness", f"model.align_corners={str(align_corners).lower()}")
    raw = torch.where(torch.arange(48).view(1, 1, 6, 8) % 3 == 0, -8.0, 8.0).repeat(2, 1, 1, 1)
    method.hardness = Fixed(raw)
    got = method.hardness_logits(Pyramid([batch["image"]]), batch["label"].shape)
    want = F.interpolate(raw, (32, 48), mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(got, want)
    other = F.interpolate(raw, (32, 48), mode="bilinear", align_corners=not align_corners)
    assert (got - other).abs().max() > 1


class Fixed(torch.nn.Module):
    """A head that has made up its mind."""

    def __init__(self, raw):
        super().__init__()
        self.raw = raw

    def forward(self, pyramid):
        return HeadOutput({"hardness": self.raw}, [self.raw])


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_hardness_head_resizes_as_the_segmenter_does(tiny, align_corners):
    method, _ = made(tiny, "method=hardness", "head=psp", f"model.align_corners={str(align_corners).lower()}")
    heads = [method.model.head, method.hardness]
    assert [head.pooling.align_corners for head in heads] == [align_corners] * 2
    assert [head.input.align_corners for head in heads] == [align_corners] * 2
