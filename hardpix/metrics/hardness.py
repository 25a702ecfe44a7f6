"""What hardness maps are worth, over a whole split: scores by groups of equal hardness, and how well maps rank errors.

Maps have the form of :mod:`hardpix.ops.hardness`: higher is harder, NaN where a pixel does not count. Pixels are
counted by fine intervals of their hardness and never kept; those of one interval tie. The int64 counts are exact and
summed over processes, so results do not depend on the order of frames or on how the split was divided.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from hardpix.metrics.errors import auroc, average_precision, intervals, log_odds, tally

LEVELS = 256  # of a true hardness
LEAST = 0.5  # pixels of a class that is there


def rank_edges(sample: Tensor, bounded: bool, count: int) -> Tensor:
    """Edges of the intervals, ascending, float32: ``count`` quantiles of a ``sample`` of the map, and a grid.

    Quantiles make the intervals fine where the map's values are, however narrow its range; the grid is there for
    values that the sample lacks: even log-odds from -16 to 16 of a map in [0, 1], and for a loss in [0, inf) those of
    the probability ``1 - exp(-loss)``.
    """
    odds = log_odds(32)
    grid = (torch.sigmoid(odds) if bounded else F.softplus(odds)).float()
    values = sample[torch.isfinite(sample)].float().cpu().sort().values
    if not len(values):
        return grid.unique()
    places = torch.linspace(0, len(values) - 1, min(count, len(values)), dtype=torch.float64).round().long()
    return torch.cat([grid, values[places]]).unique()


class Group(NamedTuple):
    """Scores of one group of pixels, the hardest group first; ``pixels`` are as many in each.

    ``tied`` is the share of the group that comes from intervals cut by its two ends. Which of their pixels belong
    to it is not known; they are shared out in proportion, and the accuracy is off by at most ``tied``.
    """

    pixels: float
    miou: float
    pixel_acc: float
    low: float  # the hardness at which the group begins and ends, as edges of intervals
    high: float
    tied: float


class HardnessGroups(Metric):
    """mIoU and pixel accuracy in ``groups`` of equally many pixels, by decreasing hardness, pooled over the split.

    Every group has exactly the same number of pixels: an interval in which one group ends and the next begins is
    divided between them, in its counts. IoU of a class is that of the group's pixels alone; a class that neither
    occurs there nor is predicted (on half a pixel, where ties are divided) is left out of the group's mean.

    edges: ascending float32, see :func:`rank_edges`.
    """

    full_state_update = False
    counts: Tensor  # [bins, 3, C] int64: pixels of a class, predicted as it, and both; ascending hardness
    edges: Tensor

    def __init__(self, num_classes: int, edges: Tensor, groups: int = 10) -> None:
        super().__init__()
        self.num_classes, self.groups = num_classes, groups
        self.register_buffer("edges", edges, persistent=False)
        empty = torch.zeros(len(self.edges) + 1, 3, num_classes, dtype=torch.int64)
        self.add_state("counts", empty, dist_reduce_fx="sum")

    def update(self, hardness: Tensor, pred: Tensor, label: Tensor) -> None:
        """All ``[B, H, W]``. Not counted: hardness NaN, labels that are no class."""
        valid = torch.isfinite(hardness) & (label >= 0) & (label < self.num_classes)
        row = intervals(hardness, self.edges).long() * 3 * self.num_classes
        for kind, classes, where in (
            (0, label, valid),
            (1, pred, valid),
            (2, label, valid & (pred == label)),
        ):
            code = torch.where(where, row + kind * self.num_classes + classes, self.counts.numel())
            self.counts += tally(code, self.counts)

    def compute(self) -> list[Group]:
        """Without a pixel all scores are NaN."""
        counts = self.counts.cpu().flip(0)  # hardest first
        pixels = counts[:, 0].sum(1).double()
        ends = pixels.cumsum(0)
        starts, total = ends - pixels, float(pixels.sum())
        edges = self.edges.cpu().double().flip(0)
        highs, lows = F.pad(edges, (1, 0), value=torch.inf), F.pad(edges, (0, 1), value=0.0)
        found = []
        for i in range(self.groups):
            begin, end = total * i / self.groups, total * (i + 1) / self.groups
            inside = (ends.clamp(max=end) - starts.clamp(min=begin)).clamp_min(0)
            share = inside / pixels.clamp_min(1)
            truth, predicted, hit = torch.einsum("b,bkc->kc", share, counts.double())
            union = truth + predicted - hit
            iou = (hit / union)[union >= LEAST]
            used = inside > 0
            cut = float(inside[share < 1].sum() / inside.sum())
            found.append(
                Group(
                    pixels=end - begin,
                    miou=float(iou.mean()),
                    pixel_acc=float(hit.sum() / truth.sum()),
                    low=float(lows[used][-1]) if used.any() else torch.nan,
                    high=float(highs[used][0]) if used.any() else torch.nan,
                    tied=cut,
                )
            )
        return found


class ErrorRanking(Metric):
    """AUROC and average precision of a hardness map as a prediction of errors; Spearman's correlation with the truth.

    Pixels of one interval tie: a pair of them counts half. A true hardness has 256 levels in [0, 1]; equal values
    have their mean rank, so the correlation is exact but for the intervals.

    edges: ascending float32, see :func:`rank_edges`.
    """

    full_state_update = False
    errors: Tensor  # [bins, 2] int64: right and wrong pixels, ascending hardness
    truth: Tensor  # [bins, LEVELS] int64
    edges: Tensor

    def __init__(self, edges: Tensor) -> None:
        super().__init__()
        self.register_buffer("edges", edges, persistent=False)
        bins = len(edges) + 1
        self.add_state("errors", torch.zeros(bins, 2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("truth", torch.zeros(bins, LEVELS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, hardness: Tensor, wrong: Tensor, true_hardness: Tensor | None = None) -> None:
        """``[B, H, W]``; ``wrong`` bool. A pixel whose hardness is NaN counts nowhere."""
        valid = torch.isfinite(hardness)
        row = intervals(hardness, self.edges).long()
        code = torch.where(valid, 2 * row + wrong, self.errors.numel())
        self.errors += tally(code, self.errors)
        if true_hardness is not None:
            level = (true_hardness.float().clamp(0, 1) * (LEVELS - 1)).round().long()
            known = valid & torch.isfinite(true_hardness)
            self.truth += tally(torch.where(known, LEVELS * row + level, self.truth.numel()), self.truth)

    def compute(self) -> dict[str, float]:
        """``pixels``, ``error_rate``, ``auroc``, ``ap``, and ``spearman`` (NaN without a true hardness)."""
        right, wrong = self.errors.cpu().unbind(1)
        pixels = float(right.sum() + wrong.sum())
        return {
            "pixels": pixels,
            "error_rate": float(wrong.sum()) / pixels if pixels else torch.nan,
            "auroc": float(auroc(right, wrong)),
            "ap": float(average_precision(right, wrong)),
            "spearman": rank_correlation_of_counts(self.truth.cpu()),
        }


def rank_correlation_of_counts(table: Tensor) -> float:
    """Spearman's correlation of two graded values, ``table[i, j]`` int64 of the pairs that have grades i and j."""
    pairs = table.double()
    ranks = []
    for axis in (1, 0):
        count = pairs.sum(axis)
        rank = count.cumsum(0) - count / 2
        ranks.append(rank - (rank @ count) / count.sum())
    x, y = ranks
    spread = (x.square() @ pairs.sum(1)) * (y.square() @ pairs.sum(0))
    return float(x @ pairs @ y / spread.sqrt())
