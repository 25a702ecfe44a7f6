"""The hardness maps that a run can give of a frame, whatever its method, in the form of :mod:`hardpix.ops.hard_map`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from hardpix.ops.hard_map import OF_DATA, OF_LOGITS, HardMap, hard_map, logit_map
from hardpix.run.figure_runs import FigureRun, dense, spread
from hardpix.types import ConfigError, HardpixError

if TYPE_CHECKING:
    from torch import Tensor

    from hardpix.data import DataModule
    from hardpix.methods import Method
    from hardpix.types import Batch

OWN_FIRST = ("hardness", "error_probability", "uncertainty")  # what a figure shows unless told otherwise


class Seen(NamedTuple):
    """What a run says of a batch, ``[B, H, W]`` each."""

    maps: dict[str, Tensor]  # float32, NaN where there is no label or the map means nothing
    pred: Tensor  # classes
    wrong: Tensor  # bool, False without a label


def known_maps(method: Method, data: DataModule) -> dict[str, HardMap]:
    """All maps that the method can give of frames with what ``data`` provide, in the order of tables."""
    of_logits = dict(OF_LOGITS)
    found = OF_DATA | {"loss": of_logits.pop("loss")} | method.hard_maps() | of_logits
    return {name: about for name, about in found.items() if data.info.provides.issuperset(about.needs)}


def chosen_map(run: FigureRun, known: Mapping[str, HardMap], name: str | None) -> str:
    """The wanted map, or the method's own one; raises with the names that there are."""
    name = name or next(own for own in OWN_FIRST if own in known)
    if name not in known:
        raise ConfigError(f"--map {name}: {run.directory} has no such hardness map, but {', '.join(known)}")
    return name


def remarks(runs: Sequence[FigureRun], methods: Mapping[str, Method], data: DataModule) -> list[str]:
    """Why a run has no DPE and DSE."""
    told = []
    for run in runs:
        own = methods[run.label].hard_maps()
        if "dpe" not in own:
            told.append(f"{run.label}: no DPE and DSE, its method predicts no depth")
        elif "dpe" not in known_maps(methods[run.label], data):
            told.append(f"{run.label}: DPE and DSE left out, {data.info.name} has no depth")
    return told


def use(data: DataModule, methods: Collection[Method], maps: Collection[HardMap]) -> None:
    """Load what the methods and the maps need, as far as the data set has it."""
    keys = frozenset[str]().union(*(m.requires for m in methods), *(frozenset(about.needs) for about in maps))
    data.use(keys & data.info.provides)


def frames(data: DataModule, split: str, limit: int | None, device: torch.device) -> Iterator[Batch]:
    """Every frame of a split in batches on ``device``, or ``limit`` evenly spaced ones singly."""
    if limit is None:
        loader: Iterator[Batch] = iter(data.evaluation_loader(split))
    else:
        places = spread(len(data.evaluation_dataset(split).frames), limit)
        loader = (data.evaluation_batch(split, place) for place in places)
    for batch in loader:
        moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        yield moved  # type: ignore[misc]


def labelled(label: Tensor, data: DataModule) -> Tensor:
    return (label != data.info.ignore_index) & (label >= 0) & (label < data.info.num_classes)


@torch.inference_mode()
def maps_of(
    method: Method,
    batch: Batch,
    maps: Mapping[str, HardMap],
    valid: Tensor,
    who: str,
    logits: Tensor | None = None,
) -> dict[str, Tensor]:
    """``maps`` (of :func:`known_maps`) of a batch, float32 ``[B, H, W]``, NaN where not ``valid`` or meaningless.

    ``valid`` ``[B, H, W]`` bool: pixels with a label. ``who`` names the run in the error of one that diverged.
    ``logits``: of its decisions at label size, if they are there already.
    """
    label = batch["label"]
    if logits is None and maps.keys() & OF_LOGITS:
        logits = method.decide(dense(method, batch))
    own = method.maps(batch) if maps.keys() - (OF_LOGITS | OF_DATA).keys() else {}
    found = {}
    for name, about in maps.items():
        if name in OF_DATA:
            values = batch["hardness"]  # type: ignore[typeddict-item]
        elif name in OF_LOGITS:
            assert logits is not None
            values = logit_map(name, logits, label.masked_fill(~valid, -100), -100)
        else:
            values = method.enlarge(own[name][:, None], label.shape)[:, 0]
        where = valid & batch[about.where] if about.where else valid  # type: ignore[literal-required]
        if not torch.isfinite(values[where]).all():
            raise HardpixError(f"{who}: its {about.title} is no number: its training diverged; leave it out")
        found[name] = hard_map(values, where, about)
    return found


@torch.inference_mode()
def seen(method: Method, batch: Batch, maps: Mapping[str, HardMap], valid: Tensor, who: str) -> Seen:
    """:func:`maps_of` and the decisions."""
    logits = method.decide(dense(method, batch))
    pred = logits.argmax(1)
    return Seen(maps_of(method, batch, maps, valid, who, logits), pred, valid & (pred != batch["label"]))
