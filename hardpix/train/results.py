"""Results of a test: scores as files, panels, and the hardness maps that a run can give of a frame."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hardpix.config.safe_files import make_results_folder
from hardpix.data import DataModule
from hardpix.data.source import Sample
from hardpix.draw.pictures import Frame, panel, spread
from hardpix.methods import Method
from hardpix.metrics import HardnessGroups
from hardpix.metrics.hardness import rank_edges
from hardpix.ops.hardness import OF_DATA, OF_LOGITS, HardMap, hard_map, logit_map
from hardpix.record import replacing
from hardpix.scores import PER_CLASS, per_class_rows, write_per_class, write_per_image
from hardpix.types import Batch, ConfigError, DatasetInfo, HardpixError

if TYPE_CHECKING:
    from hardpix.metrics.hardness import Group


class BatchPrediction(NamedTuple):
    """What a run says of a batch, ``[B, H, W]`` each."""

    maps: dict[str, Tensor]  # float32, NaN where there is no label or the map means nothing
    pred: Tensor  # classes
    wrong: Tensor  # bool, False without a label


def known_maps(method: Method, data: DataModule) -> dict[str, HardMap]:
    """All maps that the method can give of frames with what ``data`` provide, in the order of tables."""
    of_logits = dict(OF_LOGITS)
    found = OF_DATA | {"loss": of_logits.pop("loss")} | method.hard_maps() | of_logits
    return {name: about for name, about in found.items() if data.info.provides.issuperset(about.needs)}


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
def predict_batch(
    method: Method, batch: Batch, maps: Mapping[str, HardMap], valid: Tensor, who: str
) -> BatchPrediction:
    """:func:`maps_of` and the decisions."""
    logits = method.decide(dense(method, batch))
    pred = logits.argmax(1)
    return BatchPrediction(
        maps_of(method, batch, maps, valid, who, logits), pred, valid & (pred != batch["label"])
    )


# Scores of the tenths of a split's pixels by hardness, for dashboards: of a few frames, at the end of a
# run.


DECILE_FRAMES = 50  # evenly spaced: `hardpix figure deciles` reads all
METHOD_MAPS = ("hardness", "error_probability")


def decile_scores(
    method: Method, data: DataModule, device: torch.device, split: str = "test"
) -> dict[str, float]:
    """``{"deciles/miou/01": ..., "deciles/pixel_acc/10": ...}``, the hardest tenth first, ranked by the method's map.

    Empty for a method without a map of hardness, and where the data set lacks what the map needs.
    """
    known = {name: about for name, about in known_maps(method, data).items() if name in method.hard_maps()}
    name = next((own for own in METHOD_MAPS if own in known), None)
    if name is None:
        return {}
    try:
        method.to(device).eval()
        use(data, [method], [known[name]])
        rankings = {"run": known[name]}
        (groups,) = deciles({"run": method}, rankings, name, data, split, DECILE_FRAMES).values()
    except Exception as error:  # the run is done and scored
        print(f"no hardness deciles for W&B: {type(error).__name__}: {error}", flush=True)
        return {}
    return {
        f"deciles/{score}/{index:02}": getattr(group, score)
        for score in ("miou", "pixel_acc")
        for index, group in enumerate(groups, 1)
    }


# Frames and batches as contact sheets.


def frame_of_sample(sample: Sample) -> Frame:
    """A decoded frame, before any transform."""
    image = sample["image"].permute(1, 2, 0).contiguous().numpy()
    return Frame(sample["name"], image, *_label_and_maps(sample))


def frame_of_batch(batch: Batch, place: int, info: DatasetInfo) -> Frame:
    """Frame ``place`` of a finished batch: the picture before its normalisation, and what of it is padding."""
    one = {key: value[place] for key, value in batch.items() if isinstance(value, Tensor)}
    image = unnormalize(one["image"], info)
    return Frame(batch["name"][place], image, *_label_and_maps(one), extent=extent(one["image"]))


def extent(image: Tensor) -> tuple[int, int]:
    """Rows and columns of a normalised ``[3, H, W]`` image that are picture: padding is exactly 0."""
    drawn = (image != 0).any(dim=0).numpy()
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    return (int(rows[-1]) + 1, int(columns[-1]) + 1) if len(rows) else (0, 0)


def make_sheet_folder(folder: Path) -> None:
    """Make ``folder`` and try to write to it: before a long look, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be made ({error.strerror}); name another folder") from None
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"--out {folder}: not writable ({error.strerror}); name another folder") from None


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write so that a reader sees the whole file or the former one."""
    with replacing(path, sync=False) as unfinished:
        picture.save(unfinished)


def _label_and_maps(
    tensors: Mapping[str, Any],
) -> tuple[np.ndarray | None, dict[str, tuple[np.ndarray, str]]]:
    label = tensors["label"].numpy() if "label" in tensors else None
    maps = {}
    if "depth" in tensors:
        valid = tensors["depth_valid"].numpy() if "depth_valid" in tensors else True
        maps["depth"] = (np.where(valid, tensors["depth"].numpy(), np.nan), "m")
    if "hardness" in tensors:
        maps["hardness"] = (tensors["hardness"].numpy(), "")
    return label, maps


# Panels of a run: image, truth, prediction, error, and the method's own maps.


def write_panels(method: Method, data: DataModule, folder: Path, *, split: str, count: int) -> list[Path]:
    """``count`` panels, evenly spaced over the split, as ``folder/NAME.png``; returns their paths."""
    if count <= 0:
        return []
    make_results_folder(folder)
    return [
        _write_one(method, data.evaluation_batch(split, index), data.info, folder)
        for index in spread(len(data.evaluation_dataset(split)), count)
    ]


@torch.inference_mode()
def _write_one(method: Method, batch: Batch, info: DatasetInfo, folder: Path) -> Path:
    method.eval()
    batch = method.transfer_batch_to_device(batch, method.device, 0)
    size = batch["label"].shape
    prediction = method.enlarge(method.predict_logits(batch["image"]), size).argmax(1)[0]
    maps = {name: value[0].float().cpu().numpy() for name, value in method.maps(batch).items()}
    picture = panel(
        unnormalize(batch["image"][0], info),
        batch["label"][0].cpu().numpy(),
        prediction.cpu().numpy(),
        info,
        maps,
    )
    path = folder / f"{Path(batch['name'][0]).name}.png"
    with replacing(path, sync=False) as unfinished:
        picture.save(unfinished)
    return path


def unnormalize(image: Tensor, info: DatasetInfo) -> np.ndarray:
    """``[3, H, W]`` normalised -> ``[H, W, 3]`` uint8."""
    mean, std = torch.tensor(info.mean).view(3, 1, 1), torch.tensor(info.std).view(3, 1, 1)
    pixels = (image.float().cpu() * std + mean).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 0).numpy()


# Scores of one split as files and on screen: per-class table, confusion matrix.


def write(folder: Path, confusion: np.ndarray, info: DatasetInfo, images: Iterable[Sequence[Any]]) -> None:
    """``per_class.csv``, ``per_image.csv`` and ``confusion.npy`` (int64 ``[C, C]``, rows truth, columns prediction)."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "confusion.npy") as unfinished:
        np.save(unfinished, confusion)
    write_per_class(per_class_rows(confusion, info.classes), folder / PER_CLASS)
    write_per_image(images, folder)


