"""Scores of a whole split from one streaming confusion matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from hardpix.ops.confusion import image_confusions


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
