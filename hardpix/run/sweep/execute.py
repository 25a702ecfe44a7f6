"""The launcher of a sweep: one job after the other in this process."""

from __future__ import annotations

import gc
import shlex
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from hardpix import record
from hardpix.run import rundir
from hardpix.run.lock import held
from hardpix.run.overrides import quoted
from hardpix.run.sweep.jobs import Job, counted
from hardpix.run.sweep.state import ACTION, ERROR, State, clear, look
from hardpix.run.sweep.study import Study
from hardpix.types import HardpixError, Pruned

if TYPE_CHECKING:
    import pytorch_lightning as pl


@dataclass
class Outcome:
    """What has become of a sweep."""

    ends: dict[int, str] = field(default_factory=dict)  # job number -> done | failed | running | interrupted
    errors: dict[int, str] = field(default_factory=dict)  # one line each
    status: int = 0  # 130, 143: ended by a signal


def run_all(study: Study, jobs: Sequence[Job], *, take_over: bool = False) -> Outcome:
    """Bring every job to its end, as far as it is not there yet; the state of each is looked up when its turn comes."""
    outcome = Outcome()
    settled = False
    tries = 1 + (study.retries if study.on_error == "retry" else 0)
    with terminable() as stopped, thawed():
        for job in jobs:
            state = look(job.run_dir)
            if state.kind == "done":  # without a trace: also where one may only read
                _announce(job, state, len(jobs))
                outcome.ends[job.number] = state.kind
                continue
            with held(job.run_dir) as free:
                state = look(job.run_dir, take_over=take_over)
                if not free and state.kind != "done":
                    state = State("running", "running: another sweep on this machine has it")
                _announce(job, state, len(jobs))
                if state.kind in ("done", "running"):
                    outcome.ends[job.number] = state.kind
                    continue
                if not settled:
                    settle()
                    settled = True
                for count in range(1, tries + 1):
                    outcome.errors.pop(job.number, None)
                    end = attempt(job, state, outcome)
                    outcome.ends[job.number] = end
                    if end != "failed" or count == tries or stopped:
                        break
                    print(f"attempt {count} of {tries} failed: {outcome.errors[job.number]}", flush=True)
                    state = look(job.run_dir)
            if stopped or outcome.status:
                outcome.status = 143 if stopped else outcome.status
                break
            if end == "failed" and study.on_error == "stop":
                break
    return outcome


def attempt(job: Job, state: State, outcome: Outcome, callbacks: Sequence[pl.Callback] = ()) -> str:
    """Train a job once; what it raises ends it alone, a signal the whole sweep."""
    if state.kind == "failed":
        clear(job.run_dir)
    cfg = job.config(resume=ACTION[state.kind] == "resume")
    try:
        _train(cfg, job, callbacks)
    except (KeyboardInterrupt, SystemExit) as error:
        code = error.code if isinstance(error, SystemExit) else 130
        outcome.status = code if isinstance(code, int) and code else 130
        return "interrupted"
    except Pruned:
        return "pruned"
    except Exception as error:
        outcome.errors[job.number] = _one_line(error)
        _leave_traces(job, error)
        return "failed"
    (job.run_dir / ERROR).unlink(missing_ok=True)
    return "done"


def _train(cfg: DictConfig, job: Job, callbacks: Sequence[pl.Callback]) -> None:
    from hardpix.run import train

    try:
        train.train(cfg, job.overrides, callbacks)
    finally:
        _clean_up()


def settle() -> None:
    """Set the half a million objects of the imports apart: looking through them took 0.4 s after every job."""
    import hardpix.run.train  # noqa: F401

    gc.collect()
    gc.freeze()


def _clean_up() -> None:
    """A network refers to its trainer and back: the next job must not find it in memory."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()


def _leave_traces(job: Job, error: Exception) -> None:
    """``error.txt``, and a record that says so where the run came to its end before it had written one."""
    text = "".join(traceback.format_exception(error))
    rundir.write_text(job.run_dir / ERROR, text)
    if not isinstance(error, HardpixError):
        print(text, file=sys.stderr, flush=True)
    state = look(job.run_dir, take_over=True)
    if state.kind == "failed":
        return
    line = _one_line(error)
    if state.record is not None:
        record.write(replace(state.record, status="failed", error=line), job.run_dir)
        return
    from hardpix.run.train import new_record

    cfg = job.config()
    cfg.parent = cfg.init_from = None  # which may be what could not be read
    started = new_record(cfg, job.run_dir, job.overrides, None)
    record.write(replace(started, status="failed", error=line), job.run_dir)


def _one_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}"[:500]


def _announce(job: Job, state: State, total: int) -> None:
    print(f"job {job.number} of {total}: {job.name} ({ACTION[state.kind]}: {state.why})", flush=True)


@contextmanager
def thawed() -> Iterator[None]:
    """At the end of a process libraries complain of what was never collected."""
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def terminable() -> Iterator[list[int]]:
    """A list that SIGTERM fills.

    Outside Lightning the signal raises; while it trains, its own handler ends the run after the current step.
    """
    stopped: list[int] = []

    def handler(number: int, _: object) -> None:
        stopped.append(number)
        if signal.getsignal(signal.SIGTERM) is handler:
            raise SystemExit(143)

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


def command(job: Job, state: State, config_dir: Path | None = None) -> str:
    """The command line that trains this job alone."""
    own = [o for o in job.overrides if not o.startswith("study=")]
    words = [*own, f"study={quoted(job.run_dir.parent.name)}", f"run={quoted(job.run_dir.name)}"]
    words += ["resume=true"] if ACTION[state.kind] == "resume" else []
    folder = [] if config_dir is None else ["--config-dir", str(config_dir)]
    return " ".join(["hardpix", "train", *map(shlex.quote, [*folder, *words])])


def summary(jobs: Sequence[Job], outcome: Outcome, before: dict[int, State], seconds: float) -> str:
    """How many of each, then a line for each job that is not done."""
    ends = {job.number: outcome.ends.get(job.number, "waiting") for job in jobs}
    counts = Counter(ends.values())
    earlier = sum(state.kind == "done" for state in before.values())
    known = f" ({earlier} before)" if earlier else ""
    order = {
        f"done{known}": counts["done"],
        **{k: counts[k] for k in ("failed", "running", "interrupted", "waiting")},
    }
    lines = [f"{len(jobs)} jobs: {counted(order)}; {seconds:.0f} s"]
    for job in jobs:
        end = ends[job.number]
        if end == "failed":
            lines.append(f"  failed       {job.name}: {outcome.errors[job.number]} ({job.run_dir / ERROR})")
        elif end != "done":
            lines.append(f"  {end:<11}  {job.name}")
    return "\n".join(lines)


def timed(study: Study, jobs: Sequence[Job], *, take_over: bool = False) -> int:
    """Run, print the summary, and return the exit status: 1 if a job failed, 130 or 143 after a signal."""
    begin = time.perf_counter()
    before = {job.number: look(job.run_dir, take_over=take_over) for job in jobs}
    outcome = run_all(study, jobs, take_over=take_over)
    print("\n" + summary(jobs, outcome, before, time.perf_counter() - begin), flush=True)
    return outcome.status or (1 if outcome.errors else 0)