def show(confusion: np.ndarray, info: DatasetInfo, *, title: str) -> None:
    """The per-class table on screen; a class that is absent prints as such and is left out of the mean."""
    rows = per_class_rows(confusion, info.classes)
    table = Table(title=title)
    for column, side in (("class", "left"), ("IoU %", "right"), ("accuracy %", "right"), ("pixels", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(row["class"], _percent(row["iou"]), _percent(row["acc"]), f"{row['pixels']:,}")
    ious = [float(row["iou"]) for row in rows if str(row["iou"]) != "nan"]
    mean = 100 * sum(ious) / len(ious) if ious else float("nan")
    table.add_section()
    table.add_row(f"mean of {len(ious)} classes", f"{mean:.2f}", "", f"{int(confusion.sum()):,}")
    Console().print(table)


def _percent(value: float | str) -> str:
    return "absent" if str(value) == "nan" else f"{100 * float(value):.2f}"


def batches(data: DataModule, split: str, places: Sequence[int], method: Method) -> Iterator[Batch]:
    """Single frames as the method sees them, on its device."""
    for place in places:
        yield method.transfer_batch_to_device(data.evaluation_batch(split, place), method.device, 0)


def dense(method: Method, batch: Batch) -> Tensor:
    """Class logits at label size, then what the method predicts besides: what its scores are computed from."""
    return method.enlarge(method.predict_dense(batch["image"]), batch["label"].shape)


GROUP_INTERVALS, RANKING_INTERVALS = 8192, 2048  # intervals of hardness, besides those of a grid
EDGE_FRAMES, EDGE_PIXELS = (
    16,
    1 << 18,
)  # frames that the intervals are chosen on, and at most so many pixels of each


@torch.inference_mode()
def deciles(
    methods: Mapping[str, Method],
    rankings: Mapping[str, HardMap],
    name: str,
    data: DataModule,
    split: str,
    limit: int | None,
) -> dict[tuple[str, str], list[Group]]:
    """(run, run whose map ``name`` ranks the pixels) -> groups: every run on the first ranking and on its own.

    ``rankings``: of the runs that have the map, by label, the first run among them.
    """
    first = next(iter(methods))
    pairs = [(run, first) for run in methods] + [(run, run) for run in rankings if run != first]
    device = methods[first].device
    classes = data.info.num_classes
    edges = interval_edges(
        methods, {run: {name: about} for run, about in rankings.items()}, GROUP_INTERVALS, data, split, limit
    )
    counts = {pair: HardnessGroups(classes, edges[pair[1], name]).to(device) for pair in pairs}
    for batch in frames(data, split, limit, device):
        valid = labelled(batch["label"], data)
        found = {
            run: predict_batch(method, batch, {name: rankings[run]} if run in rankings else {}, valid, run)
            for run, method in methods.items()
        }
        for (run, by), count in counts.items():
            count.update(found[by].maps[name], found[run].pred, batch["label"])
    return {pair: count.compute() for pair, count in counts.items()}


def interval_edges(
    methods: Mapping[str, Method],
    maps: Mapping[str, Mapping[str, HardMap]],
    count: int,
    data: DataModule,
    split: str,
    limit: int | None,
) -> dict[tuple[str, str], Tensor]:
    """Of (run, map) the edges that its values on a few frames of the split suggest."""
    device = next(iter(methods.values())).device
    values: dict[tuple[str, str], list[Tensor]] = {
        (run, name): [] for run, own in maps.items() for name in own
    }
    for batch in frames(data, split, min(EDGE_FRAMES, limit or EDGE_FRAMES), device):
        valid = labelled(batch["label"], data)
        for run, own in maps.items():
            for name, found in maps_of(methods[run], batch, own, valid, run).items():
                flat = found.flatten()
                values[run, name].append(flat[:: -(-len(flat) // EDGE_PIXELS)])
    return {
        (run, name): rank_edges(torch.cat(parts), maps[run][name].bounded, count)
        for (run, name), parts in values.items()
    }
