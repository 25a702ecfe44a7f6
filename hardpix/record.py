"""The run record, and atomic files: what a run leaves behind and all that a table reads. Standard library only.

``run.json`` lies in the run's directory. It is written at the start (``running``) and replaced atomically at
the end (``done``, ``interrupted`` by a signal, or ``failed`` with the error): a reader sees one whole record or the
other, never a part.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from hardpix.secrets import masked
from hardpix.types import ConfigError, HardpixError

SCHEMA = 1
READABLE_SCHEMAS = (1,)
FILE_NAME = "run.json"
METRICS = "metrics.csv"  # next to it: losses and scores by step

Status = Literal["running", "done", "interrupted", "failed"]
INTERRUPTED = "interrupted"
BELOW = "parent_config."  # before the factors of a parent, or of the run whose weights are the start
# Factors that no configuration holds: processes of the training, and frames of an optimiser step over all of them.
WORLD_SIZE, EFFECTIVE_BATCH = "trainer.world_size", "trainer.effective_batch"
BATCH_PARTS = ("data.batch_size", "trainer.accumulate", WORLD_SIZE)
PRUNED = "Pruned: "  # how the error of a run begins that a search ended early
DEV_RUN = "fast_dev_run: "  # and of one that only tried out whether it would run


@dataclass(frozen=True)
class RunRecord:
    """One run. ``factors`` decide what may be compared; ``code`` and ``host`` only ever cause a warning."""

    schema: int  # bump on change; READABLE_SCHEMAS names the versions that `read` accepts
    run_id: str
    status: Status
    factors: dict[str, Any]  # the resolved config, flattened: "method.temperature": 0.5
    metrics: dict[str, float]  # "test/miou": a fraction in [0, 1]; only renderers multiply by 100
    seed: int
    parent: str | None  # the run whose weights this one started from
    code: dict[str, str]  # commit, dirty flag, torch / lightning / timm versions
    host: dict[str, str]  # device, precision; never a factor
    started: str  # UTC, ISO 8601; duration is metrics["run/seconds"]
    error: str | None = None  # one line, when failed or interrupted
    name: str = ""  # for people: the overrides, shortened
    study: str = ""  # runs of one sweep share it
    dataset: str = ""  # name of the data set that was scored
    main_metric: str = "miou"  # what papers report on it: "val/miou" tells runs apart while a study goes on
    frames: dict[str, int] = field(
        default_factory=dict
    )  # "nyuv2/train": 795; train, val and test as they were used
    # What identifies data, wherever they lie: "nyuv2/train" of the frames and files of a split, and
    # "nyuv2/train content", see hardpix.data.statistics; "data.source.classes" of the file that this factor names;
    # the same with "parent_config." before it of the run below.
    data: dict[str, str] = field(default_factory=dict)
    stamps: dict[str, str] = field(default_factory=dict)  # when their files were written, and where they lie
    overrides: list[str] = field(default_factory=list)  # of its command line, "method=hardness"; for people

    @property
    def outcome(self) -> str:
        """The status; ``pruned`` or ``fast_dev_run`` of a run that did not fail, but that has no score."""
        begins = {PRUNED: "pruned", DEV_RUN: "fast_dev_run"} if self.status == "failed" else {}
        return next(
            (word for text, word in begins.items() if (self.error or "").startswith(text)), self.status
        )

    @property
    def reason(self) -> str:
        """The first line of the error, without what the outcome says already; empty where there is none."""
        text = (self.error or "").removeprefix(PRUNED).removeprefix(DEV_RUN)
        first = (text.strip().splitlines() or [""])[0]
        return "" if first == self.outcome else first


def write(record: RunRecord, run_dir: str | os.PathLike[str]) -> Path:
    """Put the record into ``run_dir/run.json``; an interruption at any point leaves the former file whole.

    JSON has no NaN: a metric that is NaN is stored as ``null``, an infinite one as ``"inf"`` or ``"-inf"``.
    """
    content = asdict(record)
    content["error"] = None if record.error is None else masked(record.error)
    content["metrics"] = {name: _encode(value) for name, value in record.metrics.items()}
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
    path = Path(run_dir) / FILE_NAME
    write_text(path, text)
    return path


def read(run_dir: str | os.PathLike[str]) -> RunRecord:
    """The record in ``run_dir``; keys that this version does not know are passed over."""
    path = Path(run_dir) / FILE_NAME
    content = _load(path)
    schema = content.get("schema")
    if schema not in READABLE_SCHEMAS:
        known = ", ".join(map(str, READABLE_SCHEMAS))
        raise HardpixError(f"{path} has record schema {schema!r}, and this hardpix reads only {known}.")
    try:
        content["metrics"] = {key: _decode(value) for key, value in content["metrics"].items()}
        if (content["status"], content.get("error")) == ("failed", INTERRUPTED):  # as older versions wrote it
            content["status"] = INTERRUPTED
        record = RunRecord(**{f.name: content[f.name] for f in fields(RunRecord) if f.name in content})
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise HardpixError(f"{path} is not a complete run record ({error}); delete it or rerun.") from None
    if record.status not in get_args(Status) or not isinstance(record.factors, dict):
        raise HardpixError(
            f"{path} is not a run record: status {record.status!r} is unknown or factors is no map."
        )
    on_cpu = str(record.host.get("device", "")).endswith(" CPU") if isinstance(record.host, dict) else False
    return replace(record, factors=with_batch(record.factors, 1 if on_cpu else None))


def with_batch(factors: Mapping[str, Any], auto: int | None = None) -> dict[str, Any]:
    """``factors`` with WORLD_SIZE and EFFECTIVE_BATCH, of the run and of those below it, where they are not there yet.

    They follow from ``trainer.devices``; ``auto``: how many processes ``trainer.devices=auto`` was, None: not known.
    Then they stay absent, as in records of versions that did not keep them.
    """
    found, below = dict(factors), ""
    while (devices := found.get(f"{below}trainer.devices")) is not None:
        nodes = found.get(f"{below}trainer.num_nodes", 1)
        count = len(devices) if isinstance(devices, list) else devices
        if type(count) is int and count > 0 and type(nodes) is int:
            found.setdefault(below + WORLD_SIZE, count * nodes)
        elif auto is not None and not below:
            found.setdefault(WORLD_SIZE, auto)
        parts: list[Any] = [found.get(below + key) for key in BATCH_PARTS]
        if all(type(part) is int for part in parts):
            found.setdefault(below + EFFECTIVE_BATCH, math.prod(parts))
        below += BELOW
    return found


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """``{"method": {"alpha": 0.5}}`` becomes ``{"method.alpha": 0.5}``.

    Lists stay lists (with whatever is inside), an empty mapping stays as ``{}``, and floats that JSON cannot
    hold become ``"nan"``, ``"inf"`` or ``"-inf"``, so that equal configurations compare equal.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[str(key)] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _encode(value: float) -> float | str | None:
    if math.isfinite(value):
        return float(value)
    return None if math.isnan(value) else str(float(value))


