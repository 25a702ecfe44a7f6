"""Train a job that a launcher composed, isolated from the next one in the same process."""

from __future__ import annotations

import gc
import platform
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from hardpix import record
from hardpix.secrets import masked
from hardpix.sweep import state as states
from hardpix.sweep.cluster import on_cluster
from hardpix.sweep.state import ACTION, ERROR, TO_DO, State, look, scores
from hardpix.train import machine, rundir
from hardpix.train.rundir import locked_run_dir
from hardpix.train.signals import check_stopped
from hardpix.types import HardpixError, Pruned

if TYPE_CHECKING:
    import pytorch_lightning as pl

OUTPUT = "output.log"  # what a run printed, where no terminal shows it


class Work:
    """What launchers call with the configuration of a job: train it, unless it is done or another process has it."""

    def __init__(
        self, names: Mapping[str, tuple[int, str]], *, take_over: bool = False, to_file: bool = False
    ) -> None:
        self.names, self.take_over, self.to_file = names, take_over, to_file

    def tell(self, run: str, state: State) -> None:
        number, name = self.names[run]
        what = f"({ACTION[state.kind]}: {state.why})"
        print(f"job {number} of {len(self.names)}: {name} {what}", flush=True)

    def __call__(self, cfg: DictConfig) -> float | None:
        overrides = list(HydraConfig.get().overrides.task)
        with outside_hydra(), on_cluster(directory(cfg)):
            if machine.rank() > 0:
                train(cfg, overrides)
            else:
                self._work(cfg, overrides)
        return None

    def _work(self, cfg: DictConfig, overrides: Sequence[str]) -> None:
        run_dir = directory(cfg)
        if look(run_dir).kind == "done":  # without a trace: also where one may only read
            return
        with locked_run_dir(run_dir) as free:
            state = look(run_dir, take_over=self.take_over)
            if not free and state.kind != "done":
                state = State("running", "running: another sweep on this machine has it")
            self.tell(run_dir.name, state)
            if ACTION[state.kind] not in TO_DO:
                return
            with machine.output_to_file(run_dir / OUTPUT) if self.to_file else nullcontext():
                kind = attempt(cfg, overrides, state)
                found = record.read(run_dir)
            number, name = self.names[run_dir.name]
            what = (
                f"failed: {found.error} ({run_dir / ERROR})"
                if kind == "failed"
                else f"{kind}, {scores(found)}"
            )
            print(f"job {number} of {len(self.names)}: {name} {what.rstrip(', ')}", flush=True)
        check_stopped()


def directory(cfg: DictConfig) -> Path:
    return Path(cfg.runs_dir) / str(cfg.study) / str(cfg.run)


def attempt(
    cfg: DictConfig, overrides: Sequence[str], state: State, callbacks: Sequence[pl.Callback] = ()
) -> str:
    """Train once: ``done``, ``failed`` with traces, or ``pruned``; a signal raises ``SystemExit``."""
    run_dir = directory(cfg)
    if not states.is_own_submission(run_dir):
        states.forget_submission(run_dir)
    if state.kind == "failed" and not state.resume and (kept := rundir.set_aside(run_dir)):
        print(f"{run_dir.name} starts afresh; what it had saved is kept in {kept}", flush=True)
    cfg.resume = state.resume
    freeze_imports()
    try:
        train(cfg, overrides, callbacks)
    except Pruned:
        return "pruned"
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        if not isinstance(error, HardpixError):
            print(masked(text), file=sys.stderr, flush=True)
        leave_traces(cfg, masked(machine.one_line(error)), text)
        return "failed"
    (run_dir / ERROR).unlink(missing_ok=True)
    return "done"


def train(cfg: DictConfig, overrides: Sequence[str], callbacks: Sequence[pl.Callback] = ()) -> None:
    from hardpix.train.train import train

    try:
        train(cfg, overrides, callbacks)
    finally:
        clean_up()


def leave_traces(cfg: DictConfig, line: str, text: str, *, again: bool = False) -> None:
    """``error.txt``, and a record that says so where the run came to its end before it had written that.

    ``again``: also where a record says that the run had failed before.
    """
    run_dir = directory(cfg)
    rundir.make_run_dir(run_dir)
    rundir.write_text(run_dir / ERROR, masked(text))
    state = look(run_dir, take_over=True)
    if state.kind == "failed" and state.record is not None and not again:
        return
    record.write(replace(state.record or _unbegun(cfg), status="failed", error=line), run_dir)


def _unbegun(cfg: DictConfig) -> record.RunRecord:
    """The record of a run that did not come as far as writing one: no device is known to have had it."""
    from hardpix.train.cost import code_versions
    from hardpix.train.parent import factors

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


# Isolate jobs that share a process: Hydra, memory, signals.


@contextmanager
def outside_hydra() -> Iterator[None]:
    """Lightning starts DDP processes its own way inside Hydra, which would start a whole sweep again."""
    holder = HydraConfig.instance()
    saved, holder.cfg = holder.cfg, None
    try:
        yield
    finally:
        holder.cfg = saved


_freezing = False


def freeze_imports() -> None:
    """Exempt the half a million objects of the imports from collection, which took 0.4 s after every job."""
    if _freezing and not gc.get_freeze_count():
        import hardpix.train.train  # noqa: F401

        gc.collect()
        gc.freeze()


def clean_up() -> None:
    """A network refers to its trainer and back: the next job must not find it in memory."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()


@contextmanager
def gc_unfrozen() -> Iterator[None]:
    """Freeze within the block alone: at the end of a process libraries complain of what was never collected."""
    global _freezing
    _freezing = True
    try:
        yield
    finally:
        _freezing = False
        gc.unfreeze()
