"""Runs that share a figure: which may, how they are named, which frames are drawn, and what they predict."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from hardpix import record
from hardpix.draw.pictures import spread
from hardpix.evaluate import loaded, override
from hardpix.record import covers, own_data
from hardpix.tables.compare import FINGERPRINT
from hardpix.train import rundir
from hardpix.types import ConfigError, HardpixError

if TYPE_CHECKING:
    from hardpix.data import DataModule, Frames
    from hardpix.methods import Method


@dataclass(frozen=True)
class FigureRun:
    """A run in a figure; nothing of it is built yet."""

    directory: Path
    label: str
    cfg: DictConfig
    data_name: str


def open_runs(
    directories: Sequence[Path],
    labels: Sequence[str],
    overrides: list[str],
    split: str,
    ignore: Sequence[str] | None,
) -> list[FigureRun]:
    """The runs, named apart; raises if one is no run, or if they do not predict the same frames and classes.

    ``ignore``: keys of the data that may differ; None: classes and frames may.
    """
    if labels and len(labels) != len(directories):
        raise ConfigError(
            f"--labels names {len(labels)} runs and there are {len(directories)}: give one for each"
        )
    records = [record.read(directory) for directory in directories]
    named = labels or _names([d.resolve().name for d in directories], [r.name for r in records])
    twice = [label for label, count in Counter(named).items() if count > 1]
    if twice:
        raise ConfigError(f"two runs are called {twice[0]}: give each a name of its own with --labels")
    runs = [
        FigureRun(d, label, cfg, r.dataset or str(cfg.data.source._target_).rpartition(".")[2])
        for d, label, cfg, r in zip(
            directories,
            named,
            (override(rundir.read_config(d), overrides) for d in directories),
            records,
            strict=True,
        )
    ]
    if ignore is None:
        return runs
    for other in runs[1:]:
        _check_same_classes(runs[0], other)
        _check_same_frames(runs[0], other, split, ignore)
    return runs


def _names(folders: Sequence[str], names: Sequence[str]) -> list[str]:
    """A run's own name where no other run has it, else its folder's."""
    count = Counter(names)
    return [
        name if name and count[name] == 1 else folder for name, folder in zip(names, folders, strict=True)
    ]


def _check_same_classes(one: FigureRun, other: FigureRun) -> None:
    a, b = (_classes(run.directory) for run in (one, other))
    if a != b:
        parts = [f"{x} / {y}" for x, y in zip(a, b, strict=False) if x != y][:3]
        raise ConfigError(
            f"{one.directory} has {len(a)} classes and {other.directory} {len(b)}, and they differ "
            f"({', '.join(parts) or 'in number'}): draw runs of the same classes together"
        )


def _classes(directory: Path) -> list[str]:
    path = directory / rundir.CLASSES
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _check_same_frames(one: FigureRun, other: FigureRun, split: str, ignore: Sequence[str]) -> None:
    a, b = (_frame_factors(run.cfg, split, ignore) for run in (one, other))
    known = [_fingerprints(run, split, ignore) for run in (one, other)]
    common = known[0].keys() & known[1].keys()
    a, b = ({**own, **{key: marks[key] for key in common}} for own, marks in zip((a, b), known, strict=True))
    differing = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    if differing:
        parts = [f"{key}: {a.get(key, 'absent')} / {b.get(key, 'absent')}" for key in differing[:3]]
        more = f" and {len(differing) - 3} more keys" if len(differing) > 3 else ""
        raise ConfigError(
            f"{one.directory} and {other.directory} do not see the same frames ({'; '.join(parts)}{more}): draw runs "
            "of the same data together, or name with --ignore a key that cannot matter"
        )


def _frame_factors(cfg: DictConfig, split: str, ignore: Sequence[str]) -> dict[str, Any]:
    factors = record.flatten(rundir.plain(cfg))
    wanted = ("data.source", "data.test_transform", f"data.{split}_split")
    return {
        k: v for k, v in factors.items() if covers(wanted, k) and not covers((*rundir.PLACES, *ignore), k)
    }


def _fingerprints(run: FigureRun, split: str, ignore: Sequence[str]) -> dict[str, str]:
    """The fingerprints of ``split`` in a run's record; empty where the figure is of other data."""
    if run.cfg.data != rundir.read_config(run.directory).data:
        return {}
    names = {k.rpartition("/")[2]: v for k, v in own_data(record.read(run.directory)).items()}
    found = {f"{FINGERPRINT}.{k}": v for k, v in names.items() if k in (split, f"{split} content")}
    return {key: value for key, value in found.items() if not covers(ignore, key)}


def build(run: FigureRun, overrides: list[str], weights: str, device: str) -> tuple[DataModule, Method]:
    rundir.check_data_paths(run.cfg, run.directory)
    _, data, method = loaded(run.directory, weights, overrides)
    return data, method.to(device)


def check_depth(run: FigureRun, method: Method, data: DataModule) -> None:
    """Raise unless the method's ``dense`` ends with log D of a scale that its ``depth_max`` names, and ``data`` too
    have depth.
    """
    if "depth" not in data.info.provides:
        raise ConfigError(f"data set {data.info.name} has no depth, so nothing has a depth error on it")
    if not hasattr(method, "depth_max"):
        raise ConfigError(
            f"{run.directory} predicts no depth, so it has no depth error: name a run of method=lwm, or with "
            "--depth-from the run over whose depth error this one is to be drawn"
        )


def choose_frames(data: DataModule, split: str, names: Sequence[str], count: int) -> list[int]:
    """Places of the named frames in the split; without names ``count`` of them, evenly spaced."""
    frames = data.evaluation_dataset(split).frames
    return choose(frames, f"the {split} split of {data.info.name}", names, count)


def place_of(data: DataModule, split: str, image: str) -> int:
    """The place of a frame in the split, by its name or its index from 0."""
    return place_in(data.evaluation_dataset(split).frames, f"the {split} split of {data.info.name}", image)


def place_in(frames: Frames, where: str, image: str) -> int:
    """The same of any frames; ``where`` says in an error what these are."""
    known = any(frames.name(i) == image for i in range(len(frames)))
    if known or not image.isdecimal() or (image[0] == "0" and len(image) > 1):  # 0007 is a name
        return choose(frames, where, [image], 1, "--image")[0]
    if int(image) >= len(frames):
        raise ConfigError(f"--image {image}: {where} has {len(frames)} frames, 0 to {len(frames) - 1}")
    return int(image)


def choose(
    frames: Frames, where: str, names: Sequence[str], count: int, option: str = "--frames"
) -> list[int]:
    """The same of any frames; ``where`` says in an error what these are, ``option`` who named them."""
    if not names:
        return spread(len(frames), count)
    known = {frames.name(i): i for i in range(len(frames))}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"they are called like {next(iter(known))}"
            raise ConfigError(f"{option} {name}: {where} has no such frame; {hint}")
    return [known[name] for name in names]


def check_snapshots(run: FigureRun, wanted: Sequence[int]) -> list[int]:
    """The epochs to draw, all that are kept without a wish; raises with the key that keeps weights."""
    kept = rundir.snapshots(run.directory)
    missing = [epoch for epoch in wanted if epoch not in kept]
    if missing or not kept:
        what = f"the weights of epochs {', '.join(map(str, kept))}" if kept else "no weights of single epochs"
        example = f"[{', '.join(map(str, wanted or (1, 10, 50)))}]"
        raise HardpixError(f"{run.directory} keeps {what}; train it with callbacks.snapshots={example}")
    return list(wanted) or kept
