"""The processes of a run and their machine: masked output, explained machine errors, ranks.

Libraries, C code and further processes write to the descriptors 1 and 2 without asking Python. So a process of its
own (``hardpix/secrets.py``) stands between these and the file. It outlives whoever prints, up to the last word: what
a crash leaves behind is in the file too.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import hardpix.secrets

PATIENCE = 10.0  # seconds for the last words to reach the file
# Signals that a terminal or a cluster sends to all processes of a job.
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT")
    if hasattr(signal, name)
]

_started_filters: list[subprocess.Popen] = []  # filters that may still run


@contextmanager
def output_to_file(path: Path) -> Iterator[None]:
    """What this process, its children and libraries print goes to the end of a file, until the block ends."""
    with open(path, "ab") as file:
        _lock(file.fileno(), wait=False)
        filters = [_Filter(file.fileno())]
    with _redirected(filters * 2, filters):
        yield


@contextmanager
def masked_output() -> Iterator[None]:
    """What this process, its children and libraries print goes where it went before, without secrets."""
    same = os.path.sameopenfile(1, 2)
    filters = [_Filter(1)] if same else [_Filter(1), _Filter(2)]
    with _redirected([filters[0], filters[-1]], filters):
        yield


def wait_for_output(path: Path, seconds: float = PATIENCE) -> None:
    """Wait until what a process that is gone had printed :func:`output_to_file` ``path`` is there."""
    if path.is_file():
        with open(path, "ab") as file:
            _lock(file.fileno(), wait=True, seconds=seconds)


class MaskedError(Exception):
    """The traceback of an error, without secrets, for who would write it down otherwise."""


@contextmanager
def masked_errors() -> Iterator[None]:
    """An error of the block is raised as one whose text holds no secret."""
    try:
        yield
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        clean = hardpix.secrets.masked(text)
        if clean == text:
            raise
        raise MaskedError(clean) from None


class _Filter:
    """A process that writes what comes to ``entry`` to the file ``target``."""

    def __init__(self, target: int) -> None:
        self.token = secrets.token_hex(16)
        read, self.entry = os.pipe()
        self.done, theirs = os.pipe()
        program = [sys.executable, "-I", "-S", hardpix.secrets.__file__, self.token, str(theirs)]
        blocked = (
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if hasattr(signal, "pthread_sigmask") else None
        )
        try:
            with open(os.devnull, "wb") as nowhere:
                process = subprocess.Popen(
                    program,
                    stdin=read,
                    stdout=target,
                    stderr=nowhere,
                    pass_fds=[theirs],
                    start_new_session=True,
                )
        finally:
            if blocked is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            os.close(read)
            os.close(theirs)
        _started_filters[:] = [one for one in _started_filters if one.poll() is None] + [process]

    def close(self) -> None:
        """Wait until all that was printed is written; what a lingering child still prints is passed on, too."""
        with suppress(OSError):
            os.write(self.entry, b"\0" + self.token.encode() + b"\n")
        os.close(self.entry)
        answer = select.poll()
        answer.register(self.done, select.POLLIN)
        answer.poll(PATIENCE * 1000)
        os.close(self.done)


@contextmanager
def _redirected(pair: list[_Filter], filters: list[_Filter]) -> Iterator[None]:
    kept = os.dup(1), os.dup(2)
    try:
        _point_streams(pair[0].entry, pair[1].entry)
        yield
    finally:
        _point_streams(*kept)
        for handle in kept:
            os.close(handle)
        for one in filters:
            one.close()


def _point_streams(out: int, err: int) -> None:
    for stream, number, handle in ((sys.stdout, 1, out), (sys.stderr, 2, err)):
        stream.flush()
        os.dup2(handle, number)


def _lock(handle: int, *, wait: bool, seconds: float = 0.0) -> None:
    """A filter has its file locked for as long as it lives."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    limit = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if not wait or time.monotonic() > limit:
            return
        time.sleep(0.02)


# Explain machine errors (out of memory, /dev/shm, file limits) in one line.


