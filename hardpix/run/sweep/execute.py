"""One job in this process, and the launcher that takes one after the other here."""

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
from typing import NamedTuple

from omegaconf import DictConfig

from hardpix import record
from hardpix.run import rundir, world
from hardpix.run.lock import held
from hardpix.run.overrides import quoted
from hardpix.run.sweep import queue
from hardpix.run.sweep.crew import Crew, Elsewhere, follow
from hardpix.run.sweep.jobs import Job, counted
from hardpix.run.sweep.state import ACTION, ERROR, INTERRUPTED, State, clear, leftovers, look, scores
from hardpix.run.sweep.study import Study
from hardpix.types import HardpixError

OUTPUT = "output.log"  # what a run printed, where no terminal shows it
TAIL = 4000  # bytes of it that are told of a run whose process is gone

# What Lightning sets for the processes that it starts, and takes for the user's own at the next job.
OF_LAUNCHERS = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
CHILD_LEAVES = 60.0  # seconds for a further process to end by itself


class Ended(NamedTuple):
    """What has become of one job."""

    kind: str  # done | failed | running | interrupted
    text: str = ""  # its scores, or its error in one line
    status: int = 0  # 130, 143: ended by a signal


@dataclass
class Outcome:
    """What has become of a sweep."""

    total: int
    ends: dict[int, str] = field(default_factory=dict)  # job number -> done | failed | running | interrupted
    errors: dict[int, str] = field(default_factory=dict)  # one line each
    status: int = 0  # 130, 143: ended by a signal

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
    crew = Crew()
    crew.agree(jobs)
    if crew.follows:
        with terminable(), thawed():
            outcome.status = follow(crew, jobs, _train)
        return outcome
    with terminable() as stopped, thawed(), crew.led():
        for job in jobs:
            for _ in range(study.tries):
                ended = work(job, partial(outcome.begun, job), crew, take_over=take_over)
                outcome.ended(job, ended)
                if ended.kind != "failed" or stopped:
                    break
            if stopped or ended.status:
                outcome.status = 143 if stopped else ended.status
                break
            if ended.kind == "failed" and study.on_error == "stop":
                break
    return outcome


def work(
    job: Job,
    tell: Callable[[State], None],
    crew: Crew | None = None,
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
        if not queue.ours(job.run_dir):
            queue.forget(job.run_dir)
        settle()
        with written_to(job.run_dir / OUTPUT) if to_file else nullcontext():
            return _attempt(job, state, crew or Crew())


def _attempt(job: Job, state: State, crew: Crew) -> Ended:
    """What a job raises ends it alone; a signal is told by a status."""
    if state.kind == "failed" and not state.resume:
        clear(job.run_dir)
    cfg = job.config(resume=state.resume)
    crew.say(f"train {job.number} {'resume' if cfg.resume else 'fresh'}")
    try:
        with crew.together(cfg):
            _train(cfg, job)
    except (KeyboardInterrupt, SystemExit) as error:
        code = error.code if isinstance(error, SystemExit) else 130
        return Ended("interrupted", status=code if isinstance(code, int) and code else 130)
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        if not isinstance(error, HardpixError):
            print(text, file=sys.stderr, flush=True)
        line = _one_line(error)
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
                record.write(replace(state.record, status="failed", error=why), job.run_dir)
            return Ended("interrupted")
        if state.kind == "failed" and state.record is not None and not state.resume:
            return Ended("failed", state.record.error or why)
        path = job.run_dir / OUTPUT
        tail = path.read_bytes()[-TAIL:].decode(errors="replace") if path.is_file() else ""
        _leave_traces(job, why, f"{why}\nThe end of {path}:\n{tail}", again=True)
        return Ended("failed", why)


def _train(cfg: DictConfig, job: Job) -> None:
    from hardpix.run import train

    before = {name: os.environ.get(name) for name in OF_LAUNCHERS}
    try:
        train.train(cfg, job.overrides)
    finally:
        if world.size() == 1:
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
            thread._finished = True  # type: ignore[attr-defined]
            for child in thread._child_processes:  # type: ignore[attr-defined]
                try:
                    child.wait(CHILD_LEAVES)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def settle() -> None:
    """Set the half a million objects of the imports apart: looking through them took 0.4 s after every job."""
    if gc.get_freeze_count():
        return
    import hardpix.run.train  # noqa: F401

    gc.collect()
    gc.freeze()


def _clean_up() -> None:
    """A network refers to its trainer and back: the next job must not find it in memory."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()


def _leave_traces(job: Job, line: str, text: str, *, again: bool = False) -> None:
    """``error.txt``, and a record that says so where the run came to its end before it had written that.

    ``again``: also where a record says that the run had failed before.
    """
    rundir.write_text(job.run_dir / ERROR, text)
    state = look(job.run_dir, take_over=True)
    if state.kind == "failed" and state.record is not None and not again:
        return
    found = state.record or _unbegun(job)
    record.write(replace(found, status="failed", error=line), job.run_dir)


def _unbegun(job: Job) -> record.RunRecord:
    """The record of a run that did not come as far as writing one: no device is known to have had it."""
    from hardpix.run.environment import code_versions
    from hardpix.run.parent import factors

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


def _one_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}"[:500]


@contextmanager
def written_to(path: Path) -> Iterator[None]:
    """What this process, its children and libraries print goes to the end of a file, until the block ends."""
    kept = os.dup(1), os.dup(2)
    try:
        with open(path, "ab") as file:
            _point(file.fileno(), file.fileno())
        yield
    finally:
        _point(*kept)
        for handle in kept:
            os.close(handle)


def _point(out: int, err: int) -> None:
    for stream, number, handle in ((sys.stdout, 1, out), (sys.stderr, 2, err)):
        stream.flush()
        os.dup2(handle, number)


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
    """The command line that does with this job alone what the sweep would do."""
    own = [o for o in job.overrides if not o.startswith("study=")]
    words = [*own, f"study={quoted(job.run_dir.parent.name)}", f"run={quoted(job.run_dir.name)}"]
    words += ["resume=true"] if state.resume else []
    folder = [] if config_dir is None else ["--config-dir", str(config_dir)]
    line = shlex.join(["hardpix", "train", *folder, *words])
    if state.kind == "failed" and not state.resume:  # `train` keeps what a failed run has left
        return shlex.join(["rm", "-rf", *map(str, leftovers(job.run_dir))]) + " && " + line
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
