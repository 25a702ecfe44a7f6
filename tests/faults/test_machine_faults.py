"""Shared memory and memory that end, wherever a run asks for them; and the status that a process ends with."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hardpix import record
from hardpix.methods import Baseline
from hardpix.train.checkpoint import newest, problem, read_checkpoint
from tests.conftest import TINY
from tests.faults.harness import command, in_child

pytestmark = pytest.mark.slow  # whole runs and processes

COMMON = ("scheduler=constant", "panels=0", "callbacks.checkpoint_every_steps=1", "trainer.max_steps=6")


def train_line(tmp_path, *overrides):
    given = {o.split("=")[0] for o in (*COMMON, *overrides)}
    kept = [o for o in TINY if o.split("=")[0] not in given]
    common = [o for o in COMMON if o.split("=")[0] not in {o.split("=")[0] for o in overrides}]
    return ["train", *kept, *common, f"runs_dir='{tmp_path}/runs'", "run=a", *overrides]


def patched(owner, name, when, act):
    """Have ``owner.name`` first do ``act`` where ``when(self)``; in a child, so for good."""
    inner = getattr(owner, name)

    def wrapped(self, *args, **kwargs):
        if when(self):
            act()
        return inner(self, *args, **kwargs)

    setattr(owner, name, wrapped)


def main_in_child(tmp_path, line, prepare=lambda: None, seconds=120):
    log = tmp_path / "log"

    def work():
        prepare()
        return command(line)()

    return in_child(work, log, seconds), log.read_text()


def told(said):
    """The one sentence, of a run that ends with one and without a traceback."""
    assert "Traceback" not in said, said
    (line,) = [line for line in said.splitlines() if line.startswith("hardpix: ")]
    return line


# Shared memory


NEW_MOUNTS = 0x00020000  # CLONE_NEWNS


def small_shm(size):
    """In a child: /dev/shm of so many bytes, which no other process sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True, capture_output=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True,
                   capture_output=True)  # fmt: skip


@pytest.fixture(scope="module")
def can_mount(tmp_path_factory):
    def work():
        small_shm("1m")
        return 0

    if not sys.platform.startswith("linux") or in_child(work, tmp_path_factory.mktemp("mount") / "log") != 0:
        pytest.skip("file systems cannot be mounted in a namespace of one's own here")


@pytest.mark.parametrize("size", ["64k", "8k"])
def test_shared_memory_that_is_full_ends_the_run_with_its_cause(can_mount, tmp_path, size):
    """Too little for a batch; too little for the locks of a queue of batches."""
    line = train_line(tmp_path, "data.num_workers=2")
    begun = tmp_path / "begun"
    prepare = [
        lambda: patched(Baseline, "on_fit_start", lambda self: True, begun.touch),
        lambda: small_shm(size),
    ]
    status, said = main_in_child(tmp_path, line, lambda: [step() for step in prepare])
    assert status == 1, said
    assert time.time() - begun.stat().st_mtime < 10
    assert "/dev/shm is full" in told(said)
    assert "data.num_workers=0" in told(said)
    assert "--shm-size" in told(said)
    found = record.read(tmp_path / "runs/default/a")
    assert found.status == "failed"
    assert "/dev/shm is full" in found.error


# Memory


def device_memory():
    raise torch.cuda.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"
    )


ENDING = {
    "device": (device_memory, "the GPU's memory does not suffice", "trainer.precision"),
    "numpy": (lambda: np.empty(2**58, np.uint8), "the machine's memory does not suffice (peak", "GiB"),
    "torch": (lambda: torch.empty(2**58, dtype=torch.uint8), "the machine's memory does not suffice (peak", "GiB"),
}  # fmt: skip
PLACES = {  # what is called, in which step the memory ends, and which checkpoint is there by then
    "training": ("training_step", 3, 3),
    "validation": ("validation_step", 4, 4),
    "optimiser": ("optimizer_step", 3, 3),
    "backward": ("on_after_backward", 3, 3),
}


@pytest.mark.parametrize("ending", ENDING)
@pytest.mark.parametrize("place", PLACES)
def test_memory_that_ends_anywhere_keeps_the_last_checkpoint(tmp_path, place, ending):
    act, *words = ENDING[ending]
    name, step, kept = PLACES[place]
    status, said = main_in_child(
        tmp_path,
        train_line(tmp_path),
        lambda: patched(Baseline, name, lambda self: self.global_step == step, act),
    )
    assert status == 1, said
    for word in (*words, "data.batch_size", "trainer.accumulate", "crop", "the last checkpoint is kept"):
        assert word in told(said)
    run_dir = tmp_path / "runs/default/a"
    last = newest(run_dir)
    assert problem(last) is None
    assert read_checkpoint(last)["global_step"] == kept
    found = record.read(run_dir)
    assert found.status == "failed"
    assert words[0] in found.error


# The status that a process ends with


def not_a_number():
    patched(Baseline, "training_step", lambda self: True, lambda: None)
    inner = Baseline.losses

    def losses(self, batch):
        return {name: value * float("nan") for name, value in inner(self, batch).items()}

    Baseline.losses = losses


def signalled(number):
    return lambda: patched(
        Baseline, "training_step", lambda self: self.global_step == 2, lambda: os.kill(os.getpid(), number)
    )


STATUS = {
    "done": (0, (), lambda: None),
    "memory": (1, (), lambda: patched(Baseline, "training_step", lambda self: True, ENDING["torch"][0])),
    "a key": (2, ("optimizer.learning=3",), lambda: None),
    "a file": (2, ("data=folder", "data.source.root=nowhere", "data.source.classes=[a,b]"), lambda: None),
    "diverged": (3, (), not_a_number),
    "SIGINT": (128 + signal.SIGINT, (), signalled(signal.SIGINT)),
    "SIGTERM": (128 + signal.SIGTERM, (), signalled(signal.SIGTERM)),
    "SIGUSR1": (128 + signal.SIGUSR1, (), signalled(signal.SIGUSR1)),
}


@pytest.mark.parametrize("name", STATUS)
def test_the_exit_status_says_what_became_of_it(tmp_path, name):
    expected, overrides, prepare = STATUS[name]
    line = train_line(tmp_path, *overrides)
    if "data=folder" in overrides:
        line = [word for word in line if not re.match(r"data\.source\.(height|width|\w+_frames)=", word)]
    status, said = main_in_child(tmp_path, line, prepare)
    assert status == expected, said
    assert "Traceback" not in said


def test_a_fault_of_code_is_a_traceback_and_status_one(tmp_path):
    code = (
        "import sys; from hardpix.methods import Baseline; from hardpix.cli import main\n"
        "def losses(self, batch): return {'a': 1 / 0}\n"
        f"Baseline.losses = losses; sys.exit(main({train_line(tmp_path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr.splitlines()[-1]
    assert "Traceback" in done.stderr
    assert record.read(tmp_path / "runs/default/a").error.startswith("ZeroDivisionError")


def test_the_statuses_are_those_that_are_promised():
    page = (Path(record.__file__).parent / "PROMISES.md").read_text(encoding="utf-8")
    table = page.partition("## Exit status")[2].partition("\n## ")[0]
    named = {int(n) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for n in row.split(",")}
    assert named == {status for status, _, _ in STATUS.values()}
