"""A study whose process is killed and started again is the study that was never killed, bit for bit."""

import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hardpix import record
from hardpix.cli import main

STEPS = 20
STUDY = (
    "method=baseline,hardness", "seed=0,1", "data.source.height=32", "data.source.width=48",
    "data.source.train_frames=8", "data.source.val_frames=2", "data.source.test_frames=2",
    "data.train_transform.crop=[32,48]", "data.batch_size=2", "data.num_workers=0", "backbone.name=test_resnet",
    "head.channels=8", "model.aux_channels=8", "trainer.accelerator=cpu", "trainer.devices=1",
    f"trainer.max_steps={STEPS}", "trainer.val_every_epochs=3", "trainer.log_every_steps=1", "trainer.sanity_steps=0",
    "callbacks.progress=none", "callbacks.checkpoint_every_steps=3", "logger=csv", "panels=0",
)  # fmt: skip


def finished(folder):
    return {p.parent.name: record.read(p.parent) for p in sorted(Path(folder).rglob("run.json"))}


def weights(folder, name):
    return torch.load(folder / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_a_killed_study_ends_as_if_nothing_had_happened(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    begin = [sys.executable, "-m", "hardpix.cli", "sweep", *STUDY, "study=killed"]
    process = subprocess.Popen(begin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 300
        while len(list(Path("runs/killed").glob("*/checkpoints/last.ckpt"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = finished("runs/killed")
    assert sorted(r.status for r in before.values()) == ["done", "running"]
    assert main(["sweep", "status", *STUDY, "study=killed"]) == 0
    assert "1 done, 3 waiting" in capfd.readouterr().out
    assert main(["sweep", *STUDY, "study=killed"]) == 0
    assert "goes on from its last checkpoint" in capfd.readouterr().out
    assert main(["sweep", *STUDY, "study=whole"]) == 0
    killed, whole = finished("runs/killed"), finished("runs/whole")
    assert len(killed) == 4
    assert killed.keys() == whole.keys()
    for name, found in killed.items():
        scores = {k: v for k, v in found.metrics.items() if k.startswith(("val/", "test/"))}
        assert scores == {k: v for k, v in whole[name].metrics.items() if k.startswith(("val/", "test/"))}
        assert any(v == v and v > 0 for v in scores.values())
        assert found.metrics["run/steps"] == STEPS
        if name in before:
            assert found.run_id == before[name].run_id
        ours, theirs = (weights(Path("runs", study), name) for study in ("killed", "whole"))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)
        steps = [
            int(row["step"]) for row in csv.DictReader((Path("runs/killed") / name / "metrics.csv").open())
        ]
        assert steps == sorted(set(steps))
        assert set(range(STEPS)) <= set(steps)


# -- the study of conf/sweep/survival.yaml, shortened: 12 jobs, three of which diverge ------------------------------

SURVIVAL = ("survival", "method.alpha=0.1,1.0", "method.c=0.1", "trainer.max_steps=12", "head.channels=8",
            "trainer.val_every_epochs=2", "callbacks.checkpoint_every_steps=3")  # fmt: skip
STARTS = (("2", 4, 8), ("0", 9, 11))  # workers, and between which numbers of begun runs the kill is drawn


def left(study):
    """What each run of a study has left, but for the time that it took: scores, losses, weights, tables."""
    found = {}
    for path in sorted(Path("runs", study).rglob("run.json")):
        run = record.read(path.parent)
        clock = ("cost/", "run/seconds", "run/step_spread")
        scores = {k: v for k, v in run.metrics.items() if not k.startswith(clock)}
        digest = hashlib.sha256()
        if (path.parent / "checkpoints/last.ckpt").is_file():
            for name, tensor in sorted(weights(path.parent.parent, path.parent.name).items()):
                digest.update(name.encode() + tensor.numpy().tobytes())
        files = [path.parent / name for name in ("metrics.csv", "per_class.csv", "confusion.npy")]
        content = [file.read_bytes() if file.is_file() else None for file in files]
        assert path.parent.name not in found
        error = run.error and run.error.replace(f"runs/{study}/", "")
        found[path.parent.name] = (
            run.status,
            error,
            repr(sorted(scores.items())),
            digest.hexdigest(),
            content,
        )
    return found


@pytest.mark.slow
def test_a_study_that_is_killed_twice_is_the_one_that_nobody_disturbed(tmp_path, monkeypatch, capfd):
    """By a pool, then in a process, and at last in this one: what has begun a run does not matter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of floats depend on it
    try:
        assert main(["sweep", *SURVIVAL, "study=whole"]) == 1
        _kill_twice([*SURVIVAL, "study=killed"], random.Random(8))
        capfd.readouterr()
        assert main(["sweep", *SURVIVAL, "study=killed"]) == 1
    finally:
        torch.set_num_threads(threads)
    assert "12 jobs: 9 done" in capfd.readouterr().out
    expected, found = left("whole"), left("killed")
    assert len(found) == 12
    assert {name: values[0] for name, values in found.items()} == {
        name: "failed" if "lr=1e+30" in name else "done" for name in expected
    }
    assert found == expected
    assert (
        main(["table", "runs/killed", "--rows", "method,method.alpha,optimizer.lr,seed", "--format", "json"])
        == 0
    )
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert len(rows) == 12
    assert [row["runs"][0]["status"] for row in rows if row["labels"]["lr"] == "1e+30"] == ["failed"] * 3
    assert sum(bool(row["lacking"]) for row in rows) == 3


def _kill_twice(words, draw):
    for workers, least, most in STARTS:
        number, pause = draw.randint(least, most), draw.uniform(0, 0.8)
        begin = [sys.executable, "-m", "hardpix.cli", "sweep", *words, "--workers", workers]
        process = subprocess.Popen(begin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            limit = time.monotonic() + 200
            while len(finished("runs/killed")) < number:
                assert process.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.01)
            time.sleep(pause)
        finally:
            process.kill()
            process.wait()


SEARCH = """
search: {optimizer.lr: {loguniform: [0.001, 1]}, method: {choice: [baseline, hardness]}}
trials: 4
sampler: random
pruner: none
"""


@pytest.mark.slow
def test_a_killed_search_that_two_processes_end_is_the_search_of_one(tmp_path, monkeypatch):
    trials = pytest.importorskip("hardpix.sweep.trials")
    monkeypatch.chdir(tmp_path)
    Path("conf/sweep").mkdir(parents=True)
    Path("conf/sweep/s.yaml").write_text(SEARCH)
    fixed = [word for word in STUDY if not word.startswith(("method=", "seed="))]
    words = ["sweep", "s", "--config-dir", "conf", *fixed]

    def start():
        begin = [sys.executable, "-m", "hardpix.cli", *words, "study=killed"]
        return subprocess.Popen(begin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    process = start()
    try:
        limit = time.monotonic() + 300
        while len(list(Path("runs/killed").glob("*/checkpoints/last.ckpt"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert [t.state.name for t in trials.found(Path("runs/killed"), "killed")] == ["COMPLETE", "RUNNING"]
    pair = [start(), start()]
    assert [one.wait(300) for one in pair] == [0, 0]
    assert main([*words, "study=whole"]) == 0
    killed, whole = (trials.found(Path("runs") / study, study) for study in ("killed", "whole"))
    assert [(t.number, t.state.name) for t in killed] == [(n, "COMPLETE") for n in range(4)]
    assert len({t.user_attrs["owner"]["pid"] for t in killed}) == 3
    for ours, theirs in zip(killed, whole, strict=True):
        assert (ours.params, ours.value) == (theirs.params, theirs.value)
        assert ours.intermediate_values == theirs.intermediate_values
    names = {Path(path).name for t in killed for path in t.user_attrs["runs"]}
    assert len(names) == len(finished("runs/killed")) == 4
    for name in names:
        one, other = (weights(Path("runs", study), name) for study in ("killed", "whole"))
        assert all(torch.equal(one[key], other[key]) for key in one | other)
