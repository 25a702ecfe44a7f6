"""What every method must do, over all methods and losses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hardpix.train.build import build
from hardpix.types import ConfigError
from tests.boundary import clear
from tests.listed import listed

# Settings of single methods. What follows "on" is the run whose networks a method builds upon.
SETTINGS = {
    "layer_cascade": "head=gau_decoder method.rho=0.5",
    "error_prediction": "method.channels=16 method.w3_min=0.1 on head=psp",
    "detail": "method.channels=8 method.t=0.0 on method=error_prediction method.channels=16 on head=psp",
    "bagging": "method.channels=8 on method=hardness head=psp",
}
OTHER_BATCHES = {"lwm", "u2pl", "u2pl_hl"}  # with depth, or images without labels: test_lwm.py, test_semi.py
FOR_19 = {"balanced_cityscapes"}  # a weight for each class of Cityscapes
METHODS = (
    *(f"method=baseline loss={name}" for name in listed("loss", without=FOR_19)),
    *(f"method={name} {SETTINGS.get(name, '')}".strip()
      for name in listed("method", without={"baseline"} | OTHER_BATCHES)),
)  # fmt: skip
PLAIN = "method=baseline loss=cross_entropy"
DETAIL = f"method=detail {SETTINGS['detail']}"
# Divided by all pixels of the batch as released, those without a label included.
BY_ALL_PIXELS = {
    "method=hl_released",
    *(f"method=baseline loss={name}_released" for name in ("cross_entropy", "ohem")),
}


@pytest.fixture
def tiny(stacked):
    """``tiny`` for cases with parents too; further settings are the lowest's, whose networks they concern."""
    return lambda *overrides: stacked(*" ".join(overrides).split(" on "))


def made(tiny, case, *overrides):
    torch.manual_seed(0)
    data, method = build(tiny(*case.split(), *overrides))
    return data, method, data.evaluation_batch("train", 0)


def batch_of(data, count=2):
    parts = [data.evaluation_batch("train", i) for i in range(count)]
    tensors = {k: torch.cat([p[k] for p in parts]) for k in parts[0] if torch.is_tensor(parts[0][k])}
    return tensors | {"name": [p["name"][0] for p in parts]}


@pytest.mark.parametrize("case", METHODS)
def test_every_trainable_parameter_gets_a_gradient(tiny, case):
    data, method, _ = made(tiny, case)
    method.train()
    for name, p in method.named_parameters():
        if name.endswith("weight") and not p.any():  # residual blocks start as the identity: nothing flows
            torch.nn.init.constant_(p, 0.5)
    sum(method.losses(batch_of(data)).values()).backward()
    without = [
        n for n, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert without == []


@pytest.mark.parametrize("case", METHODS)
def test_the_loss_falls_on_one_repeated_batch(tiny, case):
    data, method, _ = made(tiny, case, "head.dropout=0", "model.aux_dropout=0")
    batch = batch_of(data)
    method.train()
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=0.01)
    history = []
    for _ in range(40):
        losses = method.losses(batch)
        loss = losses.get("segmentation", sum(losses.values()))
        history.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert history[-1] < 0.8 * history[0]


@pytest.mark.parametrize("case", [case for case in METHODS if case not in BY_ALL_PIXELS])
def test_an_image_with_no_labelled_pixel_does_not_thin_out_the_others(tiny, case):
    """The batch costs what it costs without that image; (the released HL divides by all images.)"""
    data, method, _ = made(tiny, case, "head.dropout=0", "model.aux_dropout=0")
    method.train()
    for module in method.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    batch = batch_of(data)
    with torch.no_grad():  # where two classes are next to equal, one image alone may have the other one
        batch["label"][~clear(method.predict_logits(batch["image"]), 1e-5)] = data.info.ignore_index
    batch["label"][0] = data.info.ignore_index
    both = method.losses(batch)
    alone = method.losses({key: value[1:] for key, value in batch.items()})
    for name, loss in alone.items():
        torch.testing.assert_close(both[name], loss)


@pytest.mark.parametrize("case", METHODS)
def test_prediction_takes_rgb_alone_and_void_labels_never_matter(tiny, case):
    data, method, batch = made(tiny, case)
    method.eval()
    with torch.no_grad():
        first = method.predict_logits(batch["image"])
        assert first.shape == (1, data.info.num_classes, *batch["label"].shape[1:])
        maps = method.maps({"image": batch["image"], "name": batch["name"]})
        assert all(m.shape == batch["label"].shape for m in maps.values())
        assert torch.equal(first, method.predict_logits(batch["image"]))


@pytest.mark.parametrize("case", ["method=baseline loss=ohem", "method=hardness", DETAIL])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_losses_stay_float32_under_mixed_precision(tiny, case, precision):
    data, method, _ = made(tiny, case)
    method.train()
    batch = batch_of(data)
    with torch.autocast("cpu", dtype=precision):
        losses = method.losses(batch)
    assert all(x.dtype == torch.float32 and torch.isfinite(x) for x in losses.values())


