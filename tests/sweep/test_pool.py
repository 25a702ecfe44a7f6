"""A study on worker processes: what each gets, what becomes of it when it dies, and that none is left over."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hardpix import record
from hardpix.cli import main
from hardpix.sweep import launchers
from hardpix.sweep.execute import command
from hardpix.sweep.jobs import jobs_of, look
from hardpix.sweep.launchers import environments, gpus
from hardpix.sweep.study import HERE, Launcher, read_launcher, read_study
from hardpix.train.rundir import LAST, held
from hardpix.train.train import inspect
from hardpix.types import ConfigError

# A worker whose training is a stub: it does what the first file of faults/ALPHA.* says, and starts without torch.
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
from hardpix.sweep import execute as process
process.settle = process._clean_up = lambda: None
from hardpix.sweep.worker import main
sys.exit(main(int(sys.argv[1])))
"""


@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stub_worker.py").write_text(STUB)
    (tmp_path / "faults").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(launchers, "WORKER", "stub_worker")
    monkeypatch.setattr("hardpix.train.cost.code_versions", dict)
    return tmp_path


def sweep(*words, alphas="1,2,3", workers="2"):
    return main(["sweep", "method=hardness", f"method.alpha={alphas}", "--workers", workers, *words])


def fault(alpha, *kinds):
    for number, kind in enumerate(kinds):
        Path(f"faults/{alpha}.{number}").write_text(kind)


def runs():
    found = {p.parent: record.read(p.parent) for p in Path("runs").rglob("run.json")}
    return {r.factors.get("alpha", r.factors.get("method.alpha")): (p, r) for p, r in found.items()}


def statuses():
    return {alpha: r.status for alpha, (_, r) in sorted(runs().items())}


def begun(said):
    return [int(line.split()[1]) for line in said.splitlines() if "; worker" in line]


@pytest.mark.slow
def test_workers_share_the_jobs_in_their_order(stubbed, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(7), raising=False)
    assert sweep(alphas="1,2,3,4,5") == 0
    said = capfd.readouterr().out
    assert begun(said) == [1, 2, 3, 4, 5]
    assert "job 3 of 5: alpha=3 done, val/miou 30.00 %, test 50.00 %" in said
    assert "5 jobs: 5 done" in said
    assert "the stub trains" not in said
    path, found = runs()[1]
    assert "the stub trains\na library complains\n" in (path / "output.log").read_text()
    assert len({r.host["pid"] for _, r in runs().values()}) == 2
    assert str(os.getpid()) not in {r.host["pid"] for _, r in runs().values()}
    assert found.host["OMP_NUM_THREADS"] == "3"
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*")}
    assert sweep(alphas="1,2,3,4,5") == 0
    assert "5 jobs: 5 done (5 before)" in capfd.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("signal 9", "worker killed by signal 9"),
        ("signal 11", "worker killed by signal 11"),
        ("exit", "worker ended with status 9"),
        ("early signal 9", "worker killed by signal 9"),
    ],
)
def test_a_worker_that_dies_costs_its_job_alone(stubbed, capfd, kind, error):
    fault(2, kind)
    assert sweep(alphas="1,2,3,4") == 1
    said = capfd.readouterr()
    assert statuses() == {1: "done", 2: "failed", 3: "done", 4: "done"}
    path, found = runs()[2]
    assert found.error == error
    assert f"failed       alpha=2: {error} ({path}/error.txt)" in said.out
    assert begun(said.out) == [1, 2, 3, 4]
    trace = (path / "error.txt").read_text()
    assert trace.startswith(error)
    assert "a library complains" in trace
    assert ("Segmentation fault" in trace) == ("11" in kind)
    assert sweep(alphas="1,2,3,4") == 0
    assert (runs()[2][0], runs()[2][1].started) == (path, "False")
    assert not (path / "error.txt").exists()


