"""Counting the (truth, prediction) pairs of a label map in one pass."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

_INT16 = 1 << 15  # codes below this fit int16


def confusion_counts(
    pred: Tensor, label: Tensor, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """``[C, C]`` int64 counts (rows truth, columns prediction) and the int64 number of invalid labels.

    ``pred`` holds ``0..C-1``; pixels labelled ``ignore_index`` are not counted at all, labels outside
    ``0..C-1`` that are not ``ignore_index`` are invalid: counted apart, absent from the matrix. Any shape and
    integer types; uint8 on the CPU is the fast case.
    """
    rows = num_classes + 2
    row = _row(label.flatten(), num_classes, ignore_index)
    if rows * num_classes <= _INT16 and label.device.type == "cpu":
        code = row.short().mul_(num_classes).add_(pred.flatten().short())
        counts = _count_runs(code, rows * num_classes)
    else:
        code = row.long() * num_classes + pred.flatten()
        counts = torch.bincount(code, minlength=rows * num_classes)
    counts = counts.view(rows, num_classes)
    return counts[1:-1], counts[-1].sum()


def image_confusions(
    pred: Tensor, label: Tensor, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """:func:`confusion_counts` of each image of a batch: ``[B, C, C]`` and the invalid labels of them all.

    ``pred`` and ``label`` are ``[B, H, W]``.
    """
    if label.device.type == "cpu":  # one at a time stays in the cache and in int16
        each = [confusion_counts(*pair, num_classes, ignore_index) for pair in zip(pred, label, strict=True)]
        return torch.stack([counts for counts, _ in each]), torch.stack([bad for _, bad in each]).sum()
    rows, batch = num_classes + 2, len(label)
    row = _row(label.flatten(1), num_classes, ignore_index).long()
    row += rows * torch.arange(batch, device=label.device)[:, None]
    code = row * num_classes + pred.flatten(1)
    counts = torch.bincount(code.flatten(), minlength=batch * rows * num_classes)
    counts = counts.view(batch, rows, num_classes)
    return counts[:, 1:-1], counts[:, -1].sum()


def _row(label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Row of each pixel: 0 void, ``1..C`` the classes, ``C + 1`` invalid."""
    if ignore_index == 255 and num_classes < 255:
        if label.dtype != torch.uint8 and label.numel() and _fits_uint8(label):
            label = label.to(torch.uint8)
        if label.dtype == torch.uint8:  # 255 + 1 wraps to 0
            return (label + 1).clamp_(max=num_classes + 1)
    label = label.long()
    row = torch.where((label >= 0) & (label < num_classes), label + 1, num_classes + 1)
    return row.masked_fill_(label == ignore_index, 0)


def _fits_uint8(label: Tensor) -> bool:
    lowest, highest = label.aminmax()
    return bool(lowest >= 0) and bool(highest <= 255)


def _count_runs(code: Tensor, bins: int) -> Tensor:
    """``torch.bincount`` of int16 codes, faster on runs of equal ones.

    In a label map neighbours mostly agree, and every increment then waits for the one before it. Counting
    neighbours into 4 (or 2) histograms in turn shortens that wait; one addition per 4 (2) pixels moves them there.
    """
    ways = 4 if 4 * bins <= _INT16 else 2
    if ways * bins > _INT16 or code.numel() % ways or sys.byteorder == "big":
        return torch.bincount(code, minlength=bins)
    wide = torch.int64 if ways == 4 else torch.int32
    code.view(wide).add_(sum(way * bins << 16 * way for way in range(ways)))
    return torch.bincount(code, minlength=ways * bins).view(ways, bins).sum(0)
