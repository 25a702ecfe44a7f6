"""The branch that predicts errors, on a whole network: what it reads, what it costs, and what stays as it was."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hardpix import record
from hardpix.models import DUpsamplingHead
from hardpix.train.build import build
from hardpix.train.train import train
from hardpix.types import ConfigError
from tests.boundary import clear, threshold_near
from tests.listed import listed

C, VOID = 18, 255
SEGMENTER = "head=deeplabv3plus head.low_channels=4"
LWM = (
    "method=lwm head=refinenet_cascades head.widths=[8,6,6,6] head.crp_stages=1 head.output_units=1 "
    "model.aux_level=null"
)
SETTINGS = {
    "deeplabv3plus": "head.low_channels=4",
    "dpc": "head.low_channels=4",
    "dupsampling": "head.low_channels=4 head.code_channels=4 head.ratio=4",
    "refinenet": "head.widths=[8,6,6,6] head.crp_stages=1 head.output_units=1",
    "refinenet_cascades": "head.widths=[8,6,6,6] head.crp_stages=1 head.output_units=1 model.aux_level=null",
    "ocr": "head.ocr_channels=4 head.coarse_channels=8 model.aux_level=null",
    "segnet": "backbone=segnet model.aux_level=null",
}
# smp: of an optional package.
HEADS = {n: f"head={n} {SETTINGS.get(n, '')}".strip() for n in listed("head", without={"smp"})} | {
    "hardness": "method=hardness head=psp",
    "lwm": LWM,
    "layer_cascade": "method=layer_cascade head=gau_decoder",
}


@pytest.fixture
def made(stacked):
    """``made(*overrides, on=)``: the method in training mode on a segmenter with errors of all kinds, and a batch."""

    def make(*overrides, on=SEGMENTER):
        torch.manual_seed(0)
        case = " ".join(["method=error_prediction", "method.channels=16", *overrides])
        data, method = build(stacked(case, on))
        if isinstance(method.model.head, DUpsamplingHead):
            method.model.head.frequency.fill_(0.1)  # as if its labels had been seen
        for module in method.model.modules():  # so that inference mode differs from training mode
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
        parts = [data.evaluation_batch("train", i) for i in range(2)]
        keys = [k for k in ("image", "label", "depth", "depth_valid") if k in parts[0]]
        batch = {k: torch.cat([p[k] for p in parts]) for k in keys} | {"name": ["a", "b"]}
        batch["label"][0, :9] = VOID  # the images differ in labelled pixels
        return method.train(), batch

    return make


def branch_outputs(method, batch):
    """(segmenter's logits, logits of P_ep) at label size, by the network's parts one after the other."""
    image, size = batch["image"], tuple(batch["image"].shape[-2:])
    corners = method.model.align_corners
    with torch.no_grad():
        out = method.model.eval()(image)
        low = out.outputs["label"]
        quarter = F.interpolate(
            low, (-(-size[0] // 4), -(-size[1] // 4)), mode="bilinear", align_corners=corners
        )
        deepest = [name for name in out.features if name.startswith("dec")][-1]
        x = method.error_branch(quarter.softmax(1), image, out.features[deepest])
        return tuple(F.interpolate(v, size, mode="bilinear", align_corners=corners) for v in (low, x))


def slow_loss(logits, error_logits, label, *, rho, w1, w2, w3, w3_min):
    """(5.7) and (5.9), one pixel after the other."""
    images = []
    values, doubt = logits.double().numpy(), error_logits[:, 0].double().numpy()
    for b in range(len(label)):
        terms, errors, valid = [], 0, 0
        for y, x in np.ndindex(*label.shape[1:]):
            truth = int(label[b, y, x])
            if truth == VOID:
                continue
            v = np.exp(values[b, :, y, x] - values[b, :, y, x].max())
            p, wrong = v / v.sum(), v.argmax() != truth
            likelihood = -np.log1p(np.exp(-doubt[b, y, x] if wrong else doubt[b, y, x]))
            terms.append((wrong, wrong and p.max() > rho, likelihood))
            errors, valid = errors + wrong, valid + 1
        if not valid:
            continue
        share = {"share": errors / valid, "ratio": errors / max(1, valid - errors)}.get(w3, w3)
        weight = [w2 if hard else w1 if wrong else max(share, w3_min) for wrong, hard, _ in terms]
        images.append(-sum(w * t[2] for w, t in zip(weight, terms, strict=True)) / valid)
    return sum(images) / len(images) if images else 0.0


def mixed(method, batch, rho):
    """Labels with correct pixels, easy and hard errors in both images, in unlike numbers."""
    logits, _ = branch_outputs(method, batch)
    sure = logits.softmax(1).amax(1)
    g = torch.Generator().manual_seed(3)
    guess = logits.argmax(1)
    wrong = torch.rand(guess.shape, generator=g) < torch.tensor([0.1, 0.4])[:, None, None]
    label = torch.where(wrong, (guess + 1) % C, guess)
    label[batch["label"] == VOID] = VOID
    kinds = [((label != VOID) & (label != guess) & (sure > rho) == k)[label != VOID].sum() for k in (0, 1)]
    assert min(kinds) > 20
    return label


@pytest.mark.parametrize("w3", ["share", "ratio", "0.04"])
@pytest.mark.parametrize("w3_min", [0.0, 0.3])
def test_the_loss_is_the_equation(made, w3, w3_min):
    method, batch = made("method.w2=1.7", f"method.w3={w3}", f"method.w3_min={w3_min}")
    for p in method.model.head.classifiers.parameters():
        p.data.mul_(60)  # as initialised it is as sure of every pixel
    logits, doubt = branch_outputs(method, batch)
    sure = logits.softmax(1).amax(1)
    rho = method.rho = threshold_near(sure, float(sure.median()))
    batch["label"] = mixed(method, batch, rho)
    weights = {"w1": 1.0, "w2": 1.7, "w3": w3 if w3.isalpha() else float(w3), "w3_min": w3_min}
    want = slow_loss(logits, doubt, batch["label"], rho=rho, **weights)
    losses = method.losses(batch)
    assert list(losses) == ["error_prediction"]
    assert float(losses["error_prediction"].detach()) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
    ("align_corners", "size"), [("false", (32, 48)), ("true", (32, 48)), ("false", (29, 45))]
)
def test_it_reads_probabilities_at_stride_4_the_image_and_the_deepest_decoder_map(
    made, monkeypatch, align_corners, size
):
    method, batch = made(on=f"{SEGMENTER} model.align_corners={align_corners}")
    batch["image"] = batch["image"][..., : size[0], : size[1]].contiguous()
    assert {m.align_corners for m in method.error_branch.modules() if hasattr(m, "align_corners")} == {
        align_corners == "true"
    }
    given = []
    forward = method.error_branch.forward
    monkeypatch.setattr(method.error_branch, "forward", lambda *x: given.append(x) or forward(*x))
    _, want = branch_outputs(method, batch)
    got = method.error_logits(method.semantic(batch["image"]), batch["image"])
    torch.testing.assert_close(got, want)
    probability, image, high = given[-1]
    assert probability.shape == (2, C, 8, 12)
    torch.testing.assert_close(probability.sum(1), torch.ones(2, 8, 12))
    assert image is batch["image"]
    assert torch.equal(high, method.model(batch["image"]).features["dec1"])


@pytest.mark.parametrize("case", HEADS.values(), ids=HEADS)
def test_every_decoder_can_be_watched_and_none_of_it_learns(made, case):
    method, batch = made(on=case)
    assert not any(m.training for m in method.model.modules())
    assert not any(p.requires_grad for p in method.model.parameters())
    assert list(method.parameter_groups()) == ["error_branch"]
    before = {k: v.clone() for k, v in method.model.state_dict().items()}
    loss = method.losses(batch)["error_prediction"]
    assert torch.isfinite(loss)
    loss.backward()
    assert all(p.grad is None for p in method.model.parameters())
    assert all(p.grad is not None for p in method.error_branch.parameters())
    assert all(torch.equal(before[k], v) for k, v in method.model.state_dict().items())
    with torch.no_grad():
        dense = method.eval().dense(batch["image"])
        logits, doubt = branch_outputs(method, batch)
    torch.testing.assert_close(method.decide(dense), logits)
    torch.testing.assert_close(dense[:, C], torch.zeros(2, 32, 48))
    torch.testing.assert_close(method.error_probability(dense), doubt[:, 0].sigmoid())
    torch.testing.assert_close(method.maps(batch)["error_probability"], doubt[:, 0].sigmoid())


def test_an_image_without_an_error_costs_nothing_and_one_full_of_them_is_all_positive(made):
    method, batch = made("method.rho=1.0")
    logits, doubt = branch_outputs(method, batch)
    guess = logits.argmax(1)
    loss = method.losses(batch | {"label": guess})["error_prediction"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(not p.grad.any() for p in method.error_branch.parameters())
    wrong = method.losses(batch | {"label": (guess + 1) % C})["error_prediction"]
    assert float(wrong.detach()) == pytest.approx(float(F.softplus(-doubt).mean()), rel=1e-5)
    floor, _ = made("method.rho=1.0", "method.w3_min=0.01")
    loss = floor.losses(batch | {"label": guess})["error_prediction"]
    assert float(loss.detach()) == pytest.approx(0.01 * float(F.softplus(doubt).mean()), rel=1e-5)


def test_crops_of_void_cost_nothing_and_do_not_thin_out_the_others(made):
    method, batch = made()
    void = torch.full_like(batch["label"], VOID)
    loss = method.losses(batch | {"label": void})["error_prediction"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(not p.grad.any() for p in method.error_branch.parameters())
    alone = {"image": batch["image"][1:], "label": batch["label"][1:], "name": ["b"]}
    both = method.losses(batch | {"label": torch.cat([void[:1], batch["label"][1:]])})["error_prediction"]
    single = method.losses(alone)["error_prediction"]
    assert float(both.detach()) == pytest.approx(float(single.detach()), rel=1e-5)
    assert float(single.detach()) > 0


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision(made, precision):
    method, batch = made()
    full = method.losses(batch)["error_prediction"]
    with torch.autocast("cpu", dtype=precision):
        half = method.losses(batch)["error_prediction"]
        assert method.eval().dense(batch["image"]).dtype == torch.float32
    assert half.dtype == torch.float32
    assert float(half.detach()) == pytest.approx(float(full.detach()), rel=0.1)


def test_scores_are_of_the_predicted_errors(made):
    def shaken(*overrides):
        method, batch = made(*overrides)
        torch.nn.init.normal_(method.error_branch.classifier.weight)
        return method.eval(), batch, branch_outputs(method, batch)

    thresholds = [threshold_near(shaken()[2][1].sigmoid(), t) for t in (0.02, 0.3, 0.5)]
    low, own, high = thresholds
    method, batch, (logits, doubt) = shaken(f"method.t={own}", f"method.thresholds=[{low},{high}]")
    dense = method.dense(batch["image"])
    batch["label"][~clear(logits, 1e-5)] = VOID
    error = (logits.argmax(1) != batch["label"]) & (batch["label"] != VOID)
    method.score_extra(method.extra_metrics["test"], dense, batch)
    found = method.extra_metrics["test"]["error"].compute()
    for t in thresholds:
        flagged = (doubt[:, 0].sigmoid() > t) & (batch["label"] != VOID)
        iou = float((flagged & error).sum() / (flagged | error).sum())
        assert float(found[f"error_iou@{t:g}"]) == pytest.approx(iou, abs=1e-6)
    assert len({float(found[f"error_iou@{t:g}"]) for t in thresholds}) > 1


def test_scales_average_probabilities_of_right_and_wrong(made):
    method, batch = made("inference=multiscale", "inference.scales=[1.0]", "inference.flip=true")
    method.eval()
    image = batch["image"]
    with torch.no_grad():
        got = method.error_probability(method.predict_dense(image))
        ways = [method.dense(image), method.dense(image.flip(-1)).flip(-1)]
    want = sum(method.error_probability(way) for way in ways) / 2
    torch.testing.assert_close(got, want)


def test_impossible_settings_get_one_sentence(stacked):
    cfg = stacked("method=error_prediction", SEGMENTER)
    for key, value, said in (
        ("rho", 1.5, "rho=1.5: must be at least 0 and at most 1"),
        ("t", -0.1, "t=-0.1: must"),
        ("w1", -1, "w1=-1: must be at least 0"),
        ("w3", -1, "w3=-1: must be share or ratio, or at least 0"),
        ("w3", "shares", "w3=shares: must be share or ratio, or at least 0"),
        ("channels", 6, "channels=6: the error branch needs a multiple of 4"),
        ("thresholds", [2], "thresholds=.*must be values, each at least 0"),
    ):
        wrong = cfg.copy()
        wrong.method[key] = value
        with pytest.raises(ConfigError, match=said):
            build(wrong)
    with pytest.raises(ConfigError, match="loss=OHEM"):
        build(stacked("method=error_prediction loss=ohem", SEGMENTER))


@pytest.mark.parametrize("ema", ["null", "0.5"])
def test_a_run_leaves_the_segmenter_bit_for_bit(tiny, tmp_path, cascade, monkeypatch, ema):
    """Parameters and buffers, dropout and batch norm in inference mode in every step, validations in between."""
    from hardpix.methods import ErrorPrediction

    modes, losses = [], ErrorPrediction.losses

    def watched(self, batch):
        modes.append({(m.training, m in set(self.model.modules())) for m in self.modules() if m is not self})
        return losses(self, batch)

    monkeypatch.setattr(ErrorPrediction, "losses", watched)
    parent = cascade("semantic")
    done = train(tiny(
        "method=error_prediction", "method.channels=8", f"parent='{parent}'", "run=a", f"trainer.ema_decay={ema}",
        "trainer.val_every_epochs=1", "optimizer.lr=0.5", "optimizer.weight_decay=0.1",
    ), [])  # fmt: skip
    assert len(modes) == 4
    assert all((True, True) not in found and (True, False) in found for found in modes)
    old, new = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (parent, tmp_path / "runs/default/a")
    )
    names = [k for k in old if k.startswith("model.")]
    assert len(names) > 50
    assert [k for k in new if k.startswith("model.")] == names
    assert all(torch.equal(old[k], new[k]) for k in names)
    assert done.parent == record.read(parent).run_id