@pytest.mark.slow
def test_what_was_killed_goes_on_from_its_checkpoint_and_what_failed_starts_afresh(stubbed):
    fault(1, "checkpoint signal 9")
    fault(2, "checkpoint raise")
    assert sweep(alphas="1,2") == 1
    jobs, _ = jobs_of(read_study(["method=hardness", "method.alpha=1,2"]))
    lines = [command(job, look(job.run_dir)) for job in jobs]
    assert lines[0].startswith("hardpix train ")
    assert lines[0].endswith(" resume=true")
    removal, _, rest = lines[1].partition(" && ")
    assert rest.startswith("hardpix train ")
    assert "resume" not in rest
    with pytest.raises(ConfigError, match="already holds a run"):
        inspect(jobs[1].run_dir, jobs[1].config())
    subprocess.run(removal, shell=True, check=True)
    assert inspect(jobs[1].run_dir, jobs[1].config()) is None
    assert sweep(alphas="1,2") == 0
    assert {alpha: r.started for alpha, (_, r) in runs().items()} == {1: "True", 2: "False"}
    assert (runs()[1][0] / LAST).exists()
    assert not (runs()[2][0] / LAST).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on_error", "status", "expected"),
    [
        ("retry", 0, {1: "done", 2: "done", 3: "done"}),
        ("continue", 1, {1: "failed", 2: "failed", 3: "done"}),
        ("stop", 1, {1: "failed"}),
    ],
)
def test_what_an_error_does_to_the_others(stubbed, capfd, on_error, status, expected):
    fault(1, "raise")
    fault(2, "checkpoint signal 9")
    workers = "1" if on_error == "stop" else "2"
    assert sweep("--on-error", on_error, workers=workers) == status
    assert statuses() == expected
    assert ("2 waiting" in capfd.readouterr().out) == (on_error == "stop")
    if on_error == "retry":
        assert runs()[2][1].started == "True"
    elif on_error == "continue":
        assert "Traceback" in (runs()[1][0] / "error.txt").read_text()


@pytest.mark.slow
def test_a_retry_that_fails_again_is_the_last(stubbed):
    fault(1, "raise", "signal 9", "raise")
    assert sweep("--on-error", "retry") == 1
    assert statuses() == {1: "failed", 2: "done", 3: "done"}
    assert len(list(Path("faults").iterdir())) == 1


@pytest.mark.slow
def test_a_job_that_another_sweep_has_is_left_to_it(stubbed, capfd):
    jobs, _ = jobs_of(read_study(["method=hardness", "method.alpha=1,2,3"]))
    with held(jobs[1].run_dir):
        assert sweep() == 0
    assert statuses() == {1: "done", 3: "done"}
    said = capfd.readouterr().out
    assert "job 2 of 3: alpha=2 (leave: running: another sweep on this machine has it)" in said
    assert "2 done, 1 running" in said


@pytest.mark.slow
def test_workers_that_cannot_begin_end_the_sweep(stubbed, capfd):
    Path("stub_worker.py").write_text("raise SystemExit(5)")
    assert sweep() == 2
    said = capfd.readouterr()
    assert "3 workers in a row could not begin (the last ended with status 5)" in said.err


PROGRAM = (
    "import sys; from hardpix.sweep import launchers as pool; pool.WORKER = 'stub_worker'; "
    "from hardpix.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def started(stubbed):
    """``started("sleep", ...)``: a sweep of three jobs in a process; waits until two of them run."""
    processes = []

    def start(*kinds):
        for alpha, kind in enumerate(kinds, 1):
            fault(alpha, kind)
        words = ["sweep", "method=hardness", "method.alpha=1,2,3", "--workers", "2"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(stubbed), *sys.path])}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
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
    limit = time.monotonic() + 60
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
def test_a_signal_lets_the_workers_save_and_end(started, number, status):
    process = started("sleep", "sleep")
    workers = pids()
    if number == signal.SIGINT:  # as a terminal does
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == status
    assert "3 jobs: 2 interrupted, 1 waiting" in said
    assert {r.error for _, r in runs().values()} == {"interrupted"}
    assert gone(workers)


