"""A run in W&B: the offline file, read back record by record, says what metrics.csv and run.json say."""

import contextlib
import csv
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hardpix import record
from hardpix.train.loggers import Identity, build_loggers
from hardpix.train.train import train
from hardpix.train.wandb import answers
from hardpix.types import ConfigError

wandb = pytest.importorskip("wandb")

CANARY = "canary0123456789abcdef0123456789abcdef01"
OFFLINE = ("logger=default", "logger.wandb=offline")


def csv_rows(run_dir):
    with open(run_dir / "metrics.csv", newline="") as file:
        return {
            int(row.pop("step")): {k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)
        }


def numbers(rows):
    return {step: {k: float(v) for k, v in row.items()} for step, row in rows.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, composed_tiny):
    """One run with a canary for a key, in the environment and in a netrc file, and where it lies."""
    folder = tmp_path_factory.mktemp("wandb")
    (folder / "netrc").write_text(f"machine api.wandb.ai login user password {CANARY[::-1]}\n")
    (folder / "netrc").chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", CANARY)
        patch.setenv("NETRC", str(folder / "netrc"))
        patch.delenv("WANDB_SWEEP_ID", raising=False)
        cfg = composed_tiny(folder / "runs", ["run=a", "method=hardness", "logger.tags=[mine]", *OFFLINE])
        done = train(cfg, [])
    return folder / "runs/default/a", done


@pytest.mark.slow
def test_the_rows_are_those_of_the_csv_file(trained, offline):
    run_dir, _ = trained
    rows = csv_rows(run_dir)
    assert len(rows) >= 4
    assert numbers(offline(run_dir).scalars()) == rows


def test_who_the_run_is(trained, offline):
    run_dir, done = trained
    run = offline(run_dir).run
    assert (run.run_id, run.display_name, run.run_group, run.job_type) == (
        done.run_id,
        "a",
        "default",
        "train",
    )
    assert list(run.tags) == ["HardnessLevel", "synthetic", "test_resnet", "FCNHead", "mine"]
    assert run.project == "hardpix"


def test_the_configuration_is_the_records_with_the_code(trained, offline):
    run_dir, done = trained
    found = dict(offline(run_dir).config)
    found.pop("_wandb", None)
    code = found.pop("code")
    assert code == done.code
    found.pop("axes", None)
    assert record.flatten(found) == done.factors


def test_the_summary_is_that_of_the_record(trained, offline):
    run_dir, done = trained
    found = offline(run_dir)
    for key, value in done.metrics.items():
        told = found.summary[key]
        assert float(told) == value or (value != value and float(told) != float(told)), key
    assert {"test/miou", "cost/step_seconds", "cost/parameters_train", "run/seconds"} <= done.metrics.keys()
    assert (found.summary["status"], found.exit_code) == ("done", 0)


