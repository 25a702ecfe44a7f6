"""Runs that stand on another run: which can, what they carry along, and that they outlive it."""

import csv
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image

from hardpix import record
from hardpix.cli import main
from hardpix.methods import Method
from hardpix.tables.compare import collect
from hardpix.train import rundir
from hardpix.train.train import train
from hardpix.types import ConfigError, HardpixError

BRANCH = ("method=error_prediction", "method.channels=8")
REPAIR = ("method=detail", "method.channels=8")


@pytest.fixture
def parent(cascade, tmp_path):
    """``parent("semantic")``: a copy of that stage's run, to be changed."""

    def copy(stage):
        return shutil.copytree(cascade(stage), tmp_path / f"copy_{stage}")

    return copy


def on(run, *overrides):
    return (f"parent='{run}'", *overrides)


def weights(run_dir):
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def edit(run, change):
    """Change the saved configuration of a run."""
    path = run / rundir.CONFIG
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def test_the_record_has_the_parents_id_and_how_it_was_trained(cascade):
    semantic, branch = record.read(cascade("semantic")), record.read(cascade("error_prediction"))
    repair = record.read(cascade("detail"))
    assert branch.parent == semantic.run_id
    assert repair.parent == branch.run_id
    for run, before in ((branch, semantic), (repair, branch)):
        carried = {k.removeprefix("parent_config."): v for k, v in run.factors.items()}
        assert {k: carried.get(k) for k in before.factors if k.startswith(("method", "optimizer"))} == {
            k: v for k, v in before.factors.items() if k.startswith(("method", "optimizer"))
        }
    assert (
        repair.factors["parent_config.parent_config.method._target_"] == semantic.factors["method._target_"]
    )
    assert repair.factors["parent_config.parent_config.head._target_"].endswith("DeepLabV3PlusHead")
    # The networks are those of the segmenter, whatever the command line left at its default.
    assert (
        branch.factors["head._target_"]
        == repair.factors["head._target_"]
        == semantic.factors["head._target_"]
    )
    assert branch.factors["backbone.name"] == semantic.factors["backbone.name"]


def test_it_is_scored_predicted_and_resumed_without_the_directories_it_stood_on(
    tiny, tmp_path, parent, monkeypatch, capsys
):
    """A run of four steps, killed after two while nothing else is left, against an uninterrupted one."""
    below = parent("error_prediction")
    line = (*REPAIR, *on(below), "method.t=0.0", "callbacks.checkpoint_every_steps=1")
    whole = train(tiny("run=whole", *line), [])
    step = Method.training_step

    def dies(self, batch, batch_idx):
        if self.global_step == 3:
            raise RuntimeError("power cut")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Method, "training_step", dies)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny("run=parts", *line), [])
    shutil.rmtree(below)
    runs = tmp_path / "runs/default"
    with monkeypatch.context() as patch:  # of which nothing may have to be read
        again = train(tiny("run=parts", "resume=true", *line), [])
    assert same(weights(runs / "whole"), weights(runs / "parts"))
    assert again.parent == whole.parent
    kept = [k for k in whole.metrics if k.startswith(("val/", "test/"))]
    assert {k: again.metrics[k] for k in kept} == pytest.approx(
        {k: whole.metrics[k] for k in kept}, nan_ok=True
    )
    assert train(tiny("run=whole", "resume=true", *line), []).metrics["run/steps"] == 4
    capsys.readouterr()
    assert main(["evaluate", str(runs / "whole"), "data.num_workers=0"]) == 0
    scored = record.read(next((runs / "whole/evaluations").iterdir()))
    assert {k: scored.metrics[k] for k in kept if k in scored.metrics} == pytest.approx(
        {k: whole.metrics[k] for k in kept if k.startswith("test/")}, nan_ok=True
    )
    Image.new("RGB", (40, 30), (200, 30, 90)).save(tmp_path / "a.png")
    assert (
        main(["predict", str(runs / "whole"), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]) == 0
    )
    assert {p.parent.name for p in (tmp_path / "out").rglob("a.png")} == {
        "label", "overlay", "error_probability", "changed",
    }  # fmt: skip


def refused(tiny, tmp_path, said, *overrides):
    """In one sentence, and with nothing written."""
    with pytest.raises(HardpixError, match=said) as error:
        train(tiny("run=never", *overrides), list(overrides))
    assert "\n" not in str(error.value).strip()
    assert not (tmp_path / "runs").exists()


def test_runs_that_are_none_or_not_done_are_refused(tiny, tmp_path, parent):
    refused(tiny, tmp_path, "ErrorPrediction needs a trained segmenter: give its run, parent=RUN", *BRANCH)
    refused(tiny, tmp_path, r"Detail needs a run of method=error_prediction \(parent=RUN\)", *REPAIR)
    refused(tiny, tmp_path, r"parent=\S*nowhere: \S*nowhere/run\.json", *BRANCH, *on("nowhere"))
    run = parent("semantic")
    for status in ("failed", "running"):
        record.write(replace(record.read(run), status=status), run)
        refused(tiny, tmp_path, f"parent=.*: that run is {status}, not done", *BRANCH, *on(run))


