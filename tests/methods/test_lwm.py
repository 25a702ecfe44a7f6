"""LWM on a whole network: its losses from the definitions, where gradients go, and that depth stays privileged."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hardpix.metrics import DepthMetrics
from hardpix.ops.depth_hardness import (
    curriculum,
    depth_prediction_error,
    depth_regions,
    scaled_depth,
    segmentation_error,
)
from hardpix.ops.pixel import pixel_errors
from hardpix.train.build import build, start_regressions
from hardpix.types import ConfigError, DataError
from tests.boundary import clear, epochs_near

CASCADES = (
    "head=refinenet_cascades", "head.widths=[8,6,6,6]", "head.crp_stages=1", "head.output_units=1",
    "head.dropout=0", "model.aux_level=null", "model.aux_dropout=0",
)  # fmt: skip


@pytest.fixture
def made(tiny):
    def make(*overrides, head=CASCADES):
        torch.manual_seed(0)
        cfg = tiny("method=lwm", *head, *overrides)
        data, method = build(cfg)
        parts = [data.evaluation_batch("train", i) for i in range(2)]
        keys = ("image", "label", "depth", "depth_valid")
        batch = {k: torch.cat([p[k] for p in parts]) for k in keys} | {"name": ["a", "b"]}
        batch["label"][0, :9] = 255
        batch["depth_valid"][1, :, :11] = False
        return method.train(), batch

    return make


def decided(method, batch):
    """The batch without the labels of pixels where an output is next to undecided between two classes."""
    with torch.no_grad():
        out = method.model(batch["image"])
        logits = [out.outputs["label"], *(head(out.features[name]) for name, head in method.side.items())]
        sure = torch.stack([clear(method.enlarge(x, batch["label"].shape), 1e-5) for x in logits]).all(0)
    return batch | {"label": batch["label"].masked_fill(~sure, 255)}


def slow(method, batch, *, epochs=1):
    """L_s, L_d, L_h and the side losses by loops over pixels, from the network's own outputs.

    With a curriculum it sets the method's number of epochs to one near ``epochs``.
    """
    out = method.model(batch["image"])
    size = batch["label"].shape
    log_depth = method.enlarge(out.outputs["depth"], size)[:, 0].detach().double().numpy()
    final = method.enlarge(out.outputs["label"], size).detach().double().numpy()
    sides = [method.enlarge(head(out.features[name]), size) for name, head in method.side.items()]
    label, depth = batch["label"].numpy(), batch["depth"].double().numpy()
    valid, shape = batch["depth_valid"].numpy(), batch["label"].shape
    target = 1 + 255 * np.clip(depth / 10.0, 0, 1)
    gap = np.where(valid, (log_depth - np.log(target)) ** 2, 0)
    found = {"depth": gap.sum() / valid.sum()}
    r = np.where(valid, np.abs(np.clip(log_depth, 0, np.log(256)) - np.log(target)), 0)
    r /= r.max((1, 2), keepdims=True)

    def mined(logits):
        ce, wrong = np.zeros(shape), np.zeros(shape, bool)
        for b, y, x in np.ndindex(*shape):
            if label[b, y, x] != 255:
                v = logits[b, :, y, x]
                ce[b, y, x] = np.log(np.exp(v - v.max()).sum()) + v.max() - v[label[b, y, x]]
                wrong[b, y, x] = v.argmax() != label[b, y, x]
        z, places = np.zeros(shape), {}
        for b, y, x in np.ndindex(*shape):
            if label[b, y, x] != 255:
                t = int((target[b, y, x] - 1) // 10) if valid[b, y, x] else -1
                places.setdefault((b, y * 8 // shape[1], x * 8 // shape[2], t), []).append((b, y, x))
        for members in places.values():
            for p in members:
                z[p] = np.mean([wrong[q] for q in members])
        return ce, r + z

    def weighted(ce, m):
        kept = np.ones(shape, bool)
        for b in range(shape[0] if method.curriculum else 0):
            ranked = np.sort(m[b][label[b] != 255])
            u1, u2 = ranked[(len(ranked) - 1) // 2], ranked[-1]
            kept[b] = m[b] < u1 + (u2 - u1) / method.epochs
        return (kept * m * ce).sum() / n

    n = (label != 255).sum()
    (ce, m), *others = (mined(x) for x in (final, *(x.detach().double().numpy() for x in sides)))
    if method.curriculum:
        method.epochs = epochs_near([m, *(m for _, m in others)], label != 255, epochs)
    found["segmentation"], found["hard"] = ce.sum() / n, method.alpha * weighted(ce, m)
    if sides:
        found["side"] = method.beta * sum(weighted(*pair) for pair in others)
    return found


@pytest.mark.parametrize("curriculum", [False, True])
def test_losses_are_the_equations(made, curriculum):
    method, batch = made(
        f"method.curriculum={str(curriculum).lower()}", "method.alpha=0.7", "method.beta=0.3"
    )
    batch = decided(method, batch)
    expected = slow(method, batch, epochs=3)
    losses = {name: float(value.detach()) for name, value in method.losses(batch).items()}
    assert losses == pytest.approx(expected, rel=2e-4)
    assert len(method.side) == 4


def test_the_weight_carries_no_gradient(made):
    """L_h trains neither depth nor segmentation through M: without CE's own path its gradient is zero."""
    method, batch = made("method.curriculum=false", "method.multi_scale=false")
    out = method.model(batch["image"])
    logits = method.enlarge(out.outputs["label"], batch["label"].shape)
    depth = out.outputs["depth"].detach().requires_grad_()
    log_depth = method.enlarge(depth, batch["label"].shape)[:, 0]
    truth = method._truth(batch, log_depth)
    wrong = logits.argmax(1) != batch["label"]
    weight = method._weight(wrong, truth, batch["label"] != 255)
    assert not weight.requires_grad
    method.zero_grad()
    method.losses(batch)["hard"].backward()
    readers = method.model.head.readers
    assert all(p.grad is None or not p.grad.any() for p in readers["depth"].parameters())
    assert any(p.grad.any() for p in readers["label"].parameters())


