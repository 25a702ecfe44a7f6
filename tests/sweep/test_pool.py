"""A study on processes of its own: what each gets, what becomes of it when it dies, and that none is left over."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hardpix import record
from hardpix.cli import main
from hardpix.sweep.jobs import jobs_of
from hardpix.sweep.pool import environments, gpus
from hardpix.sweep.state import look
from hardpix.sweep.study import read_study
from hardpix.train.rundir import locked_run_dir
from hardpix.types import ConfigError
from tests.conftest import TINY

# Runs a program of Python with a stub for the training, which does what the first file of faults/ALPHA.* says.
STUB = """
import os, signal, sys, time, types
from dataclasses import replace
from pathlib import Path
from hardpix import record
from hardpix.train.rundir import process_began

ENVIRONMENT = {k: os.environ.get(k, "") for k in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}
assert "torch" not in sys.modules

def train(cfg, overrides, callbacks=()):
    run_dir = Path(cfg.runs_dir) / cfg.study / cfg.run
    began = process_began(os.getpid())
    host = {"pid": str(os.getpid()), "hostname": os.uname().nodename, "pid_began": began} | ENVIRONMENT
    begun = record.RunRecord(
        schema=record.SCHEMA, run_id=os.urandom(4).hex(), status="running", factors={"alpha": cfg.method.alpha},
        metrics={}, seed=cfg.seed, parent=None, code={}, host=host, started=str(cfg.resume), study=cfg.study)
    print("the stub trains", flush=True)
    os.write(2, b"a library complains\\n")
    fault = next(iter(sorted(Path("faults").glob(f"{cfg.method.alpha:g}.*"))), None)
    kind = fault.read_text() if fault else ""
    if fault:
        fault.unlink()
    if "early" not in kind:
        record.write(begun, run_dir)
    if "checkpoint" in kind:
        (run_dir / "checkpoints").mkdir()
        (run_dir / "checkpoints/last.ckpt").write_text("")
    if "raise" in kind:
        record.write(replace(begun, status="failed", error="ValueError: no"), run_dir)
        raise ValueError("no")
    if "signal" in kind:
        os.kill(os.getpid(), int(kind.split()[-1]))
    if "exit" in kind:
        os._exit(9)
    if "deaf" in kind:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        for _ in range(600 if "sleep" in kind else 0):
            time.sleep(0.1)
    except SystemExit:
        record.write(replace(begun, status="failed", error="interrupted"), run_dir)
        raise
    time.sleep(0.05)
    metrics = {"val/miou": cfg.method.alpha / 10, "test/miou": 0.5, "run/seconds": 1.0}
    record.write(replace(begun, status="done", metrics=metrics), run_dir)

stub = types.ModuleType("hardpix.train.train")
stub.train = train
sys.modules["hardpix.train.train"] = stub
from hardpix.sweep import work
work.clean_up = lambda: None
sys.argv = sys.argv[2:]
from hardpix.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "faults").mkdir()
    monkeypatch.setattr("hardpix.train.cost.code_versions", dict)
    return tmp_path


def words(alphas="1,2,3", workers=2):
    python = f"'{sys.executable} stub.py'"
    pool = ["hydra/launcher=pool", f"hydra.launcher.workers={workers}", f"hydra.launcher.python={python}"]
    return ["sweep", "method=hardness", f"method.alpha={alphas}", *pool]


def sweep(*more, alphas="1,2,3", workers=2):
    return main([*words(alphas, workers), *more])


def fault(alpha, *kinds):
    for number, kind in enumerate(kinds):
        Path(f"faults/{alpha}.{number}").write_text(kind)


def runs():
    found = {p.parent: record.read(p.parent) for p in Path("runs").rglob("run.json")}
    return {r.factors.get("alpha", r.factors.get("method.alpha")): (p, r) for p, r in found.items()}


def statuses():
    return {alpha: r.status for alpha, (_, r) in sorted(runs().items())}


