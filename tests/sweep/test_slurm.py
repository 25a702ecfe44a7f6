"""A study on a cluster: nothing is submitted twice, and a job that has to make room goes on as if it had not."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hardpix import record
from hardpix.cli import main
from hardpix.sweep import state
from hardpix.sweep.state import look

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
    monkeypatch.setattr(state, "FRESH", 0.0)
    state.refresh_queue()
    yield books
    for job in books.glob("*.state"):
        subprocess.run([sys.executable, str(path), "scancel", job.stem], capture_output=True)
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


def test_without_the_plugin_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_submitit_launcher", None)
    assert main(["train", "-m", "seed=0,1", "hydra/launcher=submitit_slurm"]) == 2
    assert capsys.readouterr().err == (
        'hardpix: hydra/launcher: submitit is not installed: pip install "hardpix[slurm]"\n'
    )


SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=90")


@pytest.fixture
def submitted(cluster):
    """``submitted(words)``: the command in a process of its own, which waits for its jobs; ends with the test."""
    processes = []

    def start(*words):
        command = [sys.executable, "-m", "hardpix.cli", "sweep", *STUDY, "study=s", *words]
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_what_waits_is_not_submitted_again(cluster, submitted, capsys):
    """The first command submits an array of two; the second nothing; a lost job alone is submitted again."""
    (cluster / "hold").touch()
    first = submitted(
        "seed=0,1", *SLURM, "hydra.launcher.partition=gpu", "hydra.launcher.array_parallelism=1"
    )
    waited(lambda: (cluster / "sbatch.log").is_file())
    script = (cluster / "100.sh").read_text()
    for line in (
        "array=0-1%1",
        "partition=gpu",
        "time=90",
        "requeue",
        "job-name=hardpix-s-.*",
        "ntasks-per-node=1",
    ):
        assert re.search(rf"#SBATCH --{line}$", script, re.MULTILINE), line
    waited(lambda: len(list(cluster.glob("*.state"))) == 2)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == 130
    assert "2 jobs: 2 submitted" in said

    assert main(["sweep", *STUDY, "study=s", "seed=0,1", *SLURM]) == 0
    said = capsys.readouterr().out
    assert "(leave: submitted as hardpix-s-" in said
    assert "2 jobs: 2 submitted; " in said
    assert main(["sweep", "status", *STUDY, "study=s", "seed=0,1"]) == 0
    assert "2 submitted" in capsys.readouterr().out
    assert main(["sweep", *STUDY, "study=s", "seed=0,1"]) == 0  # nor is it trained here
    assert "2 jobs: 2 submitted; " in capsys.readouterr().out
    (cluster / "100_1.state").write_text("CANCELLED")
    state.refresh_queue()
    submitted("seed=0,1", *SLURM)
    waited(lambda: len((cluster / "sbatch.log").read_text().splitlines()) == 2)
    assert (cluster / "sbatch.log").read_text() == "100 0-1%1\n101 \n"


def test_a_queue_that_does_not_answer_is_not_an_empty_one(cluster, tmp_path, capsys):
    run = tmp_path / "runs/s/a"
    state.record_submission(run, "hardpix-s-1/0")
    assert look(run).kind == "new"
    (tmp_path / "bin/squeue").write_text("#!/bin/sh\necho unable to contact controller >&2\nexit 1\n")
    found = look(run)
    assert found.kind == "submitted"
    assert "submitted as hardpix-s-1/0: cannot be asked (unable to contact controller)" in found.why
    assert look(run, take_over=True).kind == "new"


def test_a_record_that_says_running_elsewhere_is_believed_while_its_job_lives(cluster, tmp_path, monkeypatch):
    run = tmp_path / "runs/s/a"
    state.record_submission(run, "77_2")
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
def test_a_job_that_makes_room_ends_as_if_it_had_not(cluster, submitted, capfd):
    """USR2, as SLURM sends it before the time is over: saved, requeued under the same id, finished, bit for bit."""
    process = submitted("seed=3", *SLURM)
    waited(lambda: list(Path("runs/s").glob("*/checkpoints/last.ckpt")))
    run = folders("s")[0]
    assert record.read(run).status == "running"
    before = record.read(run).run_id
    subprocess.run(["scancel", "100", "--signal", "USR2"], check=True)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert "1 jobs: 1 done" in said
    waited(lambda: (cluster / "100.state").read_text() == "COMPLETED")
    found = record.read(run)
    assert (found.status, found.run_id, found.metrics["run/steps"]) == ("done", before, STEPS)
    log = next(Path("runs/s/.submitit").rglob("100_0_log.out")).read_text()
    assert "saving after this step" in log
    assert "goes on from its last checkpoint" in log
    assert main(["sweep", *STUDY, "seed=3", "study=whole"]) == 0
    assert same(run, folders("whole")[0])


@pytest.mark.slow
def test_who_cancels_a_job_wants_it_to_end(cluster, submitted):
    process = submitted("seed=3", *SLURM)
    waited(lambda: list(Path("runs/s").glob("*/checkpoints/last.ckpt")))
    run = folders("s")[0]
    subprocess.run(["scancel", "100"], check=True)
    waited(lambda: record.read(run).status == "interrupted")
    assert process.wait(120) == 1
    assert not (cluster / "100.requeue").exists()
    assert look(run).kind == "interrupted"


@pytest.mark.slow
def test_a_job_of_two_processes(cluster, submitted, monkeypatch):
    """The trainer's devices are SLURM's tasks."""
    with socket.socket() as free:
        free.bind(("", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    more = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=2", "seed=3"]
    process = submitted(*more, *SLURM)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert "#SBATCH --ntasks-per-node=2" in (cluster / "100.sh").read_text()
    assert record.read(folders("s")[0]).status == "done"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "joblib"])
def test_hydras_launchers_of_this_machine(launcher, tmp_path, monkeypatch, capfd):
    """The runs end as ever, and one that fails is told."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    monkeypatch.chdir(tmp_path)
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root}:{os.environ.get('PYTHONPATH', '')}")
    given = [o for o in STUDY if not o.startswith("trainer.max_steps")] + ["trainer.max_steps=6", "study=s"]
    assert main(["train", "-m", *given, f"hydra/launcher={launcher}", "optimizer.lr=0.1,1e30"]) == 1
    assert sorted(record.read(path).status for path in folders("s")) == ["done", "failed"]
    said = capfd.readouterr().out
    assert "2 jobs: 1 done, 1 failed" in said
    assert "failed       lr=1e+30: Diverged: " in said