def test_depth_features_are_summed_in_with_gradient_and_not_back(made):
    method, batch = made("method.multi_scale=false", "method.hardness=none", "method.curriculum=false")
    cascades = method.model.head.cascades
    method.losses(batch)["segmentation"].backward()
    assert all(p.grad is not None and p.grad.any() for p in cascades["depth"][-1].output.parameters())
    method.zero_grad()
    method.losses(batch)["depth"].backward()
    assert all(p.grad is None or not p.grad.any() for p in cascades["label"].parameters())


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("curriculum", [False, True])
@pytest.mark.parametrize("hardness", ["none", "dpe", "dse", "sum", "product", "max"])
def test_every_combination_of_the_component_table_trains(made, hardness, curriculum, multi):
    method, batch = made(
        f"method.hardness={hardness}",
        f"method.curriculum={str(curriculum).lower()}",
        f"method.multi_scale={str(multi).lower()}",
    )
    losses = method.losses(batch)
    expected = (
        {"depth", "segmentation"}
        | ({"hard"} if hardness != "none" else set())
        | ({"side"} if multi else set())
    )
    assert set(losses) == expected
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_without_hardness_sides_are_cross_entropy_and_any_loss_serves(made):
    method, batch = made("method.hardness=none", "method.curriculum=false", "loss=focal", "method.beta=0.5")
    losses = method.losses(batch)
    out = method.model(batch["image"])
    logits = [method.enlarge(h(out.features[n]), batch["label"].shape) for n, h in method.side.items()]
    ce = sum(torch.nn.functional.cross_entropy(x, batch["label"], ignore_index=255) for x in logits)
    assert float(losses["side"].detach()) == pytest.approx(0.5 * float(ce.detach()), rel=1e-5)
    with pytest.raises(
        ConfigError, match=r"LossWeightModule is defined on plain cross-entropy.*method\.hardness=none"
    ):
        made("loss=focal")


