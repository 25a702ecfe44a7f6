"""A study on a cluster: nothing is submitted twice, and a job that has to make room goes on as if it had not."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hardpix import record
from hardpix.cli import main
from hardpix.sweep import jobs, launchers
from hardpix.sweep.jobs import look
from hardpix.sweep.study import Launcher, read_launcher, read_study
from hardpix.types import ConfigError

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")

STEPS = 24
STUDY = (
    "data.source.height=32", "data.source.width=48", "data.source.train_frames=8", "data.source.val_frames=2",
    "data.source.test_frames=2", "data.train_transform.crop=[32,48]", "data.batch_size=2", "data.num_workers=0",
    "backbone.name=test_resnet", "head.channels=8", "model.aux_channels=8", "trainer.accelerator=cpu",
    "trainer.devices=1", f"trainer.max_steps={STEPS}", "trainer.val_every_epochs=3", "trainer.log_every_steps=1",
    "trainer.sanity_steps=0", "callbacks.progress=none", "callbacks.checkpoint_every_steps=2", "logger=csv",
    "panels=0",
)  # fmt: skip


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The folder of the fake cluster's books; its commands are on PATH, and this is the working directory's."""
    books = tmp_path / "books"
    books.mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(books))
    path = Path(__file__).with_name("fake_slurm.py")
    spec = importlib.util.spec_from_file_location("fake_slurm", path)
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    fake.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root}:{os.environ.get('PYTHONPATH', '')}")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "FRESH", 0.0)
    jobs.refresh_queue()
    yield books
    for state in books.glob("*.state"):
        subprocess.run([sys.executable, str(path), "scancel", state.stem], capture_output=True)
    (books / "hold").unlink(missing_ok=True)


def waited(condition, seconds=120):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, subprocess.run(
            "cat runs/*/.submitit/*", shell=True, capture_output=True, text=True
        ).stdout[-3000:]
        time.sleep(0.02)


def folders(study):
    return sorted(p for p in Path("runs", study).iterdir() if p.is_dir() and not p.name.startswith("."))


def test_settings_are_the_plugins_and_are_checked(tmp_path):
    given = {"partition": "gpu", "timeout_min": 600, "additional_parameters": {"mail-type": "END"}}
    known = launchers.parameters_of(given, "night")
    assert (known["partition"], known["timeout_min"], known["max_num_timeout"]) == (
        "gpu",
        600,
        launchers.TURNS,
    )
    assert (known["name"], known["additional_parameters"]) == (
        "hardpix-night",
        {"requeue": True, "mail-type": "END"},
    )
    assert known["array_parallelism"] == 256
    with pytest.raises(
        ConfigError, match=r"launcher\.partitoin: no such setting of the launcher; did you mean 'partition'"
    ):
        launchers.parameters_of({"partitoin": "gpu"}, "")
    with pytest.raises(ConfigError, match=r"launcher\.timeout_min: Value 'long'"):
        launchers.parameters_of({"timeout_min": "long"}, "")
    with pytest.raises(ConfigError, match="must be here or slurm"):
        read_launcher({"kind": "lsf"}, "")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/s.yaml").write_text("axes: {seed: [0, 1]}\nlauncher: {kind: slurm, partition: gpu}\n")
    assert read_study(["s"], tmp_path).launcher == Launcher(kind="slurm", settings={"partition": "gpu"})


def test_without_the_plugin_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_submitit_launcher", None)
    assert main(["sweep", "seed=0,1", "--launcher", "slurm"]) == 2
    assert 'needs hydra-submitit-launcher: pip install "hardpix[slurm]"' in capsys.readouterr().err
    assert main(["train", "-m", "seed=0,1", "hydra/launcher=submitit_slurm"]) == 2
    assert capsys.readouterr().err == (
        'hardpix: hydra/launcher: submitit is not installed: pip install "hardpix[slurm]"\n'
    )


