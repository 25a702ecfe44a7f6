"""Crops without a labelled pixel, under every method with every loss that it takes: they cost and move nothing.

The unlabelled images of U2PL teach as ever, and so does the depth of LWM: these are silenced where a batch must move
nothing at all, and left in where only what labels say must be 0.
"""

import functools

import pytest
import torch
from torch import nn

from hardpix.config.compose import compose_group
from hardpix.train.build import build, make
from hardpix.train.parent import with_parent
from hardpix.types import ClassCounts, ConfigError
from tests.listed import listed

VOID, SIZE = 255, (32, 48)

OCR = "head=ocr head.ocr_channels=4 head.coarse_channels=8 model.aux_level=null"
CASCADES = (
    "head=refinenet_cascades head.widths=[8,6,6,6] head.crp_stages=1 head.output_units=1 model.aux_level=null"
)
SEMI = (
    "data.labeled=0.5 head.levels=[0,1,2,3] method.contrast.channels=8 method.contrast.bank=16 method.cutmix=0 "
    "method.contrast.bank_first=20 method.contrast.anchors=4 method.contrast.negatives=3 method.contrast.confidence=0 "
    "method.contrast.dropout=0"
)
PARENT = "head=psp"
STILL = ("head.dropout=0", "model.aux_dropout=0")

# Each configuration on those of its parents, top down.
SETTINGS = {
    "u2pl": [f"{SEMI} method.unreliable=100"],
    "layer_cascade": ["head=gau_decoder method.rho=0.5"],
    "error_prediction": ["method.channels=16 method.w3_min=0.1", PARENT],
    "detail": ["method.channels=8 method.t=0.0", "method=error_prediction method.channels=16", PARENT],
    "bagging": ["method.channels=8", f"method=hardness {PARENT}"],
    "u2pl_hl": [f"{SEMI} method.unreliable=100"],
    "lwm": [CASCADES],
}
FURTHER = {
    "baseline, a head of two stages": [f"method=baseline {OCR}"],
    "lwm without hardness": [f"method=lwm method.hardness=none method.curriculum=false {CASCADES}"],
    "u2pl, contrastive": [
        f"method=u2pl {SEMI} method.contrastive=true"
    ],  # which always has something to teach
    "hardness, a head of two stages": [f"method=hardness {OCR}"],
}
OF_CONF = {name: SETTINGS.get(name, [""]) for name in listed("method")}
METHODS = {name: [f"method={name} {first}", *below] for name, (first, *below) in OF_CONF.items()} | FURTHER
ANY_LOSS = ("baseline", "u2pl", "baseline, a head of two stages", "lwm without hardness", "u2pl, contrastive")
PLAIN_LOSS = [name for name in METHODS if name not in ANY_LOSS]

# The same networks under other settings: of which method, and what is set.
VARIANTS = {
    "error_prediction, w3=ratio": (
        "error_prediction",
        {"weights": {"w1": 1, "w2": 1.5, "w3": "ratio", "w3_min": 0}},
    ),
    "u2pl_hl, labels alone": ("u2pl_hl", {"hl_on_unlabeled": False}),
    "lwm, native sides": ("lwm", {"native_sides": True, "depth_max": None}),
    "lwm, self-paced": ("lwm", {"hardness": "none"}),
    "lwm, no cells": ("lwm", {"cells": None, "curriculum": False}),
    **{f"lwm, {fusion}": ("lwm", {"hardness": fusion}) for fusion in ("product", "max", "dpe", "dse")},
}
# Where the batch is normalised void included, as released, void has a say in how hard the rest is.
VOID_IN_HARDNESS = ("hl_released",)

SMALL = {"ohem": ["loss.min_kept=10"], "ohem_released": ["loss.min_kept=10"]}
LOSSES = {name: [f"loss={name}", *SMALL.get(name, [])] for name in listed("loss")} | {
    "balanced, inverse": ["loss=balanced", "loss.weighting=inverse", "loss.weight_normalized=true"],
    "focal, all": ["loss=focal", "loss.normalizer=all"],
    "loss_max_pooling, image": ["loss=loss_max_pooling", "loss.scope=image"],
    "ohem, all pixels": ["loss=ohem"],
    "ohem, by rank": ["loss=ohem", "loss.min_kept=10", "loss.thresh=null"],
    "ohem, valid": ["loss=ohem", "loss.min_kept=10", "loss.reduction=valid"],
}
PLAIN = ("cross_entropy", "cross_entropy_released")
FOR_19 = "balanced_cityscapes"
OF_FILES = listed("loss", without={FOR_19})
PAIRS = [
    *(("baseline", loss) for loss in LOSSES if loss != FOR_19),
    *((method, loss) for method in ("u2pl", "lwm without hardness") for loss in OF_FILES),
    *(("baseline, a head of two stages", loss) for loss in ("cross_entropy", "ohem", "loss_max_pooling")),
    *((method, loss) for method in PLAIN_LOSS for loss in PLAIN),
    *((method, "cross_entropy") for method in VARIANTS),
]