@pytest.mark.slow
def test_processes_share_the_jobs_and_one_that_dies_costs_its_job_alone(stubbed, capfd, monkeypatch):
    """R21: an exception, two signals, an exit, and a death before the run has a record."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(7), raising=False)
    errors = {2: "raise", 3: "signal 9", 4: "checkpoint signal 11", 5: "exit", 6: "early signal 9"}
    for alpha, kind in errors.items():
        fault(alpha, kind)
    assert sweep(alphas="1,2,3,4,5,6,7") == 1
    said = capfd.readouterr().out
    assert statuses() == {1: "done", **dict.fromkeys(errors, "failed"), 7: "done"}
    texts = {alpha: found.error for alpha, (_, found) in runs().items()}
    assert texts[3] == texts[6] == "worker killed by signal 9"
    assert (texts[4], texts[5]) == ("worker killed by signal 11", "worker ended with status 9")
    for alpha in errors:
        path = runs()[alpha][0]
        assert f"failed       alpha={alpha}: {texts[alpha]} ({path}/error.txt)" in said
        assert ("a library complains" in (path / "error.txt").read_text()) == (alpha in (3, 4, 5, 6))
    assert "the stub trains" not in said
    assert "the stub trains\na library complains\n" in (runs()[1][0] / "output.log").read_text()
    assert len({found.host["pid"] for alpha, (_, found) in runs().items() if alpha in (1, 7)}) == 2
    assert runs()[1][1].host["OMP_NUM_THREADS"] == "3"
    before = {p: p.stat().st_mtime_ns for alpha in (1, 7) for p in runs()[alpha][0].rglob("*")}
    assert sweep(alphas="1,2,3,4,5,6,7") == 0
    assert "7 jobs: 7 done (2 before)" in capfd.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in before}
    started = {alpha: found.started for alpha, (_, found) in runs().items()}
    assert started[4] == "True"  # it went on from its last checkpoint
    assert started[2] == started[3] == "False"
    assert not (runs()[2][0] / "error.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on_error", "status", "expected"),
    [("retry", 0, {1: "done", 2: "done", 3: "done"}), ("stop", 1, {1: "failed"})],
)
def test_what_an_error_does_to_the_others(stubbed, capfd, on_error, status, expected):
    fault(1, "raise")
    fault(2, "checkpoint signal 9")
    assert sweep("hydra.sweeper.on_error=" + on_error) == status
    assert statuses() == expected
    assert ("2 waiting" in capfd.readouterr().out) == (on_error == "stop")


@pytest.mark.slow
def test_a_job_that_another_sweep_has_is_left_to_it(stubbed, capfd):
    jobs, _ = jobs_of(read_study(["method=hardness", "method.alpha=1,2,3"]))
    with locked_run_dir(jobs[1].run_dir):
        assert sweep() == 0
    assert statuses() == {1: "done", 3: "done"}
    assert "2 done, 1 waiting" in capfd.readouterr().out


@pytest.fixture
def started(stubbed):
    """``started("sleep", ...)``: a sweep of three jobs in a process; waits until two of them run."""
    processes = []

    def start(*kinds):
        for alpha, kind in enumerate(kinds, 1):
            fault(alpha, kind)
        process = subprocess.Popen(
            [sys.executable, "-m", "hardpix.cli", *words()],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            process_group=0,
        )
        processes.append(process)
        until(lambda: len(list(Path("runs").rglob("run.json"))) == 2)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def until(condition):
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def gone(pids):
    """Whether processes have ended; one that has not been asked for its status yet counts."""

    def state(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "Z"

    return all(state(pid) == "Z" for pid in pids)


def pids():
    return [r.host["pid"] for _, r in runs().values()]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_processes_save_and_end(started, number, status):
    process = started("sleep", "sleep")
    workers = pids()
    if number == signal.SIGINT:  # as a terminal does
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == status
    assert "3 jobs: 2 interrupted, 1 waiting" in said
    assert {r.error for _, r in runs().values()} == {"interrupted"}
    assert gone(workers)


@pytest.mark.slow
def test_a_second_signal_ends_them_at_once(started):
    process = started("deaf sleep", "deaf sleep")
    workers = pids()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.8)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 143
    assert "2 interrupted, 1 waiting" in said
    assert gone(workers)
    assert {look(path).kind for path, _ in runs().values()} == {"interrupted"}


@pytest.mark.slow
def test_processes_end_with_a_sweep_that_is_killed(started):
    process = started("deaf sleep", "deaf sleep")
    workers = pids()
    process.kill()
    process.wait()
    until(lambda: gone(workers))
    assert {look(path).kind for path, _ in runs().values()} == {"interrupted"}
    assert sweep() == 0
    assert statuses() == {1: "done", 2: "done", 3: "done"}


# -- what a worker is given ----------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """``machine(cores, gpus)``: what this machine seems to have."""

    def make(cores, count):
        script = tmp_path / "nvidia-smi"
        script.write_text(
            "#!/bin/sh\n" + "".join(f"echo {i}\n" for i in range(count)) + f"exit {count == 0:d}\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)
        for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)

    return make


@pytest.mark.parametrize(
    ("cores", "count", "launcher", "devices", "threads"),
    [
        (8, 0, ("auto", "auto"), [None] * 8, "1"),
        (8, 0, (3, "auto"), [None] * 3, "2"),
        (2, 0, (3, "auto"), [None] * 3, "1"),
        (8, 2, ("auto", "auto"), ["0", "1"], "4"),
        (8, 2, (4, "auto"), ["0", "1", "0", "1"], "2"),
        (8, 4, ("auto", [1, 3]), ["1", "3"], "4"),
        (8, 4, (2, ["0,1", "2,3"]), ["0,1", "2,3"], "4"),
        (8, 4, (2, []), [None, None], "4"),
    ],
)
def test_devices_and_cores_are_dealt_out(machine, cores, count, launcher, devices, threads):
    machine(cores, count)
    given = environments(*launcher, 100)
    assert [own.get("CUDA_VISIBLE_DEVICES") for own in given] == devices
    assert {own["OMP_NUM_THREADS"] for own in given} == {threads}
    assert {own.get("CUDA_DEVICE_ORDER") for own in given} == {"PCI_BUS_ID" if any(devices) else None}
    assert environments(*launcher, 1) == given[:1]


def test_what_the_user_has_set_holds(machine, monkeypatch):
    machine(8, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-ab")
    given = environments("auto", "auto", 100)
    assert [own["CUDA_VISIBLE_DEVICES"] for own in given] == ["2", "GPU-ab"]
    assert not any({"OMP_NUM_THREADS", "CUDA_DEVICE_ORDER"} & set(own) for own in given)
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert gpus() == ()


@pytest.mark.parametrize(("devices", "expected"), [("auto", ["0,1", "2,3"]), (["4,5"], ["4,5", "4,5"])])
def test_jobs_of_several_gpus_get_as_many(machine, devices, expected):
    machine(8, 4)
    given = environments(2, devices, 100, together=2)
    assert [own["CUDA_VISIBLE_DEVICES"] for own in given] == expected


@pytest.mark.parametrize(
    ("workers", "devices", "said"),
    [
        (-1, "auto", "workers=-1: must be a whole number"),
        (0, "auto", "workers=0: must be a whole number"),
        (1.5, "auto", "workers=1.5: must be a whole number"),
        (True, "auto", "workers=True: must be a whole number"),
        ("two", "auto", "workers=two: must be a whole number"),
        (1, 2, "devices=2: must be auto or a list of GPUs"),
        (1, [True], "devices=[True]: must be auto"),
    ],
)
def test_settings_that_are_wrong_get_one_sentence(workers, devices, said):
    with pytest.raises(ConfigError) as raised:
        environments(workers, devices, 1)
    assert said in str(raised.value)


@pytest.mark.slow
def test_a_command_in_place_of_python_starts_the_processes_of_a_run(tmp_path, monkeypatch):
    """torchrun, with two processes for each run."""
    monkeypatch.chdir(tmp_path)
    python = f"'{sys.executable} -m torch.distributed.run --standalone --nproc_per_node=2'"
    given = [
        "hydra/launcher=pool",
        f"hydra.launcher.python={python}",
        "trainer.devices=2",
        "trainer.strategy=ddp",
    ]
    small = [word for word in TINY if not word.startswith(("trainer.devices", "data.batch_size"))]
    assert main(["sweep", *small, "data.batch_size=2", "seed=0", "study=s", *given]) == 0
    (found,) = [record.read(path.parent) for path in Path("runs/s").glob("*/run.json")]
    assert (found.status, found.factors["trainer.world_size"]) == ("done", 2)
