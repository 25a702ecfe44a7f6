"""Whole runs, small: what they leave behind, that they repeat, resume, and fail in one sentence."""

import csv
import json
import os
import platform
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.utilities.exceptions import SIGTERMException

from hardpix import record
from hardpix.cli import main
from hardpix.methods import Method
from hardpix.train.build import build
from hardpix.train.checkpoint import load_weights
from hardpix.train.rundir import process_began
from hardpix.train.train import train
from hardpix.types import ConfigError, DataError, HardpixError


def weights(run_dir, name="last"):
    return torch.load(run_dir / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rows(run_dir):
    with open(run_dir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", ["baseline", "hardness"])
def test_a_run_leaves_everything_behind(tiny, tmp_path, method):
    done = train(tiny(f"method={method}", "run=a"), [])
    run_dir = tmp_path / "runs/default/a"
    found = record.read(run_dir)
    assert found.metrics == pytest.approx(done.metrics, nan_ok=True)
    assert replace(found, metrics={}) == replace(done, metrics={})
    assert done.status == "done"
    assert done.factors["method._target_"].startswith("hardpix.methods.")
    assert done.code["torch"] == torch.__version__.split("+")[0] or done.code["torch"] == torch.__version__
    assert 0 <= done.metrics["test/miou"] <= 1
    assert done.metrics["run/steps"] == 4
    assert done.dataset == "synthetic"
    assert done.frames == {"synthetic/train": 8, "synthetic/val": 3, "synthetic/test": 3}
    confusion = np.load(run_dir / "confusion.npy")
    assert confusion.dtype == np.int64
    assert confusion.shape == (18, 18)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    iou = np.diag(confusion)[union > 0] / union[union > 0]
    assert done.metrics["test/miou"] == pytest.approx(iou.mean(), abs=1e-6)
    with open(run_dir / "per_class.csv", newline="") as file:
        classes = list(csv.DictReader(file))
    assert len(classes) == 18
    assert sum(int(c["pixels"]) for c in classes) == confusion.sum()
    for name in ("last", "best"):
        content = torch.load(run_dir / f"checkpoints/{name}.ckpt", weights_only=True)
        assert "hyper_parameters" not in content
    saved = OmegaConf.load(run_dir / "config.yaml")
    assert saved.method._target_ == done.factors["method._target_"]
    assert "${" not in (run_dir / "config.yaml").read_text()
    panels = list((run_dir / "panels").glob("*.png"))
    assert len(panels) == 1
    with Image.open(panels[0]) as picture:
        width = picture.width
    assert width > 4 * 48
    logged = rows(run_dir)
    assert [float(r["train/loss"]) > 0 for r in logged if r["train/loss"]] == [True] * 4
    assert any(r["val/miou"] for r in logged)


@pytest.mark.slow
def test_the_logged_loss_is_the_loss_of_its_step(tiny, tmp_path):
    """Row for row equal to a run that logs every step, so no stale value is written."""
    train(tiny("run=all", "trainer.log_every_steps=1", "trainer.max_steps=6"), [])
    train(tiny("run=some", "trainer.log_every_steps=2", "trainer.max_steps=6"), [])
    every = {r["step"]: r["train/loss"] for r in rows(tmp_path / "runs/default/all") if r["train/loss"]}
    some = {r["step"]: r["train/loss"] for r in rows(tmp_path / "runs/default/some") if r["train/loss"]}
    assert set(some) == {"1", "3", "5"}
    assert all(every[step] == loss for step, loss in some.items())


def test_the_same_seed_repeats_and_another_does_not(tiny, tmp_path):
    a, b = (train(tiny(f"run={name}", "seed=3"), []) for name in ("a", "b"))
    train(tiny("run=c", "seed=4"), [])
    runs = tmp_path / "runs/default"
    assert a.metrics["test/miou"] == b.metrics["test/miou"]
    assert same(weights(runs / "a"), weights(runs / "b"))
    assert not same(weights(runs / "a"), weights(runs / "c"))


def logged(run_dir):
    """What ``metrics.csv`` says of each step: losses, rates and scores."""
    return {r.pop("step"): {k: v for k, v in r.items() if v} for r in rows(run_dir)}


@pytest.mark.slow
@pytest.mark.parametrize(("killed_at", "every"), [(3, "null"), (4, "null"), (4, "1"), (5, "3")])
@pytest.mark.parametrize(
    "case",
    [
        ["method=baseline", "trainer.accumulate=2", "data.batch_size=2"],
        ["method=baseline", "trainer.accumulate=3", "data.batch_size=2"],
        ["method=hardness", "trainer.ema_decay=0.9"],
        ["method=baseline", "scheduler=plateau", "scheduler.patience=0", "trainer.val_every_epochs=2"],
    ],
    ids=["baseline", "remainder", "hardness-ema", "plateau"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tiny, tmp_path, monkeypatch, case, killed_at, every):
    """Two steps an epoch, dropout and augmentation on; killed in or between epochs, continued by resume=true."""
    fixed = [*case, f"callbacks.checkpoint_every_steps={every}", "trainer.max_steps=7"]
    whole = train(tiny("run=whole", *fixed), [])
    step = Method.training_step

    def dies(self, batch, batch_idx):
        if self.global_step == killed_at:
            raise RuntimeError("power cut")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Method, "training_step", dies)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny("run=parts", *fixed), [])
    again = train(tiny("run=parts", "resume=true", *fixed), [])
    runs = tmp_path / "runs/default"
    assert same(weights(runs / "whole"), weights(runs / "parts"))
    assert logged(runs / "whole") == logged(runs / "parts")
    kept = [k for k in whole.metrics if k.startswith(("val/", "test/", "run/steps", "run/batches"))]
    assert {k: again.metrics[k] for k in kept} == {k: whole.metrics[k] for k in kept}
    assert record.read(runs / "parts").run_id == again.run_id


@pytest.mark.slow
def test_no_checkpoint_holds_half_a_step(tiny, monkeypatch):
    """Two batches a step: the gradient of the first one would be lost."""
    seen = []

    def save(self, checkpoint, path, storage_options=None):
        if str(path).endswith("last.ckpt"):
            seen.append((checkpoint["global_step"], progress(checkpoint)))

    def progress(checkpoint):
        return checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]

    monkeypatch.setattr("hardpix.train.checkpoint.AtomicCheckpointIO.save_checkpoint", save)
    settings = ("trainer.accumulate=2", "data.batch_size=2", "callbacks.checkpoint_every_steps=1", "panels=0")
    train(tiny("run=a", "trainer.val_every_epochs=2", *settings), [])
    assert seen == [(step, 2 * step) for step in (1, 2, 3, 4)]


