"""Where results go: places that cannot be written, and names and paths that are hard on a program."""

import errno
import os
import subprocess
import sys
import tempfile
import threading
from datetime import datetime

import pytest

from hardpix import record
from hardpix.cli import main
from hardpix.record import obstacle
from hardpix.train import rundir
from hardpix.train import train as train_module
from hardpix.train.train import train
from hardpix.types import ConfigError
from tests.conftest import TINY

pytestmark = pytest.mark.slow  # whole runs and processes


@pytest.fixture(scope="module")
def trained(tmp_path_factory, composed_tiny):
    runs = tmp_path_factory.mktemp("made") / "runs"
    train(composed_tiny(runs, ("run=a", "trainer.max_steps=1", "panels=0")))
    return runs / "default/a"


@pytest.fixture
def untouched(monkeypatch):
    """No data set may be opened and no checkpoint read."""

    def refuse(*args, **kwargs):
        raise AssertionError("data were read")

    monkeypatch.setattr("hardpix.data.SyntheticRooms.frames", refuse)
    monkeypatch.setattr("torch.load", refuse)


REFUSED = {
    errno.EROFS: "Read-only file system",
    errno.EACCES: "Permission denied",
    errno.EDQUOT: "Disk quota exceeded",
    errno.ENOSPC: "No space left on device",  # a full table of files says so, too
}


def commands(run, out):
    kept = [o for o in TINY if "=" in o]
    return {
        "train": ["train", *kept, f"runs_dir='{out}/runs'", "run=x"],
        "sweep": ["sweep", *kept, f"runs_dir='{out}/runs'", "study=s", "seed=0,1"],
        "evaluate": ["evaluate", run, "--out", f"{out}/scores"],
        "predict": ["predict", run, f"{run}/picture.png", "--out", f"{out}/labels"],
        "export": ["export", run, "--onnx", f"{out}/a.onnx"],
        "table": ["table", run, "--rows", "method", "--out", f"{out}/a.md"],
        "page": ["page", run, "-o", f"{out}/a.html"],
        "figure": ["figure", "thresholds", run, "--out", f"{out}/a.png"],
        "pack": ["data", "pack", "data=synthetic", "--out", f"{out}/packed"],
        "prepare": ["data", "prepare", "camvid", "--from", run, "--to", f"{out}/camvid"],
        "hn-labels": ["data", "hn-labels", "data=synthetic", "--out", f"{out}/labels"],
        "show": ["data", "show", "data=synthetic", "--out", f"{out}/a.png"],
    }  # fmt: skip


ALL = sorted(commands("", ""))


def picture(run):
    from PIL import Image

    Image.new("RGB", (48, 32)).save(run / "picture.png")


@pytest.mark.parametrize("number", REFUSED)
@pytest.mark.parametrize("name", ALL)
def test_a_place_that_refuses_is_told_before_data_are_read(
    trained, tmp_path, monkeypatch, capsys, untouched, name, number
):
    if name == "export":
        pytest.importorskip("onnxruntime")
    picture(trained)
    out = tmp_path / "out"
    out.mkdir()

    def refuse(*args, dir=None, **kwargs):
        raise OSError(number, REFUSED[number], str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr("hardpix.train.results.TemporaryFile", refuse)
    assert main(commands(str(trained), str(out))[name]) == 2
    said = capsys.readouterr().err
    assert str(out) in said
    assert REFUSED[number].casefold() in said.casefold() or os.strerror(number) in said
    assert said.count("\n") == 1
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", ALL)
def test_a_file_in_the_place_of_a_folder(trained, tmp_path, capsys, untouched, name):
    if name == "export":
        pytest.importorskip("onnxruntime")
    picture(trained)
    (tmp_path / "out").write_text("taken")
    assert main(commands(str(trained), str(tmp_path / "out"))[name]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "out") in said
    assert said.count("\n") == 1
    assert (tmp_path / "out").read_text() == "taken"


def test_a_disk_that_is_read_only(tmp_path, capsys):
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", place], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no right to mount")
    try:
        assert "cannot be written (Read-only file system)" in obstacle(place / "a", folder=True)
        assert main(["train", *TINY, f"runs_dir='{place}/runs'", "run=x"]) == 2
        assert f"{place} cannot be written (Read-only file system)" in capsys.readouterr().err
        subprocess.run(["mount", "-o", "remount,rw,nr_inodes=2", place], check=True)
        (place / "last").touch()
        assert "cannot be written (No space left on device)" in obstacle(place / "a", folder=True)
    finally:
        subprocess.run(["umount", place], check=True)


def test_what_can_be_written_is_no_obstacle(tmp_path):
    assert obstacle(tmp_path, folder=True) is None
    assert obstacle(tmp_path / "a/b/c", folder=True) is None
    assert obstacle(tmp_path / "a/b/c.txt", folder=False) is None
    (tmp_path / "old.txt").touch()
    assert obstacle(tmp_path / "old.txt", folder=False) is None
    assert obstacle(tmp_path / "old.txt", folder=True) == f"{tmp_path}/old.txt is a file"
    assert obstacle(tmp_path, folder=False) == f"{tmp_path} is a folder"
    assert obstacle(tmp_path / "old.txt/under", folder=False) == f"{tmp_path}/old.txt is a file"
    assert list(tmp_path.iterdir()) == [tmp_path / "old.txt"]


def test_a_relative_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert obstacle("runs/x", folder=True) is None
    assert obstacle("a.txt", folder=False) is None


# Names


