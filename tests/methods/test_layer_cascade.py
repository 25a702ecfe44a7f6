"""The layer cascade against loops over stages and pixels."""

import numpy as np
import pytest
import torch

from hardpix.ops.window import MultiScale, WholeImage
from hardpix.train.build import build
from hardpix.types import ConfigError

CASE = ("method=layer_cascade", "head=gau_decoder", "head.dropout=0", "model.aux_dropout=0", "aux_weight=0.4")
STAGES = ("stage1", "stage2", "stage3")
C, VOID = 18, 255


def made(tiny, *overrides):
    torch.manual_seed(0)
    data, method = build(tiny(*CASE, *overrides))
    parts = [data.evaluation_batch("train", i) for i in range(2)]
    batch = {k: torch.cat([p[k] for p in parts]) for k in ("image", "label")} | {"name": ["a", "b"]}
    batch["label"][0, :9] = VOID  # the images differ in labelled pixels, so image and batch means differ
    return method.train(), batch


def stages_of(seed, size=(2, 5, 7), skill=2.0):
    """Logits of three stages ``[B, 3 C, H, W]`` and a label, all of them rather sure of half of the pixels."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, C, size, generator=g)
    truth = torch.nn.functional.one_hot(label, C).movedim(-1, 1)
    logits = [3 * skill * torch.rand(size, generator=g)[:, None] * truth for _ in STAGES]
    logits = [x + torch.randn(size[0], C, *size[1:], generator=g) for x in logits]
    label[torch.rand(size, generator=g) < 0.2] = VOID
    return torch.cat(logits, 1), label


def softmax(v):
    e = np.exp(v - v.max())
    return e / e.sum()


def naive_stage(probabilities, rho):
    """The first of three stages that is sure; the last otherwise."""
    return next((s for s in (0, 1) if probabilities[s].max() >= rho), 2)


def given_stages(method, monkeypatch, logits):
    """Let the network's three stages say ``logits`` ``[B, 3 C, H, W]``."""
    parts = list(logits.split(C, 1))
    monkeypatch.setattr(method, "_stage_logits", lambda out, size: parts)
    return parts


def test_losses_are_those_of_a_loop(tiny, monkeypatch):
    method, batch = made(tiny, "method.rho=0.6")
    logits, label = stages_of(0, tuple(batch["label"].shape))
    batch["label"] = label
    given_stages(method, monkeypatch, logits)
    total, count = dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0)
    values = logits.double().view(2, 3, C, *label.shape[1:]).numpy()
    for b, y, x in np.ndindex(*label.shape):
        if label[b, y, x] == VOID:
            continue
        for s, name in enumerate(STAGES):
            p = softmax(values[b, s, :, y, x])
            total[name] -= np.log(p[label[b, y, x]])
            count[name] += 1
            if p.max() >= 0.6:
                break
    assert count["stage1"] > count["stage2"] > count["stage3"] > 50
    losses = method.losses(batch)
    for name in STAGES:
        assert float(losses[name]) == pytest.approx(total[name] / count[name], rel=1e-5)
    assert set(losses) == {*STAGES, "aux_enc2"}


def test_accepted_pixels_get_exactly_no_gradient_and_masks_are_constants(tiny, monkeypatch):
    method, batch = made(tiny, "method.rho=0.6")
    logits, batch["label"] = stages_of(1, tuple(batch["label"].shape))
    parts = given_stages(method, monkeypatch, logits)
    parts[:] = [x.requires_grad_() for x in parts]
    losses = method.losses(batch)
    undecided = batch["label"] != VOID
    for s, name in enumerate(STAGES):
        grads = torch.autograd.grad(losses[name], parts, retain_graph=True, allow_unused=True)
        for t, grad in enumerate(grads):
            moved = torch.zeros_like(undecided) if grad is None else grad.ne(0).any(1)
            assert torch.equal(moved, undecided if s == t else torch.zeros_like(undecided))
        undecided = undecided & (parts[s].detach().softmax(1).amax(1) < 0.6)


