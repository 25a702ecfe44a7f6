"""Checkpoints on disk: in which order they are written, which one is taken, what is said of a damaged one."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hardpix import record
from hardpix.train import resume
from hardpix.train.checkpoint import (
    AtomicCheckpointIO,
    manifest,
    newest,
    problem,
    read_checkpoint,
    save,
    sha256,
)
from hardpix.types import HardpixError

ON = SimpleNamespace(resume="auto")


def state(step):
    return {"state_dict": {"weight": torch.full((1000,), float(step))}, "global_step": step}


@pytest.fixture
def run_dir(tmp_path):
    """A run that has saved steps 1 and 2."""
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint(state(step), tmp_path / "checkpoints/last.ckpt")
    return tmp_path


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_last_and_the_one_before_are_kept_and_listed(run_dir):
    folder = run_dir / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["last.ckpt", "manifest.json", "previous.ckpt"]
    assert (step_of(folder / "last.ckpt"), step_of(folder / "previous.ckpt")) == (2, 1)
    listed = manifest(folder)
    for name, step in (("last.ckpt", 2), ("previous.ckpt", 1)):
        path = folder / name
        assert listed[name] == {"sha256": sha256(path), "bytes": path.stat().st_size, "step": step}
    assert resume.checkpoint(run_dir, ON) == folder / "last.ckpt"


def test_the_order_of_writing_survives_a_power_cut(tmp_path, monkeypatch):
    """Content before name, name before list: file, rename, folder, then the same for the list."""
    calls = []
    inner = {name: getattr(os, name) for name in ("fsync", "replace", "link")}

    def fsync(handle):
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        inner["fsync"](handle)

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("replace", "link"):
        monkeypatch.setattr(
            os,
            name,
            lambda a, b, name=name: (calls.append((name, Path(a), Path(b))), inner[name](a, b)),
        )
    path = tmp_path / "checkpoints/last.ckpt"
    save(state(1), path)
    (_, file), (_, source, target), (_, folder), (_, list_file), (_, _, listing), (_, again) = calls
    assert [call[0] for call in calls] == ["fsync", "replace", "fsync"] * 2
    assert file == source.name != path.name
    assert source.parent == path.parent  # another folder may be another disk, where a rename is a copy
    assert (target, folder, again) == (path, "checkpoints", "checkpoints")
    assert listing == path.with_name("manifest.json")
    assert list_file.startswith(".manifest")


def test_a_damaged_last_gives_way_to_the_one_before(run_dir, capsys):
    last = run_dir / "checkpoints/last.ckpt"
    damage(last)
    assert newest(run_dir).name == "previous.ckpt"
    assert resume.checkpoint(run_dir, ON) == last
    assert "last.ckpt is damaged or was not finished" in capsys.readouterr().out
    assert step_of(last) == 1
    assert manifest(run_dir / "checkpoints").keys() == {"last.ckpt"}
    assert problem(last) is None
    assert newest(run_dir) == last


@pytest.mark.parametrize("stop", ["list", "rename"])
def test_a_stop_while_saving_leaves_a_checkpoint_that_is_listed(run_dir, monkeypatch, stop):
    last = run_dir / "checkpoints/last.ckpt"
    if stop == "list":
        monkeypatch.setattr(record, "write_text", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "full")))
    else:
        inner = os.replace
        monkeypatch.setattr(
            os,
            "replace",
            lambda a, b: (_ for _ in ()).throw(OSError(28, "full")) if Path(b) == last else inner(a, b),
        )
    with pytest.raises(OSError, match="full"):
        save(state(3), last)
    monkeypatch.undo()
    assert step_of(newest(run_dir)) == 2
    assert step_of(resume.checkpoint(run_dir, ON)) == 2
    save(state(3), last)
    assert (step_of(last), step_of(last.with_name("previous.ckpt"))) == (3, 2)
    damage(last)
    assert step_of(newest(run_dir)) == 2


def test_a_stop_between_the_two_names_leaves_nothing_behind(run_dir):
    """Then both names are the same file, and the system renames no file to itself."""
    last = run_dir / "checkpoints/last.ckpt"
    last.with_name("previous.ckpt").unlink()
    os.link(last, last.with_name("previous.ckpt"))
    save(state(3), last)
    assert sorted(p.name for p in last.parent.iterdir()) == ["last.ckpt", "manifest.json", "previous.ckpt"]
    assert (step_of(last), step_of(last.with_name("previous.ckpt"))) == (3, 2)


def test_where_none_is_whole_nothing_is_taken(run_dir):
    for name in ("last", "previous"):
        damage(run_dir / f"checkpoints/{name}.ckpt")
    with pytest.raises(HardpixError, match=r"no checkpoint is complete \(last\.ckpt, previous\.ckpt\)"):
        resume.checkpoint(run_dir, ON)


def test_damaged_weights_are_not_loaded(run_dir):
    last = run_dir / "checkpoints/last.ckpt"
    damage(last)
    with pytest.raises(
        HardpixError, match=r"last\.ckpt is damaged: its sha256 is not the one in manifest\.json"
    ):
        read_checkpoint(last)
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(HardpixError, match=r"it has 100 bytes, and \d+ were written"):
        read_checkpoint(last)


def test_the_first_one_may_not_be_listed_yet(tmp_path):
    """Others are, and it has its name, which it gets when it is whole."""
    save(state(9), tmp_path / "checkpoints/best.ckpt")
    torch.save(state(1), tmp_path / "checkpoints/last.ckpt")
    assert step_of(resume.checkpoint(tmp_path, ON)) == 1


def test_a_run_without_a_list_is_taken_as_it_is(run_dir):
    (run_dir / "checkpoints/manifest.json").unlink()
    assert newest(run_dir).name == "last.ckpt"
    assert read_checkpoint(newest(run_dir))["global_step"] == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"last.ckpt": 3}', "\x00"])
def test_a_list_that_is_none_is_told(run_dir, content):
    (run_dir / "checkpoints/manifest.json").write_text(content)
    with pytest.raises(HardpixError, match=r"manifest\.json is damaged"):
        newest(run_dir)


def test_a_file_system_without_links(run_dir, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *a: (_ for _ in ()).throw(OSError(1, "not permitted")))
    save(state(3), run_dir / "checkpoints/last.ckpt")
    assert [step_of(run_dir / f"checkpoints/{n}.ckpt") for n in ("last", "previous")] == [3, 2]


def test_what_is_not_the_last_has_no_one_before(run_dir):
    save(state(7), run_dir / "checkpoints/best.ckpt")
    save(state(8), run_dir / "checkpoints/best.ckpt")
    assert [step_of(run_dir / f"checkpoints/{n}.ckpt") for n in ("best", "last", "previous")] == [8, 2, 1]
    assert json.loads((run_dir / "checkpoints/manifest.json").read_text())["best.ckpt"]["step"] == 8
