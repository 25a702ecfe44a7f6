"""A run's directory: where it lies, that no two runs share it, and what is read back from it."""

from __future__ import annotations

import json
import os
import platform
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hardpix import record
from hardpix.atomic import obstacle, write_text
from hardpix.run import own_files, places, saved_config, world
from hardpix.types import ConfigError, HardpixError

CONFIG = "config.yaml"
COMPOSED = "config_composed.yaml"
CLASSES = "classes.json"
LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"
BEFORE = "checkpoints/previous.ckpt"  # the last but one, should the last be damaged
SHOWN = 5  # settings that an error names

# Keys at the top level that configurations written before they existed lack: a new key of `conf/` belongs here or to
# those below, so that older runs can be read, resumed, and found by a sweep.
ADDED: dict[str, Any] = {"parent": None, "parent_weights": "last", "parent_config": None, "freeze": []}

# The same of groups of plain values.
ADDED_GROUPS: dict[str, dict[str, Any]] = {"trainer": {"nan": "stop", "max_skip": 10}}

# The same of constructors, by their name.
ADDED_TO: dict[str, dict[str, Any]] = {
    "hardpix.data.DataModule": {"labeled": None, "labeled_seed": 0, "unlabeled_batch_size": None, "on_error": "stop",
                                "max_skip": 10, "accept_change": False},
    "hardpix.data.SyntheticRooms": {"style": "a"},
    **{f"hardpix.data.{name}": {"depth_missing": "error"}
       for name in ("Folder", "Listed", "NYUv2", "NYUv2Raw", "RGBDFolder", "SUNRGBD")},
    "hardpix.methods.LossWeightModule": {"depth_bias": 0.0},
    **{f"hardpix.models.{name}Head": {"project_kernel": 3}
       for name in ("DeepLabV3", "DeepLabV3Plus", "DUpsampling", "GAUDecoder")},
}  # fmt: skip

# Keys (or how they begin) without a bearing on what is trained and scored: no part of a run's identity in a sweep.
NO_FACTOR = ("resume", "run", "runs_dir", "study", "logger.", "callbacks.", "panels", "data.num_workers",
             "data.pin_memory", "data.accept_change", "trainer.log_every_steps")  # fmt: skip

# Keys that a resumed run may have otherwise than when it started.
FREE_ON_RESUME = (*NO_FACTOR, "data.on_error", "data.max_skip", "data.source.depth_missing", "trainer.max_steps",
                  "trainer.max_epochs",
                  "trainer.val_every", "trainer.limit_val", "trainer.limit_test", "test_weights")  # fmt: skip


def snapshot(run_dir: Path, epoch: int) -> Path:
    """Where the weights after ``epoch`` (from 1) lie, if ``callbacks.snapshots`` keeps them."""
    return run_dir / f"checkpoints/epoch_{epoch:04d}.ckpt"


def snapshots(run_dir: Path) -> list[int]:
    """The epochs whose weights a run has kept, in order."""
    found = (re.fullmatch(r"epoch_(\d+)\.ckpt", p.name) for p in run_dir.glob("checkpoints/epoch_*.ckpt"))
    return sorted(int(match[1]) for match in found if match)


def resumable(run_dir: Path) -> bool:
    """Whether a run has a checkpoint to go on from."""
    return any((run_dir / name).is_file() for name in (LAST, BEFORE))


def short_name(overrides: Sequence[str]) -> str:
    """A readable name from the command line: ``method=hardness,seed=1``; safe as a file name."""
    kept = [
        o.lstrip("+~")
        for o in overrides
        if not o.startswith(("run=", "study=", "runs_dir=", "resume=", "trusted=", "logger"))
    ]
    text = ",".join(o.split(".", 1)[-1] if "=" not in o.split(".", 1)[0] else o for o in kept)
    return re.sub(r"[^\w.,=+-]+", "_", text)[:100] or "default"


def new_id() -> str:
    return uuid.uuid4().hex[:12]


def _digits() -> str:
    """What tells runs of one second apart."""
    return uuid.uuid4().hex[:6]