def new_loss(name, classes):
    """Made from its file alone."""
    file, *settings = LOSSES[name]
    cfg = compose_group(*file.split("=")).loss
    cfg.merge_with_dotlist([word.removeprefix("loss.") for word in settings])
    counts = torch.arange(1, classes + 1)
    pixels = {"num_classes": classes, "class_counts": lambda: ClassCounts(counts, 2 * counts)}
    return make(cfg, ignore_index=VOID, **(pixels if "weighting" in cfg else {}))


@pytest.fixture(scope="module")
def networks(composed_tiny, tmp_path_factory):
    """``networks(name)``: a method, made once."""
    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def made(name):
        torch.manual_seed(0)
        *upper, lowest = METHODS[name]
        cfg = composed_tiny(folder, [*lowest.split(), *STILL])
        for case in reversed(upper):
            cfg = with_parent(composed_tiny(folder, [*case.split(), *STILL, "parent=nowhere"]), cfg, "parent")
        method = build(cfg)[1]
        for (
            p
        ) in method.parameters():  # no classifier says the same everywhere, no residual block is the identity
            nn.init.normal_(p, std=0.1) if p.ndim == 4 else nn.init.uniform_(p, 0.5, 1)
        return method

    return made


@pytest.fixture
def new_method(networks):
    """``new_method(name, loss)``: in training mode, without dropout or gradients; a test's settings end with it."""

    before = []

    def new(name, loss="cross_entropy", **settings):
        name, varied = VARIANTS.get(name, (name, {}))
        method = networks(name)
        criterion = new_loss(loss, method.info.num_classes)
        for key, value in ({"loss": criterion} | varied | settings).items():
            assert hasattr(method, key)
            before.append((method, key, getattr(method, key)))
            setattr(method, key, value)
        method.parts.aux_loss.normalizer = getattr(criterion, "normalizer", "valid")
        method.zero_grad(set_to_none=True)
        return method.train()

    yield new
    for method, key, value in reversed(before):
        setattr(method, key, value)


def make_batch(method, *, void, depth):
    """Two random images; ``void``: which of them have no label at all. The other's first rows are void, too."""
    dice = torch.Generator().manual_seed(3)
    shape = (2, *SIZE)
    label = torch.randint(0, method.info.num_classes, (2, 4, 6), generator=dice)
    label = label.repeat_interleave(8, 1).repeat_interleave(8, 2)
    label[:, :5] = VOID
    label[list(void)] = VOID
    batch = {
        "image": torch.randn((2, 3, *SIZE), generator=dice),
        "label": label,
        "name": ["a", "b"],
        "depth": 0.5 + 8 * torch.rand(shape, generator=dice),
        "depth_valid": torch.rand(shape, generator=dice) > 0.2,
        "unlabeled": torch.randn((2, 3, *SIZE), generator=dice),
    }
    batch["depth_valid"][list(void)] &= depth
    return {key: value for key, value in batch.items() if key in {*method.requires, "name"} or (
        key == "depth_valid" and "depth" in method.requires)}  # fmt: skip


def trained(method):
    return [p for group in method.parameter_groups().values() for p in group]


def total(losses):
    return torch.stack([x.float() for x in losses.values()]).sum()


def test_the_pairs_are_those_that_are_allowed(new_method):
    assert {name for name in METHODS if new_method(name).takes_loss} == set(ANY_LOSS)
    with pytest.raises(ConfigError, match="19 numbers"):
        new_method("baseline", FOR_19)


@pytest.mark.parametrize(("name", "loss"), PAIRS)
def test_a_batch_of_void_alone_costs_nothing_and_moves_nothing(new_method, name, loss):
    method = new_method(name, loss)
    losses = method.losses(make_batch(method, void=(0, 1), depth=False))
    assert {key: float(x.detach()) for key, x in losses.items()} == dict.fromkeys(losses, 0.0)
    parameters = trained(method)
    assert parameters
    before = [p.detach().clone() for p in method.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    total(losses).backward()
    assert any(p.grad is not None for p in parameters)  # a step is taken, and its length is 0
    assert all(p.grad is None or not p.grad.any() for p in method.parameters())
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(method.parameters(), before, strict=True))