class Frozen(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, 29, 2, 30, 0, tzinfo=tz)  # an hour that a summer time leaves out


def test_twenty_starts_in_one_second_are_twenty_directories(tiny, monkeypatch):
    monkeypatch.setattr(rundir, "datetime", Frozen)
    cfg, found, ready = tiny(), [], threading.Barrier(20)

    def start():
        ready.wait()
        run_dir = rundir.choose_run_dir(cfg, ["seed=1"])
        with rundir.writing_run_dir(run_dir):
            found.append(run_dir)

    threads = [threading.Thread(target=start) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 20
    assert all(path.is_dir() for path in found)


def digits(monkeypatch, *given):
    """What comes instead of random digits."""
    left = list(given)
    monkeypatch.setattr(rundir, "datetime", Frozen)
    monkeypatch.setattr(rundir, "_random_suffix", lambda: left.pop(0))
    return left


def test_a_name_that_is_taken_is_not_chosen(tiny, monkeypatch):
    left, cfg = digits(monkeypatch, "0000", "0000", "0000", "1111"), tiny()
    first = rundir.choose_run_dir(cfg, ["seed=1"])
    assert rundir.make_run_dir(first, new=True)
    assert not rundir.make_run_dir(first, new=True)
    second = rundir.choose_run_dir(cfg, ["seed=1"])
    assert (first.name[-4:], second.name[-4:], left) == ("0000", "1111", [])
    assert rundir.make_run_dir(first)


@pytest.mark.slow
def test_of_two_that_take_one_name_at_once_the_second_chooses_another(tiny, monkeypatch):
    """The second one chooses while the first is not there yet, and finds it when it comes to write."""
    left, others = digits(monkeypatch, "0000", "0000", "1111"), []
    inner = train_module._assemble

    def meanwhile(cfg, run_dir, *args):
        if not others:
            others.append(run_dir)
            others.append(train_module.train(tiny("panels=0")))
        return inner(cfg, run_dir, *args)

    monkeypatch.setattr(train_module, "_assemble", meanwhile)
    done = train_module.train(tiny("panels=0"))
    assert (done.status, others[1].status, left) == ("done", "done", [])
    runs = sorted(path.parent.name[-4:] for path in others[0].parent.glob("*/run.json"))
    assert runs == ["0000", "1111"]
    assert done.run_id != others[1].run_id


def test_of_twenty_processes_with_one_name_one_has_it(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from hardpix.train.rundir import locked_run_dir\n"
        "with locked_run_dir(Path(sys.argv[1])) as free:\n"
        "    print('first' if free else 'refused', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdin=-1, stdout=-1, text=True)
        for _ in range(20)
    ]
    said = [process.stdout.readline().strip() for process in started]
    for process in started:
        process.communicate("")
    assert sorted(said) == ["first"] + ["refused"] * 19


def test_a_clock_that_goes_backwards_changes_nothing(tiny, tmp_path, monkeypatch):
    """The record of the first leg is from the future of the second."""
    settings = ("run=a", "trainer.max_steps=2", "scheduler=constant", "panels=0")
    first = train(tiny(*settings))
    monkeypatch.setattr(rundir, "datetime", Frozen)
    second = train(tiny("run=a", "trainer.max_steps=4", "scheduler=constant", "panels=0", "resume=true"))
    assert second.started == first.started
    assert second.metrics["run/steps"] == 4
    assert second.metrics["run/seconds"] > first.metrics["run/seconds"] >= 0


HARD = {
    "spaces": "my runs (2026)",
    "umlauts": "Läufe größer",
    "emoji": "runs 🪑 部屋",
    "quotes": 'it\'s "x" & $HOME; #1',
    "long": "d" * 200,
    "decomposed": "a\u0308 e\u0301",
}


@pytest.mark.parametrize("name", HARD)
def test_a_run_lives_in_any_folder(tiny, tmp_path, capsys, name):
    """Train, go on, score, compare, draw."""
    place = tmp_path / HARD[name]
    place.mkdir()

    def cfg(steps):
        made = tiny("run=a", f"trainer.max_steps={steps}", "scheduler=constant", "panels=1", "resume=true")
        made.runs_dir = str(place / "runs")
        return made

    train(cfg(1))
    done = train(cfg(2))
    assert done.metrics["run/steps"] == 2
    run = place / "runs/default/a"
    assert main(["evaluate", str(run), "--split", "val"]) == 0
    assert main(["table", str(place / "runs"), "--rows", "method", "--out", str(place / "t.md")]) == 0
    assert main(["page", str(place / "runs"), "-o", str(place / "r.html"), "--no-explorer"]) == 0
    assert (place / "t.md").stat().st_size > 0
    assert (place / "r.html").stat().st_size > 0
    assert record.read(run).status == "done"


@pytest.mark.parametrize("run", ["ünï 🪑", "n" * 200, "a=b,c"])
def test_a_run_of_any_name(tiny, tmp_path, run):
    made = tiny("trainer.max_steps=1", "panels=0")
    made.run = run
    assert train(made).status == "done"
    assert record.read(tmp_path / "runs/default" / run).name == run


def test_a_name_too_long_for_the_disk_is_told_at_once(tiny, untouched):
    made = tiny("trainer.max_steps=1")
    made.run = "n" * 300
    with pytest.raises(ConfigError, match=r"File name too long"):
        train(made)


def test_the_temporary_file_of_the_trial_is_gone(tmp_path):
    assert record.obstacle(tmp_path / "new/folder", folder=True) is None
    assert list(tmp_path.iterdir()) == []