@pytest.mark.parametrize("loss", ["focal", "ohem"])
def test_the_compared_losses_train_as_they_are_defined(made, loss):
    """L_s of L_s + L_d: the gradient at the class logits, of the definition in double precision.

    Focal's factor is differentiated; OHEM keeps as many pixels as it is asked for, and not the next one.
    """
    mining = ["loss.thresh=1e-6", "loss.min_kept=300"] if loss == "ohem" else []
    plain = ("method.hardness=none", "method.curriculum=false", "method.multi_scale=false")
    method, batch = made(*plain, f"loss={loss}", *mining)
    label, kept = batch["label"], []
    for p in method.model.head.readers["label"].parameters():
        p.data.mul_(60)  # pixels differ in what they cost
    enlarge = method.enlarge
    method.enlarge = lambda x, size: kept.append(enlarge(x, size)) or kept[-1]
    losses = method.losses(batch)
    (logits,) = (x for x in kept if x.shape[1] == method.info.num_classes)
    (found,) = torch.autograd.grad(losses["segmentation"], logits)
    z = logits.detach().double().requires_grad_()
    ce = F.cross_entropy(z, label, ignore_index=255, reduction="none")
    valid = label != 255
    if loss == "focal":
        cost = ((1 - torch.exp(-ce)) ** 2 * ce)[valid].mean()
    else:
        hardest = ce[valid].sort(descending=True).values
        assert hardest[599] - hardest[600] > 1e-6
        cost = hardest[:600].mean()
        assert int(found.ne(0).any(1).sum()) == 600  # two images of 300
    (want,) = torch.autograd.grad(cost, z)
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-9)