@pytest.mark.slow
def test_a_second_signal_ends_them_at_once(started):
    process = started("deaf sleep", "deaf sleep")
    workers = pids()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 143
    assert "2 interrupted, 1 waiting" in said
    assert gone(workers)
    assert statuses() == {1: "interrupted", 2: "interrupted"}
    assert {look(path).kind for path, _ in runs().values()} == {"interrupted"}


@pytest.mark.slow
def test_workers_end_with_a_sweep_that_is_killed(started):
    process = started("deaf sleep", "deaf sleep")
    workers = pids()
    process.kill()
    process.wait()
    until(lambda: gone(workers))
    assert {look(path).kind for path, _ in runs().values()} == {"interrupted"}
    assert sweep() == 0
    assert statuses() == {1: "done", 2: "done", 3: "done"}


@pytest.mark.slow
def test_a_worker_that_is_asked_to_end_leaves_its_job_for_later(started):
    process = started("sleep", "sleep")
    for pid in pids():
        os.kill(int(pid), signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "1 done, 2 interrupted" in said


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
        (8, 0, Launcher("auto"), [None] * 8, "1"),
        (8, 0, Launcher(3), [None] * 3, "2"),
        (2, 0, Launcher(3), [None] * 3, "1"),
        (8, 2, Launcher("auto"), ["0", "1"], "4"),
        (8, 2, Launcher(4), ["0", "1", "0", "1"], "2"),
        (8, 4, Launcher("auto", ("1", "3")), ["1", "3"], "4"),
        (8, 4, Launcher(2, ("0,1", "2,3")), ["0,1", "2,3"], "4"),
        (8, 4, Launcher(2, ()), [None, None], "4"),
    ],
)
def test_devices_and_cores_are_dealt_out(machine, cores, count, launcher, devices, threads):
    machine(cores, count)
    given = environments(launcher, 100)
    assert [own.get("CUDA_VISIBLE_DEVICES") for own in given] == devices
    assert {own["OMP_NUM_THREADS"] for own in given} == {threads}
    assert {own.get("CUDA_DEVICE_ORDER") for own in given} == {"PCI_BUS_ID" if any(devices) else None}
    assert environments(launcher, 1) == given[:1]


def test_what_the_user_has_set_holds(machine, monkeypatch):
    machine(8, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-ab")
    given = environments(Launcher("auto"), 100)
    assert [own["CUDA_VISIBLE_DEVICES"] for own in given] == ["2", "GPU-ab"]
    assert not any({"OMP_NUM_THREADS", "CUDA_DEVICE_ORDER"} & set(own) for own in given)
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert gpus() == ()


def test_a_study_says_where_it_runs(tmp_path):
    assert read_launcher(None, "") == HERE
    assert read_launcher({"workers": "4"}, "") == Launcher(4)
    assert read_launcher({"devices": [0, "1,2"]}, "") == Launcher("auto", ("0", "1,2"))
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/s.yaml").write_text("axes: {seed: [0]}\nlauncher: {workers: 3, devices: [1]}")
    assert read_study(["s"], tmp_path).launcher == Launcher(3, ("1",))


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("slurmm", "launcher=slurmm: must be a mapping"),
        ({"worker": 2}, "must be a mapping with some of workers, devices"),
        ({"workers": -1}, "workers=-1: must be a whole number"),
        ({"workers": 1.5}, "workers=1.5: must be a whole number"),
        ({"workers": True}, "workers=True: must be a whole number"),
        ({"workers": "two"}, "workers=two: must be a whole number"),
        ({"devices": 2}, "devices=2: must be auto or a list of GPUs"),
        ({"devices": [True]}, "devices=[True]: must be auto"),
    ],
)
def test_a_launcher_that_is_wrong_gets_one_sentence(node, said):
    with pytest.raises(ConfigError) as raised:
        read_launcher(node, "s.yaml: ")
    assert str(raised.value).startswith("s.yaml: ")
    assert said in str(raised.value)


@pytest.mark.slow
def test_a_pool_shows_in_the_status(stubbed, started, capfd):
    started("sleep", "sleep")
    assert main(["sweep", "status", "method=hardness", "method.alpha=1,2,3"]) == 0
    assert "2 running, 1 waiting" in capfd.readouterr().out
