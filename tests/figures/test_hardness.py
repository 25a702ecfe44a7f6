"""``hardpix figure deciles, ranking, ssim, evolution``: numbers against pooled pixels, and what they refuse."""

import csv
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure

from hardpix import record
from hardpix.cli import main
from hardpix.config.compose import compose
from hardpix.evaluate import loaded
from hardpix.methods import Method
from hardpix.train import rundir
from hardpix.train.checkpoint import load_file
from hardpix.train.train import train

pytestmark = pytest.mark.slow  # trains runs

LINE = (
    "data.source.height=32", "data.source.width=48", "data.source.train_frames=8", "data.source.val_frames=1",
    "data.source.test_frames=3", "data.train_transform.crop=[32,48]", "data.batch_size=4", "data.num_workers=0",
    "data.eval_batch_size=2", "backbone.name=test_resnet", "trainer.accelerator=cpu", "trainer.devices=1",
    "trainer.max_steps=4", "trainer.sanity_steps=0", "callbacks.progress=none", "logger=csv", "panels=0",
    "optimizer.lr=0.3", "head.channels=8", "study=h",  # so that maps are wider than the rounding of float32
)  # fmt: skip
SINGLY = "data.eval_batch_size=1"  # a network's values differ by rounding between sizes of batches
LWM = (
    "method=lwm", "head=refinenet_cascades", "head.widths=[8,6,6,6]", "head.crp_stages=1", "head.output_units=1",
    "model.aux_level=null",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """HL of two seeds, a baseline, LWM; and a baseline on other rooms."""
    folder = tmp_path_factory.mktemp("hardness")
    line = [*LINE, f"runs_dir={folder}"]
    for seed in (0, 1):
        own = ["method=hardness", f"seed={seed}", f"run=hl{seed}", f"method.c={0.1 + 0.1 * seed}"]
        train(compose([*line, *own, "callbacks.snapshots=[1,2]"]), [])
    train(compose([*line, "run=plain"]), [])
    train(compose([*line, "run=other", "data.source.seed=5", "trainer.max_steps=1"]), [])
    train(compose([*[o for o in line if "channels" not in o], *LWM, "run=lwm", "trainer.max_steps=2"]), [])
    return folder / "h"


def figure(*words):
    return main(["figure", *map(str, words), "--device", "cpu"])


def numbers(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def pooled(run, keys=("image", "label")):
    """Of every labelled pixel of the split: logits, label, Z in [0, 1] where there is one; and the batches."""
    _, data, method = loaded(run, "last", [SINGLY])
    data.use(frozenset(keys))
    logits, labels, zs, batches = [], [], [], list(data.evaluation_loader("test"))
    for batch in batches:
        valid = batch["label"] != 255
        with torch.inference_mode():
            logits.append(method(batch["image"]).movedim(1, -1)[valid].T.double().numpy())
            if hasattr(method, "c"):
                zs.append((method.maps(batch)["hardness"][valid] - method.c).numpy())
        labels.append(batch["label"][valid].numpy())
    z = np.concatenate(zs) if zs else None
    return np.concatenate(logits, 1), np.concatenate(labels), z, batches


def groups_of(values, pred, label):
    """mIoU and accuracy of ten groups by decreasing value; equal values are shared out in proportion."""
    made, each = [], len(values) / 10
    start = np.array([(values > v).sum() for v in values])
    count = np.array([(values == v).sum() for v in values])
    for i in range(10):
        inside = np.minimum(start + count, (i + 1) * each) - np.maximum(start, i * each)
        share, right = np.maximum(0, inside) / count, pred == label
        ious = []
        for c in range(40):
            hit = share[right & (label == c)].sum()
            union = share[(pred == c) | (label == c)].sum()
            ious += [hit / union] if union >= 0.5 else []
        made.append((np.mean(ious), share[right].sum() / share.sum()))
    return made


def test_deciles_of_two_runs_equal_a_sort_of_all_pixels(runs, tmp_path, capsys):
    assert figure("deciles", runs / "hl0", runs / "plain", SINGLY, "--out", tmp_path / "f") == 0
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == [
        f"deciles.{s}" for s in ("csv", "pdf", "png")
    ]
    told = capsys.readouterr().out
    assert "plain has no map hardness" in told
    found = numbers(tmp_path / "f/deciles.csv")
    assert {(r["run"], r["ranked_by"], r["map"]) for r in found} == {
        ("hl0", "hl0", "hardness"), ("plain", "hl0", "hardness"),
    }  # fmt: skip
    logits, label, z, _ = pooled(runs / "hl0")
    for run in ("hl0", "plain"):
        pred = (logits if run == "hl0" else pooled(runs / "plain")[0]).argmax(0)
        expected = groups_of(z, pred, label)
        rows = [r for r in found if r["run"] == run]
        assert [int(r["group"]) for r in rows] == list(range(1, 11))
        for row, scores in zip(rows, expected, strict=True):
            assert float(row["pixels"]) == pytest.approx(len(z) / 10)
            assert (float(row["miou"]), float(row["pixel_acc"])) == pytest.approx(scores, abs=1e-6)
    rows = [r for r in found if r["run"] == "hl0"]
    total = sum(float(r["pixel_acc"]) * float(r["pixels"]) for r in rows) / len(z)
    assert total == pytest.approx((logits.argmax(0) == label).mean(), abs=1e-6)


def test_deciles_of_two_runs_with_the_map_and_of_the_loss(runs, tmp_path, capsys):
    assert figure("deciles", runs / "hl0", runs / "hl1", "--out", tmp_path / "a.png") == 0
    assert "has no map" not in capsys.readouterr().out
    pairs = [(r["run"], r["ranked_by"]) for r in numbers(tmp_path / "a.csv")]
    assert list(dict.fromkeys(pairs)) == [("hl0", "hl0"), ("hl1", "hl0"), ("hl1", "hl1")]
    words = ("deciles", runs / "plain", "--map", "loss", "--limit", "2", "--out", tmp_path / "b.png")
    assert figure(*words) == 0
    found = [float(r["pixel_acc"]) for r in numbers(tmp_path / "b.csv")]
    assert found[0] <= 0.01  # the largest losses are errors, and come first
    assert found == sorted(found)


def test_ranking_equals_comparing_pooled_pixels(runs, tmp_path, capsys):
    places = [runs / name for name in ("hl0", "plain", "lwm")]
    assert figure("ranking", *places, SINGLY, "--out", tmp_path / "r.png") == 0
    told = capsys.readouterr().out
    assert "note: plain: no DPE and DSE" in told
    assert "note: lwm" not in told
    found = {(r["run"], r["map"]): r for r in numbers(tmp_path / "r.csv")}
    common = ["true", "loss", "entropy", "uncertainty"]
    assert [key[1] for key in found if key[0] == "plain"] == common
    assert [key[1] for key in found if key[0] == "hl0"] == ["true", "loss", "hardness", *common[2:]]
    assert [key[1] for key in found if key[0] == "lwm"] == [
        "true",
        "loss",
        "dpe",
        "dse",
        "hardness",
        *common[2:],
    ]
    logits, label, z, batches = pooled(runs / "hl0", ("hardness",))
    truth = np.concatenate([b["hardness"][b["label"] != 255].numpy() for b in batches])
    p = np.exp(logits - logits.max(0))
    p /= p.sum(0)
    maps = {
        "true": truth, "hardness": z, "loss": -np.log(p[label, np.arange(len(label))]),
        "entropy": -(p * np.log(p)).sum(0), "uncertainty": 1 - p.max(0),
    }  # fmt: skip
    wrong = logits.argmax(0) != label
    for name, values in maps.items():
        row = found["hl0", name]
        assert float(row["pixels"]) == len(label)
        assert float(row["error_rate"]) == pytest.approx(wrong.mean())
        assert float(row["auroc"]) == pytest.approx(mann_whitney(values, wrong), abs=1e-3), name
        expected = spearman(values, np.round(truth * 255))  # in as many levels as the metric tells apart
        assert float(row["spearman"]) == pytest.approx(expected, abs=1e-3) or name == "true"
    assert math.isnan(float(found["hl0", "true"]["spearman"]))


def mann_whitney(values, wrong):
    rank = ranks(values)
    count = wrong.sum()
    return (rank[wrong].sum() - count * (count - 1) / 2) / (count * (~wrong).sum())


def ranks(values):
    """From 0, ties share their mean."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") - 1) / 2


def spearman(a, b):
    return np.corrcoef(ranks(a), ranks(b))[0, 1]


def test_dpe_counts_pixels_with_a_reading_alone(runs, tmp_path):
    words = ("ranking", runs / "lwm", "data.source.kinect=true", "--out", tmp_path / "r.png")
    assert figure(*words) == 0
    found = {r["map"]: r for r in numbers(tmp_path / "r.csv")}
    _, data, _ = loaded(runs / "lwm", "last", ["data.source.kinect=true"])
    batches = [data.evaluation_batch("test", i) for i in range(3)]
    labelled = sum(int((b["label"] != 255).sum()) for b in batches)
    seen = sum(int(((b["label"] != 255) & b["depth_valid"]).sum()) for b in batches)
    assert float(found["dse"]["pixels"]) == float(found["hardness"]["pixels"]) == labelled
    assert float(found["dpe"]["pixels"]) == seen < labelled


def test_ssim_equals_that_of_the_maps_on_their_known_range(runs, tmp_path, capsys):
    out = tmp_path / "s.png"
    words = ("ssim", runs / "hl0", runs / "hl1", "--out", out, "--count", "2", "--tile", "96")
    assert figure(*words) == 0
    found = {r["frame"]: float(r["ssim"]) for r in numbers(tmp_path / "s.csv")}
    assert list(found) == ["test_00000", "test_00001", "test_00002"]
    assert f"mean {np.mean(list(found.values())):.4f} over 3 frames" in capsys.readouterr().out
    made = [loaded(runs / name, "last", []) for name in ("hl0", "hl1")]
    for i, name in enumerate(found):
        batch = made[0][1].evaluation_batch("test", i)
        with torch.inference_mode():
            a, b = (m.maps(batch)["hardness"] - m.c for _, _, m in made)
        if (batch["label"] != 255).all():
            _, around = structural_similarity_index_measure(
                a[:, None], b[:, None], data_range=1.0, sigma=1.5, kernel_size=11, return_full_image=True
            )
            assert found[name] == pytest.approx(around[..., 5:-5, 5:-5].mean().item(), abs=1e-4)
    with Image.open(out) as picture:
        assert picture.width > 4 * 96
    assert figure("ssim", runs / "hl0", runs / "hl0", "--out", out, "--labels", "a,b", "--limit", "1") == 0
    assert [float(r["ssim"]) for r in numbers(tmp_path / "s.csv")] == [pytest.approx(1)]


def test_ssim_of_runs_of_other_classes_and_as_a_record(runs, tmp_path, capsys):
    """The second run's classes and data do not matter: the maps are compared on the first one's frames."""
    stranger = tmp_path / "stranger"
    shutil.copytree(runs / "hl1", stranger)
    config = stranger / "config.yaml"
    config.write_text(config.read_text().replace("test_frames: 3", "test_frames: 2"))
    place = tmp_path / "record"
    words = ("ssim", runs / "hl0", stranger, "--out", tmp_path / "s.png", "--record", place)
    assert figure(*words, "--reproduces", "hl/ssim/trainval_vs_train/ssim") == 0
    made, first = record.read(place), record.read(runs / "hl0")
    values = [float(r["ssim"]) for r in numbers(tmp_path / "s.csv")]
    assert len(values) == 3
    assert made.metrics == {"test/ssim": pytest.approx(np.mean(values))}
    assert (made.parent, made.status, made.dataset) == (first.run_id, "done", first.dataset)
    assert made.factors["other.method.c"] == 0.2
    assert "other.seed" not in made.factors
    assert made.factors["reproduces"] == ["hl/ssim/trainval_vs_train/ssim"]
    capsys.readouterr()
    assert figure(*words) == 2
    assert "already holds a run.json" in capsys.readouterr().err
    # Beside the published number, once it is about the same data.
    path = place / "run.json"
    text = path.read_text().replace(f'"dataset": "{made.dataset}"', '"dataset": "cityscapes"')
    path.write_text(text.replace('"data.test_split": "test"', '"data.test_split": "val"'))
    assert main(["table", "--published", "hl/ssim", str(place), "--format", "csv"]) == 0
    (row,) = [
        r for r in csv.DictReader(capsys.readouterr().out.splitlines()) if r["row"] == "trainval_vs_train"
    ]
    assert (float(row["published"]), float(row["mean"])) == (0.95, pytest.approx(np.mean(values)))


def test_evolution_follows_one_frame_over_the_kept_epochs(runs, tmp_path):
    run = runs / "hl0"
    assert figure("evolution", run, "--image", "test_00002", "--out", tmp_path / "e") == 0
    found = numbers(tmp_path / "e/evolution.csv")
    assert [(r["epoch"], r["iteration"]) for r in found] == [("1", "2"), ("2", "4")]
    _, data, method = loaded(run, "last", [])
    batch = data.evaluation_batch("test", 2)
    label = batch["label"][0]
    valid = label != 255
    for row in found:
        load_file(method, rundir.snapshot(run, int(row["epoch"])))
        with torch.inference_mode():
            logits, z = method(batch["image"]), method.maps(batch)["hardness"][0][valid].numpy()
        loss = torch.nn.functional.cross_entropy(logits, label[None], ignore_index=255, reduction="none")[0]
        assert float(row["spearman"]) == pytest.approx(spearman(z - method.c, loss[valid].numpy()), abs=1e-4)
        wrong = (logits[0].argmax(0) != label)[valid].float().mean().item()
        assert float(row["wrong"]) == pytest.approx(wrong)
    before = (tmp_path / "e/evolution.csv").read_text()
    assert figure("evolution", run, "--image", "2", "--out", tmp_path / "e") == 0
    assert (tmp_path / "e/evolution.csv").read_text() == before


def test_windows_give_other_maps_than_the_whole_image(runs, tmp_path):
    slide = ("inference=slide", "inference.crop=[32,32]", "inference.stride=[16,16]")
    for name, words in (("whole", ()), ("slide", slide)):
        assert figure("ranking", runs / "hl0", *words, "--out", tmp_path / f"{name}.png") == 0
    whole, windows = (numbers(tmp_path / f"{name}.csv") for name in ("whole", "slide"))
    assert [r["map"] for r in whole] == [r["map"] for r in windows]
    assert [r["pixels"] for r in whole] == [r["pixels"] for r in windows]
    assert [r["auroc"] for r in whole] != [r["auroc"] for r in windows]


def test_frames_of_two_sizes_are_pooled(runs, tmp_path, capsys):
    """The same rooms as a folder of pictures, one of them narrower."""
    _, rooms, method = loaded(runs / "plain", "last", [])
    frames = rooms.source.frames("test", frozenset({"image", "label"}))
    for kind in ("images", "labels"):
        (tmp_path / "test" / kind).mkdir(parents=True)
    wrong, pixels, width = 0, 0, 48
    for i, width in enumerate((48, 37)):
        sample = frames.load(i)
        picture, label = sample["image"][..., :width], sample["label"][:, :width].numpy()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / f"test/images/{i}.png")
        Image.fromarray(label).save(tmp_path / f"test/labels/{i}.png")
        image = rooms.evaluation_batch("test", i)["image"][..., :width]
        with torch.inference_mode():
            pred = method(image).argmax(1)[0].numpy()
        wrong, pixels = wrong + ((pred != label) & (label != 255)).sum(), pixels + (label != 255).sum()
    classes = ",".join(f"'{name}'" for name in rooms.info.classes)
    own = (
        "data=folder",
        f"data.source.root={tmp_path}",
        f"data.source.classes=[{classes}]",
        "data.num_workers=0",
    )
    words = ("ranking", runs / "plain", *own, "--out", tmp_path / "r.png")
    assert figure(*words, "data.eval_batch_size=1") == 0
    for row in numbers(tmp_path / "r.csv"):
        assert (float(row["pixels"]), row["spearman"]) == (pixels, "nan")
        assert float(row["error_rate"]) == pytest.approx(wrong / pixels)
    assert figure(*words, "data.eval_batch_size=2") == 2
    assert "data.eval_batch_size=1" in capsys.readouterr().err


def test_refusals_come_before_any_work(runs, tmp_path, capsys, monkeypatch):
    plain, hl, other, lwm = (runs / name for name in ("plain", "hl0", "other", "lwm"))
    for name in ("dense", "maps"):
        monkeypatch.setattr(Method, name, lambda *a: pytest.fail("worked"))

    def refused(*words):
        assert figure(*words, "--out", tmp_path / "no" / "f.png") == 2
        assert not (tmp_path / "no").exists()
        err = capsys.readouterr().err.strip()
        assert "\n" not in err
        return err

    assert "data.source.seed" in refused("deciles", hl, other)
    assert "data.source.seed" in refused("ranking", plain, other)
    assert "one or two runs" in refused("deciles", hl, plain, lwm)
    told = refused("deciles", plain, "--map", "hardness")
    assert "has no such hardness map, but true, loss, entropy, uncertainty" in told
    assert "has no such hardness map" in refused("ssim", hl, plain)
    assert "Z in" in refused("ssim", hl, lwm)
    assert "no upper end" in refused("ssim", hl, runs / "hl1", "--map", "loss")
    assert "of two runs" in refused("ssim", hl)
    assert "--limit 0" in refused("ranking", hl, "--limit", "0")
    assert "--frames and --limit" in refused(
        "ssim", hl, runs / "hl1", "--limit", "1", "--frames", "test_00000"
    )
    assert "callbacks.snapshots=[1, 10, 50]" in refused("evolution", plain)
    assert "epochs 1, 2" in refused("evolution", hl, "--epochs", "3")
    assert "did you mean test_00001" in refused("evolution", hl, "--image", "test_0001")
    assert "has 3 frames, 0 to 2" in refused("evolution", hl, "--image", "3")
    assert "draws one run" in refused("evolution", hl, runs / "hl1")
