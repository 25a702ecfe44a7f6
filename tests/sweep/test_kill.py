"""Studies that are killed or interrupted at random moments end as undisturbed ones, bit for bit."""

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

# 40 jobs, of which 3 diverge: conf/studies/survival.yaml with shorter runs.
SHORT = ("trainer.max_steps=6", "trainer.val_every_epochs=1", "callbacks.checkpoint_every_steps=2",
         "head.channels=8", "model.aux_channels=8")  # fmt: skip
ALL = ("survival", *SHORT)
# 12 of them, for launchers that start a process for each job.
FEW = (*ALL, "method.alpha=0.1,1.0", "method.c=0.1")
LAUNCHERS = {
    "basic": [],
    "pool": ["hydra/launcher=pool", "hydra.launcher.workers=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=3"],
}
DIVERGED = "lr=1e+30"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for all studies, the current one in the module's tests."""
    folder = tmp_path_factory.mktemp("studies")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OMP_NUM_THREADS", "1")  # sums of floats depend on it
        patch.setenv("PYTHONPATH", os.pathsep.join(path or os.getcwd() for path in sys.path))
        yield folder


def start(*words, **options):
    command = [sys.executable, "-m", "hardpix.cli", "sweep", *words]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def run(*words):
    """The exit status and output of a study that nobody disturbs."""
    process = start(*words)
    said = process.communicate(timeout=900)[0]
    return process.returncode, said


@pytest.fixture(scope="module")
def undisturbed(place):
    """What the study of 40 jobs leaves when nobody disturbs it."""
    status, said = run(*ALL, "study=undisturbed")
    assert (status, "40 jobs: 37 done, 3 failed" in said) == (1, True), said[-3000:]
    return left("undisturbed")


def records(study):
    return {p.parent: record.read(p.parent) for p in sorted(Path("runs", study).glob("*/run.json"))}


def weights(run_dir):
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def left(study):
    """What each run of a study has left, but for the time that it took: scores, losses, weights, tables."""
    found = {}
    for path, one in records(study).items():
        clock = ("cost/", "run/seconds", "run/step_spread")
        scores = {k: v for k, v in one.metrics.items() if not k.startswith(clock)}
        digest = hashlib.sha256()
        if (path / "checkpoints/last.ckpt").is_file():
            for name, tensor in sorted(weights(path).items()):
                digest.update(name.encode() + tensor.numpy().tobytes())
        files = [path / name for name in ("metrics.csv", "per_class.csv", "per_image.csv", "confusion.npy")]
        content = [hashlib.sha256(f.read_bytes()).hexdigest() if f.is_file() else None for f in files]
        error = one.error and one.error.replace(f"runs/{study}/", "")
        found[path.name] = (one.status, error, repr(sorted(scores.items())), digest.hexdigest(), content)
    return found


def begun(study):
    return len(list(Path("runs", study).glob("*/run.json")))


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def disturb(words, study, number, draw, target):
    """Start the study and send it a signal once ``target`` of its runs have begun, or soon after."""
    process, pause, limit = start(*words), draw.uniform(0, 0.5), time.monotonic() + 600
    try:
        while begun(study) < target and process.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.01)
        time.sleep(pause)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, number)
        said = process.communicate(timeout=120)[0]
    while alive(process.pid):  # jobs of a queue outlive the command
        assert time.monotonic() < limit
        time.sleep(0.05)
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_study_that_is_killed_again_and_again_is_the_undisturbed_one(undisturbed, launcher):
    """By SIGKILL and Ctrl-C in turn; what is done is not touched again. HARDPIX_ALL_JOBS=1: 40 jobs in any case."""
    draw, study = random.Random(launcher), f"killed-{launcher}"
    chosen = ALL if launcher == "basic" or os.environ.get("HARDPIX_ALL_JOBS") else FEW
    words = [*chosen, *LAUNCHERS[launcher], f"study={study}"]
    total = 40 if chosen is ALL else 12
    for turn, target in enumerate(sorted(draw.uniform(0.05, 0.95) * total for _ in range(4))):
        number = (signal.SIGKILL, signal.SIGINT)[turn % 2]
        status, said = disturb(words, study, number, draw, target)
        expected = {-signal.SIGKILL} if number == signal.SIGKILL else {130}
        assert status in {*expected, 1}, said[-3000:]  # 1: it was over before
    expected = dict(undisturbed)
    for _ in range(2):
        status, said = run(*words)
        assert status == 1, said[-3000:]
    found = left(study)
    if chosen is FEW:
        expected = {name: expected[name] for name in expected if name in found}
    assert len(found) == total
    assert {name: one[0] for name, one in found.items()} == {
        name: "failed" if DIVERGED in name else "done" for name in expected
    }
    assert found == expected


@pytest.mark.slow
def test_what_is_done_is_not_touched_again(undisturbed, capfd):
    done = {path: one for path, one in records("undisturbed").items() if one.status == "done"}
    before = {p: p.stat().st_mtime_ns for path in done for p in path.rglob("*")}
    assert main(["sweep", *ALL, "study=undisturbed"]) == 1
    assert "40 jobs: 37 done (37 before), 3 failed" in capfd.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for path in done for p in path.rglob("*")}
    assert left("undisturbed") == undisturbed
    rows = ["--rows", "method,method.alpha,method.c,optimizer.lr,seed", "--format", "json"]
    assert main(["table", "runs/undisturbed", *rows]) == 0
    found = json.loads(capfd.readouterr().out)["rows"]
    assert len(found) == 40
    assert [row["runs"][0]["status"] for row in found if row["labels"]["lr"] == "1e+30"] == ["failed"] * 3
    assert sum(bool(row["lacking"]) for row in found) == 3
