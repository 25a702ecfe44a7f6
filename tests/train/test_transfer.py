"""Starting from another run's weights: what is taken, left and said; frozen stages; cross-stitched runs."""

import csv
import re

import numpy as np
import pytest
import torch

from hardpix import record
from hardpix.config.compose import compose
from hardpix.data import CIFAR100
from hardpix.train import rundir
from hardpix.train.build import build
from hardpix.train.checkpoint import init_from
from hardpix.train.train import train
from hardpix.types import ConfigError

pytestmark = pytest.mark.slow  # trains runs

SEGNET = ("backbone=segnet", "head=segnet", "model.aux_level=null")
STITCHED = ("model=cross_stitch", *SEGNET)
STILL = ("optimizer.lr=1e-30", "optimizer.weight_decay=0", "scheduler=constant", "trainer.max_steps=1")
CLASSIFIER = re.compile(r"(convs\.label|side)\.")
CLASSES = ("a", "b", "c")


def made(tiny, *overrides, seed=0):
    torch.manual_seed(seed)
    return build(tiny(*overrides))[1]


def saved(method, folder, classes=None):
    """What a run on these classes leaves behind."""
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": method.state_dict()}, folder / rundir.LAST)
    if classes is not None:
        rundir.write_classes(folder, classes)
    return folder


def weights(folder):
    return torch.load(folder / rundir.LAST, weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    "overrides",
    [
        SEGNET,
        ("head=psp",),
        ("head=refinenet_cascades", "head.widths=[8,8,8,8]", "model.aux_level=null", "method=lwm"),
    ],
    ids=["segnet", "psp_aux", "lwm"],
)
@pytest.mark.parametrize("same", [True, False])
def test_the_classifier_comes_along_only_between_the_same_classes(tiny, tmp_path, overrides, same):
    """As many classes of other names fit in shape, and mean nothing."""
    source, target = made(tiny, *overrides), made(tiny, *overrides, seed=1)
    names = target.info.classes if same else tuple(reversed(target.info.classes))
    start = {k: v.clone() for k, v in target.state_dict().items()}
    told = init_from(target, str(saved(source, tmp_path / "a", names)), target.info.classes)
    left = []
    for key, value in target.state_dict().items():
        origin = start if CLASSIFIER.search(key) and not same else source.state_dict()
        assert torch.equal(value, origin[key]), key
        left += [key] if origin is start else []
    assert (left != []) == (not same)
    assert f"{len(start) - len(left)} of {len(start)} tensors from {tmp_path}" in told
    assert ("other classes" in told) == (not same)


def test_a_file_of_unknown_classes_gives_no_classifier(tiny, tmp_path):
    source, target = made(tiny, *SEGNET), made(tiny, *SEGNET, seed=1)
    before = target.model.head.classifiers.convs["label"].weight.clone()
    folder = saved(source, tmp_path / "a")
    assert "model.head, 2 tensors (classifier: classes of that run unknown)" in init_from(
        target, str(folder / rundir.LAST), target.info.classes
    )
    assert torch.equal(target.model.head.classifiers.convs["label"].weight, before)
    rundir.write_classes(folder, target.info.classes)  # a file in a run's directory is of that run
    assert "(classifier" not in init_from(target, str(folder / rundir.LAST), target.info.classes)


def test_the_line_says_what_was_taken_and_what_was_not(tiny, tmp_path):
    source, target = made(tiny, "head=psp"), made(tiny, "head=fcn", "model.aux_level=null", seed=1)
    told = init_from(target, str(saved(source, tmp_path / "a", target.info.classes)), target.info.classes)
    assert "\n" not in told
    encoder = len(target.model.backbone.state_dict())
    taken = int(told.split(" of ")[0])
    assert encoder <= taken < len(target.state_dict())
    assert re.search(r"as initialised: model\.head, \d+ tensors \(not in that run\)", told)
    assert re.search(r"not used: model\.aux_head, \d+ tensors of that run", told)
    counts = sum(map(int, re.findall(r"as initialised: \S+ (\d+)", told)))
    assert taken + counts == len(target.state_dict())


def test_other_widths_are_told(tiny, tmp_path):
    source, target = made(tiny, *SEGNET), made(tiny, *SEGNET, "backbone.widths=[4,4,4,4,6]")
    told = init_from(target, str(saved(source, tmp_path / "a", target.info.classes)), target.info.classes)
    assert "(of another shape)" in told


