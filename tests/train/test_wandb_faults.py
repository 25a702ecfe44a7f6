"""Whatever W&B does, a run waits for it no longer than agreed, ends as it would without, and has all its rows."""

import csv
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hardpix import record
from hardpix.train import wandb
from tests.conftest import records
from tests.train.fake_wandb import FakeWandb

pytest.importorskip("wandb")


# The thread


@pytest.fixture
def blocked():
    """An event that ends the threads of a test, so that no later run waits for them."""
    event = threading.Event()
    yield event
    event.set()


def test_calls_are_made_in_their_order_by_another_thread():
    seen = []
    todo = wandb.BackgroundCalls(30)
    for number in range(50):
        todo.give(lambda number=number: seen.append((number, threading.current_thread())))
    assert todo.wait(30)
    assert todo.end()
    assert [number for number, _ in seen] == list(range(50))
    assert {thread for _, thread in seen}.isdisjoint({threading.current_thread()})


def test_waiting_is_bounded_in_sum(blocked):
    todo = wandb.BackgroundCalls(0.5)
    todo.give(lambda: blocked.wait(20))
    begin = time.monotonic()
    assert not todo.wait(0.2)
    assert todo.patience < 0.31
    assert not todo.wait(60)
    assert not todo.wait(60)
    assert not todo.end()
    assert 0.5 <= time.monotonic() - begin < 5


def test_the_next_begins_where_the_one_before_has_ended(blocked):
    first, second, seen = wandb.BackgroundCalls(0.0), wandb.BackgroundCalls(30), []
    first.give(blocked.wait)
    first.give(lambda: seen.append("first"))
    assert not first.end()
    second.give(lambda: seen.append("second"))
    assert not second.wait(0.1)
    assert seen == []
    blocked.set()
    assert second.end()
    assert seen == ["first", "second"]


def test_what_hangs_for_hours_fills_no_memory(blocked, monkeypatch):
    monkeypatch.setattr(wandb, "MAX_WAITING", 3)
    todo, seen, begun = wandb.BackgroundCalls(30), [], threading.Event()
    todo.give(lambda: (begun.set(), blocked.wait()))
    begun.wait(30)
    for number in range(5):
        todo.give(lambda number=number: seen.append(number))
    blocked.set()
    assert not todo.end()  # not all
    assert seen == [0, 1, 2]


# The logger, with a run of W&B's that does as a test says


class Broken:
    """A run of W&B's; ``log`` at the third row, or ``finish``, does ``act``."""

    def __init__(self, where, act, folder):
        self.where, self.act, self.rows, self.summary, self.step = where, act, [], {}, 0
        self.dir = str(folder / "wandb/offline-run-1/files")

    def log(self, row, step):
        if self.where == "log" and len(self.rows) == 2:
            self.act()
        self.rows.append((step, row))

    def finish(self, exit_code=0):
        if self.where == "finish":
            self.act()


def stopped(where, act, monkeypatch, tmp_path, rows=200):
    """A run of so many rows; what it logged, and how long the logger took in all."""
    broken = Broken(where, act, tmp_path)
    monkeypatch.setattr(wandb, "PATIENCE", 1.0)
    monkeypatch.setattr(wandb, "START", 0.2)
    monkeypatch.setattr(wandb, "_wait_no_more", lambda: None)
    monkeypatch.setattr(wandb, "_teardown", lambda: None)

    def init(self, mode):
        if where == "init":
            act()
        self.run, self.folder = broken, Path(broken.dir).parent

    monkeypatch.setattr(wandb.WandbRun, "_init", init)
    begin = time.monotonic()
    logger = wandb.WandbRun(tmp_path, {"id": "a"}, online=False, earlier=[])
    logger.start()
    for step in range(rows):
        logger.log_metrics({"train/loss": float(step)}, step)
    logger.close(SimpleNamespace(metrics={"test/miou": 0.5}, status="done", error=None))
    return broken, time.monotonic() - begin


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_call_that_never_ends_is_waited_for_no_longer_than_agreed(
    where, blocked, monkeypatch, tmp_path, capsys
):
    _, seconds = stopped(where, lambda: blocked.wait(20), monkeypatch, tmp_path)
    assert 1.0 <= seconds < 4
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("W&B")]
    assert len(said) == 1
    assert "does not answer; not all of this run is logged there; training goes on" in said[0]
    assert f"wandb sync {tmp_path}/wandb" in said[0]


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_full_disk_is_told_once(where, monkeypatch, tmp_path, capsys):
    full = OSError(errno.ENOSPC, "No space left on device")
    broken, _ = stopped(where, raising(full), monkeypatch, tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("W&B")]
    assert len(said) == 1
    assert "No space left on device; no more of this run is logged there; training goes on" in said[0]
    assert len(broken.rows) == {"init": 0, "log": 2, "finish": 200}[where]