def choose(cfg: DictConfig, overrides: Sequence[str]) -> Path:
    """The run's directory: ``runs_dir/study/run``; without ``run`` a name from time and overrides, not yet taken."""
    name = cfg.run
    if name is None:
        if cfg.resume is True:
            raise ConfigError(
                "resume=true: say which run to continue, run=NAME (with its study=... if not default)"
            )
        if world.size() > 1:
            raise ConfigError(
                "run: under torchrun or srun every process must know the directory, give run=NAME"
            )
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{stamp}-{short_name(overrides)}-{_digits()}"
    for key, value in (("study", cfg.study), ("run", name)):
        if not str(value).strip() or str(value) in (".", "..") or "/" in str(value) or os.sep in str(value):
            raise ConfigError(f"{key}={value}: must be the name of a folder, without slashes")
    run_dir = Path(cfg.runs_dir) / str(cfg.study) / str(name)
    return choose(cfg, overrides) if cfg.run is None and run_dir.exists() else run_dir


def inspect(run_dir: Path, cfg: DictConfig) -> record.RunRecord | None:
    """What lies in the directory, before anything is written: the record to continue when resuming, else None.

    ``resume=auto`` continues a run of the very same configuration, whatever became of it; ``true`` one that may be
    longer by now. A directory that holds another run is refused, unless that one failed before its first checkpoint;
    so is one whose run is alive in another process, one that cannot be written, and one with files not of its own.
    """
    check_writable(run_dir)
    own_files.check(run_dir)
    if not (run_dir / record.FILE_NAME).is_file():
        if resumable(run_dir):
            raise ConfigError(
                f"{run_dir} holds checkpoints but no {record.FILE_NAME}: another run= starts a new run"
            )
        return None
    before = record.read(run_dir)
    if before.status == "running" and alive(before):
        raise ConfigError(
            f"{run_dir}: process {before.host['pid']} on {before.host['hostname']} is training this run; "
            "wait for it or stop it"
        )
    unfinished = before.status in ("failed", "interrupted") and not resumable(run_dir)
    if not cfg.resume:
        if unfinished:
            return None
        raise ConfigError(
            f"{run_dir} already holds a run ({before.status}): resume=auto continues it, another run= starts a new one"
        )
    free = FREE_ON_RESUME if cfg.resume is True else NO_FACTOR
    elsewhere = places.excused(before, read_config(run_dir), cfg)
    differing = differences(run_dir, cfg, free, elsewhere)
    if not differing:
        return before
    if unfinished and cfg.resume is not True:
        return None
    more = f"; and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
    found = f"{'; '.join(differing[:SHOWN])}{more}"
    if cfg.resume is not True and not differences(run_dir, cfg, FREE_ON_RESUME, elsewhere):
        raise ConfigError(
            f"{run_dir} already holds a run ({before.status}), {found}: resume=true continues it that way, "
            "another run= starts a new one"
        )
    raise ConfigError(
        f"{run_dir} already holds a run ({before.status}) of another configuration ({found}); give the same settings "
        "to continue it, or another run= for a new run"
    )


def check_writable(folder: Path) -> None:
    if problem := obstacle(folder, folder=True):
        raise ConfigError(f"{folder}: {problem}; choose another runs_dir=")


def alive(before: record.RunRecord) -> bool:
    """Whether another process trains the run of a record, as far as this machine can tell."""
    return owner_lives(before.host)


