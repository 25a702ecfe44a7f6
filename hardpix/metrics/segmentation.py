"""Segmentation scores from one streaming confusion matrix: of a split, of each image, of several predictions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from hardpix.ops.confusion import confusion_counts, image_confusions


def scores(confusion: Tensor) -> dict[str, Tensor]:
    """Scores of a ``[C, C]`` confusion matrix (rows truth, columns prediction), float64 in [0, 1] on the CPU.

    ``iou`` and ``acc`` are ``[C]``; a class that neither occurs nor is predicted has IoU NaN, one that does
    not occur has accuracy NaN, and both are left out of ``miou`` and ``mean_acc``. ``fg_iou`` is the IoU of
    the last class (text against background). With no pixel at all every score is NaN.
    """
    matrix = confusion.cpu().double()  # there is no float64 on MPS
    hit, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    iou, acc = hit / (truth + predicted - hit), hit / truth  # 0/0 is NaN: the absent class
    return {
        "miou": iou.nanmean(),
        "pixel_acc": hit.sum() / matrix.sum(),
        "mean_acc": acc.nanmean(),
        "iou": iou,
        "acc": acc,
        "fg_iou": iou[-1],
    }


class SegmentationMetrics(Metric):
    """One int64 confusion matrix over a split; void pixels are never counted, not even as false positives.

    States are summed over processes, so scores do not depend on how the split was divided. ``invalid`` counts
    the labels that are neither a class nor ``ignore_index``; they are left out of the matrix. ``frames`` counts images.
    """

    full_state_update = False
    confusion: Tensor  # [C, C] int64, rows truth, columns prediction
    latest: Tensor  # [B, C, C] of the images of the last batch
    invalid: Tensor  # int64 scalar
    frames: Tensor  # int64 scalar

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.add_state(
            "confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum"
        )
        for name in ("invalid", "frames"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred: Tensor, label: Tensor) -> None:
        """``pred`` ``[B, H, W]`` in ``0..C-1`` and ``label`` ``[B, H, W]``, any integer types."""
        self.latest, invalid = image_confusions(pred, label, self.num_classes, self.ignore_index)
        self.confusion += self.latest.sum(0)
        self.invalid += invalid
        self.frames += len(label)

    def compute(self) -> dict[str, Tensor]:
        """The scores, and the states themselves: summed over processes only in here.

        A tensor of one element comes as a scalar: so do ``confusion``, ``iou`` and ``acc`` of a single class.
        """
        states = {name: getattr(self, name).clone() for name in ("confusion", "invalid", "frames")}
        return scores(self.confusion) | states


# Scores of each image of a split, for the table of the worst ones.


class ImageScore(NamedTuple):
    """One image. Without a labelled pixel both scores are NaN."""

    name: str
    pixels: int  # labelled ones: void is never counted
    pixel_acc: float
    miou: float  # mean IoU of the classes that the image's labels hold
    counts: tuple[
        tuple[int, int, int, int], ...
    ] = ()  # class, pixels hit, in the truth, predicted; classes seen


def image_scores(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``[B, C, C]`` confusion matrices -> labelled pixels (int64), pixel accuracy and mIoU (float32), each ``[B]``.

    The mean is over the classes that occur in the image's truth. One that is predicted only has no term of its
    own (its pixels are misses of the others already), or a single stray pixel would halve an image's score.
    """
    hit, truth, predicted = confusion.diagonal(dim1=1, dim2=2), confusion.sum(2), confusion.sum(1)
    pixels = truth.sum(1)
    iou = hit.float() / (truth + predicted - hit).float()  # 0/0 for a class that is absent altogether
    miou = iou.masked_fill(truth == 0, torch.nan).nanmean(1)
    return pixels, hit.sum(1).float() / pixels.float(), miou