def test_what_a_server_did_not_take_in_time_is_told_with_the_folder(monkeypatch, tmp_path, capsys):
    broken, _ = stopped("finish", raising(TimeoutError("Timed out finishing run.")), monkeypatch, tmp_path)
    assert [step for step, _ in broken.rows] == list(range(200))
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("W&B")]
    assert f"did not take everything within {wandb.FINISH} s" in said
    assert f"wandb sync {tmp_path}/wandb/offline-run-1 sends" in said


def test_a_run_without_a_fault_is_logged_whole_and_nothing_is_told(monkeypatch, tmp_path, capsys):
    broken, _ = stopped("nowhere", None, monkeypatch, tmp_path)
    assert broken.rows == [(step, {"train/loss": float(step)}) for step in range(200)]
    assert broken.summary == {"test/miou": 0.5, "status": "done"}
    assert capsys.readouterr().out == ""


def test_the_parts_of_the_patience_fit_into_it():
    assert wandb.START + wandb.FINISH < wandb.PATIENCE <= 5


# Whole processes, with wandb itself

SCRIPT = """
import atexit, os, signal, sys, time, urllib.request
from hardpix.train import loggers as tracking
from hardpix.train.train import train
from tests.conftest import compose_tiny
import pytorch_lightning as pl

fault, mode, url = sys.argv[1:]
spent = [0.0]

def timed(owner, name):
    inner = getattr(owner, name)
    def run(*a, **k):
        begin = time.monotonic()
        try:
            return inner(*a, **k)
        finally:
            spent[0] += time.monotonic() - begin
    setattr(owner, name, run)

tracking.log_results = lambda *a: None  # tables go another way, of which the fake server knows nothing
for name in ("connect", "close"):
    timed(tracking, name)
from hardpix.train.wandb import WandbRun
timed(WandbRun, "log_metrics")

class Fault(pl.Callback):
    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step != 3:
            return
        if fault == "drops":
            urllib.request.urlopen(url + "/stop").close()
        elif fault in ("SIGKILL", "SIGSTOP"):
            from wandb.sdk import wandb_setup
            global core
            process = wandb_setup.singleton()._connection._proc._process
            core = process.pid
            os.kill(core, getattr(signal, fault))
            if fault == "SIGKILL":
                process.wait()

common = ["logger=default", f"logger.wandb={mode}", "trainer.max_steps=8", "scheduler=constant", "panels=0"]
done = train(compose_tiny("runs", ["run=a", *common]), [], [Fault()])
waited = spent[0]
if fault == "SIGKILL":  # the next run of the process
    print("NEXT", train(compose_tiny("runs", ["run=b", *common]), []).status, flush=True)
begin = time.monotonic()
atexit._run_exitfuncs()
print("SPENT", done.status, waited, time.monotonic() - begin, flush=True)
if fault == "SIGSTOP":
    os.kill(core, signal.SIGKILL)
os._exit(0)  # the rest of the end is torch's
"""