def owner_lives(host: Mapping[str, str]) -> bool:
    """Whether a process other than this one is the ``pid`` on ``hostname`` that began at ``pid_began``."""
    pid = int(host.get("pid", "0"))
    if host.get("hostname") != platform.node() or pid in (0, os.getpid()):
        return False
    if not lives(pid):
        return False
    began = host.get("pid_began")  # the number alone may have passed to another process
    return began is None or process_began(pid) in ("", began)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def process_began(pid: int) -> str:
    """When a process began, in clock ticks since this boot, with the boot's id; empty where /proc does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        )  # the name may hold anything
    except OSError:
        return ""
    return "ended" if fields[0] == "Z" else f"{fields[19]} {boot}"


def claim(run_dir: Path, *, new: bool = False) -> bool:
    """Make the directory; False if it must be ``new`` and is there already."""
    try:
        run_dir.mkdir(parents=True, exist_ok=not new)
    except OSError as error:
        if new and run_dir.is_dir():
            return False
        raise ConfigError(
            f"{run_dir}: cannot be made ({error.strerror}); choose a writable runs_dir="
        ) from None
    return True


def differences(
    run_dir: Path, cfg: DictConfig, free: tuple[str, ...], excused: Collection[str] = ()
) -> list[str]:
    """``key: old -> new`` for what is set otherwise; keys in ``excused``, or that begin like ``free``, may be."""
    old, new = record.flatten(plain(read_config(run_dir))), record.flatten(plain(cfg))
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if not key.startswith(free) and key not in excused and old.get(key) != new.get(key)
    ]


def plain(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def write_config(run_dir: Path, cfg: DictConfig) -> None:
    """``config.yaml`` (resolved, what a run is reloaded from) and ``config_composed.yaml`` (with interpolations)."""
    for name, resolve in ((CONFIG, True), (COMPOSED, False)):
        write_text(run_dir / name, OmegaConf.to_yaml(cfg, resolve=resolve))


def write_classes(run_dir: Path, classes: Sequence[str]) -> None:
    """The names behind the outputs: a score with other names would mean nothing."""
    write_text(run_dir / CLASSES, json.dumps(list(classes), indent=1) + "\n")


def read_classes(path: Path) -> list[str] | None:
    """The classes of the run that ``path`` is, or lies in; None where they are not known."""
    for folder in (path, *path.parents[:2]):
        if (folder / CLASSES).is_file():
            return saved_config.load_names(folder / CLASSES)
    return None


def check_classes(run_dir: Path, classes: Sequence[str], dataset: str) -> None:
    path = run_dir / CLASSES
    trained = saved_config.load_names(path) if path.is_file() else list(classes)
    if trained != list(classes):
        raise ConfigError(
            f"{run_dir} was trained on {len(trained)} classes, {dataset} has {len(classes)}, and they differ "
            f"({_apart(trained, classes, dataset)}): choose data with the same classes in the same order"
        )


def _apart(trained: Sequence[str], classes: Sequence[str], dataset: str) -> str:
    """Names that one side lacks, three of each at most; where none is lacking, those that stand at other places."""
    sides = (("the run", classes, trained), (dataset, trained, classes))
    lacking = {who: [name for name in others if name not in own][:3] for who, others, own in sides}
    told = [f"{who} lacks {', '.join(names)}" for who, names in lacking.items() if names]
    moved = [f"{a} / {b}" for a, b in zip(trained, classes, strict=False) if a != b][:3]
    return "; ".join(told) or ", ".join(moved) or "in number"


def read_config(run_dir: Path) -> DictConfig:
    path = run_dir / CONFIG
    if not path.is_file():
        raise HardpixError(f"{run_dir} is not a run directory: it has no {CONFIG}")
    cfg = saved_config.load(path)
    _complete(cfg)
    OmegaConf.set_struct(cfg, True)
    return cfg


def _complete(cfg: DictConfig) -> None:
    for key, value in ADDED.items():
        cfg.setdefault(key, value)
    for group, values in ADDED_GROUPS.items():
        for key, value in values.items() if isinstance(cfg.get(group), DictConfig) else ():
            cfg[group].setdefault(key, value)
    nodes = [cfg.get(group) for group in ("data", "head", "method")]
    for node in (*nodes, nodes[0].get("source") if isinstance(nodes[0], DictConfig) else None):
        if isinstance(node, DictConfig):
            for key, value in ADDED_TO.get(str(node.get("_target_")), {}).items():
                node.setdefault(key, value)
    if isinstance(cfg.parent_config, DictConfig):
        _complete(cfg.parent_config)


def as_text(cfg: DictConfig) -> str:
    return OmegaConf.to_yaml(cfg, resolve=True)


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
