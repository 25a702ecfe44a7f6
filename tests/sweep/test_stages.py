"""Studies with stages: runs that start from each other, from the first command to the repeated one."""

import shutil
from dataclasses import replace

import pytest
import torch

from hardpix import record
from hardpix.cli import main
from hardpix.methods import Method
from hardpix.sweep.stages import Stage, overrides_of
from hardpix.sweep.study import read_study
from hardpix.train import rundir
from hardpix.types import ConfigError

STAGES = ["semantic", "error_prediction", "detail"]


@pytest.fixture
def files(tmp_path):
    """``files(text)``: a folder with ``studies/x.yaml``."""

    def write(text):
        (tmp_path / "conf/studies").mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf/studies/x.yaml").write_text(text)
        return tmp_path / "conf"

    return write


@pytest.fixture
def trained(monkeypatch):
    """Stages that only leave a record and a configuration; what was trained, in order."""
    import hardpix.train.train

    calls = []

    def train(cfg, overrides, callbacks=()):
        run_dir = rundir.choose_run_dir(cfg, overrides)
        calls.append((run_dir.name, cfg))
        before = record.read(run_dir) if (run_dir / record.FILE_NAME).is_file() else None
        rundir.make_run_dir(run_dir)
        rundir.write_config(run_dir, cfg)
        source = cfg.parent or cfg.init_from
        made = record.RunRecord(
            schema=record.SCHEMA, run_id=before.run_id if before and cfg.resume else rundir.new_id(), status="done",
            factors={}, metrics={}, seed=cfg.seed, parent=record.read(source).run_id if source else None, code={},
            host={}, started="", name=run_dir.name, study=cfg.study,
        )  # fmt: skip
        record.write(made, run_dir)
        return made

    monkeypatch.setattr(hardpix.train.train, "train", train)
    for name in ("freeze_imports", "clean_up"):
        monkeypatch.setattr(f"hardpix.sweep.work.{name}", lambda: None)
    return calls


def chain(tmp_path, *arguments, name="error_prediction"):
    return main(["sweep", name, f"runs_dir={tmp_path}/runs", *arguments])


def folder(tmp_path, stage, prefix="a"):
    return tmp_path / "runs/default" / f"{prefix}-{stage}"


@pytest.mark.slow
def test_three_stages_are_trained_and_then_nothing(tiny, tmp_path, monkeypatch, capsys):
    """The real thing, once; given again it changes no file; cut off in the last stage it goes on there."""
    line = [
        "run=a", "data.source.height=32", "data.source.width=48", "data.source.train_frames=8",
        "data.source.val_frames=3", "data.source.test_frames=3", "data.train_transform.crop=[32,48]",
        "data.batch_size=4", "data.num_workers=0", "backbone.name=test_resnet", "head.channels=8",
        "model.aux_channels=8", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.max_steps=2",
        "trainer.sanity_steps=0", "callbacks.progress=none", "callbacks.checkpoint_every_steps=1", "logger=csv",
        "panels=0", "error_prediction:method.channels=8", "detail:method.channels=8", "detail:trainer.max_steps=3",
    ]  # fmt: skip
    step = Method.training_step

    def dies(self, batch, batch_idx):
        if type(self).__name__ == "Detail" and self.global_step == 2:
            raise RuntimeError("power cut")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Method, "training_step", dies)
        assert chain(tmp_path, *line) == 1
    first = {s: record.read(folder(tmp_path, s)) for s in STAGES}
    assert [r.status for r in first.values()] == ["done", "done", "failed"]
    record.write(
        replace(first["detail"], status="interrupted", error="interrupted"), folder(tmp_path, "detail")
    )
    files = {
        p: p.stat().st_mtime_ns for s in STAGES[:2] for p in folder(tmp_path, s).rglob("*") if p.is_file()
    }
    seen = []

    def counted(self, batch, batch_idx):
        seen.append((type(self).__name__, self.global_step))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", counted)
    assert chain(tmp_path, *line) == 0
    assert seen == [("Detail", 2)]
    assert files == {p: p.stat().st_mtime_ns for p in files}
    last = record.read(folder(tmp_path, "detail"))
    assert last.run_id == first["detail"].run_id
    assert (last.status, last.metrics["run/steps"]) == ("done", 3)
    assert last.parent == first["error_prediction"].run_id
    assert first["error_prediction"].parent == first["semantic"].run_id
    assert chain(tmp_path, *line) == 0
    assert len(seen) == 1
    weights = [torch.load(folder(tmp_path, s) / rundir.LAST, weights_only=True)["state_dict"] for s in STAGES]
    assert all(torch.equal(v, weights[2][k]) for k, v in weights[1].items())
    out = capsys.readouterr().out
    assert "job 3 of 3: detail (resume: interrupted at step" in out
    assert "3 jobs: 3 done (3 before)" in out
    assert main(["sweep", "status", "error_prediction", f"runs_dir={tmp_path}/runs", *line]) == 0
    assert "3 done" in capsys.readouterr().out