def test_runs_of_the_wrong_method_are_refused(tiny, tmp_path, cascade):
    semantic, branch = cascade("semantic"), cascade("error_prediction")
    refused(tiny, tmp_path, "ErrorPrediction needs the run of a segmenter .* not one of ErrorPrediction",
            *BRANCH, *on(branch))  # fmt: skip
    refused(tiny, tmp_path, "Detail needs a run of method=error_prediction .* not on one of Baseline",
            *REPAIR, *on(semantic))  # fmt: skip
    refused(tiny, tmp_path, "Baseline takes no parent run; init_from=RUN", *on(semantic))


def test_networks_beside_a_parent_are_refused_and_equal_ones_are_not(tiny, tmp_path, cascade):
    run = cascade("semantic")
    for override in ("head=psp", "head.channels=6", "backbone.name=resnet18", "model.aux_level=null"):
        refused(
            tiny, tmp_path, rf"{override}: the networks are those of parent=", *BRANCH, *on(run), override
        )
    line = (*BRANCH, *on(run), "head=deeplabv3plus", "head.low_channels=4", "trainer.fast_dev_run=true")
    assert train(tiny("run=a", *line), list(line)).status == "done"


def test_other_classes_are_refused(tiny, tmp_path, parent):
    run = parent("semantic")
    names = rundir.read_classes(run)
    for wrong, said in ((names[:-1], "17 classes, synthetic has 18"), (names[::-1], "they differ")):
        rundir.write_classes(run, wrong)
        refused(tiny, tmp_path, said, *BRANCH, *on(run))


def test_damaged_and_foreign_checkpoints_are_refused(tiny, tmp_path, parent, cascade):
    run = parent("semantic")
    path = run / "checkpoints/last.ckpt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(tiny, tmp_path, r"last\.ckpt is damaged: it has \d+ bytes", *BRANCH, *on(run))
    (path.parent / "manifest.json").unlink()
    refused(tiny, tmp_path, r"last\.ckpt is not a checkpoint, or is damaged", *BRANCH, *on(run))
    shutil.copy(cascade("error_prediction") / "checkpoints/last.ckpt", path)
    refused(tiny, tmp_path, "does not fit the configured model: error_branch", *BRANCH, *on(run))
    path.unlink()
    refused(tiny, tmp_path, "does not exist: the run has not saved this checkpoint", *BRANCH, *on(run))
    (run / "checkpoints/best.ckpt").unlink(missing_ok=True)
    refused(tiny, tmp_path, r"best\.ckpt does not exist", *BRANCH, *on(run), "parent_weights=best")

    class Marker:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {}, "x": Marker()}, path)
    refused(tiny, tmp_path, "more than plain data", *BRANCH, *on(run))
    assert not (tmp_path / "ran").exists()


def test_a_parents_configuration_executes_nothing_foreign(tiny, tmp_path, parent):
    run = parent("semantic")
    for group in ("method", "backbone", "head", "data"):
        target = yaml.safe_load((run / rundir.CONFIG).read_text())[group]["_target_"]

        def change(content, to="os.system", group=group):
            content[group]["_target_"] = to

        edit(run, change)
        refused(
            tiny,
            tmp_path,
            rf"parent=.*{group}\._target_: os\.system is not part of hardpix",
            *BRANCH,
            *on(run),
        )
        edit(run, lambda content, t=target, g=group: content[g].update(_target_=t))
    edit(run, lambda content: content.update(trusted=["os"]) or content["data"].update(_target_="os.getcwd"))
    refused(
        tiny, tmp_path, r"that run executes code of os; to allow this add trusted=\[os\]", *BRANCH, *on(run)
    )
    (run / rundir.CONFIG).write_text("[1, 2")
    refused(tiny, tmp_path, "parent=", *BRANCH, *on(run))
    (run / rundir.CONFIG).write_text("- 1\n")
    refused(tiny, tmp_path, "holds no mapping", *BRANCH, *on(run))


def test_code_of_a_run_below_the_parent_must_be_trusted(tiny, tmp_path, parent):
    run = parent("error_prediction")
    edit(run, lambda content: content["parent_config"].update(trusted=["os"]))
    said = r"that run executes code of os; to allow this add trusted=\[os\]"
    refused(tiny, tmp_path, said, *REPAIR, *on(run))