def test_the_per_class_table_and_the_pictures_are_there(trained, offline):
    run_dir, _ = trained
    found = offline(run_dir)
    (last,) = [row for row in found.rows.values() if "per_class" in row]
    files = found.path.parent / "files"
    table = json.loads((files / last["per_class"]["path"]).read_text())
    with open(run_dir / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert table["columns"] == list(rows[0])
    for ours, theirs in zip(rows, table["data"], strict=True):
        assert ours["class"] == theirs[0]
        assert float(ours["pixels"]) == theirs[table["columns"].index("pixels")]
    shown = [key for key in last if key.startswith("panels/")]
    assert len(shown) == 1
    assert (files / last[shown[0]]["path"]).stat().st_size > 0
    assert found.summary[f"per_class/iou/{rows[0]['class']}"] == pytest.approx(
        float(rows[0]["iou"]), nan_ok=True
    )


def test_no_key_and_nothing_of_the_machine_is_written(trained):
    run_dir, _ = trained
    files = [path for path in run_dir.parent.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for secret in (CANARY, CANARY[::-1]):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
    names = {path.name for path in files}
    assert not names & {"wandb-metadata.json", "requirements.txt", "output.log", "diff.patch"}


@pytest.mark.slow
def test_a_resumed_run_is_one_run(tiny, tmp_path, offline):
    """The second leg's file has the rows of the first, without those that were trained again."""
    common = ("run=a", "scheduler=constant", "callbacks.checkpoint_every_steps=3", "panels=0", *OFFLINE)
    from hardpix.train.resume import LastCheckpoint

    run_dir = tmp_path / "runs/default/a"
    with pytest.MonkeyPatch.context() as patch:
        end = LastCheckpoint.on_train_batch_end

        def stop(self, trainer, *rest):
            end(self, trainer, *rest)
            if trainer.global_step == 5:
                raise KeyboardInterrupt

        patch.setattr(LastCheckpoint, "on_train_batch_end", stop)
        with pytest.raises(SystemExit):
            train(tiny(*common, "trainer.max_steps=8"), [])
    first = offline(run_dir)
    assert (first.exit_code, first.summary["status"]) == (255, "interrupted")
    assert max(first.rows) >= 3
    done = train(tiny(*common, "trainer.max_steps=8", "resume=true"), [])
    found = offline(run_dir)  # one file
    assert found.run.run_id == first.run.run_id == done.run_id
    rows = csv_rows(run_dir)
    assert set(range(8)) <= rows.keys()
    assert numbers(found.scalars()) == rows


def test_a_run_of_a_sweeps_agent_has_the_agents_name(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    options = {"run_dir": tmp_path, "config": {}, "resume_step": None, "wandb": "offline", "tags": []}
    options |= {"project": "p", "entity": None}
    assert build_loggers(identity=Identity("ours", "n", "s", "train"), **options)[1].version == "ours"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert build_loggers(identity=Identity("ours", "n", "s", "train"), **options)[1].version == "theirs"


@pytest.mark.slow
def test_a_fault_of_wandb_ends_no_run(tiny, tmp_path, monkeypatch, capsys):
    calls = []

    def log(self, *args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("the service is gone")

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", log)
    done = train(tiny("run=a", *OFFLINE), [])
    assert (done.status, len(calls)) == ("done", 3)
    assert "W&B: the service is gone" in capsys.readouterr().out
    assert set(range(4)) <= csv_rows(tmp_path / "runs/default/a").keys()
    assert wandb.run is None  # the next run of this process would go on in it


def test_a_server_that_answers_or_does_not():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        begin = time.monotonic()
        assert not answers(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2)
        assert time.monotonic() - begin < 2
    assert not answers("http://127.0.0.1:9")
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as refusing:

        def serve():
            connection = refusing.accept()[0]
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.close()

        threading.Thread(target=serve, daemon=True).start()
        assert answers(f"http://127.0.0.1:{refusing.getsockname()[1]}", 5)


UNREACHABLE = """
import sys, time
sys.path.insert(0, {tests!r})
from tests_conftest import compose_tiny
from hardpix.train import loggers as tracking
from hardpix.train import loggers
spent = dict()
def timed(name, call):
    def run(*a, **k):
        begin = time.monotonic()
        try:
            return call(*a, **k)
        finally:
            spent[name] = time.monotonic() - begin
    return run
tracking.connect, tracking.close = timed("connect", tracking.connect), timed("close", tracking.close)
from hardpix.train.train import train
from hardpix.types import ConfigError
done = train(compose_tiny("runs", ["run=a", "logger=default", "logger.wandb=online", "panels=0"]), [])
print("SPENT", done.status, spent["connect"], spent["close"])
from hardpix.train.wandb import BackgroundCalls as Errands
Errands._former.join(60)  # on a busy machine the file is not whole yet when the run's patience is over
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refuses", "silent", "hangs"])
def test_a_server_that_is_not_there_costs_seconds(tmp_path, kind, offline):
    """Refused at once; accepted and never answered; answered once and never again."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = 9 if kind == "refuses" else server.getsockname()[1]

        def serve():
            kept = []
            with contextlib.suppress(OSError):
                while True:
                    connection = server.accept()[0]
                    kept.append(connection)
                    if kind == "hangs" and len(kept) == 1 and connection.recv(4096):
                        connection.sendall(
                            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                        )
                        connection.close()

        threading.Thread(target=serve, daemon=True).start()
        env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        env |= {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": CANARY}
        code = UNREACHABLE.format(tests=str(tmp_path))
        (tmp_path / "tests_conftest.py").write_text((Path(__file__).parents[1] / "conftest.py").read_text())
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True,
                              timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    line = next(line.split() for line in done.stdout.splitlines() if line.startswith("SPENT"))
    print(kind, line)
    assert line[1] == "done"
    assert float(line[2]) + float(line[3]) < 6
    assert "training goes on" in done.stdout
    run_dir = tmp_path / "runs/default/a"
    assert set(range(4)) <= csv_rows(run_dir).keys()
    assert numbers(offline(run_dir).scalars()) == csv_rows(run_dir)
    assert [
        p for p in (tmp_path / "runs").rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()
    ] == []


@pytest.mark.parametrize("mode", ["auto", "offline"])
def test_wandb_mode_disabled_starts_nothing(tiny, tmp_path, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setitem(sys.modules, "wandb", None)  # it need not even be installed
    train(tiny("run=a", "logger=default", f"logger.wandb={mode}", "panels=0"), [])
    assert not (tmp_path / "runs/default/a/wandb").exists()


def test_a_run_that_must_be_online_and_a_disabled_wandb_contradict(tiny, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    with pytest.raises(ConfigError, match=r"logger\.wandb=online: WANDB_MODE=disabled .*unset WANDB_MODE"):
        train(tiny("run=a", "logger=default", "logger.wandb=online"), [])
