"""Runs on data and machines that fail them: what is told, what is kept, and that it ends in time."""

import csv
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from hardpix import record
from hardpix.cli import main
from hardpix.data.files import FileFrames
from hardpix.methods import Baseline
from hardpix.train.checkpoint import read_checkpoint
from hardpix.train.train import train
from hardpix.types import DataError
from tests.conftest import TINY
from tests.faults.harness import in_child, state_hash

pytestmark = pytest.mark.slow  # whole runs and processes

FRAMES = {"train": 8, "val": 2, "test": 2}
HEAVY = ("scheduler=constant", "panels=0", "data.eval_batch_size=1")


def make_set(root):
    for split, count in FRAMES.items():
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            add(root, split, index)
    return root


def add(root, split, index):
    dice = np.random.default_rng([index, len(split)])
    image = dice.integers(0, 256, (32, 48, 3), np.uint8)
    label = np.kron(dice.integers(0, 3, (4, 6), np.uint8), np.ones((8, 8), np.uint8))
    Image.fromarray(image).save(root / split / "images" / f"{index}.png")
    Image.fromarray(label).save(root / split / "labels" / f"{index}.png")


@pytest.fixture
def root(tmp_path):
    return make_set(tmp_path / "set")


@pytest.fixture
def of(tiny, root):
    """``of("run=a", ...)``: a tiny configuration on the folder."""
    fixed = ("data=folder", f"data.source.root='{root}'", "data.source.classes=[a,b,c]", *HEAVY)
    return lambda *overrides: tiny(*fixed, *overrides)


def command_line(tmp_path, root, *overrides):
    given = {o.split("=")[0] for o in (*overrides, *HEAVY)}
    kept = [o for o in TINY if not o.startswith("data.source.") and o.split("=")[0] not in given]
    return ["train", *kept, "data=folder", f"data.source.root='{root}'", "data.source.classes=[a,b,c]", *HEAVY,
            f"runs_dir='{tmp_path}/runs'", "run=a", *overrides]  # fmt: skip