@pytest.mark.parametrize(("name", "loss", "void"), [(*pair, place % 2) for place, pair in enumerate(PAIRS)])
def test_an_image_of_void_in_a_batch_gets_no_gradient(new_method, monkeypatch, name, loss, void):
    """Nor does a void pixel of the other. Norms keep to their statistics: they would mix the two images."""
    method = new_method(name, loss)
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    seen, enlarge = [], method.enlarge

    def watched(x, size):
        out = enlarge(x, size)
        if out.requires_grad:
            out.retain_grad()
            seen.append(out)
        return out

    monkeypatch.setattr(method, "enlarge", watched)
    batch = make_batch(method, void=(void,), depth=False)
    batch["image"].requires_grad_()
    losses = method.losses(batch)
    assert all(torch.isfinite(x) for x in losses.values())
    assert any(float(x.detach()) != 0 for x in losses.values())
    total(losses).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    assert any(p.grad is not None and p.grad.any() for p in trained(method))
    other, image = 1 - void, batch["image"].grad
    if image is not None:  # else frozen layers stand before all that trains
        assert not image[void].any()
        assert image[other].any()
    moved = 0
    for logits in seen:
        if logits.grad is None or (name in VOID_IN_HARDNESS and logits.shape[1] == 1):
            continue
        assert torch.isfinite(logits.grad).all()
        assert not logits.grad[void].any()
        moved += bool(logits.grad[other].any())
        if logits.shape[-2:] == SIZE and not is_depth(name, logits):
            assert not logits.grad[other][:, batch["label"][other] == VOID].any()
    assert moved


def is_depth(name, logits):
    return name.startswith("lwm") and logits.shape[1] == 1


@pytest.mark.parametrize("name", [name for name in (*METHODS, *VARIANTS) if "lwm" in name])
def test_depth_goes_on_teaching_without_a_label(new_method, name):
    method = new_method(name)
    batch = make_batch(method, void=(0, 1), depth=True)
    losses = method.losses(batch)
    by_depth = losses.pop("depth")
    assert {float(x.detach()) for x in losses.values()} == {0.0}
    assert float(by_depth.detach()) > 0
    assert all(not g.any() for g in gradients(total(losses), method) if g is not None)
    assert any(g.any() for g in gradients(by_depth, method) if g is not None)


@pytest.mark.parametrize("name", ["u2pl", "u2pl, contrastive", "u2pl_hl", "u2pl_hl, labels alone"])
def test_images_without_labels_go_on_teaching(new_method, name):
    method, contrastive = new_method(name, unreliable=20), "contrastive" in name
    batch = make_batch(method, void=(0, 1), depth=False)
    losses = method.losses(batch)
    assert all(torch.isfinite(x) for x in losses.values())
    taught = {
        key: losses.pop(key) for key in ("unsupervised", "hardness_unlabeled", "contrastive") if key in losses
    }
    assert ("contrastive" in taught) == contrastive
    assert float(taught["unsupervised"].detach()) > 0
    assert {float(x.detach()) for x in losses.values()} == {0.0}
    assert all(not g.any() for g in gradients(total(losses), method) if g is not None)
    found = [g for g in gradients(total(taught), method) if g is not None]
    assert any(g.any() for g in found)
    assert all(torch.isfinite(g).all() for g in found)


def gradients(loss, method):
    return torch.autograd.grad(loss, trained(method), retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_alone(name, dtype):
    """Of the 19 classes that fixed weights are for; logits may come in half precision."""
    loss = new_loss(name, 19)
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 19, 6, 8)).to(dtype).requires_grad_()
    label = torch.randint(0, 19, (2, 6, 8))
    label[0] = VOID
    found = loss(logits, label)
    (gradient,) = torch.autograd.grad(found, logits)
    assert torch.isfinite(found)
    assert float(found.detach()) > 0
    assert not gradient[0].any()
    assert gradient[1].any()
    assert torch.isfinite(gradient).all()
    nothing = loss(logits, torch.full_like(label, VOID))
    assert nothing.dtype == torch.float32
    assert float(nothing.detach()) == 0
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert not gradient.any()
