"""Run directories: where they lie, who writes to them, and what is read back."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from hardpix import record
from hardpix.config import safe_files
from hardpix.config.catalog import conf_dir
from hardpix.record import FILES, FRAMES, obstacle, without_below, write_text
from hardpix.train import machine
from hardpix.types import ConfigError, HardpixError

CONFIG = "config.yaml"
COMPOSED = "config_composed.yaml"
CLASSES = "classes.json"
LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"
PREVIOUS = "checkpoints/previous.ckpt"  # the last but one, should the last be damaged
MAX_NAMED = 5  # settings that an error names

# Keys at the top level that configurations written before they existed lack: a new key of `conf/` belongs here or to
# those below, so that older runs can be read, resumed, and found by a sweep.
ADDED: dict[str, Any] = {
    "parent": None,
    "parent_weights": "last",
    "parent_config": None,
    "freeze": [],
    "notes": {},
}


class InConf(NamedTuple):
    """A value without effect next to the others that are added: as ``conf/FILE`` has it today."""

    file: str


# The same of groups of plain values.
ADDED_GROUPS: dict[str, dict[str, Any]] = {
    "trainer": {"nan": "stop", "max_skip": InConf("trainer/default.yaml")}
}

# The same of constructors, by their name.
ADDED_TO: dict[str, dict[str, Any]] = {
    "hardpix.data.DataModule": {"labeled": None, "labeled_seed": 0, "unlabeled_batch_size": None, "on_error": "stop",
                                "max_skip": InConf("pipeline/default.yaml"), "accept_change": False},
    "hardpix.data.SyntheticRooms": {"style": "a"},
    **{f"hardpix.data.{name}": {"depth_missing": "error"}
       for name in ("Folder", "Listed", "NYUv2", "NYUv2Raw", "RGBDFolder", "SUNRGBD")},
    "hardpix.methods.LossWeightModule": {"depth_bias": 0.0},
    **{f"hardpix.models.{name}Head": {"project_kernel": 3}
       for name in ("DeepLabV3", "DeepLabV3Plus", "DUpsampling", "GAUDecoder")},
}  # fmt: skip

# Keys (or how they begin) without a bearing on what is trained and scored: no part of a run's identity in a sweep.
NO_FACTOR = ("resume", "run", "runs_dir", "study", "notes", "logger.", "callbacks.", "panels", "data.num_workers",
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
    return any((run_dir / name).is_file() for name in (LAST, PREVIOUS))


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


def _random_suffix() -> str:
    """What tells runs of one second apart."""
    return uuid.uuid4().hex[:6]


def choose_run_dir(cfg: DictConfig, overrides: Sequence[str]) -> Path:
    """The run's directory: ``runs_dir/study/run``; without ``run`` a name from time and overrides, not yet taken."""
    name = cfg.run
    if name is None:
        if cfg.resume is True:
            raise ConfigError(
                "resume=true: say which run to continue, run=NAME (with its study=... if not default)"
            )
        if machine.world_size() > 1:
            raise ConfigError(
                "run: under torchrun or srun every process must know the directory, give run=NAME"
            )
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{stamp}-{short_name(overrides)}-{_random_suffix()}"
    for key, value in (("study", cfg.study), ("run", name)):
        if not str(value).strip() or str(value) in (".", "..") or "/" in str(value) or os.sep in str(value):
            raise ConfigError(f"{key}={value}: must be the name of a folder, without slashes")
    run_dir = Path(cfg.runs_dir) / str(cfg.study) / str(name)
    return choose_run_dir(cfg, overrides) if cfg.run is None and run_dir.exists() else run_dir


def check_writable(folder: Path) -> None:
    if problem := obstacle(folder, folder=True):
        raise ConfigError(f"{folder}: {problem}; choose another runs_dir=")


def is_running(before: record.RunRecord) -> bool:
    """Whether another process trains the run of a record, as far as this machine can tell."""
    return owner_is_alive(before.host)


def owner_is_alive(host: Mapping[str, str]) -> bool:
    """Whether a process other than this one is the ``pid`` on ``hostname`` that began at ``pid_began``."""
    pid = int(host.get("pid", "0"))
    if host.get("hostname") != platform.node() or pid in (0, os.getpid()):
        return False
    if not process_exists(pid):
        return False
    began = host.get("pid_began")  # the number alone may have passed to another process
    return began is None or process_began(pid) in ("", began)