def run_with(fault, mode, folder, url):
    """Output, and seconds that the training waited for W&B, and that the end of its process did."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    env |= {"WANDB_BASE_URL": url, "WANDB_API_KEY": "canary0123456789abcdef0123456789abcdef01"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), env.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", SCRIPT, fault, mode, url], cwd=folder, env=env, capture_output=True,
                          text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    (spent,) = [line.split() for line in done.stdout.splitlines() if line.startswith("SPENT")]
    print(fault, mode, *spent)
    assert spent[1] == "done"
    return done.stdout, float(spent[2]), float(spent[3])


def csv_rows(run_dir):
    with open(run_dir / "metrics.csv", newline="") as file:
        return {
            int(row.pop("step")): {k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)
        }


def scalars(rows):
    kept = {
        step: {k: float(v) for k, v in row.items() if not k.startswith(("_", "panels/", "per_class"))}
        for step, row in rows.items()
    }
    return {step: row for step, row in kept.items() if row}


def the_one_line(said):
    (line,) = [line for line in said.splitlines() if line.startswith("W&B")]
    return line


@pytest.mark.slow
def test_a_server_that_takes_everything_has_the_rows(tmp_path):
    with FakeWandb() as server:
        said, _, _ = run_with("none", "online", tmp_path, server.url)
        assert "W&B" not in said
        assert scalars(server.rows) == csv_rows(tmp_path / "runs/default/a")


@pytest.mark.slow
def test_a_server_that_falls_silent_gets_the_rows_later(tmp_path):
    with FakeWandb() as server:
        said, waited, at_exit = run_with("drops", "online", tmp_path, server.url)
    rows = csv_rows(tmp_path / "runs/default/a")
    assert set(range(8)) <= rows.keys()
    assert scalars(server.rows) != rows
    line = the_one_line(said)
    assert "training goes on" in line  # not all was taken in time
    assert waited < 6
    assert at_exit < 5
    (file,) = tmp_path.glob("runs/default/a/wandb/run-*/run-*.wandb")
    limit = time.monotonic() + 60  # wandb's own process writes the end of it alone
    while not any(one.WhichOneof("record_type") == "exit" for one in records(file)):
        assert time.monotonic() < limit
        time.sleep(0.1)
    words = line.partition("wandb sync ")[2].partition(" sends")[0].split()
    with FakeWandb() as later:
        env = os.environ | {"WANDB_BASE_URL": later.url, "WANDB_API_KEY": "c" * 40, "WANDB_MODE": "online"}
        subprocess.run([str(Path(sys.executable).parent / "wandb"), "sync", *words], cwd=tmp_path, env=env, check=True,
                       capture_output=True, timeout=120)  # fmt: skip
        assert scalars(later.rows) == rows


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_is_told_and_the_run_is_offline(tmp_path, status, offline):
    with FakeWandb(status) as server:
        said, waited, _ = run_with("none", "online", tmp_path, server.url)
    assert str(status) in the_one_line(said)
    assert waited < 6
    run_dir = tmp_path / "runs/default/a"
    assert scalars(offline(run_dir).scalars()) == csv_rows(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSTOP"])
def test_wandbs_own_process_may_end_or_hang(tmp_path, fault, offline):
    said, waited, at_exit = run_with(fault, "offline", tmp_path, "http://127.0.0.1:9")
    assert set(range(8)) <= csv_rows(tmp_path / "runs/default/a").keys()
    assert "training goes on" in the_one_line(said)
    assert waited < 6
    assert at_exit < 5
    if fault == "SIGKILL":
        run_dir = tmp_path / "runs/default/b"
        assert "NEXT done" in said
        assert scalars(offline(run_dir).scalars()) == csv_rows(run_dir)


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_ends_no_run(tiny, tmp_path, monkeypatch, capsys):
    """A file stands where wandb's folder should be."""
    from hardpix.train.train import train

    run_dir = tmp_path / "runs/default/a"
    begin = wandb.WandbRun.start

    def start(self):
        (run_dir / "wandb").write_text("in the way")
        begin(self)

    monkeypatch.setattr(wandb.WandbRun, "start", start)
    done = train(tiny("run=a", "logger=default", "logger.wandb=offline", "panels=0"), [])
    assert done.status == record.read(run_dir).status == "done"
    assert "no more of this run is logged there" in the_one_line(capsys.readouterr().out)
    assert set(range(4)) <= csv_rows(run_dir).keys()
