"""LWM in whole runs: resumed, averaged, on two processes, and scored where there is no depth."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from hardpix import record
from hardpix.cli import main
from hardpix.data import pack, statistics
from hardpix.evaluate import evaluate, loaded
from hardpix.methods import Method, lwm
from hardpix.train.build import build, start_regressions
from hardpix.train.train import train
from hardpix.types import ConfigError, DataError

LWM = (
    "method=lwm", "head=refinenet_cascades", "head.widths=[8,6,6,6]", "head.crp_stages=1", "head.output_units=1",
    "model.aux_level=null", "panels=0", "optimizer.lr=1e-3",
)  # fmt: skip
DEPTH_SCORES = [f"depth_{n}" for n in ("rmse", "rmse_log", "abs_rel", "delta1", "delta2", "delta3")]


def weights(run_dir, name="last"):
    return torch.load(run_dir / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


@pytest.fixture
def trained(tiny, tmp_path):
    """A run of two steps, its directory and its configuration."""
    cfg = tiny(*LWM, "run=a", "trainer.max_steps=2")
    return train(cfg, []), tmp_path / "runs/default/a", cfg


def test_scores_of_depth_stand_beside_those_of_classes(trained):
    done, run_dir, _ = trained
    for split in ("val", "test"):
        assert all(np.isfinite(done.metrics[f"{split}/{name}"]) for name in DEPTH_SCORES)
    assert not any(k.startswith(("metrics", "extra_metrics")) for k in weights(run_dir))


def test_the_start_of_the_depth_output_is_recorded(trained, monkeypatch):
    """R-36: measured once for all runs on the same frames; a checkpoint keeps what its run began with."""
    done, run_dir, cfg = trained
    monkeypatch.setattr(statistics, "_sum_and_count", None)  # a second measurement would fail
    data, method = build(cfg)
    start_regressions(method, data, cfg)
    (bias,) = method.model.output_biases("depth")
    assert done.metrics["run/depth_bias"] == pytest.approx(float(bias.detach()))
    assert done.metrics["run/depth_bias"] > 3
    started = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["starts"]
    assert started == {"depth": done.metrics["run/depth_bias"]}
    for change in ("data.source.train_frames=7", "data.source.seed=1", "data.train_split=val"):
        key, _, value = change.partition("=")
        other = OmegaConf.merge(cfg, OmegaConf.from_dotlist([f"{key}={value}"]))
        data, method = build(other)
        with pytest.raises(TypeError, match="NoneType"):  # other frames are measured
            start_regressions(method, data, other)


@pytest.mark.slow
def test_weights_of_another_run_keep_their_depth_bias(tiny, tmp_path):
    """What init_from brings stays, and is what the record says; a resumed run is not started a second time."""
    fixed = (*LWM, "method.curriculum=false", "scheduler=constant", "trainer.max_steps=2")
    train(tiny(*fixed, "run=a", "method.depth_bias=1.5"), [])
    ended = weights(tmp_path / "runs/default/a")["model.head.readers.depth.convs.depth.bias"]
    after = train(tiny(*fixed, "run=b", f"init_from={tmp_path / 'runs/default/a'}"), [])
    assert after.metrics["run/depth_bias"] == pytest.approx(float(ended))
    train(tiny(*LWM, "run=plain", "method=baseline", "trainer.max_steps=1"), [])
    source = f"init_from={tmp_path / 'runs/default/plain'}"
    fresh = train(tiny(*fixed, "run=c", source), [])  # the other run has no depth output
    assert fresh.metrics["run/depth_bias"] > 3
    longer = [o for o in fixed if not o.startswith("trainer.max_steps")]
    again = train(tiny(*longer, "run=a", "method.depth_bias=1.5", "trainer.max_steps=3", "resume=true"), [])
    assert again.metrics["run/depth_bias"] == 1.5
    moved = weights(tmp_path / "runs/default/a")["model.head.readers.depth.convs.depth.bias"]
    assert 0 < float((moved - ended).abs()) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("killed_at", "every"), [(3, "1"), (4, "3"), (5, "null")])
def test_a_resumed_run_equals_an_uninterrupted_one(tiny, tmp_path, monkeypatch, killed_at, every):
    """Two steps an epoch, dropout on, the threshold rising: killed in an epoch and between two."""
    fixed = [
        *LWM,
        f"callbacks.checkpoint_every_steps={every}",
        "trainer.max_steps=7",
        "trainer.ema_decay=0.9",
    ]
    seen, step = [], Method.training_step

    def noted(self, batch, batch_idx):
        seen.append((self.global_step, self.current_epoch, self.epochs))
        if self.global_step == noted.killed_at:
            raise RuntimeError("power cut")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", noted)
    noted.killed_at = None
    whole = train(tiny("run=whole", *fixed), [])
    assert seen == [(s, s // 2, 4) for s in range(7)]
    noted.killed_at = killed_at
    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny("run=parts", *fixed), [])
    noted.killed_at = None
    seen.clear()
    again = train(tiny("run=parts", "resume=true", *fixed), [])
    assert seen == [(s, s // 2, 4) for s in range(7 - len(seen), 7)]
    a, b = (weights(tmp_path / f"runs/default/{n}") for n in ("whole", "parts"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    kept = [k for k in whole.metrics if k.startswith(("val/", "test/"))]
    assert {k: again.metrics[k] for k in kept} == {k: whole.metrics[k] for k in kept}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "epochs"),
    [
        (["trainer.max_steps=7"], 4),
        (["trainer.max_steps=8"], 4),
        (["trainer.max_steps=null", "trainer.max_epochs=3"], 3),
        (["trainer.max_steps=null", "trainer.max_epochs=3", "trainer.accumulate=2"], 3),
        (["trainer.max_steps=3", "data.batch_size=2", "trainer.accumulate=3"], 2),
        (["trainer.max_steps=4", "data.batch_size=3", "data.drop_last=false"], 2),
        (["trainer.max_steps=4", "trainer.limit_train_batches=1"], 4),
        (["trainer.max_steps=1"], 1),
    ],
)
def test_the_last_epoch_of_the_curriculum_is_the_last_of_training(tiny, monkeypatch, overrides, epochs):
    """E counts epochs, the last of which may be cut short; e / E reaches exactly 1 there and never more."""
    progress, original = [], lwm.curriculum
    monkeypatch.setattr(lwm, "curriculum", lambda v, m, p: progress.append(p) or original(v, m, p))
    train(tiny(*LWM, "run=a", *overrides), [])
    assert sorted(set(progress)) == [(e + 1) / epochs for e in range(epochs)]


@pytest.mark.slow
def test_a_curriculum_cannot_be_trained_longer(tiny):
    fixed = (*LWM, "run=a", "scheduler=constant")
    train(tiny(*fixed, "trainer.max_steps=2"), [])
    with pytest.raises(ConfigError, match=r"trainer\.max_steps: 2 -> 4, but method\.curriculum was made for"):
        train(tiny(*fixed, "trainer.max_steps=4", "resume=true"), [])
    fixed = (*LWM, "run=b", "scheduler=constant", "method.curriculum=false")
    train(tiny(*fixed, "trainer.max_steps=2"), [])
    assert train(tiny(*fixed, "trainer.max_steps=4", "resume=true"), []).metrics["run/steps"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.precision=bf16-mixed", "trainer.accumulate=2", "data.repeat_rare=0.5"],
        ["inference=multiscale", "inference.scales=[1.0,1.5]", "scheduler=plateau"],
        ["inference=slide", "inference.crop=[24,24]", "inference.stride=[16,16]", "head.fuse_stride=1"],
        *(
            [f"loss={loss}", "method.hardness=none", "method.curriculum=false", "trainer.max_steps=1"]
            for loss in ("ohem", "focal", "loss_max_pooling", "balanced")
        ),
        ["loss.normalizer=all", "method.depth_range=image"],
    ],
    ids=lambda o: o[0],
)
def test_ways_to_train(tiny, overrides):
    given = {o.split("=")[0] for o in overrides}
    steps = [] if "trainer.max_steps" in given else ["trainer.max_steps=2"]
    done = train(tiny(*LWM, "run=a", *steps, *overrides), [])
    scored = "method.depth_range=image" not in overrides
    assert ("test/depth_rmse" in done.metrics) == scored
    assert np.isfinite(done.metrics["test/miou"])


def without_depth(cfg, folder):
    """The rooms of ``cfg`` packed, with everything about depth taken out; ``data=packed`` of it."""
    source = build(cfg)[0].source
    pack(source, folder, size=None, splits=("train", "val", "test"))
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["info"]["provides"] = [k for k in content["info"]["provides"] if k != "depth"]
    content["info"]["depth_max"] = None
    for split in content["splits"].values():
        split["files"].pop("depth", None)
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.slow
def test_packed_rooms_train_alike(tiny, tmp_path, trained):
    done, _, cfg = trained
    pack(build(cfg)[0].source, tmp_path / "packed", size=None, splits=("train", "val", "test"))
    own = ["data=packed", f"data.source.root={tmp_path}/packed", "data.train_transform.crop=[32,48]"]
    again = train(tiny(*LWM, *own, "run=p", "trainer.max_steps=2"), [])
    assert again.metrics["val/depth_rmse"] == pytest.approx(done.metrics["val/depth_rmse"], rel=1e-2)


@pytest.mark.slow
def test_a_run_is_scored_and_predicts_where_there_is_no_depth(tiny, tmp_path, trained, capsys):
    """Depth is privileged: the scores of classes are the same without it, and those of depth are absent."""
    done, run_dir, cfg = trained
    folder = without_depth(cfg, tmp_path / "packed")
    own = ["data=packed", f"data.source.root={folder}"]
    assert main(["evaluate", str(run_dir), *own, "--out", str(tmp_path / "e")]) == 0
    found = record.read(tmp_path / "e").metrics
    assert found["test/miou"] == done.metrics["test/miou"]
    assert not any("depth" in name for name in found)
    frames = tmp_path / "in"
    frames.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (30, 41, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(frames / "x.png")
    for name, more in (("with", []), ("without", own)):
        assert main(["predict", str(run_dir), str(frames), *more, "--out", str(tmp_path / name)]) == 0
    for kind in ("label", "overlay", "depth"):
        a, b = ((tmp_path / name / kind / "x.png").read_bytes() for name in ("with", "without"))
        assert a == b
    assert sorted(p.name for p in (tmp_path / "with").iterdir()) == ["depth", "label", "overlay"]
    with pytest.raises(DataError, match="needs depth"):
        train(tiny(*LWM, *own, "data.train_transform.crop=[32,48]", "run=n"), [])
    capsys.readouterr()
    assert main(["figure", "depth-error", str(run_dir), *own, "--out", str(tmp_path / "f.png")]) == 2
    assert "has no depth" in capsys.readouterr().err


@pytest.mark.slow
def test_the_scale_of_depth_belongs_to_the_weights(tiny, tmp_path, trained):
    """A data set whose scale ends elsewhere does not change what metres a trained network says."""
    done, run_dir, cfg = trained
    pack(build(cfg)[0].source, tmp_path / "packed", size=None, splits=("test",))
    path = tmp_path / "packed/manifest.json"
    content = json.loads(path.read_text())
    content["info"]["depth_max"] *= 2
    path.write_text(json.dumps(content))
    for weights_of in ("last", "best"):
        changed, data, method = loaded(
            run_dir, weights_of, ["data=packed", f"data.source.root={tmp_path}/packed"]
        )
        assert data.info.depth_max == 2 * method.depth_max
    found = evaluate(run_dir, changed, split="test", weights="last", out=tmp_path / "e")
    for name in DEPTH_SCORES:
        assert found[f"test/{name}"] == pytest.approx(done.metrics[f"test/{name}"], rel=2e-3), name
    # Another run that starts from these weights keeps the scale of its own data.
    started = tiny(*LWM, "run=b", "trainer.max_steps=1", f"init_from={run_dir}", "data=packed",
                   f"data.source.root={tmp_path}/packed", "data.train_split=test", "data.val_split=test",
                   "data.train_transform.crop=[32,48]", "data.batch_size=2")  # fmt: skip
    train(started, [])
    assert loaded(tmp_path / "runs/default/b", "last", [])[2].depth_max == data.info.depth_max


@pytest.mark.slow
@pytest.mark.parametrize("inference", ["slide", "multiscale"])
def test_depth_scores_of_windows_and_scales(tiny, tmp_path, trained, inference):
    """Scored again: by hand from the frames, with the depth that the same inference of depth alone gives."""
    _, run_dir, _cfg = trained
    own = {
        "slide": ["inference=slide", "inference.crop=[32,32]", "inference.stride=[32,16]"],
        "multiscale": ["inference=multiscale", "inference.scales=[1.0,1.5]"],
    }[inference]
    own.append(
        "data.eval_batch_size=1"
    )  # rounding differs between sizes of batches, and classes are next to equal
    path = run_dir / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["model.head.readers.depth.convs.depth.bias"].fill_(4.0)  # untrained, all is 1 mm
    torch.save(content, path)
    (path.parent / "manifest.json").unlink()  # it would be taken for damaged
    changed, data, method = loaded(run_dir, "last", own)
    found = evaluate(run_dir, changed, split="test", weights="last", out=tmp_path / "e")
    squares, pixels, hits, labelled = 0.0, 0, 0, 0
    with torch.inference_mode():
        for i in range(3):
            batch = data.evaluation_batch("test", i)
            log_depth = method.parts.infer(lambda x: method.dense(x)[:, -1:], batch["image"])[:, 0]
            z = ((log_depth.exp() - 1) / 255 * method.depth_max).clamp(1e-3, method.depth_max)
            valid = batch["depth_valid"] & (batch["depth"] <= method.depth_max)
            squares += float((z - batch["depth"])[valid].double().square().sum())
            pixels += int(valid.sum())
            guess = method.predict_logits(batch["image"]).argmax(1)
            hits += int((guess == batch["label"]).sum())
            labelled += int((batch["label"] != 255).sum())
    assert found["test/depth_rmse"] == pytest.approx((squares / pixels) ** 0.5, rel=1e-4)
    assert found["test/pixel_acc"] == pytest.approx(hits / labelled, abs=1e-6)


@pytest.mark.slow
def test_two_processes_train_one_run_and_score_every_frame_once(tmp_path):
    """DDP on two CPU processes; the learning rate is next to 0, so both runs score the same network."""
    line = [
        *LWM[:-1], "optimizer.lr=1e-12", "scheduler=constant", "backbone.freeze_bn=true", "data.batch_size=2",
        "data.source.height=32", "data.source.width=48", "data.source.train_frames=8", "data.source.val_frames=3",
        "data.source.test_frames=3", "data.train_transform.crop=[32,48]", "data.num_workers=0",
        "data.eval_batch_size=1", "trainer.accelerator=cpu", "trainer.max_steps=1", "trainer.sanity_steps=0",
        "callbacks.progress=none", "logger=csv", f"runs_dir={tmp_path}/runs",
    ]  # fmt: skip
    line = ["train", *(o for o in line if not o.startswith("trainer.devices"))]
    assert main([*line, "run=one", "trainer.devices=1"]) == 0
    two = [*line, "run=two", "trainer.devices=2", "trainer.strategy=ddp"]
    made = subprocess.run(
        [sys.executable, "-m", "hardpix.cli", *two], capture_output=True, text=True, timeout=200
    )
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "runs/default"
    assert sorted(p.name for p in folder.iterdir()) == ["one", "two"]
    assert np.array_equal(*(np.load(folder / n / "confusion.npy").sum(1) for n in ("one", "two")))
    images = [[line.split(",")[:2] for line in (folder / n / "per_image.csv").open()] for n in ("one", "two")]
    assert images[0] == images[1]  # each frame once, in the order of the split
    assert len(images[0]) == 1 + 3
    found = record.read(folder / "two")
    assert found.status == "done"
    one, two = record.read(folder / "one").metrics, found.metrics
    for key in [k for k in one if k.startswith(("val/", "test/"))]:
        assert two[key] == pytest.approx(one[key], rel=1e-5), key
    assert "test/depth_rmse" in one