def test_settings_reach_the_stages_that_they_concern(tmp_path, trained):
    assert chain(tmp_path, "run=a", "seed=3", "head=psp", "detail:method.t=0.6", "semantic:loss=ohem",
                 "optimizer.lr=0.02", "error_prediction:optimizer.lr=0.03", "study=s") == 0  # fmt: skip
    assert [name for name, _ in trained] == [f"a-{s}" for s in STAGES]
    semantic, branch, detail = (cfg for _, cfg in trained)
    assert {c.seed for c in (semantic, branch, detail)} == {3}
    assert {c.study for c in (semantic, branch, detail)} == {"s"}
    assert semantic.head["_target_"].endswith("PSPHead")
    assert branch.head["_target_"].endswith("FCNHead")  # its networks come from its parent, not from here
    assert (semantic.optimizer.lr, branch.optimizer.lr, detail.optimizer.lr) == (0.02, 0.03, 0.02)
    assert (detail.method.t, branch.method.t) == (0.6, 0.7)
    assert semantic.loss["_target_"].endswith("OHEM")
    assert branch.loss["_target_"].endswith("CrossEntropy")
    assert (semantic.parent, branch.parent, detail.parent) == (
        None, f"{tmp_path}/runs/s/a-semantic", f"{tmp_path}/runs/s/a-error_prediction",
    )  # fmt: skip
    assert not any(cfg.resume for _, cfg in trained)


@pytest.mark.slow
def test_the_same_command_finds_its_runs_and_another_does_not(tmp_path, trained):
    for _ in range(2):
        chain(tmp_path, "seed=1")
    chain(tmp_path, "seed=2")
    chain(tmp_path, "seed=1,2,3")
    names = [name for name, _ in trained]
    assert len(names) == len(set(names)) == 9


def test_a_stage_waits_for_the_one_that_it_starts_from(tmp_path, trained, monkeypatch, capsys):
    import hardpix.train.train

    whole = hardpix.train.train.train

    def fails(cfg, overrides, callbacks=()):
        if cfg.run.endswith("error_prediction") and cfg.seed == 2:
            raise ValueError("no luck")
        return whole(cfg, overrides, callbacks)

    with monkeypatch.context() as patch:
        patch.setattr(hardpix.train.train, "train", fails)
        assert chain(tmp_path, "seed=1,2") == 1
    assert "6 jobs: 4 done, 1 failed, 1 waiting" in capsys.readouterr().out
    assert [name.rpartition("-")[2] for name, _ in trained] == [
        "semantic",
        "semantic",
        "error_prediction",
        "detail",
    ]
    assert chain(tmp_path, "seed=1,2") == 0
    assert len(trained) == 6


def test_a_stage_that_began_with_another_run_is_refused(tmp_path, trained, capsys):
    chain(tmp_path, "run=a")
    shutil.rmtree(folder(tmp_path, "semantic"))
    trained.clear()
    assert chain(tmp_path, "run=a") == 2
    said = capsys.readouterr().err
    assert "a-error_prediction was trained on run " in said
    assert "give the study another run=NAME" in said
    assert [name for name, _ in trained] == ["a-semantic"]


def test_a_dry_run_lists_the_stages(tmp_path, trained, capsys):
    assert chain(tmp_path, "seed=1,2", "detail:method.t=0.6", "--commands") == 0
    said = capsys.readouterr().out
    assert "6 jobs: 6 to run" in said
    assert said.count("hardpix train ") == 6
    assert said.count("method.t=0.6") == 2
    assert trained == []
    assert chain(tmp_path, "seed=1,2", "run=a") == 2


def test_a_finished_run_can_take_a_stages_place(tmp_path, trained, cascade):
    run = cascade("semantic")
    assert chain(tmp_path, "run=a", "--use", f"semantic={run}") == 0
    assert [name for name, _ in trained] == ["a-error_prediction", "a-detail"]
    assert trained[0][1].parent == str(run)
    trained.clear()
    other = shutil.copytree(run, tmp_path / "other")
    record.write(replace(record.read(other), run_id="another"), other)
    assert chain(tmp_path, "run=a", "--use", f"semantic={other}") == 2
    assert trained == []


