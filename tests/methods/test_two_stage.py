"""A head that decides twice under every method: what its first stage costs, and whom that moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hardpix.train.build import build

OCR = (
    "head=ocr",
    "head.ocr_channels=4",
    "head.coarse_channels=8",
    "head.dropout=0",
    "model.aux_level=null",
)
BISENET = (
    "backbone=bisenetv2",
    "backbone.detail_channels=[4,4,6]",
    "backbone.semantic_channels=[4,4,4,6]",
    "backbone.layers=[1,1,1]",
    "backbone.expansion=2",
    "model=bisenetv2",
    "model.aux_channels=[4,5,6,7]",
    "model.aux_dropout=0",
    "head.dropout=0",
)


@pytest.fixture
def made(tiny):
    def make(*overrides, form=OCR):
        torch.manual_seed(0)
        data, method = build(tiny(*form, *overrides))
        parts = [data.evaluation_batch("train", i) for i in range(2)]
        keys = [k for k in ("image", "label", "depth", "depth_valid") if k in parts[0]]
        batch = {k: torch.cat([p[k] for p in parts]) for k in keys} | {"name": ["a", "b"]}
        batch["label"][0, :9] = 255  # the images differ in labelled pixels, so image and batch means differ
        with torch.no_grad():
            for name, p in method.named_parameters():  # or all logits are near 0 and all pixels cost alike
                if "classifier" in name:
                    p.mul_(60)
        return method.train(), batch

    return make


def gradients(method, loss: Tensor) -> dict[str, Tensor | None]:
    method.zero_grad()
    loss.backward()
    return {n: p.grad for n, p in method.named_parameters()}


def moved(grads: dict[str, Tensor | None], prefix: str) -> bool:
    chosen = [g for n, g in grads.items() if n.startswith(prefix)]
    assert chosen, prefix
    return any(g is not None and bool(g.any()) for g in chosen)


def slow_ce(logits: Tensor, label: np.ndarray) -> np.ndarray:
    """``[B, H, W]`` float64, 0 on void."""
    values = np.moveaxis(logits.detach().double().numpy(), 1, 3)
    ce = np.zeros(label.shape)
    for pixel in zip(*np.nonzero(label != 255), strict=True):
        v = values[pixel]
        ce[pixel] = np.log(np.exp(v).sum()) - v[label[pixel]]
    return ce


def decided(method, batch) -> tuple[np.ndarray, np.ndarray]:
    """CE of the first and of the last decision at label size."""
    out, label = method.model(batch["image"]), batch["label"]
    assert list(out.stages) == ["coarse"]
    first = method.enlarge(out.stages["coarse"], label.shape)
    last = method.enlarge(out.outputs["label"], label.shape)
    return slow_ce(first, label.numpy()), slow_ce(last, label.numpy())


@pytest.mark.parametrize("method_name", ["hardness", "hl_released"])
def test_hardness_weighs_both_decisions_by_one_map(made, method_name):
    """0.4 sum H CE(first) + sum H CE(last) - alpha sum H CE(last): the map is taught by the last alone."""
    method, batch = made(f"method={method_name}", "method.alpha=0.3")
    label, valid = batch["label"].numpy(), batch["label"].numpy() != 255
    first, last = decided(method, batch)
    pyramid = method.model.backbone(batch["image"])
    d = method.hardness_logits(pyramid, label.shape).detach().double().numpy()[:, 0]
    z = 1 / (1 + np.exp(-d)) + 0.1
    assert z.std() > 0.01

    def weighted(ce: np.ndarray) -> float:
        if method_name == "hl_released":
            return (z / z.sum() * ce).sum()
        return np.mean([(z[b] * ce[b]).sum() / z[b][valid[b]].sum() for b in range(2)])

    losses = {name: float(x.detach()) for name, x in method.losses(batch).items()}
    want = {
        "segmentation": weighted(last),
        "hardness": -0.3 * weighted(last),
        "stage_coarse": 0.4 * weighted(first),
    }
    assert losses == pytest.approx(want, rel=1e-4)
    assert abs(weighted(first) / weighted(last) - 1) > 0.01
    assert abs(weighted(first) / first[valid].mean() - 1) > 1e-3  # or the weights do nothing here


@pytest.mark.parametrize("method_name", ["hardness", "hl_released"])
def test_each_loss_of_hardness_moves_its_own_player(made, method_name):
    method, batch = made(f"method={method_name}")
    losses = method.losses(batch)
    grads = gradients(method, losses["stage_coarse"])
    assert not moved(grads, "hardness.")
    assert moved(grads, "model.head.coarse.")
    assert moved(grads, "model.backbone.")
    assert not moved(grads, "model.head.attention.")
    assert not moved(grads, "model.head.classifiers.")
    grads = gradients(method, method.losses(batch)["segmentation"])
    assert not moved(grads, "hardness.")
    assert moved(grads, "model.head.coarse.")  # through the regions
    grads = gradients(method, method.losses(batch)["hardness"])
    assert not moved(grads, "model.")
    assert moved(grads, "hardness.attention.")
    assert moved(grads, "hardness.coarse.")


def test_the_hardness_head_is_a_two_stage_copy_whose_last_has_one_class(made):
    method, batch = made("method=hardness")
    ours, theirs = (
        {n: p.shape for n, p in m.named_parameters()} for m in (method.hardness, method.model.head)
    )
    differing = {n.replace("hardness", "label") for n in ours if ours[n] != theirs.get(n)}
    assert differing == {"classifiers.convs.label.weight", "classifiers.convs.label.bias"}
    assert len(ours) == len(theirs)
    assert ours["coarse_classifier.convs.label.weight"][0] == method.info.num_classes
    assert ours["classifiers.convs.hardness.weight"][0] == 1
    assert dict(method.hardness(method.model.backbone(batch["image"]).detach()).stages) == {}


def test_the_factor_is_aux_weight(made):
    losses = {}
    for factor in (0.4, 1.0):
        method, batch = made("method=hardness", f"aux_weight={factor}")
        losses[factor] = {name: float(x.detach()) for name, x in method.losses(batch).items()}
    assert losses[1.0]["stage_coarse"] == pytest.approx(2.5 * losses[0.4]["stage_coarse"], rel=1e-5)
    assert losses[1.0]["segmentation"] == pytest.approx(losses[0.4]["segmentation"], rel=1e-5)


@pytest.mark.parametrize("reduction", ["kept", "all"])
def test_ohem_mines_each_decision_by_itself(made, reduction):
    settings = ("loss=ohem", "loss.thresh=null", "loss.min_kept=300", f"loss.reduction={reduction}")
    method, batch = made("method=baseline", *settings)
    label = batch["label"].numpy()
    first, last = decided(method, batch)
    kept = []

    def mined(ce: np.ndarray) -> float:
        keep = np.zeros(ce.shape, bool)
        keep.flat[np.argsort(ce, axis=None)[-600:]] = True  # 300 an image
        kept.append(keep)
        return (ce * keep).sum() / (keep.sum() if reduction == "kept" else keep.size)

    losses = {name: float(x.detach()) for name, x in method.losses(batch).items()}
    assert losses == pytest.approx(
        {"segmentation": mined(last), "stage_coarse": 0.4 * mined(first)}, rel=1e-4
    )
    assert all(keep.sum() == 600 < (label != 255).sum() for keep in kept)
    assert (kept[0] != kept[1]).any()


@pytest.mark.parametrize("normalizer", ["valid", "all"])
def test_plain_cross_entropy_of_the_baseline(made, normalizer):
    method, batch = made("method=baseline", f"loss.normalizer={normalizer}")
    label = batch["label"].numpy()
    first, last = decided(method, batch)
    count = (label != 255).sum() if normalizer == "valid" else label.size
    losses = {name: float(x.detach()) for name, x in method.losses(batch).items()}
    want = {"segmentation": last.sum() / count, "stage_coarse": 0.4 * first.sum() / count}
    assert losses == pytest.approx(want, rel=1e-4)


def test_lwm_leaves_the_first_decision_unweighted(made):
    method, batch = made("method=lwm")
    label = batch["label"].numpy()
    first, _ = decided(method, batch)
    losses = method.losses(batch)
    assert set(losses) == {"segmentation", "hard", "depth", "side", "stage_coarse"}
    plain = first.sum() / (label != 255).sum()
    assert float(losses["stage_coarse"].detach()) == pytest.approx(0.4 * plain, rel=1e-4)
    grads = gradients(method, losses["stage_coarse"])
    assert moved(grads, "model.head.coarse_classifier.")
    assert not moved(grads, "side.")


@pytest.mark.parametrize("name", ["baseline", "hardness"])
def test_evaluation_knows_one_decision(made, name):
    method, batch = made(f"method={name}")
    method.eval()
    with torch.no_grad():
        out = method.model(batch["image"])
        before = method.predict_logits(batch["image"])
        for conv in method.model.head.classifiers.convs.values():
            conv.weight.zero_()
            conv.bias.copy_(torch.arange(float(method.info.num_classes)))
        after = method.predict_logits(batch["image"])
    assert dict(out.stages) == {}
    torch.testing.assert_close(before, method.enlarge(out.outputs["label"], batch["label"].shape))
    assert (after.argmax(1) == method.info.num_classes - 1).all()  # the last classifier alone speaks


@pytest.mark.parametrize("method_name", ["baseline", "hardness", "hl_released"])
def test_auxiliary_heads_stay_unweighted(made, method_name):
    """BiSeNetV2's four: plain cross-entropy with factor 1.0 each, whatever the method weighs."""
    method, batch = made(f"method={method_name}", form=BISENET)
    label = batch["label"]
    out = method.model(batch["image"])
    losses = method.losses(batch)
    valid = int((label != 255).sum())
    want = {
        f"aux_{n}": slow_ce(method.enlarge(x, label.shape), label.numpy()).sum() / valid
        for n, x in out.aux.items()
    }
    assert list(want) == [f"aux_enc{i}" for i in range(4)]
    assert {n: float(losses[n].detach()) for n in want} == pytest.approx(want, rel=1e-4)
    assert set(losses) - set(want) == (
        {"segmentation"} | ({"hardness"} if method_name != "baseline" else set())
    )
    grads = gradients(method, sum(losses[n] for n in want))
    assert moved(grads, "model.backbone.semantic.stage4.")
    assert not moved(grads, "model.backbone.aggregation.")
    assert method_name == "baseline" or not moved(grads, "hardness.")
