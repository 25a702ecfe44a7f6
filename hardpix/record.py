"""The run record: what a run leaves behind and all that a table reads. Standard library only.

``run.json`` lies in the run's directory. It is written at the start (``running``) and replaced atomically at
the end (``done``, ``interrupted`` by a signal, or ``failed`` with the error): a reader sees one whole record or the
other, never a part.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from hardpix.atomic import write_text
from hardpix.secrets import masked
from hardpix.types import HardpixError

SCHEMA = 1
READABLE_SCHEMAS = (1,)
FILE_NAME = "run.json"

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
    # "nyuv2/train content", see hardpix.data.fingerprint; "data.source.classes" of the file that this factor names;
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
