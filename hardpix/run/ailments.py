"""What a machine lacks when a run fails for no fault of its settings: one sentence with the cause and what helps."""

from __future__ import annotations

import errno
import re
import sys
import traceback

SMALLER = "lower data.batch_size (trainer.accumulate=2 keeps the gradient's) or data.train_transform.crop"
SHM = "give a container more of it (--shm-size=8g), or set data.num_workers=0"


def sentence(error: BaseException) -> str | None:
    """What failed, its cause, and the settings that help; None of an error that is none of these."""
    for cause in _chain(error):
        for test in (_device_memory, _worker, _files, _shared_memory, _memory):
            if found := test(cause):
                return found
    return None


def one_line(error: BaseException) -> str:
    """``OSError: ...``: what a record says of a run that an error has ended."""
    line = sentence(error) or (str(error).strip().splitlines() or [""])[0]
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
        f"the GPU's memory does not suffice{_device_peak()}: {SMALLER}, or take trainer.precision=bf16-mixed; "
        "the last checkpoint is kept"
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
        f"the machine's memory does not suffice{_peak()}: {SMALLER}, or take fewer data.num_workers; "
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
        return f"a data worker was ended because the shared memory /dev/shm is full: {SHM}"
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
    return f"the shared memory /dev/shm is full: {SHM}"


def _of_a_lock(error: BaseException) -> bool:
    """Whether it was raised where a lock between processes is made, which lies there without its text saying so."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "multiprocessing.synchronize" for frame, _ in frames)
