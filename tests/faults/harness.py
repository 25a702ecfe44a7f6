"""Runs of this program that die at a chosen step or write, each in a process of its own that has all imports already.

``Killer`` counts two kinds of points in a process and ends it with SIGKILL at the n-th: a ``step`` is the beginning or
the end of a training step or of a validation batch, a ``write`` is a call that changes the file system below a folder
(opening a file to write, writing through it, flushing it to the disk, renaming, linking, removing, making a folder).
What SIGKILL leaves behind at a point is what the files are there, so ``States`` keeps them for every point of one run.
"""

import atexit
import builtins
import contextlib
import gc
import hashlib
import importlib
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from hardpix import record

WALL_CLOCK = ("cost/", "run/seconds", "run/step_spread")  # metrics that no two runs have in common


class Killer:
    """Counts points; at ``number`` (from 1) of ``kind`` acts: SIGKILL, or whatever ``act`` is. ``watch`` sees all."""

    def __init__(self, folder, kind=None, number=0, act=None, watch=None):
        self.folder, self.kind, self.number, self.watch = str(folder), kind, number, watch
        self.act = act or (lambda: os.kill(os.getpid(), signal.SIGKILL))
        self.counts = {"step": 0, "write": 0}
        self.owner = os.getpid()

    def point(self, kind):
        if os.getpid() != self.owner:  # a data worker
            return
        self.counts[kind] += 1
        if self.watch is not None:
            self.owner = None  # what it does to files is no point
            self.watch(kind, self.counts[kind])
            self.owner = os.getpid()
        if kind == self.kind and self.counts[kind] == self.number:
            self.act()

    def below(self, path):
        try:
            return os.path.abspath(os.fspath(path)).startswith(self.folder)
        except TypeError:  # a descriptor
            return False

    def install(self):
        """Wrap what changes files, and the hooks of steps; for the rest of the process."""
        for name in ("replace", "rename", "link", "unlink", "mkdir", "remove", "rmdir"):
            self._wrap(os, name, lambda a, k: self.below(a[-1]) or self.below(a[0]))
        self._wrap(os, "fsync", lambda a, k: True)
        opened = builtins.open

        def opens(file, mode="r", *args, **kwargs):
            writes = set("wax+") & set(mode) and self.below(file)
            if writes:
                self.point("write")
            handle = opened(file, mode, *args, **kwargs)
            return Watched(handle, self) if writes else handle

        builtins.open = io.open = opens
        from hardpix.methods import Method

        for name in ("training_step", "validation_step"):
            self._around(Method, name)

    def _wrap(self, module, name, concerns):
        inner = getattr(module, name)

        def wrapped(*args, **kwargs):
            if concerns(args, kwargs):
                self.point("write")
            return inner(*args, **kwargs)

        setattr(module, name, wrapped)

    def _around(self, owner, name):
        inner = getattr(owner, name)

        def wrapped(*args, **kwargs):
            self.point("step")
            result = inner(*args, **kwargs)
            self.point("step")
            return result

        setattr(owner, name, wrapped)


class Watched:
    """A file whose first and every fiftieth ``write`` is a point: half of what it is given is in the file by then.

    A checkpoint is written in a thousand small pieces, which are all alike.
    """

    def __init__(self, handle, killer):
        self._handle, self._killer, self._calls = handle, killer, 0

    def write(self, content):
        killer = self._killer
        self._calls += 1
        if self._calls % 50 != 1:
            return self._handle.write(content)
        due = killer.kind == "write" and killer.counts["write"] + 1 == killer.number
        if (due or killer.watch) and len(content) > 1:
            self._handle.write(content[: len(content) // 2])
            self._handle.flush()
            killer.point("write")  # which may raise: then nothing more is written
            return self._handle.write(content[len(content) // 2 :]) + len(content) // 2
        killer.point("write")
        return self._handle.write(content)

    def __getattr__(self, name):
        return getattr(self._handle, name)

    def __iter__(self):
        return iter(self._handle)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._handle.close()


class States:
    """What is below ``source`` at every point: ``points`` gives, for each state that differs, the points it was at.

    A state is its folders and the content and other names of its files, as text; contents are kept once.
    """

    def __init__(self, source, store):
        self.source, self.store, self.points = Path(source), Path(store), {}
        self.store.mkdir()

    def __call__(self, kind, number):
        found = []
        for path in sorted(self.source.rglob("*")):
            digest, status = None, path.lstat()
            if path.is_file():
                content = path.read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                if not (self.store / digest).exists():
                    (self.store / digest).write_bytes(content)
            found.append(
                (str(path.relative_to(self.source)), digest, status.st_ino if status.st_nlink > 1 else 0)
            )
        state = json.dumps(found if self.source.exists() else None)
        self.points.setdefault(state, []).append((kind, number))


def restore(state, store, target):
    """Make ``target`` what ``States`` saw: what was one file with two names is so again."""
    first = {}
    found = json.loads(state)
    if found is not None:  # else the run had no directory yet
        Path(target).mkdir(parents=True)
    for name, digest, inode in found or ():
        path = Path(target) / name
        if digest is None:
            path.mkdir()
        elif inode in first:
            os.link(first[inode], path)
        else:
            shutil.copyfile(Path(store) / digest, path)
            first |= {inode: path} if inode else {}


def warm(names):
    """Have these modules in this process, so that its children need not import them one by one, nor collect them."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # else a library tells at the end what was not taken down


def in_child(work, log, seconds=300):
    """Run ``work`` in a forked process with its output in ``log``; its exit status, negative for a signal."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(target, 1)
            os.dup2(target, 2)
            sys.stdout, sys.stderr = (open(n, "w", closefd=False, buffering=1) for n in (1, 2))  # noqa: SIM115
            status = work()
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
            status = 98
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    limit = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"still running after {seconds} s; see {log}")
        time.sleep(0.002)


def command(arguments, killer=None):
    """What ``in_child`` runs: the command line, under a killer."""

    def work():
        from hardpix.cli import main

        if killer is not None:
            killer.owner = os.getpid()
            killer.install()
        return main(list(arguments))

    return work


def state_hash(run_dir):
    """sha256 over all that a run is: its last checkpoint, its scores, and every row of its ``metrics.csv``."""
    from hardpix.train.checkpoint import read_checkpoint

    digest = hashlib.sha256()
    content = read_checkpoint(Path(run_dir) / "checkpoints/last.ckpt")
    content.pop("loops")  # Lightning's counters of hooks that have begun; what they lead to is all here
    _feed(digest, _without(content, str(run_dir)), "")
    found = record.read(run_dir)
    assert found.status == "done", found.error
    _feed(digest, {k: v for k, v in found.metrics.items() if not k.startswith(WALL_CLOCK)}, "metrics")
    for name in ("metrics.csv", "per_class.csv", "per_image.csv", "confusion.npy"):
        digest.update((Path(run_dir) / name).read_bytes())
    return digest.hexdigest()


def _without(value, place):
    """``value`` with the run's own directory taken out of every text."""
    if isinstance(value, dict):  # Lightning writes current_score and never reads it
        return {_without(k, place): _without(v, place) for k, v in value.items() if k != "current_score"}
    if isinstance(value, list | tuple):
        return [_without(inner, place) for inner in value]
    return value.replace(place, "RUN") if isinstance(value, str) else value


def _feed(digest, value, name):
    if isinstance(value, torch.Tensor):
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            _feed(digest, value[key], f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            _feed(digest, inner, f"{name}[{place}]")
    else:
        digest.update(f"{name}={value!r}".encode())