def zero(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


def paint(value):
    def change(path):
        label = np.array(Image.open(path))
        label[3, 5:9] = value
        Image.fromarray(label).save(path)

    return change


def smaller(path):
    Image.open(path).crop((0, 0, 40, 32)).save(path)


def coloured(path):
    grey = np.array(Image.open(path))
    Image.fromarray(np.dstack([grey, grey + 1, grey])).save(path)


# what is done to a training frame's file, and what the one line says besides the file
FAULTS = {
    "image cut": ("images", cut, r"not a readable"),
    "image empty": ("images", zero, r"it is empty"),
    "label cut": ("labels", cut, r"not a readable"),
    "label out of range": (
        "labels",
        paint(200),
        r"value 200 \(4 pixels\) is no class; allowed are 0\.\.2, 255",
    ),
    "label one too many": ("labels", paint(3), r"value 3 \(4 pixels\) is no class; allowed are 0\.\.2, 255"),
    "label in colours": ("labels", coloured, r"class numbers, but this one is RGB with colours"),
    "label of another size": ("labels", smaller, r"measures 40x32 pixels but .*images/3\.png 48x32"),
    "image of another size": ("images", smaller, r"labels/3\.png measures 48x32 pixels but .*3\.png 40x32"),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_cannot_be_used_is_one_line(of, root, name, workers):
    kind, change, told = FAULTS[name]
    change(root / "train" / kind / "3.png")
    with pytest.raises(DataError, match=told) as caught:
        train(of("run=a", f"data.num_workers={workers}"))
    assert f"{root}/train/{kind}/3.png" in str(caught.value)
    assert "(frame 3 of 8)" in str(caught.value)
    assert "\n" not in str(caught.value)
    run = root.parent / "runs/default/a"
    if name in ("image cut", "label of another size", "image of another size"):
        assert record.read(run).status == "failed"
    else:  # labels are counted, and images opened, before anything is written
        assert not run.exists()


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_stops_also_under_skip(of, root, split):
    cut(root / split / "images/1.png")
    with pytest.raises(DataError, match=rf"{split}/images/1\.png: not a readable"):
        train(of("run=a", "data.on_error=skip"))


def test_skipping_is_equal_for_all_numbers_of_workers_and_counted(of, root, tmp_path):
    cut(root / "train/images/3.png")
    zero(root / "train/labels/6.png")
    hashes = set()
    for workers in (0, 1, 2, 5):
        done = train(of("run=a", "data.on_error=skip", f"data.num_workers={workers}"))
        assert done.metrics["run/skipped_frames"] == 2
        hashes.add(state_hash(tmp_path / "runs/default/a"))
        shutil.rmtree(tmp_path / "runs")
    assert len(hashes) == 1


def test_a_skipping_run_that_is_stopped_is_the_one_that_never_was(of, root, tmp_path, monkeypatch):
    """In the middle of an epoch of two steps, with one frame behind it and one ahead."""
    cut(root / "train/images/3.png")
    zero(root / "train/labels/6.png")
    settings = ("run=a", "data.on_error=skip", "callbacks.checkpoint_every_steps=1", "trainer.max_steps=5")
    whole = train(of(*settings))
    expected = state_hash(tmp_path / "runs/default/a")
    assert whole.metrics["run/skipped_frames"] == 2
    for step in (1, 2, 3):
        shutil.rmtree(tmp_path / "runs")
        stopped_after(step, monkeypatch, of(*settings))
        assert train(of(*settings)).metrics["run/skipped_frames"] == 2
        assert state_hash(tmp_path / "runs/default/a") == expected


def test_too_many_are_an_error_with_all_names(of, root):
    for index in (1, 3, 5):
        cut(root / f"train/images/{index}.png")
    with pytest.raises(DataError, match=r"3 training frames cannot be read, and data\.max_skip=2") as caught:
        train(of("run=a", "data.on_error=skip", "data.max_skip=2"))
    assert all(f"train/images/{index}.png" in str(caught.value) for index in (1, 3, 5))


# A data set that changes


def stopped_after(step, monkeypatch, cfg):
    """Train until a step, which fails."""
    inner = Baseline.training_step

    def stopping(self, batch, index):
        if self.global_step == step:
            raise MemoryError
        return inner(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Baseline, "training_step", stopping)
        with pytest.raises(MemoryError):
            train(cfg)


def change_file(root):
    path = root / "train/images/2.png"
    path.write_bytes(path.read_bytes() + b"\0")


def remove(root):
    for kind in ("images", "labels"):
        (root / "test" / kind / "1.png").unlink()


@pytest.mark.parametrize(("change", "told"), [
    (lambda root: add(root, "train", 8), r"folder/train: 8 -> 9 frames, newer are .*train/images/8\.png"),
    (change_file, r"folder/train: other file names or sizes, newer are .*train/images/2\.png"),
    (remove, r"folder/test: 2 -> 1 frames"),
])  # fmt: skip
def test_a_changed_data_set_is_refused_on_resume(of, root, monkeypatch, change, told):
    settings = ("run=a", "callbacks.checkpoint_every_steps=1")
    stopped_after(2, monkeypatch, of(*settings))
    time.sleep(1.1)  # the record's time is in whole seconds
    before = read_checkpoint(root.parent / "runs/default/a/checkpoints/last.ckpt")
    change(root)
    with pytest.raises(DataError, match=told) as caught:
        train(of(*settings))
    assert "data.accept_change=true" in str(caught.value)
    after = read_checkpoint(root.parent / "runs/default/a/checkpoints/last.ckpt")
    assert before["global_step"] == after["global_step"] == 2
    assert train(of(*settings, "data.accept_change=true")).status == "done"


def relabel(root):
    """Another class in a file of the same size."""
    path = root / "train/labels/2.tif"
    label = np.array(Image.open(path))
    size = path.stat().st_size
    Image.fromarray((label + 1) % 3).save(path)
    assert path.stat().st_size == size


def test_an_edit_of_equal_size_is_refused_on_resume(of, root, monkeypatch):
    for path in (root / "train/labels").iterdir():
        Image.open(path).save(path.with_suffix(".tif"))
        path.unlink()
    settings = ("run=a", "callbacks.checkpoint_every_steps=1")
    stopped_after(2, monkeypatch, of(*settings))
    relabel(root)
    with pytest.raises(
        DataError,
        match=r"folder/train: files of the same names and sizes have another content.*labels/2\.tif",
    ) as caught:
        train(of(*settings))
    assert "folder/val" not in str(caught.value)
    stopped_after(3, monkeypatch, of(*settings, "data.accept_change=true"))
    assert train(of(*settings)).status == "done"  # the change has been accepted once


def test_a_touched_data_set_is_refused_and_a_copied_one_is_the_same(of, root, monkeypatch, tmp_path):
    settings = ("run=a", "callbacks.checkpoint_every_steps=1")
    stopped_after(2, monkeypatch, of(*settings))
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(root / "test/images/1.png", (10**9, 10**9))
    with pytest.raises(DataError, match=r"folder/test: files of the same size were written or touched"):
        train(of(*settings))
    root.rename(tmp_path / "before")
    (tmp_path / "copy").rename(root)
    assert train(of(*settings)).status == "done"


def test_a_record_without_stamps_is_taken_as_it_is(of, root, monkeypatch, tmp_path):
    settings = ("run=a", "callbacks.checkpoint_every_steps=1")
    stopped_after(2, monkeypatch, of(*settings))
    path = tmp_path / "runs/default/a/run.json"
    content = json.loads(path.read_text())
    assert set(content.pop("stamps")) == {"folder/train", "folder/val", "folder/test"}
    path.write_text(json.dumps(content))
    for file in root.rglob("*.png"):
        os.utime(file, (10**9, 10**9))
    assert train(of(*settings)).status == "done"


def test_an_image_that_is_a_folder_is_named(of, root):
    (root / "train/images/3.png").unlink()
    (root / "train/images/3.png").mkdir()
    with pytest.raises(DataError, match=r"train/images/3\.png: is a folder, not an image"):
        train(of("run=a"))


def test_data_that_are_mended_before_the_first_checkpoint_are_no_change(of, root):
    cut(root / "train/images/3.png")
    with pytest.raises(DataError):
        train(of("run=a", "trainer.max_steps=2"))
    add(root, "train", 3)
    add(root, "train", 8)
    assert train(of("run=a", "trainer.max_steps=2")).status == "done"


def test_a_table_tells_of_runs_on_different_states_of_the_data(of, root, tmp_path, capsys):
    train(of("run=a", "seed=0", "trainer.max_steps=1"))
    train(of("run=b", "seed=1", "trainer.max_steps=1"))
    assert main(["table", str(tmp_path / "runs"), "--rows", "method"]) == 0
    assert "differ in the data" not in "".join(capsys.readouterr())
    change_file(root)
    train(of("run=c", "seed=2", "trainer.max_steps=1"))
    assert main(["table", str(tmp_path / "runs"), "--rows", "method"]) == 2
    said = "".join(capsys.readouterr())
    assert "they differ in data.fingerprint.train" in " ".join(said.split())
    assert "fingerprint.val" not in said


# Nothing labelled


def rows(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_batches_without_a_labelled_pixel_are_counted_and_move_nothing(of, root, tmp_path):
    for path in (root / "train/labels").iterdir():
        Image.fromarray(np.full((32, 48), 255, np.uint8)).save(path)
    settings = ("optimizer.momentum=0", "optimizer.weight_decay=0", "callbacks.checkpoint_every_steps=1")
    train(of("run=a", "trainer.max_steps=1", *settings))
    train(of("run=b", "trainer.max_steps=4", *settings))
    one, four = (
        read_checkpoint(tmp_path / f"runs/default/{run}/checkpoints/last.ckpt")["state_dict"] for run in "ab"
    )
    assert all(torch.equal(one[k], four[k]) for k in one if "running_" not in k and "num_batches" not in k)
    counted = [r for r in rows(tmp_path / "runs/default/b") if r["train/void_batches"]]
    assert [int(float(r["train/void_batches"])) for r in counted] == [1, 2, 3, 4]
    assert [float(r["train/loss"]) for r in counted] == [0, 0, 0, 0]


def test_a_batch_with_a_label_is_not_counted_and_a_resumed_count_goes_on(of, root, tmp_path, monkeypatch):
    for index in range(4):  # of the eight: a batch of four random ones is never void for long
        Image.fromarray(np.full((32, 48), 255, np.uint8)).save(root / f"train/labels/{index}.png")
    settings = ("run=a", "data.batch_size=1", "trainer.max_steps=8", "callbacks.checkpoint_every_steps=1",
                "data.train_transform.ratio=[1.0,1.0]")  # fmt: skip
    stopped_after(5, monkeypatch, of(*settings))
    train(of(*settings))
    found = [
        int(float(r["train/void_batches"]))
        for r in rows(tmp_path / "runs/default/a")
        if r["train/void_batches"]
    ]
    assert found[-1] == 4
    assert all(b - a in (0, 1) for a, b in itertools.pairwise(found))


# What the machine lacks


def to_the_log():
    """In a child: pytest's own streams are not those of the process."""
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115


def test_a_killed_worker_ends_the_run_in_time_with_its_cause(tmp_path, root):
    log, died = tmp_path / "log", tmp_path / "died"

    def work():
        to_the_log()
        inner, own = FileFrames.load, os.getpid()

        def load(self, index):
            if index == 5 and os.getpid() != own:
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(self, index)

        FileFrames.load = load
        return main(
            command_line(tmp_path, root, "data.num_workers=2", "data.batch_size=2", "trainer.max_steps=50")
        )

    status = in_child(work, log, seconds=60)
    assert time.time() - died.stat().st_mtime < 10
    said = log.read_text()
    assert status == 1, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("hardpix: a data worker was ended"), said
    assert "data.num_workers" in last
    assert "Traceback" not in said
    found = record.read(tmp_path / "runs/default/a")
    assert found.status == "failed"
    assert "data worker was ended" in found.error


def test_too_few_open_files_are_told_with_the_limit(tmp_path, root):
    log = tmp_path / "log"

    def work():
        to_the_log()
        held, inner = [], FileFrames.load

        def load(self, index):
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            try:
                while True:
                    held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass
            return inner(self, index)

        FileFrames.load = load
        try:
            return main(command_line(tmp_path, root, "data.on_error=skip"))
        finally:
            for file in held:
                os.close(file)

    status = in_child(work, log, seconds=60)
    said = log.read_text()
    assert status == 1, said
    assert "hardpix: too many open files (at most 64 in a process): raise the limit (ulimit -n 4096)" in said
    assert "skipped" not in said  # no fault of the frame's
    assert "Traceback" not in said


@pytest.mark.parametrize(("error", "told"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "the GPU's memory does not suffice"),
    (MemoryError(), "the machine's memory does not suffice"),
])  # fmt: skip
def test_memory_that_ends_keeps_the_last_checkpoint(tmp_path, root, capsys, monkeypatch, error, told):
    inner = Baseline.losses

    def losses(self, batch):
        if self.global_step == 2:
            raise error
        return inner(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Baseline, "losses", losses)
        line = command_line(tmp_path, root, "callbacks.checkpoint_every_steps=1")
        assert main(line) == 1
    said = capsys.readouterr().err
    assert f"hardpix: {told}" in said
    assert "data.batch_size" in said
    assert "Traceback" not in said
    run_dir = tmp_path / "runs/default/a"
    assert read_checkpoint(run_dir / "checkpoints/last.ckpt")["global_step"] == 2
    assert told in record.read(run_dir).error
    assert main(line) == 0
    assert record.read(run_dir).status == "done"