@pytest.mark.slow
def test_a_constant_schedule_can_be_trained_longer_and_no_other(tiny, tmp_path):
    fixed = ("scheduler=constant",)
    train(tiny("run=whole", "trainer.max_steps=7", *fixed), [])
    first = train(tiny("run=parts", "trainer.max_steps=4", *fixed), [])
    again = train(tiny("run=parts", "trainer.max_steps=7", "resume=true", *fixed), [])
    runs = tmp_path / "runs/default"
    assert same(weights(runs / "whole"), weights(runs / "parts"))
    assert again.run_id == first.run_id
    assert {s: r.get("train/loss") for s, r in logged(runs / "whole").items()} == {
        s: r.get("train/loss") for s, r in logged(runs / "parts").items()
    }
    train(tiny("run=poly", "trainer.max_steps=4"), [])
    with pytest.raises(ConfigError, match="schedule was made for the old length"):
        train(tiny("run=poly", "trainer.max_steps=7", "resume=true"), [])
    with pytest.raises(ConfigError, match="already made 7 steps"):
        train(tiny("run=parts", "trainer.max_steps=5", "resume=true", *fixed), [])


@pytest.mark.slow
def test_resuming_what_is_done_changes_nothing(tiny, tmp_path):
    done = train(tiny("run=a", "trainer.max_steps=8"), [])
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    again = train(tiny("run=a", "trainer.max_steps=8", "resume=true"), [])
    assert again.metrics == pytest.approx(done.metrics, nan_ok=True)
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.is_file()}


@pytest.mark.slow
def test_best_under_ema_holds_the_average_that_was_scored(tiny, tmp_path):
    done = train(tiny("run=a", "trainer.ema_decay=0.9", "test_weights=best", "optimizer.lr=0.1"), [])
    assert main(["evaluate", str(tmp_path / "runs/default/a"), "--weights", "best"]) == 0
    found = record.read(next((tmp_path / "runs/default/a/evaluations").iterdir()))
    assert found.metrics["test/miou"] == pytest.approx(done.metrics["test/miou"], abs=1e-6)
    assert main(["evaluate", str(tmp_path / "runs/default/a"), "--weights", "best", "--split", "val"]) == 0
    scored = [record.read(p) for p in (tmp_path / "runs/default/a/evaluations").iterdir()]
    val = next(r.metrics["val/miou"] for r in scored if "val/miou" in r.metrics)
    assert val == pytest.approx(done.metrics["val/miou"], abs=1e-6)