def test_a_method_that_would_ignore_the_loss_refuses_it(tiny):
    with pytest.raises(ConfigError, match=r"loss=OHEM.*method=baseline"):
        build(tiny("method=hardness", "loss=ohem"))


def test_aux_heads_keep_plain_cross_entropy_with_the_losss_normaliser(tiny):
    """OHEM and HL mine the decode head only (mmsegmentation); the auxiliary term is the same under both."""
    found = {}
    for case in ("method=baseline loss=cross_entropy", "method=baseline loss=ohem"):
        data, method, _ = made(tiny, case, "head.dropout=0", "model.aux_dropout=0")
        method.train()
        found[case] = float(method.losses(batch_of(data))["aux_enc2"].detach())
    assert len(set(found.values())) == 1
    data, method, _ = made(tiny, PLAIN, "model.aux_dropout=0", "aux_weight=0.7", "loss.normalizer=all")
    method.train()
    batch = batch_of(data)
    logits = method.enlarge(method.model(batch["image"]).aux["enc2"], batch["label"].shape).double()
    picked = torch.log_softmax(logits, 1).gather(1, batch["label"].clamp(max=17)[:, None])[:, 0]
    expected = -(picked * (batch["label"] != 255)).sum() / batch["label"].numel()
    got = method.losses(batch)["aux_enc2"]
    assert float(got.detach()) == pytest.approx(0.7 * float(expected.detach()), rel=1e-4)


def test_scores_come_from_one_confusion_matrix_over_the_split(tiny):
    """Not from a mean over batches: frames differ in labelled pixels and classes."""
    data, method, _ = made(tiny, PLAIN)
    method.eval()
    confusion = np.zeros((18, 18), np.int64)
    frames = 0
    for given in data.test_dataloader():
        batch = data.on_after_batch_transfer(given, 0)
        with torch.no_grad():
            prediction = method(batch["image"]).argmax(1).numpy()
            method.test_step(batch, 0)
        frames += len(prediction)
        for truth, guess in zip(batch["label"].numpy().ravel(), prediction.ravel(), strict=True):
            if truth != 255:
                confusion[truth, guess] += 1
    assert frames == 3
    assert np.array_equal(method.metrics["test"].confusion.numpy(), confusion)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    expected = np.mean([np.diag(confusion)[c] / union[c] for c in range(18) if union[c]])
    assert float(method.metrics["test"].compute()["miou"]) == pytest.approx(expected)


@pytest.mark.parametrize("align_corners", [False, True])
def test_predictions_are_enlarged_by_the_models_corners(tiny, align_corners):
    _, method, batch = made(tiny, PLAIN, f"model.align_corners={str(align_corners).lower()}")
    method.eval()
    with torch.no_grad():
        raw, got = method.model(batch["image"]).outputs["label"], method(batch["image"])
    size = batch["label"].shape[-2:]
    assert raw.shape[-2:] != size
    torch.testing.assert_close(got, F.interpolate(raw, size, mode="bilinear", align_corners=align_corners))
    other = F.interpolate(raw, size, mode="bilinear", align_corners=not align_corners)
    assert not torch.allclose(got, other, atol=1e-3 * float(raw.abs().max()))


def test_aux_heads_are_not_mined(tiny):
    """At this threshold the decoder's loss keeps next to no pixel, plain cross-entropy all of them."""
    case = "method=baseline loss=ohem loss.min_kept=0 loss.thresh=0.01 loss.reduction=valid"
    data, method, _ = made(tiny, case, "model.aux_dropout=0", "aux_weight=0.7")
    method.train()
    batch = batch_of(data)
    logits = method.enlarge(method.model(batch["image"]).aux["enc2"], batch["label"].shape)
    want = 0.7 * F.cross_entropy(logits, batch["label"], ignore_index=data.info.ignore_index)
    assert float(method.loss(logits, batch["label"]).detach()) < 0.1 * float(want.detach())
    assert float(method.losses(batch)["aux_enc2"].detach()) == pytest.approx(float(want.detach()), rel=1e-4)


@pytest.mark.parametrize("split", ["val", "test"])
def test_scores_are_of_what_the_inference_returns(tiny, split):
    data, method, batch = made(tiny, PLAIN)
    method.eval()
    guess = torch.arange(batch["label"].numel()).view(batch["label"].shape) % data.info.num_classes
    given = []

    def infer(forward, image, *, groups):
        assert groups == (data.info.num_classes,)
        given.append((forward, image))
        return F.one_hot(guess, data.info.num_classes).movedim(-1, 1).float()

    method.parts = method.parts._replace(infer=infer)
    getattr(method, {"val": "validation_step", "test": "test_step"}[split])(batch, 0)
    want = torch.zeros(data.info.num_classes, data.info.num_classes, dtype=torch.int64)
    for truth, predicted in zip(batch["label"].flatten().tolist(), guess.flatten().tolist(), strict=True):
        if truth != data.info.ignore_index:
            want[truth, predicted] += 1
    assert torch.equal(method.metrics[split].confusion, want)
    assert given[0][0] == method.dense
    assert given[0][1] is batch["image"]
