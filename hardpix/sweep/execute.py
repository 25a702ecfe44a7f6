"""Run one job in this process, isolated from the next, and all jobs one after the other."""

from __future__ import annotations

import gc
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import DictConfig

from hardpix import record
from hardpix.config.command_line import quoted
from hardpix.secrets import masked
from hardpix.sweep import jobs
from hardpix.sweep.jobs import ACTION, ERROR, INTERRUPTED, Job, State, counted, look, scores
from hardpix.sweep.lockstep import Elsewhere, RankGroup, follow
from hardpix.sweep.study import Study
from hardpix.train import machine, rundir
from hardpix.train.rundir import held
from hardpix.train.signals import STOPPING
from hardpix.types import HardpixError, Pruned

if TYPE_CHECKING:
    import pytorch_lightning as pl


OUTPUT = "output.log"  # what a run printed, where no terminal shows it
TAIL = 4000  # bytes of it that are told of a run whose process is gone


class Ended(NamedTuple):
    """What has become of one job."""

    kind: str  # done | failed | running | interrupted
    text: str = ""  # its scores, or its error in one line
    status: int = 0  # 130, 143, 138: ended by a signal


@dataclass
class Outcome:
    """What has become of a sweep."""

    total: int
    ends: dict[int, str] = field(default_factory=dict)  # job number -> done | failed | running | interrupted
    errors: dict[int, str] = field(default_factory=dict)  # one line each
    status: int = 0  # 130, 143, 138: ended by a signal

    def begun(self, job: Job, state: State, where: str = "") -> None:
        self._tell(job, f"({ACTION[state.kind]}: {state.why}{where})")

    def ended(self, job: Job, ended: Ended) -> None:
        self.ends[job.number] = ended.kind
        self.errors.pop(job.number, None)
        if ended.kind == "failed":
            self.errors[job.number] = ended.text
            self._tell(job, f"failed: {ended.text} ({job.run_dir / ERROR})")
        elif ended.text or ended.kind == "interrupted":
            self._tell(job, ", ".join(filter(None, (ended.kind, ended.text))))

    def _tell(self, job: Job, what: str) -> None:
        print(f"job {job.number} of {self.total}: {job.name} {what}", flush=True)


def run_here(study: Study, jobs: Sequence[Job], *, take_over: bool = False) -> Outcome:
    """Bring every job to its end, as far as it is not there yet; the state of each is looked up when its turn comes."""
    outcome = Outcome(len(jobs))
    crew = RankGroup()
    crew.agree(jobs)
    if crew.follows:
        with terminable(), gc_unfrozen():
            outcome.status = follow(crew, jobs, _train)
        return outcome
    with terminable() as stopped, gc_unfrozen(), crew.led():
        for job in jobs:
            for _ in range(study.tries):
                ended = work(job, partial(outcome.begun, job), crew, take_over=take_over)
                outcome.ended(job, ended)
                if ended.kind != "failed" or stopped:
                    break
            if stopped or ended.status:
                outcome.status = 128 + stopped[0] if stopped else ended.status
                break
            if ended.kind == "failed" and study.on_error == "stop":
                break
    return outcome


def work(
    job: Job,
    tell: Callable[[State], None],
    crew: RankGroup | None = None,
    *,
    take_over: bool = False,
    to_file: bool = False,
) -> Ended:
    """Train a job once, unless it is done or another process has it; ``tell`` hears what begins and why.

    ``crew``: the processes that train it together. ``to_file``: what is printed goes to the run's ``output.log``.
    """
    state = look(job.run_dir)
    if state.kind == "done":  # without a trace: also where one may only read
        tell(state)
        return Ended(state.kind)
    with held(job.run_dir) as free:
        state = look(job.run_dir, take_over=take_over)
        if not free and state.kind != "done":
            state = State("running", "running: another sweep on this machine has it")
        tell(state)
        if ACTION[state.kind] in ("skip", "leave"):
            return Ended(state.kind)
        if not jobs.is_own_submission(job.run_dir):
            jobs.forget_submission(job.run_dir)
        freeze_imports()
        with machine.written_to(job.run_dir / OUTPUT) if to_file else nullcontext():
            return attempt(job, state, crew)


def attempt(
    job: Job, state: State, crew: RankGroup | None = None, callbacks: Sequence[pl.Callback] = ()
) -> Ended:
    """Train; what a job raises ends it alone, a signal is told by a status."""
    crew = crew or RankGroup()
    if state.kind == "failed" and not state.resume and (kept := rundir.set_aside(job.run_dir)):
        print(f"{job.name} starts afresh; what it had saved is kept in {kept}", flush=True)
    cfg = job.config(resume=state.resume)
    crew.say(f"train {job.number} {'resume' if cfg.resume else 'fresh'}")
    try:
        with crew.together(cfg):
            _train(cfg, job, callbacks)
    except (KeyboardInterrupt, SystemExit) as error:
        code = error.code if isinstance(error, SystemExit) else 130
        status = code if isinstance(code, int) and code else 130
        after = look(job.run_dir)  # the signal may have come when all was done
        found = scores(after.record) if after.kind == "done" and after.record else ""
        return Ended("done" if after.kind == "done" else "interrupted", found, status)
    except Pruned:
        return Ended("pruned")
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        if not isinstance(error, HardpixError):
            print(masked(text), file=sys.stderr, flush=True)
        line = masked(machine.one_line(error))
        _leave_traces(job, line, text, again=isinstance(error, Elsewhere))
        return Ended("failed", line)
    (job.run_dir / ERROR).unlink(missing_ok=True)
    return Ended("done", scores(record.read(job.run_dir)))


