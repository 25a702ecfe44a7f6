"""A further leg of a run: whether there is anything left to do, and what the legs before have left."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig

from hardpix import atomic, record
from hardpix.methods import Method
from hardpix.report.partial import SPREAD
from hardpix.run import rundir, world
from hardpix.run.checkpoint_files import MANIFEST, manifest, newest, sha256
from hardpix.types import ConfigError


def checkpoint(run_dir: Path, cfg: DictConfig) -> Path | None:
    """Where to go on from; None where the run begins. Raises ``HardpixError`` if no checkpoint is whole.

    A damaged ``last.ckpt`` gives its place to the one before; of several processes the first one sees to that.
    """
    if not cfg.resume or not rundir.resumable(run_dir):
        return None
    last = run_dir / rundir.LAST
    if world.rank() > 0:
        return last  # by the time that it is read, when all processes have met
    found = newest(run_dir)
    if found == last:
        return found
    print(f"going on from {found.name}, the one before", flush=True)
    listed = manifest(last.parent)
    digest = sha256(found)
    entry = next((e for e in listed.values() if e.get("sha256") == digest), None)
    found.replace(last)
    if entry is not None:  # after a stop between renaming and listing it stands under the other name
        others = {name: other for name, other in listed.items() if name not in (found.name, last.name)}
        text = json.dumps(others | {last.name: entry}, indent=1, sort_keys=True) + "\n"
        atomic.write_text(last.parent / MANIFEST, text)
    return last


def is_complete(before: record.RunRecord, cfg: DictConfig) -> bool:
    """Whether the run that is to be resumed has nothing left to train; refuses to make it shorter."""
    lengths = {key: before.factors.get(f"trainer.{key}") for key in ("max_steps", "max_epochs")}
    if cfg.trainer.max_steps is not None and cfg.trainer.max_steps < before.metrics.get("run/steps", 0):
        raise ConfigError(
            f"trainer.max_steps={cfg.trainer.max_steps}: the run has already made "
            f"{before.metrics['run/steps']:.0f} steps; give as many or more"
        )
    return before.status == "done" and all(cfg.trainer[key] == value for key, value in lengths.items())


def check_length(before: record.RunRecord, cfg: DictConfig, method: Method) -> None:
    """A schedule that ends with the training cannot be stretched: the record would tell of another run."""
    for key in ("max_steps", "max_epochs"):
        old, new = before.factors.get(f"trainer.{key}"), cfg.trainer[key]
        if old != new and getattr(method.parts.build_scheduler, "depends_on_length", True):
            raise ConfigError(
                f"trainer.{key}: {old} -> {new}, but the schedule was made for the old length; start a new run "
                "(only scheduler=constant and plateau can be trained longer)"
            )
        if old != new and method.depends_on_length:
            raise ConfigError(
                f"trainer.{key}: {old} -> {new}, but {method.length_setting} was made for the old length; "
                "start a new run"
            )


def check_processes(before: record.RunRecord, now: int) -> None:
    """Refuse other processes than the run began with: each has its share of the frames and its own random state."""
    began, nodes = before.factors.get(record.WORLD_SIZE, now), before.factors.get("trainer.num_nodes", 1)
    if began != now:
        raise ConfigError(
            f"{record.WORLD_SIZE}: {began} -> {now}, the run began in {began} processes; continue it with "
            f"trainer.devices={began // nodes} trainer.num_nodes={nodes}, or start a new run with another run="
        )


def seconds(before: record.RunRecord | None) -> float:
    """What earlier legs of a resumed run took, as far as it was recorded."""
    found = before.metrics.get("run/seconds", 0.0) if before else 0.0
    return found if found == found else 0.0


def costs(before: record.RunRecord | None) -> dict[str, float]:
    return {k: v for k, v in before.metrics.items() if k.startswith("cost/") or k == SPREAD} if before else {}
