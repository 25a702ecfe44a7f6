"""SIGINT, SIGTERM and SIGUSR1: what a process does that trains, wherever they find it; no torch is needed to know."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hardpix.train import rundir

ROOT = Path(__file__).resolve().parents[2]
WAIT = "print('here', flush=True); [None for _ in iter(lambda: received() > 0, True)]"
LIMIT = 60  # seconds for a process that should end at once, on a loaded machine

# {work} in the block; what a second signal, or a main thread that is stuck, leaves behind is "last words".
BLOCK = """
import ctypes, os, sys, time
from hardpix.train import signals
from hardpix.train.signals import *

def block():  # in a call of C that no signal interrupts, as a collective does
    lock = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(lock)
    print("here", flush=True)
    libc.pthread_mutex_lock(lock)

with Signals(grace={grace}) as own:
    own.before_exit = lambda: print("last words", flush=True)
    with own.raising():
{work}
"""


@pytest.fixture
def begun():
    """``begun(work)``: a process that does ``work`` and has said "here"."""
    processes = []

    def begin(work, grace=600):
        code = BLOCK.format(work="\n".join(f"        {line}" for line in work.splitlines()), grace=grace)
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "here\n"
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_the_first_raises_where_nothing_is_to_be_saved(begun, number, status):
    process = begun("print('here', flush=True)\ntime.sleep(600)")
    process.send_signal(getattr(signal, number))
    assert (process.communicate(timeout=LIMIT)[0], process.returncode) == ("", status)


def test_the_first_waits_for_the_end_of_a_step(begun):
    process = begun(f"signals.steps(True)\n{WAIT}\nprint('saved')\nsignals.steps(False)")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=LIMIT)[0]
    assert said == "SIGTERM: saving after this step (once more: stop at once)\nsaved\n"
    assert process.returncode == 143


def test_one_that_comes_twice_at_once_is_one(begun):
    """``timeout`` sends it to the process and to its group."""
    process = begun(f"signals.steps(True)\n{WAIT}\nprint('saved')\nsignals.steps(False)")
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=LIMIT)[0]
    assert said.endswith("saved\n")
    assert process.returncode == 143


def test_while_something_is_saved_it_waits(begun):
    process = begun(f"with signals_deferred():\n    {WAIT}\n    print('saved', flush=True)\nprint('no')")
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=LIMIT)[0], process.returncode) == ("saved\n", 130)


def blocked(process):
    """Wait until the main thread sleeps in its call."""
    state = Path(f"/proc/{process.pid}/task/{process.pid}/stat")
    for _ in range(100 * LIMIT if state.is_file() else 0):
        if state.read_text().rpartition(")")[2].split()[0] == "S":
            return
        time.sleep(0.01)


@pytest.mark.parametrize("steps", [True, False])
def test_a_second_one_ends_a_process_whose_main_thread_is_stuck(begun, steps):
    process = begun(f"signals.steps({steps})\nblock()")
    blocked(process)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=LIMIT)[0].endswith("last words\n")
    assert process.returncode == 130


@pytest.mark.parametrize("steps", [True, False])
def test_one_is_enough_after_a_while(begun, steps):
    process = begun(f"signals.steps({steps})\nblock()", grace=1)
    blocked(process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=LIMIT)[0]
    assert "last words" in said
    assert "SIGTERM: ended without saving" in said
    assert process.returncode == 143


def test_also_where_the_main_thread_has_heard_of_it_before_it_is_stuck(begun):
    process = begun(f"signals.steps(True)\n{WAIT}\nblock()", grace=1)
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: ended without saving" in process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 143


def test_a_main_thread_that_goes_on_is_not_stuck(begun):
    """The longest of its calls so far took a second, or other calls come in between."""
    work = "[(time.sleep(0.7), signals.step_ended()) for _ in range(3)]"
    long = "signals.step_ended(1.0); time.sleep(1.5)"
    process = begun(
        f"signals.steps(True)\n{WAIT}\n{work}\n{long}\nprint('saved')\nsignals.steps(False)", grace=1
    )
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=LIMIT)[0].endswith("saved\n")
    assert process.returncode == 138


def test_what_a_failed_attempt_has_left_is_kept_each_time(tmp_path):
    for number in (1, 2):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints/last.ckpt").write_text(str(number))
        (tmp_path / "run.json").write_text("")
        (tmp_path / ".lock").write_text("")
        assert rundir.set_aside(tmp_path) == tmp_path / "failed" / str(number)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "failed"]
    assert rundir.set_aside(tmp_path) is None
    assert [(tmp_path / f"failed/{n}/checkpoints/last.ckpt").read_text() for n in (1, 2)] == ["1", "2"]