def test_a_confidently_wrong_pixel_is_lost_to_the_later_stages(tiny, monkeypatch):
    """The first stage is sure of the wrong class everywhere; the others know the truth and are not asked."""
    method, batch = made(tiny)
    label = batch["label"] = torch.full_like(batch["label"], 3)
    wrong = torch.nn.functional.one_hot(torch.full_like(label, 5), C).movedim(-1, 1) * 20.0
    right = torch.nn.functional.one_hot(label, C).movedim(-1, 1) * 20.0
    logits = torch.cat([wrong, right, right], 1)
    given_stages(method, monkeypatch, logits)
    losses = method.losses(batch)
    assert float(losses["stage1"]) == pytest.approx(20, rel=1e-3)
    assert (float(losses["stage2"]), float(losses["stage3"])) == (0, 0)
    assert (method.decide(logits).argmax(1) == 5).all()


@pytest.mark.parametrize("rho", [0.0, 0.6, 1.0])
def test_the_first_sure_stage_decides(tiny, rho):
    method, _ = made(tiny, f"method.rho={rho}")
    dense, _ = stages_of(2)
    got = method.decide(dense)
    assert got.dtype == torch.float32
    chosen = method.deciding_stage(dense)
    values = dense.double().view(2, 3, C, 5, 7).numpy()
    for b, y, x in np.ndindex(2, 5, 7):
        probabilities = [softmax(values[b, s, :, y, x]) for s in range(3)]
        stage = naive_stage(probabilities, rho)
        assert int(chosen[b, y, x]) == stage
        np.testing.assert_allclose(got[b, :, y, x].numpy(), np.log(probabilities[stage]), atol=1e-5)
    assert set(chosen.unique().tolist()) == {0.0: {0}, 0.6: {0, 1, 2}, 1.0: {2}}[rho]
    assert torch.equal(method.decide(dense.half()).argmax(1), method.decide(dense.half().float()).argmax(1))


def test_a_probability_of_exactly_rho_is_accepted_in_training_and_prediction(tiny, monkeypatch):
    method, batch = made(tiny, "method.rho=0.5")
    even = torch.full((2, C, 32, 48), -200.0)
    even[:, :2] = 0  # two classes of exactly 0.5
    other = torch.zeros_like(even)
    dense = torch.cat([even, other, other], 1)
    given_stages(method, monkeypatch, dense)
    assert (method.deciding_stage(dense) == 0).all()
    batch["label"] = torch.zeros_like(batch["label"])
    assert float(method.losses(batch)["stage2"]) == 0
    dense = torch.cat([other, even, other], 1)
    given_stages(method, monkeypatch, dense)
    assert (method.deciding_stage(dense) == 1).all()
    losses = method.losses(batch)
    assert float(losses["stage2"]) > 0
    assert float(losses["stage3"]) == 0


def test_at_rho_0_only_the_first_stage_learns_and_at_rho_1_all_do_on_all_pixels(tiny):
    for rho, idle in ((0.0, ("stage2", "stage3")), (1.0, ())):
        method, batch = made(tiny, f"method.rho={rho}")
        losses = method.losses(batch)
        assert all((float(losses[name].detach()) == 0) == (name in idle) for name in STAGES)
        sum(losses[name] for name in STAGES).backward()
        late = method.model.head.classifiers.convs["label"].weight.grad
        first = method.stages["dec2"].convs["label"].weight.grad
        assert first.any()
        assert bool(late.any()) == (not idle)
        if rho == 1.0:
            out = method.model(batch["image"])
            full = method.enlarge(out.outputs["label"], batch["label"].shape)
            want = torch.nn.functional.cross_entropy(full, batch["label"], ignore_index=VOID)
            assert float(losses["stage3"].detach()) == pytest.approx(float(want.detach()), rel=1e-5)


def test_stages_read_their_decoder_maps_in_order(tiny):
    """A stage must not change when a map that only later stages see does."""
    method, batch = made(tiny)
    method.eval()
    with torch.no_grad():
        before = method.dense(batch["image"]).split(C, 1)
        method.model.head.blocks[2].convs[0][0].weight.mul_(-1)
        after = method.dense(batch["image"]).split(C, 1)
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False]
        method.model.head.blocks[1].convs[0][0].weight.mul_(-1)
        last = method.dense(batch["image"]).split(C, 1)
    assert [torch.equal(a, b) for a, b in zip(after, last, strict=True)] == [True, False, False]