@pytest.mark.slow
def test_a_run_that_is_alive_is_not_resumed(tiny, tmp_path):
    train(tiny("run=a"), [])
    folder = tmp_path / "runs/default/a"
    found = record.read(folder)
    alive = found.host | {"pid": str(os.getppid()), "pid_began": process_began(os.getppid())}
    record.write(replace(found, status="running", host=alive), folder)
    with pytest.raises(
        ConfigError, match=rf"process {os.getppid()} on {re.escape(platform.node())} is training this run"
    ):
        train(tiny("run=a", "resume=true"), [])
    record.write(replace(found, status="running", host=found.host | {"pid": "999999999"}), folder)
    assert train(tiny("run=a", "resume=true"), []).status == "done"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(SIGTERMException(), 143, "interrupted"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_a_signal_ends_in_its_status_and_in_the_record(tiny, tmp_path, monkeypatch, error, status, said):
    def interrupted(self, batch, batch_idx):
        raise error

    monkeypatch.setattr(Method, "training_step", interrupted)
    with pytest.raises(SystemExit) as raised:
        train(tiny("run=a"), [])
    assert raised.value.code == status
    found = record.read(tmp_path / "runs/default/a")
    assert (found.status, found.error) == ("interrupted", said)


@pytest.mark.slow
def test_a_directory_that_holds_a_run_is_not_overwritten(tiny):
    train(tiny("run=a"), [])
    with pytest.raises(ConfigError, match="already holds a run \\(done\\): resume=auto"):
        train(tiny("run=a", "resume=false"), [])
    for resume in ("true", "auto"):
        with pytest.raises(ConfigError, match=r"another configuration \(optimizer\.lr: 0\.01 -> 0\.5\)"):
            train(tiny("run=a", f"resume={resume}", "optimizer.lr=0.5"), [])
    with pytest.raises(ConfigError, match=r"trainer\.max_steps: 4 -> 6: resume=true continues it that way"):
        train(tiny("run=a", "trainer.max_steps=6"), [])
    with pytest.raises(ConfigError, match="which run to continue"):
        train(tiny("resume=true"), [])


@pytest.mark.slow
def test_names_come_from_the_overrides_and_never_collide(tiny, tmp_path):
    for _ in range(2):
        train(tiny(), ["method=hardness", "seed=1", "data.source.height=32"])
    names = [p.name for p in (tmp_path / "runs/default").iterdir()]
    assert len(names) == 2
    assert all("method=hardness,seed=1" in n for n in names)


def test_a_failing_run_is_recorded_with_its_error(tiny, tmp_path, monkeypatch):
    def losses(self, batch):
        raise DataError("x.png: broken")

    with monkeypatch.context() as patch:
        patch.setattr("hardpix.methods.Baseline.losses", losses)
        with pytest.raises(DataError):
            train(tiny("run=bad"), [])
    found = record.read(tmp_path / "runs/default/bad")
    assert found.status == "failed"
    assert "x.png: broken" in found.error
    train(tiny("run=bad"), [])  # it failed before its first checkpoint: the name is free again


def test_divergence_fails_instead_of_scoring(tiny, tmp_path):
    with pytest.raises(HardpixError, match="diverged"):
        train(tiny("run=diverged", "optimizer.lr=1e30", "scheduler=constant"), [])
    assert record.read(tmp_path / "runs/default/diverged").status == "failed"


@pytest.mark.slow
def test_init_from_another_run(tiny, tmp_path, capsys):
    first = train(tiny("run=a", "backbone.name=test_resnet"), [])
    second = train(tiny("run=b", f"init_from={tmp_path}/runs/default/a", "trainer.max_steps=1", "optimizer.lr=1e-12",
                        "scheduler=constant", "method=hardness"), [])  # fmt: skip
    assert second.parent == first.run_id
    a, b = (weights(tmp_path / f"runs/default/{n}") for n in "ab")
    key = "model.head.classifiers.label.weight" if "model.head.classifiers.label.weight" in a else next(
        k for k in a if k.startswith("model.head") and k.endswith("weight"))  # fmt: skip
    assert torch.allclose(a[key], b[key])
    assert "tensors from" in capsys.readouterr().out
    with pytest.raises(HardpixError, match="does not exist"):
        train(tiny("run=c", "init_from=nowhere"), [])


def test_a_checkpoint_with_code_is_refused(tiny, tmp_path):
    class Marker:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {}, "x": Marker()}, tmp_path / "evil.ckpt")
    with pytest.raises(HardpixError, match="more than plain data"):
        train(tiny("run=a", f"init_from={tmp_path}/evil.ckpt"), [])
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=adamw", "scheduler=plateau", "trainer.max_steps=null", "trainer.max_epochs=2"],
        ["trainer.accumulate=2", "trainer.clip_norm=1.0", "trainer.precision=bf16-mixed"],
        ["trainer.ema_decay=0.9", "optimizer=adam", "scheduler.warmup_steps=2", "loss=balanced"],
        ["optimizer=adamw", "scheduler=poly_adamw", "scheduler.warmup_steps=2"],
        ["trainer.deterministic=true", "test_weights=best", "inference=multiscale", "inference.scales=[1.0,1.5]"],
        ["trainer.val_every_steps=2", "trainer.val_every_epochs=null", "inference=slide",
         "inference.crop=[24,24]", "inference.stride=[16,16]"],
        ["trainer.fast_dev_run=true"],
    ],
    ids=lambda o: o[0],
)  # fmt: skip
def test_ways_to_train(tiny, overrides):
    done = train(tiny("run=a", *overrides), [])
    assert done.status == "done"
    assert np.isfinite(done.metrics["test/miou"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.max_epochs=2"], "give exactly one"),
        (["trainer.precision=8"], "precision"),
        (["trainer.precision=16-mixed"], "float16 needs a GPU"),
        (["trainer.val_every_steps=2"], "val_every"),
        (["optimizer.lr=-1"], r"optimizer\.lr=-1"),
        (["backbone.name=resnet5O"], "resnet50"),
        (["data=nyuv2", "data.source.root=/nowhere"], "/nowhere"),
        (["logger.wandb=sometimes"], "auto, online, offline"),
        (["callbacks.progress=fancy"], "auto or rich or plain or none"),
        (["loss=ohem", "loss.thresh=7"], "thresh"),
        (["trainer.accelerator=gpu"], "no usable CUDA"),
        (["trainer.max_steps=-1"], r"trainer\.max_steps=-1: must be at least 1"),
        (["trainer.log_every_steps=0"], r"trainer\.log_every_steps=0"),
        (["trainer.limit_val_batches=0"], r"trainer\.limit_val_batches=0"),
        (["trainer.strategy=foo"], r"trainer\.strategy=foo: must be auto or ddp"),
        (["trainer.ema_decay=2"], r"trainer\.ema_decay=2"),
        (["trainer.compile=foo"], r"trainer\.compile=foo"),
        (["callbacks.checkpoint_every_steps=0"], "checkpoint_every_steps=0"),
        (["test_weights=foo"], "test_weights=foo: must be last or best"),
        (["run=../x"], "without slashes"),
        (["study='a/b'"], "without slashes"),
        (["optimizer=adamw"], r"scheduler\.min_lr=0\.0001: above the rate 6e-05"),
    ],
    ids=lambda o: str(o),
)
def test_impossible_requests_get_one_sentence(tiny, tmp_path, overrides, said):
    if "trainer.accelerator=gpu" in overrides and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(HardpixError, match=said) as error:
        train(tiny("run=a", *overrides), [])
    assert "\n" not in str(error.value).strip()
    assert not (tmp_path / "runs").exists()  # no failed record to poison a table


