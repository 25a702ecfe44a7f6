"""Scores of each image of a split, for the table of the worst ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


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