def process_exists(pid: int) -> bool:
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


def make_run_dir(run_dir: Path, *, new: bool = False) -> bool:
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
            return safe_files.load_names(folder / CLASSES)
    return None


def check_classes(run_dir: Path, classes: Sequence[str], dataset: str) -> None:
    path = run_dir / CLASSES
    trained = safe_files.load_names(path) if path.is_file() else list(classes)
    if trained != list(classes):
        raise ConfigError(
            f"{run_dir} was trained on {len(trained)} classes, {dataset} has {len(classes)}, and they differ "
            f"({_class_differences(trained, classes, dataset)}): choose data with the same classes in the same order"
        )


def _class_differences(trained: Sequence[str], classes: Sequence[str], dataset: str) -> str:
    """Names that one side lacks, three of each at most; where none is lacking, those that stand at other places."""
    sides = (("the run", classes, trained), (dataset, trained, classes))
    lacking = {who: [name for name in others if name not in own][:3] for who, others, own in sides}
    parts = [f"{who} lacks {', '.join(names)}" for who, names in lacking.items() if names]
    moved = [f"{a} / {b}" for a, b in zip(trained, classes, strict=False) if a != b][:3]
    return "; ".join(parts) or ", ".join(moved) or "in number"


def read_config(run_dir: Path) -> DictConfig:
    path = run_dir / CONFIG
    if not path.is_file():
        raise HardpixError(f"{run_dir} is not a run directory: it has no {CONFIG}")
    cfg = safe_files.load(path)
    _complete(cfg)
    OmegaConf.set_struct(cfg, True)
    return cfg


def _complete(cfg: DictConfig) -> None:
    _add(cfg, ADDED)
    for group, values in ADDED_GROUPS.items():
        if isinstance(cfg.get(group), DictConfig):
            _add(cfg[group], values)
    nodes = [cfg.get(group) for group in ("data", "head", "method")]
    for node in (*nodes, nodes[0].get("source") if isinstance(nodes[0], DictConfig) else None):
        if isinstance(node, DictConfig):
            _add(node, ADDED_TO.get(str(node.get("_target_")), {}))
    if isinstance(cfg.parent_config, DictConfig):
        _complete(cfg.parent_config)


def _add(node: DictConfig, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key not in node:
            file = conf_dir() / value.file if isinstance(value, InConf) else None
            node[key] = safe_files.read_yaml(file)[key] if file else value


def as_text(cfg: DictConfig) -> str:
    return OmegaConf.to_yaml(cfg, resolve=True)


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# One writer per run directory.


FILE_NAME = ".lock"

_held: set[Path] = set()  # by this process: a sweep holds a directory, and its launcher's `train` asks again


@contextmanager
def locked_run_dir(run_dir: Path) -> Iterator[bool]:
    """Whether this process alone may write to a run's directory until the block ends, or the process.

    The lock is the operating system's, and so never stale; the file says whose it is. On a file system without
    locks the process that the file names decides, as far as it can be seen from here. ``ConfigError`` where the lock
    is a link, a pipe or the like.
    """
    key = run_dir.absolute()
    if key in _held:
        yield True
        return
    make_run_dir(run_dir)
    handle = safe_files.open_lock(run_dir / FILE_NAME)
    try:
        if not _lock(handle, run_dir):
            yield False
            return
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} {platform.node()}\n".encode(), 0)
        _held.add(key)
        try:
            yield True
        finally:
            _held.discard(key)
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


@contextmanager
def writing_run_dir(run_dir: Path) -> Iterator[None]:
    """Hold a run's directory, or raise ``ConfigError`` with the name of the process that does."""
    with locked_run_dir(run_dir) as free:
        if not free:
            raise ConfigError(
                f"{run_dir}: {lock_owner(run_dir)} is writing here; wait for it or stop it, or give another run="
            )
        yield


def lock_owner(run_dir: Path) -> str:
    """``process 123 on host``."""
    try:
        pid, host = (run_dir / FILE_NAME).read_text().split()
    except (OSError, ValueError):
        return "another process"
    return f"process {pid} on {host}"


