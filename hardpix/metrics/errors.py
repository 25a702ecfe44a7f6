"""How well errors of a segmenter are predicted, and what repairing the predicted ones gains (EP).

A pixel is predicted to be erroneous where its error probability exceeds a threshold, compared in float32 as
:func:`hardpix.ops.errors.fuse_probabilities` does. Every pixel is counted once, by the interval between two
thresholds that its probability lies in; the counts of a threshold are sums over the intervals above it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from hardpix.metrics.segmentation import scores
from hardpix.ops.errors import semantic_errors
from hardpix.types import ConfigError


def log_odds(steps: int) -> Tensor:
    """Log-odds from -16 to 16, beyond which float32 has few probabilities, in ``steps`` steps per unit; float64."""
    return torch.arange(-16 * steps, 16 * steps + 1, dtype=torch.float64) / steps


GRID = torch.sigmoid(log_odds(32)).float()  # edges of the histogram that ranks pixels: the odds grow by 3 %
KINDS = 3  # correct, easy error, hard error


class ErrorMetrics(Metric):
    """Error-class IoU and hard recall at each threshold, AUROC and average precision, over a whole split.

    The int64 counts are exact and summed over processes, so scores do not depend on how the split was divided.
    AUROC and average precision rank the probabilities by a histogram of a thousand bins (:data:`GRID`); pixels of
    one bin tie.
    """

    full_state_update = False
    counts: Tensor  # [bins, KINDS] int64, bins in ascending order of probability
    edges: Tensor  # [bins - 1] float32

    def __init__(self, thresholds: Sequence[float], rho: float, ignore_index: int) -> None:
        super().__init__()
        self.thresholds, cuts = checked(thresholds)
        self.rho, self.ignore_index = rho, ignore_index
        self.register_buffer("edges", torch.cat([GRID, cuts]).unique(), persistent=False)
        # counts[i:] are the pixels whose probability exceeds edge i - 1.
        self.above = (torch.searchsorted(self.edges, cuts) + 1).tolist()
        empty = torch.zeros(len(self.edges) + 1, KINDS, dtype=torch.int64)
        self.add_state("counts", empty, dist_reduce_fx="sum")

    def update(self, error_probability: Tensor, semantic_logits: Tensor, label: Tensor) -> None:
        """``error_probability`` and ``label`` ``[B, H, W]``, ``semantic_logits`` ``[B, C, H, W]``."""
        valid, error, hard = semantic_errors(semantic_logits, label, self.ignore_index, self.rho)
        code = intervals(error_probability, self.edges) * KINDS + error.int() + hard.int()
        self.counts += tally(torch.where(valid, code, self.counts.numel()), self.counts)

    def compute(self) -> dict[str, Tensor]:
        """Float64 on the CPU, NaN where undefined, as without an error.

        ``error_iou@t`` is the IoU of the error class alone, ``hard_recall@t`` the share of the hard errors that
        are predicted, ``hard_error_ratio`` hard errors / errors, ``error_rate`` errors / valid pixels,
        ``error_auroc`` and ``error_ap`` the two areas.
        """
        counts = self.counts.cpu()
        pixels, errors, hard = counts.sum(), counts[:, 1:].sum(), counts[:, 2].sum()
        found = {"error_rate": _share(errors, pixels), "hard_error_ratio": _share(hard, errors)}
        for t, start in zip(self.thresholds, self.above, strict=True):
            table = torch.stack([_correct_and_wrong(part) for part in (counts[:start], counts[start:])], 1)
            found[f"error_iou@{t:g}"] = scores(table)["fg_iou"]
            found[f"hard_recall@{t:g}"] = _share(counts[start:, 2].sum(), hard)
        negative, positive = counts[:, 0], counts[:, 1:].sum(1)
        return found | {
            "error_auroc": auroc(negative, positive),
            "error_ap": average_precision(negative, positive),
        }


class FusionMetrics(Metric):
    """mIoU of two branches and, at each threshold, of their fusion, and what the fusion changes; over a split.

    The prediction of a branch is the argmax of its logits; the fused one is the detail branch's where the error
    probability exceeds the threshold. Counts are exact int64 sums over processes.
    """

    full_state_update = False
    semantic: Tensor  # [T + 1, C, C] int64, interval of the error probability, truth, prediction
    detail: Tensor  # [T + 1, C, C]
    changes: (
        Tensor  # [T + 1, 3]: pixels that the detail branch alone has right, semantic alone, both wrong unlike
    )
    edges: Tensor  # [T] float32

    def __init__(self, num_classes: int, ignore_index: int, thresholds: Sequence[float]) -> None:
        super().__init__()
        self.thresholds, cuts = checked(thresholds)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.register_buffer("edges", cuts, persistent=False)
        steps = len(cuts) + 1
        for name, shape in (
            ("semantic", (num_classes,) * 2),
            ("detail", (num_classes,) * 2),
            ("changes", (3,)),
        ):
            self.add_state(name, torch.zeros(steps, *shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, semantic_logits: Tensor, detail_logits: Tensor, error_probability: Tensor, label: Tensor
    ) -> None:
        """Logits ``[B, C, H, W]``, ``error_probability`` and ``label`` ``[B, H, W]``."""
        # max finds the same first index as argmax, three times faster on the CPU.
        semantic, detail = semantic_logits.max(1).indices, detail_logits.max(1).indices
        label, step = label.int(), intervals(error_probability, self.edges)
        counted = (label != self.ignore_index) & (label >= 0) & (label < self.num_classes)
        # What is not counted comes after all that is: cheaper than taking it out.
        row = torch.where(
            counted, (step * self.num_classes + label) * self.num_classes, self.semantic.numel()
        )
        self.semantic += tally(row + semantic, self.semantic)
        self.detail += tally(row + detail, self.detail)
        # 0 the detail branch alone is right, 1 the semantic branch alone, 2 both are wrong
        change = torch.where(detail == label, 0, torch.where(semantic == label, 1, 2))
        code = torch.where(counted & (semantic != detail), step * 3 + change, self.changes.numel())
        self.changes += tally(code, self.changes)

    def compute(self) -> dict[str, Tensor]:
        """Float64 on the CPU.

        ``semantic_miou`` and ``detail_miou``, then for each threshold ``fused_miou@t`` and, as shares of the valid
        pixels, ``repaired@t`` (wrong before the fusion, right after it), ``spoiled@t`` (the reverse) and
        ``exchanged@t`` (another class, but wrong before and after).
        """
        semantic, detail, changes = self.semantic.cpu(), self.detail.cpu(), self.changes.cpu()
        pixels = semantic.sum()
        found = {
            "semantic_miou": scores(semantic.sum(0))["miou"],
            "detail_miou": scores(detail.sum(0))["miou"],
        }
        for start, t in enumerate(self.thresholds, 1):
            fused = semantic[:start].sum(0) + detail[start:].sum(0)
            found[f"fused_miou@{t:g}"] = scores(fused)["miou"]
            for name, count in zip(("repaired", "spoiled", "exchanged"), changes[start:].sum(0), strict=True):
                found[f"{name}@{t:g}"] = _share(count, pixels)
        return found


def checked(thresholds: Sequence[float]) -> tuple[list[float], Tensor]:
    """Thresholds in ascending order, as they are and in float32; ``ConfigError`` unless distinct and in [0, 1]."""
    ordered = sorted(thresholds)
    cuts = torch.tensor(ordered, dtype=torch.float32, device="cpu")
    if not all(0 <= t <= 1 for t in ordered) or len({f"{t:g}" for t in ordered}) < len(ordered):
        raise ConfigError(f"thresholds is {list(thresholds)}, but must be distinct numbers from 0 to 1.")
    return ordered, cuts


def intervals(probability: Tensor, edges: Tensor) -> Tensor:
    """Number of ``edges`` (ascending, float32) that each value exceeds, strictly; int32."""
    return torch.bucketize(probability.float().contiguous(), edges, out_int32=True)


def tally(code: Tensor, table: Tensor) -> Tensor:
    """How often each index of the flattened ``table`` occurs, in its shape; codes beyond it are not counted."""
    return torch.bincount(code.flatten(), minlength=table.numel())[: table.numel()].view_as(table)


def auroc(negative: Tensor, positive: Tensor) -> Tensor:
    """Share of (negative, positive) pairs in ascending order; a pair of one bin counts half. NaN without a pair.

    ``[bins]`` int64 counts each, by ascending score.
    """
    below = negative.cumsum(0) - negative
    ordered = positive.double() @ (below.double() + negative.double() / 2)
    return ordered / (negative.sum().double() * positive.sum().double())


def average_precision(negative: Tensor, positive: Tensor) -> Tensor:
    """``sum (R_n - R_{n-1}) P_n`` over the bins from the highest score downwards; NaN without a positive."""
    found = positive.flip(0).cumsum(0).double()
    seen = (positive + negative).flip(0).cumsum(0).double()
    precision = found / seen.clamp_min(1)
    return precision @ positive.flip(0).double() / positive.sum().double()


def _correct_and_wrong(counts: Tensor) -> Tensor:
    """``[bins, KINDS]`` -> the correct and the erroneous pixels, ``[2]``."""
    return torch.stack([counts[:, 0].sum(), counts[:, 1:].sum()])


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part.double() / whole.double()  # 0/0 is NaN