def test_what_waits_is_not_submitted_again(cluster, capsys):
    """The first command submits an array of two; the second nothing; a lost job alone is submitted anew."""
    (cluster / "hold").touch()
    given = ["sweep", *STUDY, "study=s", "seed=0,1", "--launcher", "slurm"]
    assert (
        main([*given, "launcher.array_parallelism=1", "launcher.partition=gpu", "launcher.timeout_min=90"])
        == 0
    )
    assert "2 jobs: 2 submitted" in capsys.readouterr().out
    script = (cluster / "100.sh").read_text()
    for line in (
        "array=0-1%1",
        "partition=gpu",
        "time=90",
        "requeue",
        "job-name=hardpix-s",
        "ntasks-per-node=1",
    ):
        assert re.search(rf"#SBATCH --{line}$", script, re.MULTILINE), line
    first, second = folders("s")
    assert {jobs.job_of(first), jobs.job_of(second)} == {"100_0", "100_1"}

    assert main(given) == 0
    assert "2 jobs: 2 in the queue before" in capsys.readouterr().out
    assert main(["sweep", "status", *STUDY, "study=s", "seed=0,1"]) == 0
    assert "2 submitted" in capsys.readouterr().out
    assert main(["sweep", *STUDY, "study=s", "seed=0,1"]) == 0  # nor is it trained here
    assert "2 jobs: 2 submitted; " in capsys.readouterr().out
    (cluster / "100_1.state").write_text("CANCELLED")
    jobs.refresh_queue()
    assert main(given) == 0
    assert "2 jobs: 1 submitted, 1 in the queue before" in capsys.readouterr().out
    assert (cluster / "sbatch.log").read_text() == "100 0-1%1\n101 \n"
    assert sorted(jobs.job_of(p) for p in (first, second)) == ["100_0", "101"]


def test_a_queue_that_does_not_answer_is_not_an_empty_one(cluster, tmp_path, capsys):
    run = tmp_path / "runs/s/a"
    jobs.record_submission(run, "77")
    assert look(run).kind == "new"
    (tmp_path / "bin/squeue").write_text("#!/bin/sh\necho unable to contact controller >&2\nexit 1\n")
    state = look(run)
    assert state.kind == "submitted"
    assert "submitted as 77: cannot be asked (unable to contact controller)" in state.why
    assert look(run, take_over=True).kind == "new"


def test_a_record_that_says_running_elsewhere_is_believed_while_its_job_lives(cluster, tmp_path, monkeypatch):
    run = tmp_path / "runs/s/a"
    jobs.record_submission(run, "77_2")
    fields = {"schema": 1, "run_id": "x", "status": "running", "factors": {}, "metrics": {}, "seed": 0, "parent": None,
              "code": {}, "host": {"hostname": "node7", "pid": "1"}, "started": ""}  # fmt: skip
    record.write(record.RunRecord(**fields), run)
    (cluster / "77_2.state").write_text("RUNNING")
    assert (look(run).kind, "SLURM job 77_2" in look(run).why) == ("running", True)
    (cluster / "77_2.state").write_text("PENDING")  # requeued, on the way to another node
    assert look(run).kind == "running"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert look(run).kind == "interrupted"  # the job itself goes on
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    (cluster / "77_2.state").unlink()
    assert look(run).kind == "interrupted"


def test_jobs_of_one_shape(tiny, tmp_path):
    class Fake:
        number, name = 1, "a"

        def __init__(self, *overrides):
            self.overrides = overrides

        def config(self):
            return tiny(*self.overrides)

    plain = {"nodes": 1, "tasks_per_node": 1}
    assert launchers.shape(Fake(), plain) == (1, 1)
    assert launchers.shape(Fake("trainer.devices=4", "trainer.num_nodes=2"), plain) == (2, 4)
    assert launchers.shape(Fake("trainer.devices=4"), {"nodes": 1, "tasks_per_node": 4}) == (1, 4)
    with pytest.raises(ConfigError, match=r"launcher.tasks_per_node=8: trainer.devices of job 1 \(a\) is 4"):
        launchers.shape(Fake("trainer.devices=4"), {"nodes": 1, "tasks_per_node": 8})


