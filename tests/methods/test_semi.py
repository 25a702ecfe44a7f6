"""U2PL, alone and with HL: who learns from what, on whole networks."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn

from hardpix.losses.contrast import pixels_of
from hardpix.ops.semi import cut_mix, cut_mix_rectangle
from hardpix.train.build import build
from hardpix.types import ConfigError, SegOutput
from tests.boundary import percent_near, threshold_near

SMALL = (
    "data.labeled=0.5", "method.contrast.channels=8", "method.contrast.bank=16", "method.contrast.bank_first=20",
    "method.contrast.anchors=4", "method.contrast.negatives=3", "method.contrast.confidence=0",
)  # fmt: skip
STILL = ("head.dropout=0", "model.aux_dropout=0", "method.contrast.dropout=0")
BOTH = pytest.mark.parametrize("case", ["method=u2pl", "method=u2pl_hl"])


@pytest.fixture
def made(tiny):
    """``made("method=u2pl", ...)``: the method in training mode, and a batch of two images of each kind."""

    def make(case, *overrides):
        torch.manual_seed(0)
        fine = () if any("head=" in o for o in overrides) else ("head.levels=[0,1,2,3]",)
        data, method = build(tiny(case, *SMALL, *fine, *overrides))
        parts = [data.evaluation_batch("train", i) for i in range(2)]
        batch = {k: torch.cat([p[k] for p in parts]) for k in ("image", "label")} | {"name": ["a", "b"]}
        batch["label"][0, :9] = 255
        batch["unlabeled"] = torch.cat([data.evaluation_batch("test", i)["image"] for i in range(2)])
        for model in (method.model, method.teacher):
            for name, p in model.named_parameters():
                if p.ndim == 4:  # the two differ, and no classifier says the same everywhere
                    nn.init.normal_(p, std=1 if "classifier" in name else 0.1)
        return method.train(), batch

    return make


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def cross_entropy(logits, label):
    """By a loop in double precision; 0 on void."""
    found = np.zeros(label.shape)
    logits = logits.detach().double().numpy()
    for b, y, x in np.ndindex(*label.shape):
        if label[b, y, x] != 255:
            v = logits[b, :, y, x]
            found[b, y, x] = np.log(np.exp(v - v.max()).sum()) + v.max() - v[label[b, y, x]]
    return found


class Seen:
    """What a step really used: runs it again, piece by piece, on the same numbers."""

    def __init__(self, method, batch):
        before = state(method)
        method.teacher.eval()
        pseudo = method.enlarge(method.teacher(batch["unlabeled"]).outputs["label"], (32, 48)).argmax(1)
        method.teacher.train()
        self.image = torch.cat([batch["image"], batch["unlabeled"]])
        self.pseudo = pseudo.numpy()
        with torch.no_grad():
            self.pyramid = method.model.backbone(self.image)
            out = method.model.decode(self.pyramid)
            taught = method.enlarge(method.teacher(self.image).outputs["label"], (32, 48))[2:].double()
        method.load_state_dict(before)  # the passes above moved the norms' statistics
        self.logits = method.enlarge(out.outputs["label"], (32, 48))
        self.aux = method.enlarge(out.aux["enc2"], (32, 48))
        prob = taught.softmax(1).numpy()
        self.entropy = -(prob * np.log(prob + 1e-10)).sum(1)
        self.label = batch["label"].numpy()
        self.ce = cross_entropy(self.logits[:2], self.label), cross_entropy(self.logits[2:], self.pseudo)


@pytest.mark.parametrize(("epoch", "percent"), [(0, 20), (3, 5)])
def test_losses_are_the_equations(made, monkeypatch, epoch, percent):
    method, batch = made("method=u2pl", *STILL, "method.cutmix=0")
    monkeypatch.setattr(type(method), "current_epoch", epoch)
    method.epochs = 4
    seen = Seen(method, batch)
    share = percent_near(seen.entropy, 100 - percent, 0.009)
    method.unreliable = (100 - share) / (1 - epoch / 4)
    kept = seen.entropy < np.percentile(seen.entropy, share)
    assert kept.mean() == pytest.approx(1 - percent / 100, abs=0.01)
    losses = {k: float(v.detach()) for k, v in method.losses(batch).items()}
    assert set(losses) == {"segmentation", "unsupervised", "aux_enc2"}
    assert losses["segmentation"] == pytest.approx(seen.ce[0].sum() / (seen.label != 255).sum(), rel=1e-4)
    assert losses["unsupervised"] == pytest.approx(seen.ce[1][kept].mean() * kept.size / kept.sum(), rel=1e-4)
    labeled_aux = F.cross_entropy(seen.aux[:2], batch["label"], ignore_index=255)
    assert losses["aux_enc2"] == pytest.approx(0.4 * float(labeled_aux), rel=1e-4)


@pytest.mark.parametrize(
    ("normalize_over", "on_unlabeled", "void"),
    [("image", True, False), ("image", False, False), ("batch", True, True), ("batch", False, False)],
)
def test_hardness_weighs_both_kinds_of_pixels(made, normalize_over, on_unlabeled, void):
    """``void``: weights of labelled images are normalised over all pixels, those of the others over the survivors."""
    method, batch = made(
        "method=u2pl_hl", *STILL, "method.cutmix=0", "method.alpha=0.3", f"method.normalize_over={normalize_over}",
        f"method.hl_on_unlabeled={on_unlabeled}", f"method.void_in_normalizer={void}",
    )  # fmt: skip
    for p in method.hardness.parameters():
        if p.ndim == 4:
            nn.init.normal_(p, std=0.3)
    seen = Seen(method, batch)
    if not on_unlabeled:  # its norms see the labelled images alone
        seen.pyramid = [x[:2] for x in seen.pyramid]
    d = method.enlarge(method.hardness(seen.pyramid).outputs["hardness"], (32, 48))
    z = 1 / (1 + np.exp(-d[:, 0].detach().double().numpy())) + 0.1
    share = percent_near(seen.entropy, 80)
    method.unreliable = 100 - share
    kept = seen.entropy < np.percentile(seen.entropy, share)
    found = {}
    masks = [("segmentation", seen.label != 255, seen.ce[0], z[:2])]
    if on_unlabeled:
        masks.append(("unsupervised", kept, seen.ce[1], z[2:]))
    for name, mask, ce, weight in masks:
        assert weight[mask].std() > 0.01
        if normalize_over == "batch":
            among = np.ones_like(mask) if void and name == "segmentation" else mask
            found[name] = (weight * ce)[mask].sum() / weight[among].sum()
        else:
            found[name] = np.mean(
                [(w * e)[m].sum() / w[m].sum() for w, e, m in zip(weight, ce, mask, strict=True)]
            )
    if not on_unlabeled:
        found["unsupervised"] = seen.ce[1][kept].mean() * kept.size / kept.sum()
    found["hardness"] = -0.3 * found["segmentation"]
    if on_unlabeled:
        found["hardness_unlabeled"] = -0.3 * found["unsupervised"]
    losses = {k: float(v.detach()) for k, v in method.losses(batch).items() if not k.startswith("aux")}
    assert losses == pytest.approx(found, rel=2e-4)


@BOTH
def test_what_is_mixed_is_image_and_label_alike(made, case):
    """With the mixed images and labels in place of the given ones, unmixed, the losses are the same."""
    method, batch = made(case, *STILL, "method.cutmix=1")
    before, buffers = torch.get_rng_state(), state(method)
    mixed = method.losses(batch)
    torch.set_rng_state(before)
    torch.rand(())
    rectangles = [cut_mix_rectangle(32, 48) for _ in range(2)]
    method.load_state_dict(buffers)
    pseudo = cut_mix(method.pseudo_label(batch["unlabeled"]), rectangles)
    image = cut_mix(batch["unlabeled"], rectangles)
    assert not torch.equal(image, batch["unlabeled"])
    method.cutmix, method.pseudo_label = 0.0, lambda _: pseudo
    same = method.losses(batch | {"unlabeled": image})
    for name in mixed:
        torch.testing.assert_close(mixed[name], same[name])


def test_mixing_happens_as_often_as_asked(made, monkeypatch):
    method, batch = made("method=u2pl")
    calls = []
    monkeypatch.setattr("hardpix.methods.semi.cut_mix", lambda x, rectangles: calls.append(1) or x)
    method.model.backbone.forward, method.model.decode = lambda x: [], lambda x: SegOutput({}, {}, {}, {})
    method.pseudo_label = lambda x: torch.zeros(2, 32, 48, dtype=torch.int64)
    method.teach = lambda x: (torch.zeros(4, 3, 32, 48), None)
    method.segmentation = lambda *_: {}
    for _ in range(60):
        method.losses(batch)
    assert 2 * 18 < len(calls) < 2 * 42


@BOTH
@pytest.mark.parametrize("contrastive", [False, True])
def test_the_teacher_gets_no_gradient_and_all_of_the_student_does(made, case, contrastive):
    method, batch = made(case, f"method.contrastive={contrastive}")
    losses = method.losses(batch)
    assert ("contrastive" in losses) == contrastive
    assert not contrastive or float(losses["contrastive"].detach()) > 0
    for name, p in method.named_parameters():
        if name.endswith("weight") and not p.any():
            nn.init.constant_(p, 0.5)
    sum(method.losses(batch).values()).backward()
    teacher = {n: p for n, p in method.named_parameters() if n.startswith("teacher")}
    assert any(n.startswith("teacher_representation.") for n in teacher) == contrastive
    assert all(p.grad is None and not p.requires_grad for p in teacher.values())
    rest = [
        n for n, p in method.named_parameters() if n not in teacher and (p.grad is None or not p.grad.any())
    ]
    assert rest == []
    groups = {id(p) for members in method.parameter_groups().values() for p in members}
    assert not groups & {id(p) for p in teacher.values()}
    assert groups == {id(p) for n, p in method.named_parameters() if n not in teacher}


def test_each_player_moves_its_own_weights(made):
    method, batch = made("method=u2pl_hl")
    for names, own, other in (
        (("hardness", "hardness_unlabeled"), "hardness.", "model."),
        (("segmentation", "unsupervised"), "model.", "hardness."),
    ):
        for name in names:
            method.zero_grad()
            method.losses(batch)[name].backward()
            grads = {n: p.grad is not None and bool(p.grad.any()) for n, p in method.named_parameters()}
            assert any(moved for n, moved in grads.items() if n.startswith(own))
            assert not any(moved for n, moved in grads.items() if n.startswith(other))
    assert not any("hardness" in n for n, _ in method.teacher.named_modules())


@BOTH
def test_the_teachers_statistics_are_of_its_own_pass(made, case):
    """One pass in training mode over labelled and mixed images; the look at the unlabelled ones leaves no trace."""
    method, batch = made(case, "method.cutmix=0", *STILL)
    weights = {n: p.detach().clone() for n, p in method.teacher.named_parameters()}
    expected = {}
    _, norm = next((n, m) for n, m in method.teacher.named_modules() if isinstance(m, nn.BatchNorm2d))
    hook = norm.register_forward_hook(
        lambda m, x, y: expected.setdefault(m.training, []).append(x[0].detach())
    )
    before = norm.running_mean.clone()
    method.losses(batch)
    hook.remove()
    assert {mode: [len(x) for x in seen] for mode, seen in expected.items()} == {False: [2], True: [4]}
    mean = expected[True][0].mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, (1 - norm.momentum) * before + norm.momentum * mean)
    assert all(torch.equal(p, weights[n]) for n, p in method.teacher.named_parameters())
    statistics = norm.running_mean.clone()
    method.update_teacher(10)
    assert torch.equal(statistics, norm.running_mean)
    for (n, t), s in zip(method.teacher.named_parameters(), method.model.parameters(), strict=True):
        torch.testing.assert_close(t, (1 - 1 / 11) * weights[n] + s.detach() / 11)


@BOTH
def test_the_teacher_predicts(made, case):
    method, batch = made(case)
    method.eval()
    with torch.no_grad():
        own = method.enlarge(method.teacher(batch["image"]).outputs["label"], (32, 48))
        assert torch.equal(method(batch["image"]), own)
        assert torch.equal(method.predict_logits(batch["image"]), own)
        assert not torch.allclose(
            own, method.enlarge(method.model(batch["image"]).outputs["label"], (32, 48))
        )
        maps = method.maps(batch)
        if case == "method=u2pl":
            assert maps == {}
            return
        d = method.hardness_logits(method.model.backbone(batch["image"]), (2, 32, 48))[:, 0]
        torch.testing.assert_close(maps["hardness"], torch.sigmoid(d) + 0.1)


@BOTH
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_losses_stay_float32_under_mixed_precision(made, case, precision):
    method, batch = made(case, "method.contrastive=true")
    with torch.autocast("cpu", dtype=precision):
        losses = method.losses(batch)
    assert all(x.dtype == torch.float32 and torch.isfinite(x) for x in losses.values())


@BOTH
def test_no_label_at_all_leaves_the_pseudo_labels(made, case):
    method, batch = made(case)
    batch["label"] = torch.full_like(batch["label"], 255)
    losses = {k: float(v.detach()) for k, v in method.losses(batch).items()}
    assert losses.pop("unsupervised") > 0
    losses.pop("hardness_unlabeled", None)
    assert set(losses.values()) <= {0.0}


@BOTH
@pytest.mark.parametrize("head", ["head=psp", "backbone=segnet head=segnet model.aux_level=null"])
def test_heads_of_other_kinds(made, case, head):
    method, batch = made(case, *head.split(), "method.contrastive=true")
    losses = method.losses(batch)
    assert float(sum(losses.values()).detach()) > 0
    sum(losses.values()).backward()


def test_the_first_stage_does_not_move_the_hardness_head(made):
    method, batch = made("method=u2pl_hl", *STILL, "head=ocr", "model.aux_level=null", "head.ocr_channels=4")
    losses = method.losses(batch)
    own = [p for p in method.hardness.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(losses["stage_coarse"], own, allow_unused=True, retain_graph=True)
    assert all(g is None or not g.any() for g in gradients)
    assert any(
        g.any() for g in torch.autograd.grad(losses["hardness"], own, allow_unused=True) if g is not None
    )


def test_contrast_is_of_what_the_teacher_says(made, monkeypatch):
    method, batch = made("method=u2pl", *STILL, "method.contrastive=true", "method.cutmix=0")
    method.epochs = 4
    taught, given = [], []
    teach = method.teach
    monkeypatch.setattr(method, "teach", lambda image: taught.append(teach(image)) or taught[-1])

    def spy(*values):
        given.append(values)
        return pixels_of(*values)

    monkeypatch.setattr("hardpix.methods.semi.pixels_of", spy)
    assert float(method.losses(batch)["contrastive"].detach()) > 0
    student, teacher, probability, label, _, percent, ignore_index = given[0]
    logits, representation = taught[0]
    assert student.requires_grad
    assert torch.equal(teacher, representation)
    size = student.shape[-2:]
    expected = F.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(1)
    torch.testing.assert_close(probability, expected)
    assert torch.equal(label[:2], batch["label"])
    assert (percent, ignore_index) == (20, 255)


def test_the_representation_head_follows_too(made):
    method, _ = made("method=u2pl", "method.contrastive=true")
    own, other = method.representation, method.teacher_representation
    for p in own.parameters():
        nn.init.normal_(p)
    wanted = [(a + b) / 2 for a, b in zip(own.parameters(), other.parameters(), strict=True)]
    method.update_teacher(1)
    assert any(p.ndim == 4 for p in wanted)
    for a, b in zip(wanted, other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


class Watch(pl.Callback):
    """The student's and the teacher's parameters after every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        vectors = (
            nn.utils.parameters_to_vector(m.parameters()) for m in (pl_module.model, pl_module.teacher)
        )
        self.seen.append([v.detach().clone() for v in vectors])


