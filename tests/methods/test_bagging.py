"""Bagging: the detail branch on all pixels, and the mean of two probabilities."""

import numpy as np
import pytest
import torch

from hardpix.train.build import build
from hardpix.train.parent import inherit
from hardpix.types import ConfigError

C, VOID = 18, 255


@pytest.fixture
def made(stacked):
    """``made(*overrides)``: the method on a segmenter, in training mode, and a batch."""

    def make(*overrides):
        torch.manual_seed(0)
        case = " ".join(["method=bagging", "method.channels=8", *overrides])
        data, method = build(stacked(case, "head=deeplabv3plus head.low_channels=4"))
        method.detail_branch.classifier.weight.data.mul_(100)  # pixels differ in what they cost
        parts = [data.evaluation_batch("train", i) for i in range(2)]
        batch = {k: torch.cat([p[k] for p in parts]) for k in ("image", "label")} | {"name": ["a", "b"]}
        batch["label"][0, :9] = VOID
        return method.train(), batch

    return make


def test_every_valid_pixel_trains_the_detail_branch_alone(made):
    method, batch = made()
    assert not any(m.training for m in method.model.modules())
    losses = method.losses(batch)
    assert set(losses) == {"detail"}
    semantic = method.semantic(batch["image"])
    logits = method.detail_logits(semantic, batch["image"]).detach().double().numpy()
    label = batch["label"].numpy()
    total, count = 0.0, 0
    for b, y, x in np.ndindex(*label.shape):
        if label[b, y, x] != VOID:
            v = logits[b, :, y, x]
            total += np.log(np.exp(v - v.max()).sum()) + v.max() - v[label[b, y, x]]
            count += 1
    assert float(losses["detail"].detach()) == pytest.approx(total / count, rel=1e-5)
    losses["detail"].backward()
    assert all(p.grad is None for p in method.model.parameters())
    assert list(method.parameter_groups()) == ["detail_branch"]
    assert all(p.grad is not None for p in method.detail_branch.parameters())


def test_the_mean_of_both_probabilities_decides(made):
    method, _ = made()
    dense = 3 * torch.randn(2, 2 * C, 5, 7, generator=torch.Generator().manual_seed(0))
    semantic, detail = (x.double().softmax(1) for x in dense.split(C, 1))
    got = method.decide(dense)
    torch.testing.assert_close(got.double().exp(), (semantic + detail) / 2, atol=1e-6, rtol=1e-5)
    alone = [(x.argmax(1) != got.argmax(1)).any() for x in (semantic, detail)]
    assert all(alone)
    # The mean of logits is another matter.
    assert (got.argmax(1) != (dense[:, :C] + dense[:, C:]).argmax(1)).any()
    assert torch.isfinite(method.decide(torch.cat([dense[:, :C] * 1e3, dense[:, C:]], 1))).all()


def test_dense_holds_both_and_scores_name_both(made):
    method, batch = made()
    method.eval()
    with torch.no_grad():
        dense = method.dense(batch["image"])
        semantic = method.semantic(batch["image"])
        assert torch.equal(dense[:, :C], semantic.logits)
        assert torch.equal(dense[:, C:], method.detail_logits(semantic, batch["image"]))
    assert method.groups == (C, C)
    method.score_extra(method.extra_metrics["val"], dense, batch)
    found = method.extra_metrics["val"]["members"].compute()
    assert set(found) == {"semantic_miou", "detail_miou"}
    for name, logits in zip(("semantic_miou", "detail_miou"), dense.split(C, 1), strict=True):
        confusion = np.zeros((C, C))
        for truth, guess in zip(
            batch["label"].flatten().tolist(), logits.argmax(1).flatten().tolist(), strict=True
        ):
            if truth != VOID:
                confusion[truth, guess] += 1
        hit = np.diag(confusion)
        union = confusion.sum(0) + confusion.sum(1) - hit
        assert float(found[name]) == pytest.approx(np.mean(hit[union > 0] / union[union > 0]))


def test_it_stands_on_a_segmenter(tiny, made):
    with pytest.raises(ConfigError, match="Bagging needs a trained segmenter: give its run, parent=RUN"):
        inherit(tiny("method=bagging"))
    with pytest.raises(ConfigError, match=r"loss=OHEM"):
        made("loss=ohem")


def test_scales_average_each_branchs_probabilities(made):
    method, batch = made("inference=multiscale", "inference.scales=[1.0]", "inference.flip=true")
    method.eval()
    image = batch["image"][:1]
    with torch.no_grad():
        got = method.predict_dense(image).exp()
        straight, mirrored = method.dense(image), method.dense(image.flip(-1)).flip(-1)
    for part in (slice(0, C), slice(C, 2 * C)):
        want = (straight[:, part].softmax(1) + mirrored[:, part].softmax(1)) / 2
        torch.testing.assert_close(got[:, part], want, atol=1e-5, rtol=1e-4)
