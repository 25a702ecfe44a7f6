"""What a terminal, `timeout` and clusters do: a signal for all processes of a run, wherever it is; with data workers.

A driver runs the command line and waits at a place of it, until the test has sent what it sends.
"""

import contextlib
import os
import pty
import re
import select
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch

from hardpix import record
from hardpix.train.checkpoint import newest
from tests.faults.harness import command, in_child

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240  # seconds, on a loaded machine
TINY = (
    "data.source.height=32", "data.source.width=48", "data.source.train_frames=8", "data.source.val_frames=3",
    "data.source.test_frames=3", "data.train_transform.crop=[32,48]", "data.batch_size=2", "data.eval_batch_size=1",
    "backbone.name=test_resnet", "head.channels=8", "model.aux_channels=8", "trainer.accelerator=cpu",
    "trainer.devices=1", "trainer.max_steps=6", "logger=csv", "panels=1",
)  # fmt: skip

# At the TIMESth call of PLACE the command says "here" and waits, or blocks.
DRIVER = """
import os, pkgutil, sys, time

place, left, how = os.environ["PLACE"], int(os.environ["TIMES"]), os.environ["HOW"]


def arrived():
    global left
    left -= 1
    if left or (how == "rank" and os.environ.get("LOCAL_RANK", "0") == "0"):
        return
    print("here", os.getpid(), flush=True)
    if how in ("block", "rank"):  # as a collective whose other processes never come
        from datetime import timedelta
        from torch.distributed import TCPStore
        TCPStore("127.0.0.1", 0, 1, True, wait_for_workers=False).wait(["never"], timedelta(hours=1))
    end = time.monotonic() + 20
    while not os.path.exists("sent") and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.5)


class Importing:
    def find_spec(self, name, *_):
        if name == place.removeprefix("import "):
            arrived()


if place.startswith("import "):
    sys.meta_path.insert(0, Importing())
else:
    module, _, name = place.rpartition(".")
    holder = pkgutil.resolve_name(module)
    inner = getattr(holder, name)

    def called(*args, **kwargs):
        arrived()
        return inner(*args, **kwargs)

    setattr(holder, name, called)

from hardpix.cli import main

sys.exit(main())
"""


class Terminal:
    """A command at a pseudo-terminal of its own, with all that it has printed in ``said``.

    ``fresh``: in a new program; else in a fork of this one, which has all imports already.
    """

    def __init__(self, folder, words, env, fresh):
        self.folder, self.said, self.status = folder, "", None
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ.update(env)
            sys.argv = ["driver.py", *words]
            if fresh:
                os.execv(sys.executable, [sys.executable, *sys.argv])
            self._run()

    def _run(self):
        status = 99
        try:
            sys.stdin, sys.stdout, sys.stderr = (open(n, mode, closefd=False) for n, mode in enumerate("rww"))  # noqa: SIM115
            exec(compile(DRIVER, "driver.py", "exec"), {})
        except SystemExit as error:
            status = error.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def until(self, pattern=None):
        """Read until ``pattern`` is there, or the command has ended."""
        limit = time.monotonic() + LIMIT
        while pattern is None or not (found := re.search(pattern, self.said)):
            assert time.monotonic() < limit, self.said[-3000:]
            if select.select([self.handle], [], [], 1)[0]:
                try:
                    text = os.read(self.handle, 65536)
                except OSError:  # the other side is closed
                    text = b""
                if not text:
                    assert pattern is None, self.said[-3000:]
                    return None
                self.said += text.decode(errors="replace")
        return found

    def send(self, what):
        """A key, a signal for the process, or for its group as (signal,)."""
        if isinstance(what, bytes):
            os.write(self.handle, what)
        elif isinstance(what, tuple):
            os.killpg(self.pid, what[0])
        else:
            os.kill(self.pid, what)
        (self.folder / "sent").touch()

    def end(self):
        self.until()
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        (self.folder / "sent").unlink(missing_ok=True)
        return self.status