def _decode(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def _load(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise HardpixError(f"{path} is no file; remove it, or name another directory.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise HardpixError(
            f"{path} does not exist; a directory that `hardpix train` wrote is needed."
        ) from None
    except OSError as error:
        raise HardpixError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # also undecodable bytes
        raise HardpixError(f"{path} is damaged ({error}); delete it or rerun.") from None
    if not isinstance(content, dict):
        raise HardpixError(f"{path} is damaged: it holds a {type(content).__name__}, not a JSON object.")
    return content


# Atomic files: written under another name next to their place, flushed, renamed. Standard library only.


UNFINISHED = re.compile(r"\.(?P<stem>.+)\.(?P<pid>\d+)\.partial(\.\w+)?")


@contextmanager
def replacing(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """A path in the same folder, with the same suffix, to write to; after the block the file stands at ``path``.

    If the block or the writing fails, what was at ``path`` stays. ``sync`` makes file and name survive a power cut;
    without it (for the thousands of files of a data set, of which a journal knows the finished ones) only the end
    of the process. Not tempfile: its files are readable by their owner only, and colleagues read one's runs.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield unfinished
        if sync:
            flush(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write tells no name
        raise
    finally:
        unfinished.unlink(missing_ok=True)
    if sync:
        flush(path.parent)


def write_text(path: str | os.PathLike[str], text: str, *, sync: bool = True) -> None:
    with (
        replacing(path, sync=sync) as unfinished,
        open(unfinished, "w", encoding="utf-8", newline="") as file,
    ):
        file.write(text)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; Windows cannot open folders and need not."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does not flush folders
            raise
    finally:
        os.close(handle)


def flush_below(folder: Path, leave_out: str = "") -> None:
    """Wait until every file and name in ``folder`` and below is on the disk, but for its part ``leave_out``."""
    for parent, folders, names in os.walk(folder):
        if leave_out in folders and Path(parent) == folder:
            folders.remove(leave_out)
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():  # what a link leads to was there before
                flush(path)
        flush(Path(parent))


def remove_unfinished(folder: Path) -> list[Path]:
    """Delete what interrupted writers left in ``folder`` and below; returns what was there.

    To be called by whoever has the folder for itself: a file of a writer at work would go too.
    """
    found = [p for p in folder.rglob(".*.partial*") if UNFINISHED.fullmatch(p.name) and p.is_file()]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def obstacle(path: str | os.PathLike[str], *, folder: bool) -> str | None:
    """Why no file (or no ``folder`` with files) can be made at ``path``, with the place that is in the way; else None.

    Tried, not asked: a quota, a full table of files and a read-only disk are seen too, and so they are by root.
    """
    place = Path(path).absolute()
    try:
        if place.is_dir() and not folder:
            return f"{place} is a folder"
        if place.is_file() and not folder:
            place = place.parent
        wanted, place = place, next(p for p in (place, *place.parents) if p.exists())
        if not place.is_dir():
            return f"{place} is a file"
        longest = os.pathconf(place, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        if any(len(os.fsencode(part)) > longest for part in wanted.relative_to(place).parts):
            return f"{place} takes no name of more than {longest} bytes (File name too long)"
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"{place} cannot be written ({error.strerror})"


def free_space(path: Path) -> str:
    """``12 MB free``, for a sentence on a disk that is full."""
    folder = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB free"


# Check that a result can be written before data are read.


def check_output(option: str, path: Path, *, folder: bool = False) -> None:
    """``ConfigError`` with the option and the path, unless a file (or a folder of files) can be made there."""
    if problem := obstacle(path, folder=folder):
        what = "folder" if folder else "file"
        why = problem if "cannot be written" in problem else f"cannot be written, {problem}"
        raise ConfigError(f"{option} {path}: {why}; name another {what}")


# Factors that cannot change what a run learns. An entry covers the key itself and all keys below it.
IGNORED = (
    *("seed", "data.seed"),  # what a table averages over
    *("run", "study", "runs_dir", "resume", "parent", "trusted", "reproduces"),  # names and places
    *("logger", "callbacks", "panels", "trainer.log_every_steps", "trainer.sanity_steps"),  # what watches
    *("trainer.val_every_steps", "trainer.val_every_epochs"),  # see `ignored`
    *("data.num_workers", "data.pin_memory", "data.source.cache_dir"),  # how frames arrive, not which
    *(
        "trainer.devices",
        "trainer.num_nodes",
        "trainer.strategy",
    ),  # compared as trainer.world_size
    # What came of these is printed below a table: see `warnings`.
    *("data.on_error", "data.max_skip", "data.accept_change", "data.source.depth_missing"),
)


def covers(parts: Iterable[str], key: str) -> bool:
    """Whether ``key`` is one of ``parts`` or lies below one."""
    return any(key == part or key.startswith(part + ".") for part in parts)


FILES = (
    "data.source.classes",
    "data.labeled",
    "backbone.pretrained",
    "init_from",
)  # by the content of the file


FRAMES = (
    "data.source.root",
    "data.source.listing",
)  # identified by the fingerprints of the splits


def own_data(record: RunRecord) -> dict[str, str]:
    """The fingerprints of a record's own data set, by split; not of the runs below, nor of single files."""
    splits = {k: v for k, v in record.data.items() if "/" in k and not k.startswith(BELOW)}
    return {key: value for key, value in splits.items() if key.rpartition("/")[0] == record.dataset}


def without_below(key: str) -> str:
    """A factor of a run below as it is called in that run."""
    return re.sub(rf"^({re.escape(BELOW)})+", "", key)


TRAINED_ON = "trained."  # factors of the training of a run that was scored on another data set


# Of a run's training, which its evaluations carry on.
TRAINING = ("run/steps", "run/planned_steps", "run/skipped_steps", "run/epoch_share")
STEP_SECONDS, SPREAD = "cost/step_seconds", "run/step_spread"


TESTED = ("test/", "time/", "tiles/")  # what a test measures