SMALLER_BATCH_HINT = (
    "lower data.batch_size (trainer.accumulate=2 keeps the gradient's) or data.train_transform.crop"
)
SHM_HINT = "give a container more of it (--shm-size=8g), or set data.num_workers=0"


def explain(error: BaseException) -> str | None:
    """What failed, its cause, and the settings that help; None of an error that is none of these."""
    for cause in _chain(error):
        for test in (_device_memory, _worker, _files, _shared_memory, _memory):
            if found := test(cause):
                return found
    return None


def one_line(error: BaseException) -> str:
    """``OSError: ...``: what a record says of a run that an error has ended."""
    line = explain(error) or (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}"[:500]


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


def _device_memory(error: BaseException) -> str | None:
    text = str(error)
    named = type(error).__name__ in ("OutOfMemoryError", "AcceleratorError") or "CUDA" in text
    if not (named and "out of memory" in text):
        return None
    return (
        f"the GPU's memory does not suffice{_device_peak()}: {SMALLER_BATCH_HINT}, "
        "or take trainer.precision=bf16-mixed; the last checkpoint is kept"
    )


def _device_peak() -> str:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ""
    whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return f" (peak {torch.cuda.max_memory_allocated() / 2**30:.1f} of {whole / 2**30:.1f} GiB)"


def _memory(error: BaseException) -> str | None:
    text = str(error)
    full = (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or "can't allocate memory" in text
        or "not enough memory" in text
        or "Cannot allocate memory" in text
        or "Caught MemoryError" in text
    )
    if not full:
        return None
    return (
        f"the machine's memory does not suffice{_peak()}: {SMALLER_BATCH_HINT}, or take fewer data.num_workers; "
        "the last checkpoint is kept"
    )


def _peak() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return ""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f" (peak of this process {most / (2**30 if sys.platform == 'darwin' else 2**20):.1f} GiB)"


def _worker(error: BaseException) -> str | None:
    text = str(error)
    if not re.match(r"DataLoader worker \(pid", text):
        return None
    if "Bus error" in text or "shared memory" in text:
        return f"a data worker was ended because the shared memory /dev/shm is full: {SHM_HINT}"
    found = re.search(r"killed by signal: (\w[\w ]*)", text)
    how = f" by the signal {found[1].strip()}" if found else ""
    return (
        f"a data worker was ended{how}, most often because the machine's memory was full: take fewer "
        "data.num_workers (0 loads in the process itself) or a smaller data.batch_size; the last checkpoint is kept"
    )


def _files(error: BaseException) -> str | None:
    text = str(error)
    limit = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    if not limit and "Too many open files" not in text and "received 0 items of ancdata" not in text:
        return None
    return f"too many open files{_open_limit()}: raise the limit (ulimit -n 4096), or take fewer data.num_workers"


def _open_limit() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return ""
    return f" (at most {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} in a process)"


def _shared_memory(error: BaseException) -> str | None:
    text = str(error)
    full = (
        "No space left on device" in text or "unable to resize file" in text or "unable to allocate" in text
    )
    place = "/dev/shm" in text or "shared memory" in text or "torch_" in text
    if not (full and (place or _of_a_lock(error))):
        return None
    return f"the shared memory /dev/shm is full: {SHM_HINT}"


def _of_a_lock(error: BaseException) -> bool:
    """Whether it was raised where a lock between processes is made, which lies there without its text saying so."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "multiprocessing.synchronize" for frame, _ in frames)


# World size and rank under torchrun and srun. Standard library only.


def rank() -> int:
    """0 of a process that stands alone, and of those that Lightning starts itself."""
    return int(os.environ.get("RANK") or (os.environ["SLURM_PROCID"] if _by_srun() else 0))


def world_size() -> int:
    """How many processes were started alike."""
    if "RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1"))
    return int(os.environ["SLURM_NTASKS"]) if _by_srun() else 1


def _by_srun() -> bool:
    """In a step of srun: the batch script itself has SLURM's variables too, but stands alone."""
    return "SLURM_STEP_ID" in os.environ and {"SLURM_PROCID", "SLURM_NTASKS"} <= os.environ.keys()