def lost(job: Job, why: str) -> Ended:
    """The end of a job whose process has gone without a word: its record must not say ``running`` for ever.

    ``why`` is ``interrupted`` or begins with ``state.LOST``: such a run goes on from its last checkpoint.
    """
    with held(job.run_dir) as free:
        state = look(job.run_dir)
        if not free or state.kind in ("running", "done"):
            found = scores(state.record) if state.kind == "done" and state.record else ""
            return Ended(state.kind if free else "running", found)
        if why == INTERRUPTED:
            if state.record is not None:
                record.write(replace(state.record, status="interrupted", error=why), job.run_dir)
            return Ended("interrupted")
        if state.kind == "failed" and state.record is not None and not state.resume:
            return Ended("failed", state.record.error or why)
        path = job.run_dir / OUTPUT
        machine.settled(path)
        tail = path.read_bytes()[-TAIL:].decode(errors="replace") if path.is_file() else ""
        _leave_traces(job, why, f"{why}\nThe end of {path}:\n{tail}", again=True)
        return Ended("failed", why)


def _train(cfg: DictConfig, job: Job, callbacks: Sequence[pl.Callback] = ()) -> None:
    from hardpix.train import train

    with isolated_job():
        train.train(cfg, job.overrides, callbacks)


def _leave_traces(job: Job, line: str, text: str, *, again: bool = False) -> None:
    """``error.txt``, and a record that says so where the run came to its end before it had written that.

    ``again``: also where a record says that the run had failed before.
    """
    rundir.write_text(job.run_dir / ERROR, masked(text))
    state = look(job.run_dir, take_over=True)
    if state.kind == "failed" and state.record is not None and not again:
        return
    found = state.record or _unbegun(job)
    record.write(replace(found, status="failed", error=line), job.run_dir)


def _unbegun(job: Job) -> record.RunRecord:
    """The record of a run that did not come as far as writing one: no device is known to have had it."""
    from hardpix.train.cost import code_versions
    from hardpix.train.parent import factors

    cfg = job.config()
    return record.RunRecord(
        schema=record.SCHEMA,
        run_id=rundir.new_id(),
        status="failed",
        factors=factors(cfg),
        metrics={},
        seed=cfg.seed,
        parent=None,
        code=code_versions(),
        host={"hostname": platform.node()},
        started=rundir.utc_now(),
        name=str(cfg.run),
        study=cfg.study,
    )


def command(job: Job, state: State, config_dir: Path | None = None) -> str:
    """The command line that does with this job alone what the sweep would do."""
    own = [o for o in job.overrides if not o.startswith("study=")]
    words = [*own, f"study={quoted(job.run_dir.parent.name)}", f"run={quoted(job.run_dir.name)}"]
    words += ["resume=true"] if state.resume else []
    folder = [] if config_dir is None else ["--config-dir", str(config_dir)]
    line = shlex.join(["hardpix", "train", *folder, *words])
    if state.kind == "failed" and not state.resume:  # `train` keeps what a failed run has left
        return f"{rundir.command(job.run_dir)} && {line}"
    return line


def summary(jobs: Sequence[Job], outcome: Outcome, before: dict[int, State], seconds: float) -> str:
    """How many of each, then a line for each job that is not done."""
    ends = {job.number: outcome.ends.get(job.number, "waiting") for job in jobs}
    counts = Counter(ends.values())
    earlier = sum(state.kind == "done" for state in before.values())
    known = f" ({earlier} before)" if earlier else ""
    order = {
        f"done{known}": counts["done"],
        **{k: counts[k] for k in ("failed", "running", "submitted", "interrupted", "waiting")},
    }
    lines = [f"{len(jobs)} jobs: {counted(order)}; {seconds:.0f} s"]
    for job in jobs:
        end = ends[job.number]
        if end == "failed":
            lines.append(f"  failed       {job.name}: {outcome.errors[job.number]} ({job.run_dir / ERROR})")
        elif end != "done":
            lines.append(f"  {end:<11}  {job.name}")
    return "\n".join(lines)


# Isolate jobs that share a process: memory, signals, child processes.


# What Lightning sets for the processes that it starts, and takes for the user's own at the next job.
OF_LAUNCHERS = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
CHILD_LEAVES = 60.0  # seconds for a further process to end by itself


@contextmanager
def isolated_job() -> Iterator[None]:
    """After the block nothing of its training is left to the next."""
    before = {name: os.environ.get(name) for name in OF_LAUNCHERS}
    try:
        yield
    finally:
        if machine.size() == 1:
            _end_children()
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        _clean_up()


def _end_children() -> None:
    """End the processes that Lightning started for DDP, and its thread that would end this one if one of them fails.

    They leave by themselves when the group does; the next job has its own.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            children = thread._child_processes  # type: ignore[attr-defined]
            thread._child_processes = []  # type: ignore[attr-defined]  # it would kill this process for one that failed
            for child in children:
                try:
                    child.wait(CHILD_LEAVES)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def freeze_imports() -> None:
    """Set the half a million objects of the imports apart: looking through them took 0.4 s after every job."""
    if gc.get_freeze_count():
        return
    import hardpix.train.train  # noqa: F401

    gc.collect()
    gc.freeze()


def _clean_up() -> None:
    """A network refers to its trainer and back: the next job must not find it in memory."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()


@contextmanager
def gc_unfrozen() -> Iterator[None]:
    """At the end of a process libraries complain of what was never collected."""
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def terminable() -> Iterator[list[int]]:
    """A list that SIGINT, SIGTERM and SIGUSR1 fill.

    Outside of a training the signal raises; in it, handlers of its own end the run after the current step.
    """
    stopped: list[int] = []

    def handler(number: int, _: object) -> None:
        stopped.append(number)
        if signal.getsignal(number) is handler:
            raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield stopped
    finally:
        for number, former in before.items():
            signal.signal(number, former)
