"""LWM on a whole network: its losses from the definitions, where gradients go, and that depth stays privileged."""

import itertools

import numpy as np
import pytest
import torch

from hardpix.metrics import DepthMetrics
from hardpix.run.build import build
from hardpix.types import ConfigError, DataError

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


def slow(method, batch, *, epoch=1, epochs=1):
    """L_s, L_d, L_h and the side losses by loops over pixels, from the network's own outputs."""
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
        m = r + z
        kept = np.ones(shape, bool)
        for b in range(shape[0]):
            ranked = np.sort(m[b][label[b] != 255])
            u1, u2 = ranked[(len(ranked) - 1) // 2], ranked[-1]
            kept[b] = m[b] < u1 + epoch * (u2 - u1) / epochs - 1e-7
        return ce, m, kept

    ce, m, kept = mined(final)
    n = (label != 255).sum()
    curriculum = kept if method.curriculum else 1
    found["segmentation"], found["hard"] = ce.sum() / n, method.alpha * (curriculum * m * ce).sum() / n
    total = 0.0
    for logits in sides:
        ce, m, kept = mined(logits.detach().double().numpy())
        total += ((kept if method.curriculum else 1) * m * ce).sum() / n
    if sides:
        found["side"] = method.beta * total
    return found


@pytest.mark.parametrize("curriculum", [False, True])
def test_losses_are_the_equations(made, curriculum):
    method, batch = made(
        f"method.curriculum={str(curriculum).lower()}", "method.alpha=0.7", "method.beta=0.3"
    )
    method.epochs = 3
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
    with pytest.raises(ConfigError, match="LossWeightModule is defined on plain cross-entropy"):
        made("loss=focal")


def test_self_paced_learning_replaces_the_cross_entropy(made):
    method, batch = made("method.hardness=none", "method.multi_scale=false")
    method.epochs = 2
    out = method.model(batch["image"])
    logits = method.enlarge(out.outputs["label"], batch["label"].shape)
    ce = torch.nn.functional.cross_entropy(
        logits, batch["label"], ignore_index=255, reduction="none"
    ).detach()
    total = 0.0
    for values, valid in zip(ce, batch["label"] != 255, strict=True):
        ranked = values[valid].sort().values
        u1 = ranked[(len(ranked) - 1) // 2]
        total += float(values[valid & (values < u1 + (ranked[-1] - u1) / 2)].sum())
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
        "method.cells=[0,8]": "rows, columns",
        "method.bin_size=0": "bin_size",
        "method.hardness=mean": "none, dpe, dse, sum, product, max",
        "method.depth_range=scene": "dataset, image",
    }.items():
        with pytest.raises(ConfigError, match=said):
            made(override)


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
