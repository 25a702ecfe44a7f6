"""The branch that repairs predicted errors: which pixels train it, which it decides, and what stays as it was."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hardpix import record
from hardpix.cli import main
from hardpix.methods import Detail
from hardpix.models import DUpsamplingHead, TrackedGroupNorm
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
    "dpc": "head.low_channels=4 model.align_corners=true",
    "psp": "backbone.output_stride=8",
    "dupsampling": "head.low_channels=4 head.code_channels=4 head.ratio=4",
    "refinenet": "head.widths=[8,6,6,6] head.crp_stages=1 head.output_units=1",
    "refinenet_cascades": "head.widths=[8,6,6,6] head.crp_stages=1 head.output_units=1 model.aux_level=null",
    "ocr": "head.ocr_channels=4 head.coarse_channels=8 model.aux_level=null",
}
# smp: of an optional package; segnet: too coarse for the skips.
CASES = {n: f"head={n} {SETTINGS.get(n, '')}".strip() for n in listed("head", without={"smp", "segnet"})} | {
    "hardness": "method=hardness head=psp",
    "lwm": LWM,
}


@pytest.fixture
def made(stacked):
    """``made(*overrides, on=)``: the method in training mode on a segmenter, and a batch; P_ep differs widely."""

    def make(*overrides, on=SEGMENTER):
        torch.manual_seed(0)
        case = " ".join(["method=detail", "method.channels=8", *overrides])
        data, method = build(stacked(case, "method=error_prediction method.channels=16", on))
        if isinstance(method.model.head, DUpsamplingHead):
            method.model.head.frequency.fill_(0.1)  # as if its labels had been seen
        last = method.error_branch.classifier
        torch.nn.init.normal_(last.weight, std=2)
        torch.nn.init.zeros_(last.bias)
        for module in method.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
        torch.nn.init.normal_(method.detail_branch.classifier.weight)
        parts = [data.evaluation_batch("train", i) for i in range(2)]
        keys = [k for k in ("image", "label", "depth", "depth_valid") if k in parts[0]]
        batch = {k: torch.cat([p[k] for p in parts]) for k in keys} | {"name": ["a", "b"]}
        batch["label"][0, :9] = VOID  # the images differ in labelled pixels
        return method.train(), batch

    return make


def branch_outputs(method, batch):
    """Logits of the segmenter, of P_ep and of the detail branch at label size, one part after the other."""
    image, size, corners = batch["image"], tuple(batch["image"].shape[-2:]), method.model.align_corners

    def enlarge(x, size=size):
        return F.interpolate(x, size, mode="bilinear", align_corners=corners)

    with torch.no_grad():
        out = method.model.eval()(image)
        low = out.outputs["label"]
        probability = enlarge(low, (-(-size[0] // 4), -(-size[1] // 4))).softmax(1)
        high = out.features[[name for name in out.features if name.startswith("dec")][-1]]
        skips = [out.features[f"enc{level}"] for level in (2, 1, 0)]
        error = method.error_branch(probability, image, high)
        return enlarge(low), enlarge(error)[:, 0], enlarge(method.detail_branch(high, skips))


def slow_loss(detail, flagged, label):
    """(5.8), one pixel after the other: one mean over the batch."""
    total, count = 0.0, 0
    values = detail.double().numpy()
    for b, y, x in np.ndindex(*label.shape):
        if label[b, y, x] != VOID and flagged[b, y, x]:
            v = values[b, :, y, x]
            total += np.log(np.exp(v - v.max()).sum()) + v.max() - v[label[b, y, x]]
            count += 1
    return total / max(1, count)


@pytest.mark.parametrize("t", [0.3, 0.7])
def test_the_loss_is_that_of_the_pixels_with_predicted_errors(made, t):
    method, batch = made()
    _, doubt, detail = branch_outputs(method, batch)
    method.t = threshold_near(doubt.sigmoid(), t)
    flagged = doubt.sigmoid() > method.t
    share = flagged.float().mean((1, 2))
    assert 0.02 < float(share.min()) < float(share.max()) < 0.98
    assert abs(float(share[0] - share[1])) > 1e-3  # a mean per image would be another number
    losses = method.losses(batch)
    assert list(losses) == ["detail"]
    want = slow_loss(detail, flagged, batch["label"])
    assert float(losses["detail"].detach()) == pytest.approx(want, rel=1e-4)


def test_predicted_errors_select_and_not_true_ones(made, monkeypatch):
    """Every other pixel gets exactly no gradient, whether the segmenter has it right or not."""
    method, batch = made()
    given, forward = [], method.detail_logits

    def kept(*arguments):
        given.append(forward(*arguments).detach().requires_grad_())
        return given[-1]

    monkeypatch.setattr(method, "detail_logits", kept)
    logits, doubt, _ = branch_outputs(method, batch)
    method.t = threshold_near(doubt.sigmoid(), 0.7)
    method.losses(batch)["detail"].backward()
    moved = given[0].grad.ne(0).any(1)
    valid = batch["label"] != VOID
    assert torch.equal(moved, (doubt.sigmoid() > method.t) & valid)
    wrong = (logits.argmax(1) != batch["label"]) & valid
    assert (moved & ~wrong).any() or not (valid & ~wrong).any()
    assert (wrong & ~moved).any()


def test_without_a_predicted_error_the_loss_is_0_with_a_graph(made):
    for overrides, label in ((("method.t=1.0",), None), (("method.t=0.0",), VOID)):
        method, batch = made(*overrides)
        if label is not None:
            batch["label"] = torch.full_like(batch["label"], label)
        loss = method.losses(batch)["detail"]
        loss.backward()
        assert float(loss.detach()) == 0
        assert all(p.grad is not None and not p.grad.any() for p in method.detail_branch.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_repairs_every_decoder_and_only_it_learns(made, case):
    method, batch = made(on=case)
    probability = branch_outputs(method, batch)[1].sigmoid()
    method.t = threshold_near(probability, float(probability.median()))  # half of all pixels are selected
    method.train()
    frozen = [*method.model.modules(), *method.error_branch.modules()]
    assert not any(m.training for m in frozen)
    assert all(m.training for m in method.detail_branch.modules())
    assert not any(p.requires_grad for m in frozen for p in m.parameters())
    assert list(method.parameter_groups()) == ["detail_branch"]
    before = {k: v.clone() for k, v in method.state_dict().items() if not k.startswith("detail_branch")}
    loss = method.losses(batch)["detail"]
    loss.backward()
    assert float(loss.detach()) > 0
    assert all(p.grad is None for m in frozen for p in m.parameters())
    assert all(p.grad is not None for p in method.detail_branch.parameters())
    assert all(torch.equal(v, method.state_dict()[k]) for k, v in before.items())
    logits, doubt, detail = branch_outputs(method.eval(), batch)
    with torch.no_grad():
        dense = method.dense(batch["image"])
    assert dense.shape == (2, 2 * C + 2, 32, 48)
    for got, want in zip(method.split(dense), (logits, doubt.sigmoid(), detail), strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    alone = {"image": batch["image"][:1], "label": batch["label"][:1]}
    with torch.no_grad():
        torch.testing.assert_close(method.dense(alone["image"]), dense[:1], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_each_pixel_has_the_class_probabilities_of_one_branch(made, t):
    method, batch = made(f"method.t={t}")
    with torch.no_grad():
        dense = method.eval().dense(batch["image"])
    got = method.decide(dense)
    semantic, error, detail = method.split(dense)
    flagged = error > t
    expected = {0.0: {True}, 0.4: {False, True}, 1.0: {False}}[t]
    assert set(flagged.unique().tolist()) == expected
    p_sb, p_db = semantic.softmax(1), detail.softmax(1)
    e = flagged[:, None].float()
    torch.testing.assert_close(got.exp(), e * p_db + (1 - e) * p_sb)  # (5.5) as it stands
    classes = torch.where(flagged, detail.argmax(1), semantic.argmax(1))
    sure = clear(got)
    assert torch.equal(got.argmax(1)[sure], classes[sure])
    changed = method.maps(batch)["changed"]
    assert torch.equal(changed[sure], (classes != semantic.argmax(1)).float()[sure])
    assert bool(changed.any()) == (t < 1)


def test_a_probability_of_exactly_t_is_the_segmenters_in_loss_and_prediction(made, monkeypatch):
    method, batch = made("method.t=0.5")
    even = torch.zeros(2, 1, 32, 48)
    even[1] = 1e-3
    monkeypatch.setattr(method, "error_logits", lambda semantic, image: even)
    _, _, detail = branch_outputs(method, batch)
    method.train()
    batch["label"][1, 1:] = VOID
    want = F.cross_entropy(detail[1:, :, :1], batch["label"][1:, :1], ignore_index=VOID)
    assert float(method.losses(batch)["detail"].detach()) == pytest.approx(float(want), rel=1e-4)
    dense = torch.randn(2, 2 * C + 2, 4, 4)
    dense[:, C : C + 2] = 0
    assert torch.equal(method.decide(dense).argmax(1), dense[:, :C].argmax(1))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision(made, precision):
    method, batch = made()
    full = method.losses(batch)["detail"]
    with torch.autocast("cpu", dtype=precision):
        half = method.losses(batch)["detail"]
        assert method.eval().dense(batch["image"]).dtype == torch.float32
    assert half.dtype == torch.float32
    assert float(half.detach()) == pytest.approx(float(full.detach()), rel=0.2)


def test_scales_average_each_branchs_probabilities_before_the_choice(made):
    method, batch = made(
        "inference=multiscale", "inference.scales=[1.0]", "inference.flip=true", "method.t=0.5"
    )
    method.eval()
    image = batch["image"]
    with torch.no_grad():
        got = method.predict_dense(image)
        ways = [method.dense(image), method.dense(image.flip(-1)).flip(-1)]
    (a, p, x), (b, q, y) = (method.split(way) for way in ways)
    semantic, error, detail = method.split(got)
    torch.testing.assert_close(error, (p + q) / 2)
    torch.testing.assert_close(semantic.softmax(1), (a.softmax(1) + b.softmax(1)) / 2)
    torch.testing.assert_close(detail.softmax(1), (x.softmax(1) + y.softmax(1)) / 2)
    flagged = ((p + q) / 2 > 0.5)[:, None]
    want = torch.where(flagged, detail.softmax(1), semantic.softmax(1))
    torch.testing.assert_close(method.decide(got).exp(), want)


def test_scores_name_each_branch_and_every_threshold(made):
    method, batch = made("method.t=0.35", "method.thresholds=[0.2,0.6]")
    with torch.no_grad():
        dense = method.eval().dense(batch["image"])
    semantic, error, detail = method.split(dense)
    batch["label"][~clear(semantic, 1e-5) | ~clear(detail, 1e-5)] = VOID
    method.score_extra(method.extra_metrics["test"], dense, batch)
    found = {k: float(v) for m in method.extra_metrics["test"].values() for k, v in m.compute().items()}
    valid = batch["label"] != VOID
    truth = batch["label"][valid]

    def miou(guess):
        confusion = torch.bincount(truth * C + guess[valid], minlength=C * C).view(C, C).double()
        hit = confusion.diag()
        union = confusion.sum(0) + confusion.sum(1) - hit
        return float((hit / union)[union > 0].mean())

    assert found["semantic_miou"] == pytest.approx(miou(semantic.argmax(1)))
    assert found["detail_miou"] == pytest.approx(miou(detail.argmax(1)))
    fused = {t: miou(torch.where(error > t, detail.argmax(1), semantic.argmax(1))) for t in (0.2, 0.35, 0.6)}
    assert len(set(fused.values())) == 3
    assert {t: found[f"fused_miou@{t:g}"] for t in fused} == pytest.approx(fused)
    assert fused[0.35] == pytest.approx(miou(method.decide(dense).argmax(1)))
    wrong = (semantic.argmax(1) != batch["label"]) & valid
    flagged = (error > 0.35) & valid
    assert found["error_iou@0.35"] == pytest.approx(float((flagged & wrong).sum() / (flagged | wrong).sum()))


def test_rho_of_hard_errors_is_the_parents(stacked):
    _, method = build(stacked("method=detail", "method=error_prediction method.rho=0.6", SEGMENTER))
    assert method.rho == 0.6
    assert method.extra_metrics["val"]["error"].rho == 0.6


def test_impossible_settings_get_one_sentence(stacked):
    cfg = stacked("method=detail", "method=error_prediction", SEGMENTER)
    for key, value, said in (
        ("t", 1.5, "Detail: t=1.5: must be at least 0 and at most 1"),
        ("attention", "tanh", "attention=tanh: must be relu or sigmoid"),
        ("thresholds", [-1], "thresholds=.*must be values, each at least 0"),
    ):
        wrong = cfg.copy()
        wrong.method[key] = value
        with pytest.raises(ConfigError, match=said):
            build(wrong)


def test_a_run_leaves_segmenter_and_error_branch_bit_for_bit(tiny, tmp_path, cascade, monkeypatch):
    modes, losses = [], Detail.losses

    def watched(self, batch):
        modes.append({(name.split(".")[0], m.training) for name, m in self.named_modules() if "_branch" in name
                      or name.startswith("model")})  # fmt: skip
        return losses(self, batch)

    monkeypatch.setattr(Detail, "losses", watched)
    parent = cascade("error_prediction")
    train(tiny(
        "method=detail", "method.channels=8", "method.t=0.0", f"parent='{parent}'", "run=a", "optimizer.lr=0.5",
        "trainer.val_every_epochs=1",
    ), [])  # fmt: skip
    assert modes == [{("model", False), ("error_branch", False), ("detail_branch", True)}] * 4
    old, new = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (parent, tmp_path / "runs/default/a")
    )
    names = [k for k in old if k.startswith(("model.", "error_branch."))]
    assert [k for k in new if not k.startswith("detail_branch.")] == names
    assert all(torch.equal(old[k], new[k]) for k in names)
    first = torch.load(cascade("detail") / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    moved = [k for k in first if k.startswith("detail_branch.") and not torch.equal(first[k], new[k])]
    assert len(moved) > 10


TILED = ("method.statistics=tracked", "method.tile=16")


def tracked(method):
    """Statistics as if kept in some training."""
    for norm in method.detail_branch.modules():
        if isinstance(norm, TrackedGroupNorm):
            torch.nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return method.eval()


def pair_of_forms(made, *overrides, **given):
    """The dense and the tiled form with the same weights."""
    dense, batch = made("method.statistics=tracked", *overrides, **given)
    tiled, _ = made(*TILED, *overrides, **given)
    tiled.load_state_dict(tracked(dense).state_dict())
    return dense, tiled.eval(), batch


@pytest.mark.parametrize("case", [SEGMENTER, f"{SEGMENTER} model.align_corners=true", "head=psp"])
@pytest.mark.parametrize("size", [(32, 48), (45, 61), (9, 90)])
def test_tiles_give_the_dense_forms_probabilities(made, case, size):
    dense, tiled, batch = pair_of_forms(made, on=case)
    image = F.interpolate(batch["image"], size, mode="bilinear")
    with torch.no_grad():
        raw = dense.dense(image)
        _, error, _ = dense.split(raw)
        want, got = dense.decide(raw), tiled.decide(tiled.dense(image))
        for t in (0.0, *(threshold_near(error, float(error.quantile(q))) for q in (0.5, 0.98)), 1.0):
            dense.t = tiled.t = t
            want, got = dense.decide(raw), tiled.decide(tiled.dense(image))
            torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)
            sure = clear(want)
            assert torch.equal(got.argmax(1)[sure], want.argmax(1)[sure])
            semantic = raw[:, :C].log_softmax(1).movedim(1, -1)
            torch.testing.assert_close(got.movedim(1, -1)[error <= t], semantic[error <= t])
    torch.testing.assert_close(tiled.split(tiled.dense(image))[1], error)


def test_tiles_without_a_predicted_error_do_not_run(made, monkeypatch):
    _, tiled, batch = pair_of_forms(made)
    ran = []
    fine = tiled.detail_branch.fine_on_tiles
    monkeypatch.setattr(
        tiled.detail_branch, "fine_on_tiles", lambda *x: ran.append(int(x[2].sum())) or fine(*x)
    )
    logit = torch.full((2, 1, 8, 12), -9.0)
    monkeypatch.setattr(tiled, "error_map", lambda semantic, image: logit)
    with torch.no_grad():
        tiled.dense(batch["image"])
        logit[1, 0, 1, 1] = 9
        tiled.dense(batch["image"])
    assert ran == [0, 1]
    assert (tiled.tiles_run, tiled.tiles) == (1, 2 * 2 * 2 * 3)


def test_a_test_counts_its_own_tiles(made):
    """Validation runs on tiles, too, and comes before."""
    _, tiled, batch = pair_of_forms(made)
    with torch.no_grad():
        tiled.dense(batch["image"])
        assert tiled.tiles > 0
        tiled.on_test_epoch_start()
    assert (tiled.tiles_run, tiled.tiles) == (0, 0)


@pytest.mark.parametrize("align_corners", ["false", "true"])
def test_enlargements_of_the_branch_are_aligned_as_the_segmenters(made, align_corners):
    method, _ = made(on=f"{SEGMENTER} model.align_corners={align_corners}")
    found = {m.align_corners for m in method.detail_branch.modules() if hasattr(m, "align_corners")}
    assert found == {align_corners == "true"}


def test_windows_are_fused_on_their_own(made):
    case = ("inference=slide", "inference.crop=[24,24]", "inference.stride=[16,16]")
    dense, tiled, batch = pair_of_forms(made, *case)
    dense.t = tiled.t = 0.5
    total, visits = torch.zeros(2, C, 32, 48), torch.zeros(32, 48)
    with torch.no_grad():
        got = tiled.predict_logits(batch["image"])
        for y in (0, 8):
            for x in (0, 16, 24):
                window = batch["image"][..., y : y + 24, x : x + 24]
                total[..., y : y + 24, x : x + 24] += dense.decide(dense.dense(window))
                visits[y : y + 24, x : x + 24] += 1
    torch.testing.assert_close(got, total / visits, atol=1e-3, rtol=1e-3)


def test_scores_of_tiles_leave_out_what_is_not_known(made):
    dense, _, batch = pair_of_forms(made)
    with torch.no_grad():
        semantic, error, _ = dense.split(dense.dense(batch["image"]))
    low, t, high = (threshold_near(error, t) for t in (0.2, 0.5, 0.8))
    dense, tiled, batch = pair_of_forms(made, f"method.t={t}", f"method.thresholds=[{low},{high}]")
    batch["label"][~clear(semantic, 1e-5)] = VOID
    found = []
    for method in (dense, tiled):
        with torch.no_grad():
            method.score_extra(method.extra_metrics["test"], method.dense(batch["image"]), batch)
        metrics = method.extra_metrics["test"].values()
        found.append({k: float(v) for m in metrics for k, v in m.compute().items()})
    full, known = found
    kinds = ("fused_miou", "repaired", "spoiled", "exchanged")
    unknown = {"detail_miou"} | {f"{kind}@{t}" for kind in kinds for t in (f"{low:g}", f"{high:g}")}
    assert set(known) == set(full) - unknown
    ranked = {"error_auroc", "error_ap"}  # by a histogram, whose edges a probability may lie next to
    assert known == pytest.approx(
        {k: pytest.approx(full[k], abs=1e-4) if k in ranked else full[k] for k in known}, nan_ok=True
    )
    assert known[f"repaired@{t:g}"] + known[f"spoiled@{t:g}"] > 0


def test_tiles_need_kept_statistics(stacked):
    cases = ("method=error_prediction", SEGMENTER)
    for override, said in (
        (
            "method.tile=64",
            "method.tile=64: statistics of the image need the whole image; set method.statistics=track",
        ),
        (
            "method.tile=8 method.statistics=tracked",
            "Detail: tile=8: must be at least 16, or null",
        ),
        ("method.statistics=batch", "Detail: statistics=batch: must be image or tracked"),
    ):
        with pytest.raises(ConfigError, match=said):
            build(stacked(f"method=detail {override}", *cases))


def test_an_evaluation_can_choose_tiles(cascade, tmp_path):
    """Of a run that was trained without; the share of tiles that ran stands beside its scores."""
    given = ["evaluate", str(cascade("detail")), "method.statistics=tracked"]
    for name, more in (("dense", []), ("tiles", ["method.tile=16"])):
        assert main([*given, *more, "--out", str(tmp_path / name)]) == 0
    dense, tiles = (record.read(tmp_path / name) for name in ("dense", "tiles"))
    assert tiles.metrics["test/miou"] == pytest.approx(dense.metrics["test/miou"], abs=1e-6)
    assert "test/detail_miou" in dense.metrics
    assert "test/detail_miou" not in tiles.metrics
    assert 0 <= tiles.metrics["tiles/run_share"] <= 1
    assert "tiles/run_share" not in dense.metrics
    assert tiles.factors["method.tile"] == 16
    assert main(["evaluate", str(cascade("detail")), "method.t=0.5"]) != 0