def test_self_paced_learning_replaces_the_cross_entropy(made):
    method, batch = made("method.hardness=none", "method.multi_scale=false")
    out = method.model(batch["image"])
    logits = method.enlarge(out.outputs["label"], batch["label"].shape)
    ce = torch.nn.functional.cross_entropy(
        logits, batch["label"], ignore_index=255, reduction="none"
    ).detach()
    method.epochs = epochs_near([ce], batch["label"] != 255, 2)
    total = 0.0
    for values, valid in zip(ce, batch["label"] != 255, strict=True):
        ranked = values[valid].sort().values
        u1 = ranked[(len(ranked) - 1) // 2]
        total += float(values[valid & (values < u1 + (ranked[-1] - u1) / method.epochs)].sum())
    expected = total / int((batch["label"] != 255).sum())
    assert float(method.losses(batch)["segmentation"].detach()) == pytest.approx(expected, rel=1e-4)


def test_native_sides_are_compared_with_shrunk_labels(made):
    full, batch = made("method.curriculum=false")
    native, _ = made("method.curriculum=false", "method.side_resolution=native")
    native.load_state_dict(full.state_dict())
    a, b = full.losses(batch), native.losses(batch)
    assert float(a["hard"].detach()) == pytest.approx(float(b["hard"].detach()))
    assert float(a["side"].detach()) != pytest.approx(float(b["side"].detach()), rel=1e-3)
    out = native.model(batch["image"])
    logits = native.side["dec0"](out.features["dec0"])
    height, width = logits.shape[-2:]
    step = batch["label"].shape[1] // height
    truth = native._truth(batch, native.enlarge(out.outputs["depth"], batch["label"].shape)[:, 0].detach())
    shrunk = truth.shrunk((height, width))
    assert torch.equal(shrunk.label, batch["label"][:, step // 2 :: step, step // 2 :: step])


def nearest(x, size):
    down, across = x.shape[1] // size[0], x.shape[2] // size[1]
    return x[:, down // 2 :: down, across // 2 :: across]


def test_native_sides_are_mined_at_their_own_size(made):
    """Errors of depth, depth and labels are those of the nearest pixels; cells are those of the smaller map."""
    method, batch = made("method.curriculum=false", "method.side_resolution=native", "method.beta=0.3")
    out = method.model(batch["image"])
    label = batch["label"]
    target = scaled_depth(batch["depth"], batch["depth_valid"], 10.0)
    log_depth = method.enlarge(out.outputs["depth"], label.shape)[:, 0].detach()
    error = depth_prediction_error(log_depth, target, batch["depth_valid"])
    total = 0.0
    for name, side in method.side.items():
        logits = side(out.features[name]).detach()
        maps = (label, batch["depth_valid"], target, error)
        truth, valid, depth, r = (nearest(x, logits.shape[-2:]) for x in maps)
        ce, wrong = pixel_errors(logits, truth, 255)
        z = segmentation_error(wrong, depth_regions(depth, valid, truth != 255, cells=(8, 8), bin_size=10))
        total += float(((r + z) * ce).sum() / (truth != 255).sum())
    assert float(method.losses(batch)["side"].detach()) == pytest.approx(0.3 * total, rel=1e-5)


def test_side_losses_train_the_network_and_their_own_layers(made):
    method, batch = made("method.curriculum=false")
    method.losses(batch)["side"].backward()
    parts = [method.side, method.model.backbone, *method.model.head.cascades.values()]
    assert all(any(p.grad is not None and p.grad.any() for p in part.parameters()) for part in parts)
    assert all(p.grad.any() for p in method.side.parameters())
    assert all(p.grad is None or not p.grad.any() for p in method.model.head.readers.parameters())
    assert [m.in_channels for m in method.side.values()] == [6, 6, 6, 8]  # the decoder's maps, finest first


def test_self_paced_sides_choose_by_their_own_loss(made):
    method, batch = made("method.hardness=none", "method.beta=0.5")
    out, label = method.model(batch["image"]), batch["label"]
    logits = [method.enlarge(side(out.features[name]), label.shape) for name, side in method.side.items()]
    found = [F.cross_entropy(x.detach(), label, ignore_index=255, reduction="none") for x in logits]
    method.epochs = epochs_near(found, label != 255, 2)
    kept = [ce * curriculum(ce, label != 255, 1 / method.epochs) for ce in found]
    total = sum(float(ce.sum() / (label != 255).sum()) for ce in kept)
    assert float(method.losses(batch)["side"].detach()) == pytest.approx(0.5 * total, rel=1e-5)
    with pytest.raises(ConfigError, match="defined on plain cross-entropy and would ignore it"):
        made("method.hardness=none", "loss=focal")


def test_the_normaliser_of_the_loss_is_that_of_all_its_parts_but_depth(made):
    valid, batch = made("method.curriculum=false")
    whole, _ = made("method.curriculum=false", "loss.normalizer=all")
    whole.load_state_dict(valid.state_dict())
    a, b = ({k: float(v.detach()) for k, v in m.losses(batch).items()} for m in (valid, whole))
    share = float((batch["label"] != 255).float().mean())
    for name in ("segmentation", "hard", "side"):
        assert b[name] == pytest.approx(share * a[name], rel=1e-5), name
    assert b["depth"] == a["depth"]


@pytest.mark.parametrize("value", [0.0, -1.0, torch.inf, torch.nan])
def test_what_is_no_distance_is_no_reading(made, value):
    method, batch = made("method.curriculum=false")
    place = torch.zeros_like(batch["depth_valid"])
    place[0, 4:9, 3:20] = True
    missing = batch | {"depth_valid": batch["depth_valid"] & ~place}
    broken = batch | {"depth": batch["depth"].masked_fill(place, value)}
    a, b = ({k: float(v.detach()) for k, v in method.losses(x).items()} for x in (missing, broken))
    assert a == b


def test_depth_range_of_an_image_ends_at_its_own_largest(made):
    method, batch = made("method.depth_range=image")
    log_depth = torch.zeros_like(batch["depth"])
    target = method._truth(batch, log_depth).target
    for depth, valid, found in zip(batch["depth"], batch["depth_valid"], target, strict=True):
        torch.testing.assert_close(found[valid], 1 + 255 * depth[valid] / depth[valid].max())
    assert len(method.extra_metrics) == 0
    assert "depth" not in method.maps(batch)


@pytest.mark.parametrize("hardness", ["sum", "product", "dpe"])
def test_maps_are_those_of_the_loss(made, hardness):
    method, batch = made(f"method.hardness={hardness}")
    method.eval()
    with torch.inference_mode():
        dense = method.dense(batch["image"])
        label = batch["label"].masked_fill(~clear(dense[:, :-1], 1e-5), 255)
        found = method.maps(batch | {"label": label})
    log_depth = dense[:, -1]
    torch.testing.assert_close(found["depth"], ((log_depth.exp() - 1).clamp(0, 255) * 10 / 255))
    target = scaled_depth(batch["depth"], batch["depth_valid"], 10.0)
    r = depth_prediction_error(log_depth, target, batch["depth_valid"])
    regions = depth_regions(target, batch["depth_valid"], label != 255, cells=(8, 8), bin_size=10)
    z = segmentation_error((dense[:, :-1].argmax(1) != label) & (label != 255), regions)
    torch.testing.assert_close(found["dpe"], r)
    torch.testing.assert_close(found["dse"], z)
    if hardness == "dpe":
        assert "hardness" not in found
    else:
        torch.testing.assert_close(found["hardness"], r + z if hardness == "sum" else r * z)


def test_depth_of_a_test_frame_changes_nothing(made):
    method, batch = made()
    method.eval()
    other = {k: v for k, v in batch.items() if not k.startswith("depth")}
    wrong = batch | {"depth": batch["depth"] * 3 + 1, "depth_valid": ~batch["depth_valid"]}
    confusions = []
    with torch.inference_mode():
        for given in (batch, other, wrong):
            method._score(given, "test")
            confusions.append(method.metrics["test"].confusion.clone())
            method.metrics["test"].reset()
    assert torch.equal(confusions[0], confusions[1])
    assert torch.equal(confusions[0], confusions[2])
    assert set(method.maps({"image": batch["image"], "name": ["a", "b"]})) == {"depth"}
    assert set(method.maps(batch)) == {"depth", "dpe", "dse", "hardness"}


def test_bfloat16_gives_the_same_losses(made):
    method, batch = made("method.curriculum=false")
    plain = method.losses(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = method.losses(batch)
    for name, value in plain.items():
        assert half[name].dtype == torch.float32
        assert float(half[name].detach()) == pytest.approx(float(value.detach()), rel=0.03), name


@pytest.mark.parametrize("head", ["deeplabv3", "psp", "fcn", "uper"])
def test_other_heads_serve_too(made, head):
    method, batch = made(head=(f"head={head}", "head.dropout=0"))
    losses = method.losses(batch)
    assert {"depth", "segmentation", "hard", "side"} <= set(losses)
    torch.stack(list(losses.values())).sum().backward()


def test_degenerate_batches(made):
    method, batch = made()
    for change in itertools.chain([{"label": torch.full_like(batch["label"], 255)}],
                                  [{"depth_valid": torch.zeros_like(batch["depth_valid"])}],
                                  [{"depth": torch.full_like(batch["depth"], torch.nan)}]):  # fmt: skip
        method.zero_grad()
        losses = method.losses(batch | change)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        assert torch.isfinite(total)
        assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
        if "label" in change:
            assert [float(losses[n].detach()) for n in ("segmentation", "hard", "side")] == [0, 0, 0]
        else:
            assert float(losses["depth"].detach()) == 0


def test_a_data_set_without_depth_is_refused(tiny, tmp_path):
    cfg = tiny("method=lwm", *CASCADES, "data=camvid", f"data.source.root={tmp_path}")
    with pytest.raises(DataError, match=r"needs depth, which data set camvid does not have.*nyuv2, sunrgbd"):
        build(cfg)


def test_bad_settings_are_named(made):
    for override, said in {
        "method.cells=[0,8]": "cells=.*each at least 1, or null",
        "method.bin_size=0": "bin_size",
        "method.hardness=mean": "none, dpe, dse, sum, product, max",
        "method.depth_range=scene": "dataset or image",
    }.items():
        with pytest.raises(ConfigError, match=said):
            made(override)


def test_every_scoring_of_depth_starts_anew(made, monkeypatch):
    method, batch = made()
    method.eval()
    torch.nn.init.constant_(method.model.head.readers["depth"].convs["depth"].bias, 4.0)  # within the range
    seen = {}
    monkeypatch.setattr(
        method, "log_dict", lambda scores: seen.update({k: float(v) for k, v in scores.items()})
    )
    monkeypatch.setattr(method, "log", lambda *args, **kwargs: None)
    for factor in (1.0, 0.5):
        given = batch | {"depth": factor * batch["depth"]}
        alone = DepthMetrics(10.0)
        with torch.inference_mode():
            alone.update(method.dense(batch["image"])[:, -1:], given)
            method._score(given, "val")
            method.on_validation_epoch_end()
        for name, value in alone.compute().items():
            assert seen[f"val/{name}"] == pytest.approx(float(value)), name


def test_depth_scores_are_a_loop_over_all_pixels():
    rng = np.random.default_rng(0)
    metric = DepthMetrics(8.0)
    truths, guesses = [], []
    for _ in range(3):
        z, truth = rng.uniform(0.2, 7.5, (2, 5, 6)), rng.uniform(0.2, 9.0, (2, 5, 6))
        valid = rng.uniform(size=z.shape) > 0.3
        log_depth = torch.from_numpy(np.log(1 + 255 * z / 8)).float()[:, None]
        batch = {"depth": torch.from_numpy(truth).float(), "depth_valid": torch.from_numpy(valid)}
        metric.update(log_depth, batch)
        kept = valid & (truth <= 8)
        truths.append(truth[kept])
        guesses.append(z[kept])
    z, t = np.concatenate(guesses), np.concatenate(truths)
    ratio = np.maximum(z / t, t / z)
    expected = {
        "depth_rmse": np.sqrt(np.mean((z - t) ** 2)),
        "depth_rmse_log": np.sqrt(np.mean(np.log(z / t) ** 2)),
        "depth_abs_rel": np.mean(np.abs(z - t) / t),
        **{f"depth_delta{n}": np.mean(ratio < 1.25**n) for n in (1, 2, 3)},
    }
    assert {k: float(v) for k, v in metric.compute().items()} == pytest.approx(expected, rel=1e-4)
    metric.reset()
    metric.update(log_depth, {})
    assert metric.compute() == {}


def test_depth_predictions_are_scored_within_their_range():
    """Below a millimetre there is no logarithm, and nothing lies beyond the end of the scale."""
    metric = DepthMetrics(8.0)
    log_depth = torch.tensor([-3.0, 9.0, 0.0]).view(1, 1, 1, 3)
    batch = {"depth": torch.tensor([[[0.5, 6.0, 0.0]]]), "depth_valid": torch.ones(1, 1, 3, dtype=torch.bool)}
    metric.update(log_depth, batch)
    found = {k: float(v) for k, v in metric.compute().items()}
    assert found["depth_rmse"] == pytest.approx(np.sqrt((0.499**2 + 2**2) / 2))
    assert found["depth_rmse_log"] == pytest.approx(np.sqrt((np.log(500) ** 2 + np.log(8 / 6) ** 2) / 2))
    assert found["depth_abs_rel"] == pytest.approx((0.499 / 0.5 + 2 / 6) / 2)
    assert [found[f"depth_delta{n}"] for n in (1, 2, 3)] == [0, 0.5, 0.5]


def test_the_constant_control_is_the_image_mean_of_r_plus_z(made):
    """R-37: every labelled pixel of an image weighs the same, as much as the pixels of L_h do on average."""
    method, batch = made("method.hardness=constant", "method.curriculum=false", "method.alpha=0.7")
    mined, _ = made("method.hardness=sum", "method.curriculum=false")
    mined.load_state_dict(method.state_dict())
    valid = batch["label"] != 255
    out = method.model(batch["image"])
    logits = method.enlarge(out.outputs["label"], valid.shape)
    truth = method._truth(batch, method.enlarge(out.outputs["depth"], valid.shape)[:, 0].detach())
    error, wrong = pixel_errors(logits, batch["label"], 255)
    weight, fused = method._weight(wrong, truth, valid), mined._weight(wrong, truth, valid)
    for b in range(2):
        assert len(weight[b].unique()) == 1
        assert float(weight[b, 0, 0]) == pytest.approx(float(fused[b][valid[b]].mean()), rel=1e-6)
    assert float(weight[0, 0, 0]) != pytest.approx(float(weight[1, 0, 0]), rel=1e-3)
    expected = 0.7 * float((weight * error)[valid].sum().detach()) / int(valid.sum())
    assert float(method.losses(batch)["hard"].detach()) == pytest.approx(expected, rel=1e-5)
    assert set(method.maps(batch)) == {"depth", "dpe", "dse"}
    with pytest.raises(ConfigError, match=r"method\.hardness=constant: .*; set method\.curriculum=false"):
        made("method.hardness=constant")


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.hardness=sum"],
        ["method.hardness=none"],
        ["method.hardness=none", "method.curriculum=false"],
        ["method.hardness=none", "method.curriculum=false", "loss=focal"],
    ],
    ids=" ".join,
)
def test_a_plateau_watches_the_unweighted_losses(made, overrides):
    """R-19: cross-entropy on the final logits and L_d, without L_h, sides, a focal factor or a threshold."""
    method, batch = made(*overrides)
    method.epochs = 3
    losses = method.losses(batch)
    logits = method.enlarge(method.model(batch["image"]).outputs["label"], batch["label"].shape)
    expected = torch.nn.functional.cross_entropy(logits, batch["label"], ignore_index=255) + losses["depth"]
    watched = method.watched(losses)
    assert not watched.requires_grad
    assert float(watched) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(torch.stack(list(losses.values())).sum().detach()) != pytest.approx(float(watched), rel=1e-3)


@pytest.mark.parametrize("head", [CASCADES, ("head=deeplabv3",), ("head=psp",), ("head=ocr",)])
@pytest.mark.parametrize("scale", ["dataset", "image"])
def test_the_depth_output_starts_at_the_mean_of_its_target(made, tiny, head, scale):
    """R-36: over all readings of all training frames, as stored."""
    settings = ("method=lwm", *head, f"method.depth_range={scale}")
    cfg = tiny(*settings)
    data, method = build(cfg)
    total, count = 0.0, 0
    frames = data.full_split("train")
    for sample in map(frames.load, range(len(frames))):
        z = sample["depth"][sample["depth_valid"]].double()
        total += float(torch.log(1 + 255 * (z / (10 if scale == "dataset" else z.max())).clamp(0, 1)).sum())
        count += len(z)
    before = [b.clone() for b in method.model.output_biases("label")]
    start_regressions(method, data, cfg)
    for bias in method.model.output_biases("depth"):
        assert bias.tolist() == pytest.approx([total / count], abs=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, method.model.output_biases("label"), strict=True))
    cfg = tiny(*settings, "method.depth_bias=2.5")
    data, method = build(cfg)
    start_regressions(method, data, cfg)
    assert method.model.output_biases("depth")[0].tolist() == [2.5]