def image_counts(confusion: Tensor) -> Tensor:
    """``[B, C, C]`` confusion matrices -> pixels hit, in the truth and predicted of each class, ``[B, C, 3]``.

    Sums of them over images are those of a data set: what its IoU and accuracy are made of.
    """
    return torch.stack((confusion.diagonal(dim1=1, dim2=2), confusion.sum(2), confusion.sum(1)), 2)


def _sparse(counts: Tensor) -> list[tuple[tuple[int, int, int, int], ...]]:
    """Of each image the classes that it holds or that are predicted in it."""
    return [
        tuple((c, hit, truth, pred) for c, (hit, truth, pred) in enumerate(image) if truth or pred)
        for image in counts.tolist()
    ]


class ImageScores:
    """Collects the scores of a split image by image: a few numbers each, no map is kept and no device waited for."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.counts: list[Tensor] = []

    def update(self, names: Sequence[str], confusion: Tensor) -> None:
        """``confusion``: ``[B, C, C]``, that of each image."""
        self.names += names
        self.parts.append(image_scores(confusion))
        self.counts.append(image_counts(confusion))

    def compute(self) -> list[ImageScore]:
        """In the order of the split; over all processes, whose images alternate. Empties the collection."""
        columns = [torch.cat(column).tolist() for column in zip(*self.parts, strict=True)]
        counts = [sparse for part in self.counts for sparse in _sparse(part)]
        own = [ImageScore(*row) for row in zip(self.names, *columns, counts, strict=True)] if columns else []
        self.__init__()  # type: ignore[misc]
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return own
        shares: list[list[ImageScore]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(shares, own)
        return merged(shares)


def merged(shares: Sequence[Sequence[ImageScore]]) -> list[ImageScore]:
    """Shares of a split that was dealt out one by one, put together as it was."""
    return [score for score in chain.from_iterable(zip_longest(*shares)) if score is not None]


# Scores of several predictions of one model side by side, and which of them decides how many pixels.


class MemberMetrics(Metric):
    """``NAME_miou`` of each named member alone over a split, as if it decided every pixel."""

    full_state_update = False
    confusion: Tensor  # [N, C, C] int64, rows truth, columns prediction

    def __init__(self, names: Sequence[str], num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.names, self.num_classes, self.ignore_index = tuple(names), num_classes, ignore_index
        empty = torch.zeros(len(names), num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", empty, dist_reduce_fx="sum")

    def update(self, logits: Sequence[Tensor], label: Tensor) -> None:
        """``logits`` ``[B, C, H, W]`` of each member in the order of the names, ``label`` ``[B, H, W]``."""
        for i, member in enumerate(logits):
            # max finds the same first index as argmax, three times faster on the CPU.
            predicted = member.max(1).indices
            self.confusion[i] += confusion_counts(predicted, label, self.num_classes, self.ignore_index)[0]

    def compute(self) -> dict[str, Tensor]:
        """Float64 on the CPU."""
        counts = self.confusion.cpu()
        return {f"{name}_miou": scores(counts[i])["miou"] for i, name in enumerate(self.names)}


class ShareMetrics(Metric):
    """``NAME_share`` of the valid pixels that each named member decides, over a split."""

    full_state_update = False
    counts: Tensor  # [N] int64

    def __init__(self, names: Sequence[str], ignore_index: int) -> None:
        super().__init__()
        self.names, self.ignore_index = tuple(names), ignore_index
        self.add_state("counts", torch.zeros(len(names), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, member: Tensor, label: Tensor) -> None:
        """``member`` ``[B, H, W]`` int, the index of the member that decides, ``label`` ``[B, H, W]``."""
        valid = label != self.ignore_index
        self.counts += torch.bincount(member[valid].long(), minlength=len(self.names))

    def compute(self) -> dict[str, Tensor]:
        """Float64 on the CPU, NaN without a valid pixel."""
        counts = self.counts.cpu().double()
        shares = counts / counts.sum()
        return {f"{name}_share": share for name, share in zip(self.names, shares, strict=True)}