def test_what_cannot_take_a_stages_place_is_refused_before_anything_is_trained(
    tmp_path, trained, cascade, capsys
):
    semantic, branch = cascade("semantic"), cascade("error_prediction")
    failed = shutil.copytree(semantic, tmp_path / "failed")
    record.write(replace(record.read(failed), status="failed"), failed)
    for given, said in (
        (
            "semantics=x",
            "--use semantics=x: must be STAGE=RUN, with one of the stages semantic, error_prediction",
        ),
        ("semantic", "--use semantic: must be STAGE=RUN"),
        (f"semantic={failed}", "that run is failed, not done"),
        (f"semantic={tmp_path}/none", "none"),
        (f"semantic={branch}", "stage error_prediction: ErrorPrediction needs the run of a segmenter"),
        (f"error_prediction={semantic}", "stage detail: Detail needs a run of method=error_prediction"),
    ):
        assert said in chain_status(tmp_path, capsys, "run=a", "--use", given)
    assert trained == []
    assert not (tmp_path / "runs").exists()


def chain_status(tmp_path, capsys, *arguments, **kinds):
    """The sentence that the command ends with."""
    assert chain(tmp_path, *arguments, **kinds) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["semantik:seed=1"], "semantik:seed=1: must be KEY=VALUE or STAGE:KEY=VALUE, with one of the stages semantic"),
        (["seed-1"], "must be KEY=VALUE"),
        (["detail:run=b"], "detail:run=b: stages are linked and resumed by the study; run=NAME names all runs"),
        (["resume=true"], "resume=true: stages are linked"),
        (["parent=x"], "parent=x: stages are linked"),
        (["init_from=x"], "init_from=x: stages are linked"),
        (["detail:method.tt=1"], "stage detail: method.tt: no such key"),
        (["optimizer.lrr=1"], "stage semantic: optimizer.lrr: no such key"),
        (["semantic:method=detail"], "stage semantic: Detail needs a run of method=error_prediction"),
        (["error_prediction:method=baseline"], "stage error_prediction: Baseline takes no parent run"),
        (["detail:trainer.max_steps=x"], "stage detail: "),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_get_one_sentence_before_anything_is_trained(
    tmp_path, trained, capsys, arguments, said
):
    assert said in chain_status(tmp_path, capsys, *arguments)
    assert trained == []
    assert not (tmp_path / "runs").exists()


def test_names_and_files_that_cannot_be(tmp_path, files, capsys):
    said = chain_status(tmp_path, capsys, name="errorprediction")
    assert "errorprediction: no such file in " in said
    assert "did you mean 'error_prediction'?" in said
    for text, wrong in (
        ("stages: [a, b", "is no YAML"),
        ("- a\n", "must hold a mapping"),
        ("stages: [a]\n", "a mapping of names"),
        ("stages: {a: {}}\naxes: {}\n", "a study with stages has study, overrides"),
        ("stages: {}\n", "at least one stage"),
        ("stages: {a: {overide: []}}\n", "stage a must be a mapping with init_from, overrides, parent"),
        ("stages: {a: {parent: b}, b: {}}\n", r"stage a: .* to a stage before it \(\[\]\)"),
        ("stages: {a: {}, b: {parent: a, init_from: a}}\n", "stage b: .* must be one link"),
        ("stages: {a: {overrides: seed=1}}\n", "stage a: overrides must be a list"),
        ("stages: {a-b: {}}\n", "stage a-b: .*letters, digits and _"),
    ):
        with pytest.raises(ConfigError, match=wrong):
            read_study(["x"], files(text))


def test_a_file_of_ones_own(tmp_path, files, trained):
    conf = files("stages:\n  one:\n  two: {init_from: one, overrides: [method=hardness]}\n")
    assert chain(tmp_path, "run=a", "head=psp", "--config-dir", str(conf), name="x") == 0
    one, two = (cfg for _, cfg in trained)
    assert two.init_from == f"{tmp_path}/runs/default/a-one"
    assert {c.head["_target_"] for c in (one, two)} == {
        "hardpix.models.PSPHead"
    }  # init_from brings no networks


def test_overrides_of_a_stage_come_after_its_own():
    stages = [
        Stage("a", ("seed=1",), None, None),
        Stage("b", (), "parent", "a"),
        Stage("c", (), "init_from", "a"),
    ]
    given = ["seed=2", "b:head=psp", "backbone=resnet50", "+model.x=1", "head@x=y", "c:seed=5"]
    assert overrides_of(stages[0], given, stages) == [
        "seed=1", "seed=2", "backbone=resnet50", "+model.x=1", "head@x=y"
    ]  # fmt: skip
    assert overrides_of(stages[1], given, stages) == ["seed=2", "head=psp"]
    assert overrides_of(stages[2], given, stages) == [
        "seed=2", "backbone=resnet50", "+model.x=1", "head@x=y", "seed=5"
    ]  # fmt: skip