def test_the_teacher_is_the_mean_of_the_students_after_their_steps(tiny):
    """Decays 0, 1/2, 2/3: after step k the mean of k students, none of which is the one before the first step."""
    data, method = build(tiny("method=u2pl", *SMALL, "scheduler=constant", "trainer.max_steps=3"))
    watch = Watch()
    trainer = pl.Trainer(
        max_steps=3, callbacks=[watch], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(method, data)
    students = torch.stack([student for student, _ in watch.seen])
    assert len(students.unique(dim=0)) == 3
    for step, (_, teacher) in enumerate(watch.seen):
        torch.testing.assert_close(teacher, students[: step + 1].mean(0))
    assert method.epochs == 3  # of one step each: as many frames without labels as fit into a batch


def test_what_labelled_images_cost_is_the_loss_of_the_configuration(made):
    method, batch = made(
        "method=u2pl", *STILL, "loss=ohem", "loss.min_kept=30", "loss.thresh=0.055", "method.cutmix=0"
    )
    seen = Seen(method, batch)
    logits, likely = seen.logits[:2], np.exp(-seen.ce[0][seen.label != 255])
    method.loss.thresh = threshold_near(likely, float(np.median(likely)))
    wanted = float(method.loss(logits, batch["label"]).detach())
    assert float(method.losses(batch)["segmentation"].detach()) == pytest.approx(wanted, rel=1e-4)
    assert wanted != pytest.approx(float(F.cross_entropy(logits, batch["label"], ignore_index=255)), rel=1e-2)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("method=u2pl", "method.unreliable=120"), r"U2PL: unreliable=120: must be at least 0"),
        (("method=u2pl", "method.cutmix=1.5"), r"U2PL: cutmix=1\.5: must be at least 0"),
        (("method=u2pl", "method.ema_decay=1"), r"U2PL: ema_decay=1: must be at least 0"),
        (("method=u2pl_hl", "loss=ohem"), r"loss=OHEM: .* or method=u2pl for this loss"),
        (("method=u2pl", "trainer.ema_decay=0.9"), r"trainer\.ema_decay=0\.9: U2PL has an averaged teacher"),
        (("method=u2pl", "data.labeled=null"), r"data\.labeled=null: the method learns from frames without labels"),
    ],
)  # fmt: skip
def test_refusals(tiny, overrides, said):
    given = {o.split("=")[0] for o in overrides}
    with pytest.raises(ConfigError, match=said):
        build(tiny(*overrides, *(o for o in SMALL if o.split("=")[0] not in given)))
