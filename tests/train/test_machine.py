"""What a machine lacks, as torch, Python and Linux say it."""

import errno
import multiprocessing.synchronize
import subprocess
import sys

import pytest
import torch

from hardpix.cli import main
from hardpix.train import machine
from hardpix.types import DataError

# The texts are those of torch 2.12 to 2.15 and of CPython.
DEVICE = [
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB."
    ),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
]
MEMORY = [
    MemoryError(),
    MemoryError("Unable to allocate 10.8 GiB for an array with shape (60000, 60000, 3) and data type uint8"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    MemoryError(
        "Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):"
    ),
]
WORKER = [
    RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. "),
    RuntimeError("DataLoader worker (pid(s) 17, 18) exited unexpectedly"),
    RuntimeError("DataLoader worker (pid 17) is killed by signal: Segmentation fault. "),
]
SHARED = [
    RuntimeError(
        "DataLoader worker (pid 17) is killed by signal: Bus error. It is possible that dataloader's workers are out "
        "of shared memory. Please try to raise your shared memory limit."
    ),
    RuntimeError("unable to write to file </torch_17_25_1>: No space left on device (28)"),
    RuntimeError("unable to resize file </torch_17_25_1> to the right size: No space left on device (28)"),
    OSError(errno.ENOSPC, "No space left on device", "/dev/shm/torch_17_25_1"),
]
FILES = [
    OSError(errno.EMFILE, "Too many open files", "/data/a.png"),
    OSError(errno.ENFILE, "Too many open files in system"),
    RuntimeError("received 0 items of ancdata"),
    OSError(
        "Caught OSError in DataLoader worker process 1.\nOSError: [Errno 24] Too many open files: 'a.png'"
    ),
]


@pytest.mark.parametrize(("errors", "words"), [
    (DEVICE, ("GPU's memory", "data.batch_size", "data.train_transform.crop", "trainer.precision", "is kept")),
    (MEMORY, ("machine's memory", "peak", "GiB", "data.batch_size", "data.num_workers", "checkpoint is kept")),
    (WORKER, ("data worker was ended", "data.num_workers", "data.batch_size")),
    (SHARED, ("/dev/shm", "--shm-size", "data.num_workers=0")),
    (FILES, ("too many open files", "ulimit -n", "data.num_workers")),
])  # fmt: skip
def test_the_cause_and_the_settings_are_named(errors, words):
    for error in errors:
        found = machine.explain(error)
        assert found is not None, error
        assert "\n" not in found
        assert all(word in found for word in words), (error, found)


def test_the_signal_is_named():
    assert "by the signal Killed," in machine.explain(WORKER[0])
    assert "by the signal Segmentation fault," in machine.explain(WORKER[2])


@pytest.mark.parametrize("error", [
    DataError("a.png: not readable"), ValueError("out of memory"), RuntimeError("shape mismatch"),
    OSError(errno.ENOSPC, "No space left on device", "runs/a.ckpt"), KeyError("memory"),
    RuntimeError("Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n..."),
])  # fmt: skip
def test_other_errors_are_left_alone(error):
    assert machine.explain(error) is None


def test_a_lock_that_finds_no_room_is_shared_memory_too(monkeypatch):
    """Its error has no file's name."""

    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", refuse)
    with pytest.raises(OSError, match="No space") as caught:
        multiprocessing.Lock()
    assert "/dev/shm is full" in machine.explain(caught.value)
    with pytest.raises(OSError, match="No space") as caught:
        refuse()
    assert machine.explain(caught.value) is None


def test_the_cause_of_an_error_counts():
    error = RuntimeError("while loading")
    error.__cause__ = MEMORY[0]
    assert "machine's memory" in machine.explain(error)


def test_memory_that_is_really_refused(capsys, monkeypatch):
    """Torch's own text, of this version."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    monkeypatch.setitem(
        sys.modules["hardpix.cli"].COMMANDS, "list", lambda rest: (_ for _ in ()).throw(caught.value)
    )
    assert main(["list"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("hardpix: the machine's memory does not suffice (peak of this process ")
    assert said.count("\n") == 1


def test_the_table_of_sentences_imports_nothing_heavy():
    code = "import sys, hardpix.train.machine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