def same(one, other):
    ours, theirs = (
        torch.load(p / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for p in (one, other)
    )
    scores = [
        {k: v for k, v in record.read(p).metrics.items() if k.startswith(("val/", "test/"))}
        for p in (one, other)
    ]
    return scores[0] == scores[1] and all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)


@pytest.mark.slow
def test_a_job_that_makes_room_ends_as_if_it_had_not(cluster, capfd):
    """USR2, as SLURM sends it before the time is over: saved, requeued under the same id, finished, bit for bit."""
    given = ["sweep", *STUDY, "study=s", "seed=3"]
    assert main([*given, "--launcher", "slurm", "launcher.timeout_min=60"]) == 0
    run = folders("s")[0]
    waited(lambda: (run / "checkpoints/last.ckpt").is_file())
    assert record.read(run).status == "running"
    before = record.read(run).run_id
    subprocess.run(["scancel", "100", "--signal", "USR2"], check=True)
    waited(lambda: (cluster / "100.requeue").exists() or (cluster / "100.state").read_text() == "COMPLETED")
    waited(lambda: (cluster / "100.state").read_text() == "COMPLETED")
    found = record.read(run)
    assert (found.status, found.run_id, found.metrics["run/steps"]) == ("done", before, STEPS)
    log = next(Path("runs/s/.submitit").glob("100_0_log.out")).read_text()
    assert "saving after this step" in log
    assert "goes on from its last checkpoint" in log
    assert main([*given, "study=whole"]) == 0
    assert same(run, folders("whole")[0])
    capfd.readouterr()
    assert main([*given, "--launcher", "slurm"]) == 0
    assert "1 jobs: 1 done" in capfd.readouterr().out


@pytest.mark.slow
def test_who_cancels_a_job_wants_it_to_end(cluster, capfd):
    given = ["sweep", *STUDY, "study=s", "seed=3"]
    assert main([*given, "--launcher", "slurm"]) == 0
    run = folders("s")[0]
    waited(lambda: (run / "checkpoints/last.ckpt").is_file())
    subprocess.run(["scancel", "100"], check=True)
    waited(lambda: record.read(run).status == "interrupted")
    time.sleep(2)
    assert not (cluster / "100.requeue").exists()
    assert look(run).kind == "interrupted"
    (cluster / "hold").touch()
    assert main([*given, "--launcher", "slurm"]) == 0
    assert (cluster / "sbatch.log").read_text() == "100 \n101 \n"


@pytest.mark.slow
def test_a_job_of_two_processes(cluster, monkeypatch):
    """The trainer's devices are SLURM's tasks, which go through the job together."""
    with socket.socket() as free:
        free.bind(("", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    given = [o for o in STUDY if not o.startswith(("trainer.devices", "trainer.max_steps"))]
    given += ["trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=2", "study=s", "seed=3"]
    assert main(["sweep", *given, "--launcher", "slurm"]) == 0
    assert "#SBATCH --ntasks-per-node=2" in (cluster / "100.sh").read_text()
    waited(lambda: (cluster / "100.state").read_text() in ("COMPLETED", "FAILED"))
    assert record.read(folders("s")[0]).status == "done"
    first, second = (
        next(Path("runs/s/.submitit").glob(f"100_{rank}_log.out")).read_text() for rank in (0, 1)
    )
    assert "job 1 of 1" in first
    assert "job 1 of 1" not in second


@pytest.mark.slow
def test_hydras_own_launcher(tmp_path, monkeypatch, capfd):
    """``train -m`` through submitit on this machine: the runs end as ever, and one that fails is told."""
    monkeypatch.chdir(tmp_path)
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root}:{os.environ.get('PYTHONPATH', '')}")
    given = [o for o in STUDY if not o.startswith("trainer.max_steps")] + [
        "trainer.max_steps=1",
        "study=s",
        "run=a",
    ]
    assert main(["train", "-m", *given, "hydra/launcher=submitit_local", "seed=0,-1"]) == 1
    assert record.read("runs/s/a").status == "done"
    assert "hardpix: failed: " in capfd.readouterr().err