@pytest.mark.parametrize("overrides", [SEGNET, ("head=psp",)], ids=["segnet", "timm"])
def test_a_plain_run_fills_both_streams(tiny, tmp_path, overrides):
    source = made(tiny, *overrides)
    target = made(tiny, "model=cross_stitch", *overrides, seed=1)
    with torch.no_grad():
        target.model.backbone.units[0].own.fill_(0.123)
    told = init_from(target, str(saved(source, tmp_path / "a", CLASSES)), target.info.classes)
    for stream in (target.model.backbone.own, target.model.backbone.fixed):
        for key, value in source.model.backbone.state_dict().items():
            assert torch.equal(stream.state_dict()[key], value), key
    assert "not used" not in told
    assert target.model.backbone.units[0].own.item() == pytest.approx(0.123)
    for key, value in source.model.head.state_dict().items():
        kept = "classifiers" in key
        assert torch.equal(target.model.head.state_dict()[key], value) != kept or not value.any(), key


def test_a_stitched_run_gives_each_stream_its_own(tiny, tmp_path):
    source, target = made(tiny, *STITCHED), made(tiny, *STITCHED, seed=1)
    with torch.no_grad():
        for p in source.parameters():
            p.uniform_(-1, 1)
    init_from(target, str(saved(source, tmp_path / "a", target.info.classes)), target.info.classes)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items())


def cifar(root):
    """Five pictures of either split, as the release of Python 3 readers would write it."""
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for part in ("train", "test"):
        rows = [bytes([0, 7 * i]) + rng.randint(0, 256, 3072).astype(np.uint8).tobytes() for i in range(5)]
        (folder / f"{part}.bin").write_bytes(b"".join(rows))
    (folder / "fine_label_names.txt").write_text("\n".join(CIFAR100.info.classes) + "\n")
    return root