def test_scales_average_each_stages_probabilities(tiny):
    method, batch = made(tiny, "method.rho=0.2", "inference=multiscale", "inference.scales=[1.0,1.5]")
    method.eval()
    image = batch["image"][:1]
    inner = WholeImage(base_size=None, align_corners=False)
    with torch.no_grad():
        got = method.predict_dense(image)
        mean = torch.zeros(1, 3 * C, *image.shape[-2:])
        for scale in (1.0, 1.5):
            for flip in (False, True):
                dense = inner(method.dense, image.flip(-1) if flip else image, scale=scale)
                parts = torch.cat([x.softmax(1) for x in dense.split(C, 1)], 1)
                mean += (parts.flip(-1) if flip else parts) / 4
    assert isinstance(method.parts.infer, MultiScale)
    torch.testing.assert_close(got.exp(), mean, atol=1e-5, rtol=1e-4)
    assert method.decide(got).shape == (1, C, *image.shape[-2:])


def test_scores_of_each_stage_and_its_share(tiny):
    method, _ = made(tiny, "method.rho=0.6")
    metrics = method.extra_metrics["test"]
    confusion, decided = np.zeros((3, C, C)), np.zeros(3)
    for seed in (3, 4):
        dense, label = stages_of(seed)
        method.score_extra(metrics, dense, {"label": label})
        values = dense.double().view(2, 3, C, 5, 7).numpy()
        for b, y, x in np.ndindex(2, 5, 7):
            if label[b, y, x] == VOID:
                continue
            probabilities = [softmax(values[b, s, :, y, x]) for s in range(3)]
            decided[naive_stage(probabilities, 0.6)] += 1
            for s in range(3):
                confusion[s, label[b, y, x], probabilities[s].argmax()] += 1
    found = {k: float(v) for m in metrics.values() for k, v in m.compute().items()}
    assert set(found) == {f"{s}_{kind}" for s in STAGES for kind in ("miou", "share")}
    for s, name in enumerate(STAGES):
        hit = np.diag(confusion[s])
        union = confusion[s].sum(0) + confusion[s].sum(1) - hit
        assert found[f"{name}_miou"] == pytest.approx(np.mean(hit[union > 0] / union[union > 0]))
        assert found[f"{name}_share"] == pytest.approx(decided[s] / decided.sum())
    assert len({found[f"{s}_miou"] for s in STAGES}) == len({found[f"{s}_share"] for s in STAGES}) == 3


def test_a_head_without_three_stages_is_refused(tiny):
    with pytest.raises(
        ConfigError, match=r"head: DeepLabV3PlusHead has 2 decoder map\(s\), but .* head=gau_dec"
    ):
        build(tiny("method=layer_cascade", "head=deeplabv3plus", "head.low_channels=4"))
    with pytest.raises(ConfigError, match=r"rho=.*at least 0 and at most 1"):
        build(tiny(*CASE, "method.rho=1.5"))
    with pytest.raises(ConfigError, match=r"loss=OHEM.*method=baseline"):
        build(tiny(*CASE, "loss=ohem"))


def test_every_parameter_learns_and_nothing_is_learnt_without_labels(tiny):
    method, batch = made(tiny)
    for name, p in method.named_parameters():
        if name.endswith("weight") and not p.any():  # residual blocks start as the identity: nothing flows
            torch.nn.init.constant_(p, 0.5)
    sum(method.losses(batch).values()).backward()
    assert [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []
    method.zero_grad()
    batch["label"] = torch.full_like(batch["label"], VOID)
    losses = method.losses(batch)
    sum(losses.values()).backward()
    assert all(float(x.detach()) == 0 for x in losses.values())
    assert all(not p.grad.any() for p in method.parameters() if p.grad is not None)


def test_the_losses_fall_on_one_repeated_batch(tiny):
    method, batch = made(tiny, "method.rho=0.9")
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    history = []
    for _ in range(15):
        losses = method.losses(batch)
        history.append(float(losses["stage1"].detach()))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert history[-1] < 0.8 * history[0]