@pytest.fixture
def begun(tmp_path):
    """``begun("place", 1, "wait", *words)``: a command at a terminal under the driver, waiting at the place."""
    (tmp_path / "driver.py").write_text(DRIVER)
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    terminals = []

    def begin(place, times, how, *words, fresh=False):
        driven = env | {"PLACE": place, "TIMES": str(times), "HOW": how}
        terminals.append(Terminal(tmp_path, words, driven, fresh))
        return terminals[-1]

    yield begin
    for terminal in terminals:
        if terminal.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(terminal.pid, signal.SIGKILL)
            terminal.end()


@pytest.fixture
def again(tmp_path):
    """``again(*words)``: the command without a driver or terminal; (exit status, output)."""

    def run(*words):
        log = tmp_path / "log.txt"
        log.unlink(missing_ok=True)

        def work():
            os.chdir(tmp_path)
            return command(words)()

        return in_child(work, log, LIMIT), log.read_text()

    return run


def living(folder):
    """Processes that have been started in ``folder``."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "cwd").resolve() == folder and "Z" not in (path / "stat").read_text().rpartition(")")[
                2
            ][:3]:
                found.append(int(path.name))
    return found


def until_gone(folder):
    limit = time.monotonic() + LIMIT
    while found := living(folder):
        assert time.monotonic() < limit, found
        time.sleep(0.1)


STEP = "hardpix.methods.Method.training_step"
SENT = {
    "ctrl-c": (b"\x03", 130),
    "timeout": ((signal.SIGTERM,), 143),
    "slurm": ((signal.SIGUSR1,), 138),
    "kill": (signal.SIGTERM, 143),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "how"),
    [(0, "ctrl-c"), (2, "ctrl-c"), (4, "ctrl-c"), (2, "timeout"), (4, "slurm"), (2, "kill")],
)
def test_a_signal_for_all_processes_of_a_run_saves_after_the_step(begun, again, tmp_path, workers, how):
    words = ("train", *TINY, "run=a", f"data.num_workers={workers}")
    terminal = begun(STEP, 3, "wait", *words, fresh=workers == 2)
    terminal.until("here")
    sent, status = SENT[how]
    terminal.send(sent)
    assert terminal.end() == status, terminal.said[-3000:]
    assert "saving after this step" in terminal.said
    assert "memory" not in terminal.said
    run_dir = tmp_path / "runs/default/a"
    found = record.read(run_dir)
    assert (found.status, found.reason) == ("interrupted", "")
    assert _step(run_dir) == 3
    until_gone(tmp_path)
    status, said = again(*words)
    assert (status, record.read(run_dir).status) == (0, "done"), said[-3000:]


def _step(run_dir):
    return torch.load(newest(run_dir), weights_only=True)["global_step"]


PLACES = {
    "imports": ("import torch", 1),
    "data": ("hardpix.train.train.start_remarks", 1),
    "sanity check": ("hardpix.methods.Method.validation_step", 1),
    "validation": ("hardpix.methods.Method.validation_step", 3),
    "between epochs": ("hardpix.train.resume.LastCheckpoint.on_train_epoch_start", 2),
    "saving": ("torch.save", 2),
    "the last validation": ("hardpix.train.train.update_best", 1),
    "test": ("hardpix.methods.Method.test_step", 2),
    "panels": ("hardpix.train.train.write_panels", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_at_any_time_is_an_interruption(begun, again, tmp_path, place):
    words = ("train", *TINY, "run=a", "data.num_workers=2")
    terminal = begun(*PLACES[place], "wait", *words, fresh=place == "imports")
    terminal.until("here")
    terminal.send(b"\x03")
    assert terminal.end() == 130, terminal.said[-3000:]
    run_dir = tmp_path / "runs/default/a"
    if place == "imports":
        assert not run_dir.exists()
    else:
        assert record.read(run_dir).status == "interrupted"
    if place not in ("imports", "data", "sanity check"):
        newest(run_dir)
    until_gone(tmp_path)
    status, said = again(*words)
    assert (status, record.read(run_dir).status) == (0, "done"), said[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_run_that_hangs_ends_by_a_second_signal_or_after_a_while(
    begun, again, tmp_path, monkeypatch, times
):
    terminal = begun(STEP, 5, "block", "train", *TINY, "run=a", "data.num_workers=2")
    terminal.until("here")
    for _ in range(times):
        time.sleep(1)
        terminal.send((signal.SIGTERM,))
    assert terminal.end() == 143, terminal.said[-3000:]
    run_dir = tmp_path / "runs/default/a"
    assert record.read(run_dir).status == "interrupted"
    assert _step(run_dir) == 4
    assert ("ended without saving" in terminal.said) == (times == 1)
    until_gone(tmp_path)


@pytest.mark.slow
def test_data_workers_end_with_a_run_that_is_killed(begun, again, tmp_path):
    terminal = begun(STEP, 2, "wait", "train", *TINY, "run=a", "data.num_workers=2")
    terminal.until("here")
    assert len(living(tmp_path)) > 2
    terminal.send(signal.SIGKILL)
    assert terminal.end() == -9
    until_gone(tmp_path)


TWO = ("trainer.devices=2", "trainer.strategy=ddp", "data.num_workers=0")


@pytest.mark.slow
def test_unequal_numbers_of_evaluation_batches_do_not_wait_for_each_other(begun, again, tmp_path):
    """Three frames for two processes; the scores are those that one process finds."""
    terminal = begun(STEP, 999, "wait", "train", *TINY, *TWO, "run=a", fresh=True)
    assert terminal.end() == 0, terminal.said[-3000:]
    status, said = again("evaluate", "runs/default/a", "--split", "test")
    assert status == 0, said[-3000:]
    found = {
        path: record.read(path.parent).metrics for path in (tmp_path / "runs/default/a").rglob("run.json")
    }
    own = found.pop(tmp_path / "runs/default/a/run.json")
    (alone,) = found.values()
    shared = {key for key in own.keys() & alone.keys() if key.startswith("test/")}
    assert "test/miou" in shared
    assert {key: own[key] for key in shared} == pytest.approx({key: alone[key] for key in shared}, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["step", "validation", "test"])
def test_two_processes_end_together(begun, again, tmp_path, place):
    where = {
        "step": (STEP, 3),
        "validation": PLACES["validation"],
        "test": ("hardpix.methods.Method.test_step", 1),
    }
    words = ("train", *TINY, *TWO, "run=a")
    terminal = begun(*where[place], "wait", *words, fresh=True)
    terminal.until("here")
    terminal.send((signal.SIGTERM,))
    assert terminal.end() == 143, terminal.said[-3000:]
    assert record.read(tmp_path / "runs/default/a").status == "interrupted"
    newest(tmp_path / "runs/default/a")
    until_gone(tmp_path)
    terminal = begun(STEP, 999, "wait", *words, fresh=True)
    assert terminal.end() == 0, terminal.said[-3000:]


@pytest.mark.slow
def test_two_processes_of_which_one_hangs_end_by_a_second_signal(begun, again, tmp_path):
    terminal = begun(STEP, 3, "rank", "train", *TINY, *TWO, "run=a", fresh=True)
    terminal.until("here")
    for _ in range(2):
        time.sleep(2)
        terminal.send((signal.SIGTERM,))
    assert terminal.end() == 143, terminal.said[-3000:]
    assert record.read(tmp_path / "runs/default/a").status == "interrupted"
    until_gone(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ctrl-c", "timeout"])
def test_one_signal_ends_a_sweep_and_the_next_start_goes_on(begun, again, tmp_path, how):
    words = ("sweep", *TINY, "data.num_workers=2", "study=s", "seed=0,1")
    terminal = begun(STEP, 3, "wait", *words)
    terminal.until("here")
    sent, status = SENT[how]
    terminal.send(sent)
    assert terminal.end() == status, terminal.said[-3000:]
    assert "2 jobs: 1 interrupted, 1 waiting" in terminal.said
    (path,) = (path.parent for path in tmp_path.glob("runs/s/*/run.json"))
    before = record.read(path)
    assert (before.status, _step(path)) == ("interrupted", 3)
    status, said = again("sweep", "status", *words[1:])
    assert "1 interrupted, 1 waiting" in said
    status, said = again(*words)
    assert status == 0, said[-3000:]
    assert re.search(r"seed=0 \(resume: interrupted .*goes on from its last checkpoint", said)
    assert "2 jobs: 2 done" in said
    assert record.read(path).run_id == before.run_id