def _lock(handle: int, run_dir: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return _is_unlocked(run_dir)
    try:
        fcntl.lockf(
            handle, fcntl.LOCK_EX | fcntl.LOCK_NB
        )  # not flock, which a data worker would go on holding
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return _is_unlocked(run_dir)
    return True


def _is_unlocked(run_dir: Path) -> bool:
    try:
        pid, host = (run_dir / FILE_NAME).read_text().split()
    except (OSError, ValueError):
        return True
    return host == platform.node() and not process_exists(int(pid))


# What a failed attempt has left: kept in a folder of its own when the run starts afresh.


FAILED_FOLDER = "failed"  # in the run's: failed/1, failed/2, ...
FAILED_RECORD = (
    "record.json"  # the run.json of such an attempt, under a name by which it does not count as a run
)
KEPT_IN_PLACE = (FAILED_FOLDER, ".lock", "output.log", "slurm.json", "wandb")  # what all attempts share


def set_aside(run_dir: Path) -> Path | None:
    """Move what a failed attempt has left to a folder in ``run_dir``, and return that; None where there was nothing.

    To be called by whoever holds the directory. Stopped in between, the record is still where it was, and the rest goes
    to another folder the next time.
    """
    target, moves = _planned_moves(run_dir)
    if not moves:
        return None
    target.mkdir(parents=True)
    for path, place in moves:
        os.replace(path, place)
    return target


def set_aside_command(run_dir: Path) -> str:
    """:func:`set_aside` for a shell; its status is that of the record's move, which fails where there is no folder."""
    target, moves = _planned_moves(run_dir)
    lines = [["mkdir", "-p", str(target)], *(["mv", str(path), str(place)] for path, place in moves)]
    return "; ".join(map(shlex.join, lines))


def _planned_moves(run_dir: Path) -> tuple[Path, list[tuple[Path, Path]]]:
    """The next folder, and what goes where, the record last."""
    number = 1
    while (run_dir / FAILED_FOLDER / str(number)).exists():
        number += 1
    target = run_dir / FAILED_FOLDER / str(number)
    found = (
        sorted(path for path in run_dir.iterdir() if path.name not in KEPT_IN_PLACE)
        if run_dir.is_dir()
        else []
    )
    found.sort(key=lambda path: path.name == record.FILE_NAME)
    return target, [(p, target / (FAILED_RECORD if p.name == record.FILE_NAME else p.name)) for p in found]


# Settings that are paths: stored absolute, and compared by what lies there.


RUNS = ("parent", "init_from")
CACHES = ("data.source.cache_dir",)  # nothing lies there that is not made again
PLACES = tuple(dict.fromkeys((*FRAMES, *FILES, *RUNS, *CACHES)))
DIGITS = 16


def with_absolute_paths(cfg: DictConfig) -> DictConfig:
    """``cfg`` with its paths as they are from the root of the disk: it is read from other working directories, too."""
    cfg = cfg.copy()
    for key in PLACES:
        value = OmegaConf.select(cfg, key)
        if isinstance(value, str) and value and not os.path.isabs(value):
            OmegaConf.update(cfg, key, os.path.abspath(value))
    return cfg


def check_data_paths(cfg: DictConfig, run_dir: Path) -> None:
    """Raise ``ConfigError`` where the data of a run are no longer at the path that its configuration names."""
    for key in FRAMES:
        path = OmegaConf.select(cfg, key)
        if isinstance(path, str) and "{" not in path and not Path(path).exists():
            raise ConfigError(
                f"{key}={path}: no such file or folder, as {run_dir} was trained there; say where the data lie now, "
                f"{key}=PATH"
            )


def moved_paths(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys of paths, also of the runs below, that differ in two flat configurations."""
    return [key for key in differing_paths(old, new) if _place(old.get(key)) != _place(new.get(key))]


def differing_paths(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    keys = (key for key in sorted(old.keys() | new.keys()) if without_below(key) in PLACES)
    return [key for key in keys if old.get(key) != new.get(key)]


def _place(value: Any) -> Any:
    return os.path.abspath(value) if isinstance(value, str) and value else value
