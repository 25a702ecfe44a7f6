"""One writer per run directory."""

import os
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf

from hardpix.train import rundir
from hardpix.train.rundir import lock_owner, locked_run_dir, writing_run_dir
from hardpix.train.train import train
from hardpix.types import ConfigError

HOLD = """
import sys, time
from pathlib import Path
from hardpix.train.rundir import locked_run_dir
with locked_run_dir(Path(sys.argv[1])) as free:
    print(free, flush=True)
    time.sleep(float(sys.argv[2]) * free)
"""


def start(run_dir, seconds):
    words = [sys.executable, "-c", HOLD, str(run_dir), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_a_second_process_is_told_whose_it_is_and_a_dead_one_counts_no_more(tiny, tmp_path):
    run_dir = tmp_path / "runs/default/a"
    other = start(run_dir, 60)
    try:
        assert other.stdout.readline() == "True\n"
        with locked_run_dir(run_dir) as free:
            assert not free
        begin = time.monotonic()
        with (
            pytest.raises(ConfigError, match=rf"process {other.pid} on \S+ is writing here"),
            writing_run_dir(run_dir),
        ):
            pytest.fail("two writers")
        assert time.monotonic() - begin < 1
        with pytest.raises(ConfigError, match=rf"process {other.pid} on "):
            train(tiny("run=a"), [])
        assert not (run_dir / "run.json").exists()
    finally:
        other.kill()
        other.communicate()
    with locked_run_dir(run_dir) as free:
        assert free
        assert lock_owner(run_dir).startswith(f"process {os.getpid()} on ")


def test_of_many_at_once_one_has_it(tmp_path):
    processes = [start(tmp_path / "a", 60) for _ in range(6)]
    said = [process.stdout.readline() for process in processes]
    for process in processes:
        process.kill()
        process.communicate()
    assert sorted(said) == ["False\n"] * 5 + ["True\n"]


def test_the_process_that_has_it_may_ask_again(tmp_path):
    with locked_run_dir(tmp_path) as free, locked_run_dir(tmp_path) as again:
        assert (free, again) == (True, True)
    assert not rundir._held
    other = start(tmp_path, 0)
    assert other.communicate()[0] == "True\n"


def test_without_locks_of_the_system_the_file_decides(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(fcntl, "lockf", lambda *a: (_ for _ in ()).throw(OSError(38, "not implemented")))
    host = os.uname().nodename
    for content, expected in (
        (f"{os.getppid()} {host}\n", False),
        (f"{2**22 - 1} {host}\n", True),
        ("17 elsewhere\n", False),
        ("", True),
    ):
        (tmp_path / ".lock").write_text(content)
        with locked_run_dir(tmp_path) as free:
            assert free == expected, content


def test_keys_that_an_older_configuration_lacks_are_added_as_conf_has_them(tiny, tmp_path):
    cfg = tiny("run=a")
    older = OmegaConf.to_container(cfg, resolve=True)
    for group, keys in {"trainer": ("nan", "max_skip"), "data": ("on_error", "max_skip", "labeled")}.items():
        for key in keys:
            del older[group][key]
    del older["parent"], older["freeze"]
    rundir.write_config(tmp_path, OmegaConf.create(older))
    assert rundir.plain(rundir.read_config(tmp_path)) == rundir.plain(cfg)