@pytest.mark.slow
def test_ema_weights_are_what_is_saved_and_scored(tiny, tmp_path):
    """The average starts after the first step; with decay 1 it stays there, whatever training does."""
    train(tiny("run=plain", "trainer.max_steps=1", "scheduler=constant"), [])
    train(tiny("run=ema", "trainer.ema_decay=1.0", "scheduler=constant"), [])
    a, b = (weights(tmp_path / f"runs/default/{n}") for n in ("plain", "ema"))
    key = next(k for k in a if k.startswith("model.head") and k.endswith("weight"))
    assert torch.allclose(a[key], b[key], atol=1e-6)


def test_two_wandb_runs_in_one_process_are_two_runs(tiny, tmp_path):
    pytest.importorskip("wandb")
    import wandb

    done = [
        train(tiny(f"run={n}", "logger=default", "logger.wandb=offline", "trainer.max_steps=1"), [])
        for n in "ab"
    ]
    assert wandb.run is None
    files = [list((tmp_path / "runs/default" / n / "wandb").glob("offline-run-*/run-*.wandb")) for n in "ab"]
    assert [len(f) for f in files] == [1, 1]
    assert [f[0].stem.removeprefix("run-") for f in files] == [d.run_id for d in done]


@pytest.mark.slow
def test_run_json_is_plain_json(tiny, tmp_path):
    train(tiny("run=a"), [])
    content = json.loads((tmp_path / "runs/default/a/run.json").read_text())
    assert content["schema"] == record.SCHEMA
    assert content["factors"]["data.source.height"] == 32