def test_cifar100_then_segmentation_then_cross_stitch(tiny, tmp_path, capsys):
    """32x32 pictures through five poolings; then the encoder and decoder, then both streams."""
    train(
        tiny(*SEGNET, "run=pre", "data=cifar100", f"data.source.root={cifar(tmp_path / 'data')}", "trainer.max_steps=2",
             "data.train_transform.crop=[32,32]"),
        [],
    )  # fmt: skip
    pre = tmp_path / "runs/default/pre"
    fine = train(tiny(*SEGNET, "run=fine", f"init_from={pre}", "freeze=[conv1,conv2]", *STILL), [])
    assert fine.parent == record.read(pre).run_id
    assert "model.head, 2 tensors (classifier: other classes)" in capsys.readouterr().out
    a, b = weights(pre), weights(tmp_path / "runs/default/fine")
    for key, value in b.items():
        if "running" in key or "num_batches" in key:  # of conv1 and conv2 they stay as they came
            frozen = ".conv1." in key or ".conv2." in key
            assert torch.equal(a[key], value) == frozen, key
        elif not CLASSIFIER.search(key):
            torch.testing.assert_close(a[key], value, rtol=1e-6, atol=1e-12)
    train(tiny(*STITCHED, "run=both", f"init_from={tmp_path}/runs/default/fine", "trainer.max_steps=3"), [])
    c = weights(tmp_path / "runs/default/both")
    assert all(
        torch.equal(c[k.replace("backbone.", "backbone.fixed.")], v) for k, v in b.items() if "backbone." in k
    )
    with open(tmp_path / "runs/default/both/metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["stitch/1/own"]]
    assert rows
    assert all(row["val/miou"] for row in rows)
    for i in (1, 2, 3, 4):
        for name in ("own", "other"):
            assert float(rows[-1][f"stitch/{i}/{name}"]) == pytest.approx(
                c[f"model.backbone.units.{i - 1}.{name}"].item(), abs=1e-5
            )
    assert float(rows[-1]["stitch/1/own"]) != 0.9


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_factors_learn_a_hundred_times_faster_and_do_not_decay(tiny, optimizer):
    scheduler = "scheduler=poly_adamw" if optimizer == "adamw" else "scheduler=constant"
    method = made(tiny, *STITCHED, f"optimizer={optimizer}", scheduler, "optimizer.weight_decay=0.5")
    groups = method.parts.build_optimizer(method.parameter_groups()).param_groups
    by_name = {group["name"]: group for group in groups}
    lr = next(group["lr"] for name, group in by_name.items() if name.startswith("head"))
    stitch = [group for name, group in by_name.items() if name.startswith("stitch")]
    assert [len(group["params"]) for group in stitch] == [8]
    assert stitch[0]["lr"] == pytest.approx(100 * lr)
    assert stitch[0]["weight_decay"] == 0
    assert by_name["backbone"]["weight_decay"] == 0.5
    reached = {id(p) for group in groups for p in group["params"]}
    assert not reached & {id(p) for p in method.model.backbone.fixed.parameters()}
    assert reached == {id(p) for p in method.parameters() if p.requires_grad}


def test_the_multiplier_can_be_set():
    assert compose(
        ["model=cross_stitch", "optimizer.group_options.stitch.lr_mult=10"]
    ).optimizer.group_options == {"stitch": {"lr_mult": 10, "weight_decay": 0.0}}
    assert compose(["model=segmenter"]).optimizer.group_options == {}


@pytest.mark.parametrize("method", ["baseline", "hardness"])
def test_frozen_stages_do_not_reach_the_optimiser(tiny, method):
    made_method = made(tiny, f"method={method}", "freeze=[stem,stage1]")
    reached = {id(p) for members in made_method.parameter_groups().values() for p in members}
    made_method.train()
    for name, module in made_method.model.backbone.net.named_children():
        frozen = name in ("conv1", "bn1", "act1", "maxpool", "layer1")
        assert all(module.training != frozen for module in module.modules())
        assert all((id(p) in reached) != frozen for p in module.parameters()), name


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("freeze=[stage9]",), "no stage stage9; its stages are stem, stage1, stage2, stage3, stage4"),
        ((*SEGNET, "freeze=[conv1,stem]"), "no stage stem; its stages are conv1, conv2, conv3, conv4, conv5"),
        (("head=segnet", "model.aux_level=null"), "head=segnet: .*backbone=segnet"),
        (("backbone.name=mobilenetv3_small_050", "freeze=[stem]"), "mobilenetv3_small_050"),
    ],
)
def test_refusals_are_one_sentence(tiny, overrides, words):
    with pytest.raises(ConfigError, match=words) as error:
        made(tiny, *overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("overrides", [SEGNET, STITCHED], ids=["segnet", "cross_stitch"])
@pytest.mark.parametrize("method", ["baseline", "hardness", "hl_released"])
def test_methods_on_segnet(tiny, method, overrides):
    """Every trained parameter gets a gradient, HL's second head on the detached pyramid included; nothing else does."""
    torch.manual_seed(0)
    data, found = build(tiny(*overrides, f"method={method}"))
    parts = [data.evaluation_batch("train", i) for i in range(2)]
    batch = {k: torch.cat([p[k] for p in parts]) for k in ("image", "label")} | {"name": ["a", "b"]}
    found.train()
    losses = found.losses(batch)
    sum(losses.values()).backward()
    missing = [
        n for n, p in found.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert missing == []
    assert all(p.grad is None for n, p in found.named_parameters() if not p.requires_grad)
    if "hardness" in losses:
        found.zero_grad()
        found.losses(batch)["hardness"].backward()
        assert all(p.grad is None or not p.grad.any() for p in found.model.parameters())
        assert any(p.grad is not None and p.grad.any() for p in found.hardness.parameters())


def test_old_runs_have_no_frozen_stages(tiny, tmp_path):
    cfg = tiny()
    rundir.write_config(tmp_path, cfg)
    text = "\n".join(
        line for line in (tmp_path / "config.yaml").read_text().splitlines() if "freeze:" not in line
    )
    (tmp_path / "config.yaml").write_text(text)
    assert rundir.read_config(tmp_path).freeze == []


def test_a_run_goes_on_without_the_one_it_started_from(tiny, tmp_path):
    runs = tmp_path / "runs/default"
    start = train(tiny("run=start", "trainer.max_steps=1"), [])
    settings = ("run=next", f"init_from={runs}/start", "scheduler=constant")
    begun = train(tiny(*settings, "trainer.max_steps=1"), [])
    before = weights(runs / "next")
    (runs / "start").rename(tmp_path / "elsewhere")
    went_on = train(tiny(*settings, "resume=true", "trainer.max_steps=2"), [])
    assert (went_on.run_id, went_on.parent, went_on.metrics["run/steps"]) == (begun.run_id, start.run_id, 2)
    kept = {k: v for k, v in begun.factors.items() if k not in ("trainer.max_steps", "resume")}
    assert kept["init_from"] == "RUN"
    assert kept == {k: v for k, v in went_on.factors.items() if k in kept}
    assert any(not torch.equal(v, before[k]) for k, v in weights(runs / "next").items())
    with pytest.raises(ConfigError, match=r"another configuration \(init_from: .*; and [0-9]+ more\); give"):
        train(tiny("run=next", f"init_from={runs}/other", "scheduler=constant", "resume=true"), [])
