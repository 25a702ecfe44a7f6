"""Train each job in a process of its own on this machine, several at once: what ``hydra/launcher=pool`` does."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig

from hardpix import record
from hardpix.sweep.state import INTERRUPTED, LOST, look
from hardpix.sweep.work import OUTPUT, directory, leave_traces
from hardpix.train import machine
from hardpix.train.rundir import locked_run_dir
from hardpix.types import ConfigError

PAUSE = 0.05  # seconds between two looks at the processes
TAIL = 4000  # bytes of the output that error.txt shows of a process that died
REPORTED = (0, 1, 2, 3, 130, 143, 138)  # statuses of a process that has written its record
PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    slot: int
    cfg: DictConfig
    process: subprocess.Popen

    def kill(self) -> None:
        """With its data loaders and whatever else it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def launch(
    settings: Mapping[str, Any], context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]]
) -> Sequence[JobReturn]:
    """Bring every job to its end. A process that dies costs its job; a signal lets all save, a second one kills."""
    loader: Any = context.config_loader
    planned = [(words, loader.load_sweep_config(config, list(words))) for words in jobs]
    if any(cfg.run is None for _, cfg in planned) and "Optuna" not in str(config.hydra.sweeper._target_):
        raise ConfigError("hydra/launcher=pool: needs named runs, which hydra/sweeper=study gives")
    devices = [cfg.trainer.devices for _, cfg in planned]
    together = max((n for n in devices if isinstance(n, int)), default=1)
    slots = environments(settings["workers"], settings["devices"], len(planned), together)
    waiting, running = deque(planned), list[Child]()
    try:
        while waiting or running:
            while waiting and len(running) < len(slots):
                words, cfg = waiting.popleft()
                slot = min(set(range(len(slots))) - {child.slot for child in running})
                print(f"{cfg.run or 'a trial'}: begins, worker {slot + 1}", flush=True)
                running.append(Child(slot, cfg, _start(settings["python"], config, words, slots[slot])))
            _reap(running)
            time.sleep(PAUSE)
    except BaseException:
        _end(running)
        raise
    return [JobReturn(overrides=list(words), status=JobStatus.COMPLETED) for words in jobs]


def _start(
    python: str | None, config: DictConfig, words: Sequence[str], slot: Mapping[str, str]
) -> subprocess.Popen:
    """``hardpix train -m`` with the settings of one job, in a process group of its own: Ctrl-C is for this process."""
    sources = {str(s.provider): str(s.path) for s in config.hydra.runtime.config_sources}
    folder = ["--config-dir", sources["command-line"]] if "command-line" in sources else []
    kept = [
        str(o)
        for o in config.hydra.overrides.hydra
        if not str(o)
        .lstrip("+")
        .startswith(("hydra/launcher", "hydra.launcher", "hydra.mode", "hydra.sweep."))
    ]
    own = ["hydra/launcher=basic", "hydra.sweeper.alone=true"]
    interpreter = [sys.executable] if python is None else shlex.split(python)
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"} | dict(slot)
    return subprocess.Popen(
        [*interpreter, "-m", "hardpix.cli", "train", "-m", *folder, *kept, *own, *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # what the run prints is in its output.log
        process_group=0,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _reap(running: list[Child], why: str = "") -> None:
    """Drop the processes that have ended; those that have not said how get a record that does."""
    for child in [one for one in running if one.process.poll() is not None]:
        running.remove(child)
        child.kill()
        if child.cfg.run is None:  # a trial, whose state is in the storage
            continue
        code, state = child.process.returncode, look(directory(child.cfg))
        how = f"killed by signal {-code}" if code < 0 else f"ended with status {code}"
        unsaid = state.record is not None and state.record.status == "running"
        if code not in REPORTED or unsaid or (code and state.kind == "new"):
            lost(child.cfg, why or (INTERRUPTED if code > 128 else LOST + how))
        state = look(directory(child.cfg))
        print(f"{child.cfg.run}: {state.why}", flush=True)


def _end(running: list[Child]) -> None:
    """Have all processes save and end; another signal meanwhile kills them."""
    for child in running:
        with suppress(ProcessLookupError):
            child.process.send_signal(signal.SIGTERM)
    try:
        while running:
            _reap(running, INTERRUPTED)
            time.sleep(PAUSE)
    except BaseException:
        for child in running:
            child.kill()
            child.process.wait()
        _reap(running, INTERRUPTED)


def lost(cfg: DictConfig, why: str) -> None:
    """Write down the end of a run whose process died: its record must not say ``running`` for ever.

    ``why`` is ``interrupted`` or begins with ``LOST``: such a run goes on from its last checkpoint.
    """
    run_dir = directory(cfg)
    with locked_run_dir(run_dir) as free:
        state = look(run_dir)
        if not free or state.kind in ("running", "done") or (state.kind == "failed" and not state.resume):
            return
        if why == INTERRUPTED:
            if state.record is not None:
                record.write(replace(state.record, status="interrupted", error=why), run_dir)
            return
        path = run_dir / OUTPUT
        machine.wait_for_output(path)
        tail = path.read_bytes()[-TAIL:].decode(errors="replace") if path.is_file() else ""
        leave_traces(cfg, why, f"{why}\nThe end of {path}:\n{tail}", again=True)


def environments(workers: Any, devices: Any, jobs: int, together: int = 1) -> list[dict[str, str]]:
    """What each process's environment has besides this one's, at most one for each of so many jobs.

    ``together``: devices of a job. ``OMP_NUM_THREADS`` is the cores divided by the workers unless it is set: sums of
    floats depend on it.
    """
    whole = type(workers) in (int, str) and str(workers).isdecimal() and int(workers) > 0
    check("workers", workers, workers == "auto" or whole, "a whole number of processes from 1, or auto")
    listed = devices != "auto" and not isinstance(devices, str | int)
    check("devices", devices, devices == "auto" or (listed and all(type(d) in (int, str) for d in devices)),
          "auto or a list of GPUs, such as [0, 1]")  # fmt: skip
    found = gpus() if devices == "auto" else tuple(map(str, devices))
    if devices == "auto" and together > 1:
        found = tuple(
            ",".join(found[i : i + together]) for i in range(0, len(found) - together + 1, together)
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = (len(found) or cores) if workers == "auto" else int(workers)
    common = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    if not os.environ.get("OMP_NUM_THREADS"):
        common["OMP_NUM_THREADS"] = str(max(1, cores // count))
    if found and not os.environ.get("CUDA_VISIBLE_DEVICES"):
        common["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the numbers of nvidia-smi
    given = [{"CUDA_VISIBLE_DEVICES": found[slot % len(found)]} if found else {} for slot in range(count)]
    return [common | own for own in given][:jobs]


def check(key: str, value: Any, right: Any, meant: str) -> None:
    if not right:
        raise ConfigError(f"hydra.launcher.{key}={value}: must be {meant}")


def gpus() -> tuple[str, ...]:
    """What is in ``CUDA_VISIBLE_DEVICES``, else the numbers of this machine's GPUs; CUDA is not started."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part.strip() for part in visible.split(",") if part.strip() not in ("", "-1"))
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(done.stdout.split()) if done.returncode == 0 else ()