@pytest.mark.slow
def test_the_rich_bar_shows_loss_miou_and_rate(tiny, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    done = train(tiny("run=a", "callbacks.progress=rich", "callbacks.refresh_every=1"), [])
    shown = capsys.readouterr().out
    assert done.status == "done"
    for word in ("train/loss", "mIoU", "it/s"):
        assert word in shown


@pytest.mark.slow
def test_every_validation_starts_from_an_empty_matrix(tiny, monkeypatch):
    seen, original = [], Method._log_scores

    def noted(self, split):
        original(self, split)
        seen.append((split, self.confusion.sum(1).tolist()))

    monkeypatch.setattr(Method, "_log_scores", noted)
    cfg = tiny("run=a", "trainer.val_every_steps=2", "trainer.val_every_epochs=null")
    train(cfg, [])
    first, second, *_ = [truth for split, truth in seen if split == "val"]
    assert first == second == pixels_of(build(cfg)[0], "val")


def pixels_of(data, split):
    """Labelled pixels of each class, frame by frame."""
    batches = [data.evaluation_batch(split, i) for i in range(3)]
    return [int(sum((b["label"] == c).sum() for b in batches)) for c in range(data.info.num_classes)]


@pytest.mark.parametrize("wrong", [18, 100, 254])
def test_labels_out_of_range_end_a_validation(tiny, wrong):
    data, method = build(tiny())
    batch = data.evaluation_batch("val", 0)
    batch["label"][0, 3, 4:7] = wrong
    method.eval()
    with torch.no_grad():
        method.validation_step(batch, 0)
    with pytest.raises(DataError, match=r"^3 label pixels of the val split of .* are neither one of its 18"):
        method.on_validation_epoch_end()


def test_one_run_read_back(tiny, tmp_path):
    """Costs in their units, panels of the test split, the split that was asked for, and the named weights."""
    cfg = tiny("run=a", "trainer.max_steps=6", "panels=3")
    done = train(cfg, [])
    folder = tmp_path / "runs/default/a"
    assert 1e-4 < done.metrics["cost/step_seconds"] < 4 < done.metrics["cost/peak_memory_mb"] < 20000
    data, method = build(cfg)
    names = {
        split: {data.evaluation_batch(split, i)["name"][0] for i in range(3)} for split in ("val", "test")
    }
    assert names["val"].isdisjoint(names["test"])
    assert {p.stem for p in (folder / "panels").iterdir()} == names["test"]
    truth = {split: pixels_of(data, split) for split in ("val", "test")}
    assert truth["val"] != truth["test"]
    for split, expected in truth.items():
        assert main(["evaluate", str(folder), "--split", split, "--out", str(tmp_path / split)]) == 0
        assert np.load(tmp_path / split / "confusion.npy").sum(1).tolist() == expected
    key = next(k for k in weights(folder) if k.startswith("model.head") and k.endswith("weight"))
    for number, name in enumerate(("last", "best"), start=1):
        content = torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)
        content["state_dict"][key].fill_(number)
        torch.save(content, folder / f"checkpoints/{name}.ckpt")
    with pytest.raises(HardpixError, match=r"last\.ckpt is damaged: "):
        load_weights(method, folder, "last")
    (folder / "checkpoints/manifest.json").unlink()
    for number, name in enumerate(("last", "best"), start=1):
        load_weights(method, folder, name)
        assert (method.state_dict()[key] == number).all()


def test_too_few_frames_for_a_batch_leave_no_run(tiny, tmp_path):
    with pytest.raises(DataError, match=r"too few for a batch of 9; lower data\.batch_size"):
        train(tiny("data.batch_size=9", "run=a"))
    assert not (tmp_path / "runs").exists()


def test_missing_data_are_told_before_a_network_is_made(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("timm.create_model", lambda *a, **k: pytest.fail("a network was made"))
    with pytest.raises(DataError, match="no such folder"):
        train(tiny("data=camvid", f"data.source.root={tmp_path}/none"))
    with pytest.raises(DataError, match="needs depth"):
        train(tiny("data=camvid", f"data.source.root={tmp_path}/none", "method=lwm"))