def test_parent_weights_choose_the_checkpoint(tiny, tmp_path, parent):
    run = parent("semantic")
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    best["state_dict"] = {k: 1.5 * v if k.endswith("weight") else v for k, v in best["state_dict"].items()}
    torch.save(best, run / "checkpoints/best.ckpt")
    (run / "checkpoints/manifest.json").unlink()
    for name in ("last", "best"):
        train(tiny(f"run={name}", *BRANCH, *on(run), f"parent_weights={name}", "trainer.max_steps=1"), [])
        want = torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
        got = weights(tmp_path / "runs/default" / name)
        assert all(torch.equal(want[k], got[k]) for k in want if k.startswith("model."))


def test_a_resumed_run_keeps_its_parent(tiny, parent, cascade):
    line = (*BRANCH, *on(cascade("semantic")), "trainer.max_steps=1")
    train(tiny("run=a", *line), [])
    other = parent("semantic")
    assert (
        train(tiny("run=a", *BRANCH, *on(other), "trainer.max_steps=1"), []).status == "done"
    )  # the same run
    record.write(replace(record.read(other), run_id="another"), other)
    with pytest.raises(ConfigError, match=r"another configuration \(parent: "):
        train(tiny("run=a", "resume=true", *BRANCH, *on(other), "trainer.max_steps=1"), [])


def test_tables_see_how_the_segmenter_was_trained_and_not_its_seed(cascade, tmp_path, capsys):
    """The runs are copies whose saved factors differ as those of other trainings would."""
    folder = tmp_path / "study"
    run = cascade("detail")
    key = "parent_config.parent_config."
    for seed, (name, factors) in enumerate({
        "a": {}, "b": {f"{key}seed": 7, "parent_config.seed": 7, "seed": 7, "parent": "elsewhere"},
        "c": {f"{key}optimizer.lr": 0.123},
    }.items()):  # fmt: skip
        shutil.copytree(run, folder / name)
        found = record.read(run)
        record.write(replace(found, run_id=name, factors=found.factors | factors, seed=seed), folder / name)
    assert len(collect([folder / "a", folder / "b"])) == 2
    two, three = ([str(folder / n) for n in names] for names in ("ab", "abc"))
    assert main(["table", *two, "--rows", "method._target_"]) == 0
    capsys.readouterr()
    assert main(["table", *three, "--rows", "method._target_"]) != 0
    assert f"{key}optimizer.lr (0.01 in" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_a_branch(tmp_path, cascade):
    """DDP on two CPU processes: frozen parts have no gradient to wait for, and stay as they were."""
    line = [
        *BRANCH, *on(cascade("semantic")), "run=two", "trainer.devices=2", "trainer.strategy=ddp", "panels=0",
        "data.source.height=32", "data.source.width=48", "data.source.train_frames=8", "data.source.val_frames=3",
        "data.source.test_frames=3", "data.train_transform.crop=[32,48]", "data.batch_size=2", "data.num_workers=0",
        "trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.sanity_steps=0", "callbacks.progress=none",
        "logger=csv", f"runs_dir={tmp_path}/runs",
    ]  # fmt: skip
    made = subprocess.run(
        [sys.executable, "-m", "hardpix.cli", "train", *line], capture_output=True, text=True, timeout=200
    )
    assert made.returncode == 0, made.stderr
    old, new = weights(cascade("semantic")), weights(tmp_path / "runs/default/two")
    assert all(torch.equal(old[k], new[k]) for k in old if k.startswith("model."))
    assert record.read(tmp_path / "runs/default/two").status == "done"


def test_scores_of_a_run_name_errors_and_fusion(cascade):
    found = record.read(cascade("detail")).metrics
    assert {"test/error_iou@0.7", "test/fused_miou@0.7", "test/semantic_miou", "test/detail_miou"} <= set(
        found
    )
    assert found["test/fused_miou@0.7"] == pytest.approx(found["test/miou"], abs=1e-6)
    semantic = record.read(cascade("semantic")).metrics
    assert found["test/semantic_miou"] == pytest.approx(semantic["test/miou"], abs=1e-6)
    branch = record.read(cascade("error_prediction")).metrics
    assert branch["test/miou"] == pytest.approx(semantic["test/miou"], abs=1e-6)
    with open(cascade("detail") / "metrics.csv", newline="") as file:
        assert any(row.get("train/detail") for row in csv.DictReader(file))


def test_configurations_from_before_a_key_existed_are_completed_at_every_depth(tmp_path):
    text = "seed: 1\nparent: P\nparent_config:\n  parent: Q\n  parent_config: {seed: 2}\n"
    (tmp_path / "config.yaml").write_text(text)
    cfg = rundir.read_config(tmp_path)
    assert cfg.freeze == []
    assert cfg.parent_weights == "last"
    assert cfg.parent_config.freeze == []
    assert cfg.parent_config.parent == "Q"
    assert cfg.parent_config.parent_config.parent is None
