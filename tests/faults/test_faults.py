"""A few of the points at which ``make faults`` interrupts runs; all of them take most of an hour."""

import os
import pkgutil
import re
import shutil
import signal
import subprocess

import pytest
import torch

from hardpix import record
from hardpix.train.checkpoint import newest, problem
from tests.conftest import TINY
from tests.faults.cases import CASES, Case
from tests.faults.harness import Killer, command, in_child, state_hash


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    made = {}

    def of(name):
        if name not in made:
            made[name] = Case(name, tmp_path_factory.mktemp(name))
        return made[name]

    return of


KINDS = ("step", "write", "term", "full")
# (method, kind, place among all points of the kind, from 0 to 1)
QUICK = [("hardness", kind, 0.35) for kind in KINDS]
SLOW = [(name, kind, 0.1 + 0.2 * ((row + column) % 5))
        for row, name in enumerate(CASES) for column, kind in enumerate(KINDS)]  # fmt: skip


def check(case, name, kind, place):
    number = 1 + round(place * (case(name).counts[kind] - 1))
    assert case(name).violation(kind, number) is None


@pytest.mark.parametrize(("name", "kind", "place"), QUICK)
def test_the_same_command_continues_exactly(case, name, kind, place):
    check(case, name, kind, place)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "place"), SLOW)
def test_every_method_continues_exactly(case, name, kind, place):
    check(case, name, kind, place)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own of a few megabytes, and a function that makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(*options):
        words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        return subprocess.run(words, capture_output=True).returncode == 0

    if shutil.which("mount") is None or not mounted("size=9m"):
        pytest.skip("may not mount a file system here")
    try:
        yield folder, lambda: mounted("remount", "size=90m")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(small_disk, tmp_path):
    folder, enlarge = small_disk
    log = tmp_path / "log.txt"

    def arguments(runs_dir):
        return ["train", *TINY, "callbacks.checkpoint_every_steps=1", f"runs_dir={runs_dir}", "run=a"]

    assert in_child(command(arguments(folder)), log) == 2
    said = log.read_text()
    assert re.search(rf"hardpix: {folder}\S*: No space left on device \(\d+ MB free\)", said), said[-500:]
    run_dir = folder / "default/a"
    assert not list(run_dir.rglob("*.partial*"))
    assert problem(run_dir / "checkpoints/last.ckpt") is None
    assert record.read(run_dir).status == "failed"
    enlarge()
    assert in_child(command(arguments(folder)), log) == 0, log.read_text()[-500:]
    assert in_child(command(arguments(tmp_path / "runs")), log) == 0
    assert state_hash(run_dir) == state_hash(tmp_path / "runs/default/a")


@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_files_stay_whole(tmp_path):
    """The first one would have waited for the end of the step, in which the second one comes."""
    log = tmp_path / "log.txt"
    begin = ["train", *TINY, "callbacks.checkpoint_every_steps=1", f"runs_dir={tmp_path}/runs"]
    twice = Killer(tmp_path, "step", 5, lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)])
    assert in_child(command([*begin, "run=a"], twice), log) == 143
    run_dir = tmp_path / "runs/default/a"
    assert record.read(run_dir).error == "interrupted"
    assert torch.load(newest(run_dir), weights_only=True)["global_step"] == 2  # not that of the step
    for run in ("a", "whole"):
        assert in_child(command([*begin, f"run={run}"]), log) == 0
    assert state_hash(run_dir) == state_hash(tmp_path / "runs/default/whole")


AFTER = {
    "test": "hardpix.methods.Method.test_step",
    "scores": "hardpix.train.results.write",
    "panels": "hardpix.train.results._write_one",
    "labels": "hardpix.train.train.fit_to_labels",  # before the first step
    "started": "hardpix.train.train.record.write",  # while the record is written
}


@pytest.mark.slow
@pytest.mark.parametrize("place", AFTER)
def test_a_signal_outside_of_training_leaves_a_record_that_says_so(tmp_path, place):
    number, status = (signal.SIGUSR1, 138) if place == "panels" else (signal.SIGTERM, 143)
    begin = ["train", *TINY, f"runs_dir={tmp_path}/runs", "run=a"]
    owner, _, name = AFTER[place].rpartition(".")

    def work():
        holder = pkgutil.resolve_name(owner)
        inner = getattr(holder, name)

        def stopping(*args, **kwargs):
            setattr(holder, name, inner)
            os.kill(os.getpid(), number)
            return inner(*args, **kwargs)

        setattr(holder, name, stopping)
        return command(begin)()

    assert in_child(work, tmp_path / "log.txt") == status, (tmp_path / "log.txt").read_text()[-500:]
    found = record.read(tmp_path / "runs/default/a")
    assert (found.status, found.error) == ("interrupted", "interrupted")
    assert in_child(command(begin), tmp_path / "log.txt") == 0
    assert record.read(tmp_path / "runs/default/a").status == "done"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_other_signals_save_after_the_step(tmp_path, number, status):
    log = tmp_path / "log.txt"
    begin = ["train", *TINY, f"runs_dir={tmp_path}/runs", "trainer.val_every_epochs=2", "run=a"]
    once = Killer(tmp_path, "step", 1, lambda: os.kill(os.getpid(), number))
    assert in_child(command(begin, once), log) == status
    run_dir = tmp_path / "runs/default/a"
    assert torch.load(newest(run_dir), weights_only=True)["global_step"] == 1
    assert f"{signal.Signals(number).name}: saving after this step" in log.read_text()
